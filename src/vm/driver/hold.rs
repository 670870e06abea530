//! Holding a VM that is off: nobody starts or removes it while its disk is read.

use tokio::sync::oneshot;

use super::{Driver, Report};
use crate::vm::VmError;
use crate::vm::backend::Hold;
use crate::vm::state::{Refusal, State};

impl Driver {
    /// Holds the VM, which is `saving` for so long.
    pub(super) fn hold(&mut self) -> Result<Hold, VmError> {
        self.check_hold()?;
        let before = self.state();
        self.enter(State::Saving);
        let (hold, released) = oneshot::channel();
        self.detached(|to| async move {
            // It is never sent to: its end is the message.
            drop(released.await);
            to.report(Report::Released(before)).await;
        });
        Ok(Hold(hold))
    }

    fn check_hold(&self) -> Result<(), Refusal> {
        match self.state() {
            State::Stopped | State::Failed(_) if self.vm.dir().disk().exists() => Ok(()),
            State::Stopped | State::Failed(_) => Err(Refusal::NoDisk),
            State::Broken(reason) => Err(Refusal::Broken { verb: "source", reason }),
            other => Err(Refusal::MustStop { verb: "source", state: other.word() }),
        }
    }

    pub(super) fn on_released(&mut self, before: State) {
        if self.running.is_none() && self.starting.is_none() {
            self.enter(before);
        }
    }
}
