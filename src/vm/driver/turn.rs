//! Requests that wait until a change of settings is over: they would otherwise meet a machine that is
//! being changed. What ends or pauses a machine never waits for it.

use super::{Answer, Driver, Life};
use crate::vm::backend::BackendError;
use crate::vm::state::{Command, Refusal, admit};
use crate::vm::{Request, VmError};

/// How many may wait.
const WAITING: usize = 64;

impl Driver {
    /// Carries out a request, now or in its turn.
    pub(super) fn on_ask(&mut self, ask: Request) -> Life {
        if !self.is_changing || !self.must_wait(&ask) {
            return self.carry_out(ask);
        }
        match self.waiting.len() < WAITING {
            true => self.waiting.push_back(ask),
            false => ask.refuse(Refusal::TooMany { waiting: WAITING }.into()),
        }
        Life::GoesOn
    }

    /// Returns the request whose turn it is.
    pub(super) fn next_in_turn(&mut self) -> Option<Request> {
        (!self.is_changing && self.retiring.is_none()).then(|| self.waiting.pop_front()).flatten()
    }

    /// Ends a change. Who waits for a QEMU that hangs is told so, and does not wait out its own turn.
    pub(super) fn end_change(&mut self, done: Result<(), VmError>, answer: Answer) {
        self.is_changing = false;
        if let Err(error @ VmError::Backend(BackendError::QmpTimeout { .. })) = &done {
            self.waiting.drain(..).for_each(|ask| ask.refuse(error.clone()));
        }
        drop(answer.send(done));
    }

    fn must_wait(&self, ask: &Request) -> bool {
        match ask {
            // A refusal is told at once.
            Request::Command(command, _) => must_wait(command) && self.would_admit(command),
            Request::Configure(..) | Request::Capture(..) | Request::Hold(..) => true,
            Request::DropSnapshot(tag, ..) => self.would_admit(&Command::Drop(tag.clone())),
            // The VM is off: the change only writes the settings, and must not do so into the trash.
            Request::Retire(..) => self.would_admit(&Command::Remove),
        }
    }

    fn would_admit(&self, command: &Command) -> bool {
        admit(&self.state(), command, self.vm.spec().protect).is_ok()
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
    fn refuse(self, error: VmError) {
        match self {
            Self::Command(_, answer)
            | Self::Configure(_, answer)
            | Self::DropSnapshot(_, _, answer) => {
                drop(answer.send(Err(error)));
            }
            Self::Retire(_, answer) => drop(answer.send(Err(error))),
            Self::Capture(_, answer) => drop(answer.send(Err(error))),
            Self::Hold(_, answer) => drop(answer.send(Err(error))),
        }
    }
}
