//! Names for VMs that were created without one, and suggestions for names that do not exist.

use std::fmt;

use uuid::Uuid;

use super::Failure;

const FIRST: &[&str] = &[
    "amber", "autumn", "bold", "brave", "brisk", "calm", "clear", "clever", "cosmic", "crisp",
    "dawn", "deep", "eager", "early", "fair", "fast", "fresh", "gentle", "glad", "golden", "grand",
    "green", "happy", "hidden", "humble", "icy", "ivory", "jolly", "keen", "kind", "late", "light",
    "lively", "lucky", "lunar", "mellow", "merry", "mild", "misty", "noble", "odd", "olive",
    "patient", "plain", "proud", "quick", "quiet", "rapid", "rare", "royal", "rustic", "silent",
    "silver", "simple", "smooth", "snowy", "solar", "steady", "still", "sunny", "swift", "tidy",
    "vivid", "warm",
];
const SECOND: &[&str] = &[
    "acorn", "anchor", "badger", "beacon", "birch", "bison", "brook", "canyon", "cedar", "cliff",
    "cloud", "comet", "coral", "crane", "creek", "dune", "eagle", "ember", "falcon", "fern",
    "field", "finch", "fjord", "forest", "fox", "garden", "glacier", "grove", "harbor", "hawk",
    "heron", "hill", "island", "lake", "lark", "leaf", "lynx", "maple", "marsh", "meadow", "moon",
    "moss", "oak", "ocean", "otter", "owl", "pebble", "pine", "plover", "pond", "prairie", "quail",
    "rain", "raven", "reef", "ridge", "river", "robin", "sparrow", "spruce", "stone", "summit",
    "tide", "willow",
];

/// The name to suggest for one that does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Near(Option<String>);

impl Near {
    /// Looks for it: at most two letters are other ones, and more than half are the same.
    pub(super) fn of(word: &str, names: impl IntoIterator<Item = String>) -> Self {
        let distance = |name: &String| strsim::osa_distance(word, name);
        let is_near = |name: &String| distance(name) <= 2 && distance(name) * 2 < name.len();
        Self(names.into_iter().filter(is_near).min_by_key(distance))
    }
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, " Did you mean '{name}'?"))
    }
}

/// Refuses what is not one name: it would lead elsewhere.
pub(super) fn expect_one(name: &str) -> Result<(), Failure> {
    if name.is_empty() || name.contains('/') {
        return Err(Failure::Usage(format!("'{name}' is not a name")));
    }
    Ok(())
}

/// Makes up a name. There are 4096; the caller asks again if one is taken.
pub(super) fn random() -> String {
    let random = Uuid::new_v4().into_bytes();
    let pick = |words: &[&'static str], byte: u8| words[usize::from(byte) % words.len()];
    format!("{}-{}", pick(FIRST, random[0]), pick(SECOND, random[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_seen_and_another_name_is_not() {
        let near = |word| Near::of(word, ["web".to_owned(), "db-1".to_owned()]).to_string();
        assert_eq!(near("wbe"), " Did you mean 'web'?");
        assert_eq!(near("db-11"), " Did you mean 'db-1'?");
        assert_eq!((near("nosuch"), near("x")), (String::new(), String::new()));
    }

    #[test]
    fn every_name_is_one_that_a_vm_may_have_and_no_two_words_are_the_same() {
        for words in [FIRST, SECOND] {
            assert_eq!(words.len(), 64);
            assert!(words.is_sorted() && words.iter().all(|w| w.len() < 15));
            assert!(words.windows(2).all(|w| w[0] != w[1]));
        }
        let name = random();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
    }
}
