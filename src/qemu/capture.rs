//! Captures a running machine as a template, and loads a template into a clone.
//!
//! While the guest runs, its memory is migrated into a second QEMU, the *capture target*, whose
//! memory is a file. When little is left to copy, the vCPUs stop (under TCG before anything is
//! copied), the disk gets a snapshot, the rest is copied, and the guest resumes. The target never
//! runs: it saves its device state beside the memory and ends. A clone maps the memory
//! copy-on-write and loads the device state, which takes the same time whatever the memory's size.

mod destination;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::destination::Destination;
use super::cmdline::data_disks::node_name;
use super::cmdline::{DISK_NODE, NVRAM_NODE};
use super::install::Installation;
use super::launch;
use super::machine::MachineParts;
use super::migrate::{COMPLETED, DEVICES_TIMEOUT, MEMORY_TIMEOUT, Migration, Transfer};
use super::qmp::Qmp;
use super::{data_disks, host_memory, migrate, vm_disk};
use crate::disk::sparse;
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::{AccelKind, BackendError, LaunchPlan, Lifetime, Result};
use crate::vm::driver::off_thread;
use crate::vm::template::{Memory, Purpose, Saved, SavedDisk, SavedMachine, names};

/// How long a guest may run while its memory is copied. One that changes it faster than it can be
/// copied is then stopped until the end.
const CONVERGENCE: Duration = Duration::from_secs(10);
/// The migration status at which the vCPUs are stopped and the last pages are not copied yet.
const SWITCHOVER: &str = "pre-switchover";
/// How long QEMU may take to clean up after a migration, and how often it is asked.
const FINALIZATION: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(1);
/// The largest memory of a capture target that is preallocated: a GiB takes 2 to 3 s.
const MAX_PREALLOCATED: u64 = 4 << 30;
/// The words for the two files in errors.
const RAM: &str = "the template's memory";
const STATE: &str = "the template's device state";
/// The file that shares the disk's blocks.
const REFLINK: &str = "reflink.qcow2";
/// The target's directory in that of the template, while the target runs.
const TARGET: &str = "target";

/// What is captured, and where to.
#[derive(Clone, Copy, Debug)]
pub(super) struct CaptureRequest<'a> {
    /// What the machine would be started by now.
    pub(super) plan: &'a LaunchPlan,
    pub(super) purpose: Purpose,
    /// An empty directory.
    pub(super) to: &'a Path,
    /// The name of the snapshot that its disk gets, and its UEFI variables.
    pub(super) snapshot: &'a str,
}

/// Captures a machine; it runs again whatever happens here. `guest` makes its guest ready for that, while
/// the target starts.
pub(super) async fn capture(
    source: &Qmp,
    asked: CaptureRequest<'_>,
    qemu: &Installation,
    guest: BoxFuture<'_, Result<()>>,
) -> Result<SavedMachine> {
    let CaptureRequest { plan, purpose, to, .. } = asked;
    let room = Destination::new(purpose, to, plan.spec.memory);
    let room = room.map_err(BackendError::at(RAM))?;
    let target_plan = target_plan(plan, to, &room)?;
    let dir = target_plan.dir.clone();
    for disk in &plan.disks {
        let (number, at) = (disk.place.number, VmDir(plan.dir.clone()));
        let size = data_disks::size(&at, number)?.unwrap_or_default();
        data_disks::make(&VmDir(dir.clone()), number, size).await?;
    }
    let begun = Instant::now();
    let target = launch::bring_up(&target_plan, qemu, room.inherited(), None);
    let (target, ready) = tokio::join!(target, guest);
    ready?;
    let target = target.map_err(|error| vm_disk::cause_of(error, to, RAM))?;
    let source = CaptureSource { qmp: source, asked };
    tracing::debug!(elapsed = ?begun.elapsed(), "capture: target");
    let copied = copy_memory(&source, &target.parts, &room).await;
    tracing::debug!(elapsed = ?begun.elapsed(), "capture: copied");
    let end = async move {
        target.end().await;
        off_thread(move || fs::remove_dir_all(&dir), RAM).await
    };
    let captured = match copied {
        Ok(copied) => room.settle(end).await.map(|saved| copied.with(saved)),
        Err(error) => {
            // Of the two, this one says more.
            end.await.ok();
            Err(error)
        }
    };
    if captured.is_err() {
        source.recover().await;
    }
    captured.map_err(|error| vm_disk::cause_of(error, to, RAM))
}

/// Resumes a guest that an earlier daemon had paused, to capture it or for something else, when
/// that daemon ended.
pub(super) async fn recover(qmp: &Qmp) -> Result<()> {
    // Whether there was one, and could be cancelled, shows in whether the processors may run.
    qmp.execute("migrate_cancel", json!({})).await.ok();
    resume(qmp).await?;
    // Fails while a migration is being cancelled. The next migration sets its own capabilities.
    migrate::reset(qmp).await.ok();
    Ok(())
}

/// The same hardware, with its memory in a file and without forwarded ports.
fn target_plan(plan: &LaunchPlan, to: &Path, room: &Destination) -> Result<LaunchPlan> {
    let (dir, from) = (VmDir(to.join(TARGET)), VmDir(plan.dir.clone()));
    let prepare = || {
        file::private_dir(&dir.0)?;
        file::if_there(fs::copy(from.seed(), dir.seed()))?;
        file::if_there(fs::copy(from.cidata(), dir.cidata()))?;
        // Flash of another size would be another machine.
        file::if_there(fs::copy(from.nvram(), dir.nvram())).map(drop)
    };
    prepare().map_err(BackendError::at(RAM))?;
    let ram = room.ram_file();
    let free = match &ram {
        Some(_) => rustix::fs::statvfs(to).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize)),
        None => host_memory::available(),
    };
    let prepared = is_preallocated(plan.accel.kind, plan.spec.memory, free);
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

/// Says whether the capture target's memory is preallocated. A guest under TCG is paused while its
/// memory is copied, and to allocate a page of a file just then takes many times as long as to copy
/// it.
fn is_preallocated(accel: AccelKind, memory: u64, room: u64) -> bool {
    accel == AccelKind::Tcg && memory <= MAX_PREALLOCATED && memory <= room
}

/// A machine whose memory is copied.
struct Copied {
    pause: Duration,
    disk: SavedDisk,
}

impl Copied {
    fn with(self, saved: Saved) -> SavedMachine {
        SavedMachine { pause: self.pause, saved, disk: self.disk }
    }
}

async fn copy_memory(
    source: &CaptureSource<'_>,
    target: &MachineParts,
    room: &Destination,
) -> Result<Copied> {
    let (near, far) = UnixStream::pair().map_err(BackendError::at("a socket"))?;
    let mut incoming = Migration::new(&target.qmp, Transfer::Whole).await?;
    incoming.receive(&OwnedFd::from(far)).await?;
    let copied = source.copy(near.into()).await?;
    incoming.wait_for(COMPLETED, MEMORY_TIMEOUT).await?;
    let state = room.state().map_err(BackendError::at(STATE))?;
    let mut saving = Migration::new(&target.qmp, Transfer::DevicesOnly).await?;
    saving.send(&state).await?;
    saving.wait_for(COMPLETED, DEVICES_TIMEOUT).await?;
    saving.end().await?;
    Ok(copied)
}

/// The machine that is captured.
struct CaptureSource<'a> {
    qmp: &'a Qmp,
    asked: CaptureRequest<'a>,
}

impl CaptureSource<'_> {
    /// Copies the memory of the guest, and saves its disk at the same instant. Returns how long the vCPUs
    /// were paused.
    async fn copy(&self, to: OwnedFd) -> Result<Copied> {
        let mut outgoing = Migration::new(self.qmp, Transfer::Live).await?;
        let stopped = match self.asked.plan.accel.kind {
            AccelKind::Kvm => None,
            // Rarely, and on a busy host, the translator misses that a page was written after it
            // was copied (a processor between notdirty_write's look at the bitmap and its
            // tlb_set_dirty), and all clones of such a copy crash. So nothing runs while it copies.
            AccelKind::Tcg => Some(self.stop().await?),
        };
        outgoing.send(&to).await?;
        drop(to);
        let paused_since = match stopped {
            None => self.converge(&mut outgoing).await?,
            Some(since) => {
                outgoing.wait_for(SWITCHOVER, MEMORY_TIMEOUT).await?;
                since
            }
        };
        let disk = self.save_disk().await?;
        outgoing.continue_after_switchover().await?;
        outgoing.wait_for(COMPLETED, MEMORY_TIMEOUT).await?;
        resume(self.qmp).await?;
        let pause = paused_since.elapsed();
        outgoing.end().await?;
        Ok(Copied { pause, disk })
    }

    /// Saves the disk while the vCPUs are paused, and QEMU has written what it had of it. A file that shares
    /// the disk's blocks takes nothing of it, so forks get that where the file system can make one.
    async fn save_disk(&self) -> Result<SavedDisk> {
        if self.asked.purpose == Purpose::Fork
            && let Some(copy) = self.reflink_disk().await
        {
            return Ok(SavedDisk::Reflink(copy));
        }
        self.take_snapshot().await.map(|()| SavedDisk::Snapshot)
    }

    async fn reflink_disk(&self) -> Option<PathBuf> {
        let (dir, to) = (VmDir(self.asked.plan.dir.clone()), self.asked.to.to_owned());
        let copy = to.join(REFLINK);
        let mut files = vec![(dir.disk(), copy.clone())];
        let numbers = self.asked.plan.disks.iter().map(|disk| disk.place.number);
        files.extend(numbers.map(|n| (dir.data_disk(n), to.join(names::data(n)))));
        // Of all disks, or of none.
        let reflink = move || files.iter().try_for_each(|(from, to)| reflink(from, to));
        off_thread(reflink, "a reflink of the disk").await.ok().map(|()| copy)
    }

    /// Takes the snapshot in all files, or in none.
    async fn take_snapshot(&self) -> Result<()> {
        let action = |data| json!({"type": "blockdev-snapshot-internal-sync", "data": data});
        let actions: Vec<_> = self.snapshots().map(action).collect();
        self.qmp.execute("transaction", json!({"actions": actions})).await.map(drop)
    }

    /// Names the snapshot in each file.
    fn snapshots(&self) -> impl Iterator<Item = Value> {
        let nvram = self.asked.plan.spec.has_uefi().then(|| NVRAM_NODE.to_owned());
        let data = self.asked.plan.disks.iter().map(|disk| node_name(disk.place.number));
        let nodes = nvram.into_iter().chain(data).chain([DISK_NODE.to_owned()]);
        nodes.map(|node| json!({"device": node, "name": self.asked.snapshot}))
    }

    /// Waits until little is left to copy; returns since when the vCPUs are paused.
    async fn converge(&self, outgoing: &mut Migration<'_>) -> Result<Instant> {
        let converged = outgoing.wait_for_up_to(SWITCHOVER, CONVERGENCE).await?;
        let paused_since = Instant::now();
        if !converged {
            self.stop().await?;
            outgoing.wait_for(SWITCHOVER, MEMORY_TIMEOUT).await?;
        }
        Ok(paused_since)
    }

    async fn stop(&self) -> Result<Instant> {
        let since = Instant::now();
        self.qmp.execute("stop", json!({})).await?;
        Ok(since)
    }

    /// Resumes the guest and removes the snapshot; what fails here shows in the VM's status.
    async fn recover(&self) {
        recover(self.qmp).await.ok();
        for snapshot in self.snapshots() {
            self.qmp.execute("blockdev-snapshot-delete-internal-sync", snapshot).await.ok();
        }
    }
}

fn reflink(from: &Path, to: &Path) -> io::Result<()> {
    let new = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let done = sparse::reflink(&File::open(from)?, &new);
    done.or_else(|error| fs::remove_file(to).and(Err(error)))
}

/// Resumes the vCPUs. QEMU reports a migration as completed a moment before it accepts `cont`, and
/// has no event for the latter.
async fn resume(qmp: &Qmp) -> Result<()> {
    let deadline = Instant::now() + FINALIZATION;
    loop {
        match qmp.execute("cont", json!({})).await {
            Err(BackendError::QmpRefused { text, .. })
                if text.contains("not finalized") && Instant::now() < deadline =>
            {
                sleep(RETRY).await;
            }
            done => return done.map(drop),
        }
    }
}

/// Loads a template's device state into a clone, whose vCPUs have never run.
pub(super) async fn load_template(qmp: &Qmp, saved: &Saved) -> Result<()> {
    saved.is_final().await?;
    let opened = match saved {
        Saved::Files { state, .. } => File::open(state),
        // Each reader has a position of its own.
        Saved::Nameless(memory) => {
            File::open(format!("/proc/self/fd/{}", memory.state.as_raw_fd()))
        }
    };
    let opened = opened.map_err(BackendError::at(STATE))?;
    let mut incoming = Migration::new(qmp, Transfer::DevicesOnly).await?;
    incoming.receive(&opened.into()).await?;
    incoming.wait_for(COMPLETED, DEVICES_TIMEOUT).await?;
    incoming.end().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_preallocated_for_a_paused_guest_where_there_is_time_and_room() {
        let table = [
            (AccelKind::Tcg, 256 << 20, 1 << 30, true),
            (AccelKind::Tcg, 256 << 20, 200 << 20, false),
            (AccelKind::Tcg, 64 << 30, 1 << 40, false),
            (AccelKind::Kvm, 256 << 20, 1 << 30, false),
        ];
        for (accel, memory, room, expected) in table {
            assert_eq!(is_preallocated(accel, memory, room), expected, "{accel:?} {memory} {room}");
        }
    }
}
