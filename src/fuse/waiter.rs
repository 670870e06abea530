//! The caller of a request that waits: whether a signal is pending for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;

/// A thread that waits, and its `/proc/TID/status`, kept open from the first look on: to open it
/// each time would cost as much again.
pub(super) struct Waiter {
    thread: u32,
    status: Mutex<Option<File>>,
}

impl Waiter {
    pub(super) fn new(thread: u32) -> Self {
        Self { thread, status: Mutex::default() }
    }

    /// Says whether it has a signal pending that it does not block, or is gone. Thread 0 is one in
    /// another pid namespace, which cannot be looked at.
    pub(super) fn is_signalled(&self) -> bool {
        self.is(has_unblocked_signal)
    }

    /// Says whether it is about to die, or gone. Of a signal that ends a process the kernel makes
    /// SIGKILL, for each of its threads.
    pub(super) fn is_killed(&self) -> bool {
        self.is(has_kill_signal)
    }

    fn is(&self, has: fn(&str) -> bool) -> bool {
        if self.thread == 0 {
            return false;
        }
        let mut buffer = [0; 4096];
        match self.read_status(&mut buffer) {
            Ok(length) => has(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) => {
                matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
            }
        }
    }

    fn read_status(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut status = self.status.lock();
        if status.is_none() {
            *status = Some(File::open(format!("/proc/{}/status", self.thread))?);
        }
        status.as_ref().map_or(Ok(0), |file| file.read_at(buffer, 0))
    }
}

fn mask(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn has_kill_signal(status: &str) -> bool {
    (mask(status, "SigPnd:") | mask(status, "ShdPnd:")) & 1 << (libc::SIGKILL - 1) != 0
}

fn has_unblocked_signal(status: &str) -> bool {
    let mask = |key| mask(status, key);
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signals_do_not_interrupt() {
        let status = |pending: &str, shared: &str, blocked: &str| {
            format!("Name:\tcat\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\n")
        };
        let table = [
            (status("0000000000000000", "0000000000000000", "0000000000000000"), false),
            (status("0000000000000002", "0000000000000000", "0000000000000000"), true),
            (status("0000000000000000", "0000000000000100", "0000000000000000"), true),
            (status("0000000000004000", "0000000000000000", "0000000000004000"), false),
            (String::new(), false),
        ];
        for (status, expected) in table {
            assert_eq!(has_unblocked_signal(&status), expected, "{status}");
            let kills = status.contains("0000000000000100");
            assert_eq!(has_kill_signal(&status), kills, "{status}");
        }
    }

    #[test]
    fn a_thread_that_is_gone_is_interrupted_and_an_unknown_one_is_not() {
        let is_signalled = |thread| Waiter::new(thread).is_signalled();
        assert!(is_signalled(u32::MAX));
        assert!(!is_signalled(0));
        assert!(!is_signalled(std::process::id()));
    }

    #[test]
    fn a_thread_that_ends_between_two_looks_is_interrupted() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            ended.recv().ok();
        });
        let waiter = Waiter::new(receiver.recv().unwrap().cast_unsigned());
        assert!(!waiter.is_signalled());
        drop(end);
        thread.join().unwrap();
        // A thread is joined a moment before the kernel has forgotten it.
        while !waiter.is_signalled() {
            std::thread::yield_now();
        }
    }
}
