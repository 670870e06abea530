//! Random operations on the tree, over fakes, against a plain model of what it promises.
//! After every operation the whole tree and the store are compared with the model.
//!
//! [`reference`] is the model and what may be done; [`system`] does it to a tree. A sequence that
//! has failed once is kept in `proptest-regressions/` and run first.
//!
//! `AQFS_MODEL_CASES=10000` runs as many sequences as `make long` does.

mod reference;
mod system;

use proptest::prelude::ProptestConfig;
use proptest_state_machine::prop_state_machine;

use self::system::TreeTest;

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        // What a second or two allow; the whole range is for `make long`.
        cases: std::env::var("AQFS_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200),
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_tree_does_what_its_model_says(sequential 1..24 => TreeTest);
}
