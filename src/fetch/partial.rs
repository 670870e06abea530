//! A file that is not all there yet: its bytes, and by what its beginning is recognised on the
//! server. Both are found again by a daemon that comes after a crash.
//!
//! One download at a time writes to it: the daemon has the store for itself.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::FetchError;
use crate::store::file;

/// What nobody has continued for so long is removed.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// By what a server's file is recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validator {
    pub(super) url: String,
    pub(super) etag: Option<String>,
    pub(super) modified: Option<String>,
    pub(super) total: Option<u64>,
}

impl Validator {
    /// Returns what `If-Range` says; `None` for a server whose file may be another one unnoticed.
    pub(super) fn if_range(&self) -> Option<&str> {
        // A weak one may be that of other bytes.
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }
}

/// The file, whose download is this one's alone.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) path: PathBuf,
    _alone: OwnedMutexGuard<()>,
}

type Locks = Mutex<HashMap<PathBuf, Arc<AsyncMutex<()>>>>;

impl Partial {
    /// Waits until no other download writes to it.
    pub(super) async fn open(dir: &Path, url: &str) -> Result<Self, FetchError> {
        static LOCKS: LazyLock<Locks> = LazyLock::new(Locks::default);
        let parent = dir.parent().unwrap_or(dir);
        for dir in [parent, dir] {
            file::private_dir(dir).map_err(FetchError::io(dir))?;
        }
        let digits = format!("{:x}", Sha256::digest(url));
        let path = dir.join(format!("{}.part", &digits[..16]));
        let lock = Arc::clone(LOCKS.lock().entry(path.clone()).or_default());
        let alone = lock.lock_owned().await;
        remove_stale(dir, &path);
        Ok(Self { path, _alone: alone })
    }

    fn validator_path(&self) -> PathBuf {
        self.path.with_extension("json")
    }

    /// Returns how much is there, and of which file; nothing of what cannot be recognised.
    pub(super) fn known(&self, url: &str) -> (u64, Validator) {
        let known: Option<Validator> = file::read_json(&self.validator_path()).ok();
        let length = fs::metadata(&self.path).map_or(0, |m| m.len());
        match known.filter(|v| v.url == url && v.if_range().is_some()) {
            Some(validator) => (length, validator),
            None => (0, Validator { url: url.to_owned(), ..Validator::default() }),
        }
    }

    /// Begins again, with a file that is recognised by `validator`.
    pub(super) fn restart(&self, validator: &Validator) -> Result<File, FetchError> {
        // The old bytes go first: they must not be taken for those of the new file.
        let opened = File::create(&self.path).map_err(FetchError::io(&self.path))?;
        let path = self.validator_path();
        file::replace_json(&path, validator).map_err(FetchError::io(&path))?;
        Ok(opened)
    }

    /// Opens it to be continued at its end.
    pub(super) fn append(&self) -> Result<File, FetchError> {
        let file = OpenOptions::new().append(true).create(true).open(&self.path);
        file.map_err(FetchError::io(&self.path))
    }

    /// Removes it.
    pub(super) fn discard(&self) {
        for path in [self.validator_path(), self.path.clone()] {
            if let Err(error) = file::remove(&path) {
                tracing::warn!(path = %path.display(), %error, "a part of a download stays");
            }
        }
    }

    /// Gives the whole file its place.
    pub(super) fn move_to(self, to: &Path) -> Result<(), FetchError> {
        fs::rename(&self.path, to).map_err(FetchError::io(to))?;
        self.discard();
        Ok(())
    }
}

fn remove_stale(dir: &Path, own: &Path) {
    let is_stale = |path: &Path| {
        let age = fs::metadata(path).and_then(|m| m.modified()).ok();
        let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
        age.is_some_and(|age| age > STALE)
    };
    let files = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let part_of = |path: &Path| path.with_extension("part");
    // The directory may hold whole files too, which are their owner's.
    let is_part = |path: &Path| path.extension().is_some_and(|e| e == "part" || e == "json");
    for path in files.filter(|path| is_part(path) && part_of(path) != own && is_stale(path)) {
        drop(fs::remove_file(path));
    }
}
