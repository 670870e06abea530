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
    is_local: bool,
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

    /// Returns a file that is open for reading, if it is on a disk of the host: others answer when they like.
    pub(super) fn get_local(&self, id: FileId) -> Option<Arc<File>> {
        let is_local = self.0.lock().iter().any(|file| file.id == id && file.is_local);
        is_local.then(|| self.get(id, For::Reading))?
    }

    /// Keeps an open file. The one that was used the longest ago is closed instead.
    pub(super) fn keep(&self, id: FileId, what: For, file: File) -> Arc<File> {
        let is_local = is_local(&file);
        let file = Arc::new(file);
        let mut open = self.0.lock();
        let mut closed: Vec<_> = open.extract_if(.., |old| old.id == id).collect();
        if open.len() >= MOST {
            closed.push(open.remove(0));
        }
        open.push(OpenFile { id, what, file: Arc::clone(&file), is_local });
        drop(open);
        // A close may wait for another machine, and nobody shall wait for the lock.
        drop(closed);
        file
    }

    pub(super) fn close(&self, id: FileId) {
        let closed: Vec<_> = self.0.lock().extract_if(.., |file| file.id == id).collect();
        drop(closed);
    }

    pub(super) fn close_all(&self) {
        let closed = std::mem::take(&mut *self.0.lock());
        drop(closed);
    }
}

/// File systems that have what they have said in memory, and do not ask anybody: ext4, XFS, btrfs, F2FS, tmpfs.
const LOCAL: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

fn is_local(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| LOCAL.contains(&stat.f_type))
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
