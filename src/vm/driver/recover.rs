//! Recovery: what a daemon does about the operations that an earlier one has begun and not ended.
//!
//! | operation        | what a crash leaves                              | what the next daemon does                      |
//! |------------------|--------------------------------------------------|------------------------------------------------|
//! | `Personalize`    | a clone with the identity of its template        | ends the machine, discards the disk            |
//! | `Fork`           | a fork without the memory that it was made with  | ends the machine, discards the disk; the registry removes the VM |
//! | `PausedByDaemon` | a paused guest that no user has paused           | drops what `suspend` saved, resumes, sets the clock |
//! | `ChangeDisk`     | clusters that are allocated and not used         | gives them back before the disk changes again  |
//! | `RenameSnapshot` | a mixture of two tables of snapshots in the disk | puts the old table back, before anything reads it |
//! | `RestoreSnapshot` | a disk at the snapshot, UEFI variables and data disks that may not be | restores all before the disk changes again |
//! | (none: the disk has the snapshot `.frozen`) | a disk whose copy for an image was cut short | drops that snapshot  |
//!
//! Not here: what is written down, and how (`store::operation`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::capture::CAPTURE_TAG;
use super::{paused_by_daemon, suspended, warm_start};
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::Backends;
use crate::vm::backend::{Adoption, BackendError, Machine, SnapshotOp};

/// Puts back what was half written in the disk; nothing else may read its snapshots before. What fails is
/// tried again before the disk is used.
pub(super) fn disk(backends: &Backends, dir: &VmDir) {
    if let Err(error) = backends.hypervisor.recover_disk(&dir.0) {
        tracing::warn!(dir = %dir.0.display(), %error, "the next start tries again");
    }
}

/// Ends or undoes what was begun with the machine that was found. Of a process that may be the VM's, and
/// cannot be adopted, nothing is touched.
pub(super) async fn machine(
    backends: &Backends,
    dir: &VmDir,
    mut adoption: Adoption,
) -> Result<Adoption, BackendError> {
    if matches!(adoption, Adoption::Unclear(_)) {
        return Ok(adoption);
    }
    for operation in operation::list(dir).map_err(|e| BackendError::io("operation.json", &e))? {
        adoption = match operation {
            Operation::Personalize => personalize(backends, dir, adoption).await?,
            Operation::Fork => fork(backends, dir, adoption).await?,
            Operation::PausedByDaemon => resume(backends, dir, adoption).await?,
            // The disk's: `Hypervisor` recovers them, the first one when the disk is next changed.
            Operation::ChangeDisk
            | Operation::RenameSnapshot(_)
            | Operation::RestoreSnapshot { .. } => adoption,
        };
    }
    drop_capture(backends, dir, &adoption).await;
    Ok(adoption)
}

async fn personalize(
    backends: &Backends,
    dir: &VmDir,
    adoption: Adoption,
) -> Result<Adoption, BackendError> {
    if let Adoption::Running(launched) = adoption {
        warm_start::end(launched).await;
    }
    warm_start::call_off(backends, dir).await?;
    Ok(Adoption::Ended("the daemon ended while it started; start it again".to_owned()))
}

/// The operation stays open: it tells that there is nothing to start.
async fn fork(
    backends: &Backends,
    dir: &VmDir,
    adoption: Adoption,
) -> Result<Adoption, BackendError> {
    if let Adoption::Running(launched) = adoption {
        warm_start::end(launched).await;
    }
    backends.hypervisor.discard_disk(&dir.0).await?;
    Ok(Adoption::Ended(warm_start::lost_fork().to_string()))
}

async fn resume(
    backends: &Backends,
    dir: &VmDir,
    mut adoption: Adoption,
) -> Result<Adoption, BackendError> {
    if let Adoption::Running(launched) = &mut adoption {
        let saved = suspended::saved(&*backends.hypervisor, dir);
        suspended::forget(&*launched.machine, saved).await?;
        launched.machine.recover().await?;
        launched.paused = false;
        launched.clock_is_behind = true;
    }
    paused_by_daemon::end(dir);
    Ok(adoption)
}

/// Most disks have no such snapshot, and whether one has is read in its table.
async fn drop_capture(backends: &Backends, dir: &VmDir, adoption: &Adoption) {
    if !backends.hypervisor.snapshots(&dir.0).iter().any(|s| s.tag == CAPTURE_TAG) {
        return;
    }
    let running = if let Adoption::Running(launched) = adoption { Some(launched) } else { None };
    let machine = running.map(|launched| Arc::clone(&launched.machine));
    release_capture(backends, machine, &dir.0).await;
}

/// How often it is tried on a full disk, and how long that waits: what was made of a capture and is being erased may
/// be what fills it.
const ROOM_TRIES: usize = 5;
const ROOM_RETRY: Duration = Duration::from_secs(1);

async fn drop_in(machine: &dyn Machine, op: &SnapshotOp) -> Result<(), BackendError> {
    for _ in 1..ROOM_TRIES {
        match machine.snapshot(op).await {
            Err(BackendError::NoSpace { .. }) => sleep(ROOM_RETRY).await,
            done => return done,
        }
    }
    machine.snapshot(op).await
}

/// Drops the snapshot that holds a captured disk; where that fails, the next daemon does.
pub(super) async fn release_capture(
    backends: &Backends,
    machine: Option<Arc<dyn Machine>>,
    dir: &Path,
) {
    let op = SnapshotOp::Drop(CAPTURE_TAG.to_owned());
    let in_machine = match machine {
        Some(machine) => Some(drop_in(&*machine, &op).await),
        None => None,
    };
    let dropped = match in_machine {
        // On a full disk no other program has more room, and this one has the file.
        Some(done @ (Ok(()) | Err(BackendError::NoSpace { .. }))) => done,
        Some(Err(_)) | None => backends.hypervisor.snapshot(dir.to_owned(), &op).await,
    };
    if let Err(error) = dropped {
        tracing::warn!(dir = %dir.display(), %error, "the snapshot of a captured disk stays");
    }
}
