//! Removal of a VM, in two steps: the driver agrees, and takes no request until it hears whether the
//! directory is gone. If it is not, the VM is as it was.
//!
//! Not here: where the directory goes (`registry::trash`).

use tokio::sync::oneshot;

use super::task::Report;
use super::{Driver, off_thread};
use crate::vm::backend::BackendError;
use crate::vm::dropped::{Mark, Remover};
use crate::vm::{Vm, VmError};

/// The agreement of a VM to its removal. Dropping it without [`Self::done`] keeps the VM.
#[derive(Debug)]
pub struct Removal(oneshot::Sender<()>);

impl Removal {
    /// Says that the VM's directory is not its own any more.
    pub fn done(self) {
        // A driver that has ended has nothing to hear.
        let _heard = self.0.send(());
    }
}

/// Where the agreement goes.
pub(super) type RemovalAnswer = oneshot::Sender<Result<Removal, VmError>>;

impl Driver {
    /// Agrees to the removal by a process.
    pub(super) fn retire(&self, by: Remover, answer: RemovalAnswer) {
        let vm = self.vm.clone();
        self.detach(|to| async move {
            // A VM whose removal meets a fault of ours stays.
            let outcome = tokio::spawn(async move { retired(&vm, by, answer).await }).await;
            to.report(Report::Retired { is_gone: outcome.unwrap_or(false) }).await;
        });
    }
}

/// Lifts the marks of whoever removes the VM, and waits for the outcome.
async fn retired(vm: &Vm, by: Remover, answer: RemovalAnswer) -> bool {
    let _disk = vm.0.dropped.disk().lock_owned().await;
    let before = match begin(vm, by).await {
        Ok(before) => before,
        Err(error) => {
            drop(answer.send(Err(error.into())));
            return false;
        }
    };
    let (done, outcome) = oneshot::channel();
    // An answer that nobody hears is dropped, and with it the agreement.
    drop(answer.send(Ok(Removal(done))));
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

const MARKS: &str = "the marks of dropped snapshots";

async fn begin(vm: &Vm, by: Remover) -> Result<Vec<Mark>, BackendError> {
    let vm = vm.clone();
    off_thread(move || vm.0.dropped.begin_removal(by), MARKS).await
}
