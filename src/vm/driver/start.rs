//! Starting: the plan (image, seed, accelerator) and the launch.

use std::time::Duration;

use super::task::{LaunchKind, Report, Ticket};
use super::{Driver, dropped, suspended, warm_start};
use crate::vm::backend::{BackendError, LaunchPlan};
use crate::vm::memory::Reservation;
use crate::vm::spec::VmSpec;
use crate::vm::state::Refusal;
use crate::vm::template::Memory;
use crate::vm::{Backends, Vm, VmError};

/// How long a write of `start` waits for QEMU's greeting before it answers "under way".
pub(super) const START_ANSWER: Duration = Duration::from_secs(2);

impl Driver {
    /// Says whether a start has what it needs, and reserves its memory.
    pub(super) fn check_start(&self) -> Result<Reservation, VmError> {
        let spec = self.vm.spec();
        let Some(image) = self.backends.images.info(&spec.image) else {
            return Err(BackendError::NoImage { name: spec.image.clone() }.into());
        };
        if spec.ephemeral && self.suspended().is_some() {
            return Err(Refusal::SuspendedEphemeral.into());
        }
        if let Some(error) = self.backends.missing(&spec.image) {
            return Err(error.into());
        }
        Ok(self.reserve(&spec, self.likely_ram(&image))?)
    }

    pub(super) fn plan(&self, ticket: Ticket, paused: bool) {
        let (vm, backends) = (self.vm.clone(), self.backends.clone());
        self.spawn(ticket, |to| async move {
            let planned = plan(&vm, &backends, paused).await;
            to.report(Report::Planned(planned.map(Box::new))).await;
        });
    }

    /// Starts QEMU. Nothing ends this early: a QEMU that nobody hears of would be left running.
    pub(super) fn launch(&self, mut plan: LaunchPlan) {
        let (backends, saved) = (self.backends.clone(), self.suspended());
        let paused = plan.paused;
        plan.paused |= saved.is_some();
        self.detach(|to| async move {
            let launched = match (&plan.memory, saved) {
                (Memory::Clone(_), _) => warm_start::start(&backends, plan, &to).await,
                (Memory::Own | Memory::CaptureTarget { .. }, None) => {
                    backends.hypervisor.launch(plan).await
                }
                (Memory::Own | Memory::CaptureTarget { .. }, Some(saved)) => {
                    suspended::start(&backends, plan, saved, paused).await
                }
            };
            let kind = if saved.is_some() { LaunchKind::Resumed } else { LaunchKind::New };
            to.report(Report::Launched(launched.map(|launched| (launched, kind)))).await;
        });
    }
}

/// Does everything that comes before QEMU: image, seed, accelerator.
async fn plan(vm: &Vm, backends: &Backends, paused: bool) -> Result<LaunchPlan, BackendError> {
    if let Err(error) = dropped::drop_now(vm).await {
        // It is listed again, and does not prevent a start.
        vm.note_outcome(Err::<(), _>(error));
    }
    let spec = vm.spec();
    let image = backends.images.ensure_for(&spec.image, &vm.dir().0).await?;
    vm.keep_image_settings().await?;
    // Building an image may take minutes, in which settings may have changed.
    let spec = vm.spec();
    let accel = backends.hypervisor.accel(spec.accel).await?;
    let base = backends.images.layers(&image, &vm.dir().0)?;
    let mut plan = LaunchPlan {
        uuid: vm.uuid(),
        name: vm.name(),
        dir: vm.dir().0.clone(),
        spec: VmSpec::clone(&spec),
        image,
        accel,
        hardware: spec.hardware_at_boot(),
        paused,
        base,
        memory: Memory::Own,
        cold: None,
        lifetime: vm.0.lifetime,
    };
    backends.guests.prepare(&plan).await?;
    warm_start::choose(backends, &mut plan, &vm.settings()).await?;
    if !vm.dir().disk().exists() {
        backends.images.bind(&plan.dir, &plan.image, &plan.base)?;
    }
    Ok(plan)
}
