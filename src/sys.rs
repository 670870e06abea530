//! The libc calls that no safe crate offers: the only unsafe code of the project.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
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

/// Makes the files that `command` creates private to their owner, and forbids it core files, which
/// would hold what it has in memory.
pub fn keeping_secrets(command: &mut Command) -> &mut Command {
    let confine = || {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let none = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
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
