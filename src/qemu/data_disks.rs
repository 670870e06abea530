//! The files of a VM's data disks.
//!
//! Not here: their snapshots (`companions`), which disks there are (`vm::disks`).

use std::fs::{self, File};
use std::path::PathBuf;

use crate::disk::qcow2::{self, Header};
use crate::disk::{DiskFormat, img, snapshot_table};
use crate::store::file::{self, sync_dir};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, DataDisk, DataFile, Result, SnapshotInfo};
use crate::vm::driver::off_thread;

/// Returns the file of a disk, also of one that was removed.
fn path(dir: &VmDir, number: u32) -> PathBuf {
    let (present, removed) = (dir.data_disk(number), dir.removed_disk(number));
    if removed.exists() { removed } else { present }
}

/// Makes the file of a disk, which becomes visible whole and on disk.
pub(super) async fn make(dir: &VmDir, number: u32, bytes: u64) -> Result<()> {
    let (disks, to) = (dir.data_disks(), dir.data_disk(number));
    let partial = disks.join(format!(".{number}.qcow2"));
    let (at, stale) = (disks.clone(), partial.clone());
    let prepare = move || {
        file::private_dir(&at)?;
        file::remove(&stale)
    };
    off_thread(prepare, "the directory of the disks").await?;
    img::create(&partial, bytes).await?;
    let publish = move || {
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, to)?;
        sync_dir(&disks)
    };
    off_thread(publish, "the disk").await
}

/// Makes a disk that no machine has at least as large.
pub(super) async fn grow(dir: &VmDir, number: u32, bytes: u64) -> Result<()> {
    if size(dir, number)?.is_some_and(|present| present < bytes) {
        img::resize(&path(dir, number), bytes).await?;
    }
    Ok(())
}

/// Reads the size that a guest sees; `None` without the file.
pub(super) fn size(dir: &VmDir, number: u32) -> Result<Option<u64>> {
    let path = path(dir, number);
    qcow2::virtual_size(&path).map_err(BackendError::at(path.display()))
}

/// Lists the snapshots in a disk. QEMU may run.
pub(super) fn snapshots(dir: &VmDir, number: u32) -> Vec<SnapshotInfo> {
    snapshot_table::list(&path(dir, number)).unwrap_or_default()
}

/// Erases the file of a disk.
pub(super) async fn erase(dir: &VmDir, number: u32) -> Result<()> {
    let files = [dir.data_disk(number), dir.removed_disk(number)];
    off_thread(move || files.iter().try_for_each(|path| file::remove(path)), "the disk").await
}

/// Refuses a source that would have QEMU open another file.
pub(super) fn check_source(disk: &DataDisk) -> Result<()> {
    let DataFile::Source { path, format: DiskFormat::Qcow2, .. } = &disk.file else {
        return Ok(());
    };
    let what = || format!("source: {}", path.display());
    let header = Header::of(path).map_err(|error| BackendError::io(what(), &error))?;
    match header.has_data_file() || header.has_backing_file || header.is_encrypted {
        false => Ok(()),
        true => {
            let fact = "it needs another file or a key by now; `qemu-img convert` makes one that stands alone";
            Err(BackendError::fact(what(), fact, libc::EINVAL))
        }
    }
}
