//! Freezing a machine as it runs, and going on from what was frozen.
//!
//! While the guest runs, its memory is copied into a second machine, the *capture target*, whose memory is
//! a file. When little is left to copy, the processors stop (under TCG before anything is copied),
//! the disk gets a snapshot, the rest is copied, and the guest goes on. The target never runs: it
//! writes its devices' state beside the memory and ends. A clone maps the memory copy-on-write and
//! loads that state, which takes the same time whatever the memory's size.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::install::Installation;
use super::launch;
use super::machine::Parts;
use super::migrate::{COMPLETED, DEVICES_TIMEOUT, How, MEMORY_TIMEOUT, Migration};
use super::qmp::{Qmp, QmpError};
use super::{migrate, vm_disk};
use crate::disk::sparse;
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::{AccelKind, BackendError, LaunchPlan, Lifetime};
use crate::vm::warm::{Memory, names};

/// The node that takes what the guest writes.
const NODE: &str = "disk";
/// How long a guest may run while its memory is copied. One that changes it faster than it can be
/// copied is then stopped until the end.
const CONVERGENCE: Duration = Duration::from_secs(10);
/// The stage at which all but the last has been copied.
const SWITCHOVER: &str = "pre-switchover";
/// How long QEMU may take to clean up after a migration, and how often it is asked.
const FINALIZATION: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(1);
/// Up to what size a capture target's memory is prepared before it greets: a GiB takes 2 to 3 s.
const PREPARED: u64 = 4 << 30;
/// What is said of it.
const RAM: &str = "the frozen memory";
/// The target's directory in that of the frozen machine, while there is one.
const TARGET: &str = "target";

/// Freezes the machine that was started by `plan` into the directory `to`; returns how long its
/// processors stood still. It goes on whatever happens here.
pub(super) async fn capture(
    source: &Qmp,
    plan: &LaunchPlan,
    qemu: &Installation,
    to: &Path,
    snapshot: &str,
) -> Result<Duration, BackendError> {
    let target_plan = target_plan(plan, to)?;
    let dir = target_plan.dir.clone();
    let target = launch::bring_up(&target_plan, qemu, None).await;
    let target = target.map_err(|error| vm_disk::cause_of(error, to, RAM))?;
    let source = Source { qmp: source, accel: plan.accel.kind, snapshot };
    let pause = copy_memory(&source, &target.parts, to).await;
    target.end().await;
    let ram = to.join(names::RAM);
    let settle = move || {
        fs::remove_dir_all(&dir)?;
        let ram = File::options().read(true).write(true).open(ram)?;
        sparse::punch_holes(&ram)?;
        ram.sync_all()
    };
    let captured = match pause {
        Ok(pause) => off_thread(RAM, settle).await.map(|()| pause),
        Err(error) => Err(error),
    };
    if captured.is_err() {
        source.recover().await;
    }
    captured.map_err(|error| vm_disk::cause_of(error, to, RAM))
}

/// Lets a guest go on that a daemon was freezing, or something else, when it ended.
pub(super) async fn recover(qmp: &Qmp) -> Result<(), BackendError> {
    // Whether there was one, and could be cancelled, shows in whether the processors may run.
    qmp.execute("migrate_cancel", json!({})).await.ok();
    go_on(qmp).await?;
    // One that is being cancelled keeps them until its next use, of which each sets its own.
    migrate::reset(qmp).await.ok();
    Ok(())
}

/// The same hardware, with its memory in a file, and nobody's ports.
fn target_plan(plan: &LaunchPlan, to: &Path) -> Result<LaunchPlan, BackendError> {
    let (dir, ram) = (VmDir(to.join(TARGET)), to.join(names::RAM));
    let from = VmDir(plan.dir.clone());
    let prepare = || {
        file::private_dir(&dir.0)?;
        let ram = File::options().write(true).create_new(true).mode(0o600).open(&ram)?;
        ram.set_len(plan.spec.memory)?;
        let copy = |from: PathBuf, to| match fs::copy(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            done => done,
        };
        copy(from.seed(), dir.seed())?;
        copy(from.cidata(), dir.cidata()).map(drop)
    };
    prepare().map_err(|e| BackendError::io(RAM, &e))?;
    let room = rustix::fs::statvfs(to).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let prepared = is_prepared(plan.accel.kind, plan.spec.memory, room);
    let mut target = plan.clone();
    target.spec.ports.clear();
    target.spec.ephemeral = false;
    Ok(LaunchPlan {
        dir: dir.0,
        memory: Memory::CaptureTarget { ram, prepared },
        lifetime: Lifetime::Ours,
        paused: true,
        ..target
    })
}

/// Decides whether all pages of a capture target's memory are made beforehand. A guest under TCG stands still
/// while its memory is copied, and to make a page of a file just then takes many times as long as to copy it.
fn is_prepared(accel: AccelKind, memory: u64, room: u64) -> bool {
    accel == AccelKind::Tcg && memory <= PREPARED && memory <= room
}

async fn copy_memory(
    source: &Source<'_>,
    target: &Parts,
    to: &Path,
) -> Result<Duration, BackendError> {
    let (near, far) = UnixStream::pair().map_err(|e| BackendError::io("a socket", &e))?;
    let mut incoming = Migration::new(&target.qmp, How::Whole).await?;
    incoming.receive(&OwnedFd::from(far)).await?;
    let pause = source.copy(near.into()).await?;
    incoming.must_reach(COMPLETED, MEMORY_TIMEOUT).await?;
    let path = to.join(names::STATE);
    let state = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    let state = state.map_err(|e| BackendError::io("the frozen state", &e))?;
    let synced = state.try_clone().map_err(|e| BackendError::io("the frozen state", &e))?;
    let mut saving = Migration::new(&target.qmp, How::Shared).await?;
    saving.send(&state.into()).await?;
    saving.must_reach(COMPLETED, DEVICES_TIMEOUT).await?;
    saving.end().await?;
    off_thread("the frozen state", move || synced.sync_all()).await?;
    Ok(pause)
}

/// The machine that is frozen.
struct Source<'a> {
    qmp: &'a Qmp,
    accel: AccelKind,
    /// The name of the snapshot that its disk gets.
    snapshot: &'a str,
}

impl Source<'_> {
    /// Copies a guest that runs, and its disk at the instant at which the copy is whole.
    async fn copy(&self, to: OwnedFd) -> Result<Duration, BackendError> {
        let mut outgoing = Migration::new(self.qmp, How::Live).await?;
        let stopped = match self.accel {
            AccelKind::Kvm => None,
            // Rarely, and on a busy host, the translator misses that a page was written after it
            // was copied (a processor between notdirty_write's look at the bitmap and its
            // tlb_set_dirty), and all clones of such a copy crash. So nothing runs while it copies.
            AccelKind::Tcg => Some(self.stop().await?),
        };
        outgoing.send(&to).await?;
        drop(to);
        let still = match stopped {
            None => self.converge(&mut outgoing).await?,
            Some(since) => {
                outgoing.must_reach(SWITCHOVER, MEMORY_TIMEOUT).await?;
                since
            }
        };
        let snapshot = json!({"device": NODE, "name": self.snapshot});
        self.qmp.execute("blockdev-snapshot-internal-sync", snapshot).await?;
        outgoing.go_on().await?;
        outgoing.must_reach(COMPLETED, MEMORY_TIMEOUT).await?;
        go_on(self.qmp).await?;
        let pause = still.elapsed();
        outgoing.end().await?;
        Ok(pause)
    }

    /// Waits until little is left to copy; returns since when the processors stand still.
    async fn converge(&self, outgoing: &mut Migration<'_>) -> Result<Instant, BackendError> {
        let converged = outgoing.reaches(SWITCHOVER, CONVERGENCE).await?;
        let still = Instant::now();
        if !converged {
            self.stop().await?;
            outgoing.must_reach(SWITCHOVER, MEMORY_TIMEOUT).await?;
        }
        Ok(still)
    }

    async fn stop(&self) -> Result<Instant, BackendError> {
        let since = Instant::now();
        self.qmp.execute("stop", json!({})).await?;
        Ok(since)
    }

    /// Lets the guest go on as if nothing had been asked; what fails here shows in its status.
    async fn recover(&self) {
        recover(self.qmp).await.ok();
        let snapshot = json!({"device": NODE, "name": self.snapshot});
        self.qmp.execute("blockdev-snapshot-delete-internal-sync", snapshot).await.ok();
    }
}

/// Lets the processors run again. QEMU says that all is handed over a moment before it is done with
/// that, and tells nobody when it is.
async fn go_on(qmp: &Qmp) -> Result<(), QmpError> {
    let deadline = Instant::now() + FINALIZATION;
    loop {
        match qmp.execute("cont", json!({})).await {
            Err(QmpError::Refused { text, .. })
                if text.contains("not finalized") && Instant::now() < deadline =>
            {
                sleep(RETRY).await;
            }
            done => return done.map(drop),
        }
    }
}

/// Has a machine that has never run take in a frozen state.
pub(super) async fn load_template(qmp: &Qmp, state: &Path) -> Result<(), BackendError> {
    let opened = File::open(state).map_err(|e| BackendError::io("the frozen state", &e))?;
    let mut incoming = Migration::new(qmp, How::Shared).await?;
    incoming.receive(&opened.into()).await?;
    incoming.must_reach(COMPLETED, DEVICES_TIMEOUT).await?;
    Ok(incoming.end().await?)
}

async fn off_thread(
    what: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), BackendError> {
    crate::vm::driver::off_thread(work, what).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_prepared_for_a_guest_that_waits_where_there_is_time_and_room() {
        let table = [
            (AccelKind::Tcg, 256 << 20, 1 << 30, true),
            (AccelKind::Tcg, 256 << 20, 200 << 20, false),
            (AccelKind::Tcg, 64 << 30, 1 << 40, false),
            (AccelKind::Kvm, 256 << 20, 1 << 30, false),
        ];
        for (accel, memory, room, expected) in table {
            assert_eq!(is_prepared(accel, memory, room), expected, "{accel:?} {memory} {room}");
        }
    }
}
