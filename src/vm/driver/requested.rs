//! The steps that requests lead to.
//!
//! Each request has been admitted by the policy (`state::admit`) and by the VM's files and settings
//! (`check.rs`). One that meets another phase all the same is refused as busy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Answer;
use super::capture::CaptureAnswer;
use super::effect::{Effect, Step};
use super::phase::{Activity, DiskUse, Phase, Start, StartStage};
use super::pin::PinAnswer;
use super::remove::RemovalAnswer;
use super::running::RunningMachine;
use super::snapshot::SnapshotJob;
use super::start::START_ANSWER;
use super::stop::ShutDown;
use super::task::{Report, Task};
use super::verb::MachineVerb;
use crate::vm::backend::SnapshotOp;
use crate::vm::dropped::Remover;
use crate::vm::memory::Reservation;
use crate::vm::spec::Edit;
use crate::vm::state::{Command, Refusal};
use crate::vm::{Request, VmError};

const DONE: Result<(), VmError> = Ok(());

impl Phase {
    pub(super) fn on_request(
        self,
        request: Request,
        memory: Option<Reservation>,
        step: &mut Step,
    ) -> Self {
        match request {
            Request::Command(command, answer) => self.on_command(command, answer, memory, step),
            Request::Configure(edit, answer) => self.on_configure(edit, answer, step),
            Request::DropSnapshot(tag, by, answer) => {
                self.begin_snapshot(SnapshotOp::Drop(tag), by, answer, step)
            }
            Request::Pin(image, answer) => self.on_pin(image, answer, step),
            Request::Capture(to, answer) => self.on_capture(to, answer, step),
            Request::Retire(by, answer) => self.on_retire(by, answer, step),
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
            Command::Pause => self.on_verb(MachineVerb::Pause, answer, step),
            Command::Resume => self.on_verb(MachineVerb::Resume, answer, step),
            Command::Reset => self.on_verb(MachineVerb::Reset, answer, step),
            Command::PressKeys { chords } => {
                self.on_verb(MachineVerb::PressKeys(chords), answer, step)
            }
            Command::Resize { bytes } => self.on_configure(Edit::Disk(bytes), answer, step),
            Command::AddPort(forward) => self.on_configure(Edit::AddPort(forward), answer, step),
            Command::RemovePort(forward) => {
                self.on_configure(Edit::RemovePort(forward), answer, step)
            }
            Command::Suspend => self.on_suspend(answer, step),
            Command::Take(tag) => self.begin_snapshot(SnapshotOp::Take(tag), None, answer, step),
            Command::Restore(tag) => {
                self.begin_snapshot(SnapshotOp::Restore(tag), None, answer, step)
            }
            Command::Drop(tag) => self.begin_snapshot(SnapshotOp::Drop(tag), None, answer, step),
            Command::RenameSnapshot { from, to } => {
                self.begin_snapshot(SnapshotOp::Rename { from, to }, None, answer, step)
            }
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
        step.then(Effect::Plan { ticket, paused });
        let (reminder, ticket) = Task::new();
        step.then(Effect::Remind(ticket, START_ANSWER, Report::StartOverdue));
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
                Self::Running(machine, Activity::Stopping { task: Some(task), unfinished: None })
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
        match self {
            Self::Starting(start) => start.call_off(step),
            Self::Running(machine, activity) => {
                let (task, ticket) = Task::new();
                step.then(Effect::Kill(ticket, Arc::clone(&machine.machine)));
                let unfinished = activity.unfinished();
                Self::Running(machine, Activity::Stopping { task: Some(task), unfinished })
            }
            other @ (Self::Off(_)
            | Self::UsingDisk(..)
            | Self::Removing(_)
            | Self::Removed(_)
            | Self::Unreachable { .. }
            | Self::EndingSilent { .. }) => other,
        }
    }

    fn on_verb(self, verb: MachineVerb, answer: Answer, step: &mut Step) -> Self {
        let Some(machine) = self.machine() else { return self.busy(verb.word(), answer, step) };
        step.then(Effect::SendVerb(Arc::clone(&machine.machine), verb, answer));
        self
    }

    /// In a transition the machine is not changed: the settings then wait for the next start.
    fn on_configure(self, edit: Edit, answer: Answer, step: &mut Step) -> Self {
        let machine = match &self {
            Self::Running(machine, Activity::Idle) => Some(Arc::clone(&machine.machine)),
            Self::Running(
                _,
                Activity::Snapshot(_) | Activity::Capture | Activity::Stopping { .. },
            )
            | Self::Off(_)
            | Self::UsingDisk(..)
            | Self::Removing(_)
            | Self::Removed(_)
            | Self::Starting(_)
            | Self::Unreachable { .. }
            | Self::EndingSilent { .. } => None,
        };
        let in_force = self.machine().and_then(|machine| machine.facts.in_force.clone());
        step.then(Effect::Configure { edit, machine, in_force, answer });
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

    fn on_pin(self, image: String, answer: PinAnswer, step: &mut Step) -> Self {
        let Self::Off(rest) = self else {
            return self.refuse(Request::Pin(image, answer), step);
        };
        step.then(Effect::Pin(answer));
        Self::UsingDisk(rest, DiskUse::Image(image))
    }

    fn on_capture(self, to: PathBuf, answer: CaptureAnswer, step: &mut Step) -> Self {
        let machine = match self.into_idle() {
            Ok(machine) => machine,
            Err(other) => return other.refuse(Request::Capture(to, answer), step),
        };
        let Some(session) = machine.session().map(Arc::clone) else {
            return Self::Running(machine, Activity::Idle)
                .refuse(Request::Capture(to, answer), step);
        };
        step.then(Effect::Capture {
            machine: Arc::clone(&machine.machine),
            session,
            in_force: machine.facts.in_force.clone(),
            to,
            answer,
        });
        Self::Running(machine, Activity::Capture)
    }

    fn on_retire(self, by: Remover, answer: RemovalAnswer, step: &mut Step) -> Self {
        let Self::Off(rest) = self else {
            return self.refuse(Request::Retire(by, answer), step);
        };
        step.then(Effect::Retire(by, answer));
        Self::Removing(rest)
    }

    /// Takes the machine if nothing is done with it.
    fn into_idle(self) -> Result<Box<RunningMachine>, Self> {
        if let Self::Running(machine, Activity::Idle) = self { Ok(machine) } else { Err(self) }
    }

    fn busy(self, verb: &'static str, answer: Answer, step: &mut Step) -> Self {
        step.answer(answer, Err(Refusal::Busy { verb, state: self.state().word() }));
        self
    }

    fn refuse(self, request: Request, step: &mut Step) -> Self {
        let state = self.state().word();
        let refusal = Refusal::Busy { verb: "source", state };
        step.then(Effect::Refuse(request, refusal.into()));
        self
    }
}
