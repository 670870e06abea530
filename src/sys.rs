//! The libc calls that no safe crate offers: the only unsafe code of the project.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

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
