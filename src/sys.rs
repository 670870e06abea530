//! The libc calls that no safe crate offers: the only unsafe code of the project.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
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

/// Has `command` killed when the thread that starts it ends: what it works on is of no use
/// then.
pub fn dying_with_us(command: &mut Command) -> &mut Command {
    let kill = Some(rustix::process::Signal::KILL);
    let confine =
        move || rustix::process::set_parent_process_death_signal(kill).map_err(io::Error::from);
    // SAFETY: between fork and exec only prctl(2) is called, which is a plain system call and
    // touches no memory of this process.
    unsafe { command.pre_exec(confine) }
}

/// Gives the kernel back what this process has freed: glibc keeps it, and what making an image
/// takes is several times what the daemon needs otherwise. Other allocators see to it themselves.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it is thread-safe, and touches only memory that is not in use.
    unsafe {
        libc::malloc_trim(0);
    }
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

/// Closes a file and says what its file system has to say of writes that came after their answer.
///
/// # Errors
/// What close(2) answers; the file is closed all the same.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is ours alone, and is not used afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

/// Whether signals reach a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// They interrupt it.
    Heard,
    /// Another thread gets them.
    Blocked,
}

/// Says whether these signals reach the calling thread, and those that it starts from now on.
pub fn set_signals(signals: &[i32], to: Signals) {
    let how = match to {
        Signals::Heard => libc::SIG_UNBLOCK,
        Signals::Blocked => libc::SIG_BLOCK,
    };
    // SAFETY: the set is initialised before it is used, and lives on this stack; the calls change
    // nothing but the set and this thread's mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Sends SIGTERM to a process; one that is gone need not be asked.
pub fn ask_to_end(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Waits until a process has ended, for `timeout` at the most; says whether it has.
pub fn wait_for_end(pid: u32, timeout: std::time::Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return true;
    };
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).is_ok_and(|n| n > 0)
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

/// Locks bytes of an open file, which need not be there, against every other process that locks
/// them, also in this process; the lock ends with the open file.
///
/// # Errors
/// `EAGAIN` or `EACCES` while another process has a lock there.
#[allow(clippy::cast_possible_truncation, reason = "the constants of this structure are small")]
pub fn lock_bytes(file: &File, bytes: std::ops::Range<i64>) -> io::Result<()> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: bytes.start,
        l_len: bytes.end - bytes.start,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the kernel only reads
    // the structure, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
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
