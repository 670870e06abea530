//! The steps that machines and background tasks lead to. A report finds the phase that began its task:
//! leaving a phase drops its tasks. Work that nothing ends early is checked here, by its machine.

use std::sync::Arc;

use super::Answer;
use super::connect::Announcement;
use super::effect::{Effect, Step};
use super::phase::{Activity, DiskUse, Phase, Rest, Start, StartStage};
use super::running::RunningMachine;
use super::snapshot::SnapshotJob;
use super::task::{Configured, Done, Report, Task};
use super::verb::MachineVerb;
use crate::vm::backend::{
    Adoption, BackendError, ExitReport, LaunchPlan, Launched, Machine, MachineEvent, SilentMachine,
};
use crate::vm::events::Event;
use crate::vm::one_line;

const DONE: Done = Ok(());

impl Phase {
    // ----- machines ----------------------------------------------------------------------------

    pub(super) fn on_event(self, event: MachineEvent, step: &mut Step) -> Self {
        let Self::Running(mut machine, activity) = self else { return self };
        match event {
            MachineEvent::Paused => machine.paused(step.now),
            MachineEvent::Resumed => machine.on_resumed(&activity, step),
            MachineEvent::Reset => {
                step.first(Effect::Emit(Event::Reset));
                machine.reset(step);
            }
            MachineEvent::Announced => machine.on_announced(&activity, step),
            MachineEvent::ShutDown { by_guest } => {
                if by_guest {
                    step.note("the guest has shut down");
                }
                return Self::Running(machine, activity.shutting_down());
            }
            MachineEvent::DiskFull => {
                let error =
                    BackendError::NoSpace { what: "the VM's disk: it is paused".to_owned() };
                step.note(error.to_string());
                step.first(Effect::Failed(error.into()));
                machine.paused(step.now);
            }
            MachineEvent::LimitReached(key) => step.first(Effect::Emit(Event::LimitReached(key))),
            MachineEvent::Exited(report) => return exited(activity, &report, step),
        }
        Self::Running(machine, activity)
    }

    pub(super) fn on_report(self, report: Report, step: &mut Step) -> Self {
        match report {
            Report::Planned(planned) => self.on_planned(planned, step),
            Report::Launched(launched) => self.on_launched(launched, step),
            Report::AnswerOverdue => self.on_answer_overdue(step),
            Report::Found(adoption) => self.on_found(adoption, step),
            Report::Silent(found, answer) => self.on_silent(found, answer, step),
            Report::SilentEnded(ended) => self.on_silent_ended(ended, step),
            Report::Connected(session, took) => {
                self.with_machine(|machine| machine.connected(session, took, step))
            }
            Report::ClockSet => self.with_machine(|machine| machine.clock_set(step)),
            Report::Lost => self.on_lost(step),
            Report::Note(text) => {
                step.note(text);
                self
            }
            Report::ButtonPressed(done) => {
                if let Err(error) = done {
                    step.note(error.to_string());
                }
                self
            }
            Report::MachineVerb(machine, verb, done, answer) => {
                self.on_verb_done(&machine, &verb, done, answer, step)
            }
            Report::Configured(change) => self.on_configured(*change, step),
            Report::SnapshotDone(done) => self.on_snapshot_done(done, step),
            Report::Unpinned => self.on_unpinned(),
            Report::CaptureEnded(machine) => self.on_capture_ended(&machine, step),
            Report::StopOverdue => {
                step.note("the guest has not shut down in time");
                self.kill(step)
            }
            Report::Killed(done) => {
                if let Err(error) = done {
                    step.then(Effect::Failed(error.into()));
                }
                self
            }
            Report::Retired { is_gone } => self.on_retired(is_gone),
        }
    }

    // ----- starts ------------------------------------------------------------------------------

    fn on_planned(self, planned: Result<Box<LaunchPlan>, BackendError>, step: &mut Step) -> Self {
        let Self::Starting(start @ Start { stage: StartStage::Planning { .. }, .. }) = self else {
            return self;
        };
        match planned {
            Ok(plan) => {
                step.then(Effect::Launch(plan));
                Self::Starting(Start { stage: StartStage::Launching, ..start })
            }
            Err(error) => start.failed(error, step),
        }
    }

    fn on_launched(self, launched: Result<Launched, BackendError>, step: &mut Step) -> Self {
        // Only its end leads out of a launch.
        let Self::Starting(mut start) = self else { return self };
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => return start.failed(error, step),
        };
        step.answer_if_awaited(&mut start.answer);
        let Start { since, memory, stage, .. } = start;
        let is_called_off = matches!(stage, StartStage::CalledOff);
        let is_resumed = launched.clock_is_behind;
        let mut machine = Box::new(RunningMachine::new(launched, memory, since, step.now));
        if is_called_off {
            return Self::Running(machine, Activity::Idle).kill(step);
        }
        machine.say_why_it_boots(step);
        let announcement = match (is_resumed, machine.is_clone()) {
            // A guest that is resumed has opened its port long ago, and its clock shows the past.
            (true, _) => {
                machine.clock.is_of_the_past();
                Announcement::Past
            }
            (false, true) => Announcement::Past,
            (false, false) => {
                machine.clock_of_a_boot();
                Announcement::Awaited
            }
        };
        taken_over(machine, announcement, step)
    }

    // ----- machines of an earlier daemon -------------------------------------------------------

    fn on_found(self, adoption: Adoption, step: &mut Step) -> Self {
        if let Self::Off(rest) = self {
            return adopted(rest, adoption, step);
        }
        let is_unreachable = matches!(self, Self::Unreachable { .. });
        if is_unreachable { adopted(Rest::Stopped, adoption, step) } else { self }
    }

    fn on_silent(
        self,
        found: Result<Arc<dyn SilentMachine>, BackendError>,
        answer: Answer,
        step: &mut Step,
    ) -> Self {
        // It may have been found to answer, or to have ended, meanwhile.
        let Self::Unreachable { reason, search } = self else {
            step.answer(answer, DONE);
            return self.kill(step);
        };
        match found {
            Ok(machine) => {
                step.answer(answer, DONE);
                let (task, ticket) = Task::new();
                step.then(Effect::EndSilent(ticket, machine));
                Self::EndingSilent { reason, _end: task }
            }
            Err(error) => {
                step.answer(answer, Err(error));
                Self::Unreachable { reason, search }
            }
        }
    }

    fn on_silent_ended(self, ended: Done, step: &mut Step) -> Self {
        let Self::EndingSilent { reason, .. } = self else { return self };
        match ended {
            Ok(()) => {
                step.first(Effect::EndPause);
                adopted(Rest::Stopped, Adoption::NeverRan, step)
            }
            Err(error) => {
                step.first(Effect::Failed(error.into()));
                adopted(Rest::Stopped, Adoption::Unclear(reason), step)
            }
        }
    }

    // ----- the guest ---------------------------------------------------------------------------

    fn with_machine(mut self, act: impl FnOnce(&mut RunningMachine)) -> Self {
        if let Self::Running(machine, _) = &mut self {
            act(machine);
        }
        self
    }

    fn on_lost(mut self, step: &mut Step) -> Self {
        if let Self::Running(machine, activity) = &mut self {
            machine.lost();
            // A guest that its user has paused cannot answer.
            if !(machine.is_paused && matches!(activity, Activity::Idle)) {
                machine.reconnect(Announcement::Past, step);
            }
        }
        self
    }

    // ----- what was asked of the machine -------------------------------------------------------

    fn on_verb_done(
        mut self,
        asked: &Arc<dyn Machine>,
        verb: &MachineVerb,
        done: Done,
        answer: Answer,
        step: &mut Step,
    ) -> Self {
        if let Self::Running(machine, activity) = &mut self
            && machine.is(asked)
            && done.is_ok()
        {
            match verb {
                MachineVerb::Pause => machine.paused(step.now),
                MachineVerb::Resume => machine.on_resumed(activity, step),
                MachineVerb::Reset => machine.reset(step),
                MachineVerb::PressKeys(_) => {}
            }
        }
        step.answer(answer, done);
        self
    }

    fn on_configured(mut self, change: Configured, step: &mut Step) -> Self {
        let Configured { machine: asked, in_force, done, answer } = change;
        if let (Some(machine), Some(asked)) = (self.machine_mut(), asked)
            && machine.is(&asked)
        {
            machine.facts.in_force = in_force.or_else(|| machine.facts.in_force.take());
        }
        step.then(Effect::EndChange(answer, done));
        self
    }

    // ----- snapshots, captures, images ---------------------------------------------------------

    fn on_snapshot_done(self, done: Done, step: &mut Step) -> Self {
        if let Self::UsingDisk(rest, DiskUse::Snapshot(job)) = self {
            job.end(done, step);
            return Self::Off(rest);
        }
        let Self::Running(machine, activity) = self else { return self };
        // The end of QEMU is an event of its own, which is on its way and says how it ended.
        if done.as_ref().is_err_and(BackendError::is_the_end) {
            return Self::Running(machine, activity);
        }
        match activity {
            Activity::Snapshot(job) => {
                machine_snapshot_done(machine, Activity::Idle, job, done, step)
            }
            Activity::Stopping { task, unfinished: Some(job) } => {
                let activity = Activity::Stopping { task, unfinished: None };
                machine_snapshot_done(machine, activity, job, done, step)
            }
            Activity::Idle | Activity::Capture | Activity::Stopping { unfinished: None, .. } => {
                Self::Running(machine, activity)
            }
        }
    }

    /// Answers who waits: the work continues.
    fn on_answer_overdue(mut self, step: &mut Step) -> Self {
        if let Self::Starting(Start { answer, .. })
        | Self::UsingDisk(_, DiskUse::Snapshot(SnapshotJob { answer, .. }))
        | Self::Running(
            _,
            Activity::Snapshot(SnapshotJob { answer, .. })
            | Activity::Stopping { unfinished: Some(SnapshotJob { answer, .. }), .. },
        ) = &mut self
        {
            step.answer_if_awaited(answer);
        }
        self
    }

    fn on_unpinned(self) -> Self {
        if let Self::UsingDisk(rest, DiskUse::Image(_)) = self { Self::Off(rest) } else { self }
    }

    fn on_capture_ended(mut self, captured: &Arc<dyn Machine>, step: &mut Step) -> Self {
        if let Self::Running(machine, activity @ Activity::Capture) = &mut self
            && machine.is(captured)
        {
            *activity = Activity::Idle;
            machine.settle(step);
        }
        self
    }

    fn on_retired(self, is_gone: bool) -> Self {
        let Self::Removing(rest) = self else { return self };
        if is_gone { Self::Removed(rest) } else { Self::Off(rest) }
    }
}

impl Start {
    /// Nothing came of it. Whoever still waits hears an errno, and a start that never got as far as
    /// QEMU has changed nothing. Anybody else finds the reason in the status.
    fn failed(mut self, error: BackendError, step: &mut Step) -> Phase {
        step.note(error.to_string());
        // Who has opened the console meanwhile waits for a machine that does not come.
        step.first(Effect::Detach);
        let answer = self.answer.take();
        let rest = match (self.stage, &answer) {
            (StartStage::Planning { .. }, Some(_)) => self.before,
            (StartStage::CalledOff, Some(_) | None) => Rest::Stopped,
            (StartStage::Planning { .. } | StartStage::Launching, Some(_) | None) => {
                Rest::Failed(one_line(&error.to_string()))
            }
        };
        step.end(answer, Err(error));
        Phase::Off(rest)
    }
}

impl RunningMachine {
    /// Not only those who read `info` hear of a warm start that a setting prevents.
    fn say_why_it_boots(&self, step: &mut Step) {
        if let Some(reason) = self.facts.warm.strip_prefix("no: ") {
            step.note(format!("boots although the image is warm: {reason}"));
            step.first(Effect::Emit(Event::Boots(reason.to_owned())));
        }
    }

    /// The processors run. While something is done with the machine, its guest waits for the end of
    /// that to be made usable.
    fn on_resumed(&mut self, activity: &Activity, step: &mut Step) {
        let was_paused = self.is_paused;
        self.resumed(step.now);
        if was_paused && matches!(activity, Activity::Idle) {
            self.settle(step);
        }
    }

    /// The guest's SSH server listens. A guest that boots has heard no power button before.
    fn on_announced(&mut self, activity: &Activity, step: &mut Step) {
        if self.session().is_some() {
            return;
        }
        self.connect(Announcement::Past, step);
        if matches!(activity, Activity::Stopping { .. }) {
            step.then(Effect::PressPowerButton(Arc::clone(&self.machine)));
        }
    }
}

/// Takes up what an earlier daemon has left; without a machine, the VM is at `rest`.
fn adopted(rest: Rest, adoption: Adoption, step: &mut Step) -> Phase {
    match adoption {
        Adoption::NeverRan => {
            step.then(Effect::DropMarkedLater);
            Phase::Off(rest)
        }
        Adoption::Running(launched) => {
            step.first(Effect::LiftMarks);
            let is_late = launched.clock_is_behind || launched.paused;
            let mut machine = Box::new(RunningMachine::new(launched, None, step.now, step.now));
            if is_late {
                machine.clock.is_of_the_past();
            }
            taken_over(machine, Announcement::Awaited, step)
        }
        Adoption::Ended(reason) => {
            step.then(Effect::DropMarkedLater);
            Phase::Off(Rest::Failed(one_line(&reason)))
        }
        Adoption::Unclear(reason) => {
            let (task, ticket) = Task::new();
            step.then(Effect::Search(ticket));
            Phase::Unreachable { reason: one_line(&reason), search: task }
        }
    }
}

fn taken_over(
    mut machine: Box<RunningMachine>,
    announcement: Announcement,
    step: &mut Step,
) -> Phase {
    step.first(Effect::Attach(Arc::clone(&machine.machine)));
    // A clone that had to boot after all takes more than it was promised.
    step.first(Effect::ReserveForRunning);
    machine.connect(announcement, step);
    Phase::Running(machine, Activity::Idle)
}

/// What was done with a snapshot of a machine is done; `activity` follows.
fn machine_snapshot_done(
    mut machine: Box<RunningMachine>,
    activity: Activity,
    job: SnapshotJob,
    done: Done,
    step: &mut Step,
) -> Phase {
    if job.restores() && done.is_ok() {
        machine.restored(step);
    }
    let ends = job.ends_machine && done.is_ok();
    job.end(done, step);
    if matches!(activity, Activity::Idle) {
        machine.settle(step);
    }
    let phase = Phase::Running(machine, activity);
    if ends { phase.kill(step) } else { phase }
}

/// QEMU has ended; with it, what was done with the machine.
fn exited(activity: Activity, report: &ExitReport, step: &mut Step) -> Phase {
    step.note(format!("QEMU ended: {} {}", report.status, report.stderr));
    let is_wanted = report.clean || matches!(activity, Activity::Stopping { .. });
    if let Some(job) = activity.unfinished() {
        job.end(Err(report.error()), step);
    }
    step.first(Effect::EndPause);
    step.first(Effect::Detach);
    if is_wanted && report.unusable.is_none() {
        return Phase::Off(Rest::Stopped);
    }
    let error = report.error();
    let rest = Rest::Failed(one_line(&error.to_string()));
    step.first(Effect::Failed(error.into()));
    Phase::Off(rest)
}
