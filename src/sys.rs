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
