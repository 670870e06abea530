//! Ending a machine: the power button, SSH, force.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::running::RunningMachine;
use super::task::{Report, Reporter, Ticket};
use super::{Driver, clock, suspended};
use crate::vm::backend::{DiscardOutput, GuestSession, Machine};

/// How long the guest has to react to the power button before it is asked over SSH.
const BUTTON_TIMEOUT: Duration = Duration::from_secs(3);

/// How a guest is asked to shut down.
#[derive(Debug)]
pub(super) struct ShutDown {
    machine: Arc<dyn Machine>,
    session: Option<Arc<dyn GuestSession>>,
    /// It must be resumed to hear it.
    is_paused: bool,
    /// Its clock is behind: what a guest writes last must not be of the past.
    is_late: bool,
    /// How long it has.
    timeout: Duration,
}

impl ShutDown {
    pub(super) fn of(running: &RunningMachine, timeout: Duration, now: Instant) -> Self {
        Self {
            machine: Arc::clone(&running.machine),
            session: running.session().map(Arc::clone),
            is_paused: running.is_paused,
            is_late: running.is_late(now),
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
