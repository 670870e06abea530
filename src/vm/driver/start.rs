//! Starting: the plan (image, seed, accelerator) and the launch.

use std::time::Duration;

use super::task::{Report, Ticket};
use super::{Driver, dropped, suspended, warm_start};
use crate::store::operation::{self, Operation};
use crate::vm::backend::{Accel, BackendError, BootImage, LaunchPlan, SeedKind};
use crate::vm::hardware::Hardware;
use crate::vm::memory::Reservation;
use crate::vm::spec::{ImageSettings, VmSettings, VmSpec};
use crate::vm::state::Refusal;
use crate::vm::template::Memory;
use crate::vm::{Vm, VmError};

/// How long a write of `start` waits for QEMU's greeting before it answers "under way".
pub(super) const START_ANSWER: Duration = Duration::from_secs(2);

impl Driver {
    /// Says whether a start has what it needs, and reserves its memory.
    pub(super) fn check_start(&self) -> Result<Reservation, VmError> {
        let spec = self.vm.spec();
        let Some(image) = self.vm.0.backends.images.info(&spec.image) else {
            return Err(BackendError::NoImage { name: spec.image.clone() }.into());
        };
        self.vm.0.backends.limits.admit_growth()?;
        if spec.ephemeral && self.suspended().is_some() {
            return Err(Refusal::SuspendedEphemeral.into());
        }
        if let Some(error) = self.vm.0.backends.missing(&spec) {
            return Err(error.into());
        }
        Ok(self.reserve(&spec, &image)?)
    }

    pub(super) fn plan(&self, ticket: Ticket, paused: bool) {
        let vm = self.vm.clone();
        self.spawn(
            ticket,
            |_| async move { Report::Planned(plan(&vm, paused).await.map(Box::new)) },
        );
    }

    /// Starts QEMU. Nothing ends this early: a QEMU that nobody hears of would be left running.
    pub(super) fn launch(&self, mut plan: LaunchPlan) {
        let (vm, saved) = (self.vm.clone(), self.suspended());
        let backends = vm.0.backends.clone();
        let paused = plan.paused;
        plan.paused |= saved.is_some();
        self.detach(|to| async move {
            Report::Launched(match (&plan.memory, saved) {
                (Memory::Clone(_), _) => warm_start::start(&backends, plan, &to).await,
                (Memory::Own | Memory::CaptureTarget { .. }, None) => {
                    backends.hypervisor.launch(plan).await
                }
                (Memory::Own | Memory::CaptureTarget { .. }, Some(saved)) => {
                    match vm.disks_of_memory(saved) {
                        Ok(disks) => plan.disks = disks,
                        Err(error) => return Report::Launched(Err(error)),
                    }
                    let ports: Vec<u8> = plan.disks.iter().map(|disk| disk.place.port).collect();
                    plan.nics.retain(|nic| !ports.contains(&nic.port()));
                    suspended::start(&backends, plan, saved, paused).await
                }
            })
        });
    }
}

/// Refuses a text of the user's that nothing in the guest reads. One of `.defaults` is for the images
/// that have a reader, also where `cp` has made it a VM's own.
fn refuse_unread(
    image: &BootImage,
    spec: &VmSpec,
    settings: &VmSettings,
    defaults: &VmSpec,
) -> Result<(), BackendError> {
    let texts = [
        ("user_data", &spec.user_data, &defaults.user_data),
        ("network_data", &spec.network_data, &defaults.network_data),
    ];
    let unread = texts
        .into_iter()
        .find(|(key, text, default)| text.is_some() && text != default && settings.is_own(key));
    match (image.seed, unread) {
        (SeedKind::Nocloud, _) | (SeedKind::FwCfg, None) => Ok(()),
        (SeedKind::FwCfg, Some((key, ..))) => Err(BackendError::Unfit {
            key,
            reason: format!(
                "image {} has no cloud-init to read it; `echo none > config/{key}`, or take a cloud image",
                image.name
            ),
        }),
    }
}

/// Refuses an image of another architecture: its code would not run, and nothing would say so.
fn refuse_foreign(carried: &ImageSettings, spec: &VmSpec) -> Result<(), BackendError> {
    let wanted = spec.arch.to_string();
    match carried.get("arch").filter(|arch| **arch != wanted) {
        None => Ok(()),
        Some(arch) => Err(BackendError::Unfit {
            key: "arch",
            reason: format!(
                "image {} is for {arch}, not for {wanted}; `echo default > config/arch` takes the image's",
                spec.image
            ),
        }),
    }
}

/// Does everything that comes before QEMU: image, seed, accelerator.
async fn plan(vm: &Vm, paused: bool) -> Result<LaunchPlan, BackendError> {
    let backends = &vm.0.backends;
    if let Err(error) = dropped::drop_now(vm).await {
        // It is listed again, and does not prevent a start.
        vm.note_outcome(Err::<(), _>(error));
    }
    let spec = vm.spec();
    let image = backends.images.ensure_for(&spec.image, &vm.dir().0).await?;
    vm.keep_image_settings().await?;
    // Building an image may take minutes, in which settings may have changed.
    let spec = vm.spec();
    refuse_unread(&image, &spec, &vm.settings(), &backends.defaults.spec())?;
    refuse_foreign(&backends.images.settings(&spec.image), &spec)?;
    let accel = backends.hypervisor.accel(spec.accel, spec.arch).await?;
    let mut plan = LaunchPlan { paused, ..plan_to_boot(vm, VmSpec::clone(&spec), image, accel)? };
    backends.guests.prepare(&plan).await?;
    let fork = vm.0.fork.lock().take();
    if let Some(template) = fork {
        plan.disks = vm.disks().at(&template.shape.disks);
        warm_start::plan_fork(backends, &mut plan, template).await?;
        return Ok(plan);
    }
    if operation::is_open(vm.dir(), &Operation::Fork).map_err(BackendError::at("operation.json"))? {
        return Err(warm_start::lost_fork());
    }
    warm_start::choose(backends, &mut plan, &vm.settings()).await?;
    if plan.memory == Memory::Own && plan.hardware >= Hardware::WITH_ROOM {
        plan.nics = vm.place_in_nets().await;
    }
    if plan.memory == Memory::Own {
        plan.disks = vm.disks_at_boot(plan.hardware, &plan.nics).await;
    }
    if !vm.dir().disk().exists() {
        backends.images.bind(&plan.dir, &plan.image, &plan.base)?;
    }
    Ok(plan)
}

/// Describes a machine of the VM that boots.
pub(super) fn plan_to_boot(
    vm: &Vm,
    spec: VmSpec,
    image: BootImage,
    accel: Accel,
) -> Result<LaunchPlan, BackendError> {
    Ok(LaunchPlan {
        uuid: vm.uuid(),
        name: vm.name(),
        dir: vm.dir().0.clone(),
        base: vm.0.backends.images.layers(&image, &vm.dir().0)?,
        hardware: spec.hardware_at_boot(),
        spec,
        image,
        accel,
        paused: false,
        nics: Vec::new(),
        disks: Vec::new(),
        memory: Memory::Own,
        cold: None,
        lifetime: vm.0.lifetime,
    })
}
