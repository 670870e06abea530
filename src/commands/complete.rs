//! What shells offer behind `aq start <TAB>`: names from the mount, if it is there; completion
//! never starts a daemon.
//!
//! Which values are names is known by what they are called on the command line: `VM`, `IMAGE`,
//! `TAG`.

mod in_guests;

use std::ffi::OsStr;
use std::io::{self, Write};

use clap::{Arg, CommandFactory};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{EnvCompleter, Fish, Zsh};

use super::Failure;
use super::files::{Tree, Vm};
use crate::cli::{Cli, Shell};
use crate::daemon;

/// clap_complete's own script hands on the words of bash, for which a colon is one.
const BASH: &str = include_str!("complete/bash.sh");

/// Answers a shell that asks for completions, and says so; does nothing otherwise.
pub fn complete() {
    clap_complete::CompleteEnv::with_factory(command).complete();
}

/// Prints the script that registers this program's completion with a shell.
///
/// # Errors
/// Nobody reads it.
pub fn print(shell: Shell) -> Result<(), Failure> {
    let script = script(shell).map_err(Failure::Output)?;
    io::stdout().write_all(&script).map_err(Failure::Output)
}

fn script(shell: Shell) -> io::Result<Vec<u8>> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => return Ok(BASH.as_bytes().to_vec()),
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", "aq", "aq", "aq", &mut script)?;
    Ok(script)
}

fn command() -> clap::Command {
    Cli::command().mut_subcommands(with_names)
}

fn with_names(command: clap::Command) -> clap::Command {
    let wanted = Wanted::of(command.get_name());
    command.mut_subcommands(with_names).mut_args(move |arg| offering(arg, wanted))
}

fn offering(arg: Arg, wanted: Wanted) -> Arg {
    let kind = arg.get_value_names().and_then(|names| names.first()).map(|n| n.to_string());
    match kind.as_deref() {
        Some("VM") => arg
            .add(ArgValueCompleter::new(move |word: &OsStr| offer(word, |tree| vms(tree, wanted)))),
        Some("IMAGE" | "TAG") => arg.add(ArgValueCompleter::new(|word: &OsStr| {
            offer(word, |tree| tree.names(".images").unwrap_or_default())
        })),
        Some("FILE|VM:PATH" | "VM:DIR") => arg.add(ArgValueCompleter::new(|word: &OsStr| {
            let names =
                |tree: &Tree| vms(tree, Wanted::On).iter().map(|n| format!("{n}:")).collect();
            let mut offered = offer(word, names);
            let of_guests = |tree: &Tree| in_guests::paths(tree, &word.to_string_lossy());
            offered.extend(offer(word, of_guests));
            offered.extend(PathCompleter::any().complete(word));
            offered
        })),
        _ => arg,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    On,
    Off,
    Any,
}

impl Wanted {
    fn of(command: &str) -> Self {
        match command {
            "start" => Self::Off,
            "stop" | "console" | "exec" | "attach" => Self::On,
            _ => Self::Any,
        }
    }

    fn fits(self, vm: &Vm) -> bool {
        let is_off = || vm.status().is_ok_and(|s| s.is_off());
        match self {
            Self::Any => true,
            Self::Off => is_off(),
            Self::On => !is_off(),
        }
    }
}

fn vms(tree: &Tree, wanted: Wanted) -> Vec<String> {
    let vms = tree.vms().unwrap_or_default().into_iter();
    vms.filter(|vm| wanted.fits(vm)).map(|vm| vm.name).collect()
}

fn offer(word: &OsStr, names: impl FnOnce(&Tree) -> Vec<String>) -> Vec<CompletionCandidate> {
    let (Some(begun), Some(dir)) = (word.to_str(), daemon::find()) else { return Vec::new() };
    let names = names(&Tree::at(dir)).into_iter();
    names.filter(|name| name.starts_with(begun)).map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_that_is_a_name_is_completed() {
        let command = command();
        let completed = |sub: &str, name: &str| {
            let sub = command.find_subcommand(sub).unwrap();
            let arg = sub.get_positionals().find(|a| {
                a.get_value_names().is_some_and(|names| names.iter().any(|n| n.as_str() == name))
            });
            arg.unwrap().get::<ArgValueCompleter>().is_some()
        };
        for sub in
            ["start", "stop", "rm", "exec", "console", "attach", "info", "edit", "logs", "wait"]
        {
            assert!(completed(sub, "VM"), "{sub}");
        }
        assert!(completed("fanout", "IMAGE") && !completed("fanout", "N"));
    }

    #[test]
    fn each_shell_has_a_script_that_asks_this_program() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell).unwrap()).unwrap();
            assert!(script.contains("COMPLETE") && script.contains("aq"), "{shell:?}: {script}");
        }
    }

    #[test]
    fn bash_has_one_word_around_a_colon_and_gets_what_it_replaces() {
        let set_up = "compopt() { :; }; complete() { :; }
            aq() { shift; echo \"$_CLAP_COMPLETE_INDEX\" \"${@: -1}\" >&2; printf 'vm1:/etc/\\013vm1:/etc2'; }
            t() { COMP_LINE=$1 COMP_POINT=${#1}; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($#-1)); COMP_TYPE=9
                _aq_complete; echo \"${COMPREPLY[*]}\"; }
            COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'";
        let said = |typed: &str| {
            let script = format!("{BASH}\n{set_up}\n{typed}").replace("\ncomplete -o", "\n: -o");
            let done = std::process::Command::new("bash").arg("-c").arg(script).output().unwrap();
            [done.stderr, done.stdout]
                .map(|text| String::from_utf8(text).unwrap().trim().to_owned())
        };
        for (typed, asked, replaced) in [
            ("t 'aq cp vm1:/et' aq cp vm1 : /et", "2 vm1:/et", "/etc/ /etc2"),
            ("t 'aq cp vm1:' aq cp vm1 :", "2 vm1:", "/etc/ /etc2"),
            ("t 'aq cp  a  v' aq cp a v", "3 v", "vm1:/etc/ vm1:/etc2"),
            ("t 'aq cp vm1: /x' aq cp vm1 : /x", "3 /x", "vm1:/etc/ vm1:/etc2"),
            ("t 'aq cp vm1:a ' aq cp vm1 : a ''", "3", "vm1:/etc/ vm1:/etc2"),
            ("t 'aq new --cpus=v' aq new --cpus = v", "2 --cpus=v", "vm1:/etc/ vm1:/etc2"),
        ] {
            assert_eq!(said(typed), [asked, replaced], "{typed}");
        }
    }
}
