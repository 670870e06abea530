//! Where files are beneath a share: what was found out by names, so that a handle leads to its file.
//!
//! It only saves time: what is forgotten is found again by its handle (`search`).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::export::FileId;
use super::handle::Trail;

/// Files that are remembered, about 100 bytes each. The older half is forgotten when there are more.
const MOST: usize = 1 << 16;
/// Files that are remembered as gone.
const MOST_GONE: usize = 1 << 10;
/// For how long a search that has found nothing is not repeated.
const GONE_FOR: Duration = Duration::from_secs(2);
/// Directories above a file, at the most: the kernel has no longer paths.
const DEEPEST: usize = 2048;

#[derive(Debug, Default)]
pub(super) struct Index {
    files: HashMap<FileId, Known>,
    gone: HashMap<FileId, Instant>,
    /// Counts what is used, to tell the older from the newer.
    clock: u64,
}

#[derive(Debug)]
struct Known {
    parent: FileId,
    name: OsString,
    /// As it is in the handle that the guest has: it stays when the file moves.
    trail: Trail,
    used: u64,
}

impl Index {
    /// Notes under which name a file was found; returns the trail of its handle.
    pub(super) fn learn(
        &mut self,
        file: FileId,
        parent: FileId,
        name: &OsStr,
        trail: Trail,
    ) -> Trail {
        self.clock += 1;
        let used = self.clock;
        self.gone.remove(&file);
        if let Some(known) = self.files.get_mut(&file) {
            (known.parent, known.used) = (parent, used);
            if known.name != name {
                known.name = name.to_owned();
            }
            return known.trail;
        }
        self.forget_old();
        self.files.insert(file, Known { parent, name: name.to_owned(), trail, used });
        trail
    }

    /// Returns the path of a file beneath the share, as far as it is known.
    pub(super) fn path(&mut self, file: FileId) -> Option<PathBuf> {
        self.clock += 1;
        let (mut at, mut names) = (file, Vec::new());
        while at != FileId::ROOT {
            let known = self.files.get_mut(&at)?;
            known.used = self.clock;
            names.push(known.name.clone());
            if names.len() > DEEPEST {
                return None;
            }
            at = known.parent;
        }
        Some(names.iter().rev().collect())
    }

    pub(super) fn parent(&self, file: FileId) -> Option<FileId> {
        self.files.get(&file).map(|known| known.parent)
    }

    pub(super) fn trail(&self, file: FileId) -> Option<Trail> {
        self.files.get(&file).map(|known| known.trail)
    }

    /// The file is nowhere: it was removed, or looked for in vain.
    pub(super) fn is_gone(&mut self, file: FileId) {
        self.files.remove(&file);
        if self.gone.len() >= MOST_GONE {
            self.gone.clear();
        }
        self.gone.insert(file, Instant::now());
    }

    /// Says whether a search for it would be in vain.
    pub(super) fn is_known_gone(&self, file: FileId) -> bool {
        self.gone.get(&file).is_some_and(|since| since.elapsed() < GONE_FOR)
    }

    fn forget_old(&mut self) {
        if self.files.len() < MOST {
            return;
        }
        let mut used: Vec<u64> = self.files.values().map(|known| known.used).collect();
        let (_, middle, _) = used.select_nth_unstable(MOST / 2);
        let middle = *middle;
        self.files.retain(|_, known| known.used > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> FileId {
        FileId { device: 0, inode, birth: 0 }
    }

    fn learn(index: &mut Index, inode: u64, parent: FileId, name: &str) -> Trail {
        let trail = Trail::default().below(inode);
        index.learn(file(inode), parent, OsStr::new(name), trail)
    }

    #[test]
    fn a_file_is_where_it_was_seen_last_and_keeps_its_trail() {
        let mut index = Index::default();
        learn(&mut index, 1, FileId::ROOT, "a");
        let trail = learn(&mut index, 2, file(1), "b");
        assert_eq!(index.path(file(2)), Some("a/b".into()));
        learn(&mut index, 1, FileId::ROOT, "c");
        let other = Trail::default();
        assert_eq!(index.learn(file(2), file(1), OsStr::new("d"), other), trail);
        assert_eq!(index.path(file(2)), Some("c/d".into()));
        index.is_gone(file(1));
        assert_eq!(index.path(file(2)), None, "its directory is not known");
        assert!(index.is_known_gone(file(1)) && !index.is_known_gone(file(2)));
    }

    #[test]
    fn a_circle_is_no_path() {
        let mut index = Index::default();
        learn(&mut index, 1, file(2), "a");
        learn(&mut index, 2, file(1), "b");
        assert_eq!(index.path(file(2)), None);
    }

    #[test]
    fn it_does_not_grow_for_ever_and_keeps_what_is_used() {
        let mut index = Index::default();
        learn(&mut index, 1, FileId::ROOT, "used");
        for inode in 2..3 * MOST as u64 {
            learn(&mut index, inode, FileId::ROOT, "x");
            index.path(file(1));
        }
        assert!(index.files.len() <= MOST);
        assert!(index.path(file(1)).is_some());
    }
}
