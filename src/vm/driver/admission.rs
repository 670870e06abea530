//! When a request is carried out: now, after a change of settings, or not at all, as the policy
//! (`state::admit`) and the VM's settings and files say. Nothing changes here.

use std::collections::VecDeque;

use super::Driver;
use crate::vm::backend::{BackendError, SnapshotOp};
use crate::vm::memory::Reservation;
use crate::vm::state::{Asked, Command, Refusal, State, admit, policy};
use crate::vm::{Action, Answer, Request, VmError};

const MAX_WAITING: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// A change of settings is under way.
    pub(super) is_changing: bool,
    waiting: VecDeque<Request>,
}

impl Queue {
    pub(super) fn next(&mut self) -> Option<Request> {
        if self.is_changing { None } else { self.waiting.pop_front() }
    }

    fn push(&mut self, request: Request) {
        match self.waiting.len() < MAX_WAITING {
            true => self.waiting.push_back(request),
            false => request.refuse(Refusal::TooMany(MAX_WAITING).into()),
        }
    }
}

impl Driver {
    /// Carries out a request, now or in its turn.
    pub(super) fn on_request(&mut self, request: Request) {
        match self.queue.is_changing && self.must_wait(&request.action) {
            true => self.queue.push(request),
            false => self.carry_out(request),
        }
    }

    /// Ends a change. Who waits for a QEMU that hangs hears that, and does not wait out its own turn.
    pub(super) fn end_change(&mut self, answer: Answer, done: Result<(), VmError>) {
        self.queue.is_changing = false;
        if let Err(error @ VmError::Backend(BackendError::QmpTimeout { .. })) = &done {
            self.queue.waiting.drain(..).for_each(|request| request.refuse(error.clone()));
        }
        drop(answer.send(done));
    }

    /// A refusal is said at once. Of a VM that is off, a change only writes the settings, and must not do
    /// so into the trash.
    fn must_wait(&self, action: &Action) -> bool {
        let waits = match action {
            Action::Command(command) => command.waits(),
            Action::Pin(..) | Action::Capture(..) | Action::Retire(..) => true,
        };
        waits && self.admits(action).is_ok()
    }

    /// Checks a request. A start is given the memory that the host has promised it.
    pub(super) fn check(&self, action: &Action) -> Result<Option<Reservation>, VmError> {
        self.admits(action).map_err(|refusal| self.explained(refusal))?;
        if let Action::Command(Command::Start { .. }) = action {
            return self.check_start().map(Some);
        }
        if let Action::Command(Command::Snapshot(op, _)) = action {
            self.check_snapshot(op)?;
            if let SnapshotOp::Take(_) = op {
                self.vm.0.backends.limits.admit_growth()?;
            }
        }
        if let Action::Command(Command::Suspend) | Action::Capture(..) = action {
            self.check_not_ephemeral()?;
        }
        if matches!(action, Action::Pin(..)) && !self.vm.dir().disk().exists() {
            return Err(Refusal::NoDisk.into());
        }
        Ok(None)
    }

    pub(super) fn admits(&self, action: &Action) -> Result<(), Refusal> {
        let (state, protected) = (self.phase.state(), self.vm.spec().protect);
        match action {
            Action::Command(command) => admit(&state, command, protected),
            Action::Retire(..) => admit(&state, &Command::Remove, protected),
            Action::Pin(..) => policy::PIN.admit(&state),
            Action::Capture(purpose, ..) => policy::capture(*purpose).admit(&state),
        }
    }

    /// A `kill` of a VM that is off gives up what `suspend` has saved, if there is anything.
    pub(super) fn kill_of_suspended(&self, command: &Command) -> Option<Command> {
        let is_off = matches!(self.phase.state(), State::Stopped | State::Failed(_));
        let tag = (is_off && *command == Command::Kill).then(|| self.suspended()).flatten()?;
        Some(SnapshotOp::Drop(tag.to_owned()).into())
    }

    /// Says what a VM that is pinned is busy with, and when that is over.
    pub(super) fn explained(&self, refusal: Refusal) -> Refusal {
        match (refusal, self.phase.pinned_by()) {
            (
                Refusal::Busy(Asked { verb, .. })
                | Refusal::MustStop(Asked { verb, .. })
                | Refusal::InUse(Asked { verb, .. }),
                Some(image),
            ) => Refusal::Pinned { verb, image: image.to_owned() },
            (refusal, _) => refusal,
        }
    }
}

impl Request {
    pub(super) fn refuse(self, error: VmError) {
        drop(self.answer.send(Err(error)));
    }
}
