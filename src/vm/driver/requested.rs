//! The steps that requests lead to.
//!
//! Each request has been admitted by the policy (`state::admit`) and by the VM's files and settings
//! (`admission.rs`). One that meets another phase all the same is refused as busy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Answer;
use super::capture::Capture;
use super::effect::{Effect, Step};
use super::phase::{Activity, DiskUse, Phase, Start, StartStage};
use super::running::RunningMachine;
use super::snapshot::SnapshotJob;
use super::start::START_ANSWER;
use super::task::{Report, Task};
use super::verb::{MachineVerb, ShutDown};
use crate::vm::backend::SnapshotOp;
use crate::vm::dropped::Remover;
use crate::vm::memory::Reservation;
use crate::vm::spec::Edit;
use crate::vm::state::{Asked, Command, Refusal, policy};
use crate::vm::template::{Captured, Purpose};
use crate::vm::{Action, Request, VmError};

const DONE: Result<(), VmError> = Ok(());

impl Phase {
    pub(super) fn on_request(
        self,
        Request { action, answer }: Request,
        memory: Option<Reservation>,
        step: &mut Step,
    ) -> Self {
        match action {
            Action::Command(command) => self.on_command(command, answer, memory, step),
            Action::Pin(image, end) => {
                let Self::Off(rest) = self else { return self.busy("source", answer, step) };
                step.then(Effect::Pin(end, answer));
                Self::UsingDisk(rest, DiskUse::Image(image))
            }
            Action::Capture(purpose, to, captured) => {
                self.on_capture((purpose, to), captured, answer, step)
            }
            Action::Retire(by, outcome) => {
                let Self::Off(rest) = self else { return self.busy("rmdir", answer, step) };
                step.then(Effect::Retire(by, outcome, answer));
                Self::Removing(rest)
            }
        }
    }

    fn on_command(
        self,
        command: Command,
        answer: Answer,
        memory: Option<Reservation>,
        step: &mut Step,
    ) -> Self {
        let verb = command.verb();
        match command {
            Command::Start { paused } => self.on_start(paused, answer, memory, step),
            Command::Stop { seconds } => self.on_stop(Duration::from_secs(seconds), answer, step),
            Command::Kill => self.on_kill(answer, step),
            Command::Pause => self.on_verb(verb, MachineVerb::Pause, answer, step),
            Command::Resume => self.on_verb(verb, MachineVerb::Resume, answer, step),
            Command::Reset => self.on_verb(verb, MachineVerb::Reset, answer, step),
            Command::PressKeys { chords } => {
                self.on_verb(verb, MachineVerb::PressKeys(chords), answer, step)
            }
            Command::Configure(edit) => self.on_configure(edit, answer, step),
            Command::Suspend => self.on_suspend(answer, step),
            Command::Snapshot(op, by) => self.begin_snapshot(op, by, answer, step),
            Command::Remove => {
                let Self::Off(rest) = self else { return self.busy(verb, answer, step) };
                step.answer(answer, DONE);
                Self::Removed(rest)
            }
        }
    }

    fn on_start(
        self,
        paused: bool,
        answer: Answer,
        memory: Option<Reservation>,
        step: &mut Step,
    ) -> Self {
        let Self::Off(before) = self else { return self.busy("start", answer, step) };
        let (planning, ticket) = Task::new();
        step.then(Effect::Plan(ticket, paused));
        let (reminder, ticket) = Task::new();
        step.then(Effect::Remind(ticket, START_ANSWER, Report::AnswerOverdue));
        Self::Starting(Start {
            before,
            since: step.now,
            answer: Some(answer),
            _reminder: reminder,
            memory,
            stage: StartStage::Planning { _task: planning },
        })
    }

    fn on_stop(self, timeout: Duration, answer: Answer, step: &mut Step) -> Self {
        let next = match self.into_idle() {
            Ok(machine) => {
                let (task, ticket) = Task::new();
                step.then(Effect::ShutDown(ticket, ShutDown::of(&machine, timeout, step.now)));
                Self::Running(machine, Activity::Idle.stopping(Some(task)))
            }
            Err(Self::Starting(start)) => start.call_off(step),
            Err(other) => return other.busy("stop", answer, step),
        };
        step.answer(answer, DONE);
        next
    }

    fn on_kill(self, answer: Answer, step: &mut Step) -> Self {
        if let Self::Unreachable { .. } = self {
            step.then(Effect::FindSilent(answer));
            return self;
        }
        let next = self.kill(step);
        step.answer(answer, DONE);
        next
    }

    /// Ends a machine that runs or is coming. Without one there is nothing to end: a VM that is off
    /// may be `saving` too.
    pub(super) fn kill(self, step: &mut Step) -> Self {
        if let Self::Starting(start) = self {
            return start.call_off(step);
        }
        let Self::Running(machine, activity) = self else { return self };
        let (task, ticket) = Task::new();
        step.then(Effect::Kill(ticket, Arc::clone(&machine.machine)));
        Self::Running(machine, activity.stopping(Some(task)))
    }

    fn on_verb(
        self,
        name: &'static str,
        verb: MachineVerb,
        answer: Answer,
        step: &mut Step,
    ) -> Self {
        let Some(machine) = self.machine() else { return self.busy(name, answer, step) };
        step.then(Effect::SendVerb(Arc::clone(&machine.machine), verb, answer));
        self
    }

    /// In a transition the machine is not changed: the settings then wait for the next start.
    fn on_configure(self, edit: Edit, answer: Answer, step: &mut Step) -> Self {
        let is_idle = matches!(self, Self::Running(_, Activity::Idle));
        let machine =
            self.machine().filter(|_| is_idle).map(|running| Arc::clone(&running.machine));
        let in_force = self.machine().and_then(|machine| machine.facts.in_force.clone());
        step.then(Effect::Configure(edit, machine, in_force, answer));
        self
    }

    fn begin_snapshot(self, op: SnapshotOp, by: Remover, answer: Answer, step: &mut Step) -> Self {
        if let Self::Off(rest) = self {
            let job = SnapshotJob::begin(op, by, None, answer, step);
            return Self::UsingDisk(rest, DiskUse::Snapshot(job));
        }
        match self.into_idle() {
            Ok(machine) => {
                let job = SnapshotJob::begin(op, by, Some(&machine.machine), answer, step);
                Self::Running(machine, Activity::Snapshot(job))
            }
            Err(other) => other.busy("snapshot", answer, step),
        }
    }

    fn on_suspend(self, answer: Answer, step: &mut Step) -> Self {
        match self.into_idle() {
            Ok(machine) => {
                let job = SnapshotJob::begin_suspend(&machine, answer, step);
                Self::Running(machine, Activity::Snapshot(job))
            }
            Err(other) => other.busy("suspend", answer, step),
        }
    }

    fn on_capture(
        self,
        (purpose, to): (Purpose, PathBuf),
        captured: oneshot::Sender<Captured>,
        answer: Answer,
        step: &mut Step,
    ) -> Self {
        let verb = policy::capture(purpose).verb();
        let machine = match self.into_idle() {
            Ok(machine) => machine,
            Err(other) => return other.busy(verb, answer, step),
        };
        let Some(session) = machine.session().map(Arc::clone) else {
            return Self::Running(machine, Activity::Idle).busy(verb, answer, step);
        };
        step.then(Effect::Capture(Capture {
            machine: Arc::clone(&machine.machine),
            session,
            in_force: machine.facts.in_force.clone(),
            purpose,
            to,
            captured,
            answer,
        }));
        Self::Running(machine, Activity::Capture)
    }

    /// Takes the machine if nothing is done with it.
    fn into_idle(self) -> Result<Box<RunningMachine>, Self> {
        if let Self::Running(machine, Activity::Idle) = self { Ok(machine) } else { Err(self) }
    }

    fn busy(self, verb: &'static str, answer: Answer, step: &mut Step) -> Self {
        let state = self.state().word().to_owned();
        step.answer(answer, Err(Refusal::Busy(Asked { verb, state })));
        self
    }
}
