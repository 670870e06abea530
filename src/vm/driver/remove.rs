//! Removal of a VM, in two steps: the driver agrees, and takes no request until it hears whether the
//! directory is gone. If it is not, the VM is as it was.
//!
//! Not here: where the directory goes (`registry::trash`).

use tokio::sync::oneshot;

use super::dropped::MARKS;
use super::task::Report;
use super::{Answer, Driver, off_thread};
use crate::vm::Vm;
use crate::vm::dropped::Remover;

/// The agreement of a VM to its removal. Dropping it without [`Self::done`] keeps the VM.
#[derive(Debug)]
pub struct Removal(pub(in crate::vm) oneshot::Sender<()>);

impl Removal {
    /// Says that the VM's directory is not its own any more.
    pub fn done(self) {
        // A driver that has ended has nothing to hear.
        let _heard = self.0.send(());
    }
}

impl Driver {
    /// Agrees to the removal by a process.
    pub(super) fn retire(&self, by: Remover, outcome: oneshot::Receiver<()>, answer: Answer) {
        let vm = self.vm.clone();
        self.detach(|_| async move {
            // A VM whose removal meets a fault of ours stays.
            let retired =
                tokio::spawn(async move { retired(&vm, by, outcome, answer).await }).await;
            Report::Retired { is_gone: retired.unwrap_or(false) }
        });
    }
}

/// Lifts the marks of whoever removes the VM, and waits for the outcome.
async fn retired(vm: &Vm, by: Remover, outcome: oneshot::Receiver<()>, answer: Answer) -> bool {
    let _disk = vm.0.dropped.disk().lock_owned().await;
    let owner = vm.clone();
    let begin = move || {
        owner.0.shares.bring_back(by)?;
        owner.0.disks.bring_back(by)?;
        owner.0.dropped.begin_removal(by)
    };
    let before = match off_thread(begin, MARKS).await {
        Ok(before) => before,
        Err(error) => {
            drop(answer.send(Err(error.into())));
            return false;
        }
    };
    // Whoever does not hear the answer drops the agreement.
    drop(answer.send(Ok(())));
    if outcome.await.is_ok() {
        return true;
    }
    let vm = vm.clone();
    let cancelled = move || {
        vm.0.dropped.cancel_removal(before);
        Ok(())
    };
    // It has no error of its own.
    drop(off_thread(cancelled, MARKS).await);
    false
}
