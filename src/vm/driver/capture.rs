//! What an image or a fork is made of. A VM that is off is pinned: nobody starts or removes it meanwhile.
//! One that runs is captured: its memory and device state are saved, its disk is held by a snapshot
//! until it is copied.
//!
//! Not here: how QEMU writes them (`qemu::capture`), and what becomes of them (`image`, `registry::fork`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use tokio::sync::oneshot;

use super::recover::release_capture;
use super::start::plan_to_boot;
use super::task::Report;
use super::{Answer, Driver, dropped, paused_by_daemon};
use crate::store::layout::VmDir;
use crate::vm::backend::{
    BackendError, DataDisk, DiskFormat, GuestSession, LaunchPlan, Lifetime, Machine, Pin, RunFacts,
};
use crate::vm::live::InForce;
use crate::vm::spec::{ImageSettings, VmSpec};
use crate::vm::template::{Captured, CapturedData, Layer, Purpose, SavedDisk, SavedMachine, names};
use crate::vm::{Vm, VmError};

/// The snapshot that holds a disk as it was captured; no user can give this name.
pub(crate) const CAPTURE_TAG: &str = ".frozen";

#[derive(Debug)]
pub(super) struct Capture {
    pub(super) machine: Arc<dyn Machine>,
    /// The way into its guest.
    pub(super) session: Arc<dyn GuestSession>,
    pub(super) in_force: Option<InForce>,
    pub(super) purpose: Purpose,
    pub(super) to: PathBuf,
    pub(super) captured: oneshot::Sender<Captured>,
    pub(super) answer: Answer,
}

impl Driver {
    /// Pins the VM until `end` hears from its pin, which is never sent to: its end is the message.
    pub(super) fn pin(&self, end: oneshot::Receiver<()>, answer: Answer) {
        let vm = self.vm.clone();
        self.detach(|_| async move {
            if let Err(error) = dropped::drop_now(&vm).await {
                // It is listed again, and is read with the rest.
                vm.note_outcome(Err::<(), _>(error));
            }
            drop(answer.send(Ok(())));
            drop(end.await);
            Report::Unpinned
        });
    }

    /// Copies the guest's memory and disk into a directory, and ends the capture when the hold of what
    /// was captured is dropped. The guest runs on.
    pub(super) fn capture(&self, asked: Capture) {
        let vm = self.vm.clone();
        self.detach(|_| async move {
            let Capture { machine, session, in_force, purpose, to, captured: result, answer } =
                asked;
            let (hold, released) = oneshot::channel();
            let disks = vm.disks().hold().await;
            let captured = match running_plan(&vm, &*machine, in_force, purpose).await {
                Ok(plan) => {
                    let (to, hold) = ((purpose, &*to), Pin(hold));
                    capture(&vm, &*machine, &*session, &plan, to, hold).await
                }
                Err(error) => {
                    // Its end is waited for below.
                    drop(hold);
                    Err(error)
                }
            };
            // An image is copied from the disk alone; that may take long, and disks may come and go meanwhile.
            let _disks = (purpose == Purpose::Fork).then_some(disks);
            let has_snapshot = captured.as_ref().is_ok_and(|c| c.snapshot.is_some());
            // Who gives up waiting does not hear it, which drops the hold.
            let answered = captured.map(|captured| drop(result.send(captured)));
            drop(answer.send(answered.map_err(VmError::from)));
            // Its end is the message.
            drop(released.await);
            // A disk of ours is gone by now.
            if has_snapshot && vm.0.lifetime == Lifetime::Own {
                let machine = Some(Arc::clone(&machine));
                release_capture(&vm.0.backends, machine, &vm.dir().0).await;
            }
            Report::CaptureEnded(machine)
        });
    }
}

/// Describes a machine that runs as the plan by which it would be started.
async fn running_plan(
    vm: &Vm,
    machine: &dyn Machine,
    in_force: Option<InForce>,
    purpose: Purpose,
) -> Result<LaunchPlan, BackendError> {
    let backends = &vm.0.backends;
    let disks = captured_disks(vm, machine, purpose).await?;
    let mut spec = VmSpec::clone(&vm.spec());
    if let Some(InForce { spec: started, memory, .. }) = in_force {
        // The login name is no part of the machine.
        spec = VmSpec { memory, ssh_user: spec.ssh_user, ..started };
    }
    if let Some(size) = backends.hypervisor.disk_size(&vm.dir().0)? {
        spec.disk = size;
    }
    let name = &vm.spec().image;
    let image = backends.images.boot_of(name, &vm.dir().0);
    let image = image.ok_or_else(|| BackendError::NoImage { name: name.clone() })?;
    let RunFacts { accel, hardware, .. } = machine.facts().clone();
    let (paused, lifetime, nics) = (true, Lifetime::Ours, machine.nics().await?);
    let boot = plan_to_boot(vm, spec, image, accel)?;
    Ok(LaunchPlan { hardware, paused, lifetime, nics, disks, ..boot })
}

/// Lists the data disks that are captured with a machine.
async fn captured_disks(
    vm: &Vm,
    machine: &dyn Machine,
    purpose: Purpose,
) -> Result<Vec<DataDisk>, BackendError> {
    vm.check_disks_of_memory(machine).await?;
    let places = machine.data_disks().await?;
    match purpose {
        Purpose::Template if !places.is_empty() => {
            let fact = "an image has a VM's own disk alone, and this guest uses others (disks/); `rmdir` \
                these first, or stop the VM";
            Err(BackendError::fact("the machine", fact, libc::EBUSY))
        }
        Purpose::Template | Purpose::Fork => Ok(vm.disks().at(&places)),
    }
}

async fn capture(
    vm: &Vm,
    machine: &dyn Machine,
    session: &dyn GuestSession,
    plan: &LaunchPlan,
    to: (Purpose, &Path),
    hold: Pin,
) -> Result<Captured, BackendError> {
    let (backends, dir) = (&vm.0.backends, vm.dir());
    let shape = backends.hypervisor.shape(plan).await?;
    let mut port = backends.guests.identity(&plan.dir).await?;
    let is_armed = AtomicBool::new(false);
    let guest = async {
        port.arm(session).await?;
        is_armed.store(true, Ordering::Relaxed);
        paused_by_daemon::begin(dir).await
    };
    let saved = machine.capture(plan, to, CAPTURE_TAG, guest.boxed()).await;
    paused_by_daemon::end(dir);
    if is_armed.into_inner() {
        port.dismiss().await;
    }
    let SavedMachine { pause, saved, disk } = saved?;
    let is_copied = matches!(disk, SavedDisk::Reflink(_));
    let data = plan.disks.iter().map(|disk| captured_data(dir, disk.place.number, to.1, is_copied));
    let data = data.collect();
    let (path, snapshot) = match disk {
        SavedDisk::Snapshot => (dir.disk(), Some(CAPTURE_TAG.to_owned())),
        SavedDisk::Reflink(path) => (path, None),
    };
    let own = Layer { path, format: DiskFormat::Qcow2 };
    let disk = [vec![own], plan.base.clone()].concat();
    let settings = ImageSettings::of_machine(&plan.spec);
    Ok(Captured { shape, settings, pause, saved, disk, snapshot, data, hold })
}

fn captured_data(dir: &VmDir, number: u32, to: &Path, is_copied: bool) -> CapturedData {
    let copy = to.join(names::data(number));
    let from = if is_copied { copy.clone() } else { dir.data_disk(number) };
    CapturedData { number, from, copy }
}
