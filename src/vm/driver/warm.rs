//! Warm starts, which go on from a machine frozen in the image, and freezing one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::recover::release_capture;
use super::task::{Report, Reporter};
use super::{Driver, off_thread, paused_by_daemon};
use crate::store::layout::VmDir;
use crate::store::operation::{self, Kind, Operation};
use crate::vm::backend::{
    BackendError, DiskFormat, GuestSession, Hold, LaunchPlan, Launched, Lifetime, Machine,
    MachineEvent,
};
use crate::vm::live::InForce;
use crate::vm::spec::{ImageSettings, VmSettings, VmSpec};
use crate::vm::state::Refusal;
use crate::vm::warm::{Captured, Layer, Memory, Shape, Template, asks_for_a_boot};
use crate::vm::{Backends, Vm, VmError, one_line};

/// What `RunFacts::warm` says of a machine that went on from a template.
pub(super) const WARM: &str = "yes";
/// The snapshot that holds a disk as it was frozen; no user can give this name.
pub(crate) const CAPTURE_TAG: &str = ".frozen";

/// Decides whether a machine goes on from its image's template, and says why not.
pub(super) async fn choose(
    backends: &Backends,
    plan: &mut LaunchPlan,
    settings: &VmSettings,
) -> Result<(), BackendError> {
    let dir = VmDir(plan.dir.clone());
    if operation::is_open(&dir, Kind::Personalize).map_err(|e| BackendError::io(NOTE, &e))? {
        call_off(backends, &dir).await?;
        plan.base = backends.images.layers(&plan.image, &plan.dir)?;
    }
    // A disk has a life of its own, which the template's memory knows nothing of.
    if backends.hypervisor.disk_size(&plan.dir)?.is_some() {
        return Ok(());
    }
    let Some(template) = backends.images.template(&plan.image.name).await else { return Ok(()) };
    match fit(backends, plan, settings, template).await? {
        Ok(template) => {
            plan.base.clone_from(&template.base);
            plan.hardware = template.shape.devices.hardware;
            plan.memory = Memory::Clone(template);
        }
        Err(reason) => plan.cold = Some(reason),
    }
    Ok(())
}

async fn fit(
    backends: &Backends,
    plan: &LaunchPlan,
    settings: &VmSettings,
    template: Result<Template, String>,
) -> Result<Result<Template, String>, BackendError> {
    let carried = backends.images.settings(&plan.image.name);
    let captured = VmSettings::new(VmSpec::default()).resolve(&carried);
    if let Some(key) = asks_for_a_boot(&plan.spec, &captured) {
        let remedy = remedy(key, settings, &plan.image.name);
        return Ok(Err(format!("{key} is not the image's; {remedy}")));
    }
    if plan.paused {
        return Ok(Err("`start paused` was asked for".to_owned()));
    }
    let template = match template {
        Ok(template) => template,
        Err(damage) => return Ok(Err(damage)),
    };
    let mut wanted = backends.hypervisor.shape(plan).await?;
    let captured = template.shape.devices.hardware;
    if plan.spec.hardware.is_none() && captured.is_known() {
        wanted.devices.hardware = captured;
    }
    Ok(match template.shape.difference(&wanted, "the image's") {
        None => Ok(template),
        Some(difference) => {
            // It begins with the word for what differs.
            let what = difference.split(' ').next().unwrap_or_default();
            let remedy = remedy(what, settings, &plan.image.name);
            Err(format!("{difference}; {remedy}"))
        }
    })
}

/// What makes a VM of this image fit its template again: without a value of its own it has the
/// image's, unless the host has changed, or the image is older than that.
fn remedy(what: &str, settings: &VmSettings, image: &str) -> String {
    let keys = match what {
        "devices" => &["cdrom", "qemu_args"][..],
        "cpu" => &["accel"],
        key => &[key],
    };
    let own = keys.iter().find(|key| settings.is_own(key));
    own.map_or_else(
        || format!("`echo warm > .images/{image}/ctl` captures another machine"),
        |key| format!("`echo default > config/{key}` takes the image's"),
    )
}

/// Starts a clone. A template that QEMU does not take is no reason not to boot. Until the guest has
/// an identity of its own, [`Operation::Personalize`] is open: a later daemon ends what it finds then.
pub(super) async fn start(
    backends: &Backends,
    plan: LaunchPlan,
    to: &Reporter,
) -> Result<Launched, BackendError> {
    let dir = VmDir(plan.dir.clone());
    let at = dir.clone();
    off_thread(move || operation::begin(&at, Operation::Personalize), NOTE).await?;
    match clone(backends, &plan, to).await {
        Ok(CloneOutcome::Clone(launched)) => Ok(launched),
        Ok(CloneOutcome::Still(error)) => {
            call_off(backends, &dir).await?;
            boot(backends, plan, &error).await
        }
        Err(error) => {
            // What is left is called off by the next start at the latest.
            if let Err(left) = call_off(backends, &dir).await {
                tracing::warn!(dir = %plan.dir.display(), error = %left, "half a clone is left");
            }
            Err(error)
        }
    }
}

/// What cannot be written or read then.
const NOTE: &str = "the note of a clone's start";

/// Discards the disk of a clone that has no identity yet: nothing was written on it.
pub(super) async fn call_off(backends: &Backends, dir: &VmDir) -> Result<(), BackendError> {
    backends.hypervisor.discard_disk(&dir.0).await?;
    end_personalize(dir).await
}

async fn end_personalize(dir: &VmDir) -> Result<(), BackendError> {
    let dir = dir.clone();
    off_thread(move || operation::end(&dir, Kind::Personalize), NOTE).await
}

enum CloneOutcome {
    Clone(Launched),
    /// It could not go on, for this reason, and has ended.
    Still(BackendError),
}

async fn clone(
    backends: &Backends,
    plan: &LaunchPlan,
    to: &Reporter,
) -> Result<CloneOutcome, BackendError> {
    let begun = Instant::now();
    let mut launched = backends.hypervisor.launch(plan.clone()).await?;
    let machine = Arc::clone(&launched.machine);
    tracing::debug!(elapsed = ?begun.elapsed(), "clone: greeted");
    let Memory::Clone(template) = &plan.memory else { return Ok(CloneOutcome::Clone(launched)) };
    // Connected before anything runs: a frozen guest that finds nobody there waits no more.
    let port = backends.guests.identity(&plan.dir).await;
    if let Err(error) = machine.load_template(template).await {
        to.report(Report::Note(format!("cannot go on from the warm image: {error}"))).await;
        end(launched).await;
        return Ok(CloneOutcome::Still(error));
    }
    tracing::debug!(elapsed = ?begun.elapsed(), "clone: state taken in");
    let told = async {
        let mut port = port?;
        machine.resume().await?;
        port.tell(plan).await?;
        end_personalize(&VmDir(plan.dir.clone())).await
    };
    let told = told.await;
    tracing::debug!(elapsed = ?begun.elapsed(), "clone: told");
    if let Err(error) = told {
        end(launched).await;
        return Err(error);
    }
    launched.paused = false;
    Ok(CloneOutcome::Clone(launched))
}

/// Boots what could not go on.
async fn boot(
    backends: &Backends,
    mut plan: LaunchPlan,
    error: &BackendError,
) -> Result<Launched, BackendError> {
    plan.memory = Memory::Own;
    plan.hardware = plan.spec.hardware_at_boot();
    plan.base = backends.images.layers(&plan.image, &plan.dir)?;
    // The disk that is made now lies on the image alone.
    backends.images.bind(&plan.dir, &plan.image, &plan.base)?;
    plan.cold = Some(one_line(&error.to_string()));
    backends.hypervisor.launch(plan).await
}

/// Ends a machine and waits until it has ended.
pub(super) async fn end(mut launched: Launched) {
    if launched.machine.kill().await.is_err() {
        // The next launch finds it there and says so.
        return;
    }
    while let Some(event) = launched.events.recv().await {
        if matches!(event, MachineEvent::Exited(_)) {
            return;
        }
    }
}

/// A machine, and a way into its guest.
type Reachable = (Arc<dyn Machine>, Arc<dyn GuestSession>);

/// Where the answer to a request to freeze goes.
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
                hold: Hold(hold),
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
