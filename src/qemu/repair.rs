//! Frees leaked clusters: a program that is killed while it changes a disk leaves clusters that
//! count as used and are not. The guest's data stay intact, as QEMU orders its writes.
//!
//! As long as a program changes the disk, the operation `ChangeDisk` is open. A start that finds it
//! open looks for leaked clusters first, which takes some milliseconds for each gigabyte in the
//! disk.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::companions;
use crate::disk::qcow2::{LockedDisk, is_in_use};
use crate::disk::{DiskError, img, vmstate};
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::{BackendError, Result};

/// How often a disk is polled that another program uses.
const LOOK: Duration = Duration::from_millis(10);

/// Writes down that the disk is being changed; says whether the change before was cut short. On a full
/// disk that may fail, and the change is made all the same: dropping a snapshot makes room.
///
/// # Errors
/// Only if it cannot be known what was cut short.
fn begin(dir: &VmDir) -> Result<bool> {
    match operation::begin(dir, Operation::ChangeDisk) {
        Ok(earlier) => Ok(earlier.is_some()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(BackendError::io("the disk may be half changed", &error))
        }
        Err(error) => {
            tracing::warn!(dir = %dir.0.display(), %error, "a change of the disk is not noted");
            Ok(false)
        }
    }
}

/// Writes down that the disk has been changed, and is whole.
fn end(dir: &VmDir) {
    if let Err(error) = operation::end(dir, &Operation::ChangeDisk) {
        // The next change looks for leaked clusters in vain, no more.
        tracing::warn!(dir = %dir.0.display(), %error, "a change of the disk stays noted");
    }
}

/// Carries out a change of a disk that no machine uses.
pub(super) async fn marked(
    dir: &VmDir,
    change: impl Future<Output = Result<(), DiskError>>,
) -> Result<()> {
    begin_whole(dir).await?;
    change.await?;
    end(dir);
    Ok(())
}

/// Writes down that the disk is being changed, and frees the clusters that were leaked before: by a
/// program that was killed, or by a snapshot for whose memory there was no room.
pub(super) async fn begin_whole(dir: &VmDir) -> Result<()> {
    let was_cut_short = begin(dir)?;
    if !dir.disk().exists() {
        return Ok(());
    }
    if was_cut_short {
        let_finish(&dir.disk()).await;
    }
    if let Err(error) = make_all_whole(dir, was_cut_short).await {
        // Leaks cost space only. QEMU itself refuses a disk with worse damage.
        tracing::warn!(dir = %dir.0.display(), %error, "clusters may be leaked");
    }
    Ok(companions::recover(dir).await?)
}

async fn make_all_whole(dir: &VmDir, was_cut_short: bool) -> Result<(), DiskError> {
    make_whole(&dir.disk(), was_cut_short).await?;
    if was_cut_short { companions::repair(dir).await } else { Ok(()) }
}

/// Writes down that a machine which has ended well changes the disk no more, and repairs what it may have
/// leaked: QEMU leaks the memory of a snapshot that it has loaded when it loads one of a smaller disk.
pub(super) async fn end_whole(dir: &VmDir, may_leak: bool) {
    let whole = match dir.disk().exists() {
        true => make_whole(&dir.disk(), may_leak).await,
        false => Ok(()),
    };
    match whole {
        Ok(()) => end(dir),
        // The next start repairs it.
        Err(error) => tracing::warn!(dir = %dir.0.display(), %error, "clusters may be leaked"),
    }
}

async fn make_whole(disk: &Path, may_leak: bool) -> Result<(), DiskError> {
    match drop_unowned_vmstate(disk)? || may_leak {
        true => img::repair_leaks(disk).await,
        false => Ok(()),
    }
}

/// Waits for a `qemu-img` that has outlived the daemon that started it: it is about to end, and its
/// change is complete then. It holds the lock of the disk for as long as it runs.
async fn let_finish(disk: &Path) {
    let deadline = Instant::now() + img::TIMEOUT;
    while is_in_use(disk) && Instant::now() < deadline {
        sleep(LOOK).await;
    }
}

/// Drops the references to a memory that belongs to no snapshot. Returns whether there were any.
fn drop_unowned_vmstate(disk: &Path) -> Result<bool, DiskError> {
    let locked = LockedDisk::open(disk)?;
    let what = || format!("the disk {}", disk.display());
    vmstate::drop_unowned(&locked).map_err(|error| DiskError::Io { what: what(), error })
}
