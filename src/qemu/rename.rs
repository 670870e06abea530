//! Another name for a snapshot of a VM that is off.
//!
//! The open operation `RenameSnapshot` holds the old bytes. It is written before the disk changes,
//! and removed when the disk has the new name; so a crash at any moment leaves the old name or the
//! new one.
//!
//! Not here: what is written to the disk (`disk::snapshot_table`).

use std::io;

use crate::disk::qcow2::LockedDisk;
use crate::disk::snapshot_table::SnapshotRename;
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::{BackendError, Result};

/// Gives the snapshot `from` the name `to`, and leaves everything else of it as it is.
///
/// # Errors
/// `NoRoomInTable`; `Io` with `EBUSY` while another program uses the disk, or with what reading and
/// writing answer. The snapshot has its old name then.
pub(super) fn rename(dir: &VmDir, from: &str, to: &str) -> Result<()> {
    let failed = |e: io::Error| BackendError::io(format!("rename the snapshot {from}"), &e);
    let disk = LockedDisk::open(&dir.disk())?;
    undo(dir, &disk).map_err(failed)?;
    let rename = SnapshotRename::prepare(&disk, from, to)?;
    let operation = Operation::RenameSnapshot(rename.clone());
    operation::begin(dir, operation.clone()).map_err(failed)?;
    let done = rename.finish(&disk).and_then(|()| operation::end(dir, &operation));
    if done.is_err() {
        // What cannot be undone now is undone by the recovery.
        undo(dir, &disk).ok();
    }
    done.map_err(failed)
}

/// Undoes what a crash has interrupted: the snapshot has its old name again.
///
/// # Errors
/// As [`rename`]; the operation stays open.
pub(super) fn recover(dir: &VmDir) -> Result<()> {
    let failed = |e: io::Error| BackendError::io("a snapshot's half written name", &e);
    if interrupted(dir).map_err(failed)?.is_none() {
        return Ok(());
    }
    let disk = LockedDisk::open(&dir.disk())?;
    undo(dir, &disk).map_err(failed)
}

fn undo(dir: &VmDir, disk: &LockedDisk) -> io::Result<()> {
    let Some(rename) = interrupted(dir)? else { return Ok(()) };
    rename.undo(disk)?;
    operation::end(dir, &Operation::RenameSnapshot(rename))
}

fn interrupted(dir: &VmDir) -> io::Result<Option<SnapshotRename>> {
    Ok(operation::list(dir)?.into_iter().find_map(|operation| match operation {
        Operation::RenameSnapshot(rename) => Some(rename),
        Operation::Personalize | Operation::PausedByDaemon | Operation::ChangeDisk => None,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::snapshot_table;
    use crate::disk::testing::qemu_img;

    fn vm_with_snapshot(tag: &str) -> (tempfile::TempDir, VmDir) {
        let keep = tempfile::tempdir().unwrap();
        let dir = VmDir(keep.path().to_owned());
        qemu_img(&dir.0, &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
        qemu_img(&dir.0, &["snapshot", "-c", tag, "disk.qcow2"]);
        (keep, dir)
    }

    fn tags(dir: &VmDir) -> Vec<String> {
        let list = snapshot_table::list(&dir.disk()).unwrap();
        list.into_iter().map(|s| s.tag).collect()
    }

    #[test]
    fn what_a_crash_interrupts_is_undone_and_a_rename_leaves_no_operation() {
        let (_keep, dir) = vm_with_snapshot("a");
        let disk = LockedDisk::open(&dir.disk()).unwrap();
        let interrupted = SnapshotRename::prepare(&disk, "a", "b").unwrap();
        operation::begin(&dir, Operation::RenameSnapshot(interrupted.clone())).unwrap();
        interrupted.finish(&disk).unwrap();
        drop(disk);
        assert_eq!(tags(&dir), ["b"]);
        recover(&dir).unwrap();
        assert_eq!(tags(&dir), ["a"]);
        rename(&dir, "a", "c").unwrap();
        assert_eq!(tags(&dir), ["c"]);
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    }

    #[test]
    fn a_disk_in_use_is_left_alone() {
        let (_keep, dir) = vm_with_snapshot("a");
        let _qemu = LockedDisk::open(&dir.disk()).unwrap();
        let error = rename(&dir, "a", "b").unwrap_err();
        assert!(matches!(error, BackendError::Io { errno: libc::EBUSY, .. }), "{error}");
        assert_eq!(tags(&dir), ["a"]);
    }
}
