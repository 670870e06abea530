//! Text for a guest's shell.

use std::borrow::Cow;

use shlex::bytes::Quoter;

/// Quotes a word: the shell sees every byte of it as it is. A shell ends a word at a NUL, which
/// only the text of a command may hold; there it means what it means to `sh -c`.
pub(super) fn quoted(word: &[u8]) -> Cow<'_, [u8]> {
    // With NUL allowed there is no other error.
    Quoter::new().allow_nul(true).quote(word).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn a_shell_sees_the_word_that_was_quoted(word in "[^\\x00]{0,40}") {
            let text = [b"printf %s ", &*quoted(word.as_bytes())].concat();
            let seen = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&text)).output().unwrap();
            prop_assert_eq!(seen.stdout, word.into_bytes());
        }
    }
}
