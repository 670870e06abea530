//! The newest failures, for `.error`: of requests, and of what the daemon does on its own.
//!
//! Not here: which errno a failure has (`fuse::errno`).

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// FailureLog that `.error` shows.
const KEPT: usize = 64;
/// What damage counts as: "structure needs cleaning".
const EUCLEAN: i32 = 117;

/// Something that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub time: SystemTime,
    /// The thread that made the request; 0 without a request, or if it is in another pid namespace.
    pub pid: u32,
    /// The file: a path in the mount; without a request, an absolute path on the host.
    pub path: String,
    /// The errno.
    pub errno: i32,
    /// The sentence.
    pub text: String,
}

/// The newest failures.
#[derive(Debug, Default)]
pub struct FailureLog(Mutex<VecDeque<Failure>>);

impl FailureLog {
    /// Adds one.
    pub fn add(&self, failure: Failure) {
        let mut newest = self.0.lock();
        if newest.len() == KEPT {
            newest.pop_front();
        }
        newest.push_back(failure);
    }

    /// Adds a failure without a request, about a file of the store, and logs it.
    pub fn note(&self, path: &Path, error: &io::Error, text: String) {
        let errno = error.raw_os_error().unwrap_or(EUCLEAN);
        tracing::warn!("{text}");
        let path = path.display().to_string();
        self.add(Failure { time: SystemTime::now(), pid: 0, path, errno, text });
    }

    /// Returns when the last one was added.
    pub fn changed(&self) -> Option<SystemTime> {
        self.0.lock().back().map(|f| f.time)
    }

    /// Lists them, the oldest first.
    pub fn list(&self) -> Vec<Failure> {
        self.0.lock().iter().cloned().collect()
    }

    /// Prints them, the oldest first: `time pid path errno text`.
    pub fn print(&self) -> String {
        let line = |f: &Failure| {
            let time = f.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            format!("{time} {} {} {} {}\n", f.pid, f.path, f.errno, f.text)
        };
        self.0.lock().iter().map(line).collect()
    }
}
