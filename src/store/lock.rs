//! One daemon per store: an flock that the kernel drops with the process.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long the lock of a killed daemon may stay held: until its last thread has ended, and a program that
/// it was starting has closed the file.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(10);

/// The daemon that serves a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The daemon's process number.
    pub pid: u32,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// Why a store cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon serves it.
    #[error("the store {store} is served by another daemon, {owner}")]
    Taken {
        /// The store.
        store: PathBuf,
        /// `pid 812, mounted at /home/u/aq`, as far as it can be read.
        owner: String,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {path}: {error}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

/// A held lock; dropping it frees the store.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock at `path` for `owner`.
    ///
    /// # Errors
    /// [`LockError::Taken`] names the other daemon.
    pub fn take(path: &Path, owner: &Owner) -> Result<Self, LockError> {
        let failed = |error| LockError::Io { path: path.to_owned(), error };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(failed)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
                Err(TryLockError::WouldBlock) => {}
            }
            if begun.elapsed() > RELEASE_TIMEOUT
                || !owner_of(&mut file).is_some_and(|o| crate::proc::is_gone(o.pid))
            {
                return Err(taken(path, &mut file));
            }
            sleep(RETRY);
        }
        record(&mut file, owner).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Reads which daemon holds, or last held, the lock at `path`.
pub fn owner(path: &Path) -> Option<Owner> {
    super::file::read_json(path).ok()
}

fn record(file: &mut File, owner: &Owner) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(owner)?)
}

fn owner_of(file: &mut File) -> Option<Owner> {
    file.rewind().ok()?;
    serde_json::from_reader(file).ok()
}

fn taken(path: &Path, file: &mut File) -> LockError {
    let owner = owner_of(file).map_or_else(
        || "whose pid is not recorded".to_owned(),
        |o| format!("pid {}, mounted at {}", o.pid, o.mount.display()),
    );
    LockError::Taken { store: path.parent().unwrap_or(path).to_owned(), owner }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_refused_and_learns_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let owner = Owner { pid: std::process::id(), mount: "/home/u/aq".into() };
        let held = StoreLock::take(&path, &owner).unwrap();
        let error = StoreLock::take(&path, &owner).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}, mounted at /home/u/aq", owner.pid)), "{error}");
        drop(held);
        StoreLock::take(&path, &owner).unwrap();
    }

    #[test]
    fn a_lock_that_outlives_its_daemon_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let owner = Owner { pid: ended.id(), mount: "/home/u/aq".into() };
        let held = StoreLock::take(&path, &owner).unwrap();
        let next = std::thread::spawn(move || StoreLock::take(&path, &owner).map(drop));
        sleep(10 * RETRY);
        assert!(!next.is_finished());
        drop(held);
        next.join().unwrap().unwrap();
    }
}
