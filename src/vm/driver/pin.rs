//! Pinning a VM that is off: nobody starts or removes it while an image is made of its disk.

use tokio::sync::oneshot;

use super::task::Report;
use super::{Driver, dropped};
use crate::vm::VmError;
use crate::vm::backend::Pin;
use crate::vm::state::{Refusal, State};

/// Where the answer goes.
pub(super) type PinAnswer = oneshot::Sender<Result<Pin, VmError>>;

impl Driver {
    /// Pins the VM until the answer is dropped.
    pub(super) fn pin(&self, answer: PinAnswer) {
        let vm = self.vm.clone();
        self.detach(|to| async move {
            if let Err(error) = dropped::drop_now(&vm).await {
                // It is listed again, and is read with the rest.
                vm.note_outcome(Err::<(), _>(error));
            }
            let (hold, released) = oneshot::channel();
            drop(answer.send(Ok(Pin(hold))));
            // It is never sent to: its end is the message.
            drop(released.await);
            to.report(Report::Unpinned).await;
        });
    }

    pub(super) fn check_pin(&self) -> Result<(), Refusal> {
        match self.phase.state() {
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

    /// Says what a VM that is pinned is busy with, and when that is over.
    pub(super) fn explained(&self, refusal: Refusal) -> Refusal {
        let Some(image) = self.phase.pinned_by().map(str::to_owned) else { return refusal };
        match refusal {
            Refusal::Busy { verb, .. } | Refusal::MustStop { verb, .. } => {
                Refusal::Pinned { verb, image }
            }
            Refusal::InUse { .. } => Refusal::Pinned { verb: "rmdir", image },
            other @ (Refusal::Already { .. }
            | Refusal::Off { .. }
            | Refusal::Unreachable { .. }
            | Refusal::Occupied { .. }
            | Refusal::Paused { .. }
            | Refusal::Pinned { .. }
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
}
