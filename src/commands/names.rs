//! Names for VMs that nobody has named: two words, easy to say and to type.

use uuid::Uuid;

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

/// Makes up a name. There are 4096; whoever finds one taken asks again.
pub(super) fn random() -> String {
    let random = Uuid::new_v4().into_bytes();
    let pick = |words: &[&'static str], byte: u8| words[usize::from(byte) % words.len()];
    format!("{}-{}", pick(FIRST, random[0]), pick(SECOND, random[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

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
