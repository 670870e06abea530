//! The files beside a VM's disk that have the same snapshots: the UEFI variables, and its data disks
//! (`doc/adr/0043-data-disks.md`).
//!
//! The disk's table says which snapshots there are. One that another file alone has is what a crash has
//! left of a snapshot that was being taken or dropped, or was dropped by another program; it goes before the
//! disk is next changed. One that a file does not have was taken before there was that file, and leaves
//! it as it is when it is restored.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{DiskError, img, snapshot_table};
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};

/// Lists the files of a VM.
pub(super) fn all(dir: &VmDir) -> Vec<PathBuf> {
    let nvram = Some(dir.nvram()).filter(|path| path.exists());
    let entries = fs::read_dir(dir.data_disks()).into_iter().flatten().flatten();
    let mut disks: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| number(path).is_some()).collect();
    disks.sort_unstable();
    nvram.into_iter().chain(disks).collect()
}

/// Lists those that the VM has now: what was removed has snapshots of the past, and gets no new ones.
fn present(dir: &VmDir) -> Vec<PathBuf> {
    let is_removed = |path: &PathBuf| number(path).is_some_and(|n| *path == dir.removed_disk(n));
    all(dir).into_iter().filter(|path| !is_removed(path)).collect()
}

/// Returns the number of a data disk; `None` of another file, and of one that is being made.
fn number(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".qcow2")?.trim_end_matches(".removed").parse().ok()
}

/// Says whether a file has a snapshot of this name. QEMU may run.
pub(super) fn has(file: &Path, tag: &str) -> bool {
    tags(file).iter().any(|known| known == tag)
}

fn tags(file: &Path) -> Vec<String> {
    // Without the file there are none; a damaged one shows itself when it is used.
    let known = snapshot_table::list(file).unwrap_or_default();
    known.into_iter().map(|snapshot| snapshot.tag).collect()
}

/// Drops a snapshot in these files, where they have it: no QEMU has them open.
pub(super) async fn drop_in(files: &[PathBuf], tag: &str) -> Result<(), DiskError> {
    for file in files.iter().filter(|file| has(file, tag)) {
        img::drop_snapshot(file, tag).await?;
    }
    Ok(())
}

/// Takes a snapshot of a VM that is off: of the disk last, as one that others alone have is dropped again.
pub(super) async fn take(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    for file in present(dir) {
        img::take_snapshot(&file, tag).await?;
    }
    img::take_snapshot(&dir.disk(), tag).await
}

/// Drops a snapshot of a VM that is off.
pub(super) async fn drop_snapshot(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    img::drop_snapshot(&dir.disk(), tag).await?;
    drop_in(&all(dir), tag).await
}

/// Brings a VM that is off back to a snapshot. What a crash interrupts is completed before the disk is used.
pub(super) async fn restore(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    if !present(dir).iter().any(|file| has(file, tag)) {
        return img::restore_snapshot(&dir.disk(), tag).await;
    }
    let io = |error| DiskError::Io { what: format!("restore the snapshot {tag}"), error };
    let operation = Operation::RestoreSnapshot { tag: tag.to_owned() };
    operation::begin(dir, operation.clone()).map_err(io)?;
    let disk = img::restore_snapshot(&dir.disk(), tag).await;
    if disk.is_ok() {
        // What fails here is completed before the disk is used again.
        restore_present(dir, tag).await?;
    }
    operation::end(dir, &operation).map_err(io)?;
    disk
}

async fn restore_present(dir: &VmDir, tag: &str) -> Result<(), DiskError> {
    for file in present(dir).iter().filter(|file| has(file, tag)) {
        img::restore_snapshot(file, tag).await?;
    }
    Ok(())
}

/// Makes all files agree: completes a restore that was cut short, and drops the snapshots that the disk does
/// not have.
pub(super) async fn recover(dir: &VmDir) -> Result<(), DiskError> {
    let files = all(dir);
    if files.is_empty() {
        return Ok(());
    }
    let failed = |error| DiskError::Io { what: "the snapshots".to_owned(), error };
    let in_disk = known(dir).map_err(failed)?;
    if let Some(tag) = interrupted(dir).map_err(failed)? {
        if in_disk.contains(&tag) {
            img::restore_snapshot(&dir.disk(), &tag).await?;
            restore_present(dir, &tag).await?;
        }
        operation::end(dir, &Operation::RestoreSnapshot { tag }).map_err(failed)?;
    }
    for file in &files {
        for tag in tags(file).iter().filter(|tag| !in_disk.contains(tag)) {
            img::drop_snapshot(file, tag).await?;
        }
    }
    Ok(())
}

fn known(dir: &VmDir) -> io::Result<Vec<String>> {
    Ok(snapshot_table::list(&dir.disk())?.into_iter().map(|snapshot| snapshot.tag).collect())
}

fn interrupted(dir: &VmDir) -> io::Result<Option<String>> {
    Ok(operation::list(dir)?.into_iter().find_map(|operation| match operation {
        Operation::RestoreSnapshot { tag } => Some(tag),
        Operation::Personalize
        | Operation::Fork
        | Operation::PausedByDaemon
        | Operation::ChangeDisk
        | Operation::RenameSnapshot(_) => None,
    }))
}

/// Frees what a program that was killed has leaked of these files.
pub(super) async fn repair(dir: &VmDir) -> Result<(), DiskError> {
    for file in all(dir) {
        img::repair_leaks(&file).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::qcow2;
    use crate::disk::testing::qemu_img;
    use crate::store::layout::names;

    fn vm() -> (tempfile::TempDir, VmDir) {
        let keep = tempfile::tempdir().unwrap();
        let dir = VmDir(keep.path().to_owned());
        for name in [names::DISK, names::NVRAM] {
            qemu_img(&dir.0, &["create", "-q", "-f", "qcow2", name, "1M"]);
        }
        (keep, dir)
    }

    fn lists(dir: &VmDir) -> (Vec<String>, Vec<String>) {
        (known(dir).unwrap(), tags(&dir.nvram()))
    }

    #[tokio::test]
    async fn both_files_have_the_same_snapshots() {
        let (_keep, dir) = vm();
        take(&dir, "a").await.unwrap();
        take(&dir, "b").await.unwrap();
        drop_snapshot(&dir, "a").await.unwrap();
        restore(&dir, "b").await.unwrap();
        assert_eq!(lists(&dir), (vec!["b".to_owned()], vec!["b".to_owned()]));
        assert!(operation::list(&dir).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_only_the_variables_have_goes_and_what_only_the_disk_has_stays() {
        let (_keep, dir) = vm();
        img::take_snapshot(&dir.nvram(), "half").await.unwrap();
        img::take_snapshot(&dir.disk(), "early").await.unwrap();
        recover(&dir).await.unwrap();
        assert_eq!(lists(&dir), (vec!["early".to_owned()], vec![]));
        restore(&dir, "early").await.unwrap();
        drop_snapshot(&dir, "early").await.unwrap();
    }

    #[tokio::test]
    async fn a_restore_that_was_cut_short_is_completed() {
        let (_keep, dir) = vm();
        take(&dir, "a").await.unwrap();
        // The size tells whether the variables are as they were.
        img::resize(&dir.nvram(), 2 << 20).await.unwrap();
        let operation = Operation::RestoreSnapshot { tag: "a".to_owned() };
        operation::begin(&dir, operation).unwrap();
        recover(&dir).await.unwrap();
        assert_eq!(qcow2::virtual_size(&dir.nvram()).unwrap(), Some(1 << 20));
        assert!(operation::list(&dir).unwrap().is_empty());
    }

    #[tokio::test]
    async fn data_disks_follow_and_what_was_removed_gets_no_new_ones() {
        let (_keep, dir) = vm();
        std::fs::create_dir(dir.data_disks()).unwrap();
        let (one, two) = (dir.data_disk(1), dir.data_disk(2));
        img::create(&one, 1 << 20).await.unwrap();
        img::create(&two, 1 << 20).await.unwrap();
        img::create(&dir.data_disks().join(".3.qcow2"), 1 << 20).await.unwrap();
        take(&dir, "a").await.unwrap();
        let gone = dir.removed_disk(2);
        std::fs::rename(&two, &gone).unwrap();
        take(&dir, "b").await.unwrap();
        assert_eq!((tags(&one), tags(&gone)), (vec!["a".into(), "b".into()], vec!["a".into()]));
        img::resize(&one, 2 << 20).await.unwrap();
        img::resize(&gone, 2 << 20).await.unwrap();
        restore(&dir, "a").await.unwrap();
        let size = |path| qcow2::virtual_size(path).unwrap().unwrap() >> 20;
        assert_eq!((size(&one), size(&gone)), (1, 2));
        drop_snapshot(&dir, "a").await.unwrap();
        assert_eq!((tags(&one), tags(&gone)), (vec!["b".into()], vec![]));
    }
}
