//! Another name for a snapshot of a VM that is off.
//!
//! The open operation `RenameSnapshot` holds the old bytes. It is written before the disk changes,
//! and removed when the disk has the new name; so a crash at any moment leaves the old name or the
//! new one.
//!
//! Not here: what is written to the disk (`disk::snapshot_table`).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::companions;
use crate::disk::qcow2::LockedDisk;
use crate::disk::snapshot_table::SnapshotRename;
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation, SnapshotRenames};
use crate::vm::backend::{BackendError, Result};

/// Gives the snapshot `from` the name `to`, and leaves everything else of it as it is.
///
/// # Errors
/// `NoRoomInTable`; `Io` with `EBUSY` while another program uses the disk, or with what reading and
/// writing answer. The snapshot has its old name then.
pub(super) fn rename(dir: &VmDir, from: &str, to: &str) -> Result<()> {
    let failed = |e: io::Error| BackendError::io(format!("rename the snapshot {from}"), &e);
    let files = Files::open(dir)?;
    undo(dir, &files).map_err(failed)?;
    let renames = files.prepare(from, to)?;
    let operation = Operation::RenameSnapshot(renames.clone());
    operation::begin(dir, operation.clone()).map_err(failed)?;
    let done = files.finish(&renames).and_then(|()| operation::end(dir, &operation));
    if done.is_err() {
        // What cannot be undone now is undone by the recovery.
        undo(dir, &files).ok();
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
    let files = Files::open(dir)?;
    undo(dir, &files).map_err(failed)
}

/// The files that have the snapshots of a VM, locked.
struct Files {
    disk: LockedDisk,
    /// The UEFI variables.
    nvram: Option<LockedDisk>,
    /// The data disks, by their names.
    data: BTreeMap<String, LockedDisk>,
    dir: VmDir,
}

impl Files {
    fn open(dir: &VmDir) -> Result<Self> {
        let (mut nvram, mut data) = (None, BTreeMap::new());
        for path in companions::all(dir) {
            let locked = LockedDisk::open(&path)?;
            match path == dir.nvram() {
                true => nvram = Some(locked),
                false => drop(data.insert(name_of(&path), locked)),
            }
        }
        Ok(Self { disk: LockedDisk::open(&dir.disk())?, nvram, data, dir: dir.clone() })
    }

    fn prepare(&self, from: &str, to: &str) -> Result<SnapshotRenames> {
        let has = |path: PathBuf| companions::has(&path, from);
        let nvram = self.nvram.as_ref().filter(|_| has(self.dir.nvram()));
        let nvram = nvram.map(|nvram| SnapshotRename::prepare(nvram, from, to)).transpose()?;
        let mut data = BTreeMap::new();
        for (name, disk) in &self.data {
            if has(self.dir.data_disks().join(name)) {
                data.insert(name.clone(), SnapshotRename::prepare(disk, from, to)?);
            }
        }
        Ok(SnapshotRenames { disk: SnapshotRename::prepare(&self.disk, from, to)?, nvram, data })
    }

    fn finish(&self, renames: &SnapshotRenames) -> io::Result<()> {
        renames.disk.finish(&self.disk)?;
        self.companions(renames).try_for_each(|(rename, disk)| rename.finish(disk))
    }

    fn undo(&self, renames: &SnapshotRenames) -> io::Result<()> {
        renames.disk.undo(&self.disk)?;
        self.companions(renames).try_for_each(|(rename, disk)| rename.undo(disk))
    }

    /// Pairs what is renamed beside the disk with its file.
    fn companions<'a>(
        &'a self,
        renames: &'a SnapshotRenames,
    ) -> impl Iterator<Item = (&'a SnapshotRename, &'a LockedDisk)> {
        let data = renames.data.iter().filter_map(|(name, rename)| {
            // One that was erased has no old name to get back.
            Some((rename, self.data.get(name)?))
        });
        renames.nvram.as_ref().zip(self.nvram.as_ref()).into_iter().chain(data)
    }
}

fn name_of(path: &std::path::Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn undo(dir: &VmDir, files: &Files) -> io::Result<()> {
    let Some(renames) = interrupted(dir)? else { return Ok(()) };
    files.undo(&renames)?;
    operation::end(dir, &Operation::RenameSnapshot(renames))
}

fn interrupted(dir: &VmDir) -> io::Result<Option<SnapshotRenames>> {
    Ok(operation::list(dir)?.into_iter().find_map(|operation| match operation {
        Operation::RenameSnapshot(renames) => Some(renames),
        Operation::Personalize
        | Operation::Fork
        | Operation::PausedByDaemon
        | Operation::ChangeDisk
        | Operation::RestoreSnapshot { .. } => None,
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
        operation::begin(&dir, Operation::RenameSnapshot(interrupted.clone().into())).unwrap();
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
    fn what_is_beside_the_disk_follows_and_is_put_back_too() {
        let (_keep, dir) = vm_with_snapshot("a");
        qemu_img(&dir.0, &["create", "-q", "-f", "qcow2", "nvram.qcow2", "1M"]);
        qemu_img(&dir.0, &["snapshot", "-c", "a", "nvram.qcow2"]);
        fs::create_dir(dir.data_disks()).unwrap();
        for name in ["disks/1.qcow2", "disks/2.removed.qcow2", "disks/3.qcow2"] {
            qemu_img(&dir.0, &["create", "-q", "-f", "qcow2", name, "1M"]);
        }
        for name in ["disks/1.qcow2", "disks/2.removed.qcow2"] {
            qemu_img(&dir.0, &["snapshot", "-c", "a", name]);
        }
        let data = [dir.data_disk(1), dir.removed_disk(2)];
        let is_in_data = |tag: &str| data.iter().all(|path| companions::has(path, tag));
        let files = Files::open(&dir).unwrap();
        let renames = files.prepare("a", "b").unwrap();
        operation::begin(&dir, Operation::RenameSnapshot(renames.clone())).unwrap();
        files.finish(&renames).unwrap();
        drop(files);
        assert!(companions::has(&dir.nvram(), "b"));
        recover(&dir).unwrap();
        assert!(companions::has(&dir.nvram(), "a") && tags(&dir) == ["a"]);
        assert!(is_in_data("a"));
        rename(&dir, "a", "c").unwrap();
        assert!(is_in_data("c"));
        assert!(companions::has(&dir.nvram(), "c") && tags(&dir) == ["c"]);
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
