//! Verbs that QEMU carries out at once.
//!
//! Not here: verbs that begin a phase of a machine's life, such as `stop` and `suspend`.

use std::sync::Arc;

use super::{Answer, Driver, Report, suspended};
use crate::vm::VmError;
use crate::vm::backend::{BackendError, Machine};
use crate::vm::state::Refusal;

/// What is asked of a machine that runs.
#[derive(Debug)]
pub(super) enum MachineVerb {
    Pause,
    Resume,
    Reset,
    PressKeys(Vec<Vec<String>>),
}

impl MachineVerb {
    fn word(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::PressKeys(_) => "key",
        }
    }

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
    pub(super) fn machine_command(&self, verb: MachineVerb, answer: Answer) {
        let Some(running) = &self.running else {
            let refusal = Refusal::Off { verb: verb.word(), state: self.state().to_string() };
            drop(answer.send(Err(refusal.into())));
            return;
        };
        let (machine, saved) = (Arc::clone(&running.machine), self.suspended());
        self.detached(|to| async move {
            let done = verb.send(&*machine, saved).await;
            to.report(Report::MachineVerb(verb, done, answer)).await;
        });
    }

    pub(super) fn on_machine_verb(
        &mut self,
        verb: &MachineVerb,
        done: Result<(), BackendError>,
        answer: Answer,
    ) {
        if done.is_ok() {
            match verb {
                MachineVerb::Pause => self.on_paused(),
                MachineVerb::Resume => self.on_resumed(),
                MachineVerb::Reset => self.on_reset(),
                MachineVerb::PressKeys(_) => {}
            }
        }
        drop(answer.send(done.map_err(VmError::from)));
    }
}
