//! The phases of a VM, each with what exists in it and in no other, and what is published of them.
//! Pure: [`Phase::step`] takes a phase and an input, and returns the next phase and what the driver
//! is to do. The diagram is in the parent module.
//!
//! The steps that requests lead to are in `requested.rs`, those that machines and tasks lead to in
//! `reported.rs`.

#[cfg(test)]
mod tests;

use std::mem;

use tokio::time::Instant;

use super::Answer;
use super::effect::{Effect, Step};
use super::running::RunningMachine;
use super::snapshot::SnapshotJob;
use super::task::{Report, Task};
use crate::vm::Request;
use crate::vm::backend::MachineEvent;
use crate::vm::exec::Link;
use crate::vm::memory::Reservation;
use crate::vm::state::{Asked, Refusal, State};

/// What a VM is at, with all that belongs to it.
#[derive(Debug)]
pub(super) enum Phase {
    /// No machine: `stopped`, `failed`, `broken`.
    Off(Rest),
    /// No machine, and the disk is in use: `saving`.
    UsingDisk(Rest, DiskUse),
    /// It has agreed to its removal, and takes no request until the directory is gone or stays.
    Removing(Rest),
    /// The directory is gone; the driver ends.
    Removed(Rest),
    /// A machine is coming: `starting`, or `stopping` when that was called off.
    Starting(Start),
    /// A machine runs: `running`, `ready`, `paused`; `saving`; `stopping`.
    Running(Box<RunningMachine>, Activity),
    /// A machine runs that an earlier daemon has started, and does not answer.
    Unreachable { reason: String, search: Task },
    /// Its process is being ended: `stopping`.
    EndingSilent { reason: String, _end: Task },
}

/// Why there is no machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Stopped,
    Failed(String),
    Broken(String),
}

/// What the disk of a VM that is off is used for.
#[derive(Debug)]
pub(super) enum DiskUse {
    Snapshot(SnapshotJob),
    /// This image is being made of it.
    Image(String),
}

#[derive(Debug)]
pub(super) struct Start {
    /// What the VM goes back to when nothing came of it before QEMU was started.
    pub(super) before: Rest,
    pub(super) since: Instant,
    /// Who waits for an answer, for `START_ANSWER` at the most.
    pub(super) answer: Option<Answer>,
    pub(super) _reminder: Task,
    /// What the host has promised it.
    pub(super) memory: Option<Reservation>,
    pub(super) stage: StartStage,
}

#[derive(Debug)]
pub(super) enum StartStage {
    /// Image, seed and plan: dropping the task calls the start off.
    Planning { _task: Task },
    /// QEMU is being started, which is waited for.
    Launching,
    /// It is ended as soon as it is there.
    CalledOff,
}

/// What is done with a machine that runs.
#[derive(Debug)]
pub(super) enum Activity {
    /// Nothing that keeps other requests from being carried out.
    Idle,
    Snapshot(SnapshotJob),
    /// Its memory and disk are being copied.
    Capture,
    /// It shuts down; by our doing, if there is a task. `unfinished` is what it was stopped in.
    Stopping {
        task: Option<Task>,
        unfinished: Option<SnapshotJob>,
    },
}

/// What a phase reacts to.
#[derive(Debug)]
pub(super) enum Input {
    /// A request that the VM's state, settings and files admit; a start comes with the memory that
    /// the host has promised it.
    Request(Request, Option<Reservation>),
    /// The machine has reported something.
    Event(MachineEvent),
    /// A task has reported something.
    Report(Report),
}

impl Default for Phase {
    fn default() -> Self {
        Self::Off(Rest::Stopped)
    }
}

impl Phase {
    pub(super) fn step(self, input: Input, now: Instant) -> (Self, Step) {
        let mut step = Step::at(now);
        let next = match input {
            Input::Request(request, memory) => self.on_request(request, memory, &mut step),
            Input::Event(event) => self.on_event(event, &mut step),
            Input::Report(report) => self.on_report(report, &mut step),
        };
        (next, step)
    }

    // ----- what is published -------------------------------------------------------------------

    pub(super) fn state(&self) -> State {
        match self {
            Self::Off(rest) | Self::Removing(rest) | Self::Removed(rest) => rest.state(),
            Self::UsingDisk(..) => State::Saving,
            Self::Starting(start) => match start.stage {
                StartStage::Planning { .. } | StartStage::Launching => State::Starting,
                StartStage::CalledOff => State::Stopping,
            },
            Self::Running(machine, activity) => match activity {
                Activity::Idle => machine.state(),
                Activity::Snapshot(_) | Activity::Capture => State::Saving,
                Activity::Stopping { .. } => State::Stopping,
            },
            Self::Unreachable { reason, .. } => State::Unreachable(reason.clone()),
            Self::EndingSilent { .. } => State::Stopping,
        }
    }

    pub(super) fn link(&self) -> Link {
        if let Self::Starting(_) = self {
            return Link::Coming;
        }
        self.machine().map_or(Link::Off, RunningMachine::link)
    }

    /// Says what a VM that starts waits for.
    pub(super) fn start_stage(&self) -> Option<&StartStage> {
        if let Self::Starting(start) = self { Some(&start.stage) } else { None }
    }

    // ----- what others ask of it ---------------------------------------------------------------

    pub(super) fn machine(&self) -> Option<&RunningMachine> {
        if let Self::Running(machine, _) = self { Some(machine) } else { None }
    }

    pub(super) fn machine_mut(&mut self) -> Option<&mut RunningMachine> {
        if let Self::Running(machine, _) = self { Some(machine) } else { None }
    }

    /// Returns what the host has promised a start or a machine.
    pub(super) fn memory(&self) -> Option<&Reservation> {
        if let Self::Starting(start) = self {
            return start.memory.as_ref();
        }
        self.machine()?.memory.as_ref()
    }

    pub(super) fn is_off(&self) -> bool {
        matches!(self, Self::Off(_))
    }

    pub(super) fn is_removing(&self) -> bool {
        matches!(self, Self::Removing(_))
    }

    pub(super) fn is_removed(&self) -> bool {
        matches!(self, Self::Removed(_))
    }

    pub(super) fn pinned_by(&self) -> Option<&str> {
        if let Self::UsingDisk(_, DiskUse::Image(image)) = self { Some(image) } else { None }
    }
}

impl Rest {
    pub(super) fn state(&self) -> State {
        match self {
            Self::Stopped => State::Stopped,
            Self::Failed(reason) => State::Failed(reason.clone()),
            Self::Broken(reason) => State::Broken(reason.clone()),
        }
    }
}

impl Start {
    /// Ends a start: at once if QEMU is not being started yet.
    pub(super) fn call_off(mut self, step: &mut Step) -> Phase {
        match mem::replace(&mut self.stage, StartStage::CalledOff) {
            StartStage::Launching | StartStage::CalledOff => Phase::Starting(self),
            StartStage::Planning { .. } => {
                step.first(Effect::Detach);
                let by = "stopped by another request".to_owned();
                let refusal = Refusal::Already(Asked { verb: "start", state: by });
                if let Some(answer) = self.answer {
                    step.answer(answer, Err(refusal));
                }
                Phase::Off(Rest::Stopped)
            }
        }
    }
}

impl Activity {
    /// Takes the work on a snapshot that is not finished.
    pub(super) fn unfinished(self) -> Option<SnapshotJob> {
        match self {
            Self::Snapshot(job) => Some(job),
            Self::Stopping { unfinished, .. } => unfinished,
            Self::Idle | Self::Capture => None,
        }
    }

    /// The machine is being ended by a task.
    pub(super) fn stopping(self, task: Option<Task>) -> Self {
        Self::Stopping { task, unfinished: self.unfinished() }
    }

    /// The machine shuts down by itself.
    pub(super) fn shutting_down(self) -> Self {
        match self {
            Self::Stopping { .. } => self,
            Self::Idle | Self::Snapshot(_) | Self::Capture => self.stopping(None),
        }
    }
}
