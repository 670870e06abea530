//! The libc calls that no safe crate offers: the only unsafe code of the project.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes `command` the leader of a session of its own when it starts, so that it gets no signal
/// of our terminal and outlives us.
pub fn in_own_session(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and
    // touches no memory of this process.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
}

/// Has `command` killed when the thread that starts it ends: what it works on is of no use to
/// anybody then.
pub fn dying_with_us(command: &mut Command) -> &mut Command {
    let kill = Some(rustix::process::Signal::KILL);
    let confine =
        move || rustix::process::set_parent_process_death_signal(kill).map_err(io::Error::from);
    // SAFETY: between fork and exec only prctl(2) is called, which is a plain system call and
    // touches no memory of this process.
    unsafe { command.pre_exec(confine) }
}

/// Leaves a descriptor of ours open in `command`, under the same number. It must be open until
/// the command has started.
pub fn inheriting(command: &mut Command, fd: RawFd) -> &mut Command {
    let keep = move || {
        // SAFETY: the caller keeps it open until the command has started, and this is the child's
        // copy of it.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(io::Error::from)
    };
    // SAFETY: between fork and exec only fcntl(2) is called, which is a plain system call and
    // touches no memory of this process.
    unsafe { command.pre_exec(keep) }
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory in bytes.
    pub rss: u64,
}

/// Returns what a process has used, from `/proc`; nothing for one that is gone.
pub fn process_usage(pid: u32) -> Usage {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything: the fields after its end are counted.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, f)| f).split(' ').collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let ticks = field(11) + field(12);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    Usage { cpu_ms: ticks * 1000 / per_second, rss: field(21) * page }
}

/// Raises the number of files that this process may have open to what it is allowed at all: each
/// running VM and each waiting reader needs some.
pub fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused, the old limit holds.
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Returns how many processors this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Returns a value of `/proc/meminfo` in bytes; 0 if there is none.
pub fn memory(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Waits until a process has ended, for `patience` at the most; says whether it has.
pub fn wait_for_end(pid: u32, patience: std::time::Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return true;
    };
    let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).is_ok_and(|n| n > 0)
}

/// Makes the files that `command` creates private to their owner, and forbids it core files, which
/// would hold what it has in memory.
pub fn keeping_secrets(command: &mut Command) -> &mut Command {
    let confine = || {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, none).map_err(io::Error::from)
    };
    // SAFETY: between fork and exec only umask(2) and setrlimit(2) are called, which are plain
    // system calls and touch no memory of this process.
    unsafe { command.pre_exec(confine) }
}

/// Registers a descriptor with the runtime, to wait until it is readable.
///
/// # Errors
/// `EPERM` if it is of a kind that cannot be waited for.
pub fn readable_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
