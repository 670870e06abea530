//! What is asked of a machine that runs: verbs that QEMU carries out at once, and its end by the power
//! button, over SSH, or by force.
//!
//! Not here: verbs that begin work of their own, such as `suspend`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::running::RunningMachine;
use super::task::{Report, Reporter, Ticket};
use super::{Answer, Driver, clock, suspended};
use crate::vm::backend::{BackendError, DiscardOutput, GuestSession, Machine};

/// How long the guest has to react to the power button before it is asked over SSH.
const BUTTON_TIMEOUT: Duration = Duration::from_secs(3);

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

/// How a guest is asked to shut down.
#[derive(Debug)]
pub(super) struct ShutDown {
    machine: Arc<dyn Machine>,
    session: Option<Arc<dyn GuestSession>>,
    /// It must be resumed to hear it.
    is_paused: bool,
    /// Its clock is behind: what a guest writes last must not be of the past.
    is_late: bool,
    timeout: Duration,
}

impl ShutDown {
    pub(super) fn of(running: &RunningMachine, timeout: Duration, now: Instant) -> Self {
        Self {
            machine: Arc::clone(&running.machine),
            session: running.session().map(Arc::clone),
            is_paused: running.is_paused,
            is_late: running.clock.is_behind(now),
            timeout,
        }
    }

    async fn ask(&self, saved: Option<&'static str>, to: &Reporter) {
        if self.is_paused {
            drop(suspended::resume(&*self.machine, saved).await);
            if let (true, Some(session)) = (self.is_late, &self.session) {
                clock::set(&**session).await;
            }
        }
        to.report(Report::ButtonPressed(self.machine.power_down().await)).await;
        tokio::time::sleep(BUTTON_TIMEOUT).await;
        self.ask_over_ssh(to).await;
    }

    /// Asks a guest without a listener for the power button.
    async fn ask_over_ssh(&self, to: &Reporter) {
        let Some(session) = &self.session else { return };
        to.report(Report::Note("no answer to the power button; asking over SSH".to_owned())).await;
        drop(session.exec(b"poweroff", b"", &DiscardOutput).await);
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

    pub(super) fn shut_down(&self, ticket: Ticket, how: ShutDown) {
        let saved = self.suspended();
        self.spawn(ticket, |to| async move {
            let asked = async {
                how.ask(saved, &to).await;
                // The end of the machine ends this task.
                std::future::pending::<()>().await;
            };
            let _late: Result<(), _> = tokio::time::timeout(how.timeout, asked).await;
            Report::StopOverdue
        });
    }

    pub(super) fn press_power_button(&self, machine: Arc<dyn Machine>) {
        self.detach(|_| async move { Report::ButtonPressed(machine.power_down().await) });
    }

    pub(super) fn kill(&self, ticket: Ticket, machine: Arc<dyn Machine>) {
        self.spawn(ticket, |_| async move { Report::Killed(machine.kill().await) });
    }
}
