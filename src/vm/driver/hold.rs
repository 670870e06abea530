//! Holding a VM that is off: nobody starts or removes it while its disk is read.

use tokio::sync::oneshot;

use super::{Driver, Report, dropped};
use crate::vm::VmError;
use crate::vm::backend::Hold;
use crate::vm::state::{Refusal, State};

/// Where the answer goes.
type HoldAnswer = oneshot::Sender<Result<Hold, VmError>>;

impl Driver {
    /// Holds the VM, which is `saving` for so long.
    pub(super) fn hold(&mut self, image: String, answer: HoldAnswer) {
        if let Err(refusal) = self.check_hold() {
            return drop(answer.send(Err(self.explained(refusal).into())));
        }
        let (before, vm) = (self.state(), self.vm.clone());
        self.pinned_by = Some(image);
        self.enter(State::Saving);
        self.detached(|to| async move {
            if let Err(error) = dropped::drop_now(&vm).await {
                // It is listed again, and is read with the rest.
                vm.note_outcome(Err::<(), _>(error));
            }
            let (hold, released) = oneshot::channel();
            drop(answer.send(Ok(Hold(hold))));
            // It is never sent to: its end is the message.
            drop(released.await);
            to.report(Report::Released(before)).await;
        });
    }

    fn check_hold(&self) -> Result<(), Refusal> {
        match self.state() {
            State::Stopped | State::Failed(_) if self.vm.dir().disk().exists() => Ok(()),
            State::Stopped | State::Failed(_) => Err(Refusal::NoDisk),
            State::Unreachable(reason) => Err(Refusal::Occupied { verb: "source", reason }),
            State::Broken(reason) => Err(Refusal::Broken { verb: "source", reason }),
            other @ (State::Starting
            | State::Running
            | State::Ready
            | State::Paused
            | State::Saving
            | State::Stopping) => Err(Refusal::MustStop { verb: "source", state: other.word() }),
        }
    }

    /// Says what a VM that is held is busy with, and when that is over.
    pub(super) fn explained(&self, refusal: Refusal) -> Refusal {
        let Some(image) = self.pinned_by.clone() else { return refusal };
        match refusal {
            Refusal::Busy { verb, .. } | Refusal::MustStop { verb, .. } => {
                Refusal::Held { verb, image }
            }
            Refusal::InUse { .. } => Refusal::Held { verb: "rmdir", image },
            other @ (Refusal::Already { .. }
            | Refusal::Off { .. }
            | Refusal::Unreachable { .. }
            | Refusal::Occupied { .. }
            | Refusal::Paused { .. }
            | Refusal::Held { .. }
            | Refusal::TooMany { .. }
            | Refusal::NotReady { .. }
            | Refusal::Protected
            | Refusal::NoSnapshot { .. }
            | Refusal::SnapshotExists { .. }
            | Refusal::NoMemory { .. }
            | Refusal::NumberOfAnother { .. }
            | Refusal::NoDisk
            | Refusal::HasDisk { .. }
            | Refusal::Ephemeral
            | Refusal::SuspendedEphemeral
            | Refusal::Broken { .. }) => other,
        }
    }

    pub(super) fn on_released(&mut self, before: State) {
        self.pinned_by = None;
        if self.running.is_none() && self.starting.is_none() {
            self.enter(before);
        }
    }
}
