//! What is printed: lines to standard output, which scripts parse, and notes to standard error,
//! which people read.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use shlex::bytes::Quoter;

use super::Failure;

pub(super) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", text.as_ref()).map_err(Failure::Output)
}

/// Prints a note on standard error. It is lost if that is closed.
pub(super) fn note(text: impl AsRef<str>) {
    let _unheard = writeln!(io::stderr(), "{}", text.as_ref());
}

/// Reports a part that failed, while others continue.
pub(super) fn complain(failure: &Failure) {
    if !failure.is_reported() {
        note(format!("aq: {failure}"));
    }
}

/// Does something for each, reports those that failed, and fails in the end if one did.
pub(super) fn each<T>(
    items: impl IntoIterator<Item = T>,
    mut act: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut worst = None;
    for item in items {
        if let Err(failure) = act(item) {
            complain(&failure);
            worst = Some(failure.code());
        }
    }
    worst.map_or(Ok(()), |code| Err(Failure::Reported(code)))
}

/// Prints bytes as `du -h` does: `4.0K`, `1.2M`, `38M`.
pub(super) fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes, "");
    let mut rest = 0;
    for next in ["K", "M", "G", "T"] {
        if value < 1024 {
            break;
        }
        (rest, value, unit) = (value % 1024 * 10 / 1024, value / 1024, next);
    }
    if unit.is_empty() || value >= 10 {
        format!("{value}{unit}")
    } else {
        format!("{value}.{rest}{unit}")
    }
}

/// Makes one shell text of the arguments of a command. A single one is shell text already, as for
/// ssh; several are words, which the guest's shell shall see as they are.
pub(super) fn command_text(words: &[impl AsRef<OsStr>]) -> Vec<u8> {
    match words {
        // A job without a text would wait for it.
        [text] if text.as_ref().is_empty() => b":".to_vec(),
        [text] => text.as_ref().as_bytes().to_vec(),
        _ => {
            let words = words.iter().map(|w| w.as_ref().as_bytes());
            // No argument of a program has a NUL: there is no other error.
            Quoter::new().allow_nul(true).join(words).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_argument_is_shell_text_and_several_are_words() {
        let text = |words: &[&str]| String::from_utf8(command_text(words)).unwrap();
        assert_eq!(text(&["echo a; echo b"]), "echo a; echo b");
        assert_eq!(text(&[""]), ":");
        assert_eq!(text(&["ls", "-l", "/a b"]), "ls -l '/a b'");
        assert_eq!(text(&["sh", "-c", r#"echo "a b"; exit 5"#]), r#"sh -c 'echo "a b"; exit 5'"#);
        assert_eq!(text(&["echo", "it's", "", "$x"]), r#"echo "it's" '' '$x'"#);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn a_shell_sees_the_words_that_were_given(words in proptest::collection::vec("[^\\x00]{0,8}", 2..5)) {
            let command = [vec!["printf".to_owned(), "%s\\0".to_owned()], words.clone()].concat();
            let text = command_text(&command);
            let said = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&text)).output().unwrap();
            let wanted: Vec<u8> = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(said.stdout, wanted);
        }
    }

    #[test]
    fn sizes_are_those_of_du() {
        let table =
            [(0, "0"), (1023, "1023"), (4096, "4.0K"), (1_300_000, "1.2M"), (40 << 20, "40M")];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }
}
