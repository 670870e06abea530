//! Requests that wait until a change of settings is over: they would otherwise meet a machine that is
//! being changed. What ends or pauses a machine never waits for it.

use std::collections::VecDeque;

use super::{Answer, Driver};
use crate::vm::backend::BackendError;
use crate::vm::state::{Command, Refusal};
use crate::vm::{Request, VmError};

/// How many may wait.
const MAX_WAITING: usize = 64;

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// A change of settings is under way.
    pub(super) is_changing: bool,
    waiting: VecDeque<Request>,
}

impl Queue {
    /// Returns the request whose turn it is.
    pub(super) fn next(&mut self) -> Option<Request> {
        if self.is_changing { None } else { self.waiting.pop_front() }
    }

    fn push(&mut self, request: Request) {
        match self.waiting.len() < MAX_WAITING {
            true => self.waiting.push_back(request),
            false => request.refuse(Refusal::TooMany { waiting: MAX_WAITING }.into()),
        }
    }
}

impl Driver {
    /// Carries out a request, now or in its turn.
    pub(super) fn on_request(&mut self, request: Request) {
        match self.queue.is_changing && self.must_wait(&request) {
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

    fn must_wait(&self, request: &Request) -> bool {
        match request {
            // A refusal is said at once.
            Request::Command(command, _) => must_wait(command) && self.admits(command).is_ok(),
            Request::Configure(..) | Request::Capture(..) | Request::Pin(..) => true,
            Request::DropSnapshot(tag, ..) => self.admits(&Command::Drop(tag.clone())).is_ok(),
            // The VM is off: the change only writes the settings, and must not do so into the trash.
            Request::Retire(..) => self.admits(&Command::Remove).is_ok(),
        }
    }
}

fn must_wait(command: &Command) -> bool {
    match command {
        Command::Stop { .. }
        | Command::Kill
        | Command::Pause
        | Command::Resume
        | Command::Reset
        | Command::PressKeys { .. } => false,
        Command::Start { .. }
        | Command::Resize { .. }
        | Command::AddPort(_)
        | Command::RemovePort(_)
        | Command::Suspend
        | Command::Take(_)
        | Command::Restore(_)
        | Command::Drop(_)
        | Command::RenameSnapshot { .. }
        | Command::Remove => true,
    }
}

impl Request {
    pub(super) fn refuse(self, error: VmError) {
        match self {
            Self::Command(_, answer)
            | Self::Configure(_, answer)
            | Self::DropSnapshot(_, _, answer) => {
                drop(answer.send(Err(error)));
            }
            Self::Retire(_, answer) => drop(answer.send(Err(error))),
            Self::Capture(_, answer) => drop(answer.send(Err(error))),
            Self::Pin(_, answer) => drop(answer.send(Err(error))),
        }
    }
}
