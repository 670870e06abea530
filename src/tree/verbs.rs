//! The verbs of `ctl`: one row a verb.
//!
//! Parsing only: what a verb does is the driver's business, when it may be done `vm::state`'s.

use crate::registry::fork::VmCommand;
use crate::registry::images::ImageCommand;
use crate::vm::backend::SnapshotOp;
use crate::vm::spec::keys::{disk_size, forward};
use crate::vm::spec::{Edit, SpecError};
use crate::vm::state::Command;

/// The longest text that one write to a control file may hold, as in kernfs.
pub const LONGEST_WRITE: usize = 4096;
/// What `stop` waits for the guest before it kills, in seconds.
pub const STOP_TIMEOUT: u64 = 30;
/// The longest timeout that can be asked for, in seconds: a day.
const MAX_STOP_TIMEOUT: u64 = 86_400;

/// One verb of a table whose verbs are commands of type `C`.
#[derive(Debug)]
pub struct Verb<C: 'static = VmCommand> {
    /// The word.
    pub name: &'static str,
    /// Its arguments, as in a manual page; empty if it takes none.
    pub usage: &'static str,
    /// One line: what it does.
    pub doc: &'static str,
    /// Reads the arguments.
    pub parse: fn(&[&str]) -> Result<C, Fault>,
}

impl<C> Verb<C> {
    const fn new(
        name: &'static str,
        usage: &'static str,
        doc: &'static str,
        parse: fn(&[&str]) -> Result<C, Fault>,
    ) -> Self {
        Self { name, usage, doc, parse }
    }

    /// Describes one that takes no arguments.
    const fn word(
        name: &'static str,
        doc: &'static str,
        parse: fn(&[&str]) -> Result<C, Fault>,
    ) -> Self {
        Self::new(name, "", doc, parse)
    }

    fn parse(&self, args: &[&str]) -> Result<C, Fault> {
        if self.usage.is_empty() && !args.is_empty() {
            Err(Fault::Form)
        } else {
            (self.parse)(args)
        }
    }
}

/// What is wrong with a verb's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They are not of the right form.
    Form,
    /// A number is out of range.
    Range,
    /// A value is not one that the setting of the same meaning takes.
    Value(SpecError),
}

impl From<SpecError> for Fault {
    fn from(error: SpecError) -> Self {
        Self::Value(error)
    }
}

/// Why a line is not a command.
#[expect(missing_docs, reason = "each error's sentence says it")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerbError {
    #[error("unknown verb {word:?}{hint}; verbs are {known}")]
    Unknown {
        word: String,
        /// `, did you mean "start"?`, or nothing.
        hint: String,
        known: String,
    },
    #[error("{line:?}: usage: {usage}")]
    Usage { line: String, usage: String },
    #[error("{line:?}: out of range; usage: {usage}")]
    Range { line: String, usage: String },
    #[error(transparent)]
    Value(SpecError),
}

/// The verbs of a VM's `ctl`.
pub static VM_VERBS: &[Verb] = &[
    Verb::new(
        "start",
        "[paused]",
        "launch QEMU; `paused` leaves the processors stopped until `resume`",
        |args| match args {
            [] => Ok(Command::Start { paused: false }.into()),
            ["paused"] => Ok(Command::Start { paused: true }.into()),
            _ => Err(Fault::Form),
        },
    ),
    Verb::new(
        "stop",
        "[SECONDS]",
        "shut the guest down; after SECONDS (30) QEMU is ended by force",
        |args| match args {
            [] => Ok(Command::Stop { seconds: STOP_TIMEOUT }.into()),
            [seconds] => stop_timeout(seconds).map(|seconds| Command::Stop { seconds }.into()),
            _ => Err(Fault::Form),
        },
    ),
    Verb::word("kill", "end QEMU now; what the guest has not written to its disk is lost", |_| {
        Ok(Command::Kill.into())
    }),
    Verb::word("pause", "stop the processors", |_| Ok(Command::Pause.into())),
    Verb::word("resume", "let the processors run again", |_| Ok(Command::Resume.into())),
    Verb::word("reset", "restart the guest, as the reset button does", |_| {
        Ok(Command::Reset.into())
    }),
    Verb::word(
        "suspend",
        "save everything to disk and end QEMU; the next `start` resumes from there",
        |_| Ok(Command::Suspend.into()),
    ),
    Verb::new(
        "fork",
        "NAME…",
        "make running copies of the VM: with its processes, its memory and its disk, each with an identity of its own",
        |args| match args {
            [] => Err(Fault::Form),
            names => Ok(VmCommand::Fork(names.iter().map(|name| (*name).to_owned()).collect())),
        },
    ),
    Verb::new("restore", "TAG", "go back to a snapshot; a VM that runs, with its memory", |args| {
        match args {
            [tag] => Ok(Command::from(SnapshotOp::Restore((*tag).to_owned())).into()),
            _ => Err(Fault::Form),
        }
    }),
    Verb::new(
        "resize",
        "SIZE",
        "make the disk larger, also while the VM runs; the same as writing config/disk",
        |args| match args {
            [size] => Ok(Command::Configure(Edit::Disk(disk_size(size)?)).into()),
            _ => Err(Fault::Form),
        },
    ),
    Verb::new(
        "port",
        "add|del [tcp:|udp:][ADDRESS:]HOST_PORT:GUEST_PORT",
        "open or close a port of the host that leads into the guest; see config/ports",
        |args| match args {
            ["add", spec] => Ok(Command::Configure(Edit::AddPort(forward(spec)?)).into()),
            ["del", spec] => Ok(Command::Configure(Edit::RemovePort(forward(spec)?)).into()),
            _ => Err(Fault::Form),
        },
    ),
    Verb::new(
        "key",
        "KEY[-KEY…] …",
        "press keys on the guest's keyboard: `key ctrl-alt-del`, `key l s ret`",
        |args| {
            let chords: Option<Vec<_>> = args.iter().map(|arg| chord(arg)).collect();
            let chords = chords.filter(|c| !c.is_empty()).ok_or(Fault::Form)?;
            Ok(Command::PressKeys { chords }.into())
        },
    ),
];

/// The verbs of an image's `ctl`.
pub static IMAGE_VERBS: &[Verb<ImageCommand>] = &[
    Verb::word("pull", "make the image now, or try again", |_| Ok(ImageCommand::Pull)),
    Verb::word(
        "warm",
        "capture a machine that has booted from it, from which new VMs resume",
        |_| Ok(ImageCommand::Warm),
    ),
    Verb::word("cold", "forget the captured machine", |_| Ok(ImageCommand::Cold)),
    Verb::word(
        "refresh",
        "make the image again; VMs that have a disk keep the one that it was made from",
        |_| Ok(ImageCommand::Refresh),
    ),
    Verb::word(
        "cancel",
        "end the work that is under way; a pull continues later where it was",
        |_| Ok(ImageCommand::Cancel),
    ),
];

/// Most keys that can be pressed together: as many as fingers.
const LONGEST_CHORD: usize = 10;

/// Reads `ctrl-alt-del`. The names are QEMU's, which knows whether there is such a key; a few that
/// people use instead are understood as well.
fn chord(text: &str) -> Option<Vec<String>> {
    let name = |key: &str| {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        let fits = (1..=32).contains(&key.len()) && key.bytes().all(plain);
        fits.then(|| match key {
            "del" => "delete".to_owned(),
            "enter" | "return" => "ret".to_owned(),
            "space" => "spc".to_owned(),
            "escape" => "esc".to_owned(),
            other => other.to_owned(),
        })
    };
    let keys: Option<Vec<_>> = text.split('-').map(name).collect();
    keys.filter(|k| k.len() <= LONGEST_CHORD)
}

/// Reads the lines of one write: empty lines and those that start with `#` are passed over.
pub fn parse_lines<'a, C>(
    verbs: &'static [Verb<C>],
    text: &'a str,
) -> impl Iterator<Item = Result<C, VerbError>> + use<'a, C> {
    let lines = text.lines().map(str::trim);
    lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| parse_line(verbs, l))
}

fn parse_line<C>(verbs: &[Verb<C>], line: &str) -> Result<C, VerbError> {
    let mut words = line.split_whitespace();
    let word = words.next().unwrap_or_default();
    let args: Vec<&str> = words.collect();
    let verb = verbs.iter().find(|v| v.name == word).ok_or_else(|| unknown(verbs, word))?;
    verb.parse(&args).map_err(|fault| {
        let (line, usage) = (line.to_owned(), format!("{} {}", verb.name, verb.usage));
        let usage = usage.trim_end().to_owned();
        match fault {
            Fault::Form => VerbError::Usage { line, usage },
            Fault::Range => VerbError::Range { line, usage },
            Fault::Value(error) => VerbError::Value(error),
        }
    })
}

fn unknown<C>(verbs: &[Verb<C>], word: &str) -> VerbError {
    let near = |v: &&Verb<C>| strsim::osa_distance(v.name, word) <= 2;
    let hint = verbs.iter().find(near);
    VerbError::Unknown {
        word: word.to_owned(),
        hint: hint.map(|v| format!(", did you mean {:?}?", v.name)).unwrap_or_default(),
        known: verbs.iter().map(|v| v.name).collect::<Vec<_>>().join(" "),
    }
}

fn stop_timeout(text: &str) -> Result<u64, Fault> {
    let seconds: u64 = text.parse().map_err(|_| Fault::Form)?;
    (seconds <= MAX_STOP_TIMEOUT).then_some(seconds).ok_or(Fault::Range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Vec<Result<VmCommand, VerbError>> {
        parse_lines(VM_VERBS, text).collect()
    }

    #[test]
    fn lines_comments_and_a_missing_last_newline() {
        let commands = parse("# go\n\n  start paused \nstop 5");
        let expected = [Command::Start { paused: true }, Command::Stop { seconds: 5 }];
        let expected = expected.map(|command| Ok(command.into()));
        assert_eq!(commands, expected);
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        let table = [
            ("strat", r#"unknown verb "strat", did you mean "start"?; verbs are start stop kill"#),
            ("start now", r#""start now": usage: start [paused]"#),
            ("stop soon", r#""stop soon": usage: stop [SECONDS]"#),
            ("stop 99999999", r#""stop 99999999": out of range; usage: stop [SECONDS]"#),
            ("kill -9", r#""kill -9": usage: kill"#),
            ("resize 1.5G", r#"disk: "1.5G" is not a size such as 512M"#),
            ("resize 1K", "disk: 1K is out of range (16M to 64T)"),
            ("port add 80", r#"ports: "80" is not [tcp:|udp:]"#),
            ("port 80:80", r#""port 80:80": usage: port add|del"#),
            ("fork", r#""fork": usage: fork NAME…"#),
            ("key", r#""key": usage: key"#),
            ("key A", r#""key A": usage: key"#),
            ("key ctrl--a", r#""key ctrl--a": usage: key"#),
        ];
        for (line, message) in table {
            let error = parse(line).remove(0).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn keys_are_chords_and_ports_are_forwards() {
        let keys = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let chords = vec![keys(&["ctrl", "alt", "delete"]), keys(&["ret"])];
        let forward = "tcp:127.0.0.1:8080:80".parse().unwrap();
        let expected = [
            Command::PressKeys { chords },
            Command::Configure(Edit::AddPort(forward)),
            Command::Configure(Edit::RemovePort(forward)),
            Command::Configure(Edit::Disk(3 << 30)),
        ];
        let expected = expected.map(|command| Ok(command.into()));
        let text = "key ctrl-alt-del enter\nport add 8080:80\nport del tcp:8080:80\nresize 3G";
        assert_eq!(parse(text), expected);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
            prop_assert!(parse(&text).len() <= text.lines().count());
        }
    }
}
