//! Shell scripts, as a user would type them, with a bound on how long they may take.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::proc;

/// What a script said and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The exit status, or 128 and the signal's number, as shells count.
    pub(crate) code: i32,
}

impl Output {
    /// Returns stdout without its last newline; panics unless the script ended with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "the script failed: {self:?}");
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Returns stderr; panics unless the script failed.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert_ne!(self.code, 0, "the script succeeded: {self:?}");
        self.stderr
    }
}

/// Runs `script` by `shell` in `dir`. Panics after `bound`, saying in which state its processes
/// were, and kills them all.
#[track_caller]
pub(crate) fn run(shell: &str, script: impl AsRef<OsStr>, dir: &Path, bound: Duration) -> Output {
    let mut command = Command::new(shell);
    command.arg("-c").arg(script.as_ref()).current_dir(dir);
    finish(&mut command, bound)
}

/// Runs a command to its end, within `bound`; see [`run`].
#[track_caller]
pub(crate) fn finish(command: &mut Command, bound: Duration) -> Output {
    // Files and not pipes: a process that outlives the shell must not keep the test waiting.
    let (out, err) = (scratch(), scratch());
    command.stdin(Stdio::null()).stdout(dup(&out)).stderr(dup(&err)).process_group(0);
    let child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let group = child.id();
    let status = wait(child, bound).unwrap_or_else(|| give_up(group, bound, &out, &err));
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    Output { stdout: text(&out), stderr: text(&err), code: code.unwrap_or(-1) }
}

/// Waits for a child; `None` when `bound` has passed.
pub(crate) fn wait(mut child: Child, bound: Duration) -> Option<ExitStatus> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait()));
    receiver.recv_timeout(bound).ok()?.ok()
}

#[track_caller]
fn give_up(group: u32, bound: Duration, out: &File, err: &File) -> ExitStatus {
    let states: Vec<String> = proc::group(group)
        .iter()
        .map(|p| format!("{} {} in state {}", p.pid, p.name, p.state))
        .collect();
    proc::kill_group(group);
    let (out, err) = (text(out), text(err));
    panic!("still running after {bound:?}: {states:?}\nstdout: {out}\nstderr: {err}");
}

fn scratch() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn dup(file: &File) -> File {
    file.try_clone().expect("another descriptor")
}

fn text(mut file: &File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a regular file");
    file.read_to_end(&mut bytes).expect("a regular file");
    String::from_utf8_lossy(&bytes).into_owned()
}
