//! Finding a file again by its handle alone: after a new start of the daemon, when somebody has moved it on the
//! host, or when it was forgotten.
//!
//! First along the handle's trail, which is a listing of each directory on the way; then everywhere, within a
//! bound.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, OFlags};

use super::beneath;
use super::export::{FileId, Root};
use super::facts::Facts;
use super::handle::{Handle, Trail};
use super::listing;

/// Names that are looked at for one handle.
const MOST_NAMES: usize = 50_000;
/// Directories above a file that are gone through.
const DEEPEST: usize = 256;

/// Where a file was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// The directories above it, from the root on.
    pub(super) above: Vec<FileId>,
}

/// Looks for the file of a handle beneath a root.
pub(super) fn find(root: &Root, handle: &Handle) -> Option<Found> {
    [Way::Trail(handle.trail), Way::Anywhere].into_iter().find_map(|way| {
        let mut search = Search {
            device: root.device,
            file: handle.file,
            way,
            left: MOST_NAMES,
            at: Vec::new(),
        };
        search.look(root.fd.as_fd()).then(|| search.found())
    })
}

/// Which directories are looked into.
enum Way {
    /// Those with the marks of a trail; where the trail ends before the file, all.
    Trail(Trail),
    Anywhere,
}

struct Search {
    device: u64,
    file: FileId,
    way: Way,
    /// Names that may still be looked at.
    left: usize,
    /// The names on the way, and the directories that they are.
    at: Vec<(OsString, FileId)>,
}

impl Search {
    /// Looks in a directory and below it; leaves the way to the file in `at`.
    fn look(&mut self, dir: BorrowedFd<'_>) -> bool {
        let Some(names) = self.names(dir) else { return false };
        let here = names.iter().filter(|name| name.inode == self.file.inode);
        let mut here = here.filter_map(|name| Some((name, self.id(dir, name)?)));
        if let Some((name, id)) = here.find(|(_, id)| *id == self.file) {
            self.at.push((name.name.clone(), id));
            return true;
        }
        drop(here);
        names.iter().any(|name| self.is_on_the_way(name) && self.enter(dir, name))
    }

    /// Lists a directory, as far as that is still allowed.
    fn names(&mut self, dir: BorrowedFd<'_>) -> Option<Vec<listing::Name>> {
        let opened = beneath::reopen(dir, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        let names = listing::all(opened.as_fd(), self.left)?;
        self.left = self.left.saturating_sub(names.len());
        Some(names)
    }

    fn id(&self, dir: BorrowedFd<'_>, name: &listing::Name) -> Option<FileId> {
        let fd = beneath::child(dir, &name.name).ok()?;
        Some(Facts::of(fd).ok()?.id(self.device))
    }

    fn is_on_the_way(&self, name: &listing::Name) -> bool {
        let is_directory = matches!(name.kind, FileType::Directory | FileType::Unknown);
        let depth = self.at.len();
        is_directory
            && match &self.way {
                Way::Anywhere => depth < DEEPEST,
                Way::Trail(trail) if depth >= usize::from(trail.depth) => false,
                Way::Trail(trail) => {
                    trail.at(depth).is_none_or(|mark| mark == Trail::mark(name.inode))
                }
            }
    }

    fn enter(&mut self, dir: BorrowedFd<'_>, name: &listing::Name) -> bool {
        let Ok(fd) = beneath::child(dir, &name.name) else { return false };
        let Ok(facts) = Facts::of(&fd) else { return false };
        if !facts.is_directory() {
            return false;
        }
        self.at.push((name.name.clone(), facts.id(self.device)));
        let found = self.look(fd.as_fd());
        if !found {
            self.at.pop();
        }
        found
    }

    fn found(mut self) -> Found {
        let path = self.at.iter().map(|(name, _)| name).collect();
        self.at.pop();
        Found { path, above: self.at.into_iter().map(|(_, id)| id).collect() }
    }
}
