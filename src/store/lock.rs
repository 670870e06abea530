//! One daemon per store: an flock that the kernel drops with the process.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Who serves a store.
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
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(taken(path, &mut file)),
            Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        record(&mut file, owner).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Reads who holds, or last held, the lock at `path`.
pub fn owner(path: &Path) -> Option<Owner> {
    super::file::read_json(path).ok()
}

fn record(file: &mut File, owner: &Owner) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(owner)?)
}

fn taken(path: &Path, file: &mut File) -> LockError {
    let mut text = String::new();
    let owner = file
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| serde_json::from_str::<Owner>(&text).ok())
        .map_or_else(
            || "which has not said who it is".to_owned(),
            |o| format!("pid {}, mounted at {}", o.pid, o.mount.display()),
        );
    LockError::Taken { store: path.parent().unwrap_or(path).to_owned(), owner }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let owner = Owner { pid: 812, mount: "/home/u/aq".into() };
        let held = StoreLock::take(&path, &owner).unwrap();
        let error = StoreLock::take(&path, &owner).unwrap_err().to_string();
        assert!(error.contains("pid 812, mounted at /home/u/aq"), "{error}");
        drop(held);
        StoreLock::take(&path, &owner).unwrap();
    }
}
