//! Reading directories: a piece at a time, from the place that the guest names.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::beneath;
use super::export::{FileId, Place};

/// Bytes that the kernel gives at a time.
const PIECE: usize = 16 << 10;
/// Directories of a share that stay open between two requests of the guest.
const MOST_OPEN: usize = 16;

/// A name in a directory.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) name: OsString,
    pub(super) inode: u64,
    pub(super) kind: FileType,
    /// Where the listing goes on after it.
    pub(super) next: u64,
}

/// A directory that is being listed.
#[derive(Debug)]
pub(super) struct Listing {
    dir: FileId,
    file: File,
    /// What the kernel has given and the guest has not got yet.
    read: VecDeque<Name>,
    /// Where `read` begins.
    at: u64,
    is_over: bool,
}

impl Listing {
    /// Opens a directory, to list it from a place on.
    fn open(dir: &Place, at: u64) -> Result<Self, Errno> {
        let file = beneath::reopen(&dir.fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if at > 0 {
            seek(&file, SeekFrom::Start(at))?;
        }
        Ok(Self { dir: dir.handle.file, file, read: VecDeque::new(), at, is_over: false })
    }

    /// Returns the next name, which stays the next one until it is [taken](Self::take).
    pub(super) fn peek(&mut self) -> Result<Option<&Name>, Errno> {
        if self.read.is_empty() && !self.is_over {
            piece(self.file.as_fd(), &mut self.read)?;
            self.is_over = self.read.is_empty();
        }
        Ok(self.read.front())
    }

    pub(super) fn take(&mut self) {
        if let Some(name) = self.read.pop_front() {
            self.at = name.next;
        }
    }
}

/// The directories of a share that are being listed: where a listing goes on, the same open directory is read
/// on, as some file systems count names and would leave some out after others were removed.
#[derive(Debug, Default)]
pub(super) struct Listings(Mutex<VecDeque<Listing>>);

impl Listings {
    /// Begins a listing, or continues one.
    pub(super) fn from(&self, dir: &Place, at: u64) -> Result<Listing, Errno> {
        let mut open = self.0.lock();
        let place = open.iter().position(|l| at > 0 && l.dir == dir.handle.file && l.at == at);
        match place.and_then(|place| open.remove(place)) {
            Some(listing) => Ok(listing),
            None => {
                drop(open);
                Listing::open(dir, at)
            }
        }
    }

    /// Keeps one that may be continued.
    pub(super) fn keep(&self, listing: Listing) {
        let mut open = self.0.lock();
        open.push_back(listing);
        if open.len() > MOST_OPEN {
            open.pop_front();
        }
    }

    pub(super) fn close(&self) {
        self.0.lock().clear();
    }
}

/// Reads the next piece of a directory; nothing at its end.
fn piece(dir: BorrowedFd<'_>, into: &mut VecDeque<Name>) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); PIECE];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        into.push_back(Name {
            name: OsString::from_vec(entry.file_name().to_bytes().to_vec()),
            inode: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        });
        if entries.is_buffer_empty() {
            break;
        }
    }
    Ok(())
}

/// The names of a directory, a piece after the other.
pub(super) struct Pieces<'f> {
    dir: BorrowedFd<'f>,
    names: VecDeque<Name>,
}

impl<'f> Pieces<'f> {
    pub(super) fn of(dir: &'f File) -> Self {
        Self { dir: dir.as_fd(), names: VecDeque::new() }
    }

    /// Reads the next piece; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<&VecDeque<Name>>, Errno> {
        self.names.clear();
        piece(self.dir, &mut self.names)?;
        Ok((!self.names.is_empty()).then_some(&self.names))
    }
}

/// Lists a directory without `.` and `..`; `None` if there are more names than that, or it cannot be read.
pub(super) fn all(dir: BorrowedFd<'_>, limit: usize) -> Option<Vec<Name>> {
    let mut names = VecDeque::new();
    loop {
        let before = names.len();
        piece(dir, &mut names).ok()?;
        if names.len() == before {
            break;
        }
        if names.len() > limit {
            return None;
        }
    }
    Some(names.into_iter().filter(|name| name.name != "." && name.name != "..").collect())
}
