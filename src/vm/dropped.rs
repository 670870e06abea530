//! Snapshots that users have dropped while the VM was off, and that are still in its disk.
//!
//! They are marked in a file beside the disk and hidden. They are really dropped before the next
//! change of the disk, or after a minute without one. If the process that marked them removes the VM
//! before that, its marks are lifted: undoing the removal brings the snapshots back.
//!
//! Not here: when that happens (`driver::dropped`), and dropping itself (`backend::Hypervisor`).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::backend::SnapshotInfo;
use super::caller::ProcessId;
use crate::store::file;
use crate::store::layout::VmDir;

const VERSION: u32 = 1;

/// The process that removes something; `None` for one in another pid namespace.
pub type Remover = Option<ProcessId>;

/// The mark of one snapshot. No two snapshots of a disk have the same number and time, and both
/// stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    id: String,
    created: SystemTime,
    pub(crate) tag: String,
    by: Remover,
}

impl Mark {
    fn new(snapshot: &SnapshotInfo, by: Remover) -> Self {
        let SnapshotInfo { id, created, tag, .. } = snapshot.clone();
        Self { id, created, tag, by }
    }

    pub(crate) fn is_of(&self, snapshot: &SnapshotInfo) -> bool {
        (&self.id, self.created) == (&snapshot.id, snapshot.created)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    marks: Vec<Mark>,
}

#[derive(Debug)]
pub(crate) struct DroppedSnapshots {
    path: PathBuf,
    marks: Mutex<Marks>,
    /// Held while marked snapshots are dropped, and while marks are lifted.
    disk: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Marks {
    all: Vec<Mark>,
    /// Counts the changes: a timer acts only if nothing has changed since it was set.
    changes: u64,
    /// The VM is being removed: nothing is dropped any more.
    removing: bool,
}

impl DroppedSnapshots {
    /// Reads the marks in a VM's directory. A damaged file marks nothing: the snapshots are listed.
    pub(crate) fn open(dir: &VmDir) -> Self {
        let path = dir.dropped_snapshots();
        let all = match file::read_json::<Stored>(&path) {
            Ok(stored) if stored.version == VERSION => stored.marks,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "dropped snapshots are listed again");
                Vec::new()
            }
        };
        let marks = Mutex::new(Marks { all, ..Marks::default() });
        Self { path, marks, disk: Arc::default() }
    }

    pub(crate) fn hides(&self, snapshot: &SnapshotInfo) -> bool {
        self.marks.lock().all.iter().any(|mark| mark.is_of(snapshot))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.lock().all.is_empty()
    }

    pub(crate) fn list(&self) -> Vec<Mark> {
        self.marks.lock().all.clone()
    }

    pub(crate) fn changes(&self) -> u64 {
        self.marks.lock().changes
    }

    /// Returns the lock of whoever drops marked snapshots or lifts marks.
    pub(crate) fn disk(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.disk)
    }

    pub(crate) fn is_removing(&self) -> bool {
        self.marks.lock().removing
    }

    /// Marks a snapshot. The mark is on disk when this returns.
    ///
    /// # Errors
    /// What the disk answered; the snapshot is not marked then.
    pub(crate) fn mark(&self, snapshot: &SnapshotInfo, by: Remover) -> io::Result<()> {
        let mut all = self.list();
        all.push(Mark::new(snapshot, by));
        self.save(&all)?;
        self.put(all);
        Ok(())
    }

    /// Forgets marks. If the disk does not take that, the next daemon finds marks of snapshots that
    /// are gone, which mean nothing, or drops later what was lifted now.
    pub(crate) fn forget(&self, marks: &[Mark]) {
        let mut all = self.list();
        all.retain(|mark| !marks.contains(mark));
        if let Err(error) = self.save(&all) {
            tracing::warn!(path = %self.path.display(), %error, "marks of snapshots stay");
        }
        self.put(all);
    }

    /// Begins the removal of the VM: lifts the marks of whoever removes it. Returns all marks as
    /// they were, for [`Self::cancel_removal`].
    ///
    /// # Errors
    /// What the disk answered; nothing has changed then.
    pub(crate) fn begin_removal(&self, by: Remover) -> io::Result<Vec<Mark>> {
        let before = self.list();
        let left: Vec<Mark> = before.iter().filter(|mark| mark.by != by).cloned().collect();
        if left.len() < before.len() {
            // On a full disk there may be no room for a shorter list. Without one, more is listed.
            self.save(&left).or_else(|_| self.save(&[]))?;
        }
        self.put(left);
        self.marks.lock().removing = true;
        Ok(before)
    }

    /// The VM is not removed after all: the marks are as they were.
    pub(crate) fn cancel_removal(&self, before: Vec<Mark>) {
        if before != self.list() {
            if let Err(error) = self.save(&before) {
                tracing::warn!(path = %self.path.display(), %error, "marks of snapshots are lost");
            }
            self.put(before);
        }
        self.marks.lock().removing = false;
    }

    fn put(&self, all: Vec<Mark>) {
        let mut marks = self.marks.lock();
        marks.all = all;
        marks.changes += 1;
    }

    fn save(&self, marks: &[Mark]) -> io::Result<()> {
        if !marks.is_empty() {
            let stored = Stored { version: VERSION, marks: marks.to_vec() };
            return file::replace_json(&self.path, &stored);
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => file::sync_dir(self.path.parent().unwrap_or(&self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn snapshot(tag: &str, id: u32) -> SnapshotInfo {
        let created = UNIX_EPOCH + Duration::from_secs(u64::from(id));
        SnapshotInfo { tag: tag.into(), id: id.to_string(), created, memory: 0, disk_size: 1 }
    }

    fn process(pid: u32) -> Remover {
        Some(ProcessId { pid, start: 1 })
    }

    #[test]
    fn marks_outlive_the_daemon_and_are_lifted_for_their_process_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = VmDir(root.path().to_owned());
        let (a, b) = (snapshot("a", 1), snapshot("b", 2));
        let marks = DroppedSnapshots::open(&dir);
        marks.mark(&a, process(1)).unwrap();
        marks.mark(&b, process(2)).unwrap();
        let again = DroppedSnapshots::open(&dir);
        assert!(again.hides(&a) && again.hides(&b));
        let before = again.begin_removal(process(1)).unwrap();
        assert!(!again.hides(&a) && again.hides(&b) && again.is_removing());
        assert!(!DroppedSnapshots::open(&dir).hides(&a));
        again.cancel_removal(before);
        assert!(DroppedSnapshots::open(&dir).hides(&a) && !again.is_removing());
        again.forget(&again.list());
        assert!(!dir.dropped_snapshots().exists());
    }

    #[test]
    fn a_damaged_file_hides_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = VmDir(root.path().to_owned());
        std::fs::write(dir.dropped_snapshots(), "{\"version\": 1, ").unwrap();
        assert!(DroppedSnapshots::open(&dir).is_empty());
    }
}
