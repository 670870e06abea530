//! The command of `aq run` as shell text: of a container image what its configuration says, with
//! what the user replaces.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::Deserialize;
use shlex::bytes::Quoter;

use crate::cli::guest::Run;
use crate::commands::Failure;
use crate::commands::files::Vm;

/// Runs a command as container runtimes do; in guests of container images.
const RUNNER: &str = "/dev/aqfs/bin/run";
/// Ends the machine a moment after the status of the command has been reported.
const POWER_OFF: &str = "sleep 1; exec poweroff";

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Shell text.
    pub(super) text: Vec<u8>,
    is_container: bool,
}

/// `config/container`: what a container's configuration says.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Configured {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    working_dir: String,
    user: String,
}

impl Process {
    /// Composes it for a VM.
    pub(super) fn of(vm: &Vm, args: &Run) -> Result<Self, Failure> {
        let configured = vm.read("config/container")?;
        if configured == "none" {
            return Self::plain(args);
        }
        let configured = serde_json::from_str(&configured)
            .map_err(|e| Failure::Usage(format!("{}/config/container: {e}", vm.name)))?;
        Self::container(&configured, args)
    }

    fn container(configured: &Configured, args: &Run) -> Result<Self, Failure> {
        let words = words(configured, args);
        if words.is_empty() {
            let what = format!("image {} names no command; give one behind its name", args.image);
            return Err(Failure::Usage(what));
        }
        let user = args.user.as_deref().unwrap_or(&configured.user);
        let dir = args.workdir.as_deref().unwrap_or(&configured.working_dir);
        let dir = if dir.is_empty() { "/" } else { dir };
        let head = [RUNNER, user, dir].map(|word| word.as_bytes().to_vec());
        let all: Vec<Vec<u8>> = head.into_iter().chain(words).collect();
        // A shell around the program would die of a signal that the program handles.
        let text = [variables(&args.env)?, b"exec ".to_vec(), joined(&all)].concat();
        Ok(Self { text, is_container: true })
    }

    /// An image that is no container has no command of its own: it is a shell then.
    fn plain(args: &Run) -> Result<Self, Failure> {
        let mut words: Vec<Vec<u8>> = Vec::new();
        words.extend(args.entrypoint.iter().map(|word| word.as_bytes().to_vec()));
        words.extend(args.command.iter().map(|word| word.as_bytes().to_vec()));
        if words.is_empty() && !args.interactive {
            let what =
                format!("image {} names no command; give one, or -it for a shell", args.image);
            return Err(Failure::Usage(what));
        }
        let mut text = match words.is_empty() {
            true => b"\"${SHELL:-/bin/sh}\" -l".to_vec(),
            false => joined(&words),
        };
        if let Some(dir) = &args.workdir {
            text = [b"cd ", &*quoted(dir.as_bytes()), b" && ", &*text].concat();
        }
        if let Some(user) = &args.user {
            let user = quoted(user.as_bytes());
            text = [b"su -s /bin/sh -c ", &*quoted(&text), b" ", &*user].concat();
        }
        Ok(Self { text: [variables(&args.env)?, text].concat(), is_container: false })
    }

    /// Returns the text of one that the machine ends with.
    pub(super) fn and_then_power_off(&self) -> Vec<u8> {
        let tools = if self.is_container { "/dev/aqfs/bin/" } else { "" };
        let end = format!(
            "\nstatus=$?\n{tools}setsid {tools}sh -c '{POWER_OFF}' </dev/null >/dev/null 2>&1 &\n\
             exit $status\n"
        );
        [b"(\n", &*self.text, b"\n)", end.as_bytes()].concat()
    }
}

fn words(configured: &Configured, args: &Run) -> Vec<Vec<u8>> {
    let bytes = |word: &String| word.as_bytes().to_vec();
    let given = args.command.iter().map(|word| word.as_bytes().to_vec());
    // A user's own program takes none of the image's words.
    let (first, rest) = match &args.entrypoint {
        Some(program) => (vec![bytes(program)], Vec::new()),
        None => (
            configured.entrypoint.iter().map(bytes).collect(),
            configured.cmd.iter().map(bytes).collect::<Vec<_>>(),
        ),
    };
    let rest = if args.command.is_empty() { rest } else { given.collect() };
    first.into_iter().chain(rest).collect()
}

/// Sets variables; one without a value has that which it has here.
fn variables(given: &[String]) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    for pair in given {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, OsStr::new(value).to_owned()),
            None => match std::env::var_os(pair) {
                Some(value) => (pair.as_str(), value),
                None => continue,
            },
        };
        if !is_variable(name) {
            return Err(Failure::Usage(format!("{name:?} is no name of a variable")));
        }
        let value = quoted(value.as_bytes());
        text.extend([b"export ", name.as_bytes(), b"=", &*value, b"\n"].concat());
    }
    Ok(text)
}

fn is_variable(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn quoted(word: &[u8]) -> Vec<u8> {
    // No argument of a program has a NUL: there is no other error.
    Quoter::new().allow_nul(true).quote(word).unwrap_or_default().into_owned()
}

fn joined(words: &[Vec<u8>]) -> Vec<u8> {
    let words = words.iter().map(Vec::as_slice);
    Quoter::new().allow_nul(true).join(words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &[&str]) -> Run {
        let parsed = Cli::try_parse_from([&["aq", "run"], line].concat()).unwrap().command;
        let Command::Run(args) = parsed else { panic!("not run") };
        args
    }

    fn container(line: &[&str]) -> String {
        let configured = Configured {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["a b".into()],
            working_dir: "/srv".into(),
            user: "app".into(),
        };
        String::from_utf8(Process::container(&configured, &args(line)).unwrap().text).unwrap()
    }

    #[test]
    fn words_of_the_user_replace_those_of_the_image() {
        assert_eq!(container(&["x"]), "exec /dev/aqfs/bin/run app /srv /entry 'a b'");
        assert_eq!(container(&["x", "-l"]), "exec /dev/aqfs/bin/run app /srv /entry -l");
        let own = ["--entrypoint", "sh", "-u", "0:5", "-w", "/w", "-e", "K=it's", "x", "-c", "id"];
        assert_eq!(container(&own), "export K=\"it's\"\nexec /dev/aqfs/bin/run 0:5 /w sh -c id");
        let refused = Process::container(&Configured::default(), &args(&["x"]));
        assert!(matches!(refused, Err(Failure::Usage(_))));
    }

    #[test]
    fn an_image_that_is_no_container_has_a_shell() {
        let text =
            |line: &[&str]| String::from_utf8(Process::plain(&args(line)).unwrap().text).unwrap();
        assert_eq!(text(&["tiny", "uname", "-a"]), "uname -a");
        assert_eq!(text(&["-it", "tiny"]), "\"${SHELL:-/bin/sh}\" -l");
        assert_eq!(text(&["-w", "/a b", "tiny", "pwd"]), "cd '/a b' && pwd");
        assert!(Process::plain(&args(&["tiny"])).is_err());
    }
}
