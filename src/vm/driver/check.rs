//! Whether a request can be carried out now: the policy (`state::admit`), and what the VM's settings
//! and files allow. Nothing changes here.

use super::{Driver, VmError};
use crate::vm::Request;
use crate::vm::backend::SnapshotOp;
use crate::vm::memory::Reservation;
use crate::vm::state::{Command, Refusal, State, admit};

impl Driver {
    /// Checks a request. A start is given the memory that the host has promised it.
    pub(super) fn check(&self, request: &Request) -> Result<Option<Reservation>, VmError> {
        match request {
            Request::Command(Command::Start { .. }, _) => {
                self.check_policy(&Command::Start { paused: false })?;
                return self.check_start().map(Some);
            }
            Request::Command(command, _) => self.check_command(command)?,
            Request::DropSnapshot(tag, ..) => self.check_command(&Command::Drop(tag.clone()))?,
            Request::Retire(..) => self.check_policy(&Command::Remove)?,
            Request::Pin(..) => self.check_pin().map_err(|refusal| self.explained(refusal))?,
            Request::Capture(..) => self.check_capture()?,
            Request::Configure(..) => {}
        }
        Ok(None)
    }

    fn check_command(&self, command: &Command) -> Result<(), Refusal> {
        self.check_policy(command)?;
        match command {
            Command::Take(tag) => self.check_snapshot(&SnapshotOp::Take(tag.clone())),
            Command::Restore(tag) => self.check_snapshot(&SnapshotOp::Restore(tag.clone())),
            Command::Drop(tag) => self.check_snapshot(&SnapshotOp::Drop(tag.clone())),
            Command::RenameSnapshot { from, to } => {
                let (from, to) = (from.clone(), to.clone());
                self.check_snapshot(&SnapshotOp::Rename { from, to })
            }
            Command::Suspend => self.check_not_ephemeral(),
            Command::Start { .. }
            | Command::Stop { .. }
            | Command::Kill
            | Command::Pause
            | Command::Resume
            | Command::Reset
            | Command::PressKeys { .. }
            | Command::Resize { .. }
            | Command::AddPort(_)
            | Command::RemovePort(_)
            | Command::Remove => Ok(()),
        }
    }

    fn check_policy(&self, command: &Command) -> Result<(), Refusal> {
        self.admits(command).map_err(|refusal| self.explained(refusal))
    }

    /// Asks the policy alone.
    pub(super) fn admits(&self, command: &Command) -> Result<(), Refusal> {
        admit(&self.phase.state(), command, self.vm.spec().protect)
    }

    /// A `kill` of a VM that is off gives up what `suspend` has saved, if there is anything.
    pub(super) fn kill_of_suspended(&self, command: &Command) -> Option<Command> {
        let is_off = matches!(self.phase.state(), State::Stopped | State::Failed(_));
        let tag = (is_off && *command == Command::Kill).then(|| self.suspended()).flatten()?;
        Some(Command::Drop(tag.to_owned()))
    }
}
