//! What a program leaves in a disk when it is killed while it changes it: never a wrong byte, as
//! QEMU orders what it writes, but clusters that are counted and that nobody uses.
//!
//! A mark in the VM's directory says that somebody changes the disk. A start that finds one looks
//! for lost clusters first, which takes some milliseconds for each gigabyte in the disk.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::disk::qcow2::{LockedDisk, is_in_use};
use crate::disk::{DiskError, img, vmstate};
use crate::store::layout::VmDir;
use crate::vm::backend::BackendError;

/// How often a disk is looked at that somebody else uses.
const LOOK: Duration = Duration::from_millis(10);

/// Says that the disk is being changed from now on. On a full disk it may have to remain unsaid:
/// dropping a snapshot makes room.
fn begin(dir: &VmDir) -> Mark {
    match File::options().write(true).create_new(true).open(dir.disk_mark()) {
        Ok(_) => Mark::Ours,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Mark::AnEarlierOne,
        Err(error) => {
            tracing::warn!(dir = %dir.0.display(), %error, "the disk has no mark");
            Mark::Ours
        }
    }
}

/// Whose a mark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Ours,
    /// Of somebody who was killed.
    AnEarlierOne,
}

/// Says that the disk has been changed, and is whole.
pub(super) fn end(dir: &VmDir) {
    match fs::remove_file(dir.disk_mark()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // The next start looks in vain, no more.
            tracing::warn!(dir = %dir.0.display(), %error, "the disk's mark stays");
        }
        _ => {}
    }
}

/// Carries out a change of a disk that no machine uses.
pub(super) async fn marked(
    dir: &VmDir,
    change: impl Future<Output = Result<(), DiskError>>,
) -> Result<(), BackendError> {
    begin_whole(dir).await;
    change.await?;
    end(dir);
    Ok(())
}

/// Says that the disk is being changed from now on, after what was lost in it is given back: by a
/// user who was killed, or by a snapshot for whose memory there was no room.
pub(super) async fn begin_whole(dir: &VmDir) {
    let mark = begin(dir);
    if !dir.disk().exists() {
        return;
    }
    if mark == Mark::AnEarlierOne {
        let_finish(&dir.disk()).await;
    }
    let repaired = match drop_unowned_vmstate(&dir.disk()) {
        Ok(false) if mark == Mark::Ours => Ok(()),
        Ok(_) => img::repair_leaks(&dir.disk()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = repaired {
        // It costs space only; and a disk that is worse off, QEMU refuses itself.
        tracing::warn!(dir = %dir.0.display(), %error, "clusters may be lost");
    }
}

/// Waits for a `qemu-img` that has outlived the daemon that started it: it is about to end, and
/// what it does is whole then. One that hangs is told by the lock that it holds.
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
