//! Signals as messages: what would end a command that has something to put in order first.

use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, local};
use crate::sys;

const ENDS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Sends each of SIGINT, SIGTERM and SIGHUP to `to` as what `message` makes of it, for as long as
/// the process lives. No other thread hears them: not the calling one, nor those that it starts.
pub(super) fn forward<M: Send + 'static>(
    to: Sender<M>,
    message: fn(i32) -> M,
) -> Result<(), Failure> {
    let mut signals = Signals::new(ENDS).map_err(local("signals"))?;
    // A mkdir that is interrupted is done all the same, and the directory would stay behind.
    sys::set_signals(&ENDS, sys::Signals::Blocked);
    std::thread::spawn(move || {
        sys::set_signals(&ENDS, sys::Signals::Heard);
        signals.forever().try_for_each(|s| to.send(message(s)))
    });
    Ok(())
}

/// Returns the name that a job's `ctl` knows the signal by.
pub(super) fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "INT",
        SIGHUP => "HUP",
        _ => "TERM",
    }
}

/// Returns the exit status that a shell gives a process which a signal has ended.
pub(super) fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
