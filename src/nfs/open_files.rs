//! The files of a share that are open for reading and writing, so that not every request opens its file.

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, chmodat};
use rustix::io::Errno;

use super::beneath::{link, reopen};
use super::export::{FileId, Place};
use super::facts::Identity;
use super::status::Status;

/// Files of a share that stay open.
const MOST: usize = 32;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum For {
    Reading,
    Writing,
}

#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<Vec<OpenFile>>);

#[derive(Debug)]
struct OpenFile {
    id: FileId,
    what: For,
    file: Arc<File>,
}

impl OpenFiles {
    /// Returns a file that is open already.
    pub(super) fn get(&self, id: FileId, what: For) -> Option<Arc<File>> {
        let mut open = self.0.lock();
        let place = open.iter().position(|file| file.id == id && file.what >= what)?;
        // The last one is the one that was used last.
        let found = open.remove(place);
        let file = Arc::clone(&found.file);
        open.push(found);
        Some(file)
    }

    /// Keeps an open file. The one that was used the longest ago is closed instead.
    pub(super) fn keep(&self, id: FileId, what: For, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let mut open = self.0.lock();
        open.retain(|old| old.id != id);
        if open.len() >= MOST {
            open.remove(0);
        }
        open.push(OpenFile { id, what, file: Arc::clone(&file) });
        file
    }

    pub(super) fn close(&self, id: FileId) {
        self.0.lock().retain(|file| file.id != id);
    }

    pub(super) fn close_all(&self) {
        self.0.lock().clear();
    }
}

/// Opens a regular file.
pub(super) fn open(place: &Place, what: For, who: &Identity) -> Result<File, Status> {
    if place.facts.is_directory() {
        return Err(Status::IsDirectory);
    }
    if place.facts.kind != rustix::fs::FileType::RegularFile {
        return Err(Status::Invalid);
    }
    let flags = match what {
        For::Reading => OFlags::RDONLY,
        For::Writing => OFlags::RDWR,
    };
    match reopen(&place.fd, flags) {
        // A program may write on in a file that it has made read-only, and the guest asks for each write anew.
        Err(Errno::ACCESS) if place.facts.is_own(who) => Ok(open_own(place, flags)?),
        opened => Ok(opened?),
    }
}

/// Opens a file of the user's that its mode forbids to open.
fn open_own(place: &Place, flags: OFlags) -> Result<File, Errno> {
    let (path, mode) = (link(&place.fd), Mode::from_raw_mode(place.facts.mode));
    chmodat(CWD, &path, mode | Mode::RUSR | Mode::WUSR, rustix::fs::AtFlags::empty())?;
    let opened = reopen(&place.fd, flags);
    chmodat(CWD, &path, mode, rustix::fs::AtFlags::empty())?;
    opened
}
