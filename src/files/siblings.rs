//! Names that are looked up one after the other in one directory: the directory is listed once, and
//! the listing answers the next lookups.
//!
//! `git status` and `make` look at every file of a tree by its name, each of which would be a round
//! trip. A listing answers for [`TTL`] from when it was asked for, and only if nothing was changed
//! through the mount since: a write that is under way may or may not be in it.
//!
//! Not here: what the kernel remembers of names (`fuse::files`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use super::nodes::FileId;
use crate::vm::VmId;
use crate::vm::backend::{DirectoryEntry, FileAnswer, FileAttr};

/// How long names and attributes of a guest may be remembered, here and by the kernel together.
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// Directories with more names are not listed for a lookup.
pub(super) const MOST_NAMES: usize = 4000;
/// Lookups within [`TTL`] after which a directory is listed.
const IN_TURN: u32 = 3;
/// How long a directory that could not be listed, or is too large, is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(60);
/// Directories that are remembered before those that are too old are dropped.
const MANY: usize = 64;

/// The names of a directory, once they are there; `None`: it could not be listed.
pub(super) type Names = Shared<BoxFuture<'static, Option<Arc<HashMap<Vec<u8>, FileAttr>>>>>;

/// What a directory's listing is good for.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) names: Names,
    pub(super) since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Siblings(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Counts what was changed through the mount.
    changes: HashMap<VmId, u64>,
    directories: HashMap<FileId, Directory>,
}

#[derive(Debug)]
struct Directory {
    changes: u64,
    since: Instant,
    lookups: u32,
    listed: Option<Listed>,
    left_alone_until: Option<Instant>,
}

/// A change that is under way: what is listed meanwhile answers nothing.
pub(super) struct Changing<'a> {
    siblings: &'a Siblings,
    vm: VmId,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.siblings.count(self.vm);
    }
}

impl Siblings {
    /// Something of a VM is changed until this is dropped.
    pub(super) fn changing(&self, vm: VmId) -> Changing<'_> {
        self.count(vm);
        Changing { siblings: self, vm }
    }

    /// Something of a VM has changed: what was listed before answers nothing.
    pub(super) fn count(&self, vm: VmId) {
        *self.0.lock().changes.entry(vm).or_default() += 1;
    }

    /// Counts a lookup, and returns a listing that answers it. `list` asks for one.
    pub(super) fn of(
        &self,
        vm: VmId,
        directory: FileId,
        list: impl FnOnce() -> FileAnswer<Vec<DirectoryEntry>>,
    ) -> Option<Listed> {
        let mut table = self.0.lock();
        let changes = table.changes.get(&vm).copied().unwrap_or_default();
        table.directory(directory, changes).look_up(list)
    }

    /// A directory could not be listed.
    pub(super) fn leave_alone(&self, directory: FileId) {
        if let Some(directory) = self.0.lock().directories.get_mut(&directory) {
            directory.left_alone_until = Some(Instant::now() + LEFT_ALONE);
            directory.listed = None;
        }
    }
}

impl Table {
    fn directory(&mut self, id: FileId, changes: u64) -> &mut Directory {
        if self.directories.len() > MANY {
            self.directories.retain(|_, directory| directory.is_of_use());
        }
        let directory = self.directories.entry(id).or_insert_with(|| Directory::new(changes));
        if directory.changes != changes || directory.since.elapsed() > TTL {
            let left_alone_until = directory.left_alone_until;
            *directory = Directory { left_alone_until, ..Directory::new(changes) };
        }
        directory
    }
}

impl Directory {
    fn new(changes: u64) -> Self {
        let since = Instant::now();
        Self { changes, since, lookups: 0, listed: None, left_alone_until: None }
    }

    fn is_of_use(&self) -> bool {
        self.since.elapsed() <= TTL || self.left_alone_until.is_some_and(|at| at > Instant::now())
    }

    fn look_up(
        &mut self,
        list: impl FnOnce() -> FileAnswer<Vec<DirectoryEntry>>,
    ) -> Option<Listed> {
        self.lookups += 1;
        let is_left_alone = self.left_alone_until.is_some_and(|at| at > Instant::now());
        if self.listed.is_none() && self.lookups >= IN_TURN && !is_left_alone {
            // It counts from here: the listing is as old as its request.
            self.since = Instant::now();
            self.listed = Some(Listed { names: by_name(list()), since: self.since });
        }
        self.listed.clone()
    }
}

fn by_name(list: FileAnswer<Vec<DirectoryEntry>>) -> Names {
    let pair = |entry: DirectoryEntry| (entry.name, entry.attr);
    let names = list.map(move |listed| {
        let names = listed.ok()?.into_iter().map(pair);
        Some(Arc::new(names.collect()))
    });
    names.boxed().shared()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::backend::FileError;

    const VM: VmId = VmId(1);
    const DIR: FileId = FileId(7);

    fn list() -> FileAnswer<Vec<DirectoryEntry>> {
        let entry = DirectoryEntry { name: b"a".to_vec(), attr: FileAttr::default() };
        std::future::ready(Ok(vec![entry])).boxed()
    }

    fn too_many() -> FileAnswer<Vec<DirectoryEntry>> {
        std::future::ready(Err(FileError::TooMany(1))).boxed()
    }

    fn names(listed: &Listed) -> Vec<Vec<u8>> {
        let names = listed.names.clone().now_or_never().flatten().expect("a listing that is there");
        names.keys().cloned().collect()
    }

    #[test]
    fn the_third_lookup_in_a_directory_lists_it_and_the_next_ones_use_that() {
        let siblings = Siblings::default();
        assert!((1..IN_TURN).all(|_| siblings.of(VM, DIR, || panic!("asked too early")).is_none()));
        let listed = siblings.of(VM, DIR, list).expect("a listing");
        assert_eq!(names(&listed), [b"a"]);
        let again = siblings.of(VM, DIR, || panic!("asked twice")).expect("the same");
        assert_eq!(again.since, listed.since);
        assert!(siblings.of(VM, FileId(8), || panic!("another directory")).is_none());
    }

    #[test]
    fn a_change_voids_what_was_listed_before_its_end() {
        let siblings = Siblings::default();
        let find = || (0..IN_TURN).find_map(|_| siblings.of(VM, DIR, list));
        assert!(find().is_some());
        let changing = siblings.changing(VM);
        assert!(siblings.of(VM, DIR, list).is_none(), "listed before it");
        assert!(find().is_some());
        drop(changing);
        assert!(siblings.of(VM, DIR, list).is_none(), "listed during it");
        assert!(find().is_some());
        drop(siblings.changing(VmId(2)));
        assert!(siblings.of(VM, DIR, list).is_some(), "another VM's");
    }

    #[test]
    fn a_directory_that_cannot_be_listed_is_left_alone() {
        let siblings = Siblings::default();
        let listed = (0..IN_TURN).find_map(|_| siblings.of(VM, DIR, too_many)).expect("an attempt");
        assert!(listed.names.now_or_never().flatten().is_none());
        siblings.leave_alone(DIR);
        drop(siblings.changing(VM));
        let asked = || panic!("it is left alone");
        assert!((0..9).all(|_| siblings.of(VM, DIR, asked).is_none()));
    }
}
