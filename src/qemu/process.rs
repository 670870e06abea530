//! QEMU as a process: started in its own session, watched and signalled through a pidfd, and what
//! it left in its log.
//!
//! A pidfd works alike for our children and for processes that an earlier daemon started, and can
//! never mean a later process with the same number. Nothing here knows QMP.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use signal_hook::low_level::signal_name;
use tokio::io::unix::AsyncFd;

use crate::proc::Stat;
pub use crate::proc::{argument_of, arguments_of, boot_id, start_time, started_at};
use crate::store::file;
use crate::store::layout::VmDir;
use crate::sys;
use crate::vm::backend::Lifetime;

/// What opens our notes in `qemu.log`, those of other modules too; QEMU's own lines never begin so.
const NOTE: &str = "aq: ";
/// How QEMU marks what does not end it: under KVM it warns of more processors than the host has.
const WARNING: &str = ": warning: ";
/// What opens the note of a launch, behind which its lines begin.
const LAUNCH: &str = "aq: launch ";
/// How much of the log's end is looked at for a last line.
const TAIL: u64 = 64 << 10;
/// The log is begun anew by a launch that finds it longer than this.
const LOG_LIMIT: u64 = 1 << 20;

/// A process and its identity.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its start time in clock ticks since the host's boot.
    pub start: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Opens a running process.
    ///
    /// # Errors
    /// `NotFound` or `ESRCH` if there is none with this number.
    pub fn of(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        // Read after the pidfd is open: a process that ended in between has no start time, and
        // a child of ours keeps its number until we reap it.
        let start = Stat::of(pid)?.start;
        Ok(Self { pid, start, pidfd: sys::readable_fd(pidfd)? })
    }

    /// Waits for its end and says how it ended: `exit 0`, `signal KILL`, or `unknown` if it is not
    /// a child of ours. A child is reaped.
    pub async fn ended(&self) -> String {
        // An error cannot happen to a pidfd in a running runtime; then the answer is `unknown`.
        let Ok(_ready) = self.pidfd.readable().await else {
            return "unknown".to_owned();
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => describe(&status),
            Ok(None) | Err(_) => "unknown".to_owned(),
        }
    }

    /// Sends a signal. A process that has ended already is no error.
    ///
    /// # Errors
    /// `EPERM` for another user's process.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Err(Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn describe(status: &WaitIdStatus) -> String {
    if let Some(code) = status.exit_status() {
        return format!("exit {code}");
    }
    let number = status.terminating_signal().unwrap_or(0);
    match signal_name(number) {
        Some(name) => format!("signal {}", name.trim_start_matches("SIG")),
        None => format!("signal {number}"),
    }
}

/// Starts `program` in the VM's directory: in a session of its own, without stdin, with stdout and
/// stderr appended to the log, creating files for the owner alone and no core files (they would
/// hold guest memory). It inherits `file` under the same descriptor.
///
/// # Errors
/// `NotFound` if the program is not installed, and what opening the log answers.
pub fn spawn(
    program: &str,
    args: &[OsString],
    dir: &VmDir,
    (lifetime, file): (Lifetime, Option<&OwnedFd>),
) -> io::Result<Process> {
    let log = open_log(dir, program, args)?;
    let mut command = Command::new(program);
    command.args(args).current_dir(&dir.0);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    sys::in_own_session(sys::keeping_secrets(&mut command));
    if lifetime == Lifetime::Ours {
        // The thread that dies is one of the runtime's, which end with the daemon.
        sys::dying_with_us(&mut command);
    }
    if let Some(file) = file {
        sys::inheriting(&mut command, file.as_raw_fd());
    }
    let mut child = command.spawn()?;
    Process::of(child.id()).inspect_err(|_| {
        // What cannot be watched must not run; an error means that it has ended by itself.
        child.kill().and_then(|()| child.wait()).ok();
    })
}

/// Opens the log and notes the launch in it, which also marks where this launch's lines begin.
fn open_log(dir: &VmDir, program: &str, args: &[OsString]) -> io::Result<File> {
    let mut log = file::open_log(&dir.log())?;
    if log.metadata()?.len() > LOG_LIMIT {
        log.set_len(0)?;
    }
    // Quoted, so that the line can be copied and run. No argument of a program has a NUL.
    let words: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
    let words = shlex::Quoter::new().allow_nul(true).join(words.iter().map(|w| &**w));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.unwrap_or_default().as_secs();
    writeln!(log, "{LAUNCH}{seconds}: {program} {}", words.unwrap_or_default())?;
    Ok(log)
}

/// Returns the last line that the latest QEMU of this VM wrote to the log, without the program's
/// name in front; empty if there is none.
pub fn last_words(dir: &VmDir) -> String {
    read_tail(&dir.log()).map_or_else(|_| String::new(), |tail| last_line(&tail))
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut log = File::open(path)?;
    let start = log.metadata()?.len().saturating_sub(TAIL);
    log.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    log.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_line(log: &str) -> String {
    let line = log
        .lines()
        .rev()
        .take_while(|l| !l.starts_with(LAUNCH))
        .find(|l| !l.trim().is_empty() && !l.starts_with(NOTE) && !l.contains(WARNING))
        .unwrap_or_default();
    strip_program(line).to_owned()
}

/// Strips `qemu-system-x86_64: ` or `qemu-img: ` from a line of stderr.
pub fn strip_program(line: &str) -> &str {
    match line.split_once(": ") {
        Some((program, rest)) if is_qemu(program) => rest.trim(),
        _ => line.trim(),
    }
}

fn is_qemu(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    name.starts_with("qemu-") && !name.contains(' ')
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn vm_dir() -> (tempfile::TempDir, VmDir) {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir(dir.path().to_owned());
        (dir, vm)
    }

    fn shell(dir: &VmDir, script: &str) -> Process {
        spawn("sh", &["-c".into(), script.into()], dir, (Lifetime::Own, None)).unwrap()
    }

    #[tokio::test]
    async fn an_end_is_reported_in_words_and_the_child_is_reaped() {
        let (_keep, dir) = vm_dir();
        let table = [
            ("exit 0", "exit 0"),
            ("exit 3", "exit 3"),
            ("kill -KILL $$", "signal KILL"),
            ("kill -ABRT $$", "signal ABRT"),
            ("kill -SYS $$", "signal SYS"),
        ];
        for (script, expected) in table {
            let process = shell(&dir, script);
            assert_eq!(process.ended().await, expected);
            assert!(Stat::of(process.pid).is_err(), "a zombie is left");
        }
    }

    #[tokio::test]
    async fn a_signal_reaches_it_and_is_no_error_when_it_is_gone() {
        let (_keep, dir) = vm_dir();
        let process = shell(&dir, "exec sleep 60");
        process.signal(Signal::TERM).unwrap();
        assert_eq!(process.ended().await, "signal TERM");
        process.signal(Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn it_runs_in_a_session_of_its_own_with_private_files_and_no_core() {
        let (_keep, dir) = vm_dir();
        let process = shell(&dir, "umask; ulimit -c; pwd; cut -d' ' -f6 /proc/$$/stat");
        let pid = process.pid;
        assert_eq!(process.ended().await, "exit 0");
        let log = fs::read_to_string(dir.log()).unwrap();
        let lines: Vec<_> = log.lines().skip(1).collect();
        let cwd = fs::canonicalize(&dir.0).unwrap();
        let expected = ["0077", "0", cwd.to_str().unwrap(), &pid.to_string()];
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn the_last_words_are_those_of_the_latest_launch() {
        let (_keep, dir) = vm_dir();
        shell(&dir, "echo qemu-system-x86_64: first >&2").ended().await;
        assert_eq!(last_words(&dir), "first");
        shell(
            &dir,
            "echo qemu-system-x86_64: cause >&2; echo qemu-system-x86_64: warning: odd >&2",
        )
        .ended()
        .await;
        assert_eq!(last_words(&dir), "cause");
        shell(&dir, "true").ended().await;
        assert_eq!(last_words(&dir), "");
    }

    #[test]
    fn a_last_line_loses_the_name_of_the_program_and_nothing_else() {
        let table = [
            ("aq: launch 1: x\nqemu-system-x86_64: -x: bad\n\n", "-x: bad"),
            ("aq: launch 1: x\n/usr/bin/qemu-img: no\n", "no"),
            ("aq: launch 1: x\nnot qemu-x: kept\naq: a note\n", "not qemu-x: kept"),
            ("a\naq: launch 1: x\naq: a note\n", ""),
            ("", ""),
        ];
        for (log, expected) in table {
            assert_eq!(last_line(log), expected, "{log:?}");
        }
    }

    #[tokio::test]
    async fn a_start_on_the_wall_clock_is_recent_for_a_recent_process() {
        let (_keep, dir) = vm_dir();
        let process = spawn("sleep", &["60".into()], &dir, (Lifetime::Own, None)).unwrap();
        let age = SystemTime::now().duration_since(started_at(process.start));
        assert!(age.unwrap_or_default() < Duration::from_secs(10));
        assert_eq!(argument_of(process.pid, "sleep").as_deref(), Some("60"));
        process.signal(Signal::KILL).unwrap();
        process.ended().await;
    }
}
