//! What the files at the root are about: all VMs, and what has gone wrong lately.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::registry::Registry;

/// Failures that `.error` shows.
const KEPT: usize = 64;

/// The object of the root's rows.
#[derive(Clone, Debug)]
pub struct Host {
    /// The VMs.
    pub registry: Arc<Registry>,
    /// The newest failures.
    pub failures: Arc<Failures>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub time: SystemTime,
    /// The thread that asked; 0 if it is in another pid namespace.
    pub pid: u32,
    /// The file, as a path in the mount.
    pub path: String,
    /// The errno.
    pub errno: i32,
    /// The sentence.
    pub text: String,
}

/// The newest failures of all requests.
#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<Failure>>);

impl Failures {
    /// Adds one.
    pub fn add(&self, failure: Failure) {
        let mut newest = self.0.lock();
        if newest.len() == KEPT {
            newest.pop_front();
        }
        newest.push_back(failure);
    }

    /// Returns when the last one was added.
    pub fn changed(&self) -> Option<SystemTime> {
        self.0.lock().back().map(|f| f.time)
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
