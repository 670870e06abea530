//! Verbs that QEMU carries out at once.
//!
//! Not here: verbs that begin a phase of a machine's life, such as `stop` and `suspend`.

use std::sync::Arc;

use super::task::Report;
use super::{Answer, Driver, suspended};
use crate::vm::backend::{BackendError, Machine};

/// What is asked of a machine that runs.
#[derive(Debug)]
pub(super) enum MachineVerb {
    Pause,
    Resume,
    Reset,
    PressKeys(Vec<Vec<String>>),
}

impl MachineVerb {
    async fn send(
        &self,
        machine: &dyn Machine,
        saved: Option<&'static str>,
    ) -> Result<(), BackendError> {
        match self {
            Self::Pause => machine.pause().await,
            Self::Resume => suspended::resume(machine, saved).await,
            Self::Reset => machine.reset().await,
            Self::PressKeys(chords) => machine.press_keys(chords).await,
        }
    }
}

impl Driver {
    /// Sends a verb to the machine; a QEMU that hangs does not keep `kill` from being heard.
    pub(super) fn send_verb(&self, machine: Arc<dyn Machine>, verb: MachineVerb, answer: Answer) {
        let saved = self.suspended();
        self.detach(|_| async move {
            let done = verb.send(&*machine, saved).await;
            Report::MachineVerb(machine, verb, done, answer)
        });
    }
}
