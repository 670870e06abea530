//! Ending: the power button, SSH, force; and what is left when QEMU has gone.

use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Report, Reporter, clock, paused_by_daemon, suspended};
use crate::vm::backend::{ExitReport, GuestSession, OutputSink, Source};
use crate::vm::exec::Link;
use crate::vm::one_line;
use crate::vm::state::{Refusal, State};

/// How long the guest has to react to the power button before it is asked over SSH.
const BUTTON_TIMEOUT: Duration = Duration::from_secs(3);

impl Driver {
    pub(super) fn stop(&mut self, patience: Duration) {
        if self.call_off_start() {
            return;
        }
        let (session, paused) = (self.session.clone(), self.state() == State::Paused);
        // What a guest writes last must not be of the past.
        let late = session.clone().filter(|_| self.clock.is_behind());
        self.enter(State::Stopping);
        let Some(running) = &self.running else { return };
        let (machine, saved) = (Arc::clone(&running.machine), self.suspended());
        self.stopping = Some(self.task(|to| async move {
            let ask = async {
                if paused {
                    drop(suspended::resume(&*machine, saved).await);
                    if let Some(session) = late {
                        clock::set(&*session).await;
                    }
                }
                if let Err(error) = machine.power_down().await {
                    to.report(Report::Note(error.to_string())).await;
                }
                tokio::time::sleep(BUTTON_TIMEOUT).await;
                ask_over_ssh(session, &to).await;
                std::future::pending::<()>().await;
            };
            let _over: Result<(), _> = tokio::time::timeout(patience, ask).await;
            to.report(Report::StopOverdue).await;
        }));
    }

    /// Ends a start that has not come to QEMU yet, or marks it for its end.
    pub(super) fn call_off_start(&mut self) -> bool {
        let Some(starting) = &mut self.starting else {
            return false;
        };
        if starting.launching {
            self.enter(State::Stopping);
        } else {
            let refusal =
                Refusal::Already { verb: "start", state: "stopped by another request".to_owned() };
            self.preparing = None;
            self.answer_start(Err(refusal.into()));
            self.starting = None;
            self.memory = None;
            self.life += 1;
            self.link.send_replace(Link::Off);
            self.vm.console().detach();
            self.enter(State::Stopped);
        }
        true
    }

    pub(super) fn press_power_button(&self) {
        let Some(running) = &self.running else { return };
        let machine = Arc::clone(&running.machine);
        self.detached(|to| async move {
            if let Err(error) = machine.power_down().await {
                to.report(Report::Note(error.to_string())).await;
            }
        });
    }

    pub(super) fn kill(&mut self) {
        if self.call_off_start() {
            return;
        }
        // A VM that is off may be `saving` too: there is nothing to end then.
        let Some(running) = &self.running else { return };
        let machine = Arc::clone(&running.machine);
        self.enter(State::Stopping);
        self.stopping = Some(self.task(|to| async move {
            to.report(Report::Killed(machine.kill().await)).await;
        }));
    }

    pub(super) fn on_exited(&mut self, report: &ExitReport) {
        self.note(&format!("QEMU ended: {} {}", report.status, report.stderr));
        // Before the life counts as over: whoever waits for a snapshot is told.
        self.abandon_snapshot(report.error());
        paused_by_daemon::end(self.vm.dir());
        self.life += 1;
        self.running = None;
        self.memory = None;
        self.session = None;
        self.reaching = None;
        self.setting_clock = None;
        self.stopping = None;
        self.link.send_replace(Link::Off);
        *self.vm.0.machine.write() = None;
        self.vm.console().detach();
        self.publish(|view| {
            view.facts = None;
            view.ready_after = None;
        });
        let wanted = report.clean || self.state() == State::Stopping;
        if wanted && report.unusable.is_none() {
            return self.enter(State::Stopped);
        }
        let error = report.error();
        self.vm.note_outcome(Err::<(), _>(&error));
        self.enter(State::Failed(one_line(&error.to_string())));
    }
}

/// Asks a guest without a listener for the power button to shut down.
async fn ask_over_ssh(session: Option<Arc<dyn GuestSession>>, to: &Reporter) {
    let Some(session) = session else { return };
    to.report(Report::Note("no answer to the power button; asking over SSH".to_owned())).await;
    drop(session.exec(b"poweroff", b"", &Nowhere).await);
}

/// Takes output that nobody reads.
pub(super) struct Nowhere;

#[async_trait::async_trait]
impl OutputSink for Nowhere {
    async fn accept(&self, _source: Source, _bytes: &[u8]) {}
}
