//! What the tests share: a mounted aqfs of their own ([`mounted`]), shell scripts with a bound
//! ([`shell`]), looks at a store from outside ([`audit`]), looks at processes and mounts ([`proc`]), a guest image built once ([`image`]),
//! terminals ([`terminal`]).
//!
//! No assertion about aqfs itself lives here, except that it cleans up behind itself.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this")]

pub(crate) mod audit;
pub(crate) mod image;
pub(crate) mod mirror;
pub(crate) mod mounted;
pub(crate) mod proc;
pub(crate) mod registry;
pub(crate) mod shell;
pub(crate) mod terminal;

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

pub(crate) use mounted::{Mounted, scratch};
pub(crate) use shell::Output;

/// What a guest under TCG on a busy machine may need to boot.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// Asserts that `result` is the error `expected` (a constant of libc), naming both in words.
#[track_caller]
pub(crate) fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, expected: i32) {
    let wanted = io::Error::from_raw_os_error(expected);
    match result {
        Ok(value) => panic!("expected {wanted}, but it succeeded: {value:?}"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(expected), "expected {wanted}, got {e}"),
    }
}

/// Waits until `condition` holds: for facts that give no event, such as the end of a process that
/// is not our child. Panics naming `what` when `bound` has passed.
#[track_caller]
pub(crate) fn eventually(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the middle one of several measurements.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Returns a port of this host that is free at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}
