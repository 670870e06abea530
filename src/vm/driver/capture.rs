//! Capturing a machine that runs: its memory and device state go into a directory, its disk is held
//! by a snapshot until it is copied.
//!
//! Not here: how QEMU writes them (`qemu::capture`), and what an image makes of them (`image`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::recover::release_capture;
use super::task::Report;
use super::{Driver, paused_by_daemon};
use crate::store::layout::VmDir;
use crate::vm::backend::{
    BackendError, DiskFormat, GuestSession, LaunchPlan, Lifetime, Machine, Pin,
};
use crate::vm::live::InForce;
use crate::vm::spec::{ImageSettings, VmSpec};
use crate::vm::state::Refusal;
use crate::vm::template::{Captured, Layer, Memory, Shape};
use crate::vm::{Backends, Vm, VmError};

/// The snapshot that holds a disk as it was captured; no user can give this name.
pub(crate) const CAPTURE_TAG: &str = ".frozen";

/// A machine, and a way into its guest.
type Reachable = (Arc<dyn Machine>, Arc<dyn GuestSession>);

/// Where the answer to a request to capture goes.
pub(super) type CaptureAnswer = oneshot::Sender<Result<Captured, VmError>>;

impl Driver {
    /// Copies the guest's memory and disk into a directory, and ends the capture when the answer's
    /// hold is dropped. The guest runs on.
    pub(super) fn capture(
        &self,
        (machine, session): Reachable,
        in_force: Option<InForce>,
        to: PathBuf,
        answer: CaptureAnswer,
    ) {
        let (vm, backends) = (self.vm.clone(), self.backends.clone());
        self.detach(|reporter| async move {
            let plan = running_plan(&vm, &backends, &*machine, in_force);
            let captured = match plan {
                Ok(plan) => capture(&backends, &*machine, &*session, &plan, &to).await,
                Err(error) => Err(error),
            };
            let (hold, released) = oneshot::channel();
            let captured = captured.map(|(shape, settings, pause, disk)| Captured {
                shape,
                settings,
                pause,
                disk,
                snapshot: CAPTURE_TAG.to_owned(),
                hold: Pin(hold),
            });
            let is_captured = captured.is_ok();
            drop(answer.send(captured.map_err(VmError::from)));
            // Its end is the message.
            drop(released.await);
            // A disk of ours is gone by now.
            if is_captured && vm.0.lifetime == Lifetime::Own {
                release_capture(&backends, Some(Arc::clone(&machine)), &vm.dir().0).await;
            }
            reporter.report(Report::CaptureEnded(machine)).await;
        });
    }

    pub(super) fn check_capture(&self) -> Result<(), Refusal> {
        self.vm.admit_capture()?;
        self.check_not_ephemeral()
    }
}

/// Describes a machine that runs as the plan by which it would be started.
fn running_plan(
    vm: &Vm,
    backends: &Backends,
    machine: &dyn Machine,
    in_force: Option<InForce>,
) -> Result<LaunchPlan, BackendError> {
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
    Ok(LaunchPlan {
        uuid: vm.uuid(),
        name: vm.name(),
        dir: vm.dir().0.clone(),
        spec,
        base: backends.images.layers(&image, &vm.dir().0)?,
        image,
        accel: machine.facts().accel.clone(),
        hardware: machine.facts().hardware,
        paused: true,
        memory: Memory::Own,
        cold: None,
        lifetime: Lifetime::Ours,
    })
}

async fn capture(
    backends: &Backends,
    machine: &dyn Machine,
    session: &dyn GuestSession,
    plan: &LaunchPlan,
    to: &Path,
) -> Result<(Shape, ImageSettings, Duration, Vec<Layer>), BackendError> {
    let settings = ImageSettings::of_machine(&plan.spec);
    let shape = backends.hypervisor.shape(plan).await?;
    let mut port = backends.guests.identity(&plan.dir).await?;
    port.arm(session).await?;
    let dir = VmDir(plan.dir.clone());
    let pause = async {
        paused_by_daemon::begin(&dir).await?;
        let pause = machine.capture(plan, to, CAPTURE_TAG).await;
        paused_by_daemon::end(&dir);
        pause
    };
    let pause = pause.await;
    port.dismiss().await;
    let own = Layer { path: VmDir(plan.dir.clone()).disk(), format: DiskFormat::Qcow2 };
    Ok((shape, settings, pause?, [vec![own], plan.base.clone()].concat()))
}
