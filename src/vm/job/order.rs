//! The lines of a job's `ctl`. Parsing only.
//!
//! What comes after the verb's blank is taken as it is: directories and values need no quotes.

use super::JobError;
use crate::vm::backend::{ExecOptions, JobControl, WindowSize};

/// The verbs, for the documentation.
pub const VERBS: &str = "signal pty winsize env cwd";

/// Names of signals, as Linux has them.
const SIGNALS: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The highest signal number.
const LAST_SIGNAL: u8 = 64;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Before the start.
    Prepare(&'static str, Change),
    /// While it runs.
    Control(JobControl),
}

/// A change of what the command is run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Env(String, String),
    Cwd(String),
    Terminal(WindowSize),
}

impl Change {
    pub(super) fn apply(self, options: &mut ExecOptions) {
        match self {
            Self::Env(name, value) => {
                options.env.retain(|(n, _)| *n != name);
                options.env.push((name, value));
            }
            Self::Cwd(cwd) => options.cwd = Some(cwd),
            Self::Terminal(size) => options.terminal = Some(size),
        }
    }
}

pub(super) fn parse(line: &str) -> Result<Order, JobError> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (order, usage) = match verb {
        "signal" => (signal(rest).map(Order::Control), "signal NAME or NUMBER"),
        "pty" => (
            size(rest).map(|size| Order::Prepare("pty", Change::Terminal(size))),
            "pty COLUMNSxROWS",
        ),
        "winsize" => (
            size(rest).map(|size| Order::Control(JobControl::Resize(size))),
            "winsize COLUMNSxROWS",
        ),
        "env" => (variable(rest).map(|change| Order::Prepare("env", change)), "env NAME=VALUE"),
        "cwd" => (directory(rest).map(|change| Order::Prepare("cwd", change)), "cwd DIRECTORY"),
        _ => (None, "signal NAME, pty COLUMNSxROWS, winsize COLUMNSxROWS, env NAME=VALUE, cwd DIR"),
    };
    order.ok_or_else(|| JobError::Usage { line: line.to_owned(), usage })
}

fn signal(word: &str) -> Option<JobControl> {
    let word = word.trim();
    if let Ok(number) = word.parse::<u8>() {
        let known = (1..=LAST_SIGNAL).contains(&number);
        return known.then(|| JobControl::Signal(number.to_string()));
    }
    let name = word.strip_prefix("SIG").unwrap_or(word);
    SIGNALS.contains(&name).then(|| JobControl::Signal(name.to_owned()))
}

fn size(text: &str) -> Option<WindowSize> {
    let (columns, rows) = text.trim().split_once('x')?;
    let number = |text: &str| text.parse().ok().filter(|n| *n > 0);
    Some(WindowSize { columns: number(columns)?, rows: number(rows)? })
}

fn variable(text: &str) -> Option<Change> {
    let (name, value) = text.split_once('=')?;
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let fits = first && rest && !value.contains('\0');
    fits.then(|| Change::Env(name.to_owned(), value.to_owned()))
}

fn directory(text: &str) -> Option<Change> {
    let fits = !text.is_empty() && !text.contains('\0');
    fits.then(|| Change::Cwd(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_as_they_are() {
        let signal = |name: &str| Order::Control(JobControl::Signal(name.into()));
        let size = WindowSize { columns: 100, rows: 30 };
        let table = [
            ("signal INT", signal("INT")),
            ("signal SIGUSR1", signal("USR1")),
            ("signal 9", signal("9")),
            ("pty 100x30", Order::Prepare("pty", Change::Terminal(size))),
            ("winsize 100x30", Order::Control(JobControl::Resize(size))),
            ("env K= a'b=c ", Order::Prepare("env", Change::Env("K".into(), " a'b=c ".into()))),
            ("env K=", Order::Prepare("env", Change::Env("K".into(), String::new()))),
            ("cwd  it's $HOME ", Order::Prepare("cwd", Change::Cwd(" it's $HOME ".into()))),
        ];
        for (line, order) in table {
            assert_eq!(parse(line), Ok(order));
        }
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        for line in [
            "",
            "signal",
            "signal FOO",
            "signal 0",
            "signal 65",
            "signal INT; reboot",
            "pty 80",
            "pty 0x24",
            "winsize 80x99999",
            "env",
            "env =1",
            "env 1A=2",
            "env A-B=2",
            "cwd",
            "stop",
        ] {
            assert!(matches!(parse(line), Err(JobError::Usage { .. })), "{line}");
        }
    }
}
