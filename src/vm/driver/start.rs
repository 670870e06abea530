//! Starting: the image, the plan, the launch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::clock::GuestClock;
use super::reach::Announcement;
use super::warm::{self, WARM};
use super::{Driver, Life, Report, dropped, suspended};
use crate::vm::backend::{BackendError, LaunchPlan, Launched};
use crate::vm::events::Event;
use crate::vm::exec::Link;
use crate::vm::memory::Ram;
use crate::vm::spec::VmSpec;
use crate::vm::state::{Refusal, State};
use crate::vm::warm::Memory;
use crate::vm::{Backends, Vm, VmError, one_line};

/// How long a write of `start` waits for QEMU's greeting before it answers "under way".
const START_ANSWER: Duration = Duration::from_secs(2);

/// A start under way.
pub(super) struct Starting {
    /// The state to go back to when nothing came of it before QEMU was started.
    before: State,
    /// Who waits for an answer, for [`START_ANSWER`] at the most.
    pub(super) answer: Option<oneshot::Sender<Result<(), VmError>>>,
    /// QEMU is being started now; until then it can simply be called off.
    pub(super) launching: bool,
    /// It goes on from what `suspend` has saved.
    goes_on: bool,
}

impl Driver {
    pub(super) fn start(
        &mut self,
        paused: bool,
        answer: oneshot::Sender<Result<(), VmError>>,
    ) -> Life {
        let spec = self.vm.spec();
        let Some(image) = self.backends.images.info(&spec.image) else {
            let error = BackendError::NoImage { name: spec.image.clone() };
            drop(answer.send(Err(error.into())));
            return Life::GoesOn;
        };
        if spec.ephemeral && self.suspended().is_some() {
            drop(answer.send(Err(Refusal::SuspendedEphemeral.into())));
            return Life::GoesOn;
        }
        if let Some(error) = self.backends.missing(&spec.image) {
            drop(answer.send(Err(error.into())));
            return Life::GoesOn;
        }
        if let Err(error) = self.reserve(&spec, self.likely_ram(&image)) {
            drop(answer.send(Err(error.into())));
            return Life::GoesOn;
        }
        self.life += 1;
        self.searching = None;
        self.begun = Instant::now();
        self.starting = Some(Starting {
            before: self.state(),
            answer: Some(answer),
            launching: false,
            goes_on: false,
        });
        self.enter(State::Starting);
        self.publish(|view| {
            view.facts = None;
            view.ready_after = None;
            view.doing = Some(format!("image {}", spec.image));
        });
        self.link.send_replace(Link::Coming);
        let (vm, backends) = (self.vm.clone(), self.backends.clone());
        self.preparing = Some(self.task(|to| async move {
            to.report(Report::Planned(plan(&vm, &backends, paused).await.map(Box::new))).await;
        }));
        self.detached(|to| async move {
            tokio::time::sleep(START_ANSWER).await;
            to.report(Report::StartOverdue).await;
        });
        Life::GoesOn
    }

    pub(super) fn on_planned(&mut self, planned: Result<Box<LaunchPlan>, BackendError>) {
        self.preparing = None;
        // By now it is known how it starts, and settings may have changed.
        let reserved = planned.and_then(|plan| {
            self.reserve(&plan.spec, ram_of(&plan.memory))?;
            Ok(plan)
        });
        let mut plan = match reserved {
            Ok(plan) => plan,
            Err(error) => return self.on_launch_failed(error),
        };
        let saved = self.suspended();
        let goes_on = saved.is_some();
        if let Some(starting) = &mut self.starting {
            starting.launching = true;
            starting.goes_on = goes_on;
        }
        self.publish(|view| view.doing = Some("QEMU".to_owned()));
        let backends = self.backends.clone();
        let paused = plan.paused;
        plan.paused |= goes_on;
        self.detached(|to| async move {
            let launched = match (&plan.memory, saved) {
                (Memory::Clone(_), _) => warm::start(&backends, *plan, &to).await,
                (Memory::Own | Memory::CaptureTarget { .. }, None) => {
                    backends.hypervisor.launch(*plan).await
                }
                (Memory::Own | Memory::CaptureTarget { .. }, Some(saved)) => {
                    suspended::start(&backends, *plan, saved, paused).await
                }
            };
            to.report(Report::Launched(launched)).await;
        });
    }

    pub(super) fn on_launched(&mut self, launched: Launched) {
        self.answer_start(Ok(()));
        let goes_on = self.starting.take().is_some_and(|starting| starting.goes_on);
        if self.state() == State::Stopping {
            self.running = Some(launched);
            return self.kill();
        }
        self.tell_why_it_boots(&launched);
        // A guest that goes on has opened its port long ago, and its clock shows the past.
        self.clock = GuestClock::default();
        if goes_on {
            self.clock.is_of_the_past();
        }
        let is_clone = launched.machine.facts().warm == WARM;
        let known = if goes_on || is_clone { Announcement::Missed } else { Announcement::Awaited };
        self.take_over(launched, known);
        if !goes_on && !is_clone {
            self.clock_of_a_boot();
        }
    }

    /// Not only those who read `info` hear of a warm start that a setting prevents.
    fn tell_why_it_boots(&self, launched: &Launched) {
        if let Some(reason) = launched.machine.facts().warm.strip_prefix("no: ") {
            self.note(&format!("boots although the image is warm: {reason}"));
            self.vm.tell(&Event::Boots(reason.to_owned()));
        }
    }

    /// Takes a machine that runs, new or adopted.
    pub(super) fn take_over(&mut self, launched: Launched, announcement: Announcement) {
        let facts = launched.machine.facts().clone();
        self.halted = launched.paused;
        if self.halted {
            self.clock.stop();
        }
        let state = if self.halted { State::Paused } else { State::Running };
        *self.vm.0.machine.write() = Some(Arc::clone(&launched.machine));
        self.running = Some(launched);
        self.vm.console().attach();
        self.publish(|view| view.facts = Some(facts));
        self.link.send_replace(Link::Coming);
        // A clone that had to boot after all takes more than it was promised.
        self.reserve_for_running();
        self.enter(state);
        self.reach(announcement);
    }

    pub(super) fn on_launch_failed(&mut self, error: BackendError) {
        self.note(&error.to_string());
        let Some(starting) = self.starting.take() else {
            return;
        };
        self.memory = None;
        self.link.send_replace(Link::Off);
        // Who has opened the console meanwhile waits for a machine that does not come.
        self.vm.console().detach();
        let called_off = self.state() == State::Stopping;
        // Whoever still waits is told by an errno, and a launch that never got as far as QEMU has
        // changed nothing. Anybody else finds the reason in the status.
        let told = starting.answer.is_some() && !starting.launching;
        let after = match (called_off, told) {
            (true, _) => State::Stopped,
            (false, true) => starting.before,
            (false, false) => State::Failed(one_line(&error.to_string())),
        };
        self.enter(after);
        match starting.answer {
            Some(answer) => drop(answer.send(Err(error.into()))),
            None => self.vm.note_outcome(Err::<(), _>(error)),
        }
    }

    pub(super) fn answer_start(&mut self, result: Result<(), VmError>) {
        if let Some(answer) = self.starting.as_mut().and_then(|s| s.answer.take()) {
            drop(answer.send(result));
        }
    }
}

fn ram_of(memory: &Memory) -> Ram {
    match memory {
        Memory::Clone(_) => Ram::CopyOnWrite,
        Memory::Own | Memory::CaptureTarget { .. } => Ram::Own,
    }
}

/// Does everything that comes before QEMU: image, seed, accelerator.
async fn plan(vm: &Vm, backends: &Backends, paused: bool) -> Result<LaunchPlan, BackendError> {
    if let Err(error) = dropped::drop_now(vm).await {
        // It is listed again, and in nobody's way.
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
    warm::choose(backends, &mut plan, &vm.settings()).await?;
    if !vm.dir().disk().exists() {
        backends.images.bind(&plan.dir, &plan.image, &plan.base)?;
    }
    Ok(plan)
}
