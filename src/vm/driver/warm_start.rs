//! Warm starts: loading a clone from its image's template, or a fork from what was saved of its parent.

use std::sync::Arc;
use std::time::Instant;

use super::off_thread;
use super::task::{Report, Reporter};
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::{BackendError, LaunchPlan, Launched, MachineEvent};
use crate::vm::spec::{VmSettings, VmSpec};
use crate::vm::template::{Memory, Template, asks_for_a_boot};
use crate::vm::{Backends, one_line};

/// What `RunFacts::warm` says of a machine that was loaded from a template.
pub(super) const WARM: &str = "yes";

/// Has a fork loaded from what was saved of its parent. There is nothing else that it could start from.
pub(super) async fn plan_fork(
    backends: &Backends,
    plan: &mut LaunchPlan,
    template: Template,
) -> Result<(), BackendError> {
    plan.hardware = template.shape.devices.hardware;
    plan.nics.clone_from(&template.shape.nics);
    let wanted = backends.hypervisor.shape(plan).await?;
    if let Some(reason) = template.shape.difference(&wanted, "its parent's") {
        return Err(BackendError::ForkFailed { reason });
    }
    plan.memory = Memory::Clone(template);
    Ok(())
}

/// Says that a fork cannot be loaded any more.
pub(super) fn lost_fork() -> BackendError {
    let reason = "the memory that it was to be loaded with is gone with the daemon, or with an earlier start";
    BackendError::ForkFailed { reason: reason.to_owned() }
}

/// Decides whether a machine is loaded from its image's template, and says why not.
pub(super) async fn choose(
    backends: &Backends,
    plan: &mut LaunchPlan,
    settings: &VmSettings,
) -> Result<(), BackendError> {
    let dir = VmDir(plan.dir.clone());
    if operation::is_open(&dir, &Operation::Personalize).map_err(|e| BackendError::io(NOTE, &e))? {
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
            plan.nics.clone_from(&template.shape.nics);
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
        Ok(CloneOutcome::NotLoaded(error)) => {
            call_off(backends, &dir).await?;
            match plan.is_fork() {
                true => Err(BackendError::ForkFailed { reason: error.to_string() }),
                false => boot(backends, plan, &error).await,
            }
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
    off_thread(move || operation::end(&dir, &Operation::Personalize), NOTE).await
}

async fn end_fork(dir: &VmDir) -> Result<(), BackendError> {
    let dir = dir.clone();
    off_thread(move || operation::end(&dir, &Operation::Fork), NOTE).await
}

enum CloneOutcome {
    Clone(Launched),
    /// It could not be loaded, for this reason, and has ended.
    NotLoaded(BackendError),
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
    // Connected before anything runs: a guest that finds nobody there waits no more.
    let port = backends.guests.identity(&plan.dir).await;
    if let Err(error) = machine.load_template(template).await {
        to.report(Report::Note(format!("cannot load the template of the warm image: {error}")))
            .await;
        end(launched).await;
        return Ok(CloneOutcome::NotLoaded(error));
    }
    tracing::debug!(elapsed = ?begun.elapsed(), "clone: state taken in");
    let personalized = async {
        let mut port = port?;
        machine.resume().await?;
        port.personalize(plan).await?;
        if plan.is_fork() {
            end_fork(&VmDir(plan.dir.clone())).await?;
        }
        end_personalize(&VmDir(plan.dir.clone())).await
    };
    let personalized = personalized.await;
    tracing::debug!(elapsed = ?begun.elapsed(), "clone: personalized");
    if let Err(error) = personalized {
        end(launched).await;
        return Err(error);
    }
    launched.paused = false;
    Ok(CloneOutcome::Clone(launched))
}

async fn boot(
    backends: &Backends,
    mut plan: LaunchPlan,
    error: &BackendError,
) -> Result<Launched, BackendError> {
    plan.memory = Memory::Own;
    plan.nics.clear();
    plan.disks.clear();
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
