//! `aq console` and `aq scp`: OpenSSH's own programs, with the VM's `ssh_config`. They need the
//! host's OpenSSH client.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::files::{Tree, Vm};
use super::power;
use super::progress::Progress;
use super::{Failure, environment};
use crate::cli::guest::{Console, Scp};

/// How long a guest that has just been started may take to accept a login.
const READY_TIMEOUT: Duration = Duration::from_secs(180);

pub(super) fn console(tree: &Tree, args: &Console) -> Result<(), Failure> {
    let vm = tree.vm(&args.vm)?;
    let mut ssh = openssh("ssh", &vm)?;
    wait_for_ssh(&vm)?;
    Err(become_program(ssh.arg(&vm.name)))
}

/// Returns a program of OpenSSH that knows the VM. The user's own key is offered before ours.
fn openssh(program: &str, vm: &Vm) -> Result<Command, Failure> {
    let mut command = Command::new(program);
    command.arg("-F").arg(vm.path("ssh_config"));
    if let Some(key) = environment::identity()? {
        command.arg("-i").arg(key);
    }
    Ok(command)
}

/// Waits until the guest of a VM that is on accepts a login.
pub(super) fn wait_for_ssh(vm: &Vm) -> Result<(), Failure> {
    vm.wake()?;
    power::until_ready(vm, READY_TIMEOUT, Progress::new())
}

/// Becomes another program: terminal, signals and exit status are its own from here on.
fn become_program(command: &mut Command) -> Failure {
    let program = command.get_program().to_string_lossy().into_owned();
    let error = command.exec();
    if error.kind() == io::ErrorKind::NotFound {
        let sentence =
            "is not installed; `apt install openssh-client` or your system's package of it";
        return Failure::Refused { what: program, sentence: sentence.to_owned(), errno: 0 };
    }
    Failure::Local(program, error)
}

pub(super) fn scp(tree: &Tree, args: &Scp) -> Result<(), Failure> {
    let Plan { options, vm, paths } = plan(&args.words).map_err(Failure::Usage)?;
    let vm = tree.vm(&vm)?;
    let mut scp = openssh("scp", &vm)?;
    wait_for_ssh(&vm)?;
    Err(become_program(scp.arg("-B").args(options).arg("--").args(paths)))
}

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    options: Vec<OsString>,
    vm: String,
    paths: Vec<OsString>,
}

/// Reads `[-r] [-p] FILE… VM:PATH` or `[-r] [-p] VM:PATH… FILE`.
fn plan(words: &[OsString]) -> Result<Plan, String> {
    let is_option = |w: &&OsString| w.as_bytes().starts_with(b"-") && w.len() > 1;
    let options: Vec<OsString> = words.iter().take_while(is_option).cloned().collect();
    let paths = &words[options.len()..];
    let [sources @ .., destination] = paths else { return Err(TOO_FEW.to_owned()) };
    if sources.is_empty() {
        return Err(TOO_FEW.to_owned());
    }
    let options = options.into_iter().filter(|o| o != "--").collect();
    if let Some((vm, _)) = remote(destination) {
        if vm.is_empty() {
            return Err("VM name required in the destination.".to_owned());
        }
        if sources.iter().any(|s| remote(s).is_some()) {
            return Err("Cannot mix VM and host sources when copying to a VM.".to_owned());
        }
        return Ok(Plan { options, vm, paths: paths.to_vec() });
    }
    let (vm, mut sources) = sources_of_one_vm(sources)?;
    sources.push(destination.clone());
    Ok(Plan { options, vm, paths: sources })
}

const TOO_FEW: &str =
    "At least source and destination required. Usage: `aq scp [-r] [-p] source... destination`.";

fn sources_of_one_vm(sources: &[OsString]) -> Result<(String, Vec<OsString>), String> {
    let (mut vm, mut named) = (String::new(), Vec::new());
    for source in sources {
        let Some((of, path)) = remote(source) else {
            return Err("All sources must be VM paths (vm-name:/path or :/path) when the \
                        destination is on the host."
                .to_owned());
        };
        if vm.is_empty() {
            vm.clone_from(&of);
        }
        if vm.is_empty() {
            return Err("VM name required in the first source.".to_owned());
        }
        if !of.is_empty() && of != vm {
            return Err(format!("Inconsistent VM names: '{vm}' vs '{of}'."));
        }
        let mut source = OsString::from(format!("{vm}:"));
        source.push(path);
        named.push(source);
    }
    Ok((vm, named))
}

/// Splits `VM:PATH` as scp does: a colon behind a slash is part of a local name.
pub(super) fn remote(word: &OsStr) -> Option<(String, &OsStr)> {
    let bytes = word.as_bytes();
    let colon = bytes.iter().position(|b| *b == b':')?;
    let (vm, path) = (&bytes[..colon], &bytes[colon + 1..]);
    let vm = std::str::from_utf8(vm).ok().filter(|vm| !vm.contains('/'))?;
    Some((vm.to_owned(), OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(line: &[&str]) -> Result<(Vec<String>, String, Vec<String>), String> {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        let text =
            |words: Vec<OsString>| words.iter().map(|w| w.to_string_lossy().into()).collect();
        plan(&words).map(|p| (text(p.options), p.vm, text(p.paths)))
    }

    #[test]
    fn both_directions_with_options_and_blanks() {
        let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let (options, vm, paths) = plan_of(&["-r", "-p", "a b", "c", "vm1:/x y"]).unwrap();
        assert_eq!((options, vm), (own(&["-r", "-p"]), "vm1".to_owned()));
        assert_eq!(paths, own(&["a b", "c", "vm1:/x y"]));
        let (_, vm, paths) = plan_of(&["vm1:/a", ":/b c", "here"]).unwrap();
        assert_eq!((vm.as_str(), paths), ("vm1", own(&["vm1:/a", "vm1:/b c", "here"])));
        let (_, vm, _) = plan_of(&["./with:colon", "vm1:"]).unwrap();
        assert_eq!(vm, "vm1");
    }

    #[test]
    fn what_does_not_fit_together_is_told() {
        let table: [(&[&str], &str); 6] = [
            (&["-r", "a"], "At least source"),
            (&["a", "b"], "All sources must be VM paths"),
            (&["vm1:a", "vm2:b", "c"], "Inconsistent VM names: 'vm1' vs 'vm2'"),
            (&["vm1:a", "vm2:b"], "Cannot mix"),
            (&[":a", "c"], "VM name required in the first source"),
            (&["a", ":b"], "VM name required in the destination"),
        ];
        for (line, message) in table {
            let error = plan_of(line).unwrap_err();
            assert!(error.starts_with(message), "{line:?}: {error}");
        }
    }
}
