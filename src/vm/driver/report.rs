//! Background tasks of a driver, and what they tell it when they are done.
//!
//! Not here: what is done about it, which is in the module of its phase.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::verb::MachineVerb;
use super::{Answer, Driver};
use crate::vm::VmError;
use crate::vm::backend::{
    Adoption, BackendError, GuestSession, LaunchPlan, Launched, SilentMachine,
};
use crate::vm::live::InForce;
use crate::vm::state::State;

/// What the driver's own tasks tell it.
#[derive(Debug)]
pub(super) enum Report {
    /// The image is there and the plan is made.
    Planned(Result<Box<LaunchPlan>, BackendError>),
    /// The launch is over.
    Launched(Result<Launched, BackendError>),
    /// The write of `start` has waited long enough.
    StartOverdue,
    /// A machine that could not be adopted can be, or has ended.
    Found(Adoption),
    /// A machine that does not answer is surely the VM's, or is not; who asked for its end waits.
    Silent(Result<Arc<dyn SilentMachine>, BackendError>, Answer),
    /// It has ended, or has not; and why it could not be adopted.
    SilentEnded(Result<(), BackendError>, String),
    /// An exec in the guest has worked.
    Reached(Arc<dyn GuestSession>),
    /// The guest's clock is set, as far as it can be.
    ClockSet,
    /// The connection to the guest is gone.
    Lost,
    /// Words for the log.
    Note(String),
    /// A verb that QEMU carries out at once is done, or was refused.
    MachineVerb(MachineVerb, Result<(), BackendError>, Answer),
    /// A change of settings is over, and this is what the machine has.
    Configured(Box<Option<InForce>>, Result<(), VmError>, Answer),
    /// What was done with a snapshot is done.
    Snapshot(Result<(), BackendError>),
    /// The request for it has waited long enough.
    SnapshotOverdue,
    /// Who has held the VM lets it go, back to this state.
    Released(State),
    /// Who has frozen the guest lets its disk go, and the VM back to this state.
    CaptureEnded(State),
    /// The patience of a stop is over.
    StopOverdue,
    /// `kill` is over; the machine's `Exited` event tells the rest.
    Killed(Result<(), BackendError>),
}

/// A background task that ends with its handle.
#[derive(Debug)]
pub(super) struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The way from a background task to its driver.
pub(super) struct Reporter {
    life: u64,
    to: mpsc::Sender<(u64, Report)>,
}

impl Reporter {
    pub(super) async fn report(&self, report: Report) {
        // A driver that is gone wants no reports.
        drop(self.to.send((self.life, report)).await);
    }

    /// Notes an error unless it is the one that was noted last.
    pub(super) async fn note_once(&self, told: &mut String, error: &BackendError) {
        let text = error.to_string();
        if *told != text {
            self.report(Report::Note(text.clone())).await;
            *told = text;
        }
    }
}

impl Driver {
    /// Starts a background task that reports to this life of the machine.
    pub(super) fn task<F>(&self, work: impl FnOnce(Reporter) -> F) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let reporter = Reporter { life: self.life, to: self.reporter.clone() };
        Task(tokio::spawn(work(reporter)))
    }

    /// Starts a background task that nothing calls off.
    pub(super) fn detached<F>(&self, work: impl FnOnce(Reporter) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let reporter = Reporter { life: self.life, to: self.reporter.clone() };
        drop(tokio::spawn(work(reporter)));
    }

    /// Hears of an earlier life of the machine, which is gone; who asked still waits.
    pub(super) fn on_late_report(&mut self, report: Report) {
        match report {
            Report::MachineVerb(_, done, answer) => {
                drop(answer.send(done.map_err(VmError::from)));
            }
            Report::Configured(_, done, answer) => self.end_change(done, answer),
            Report::Planned(_)
            | Report::Launched(_)
            | Report::StartOverdue
            | Report::Found(_)
            | Report::Silent(..)
            | Report::SilentEnded(..)
            | Report::Reached(_)
            | Report::ClockSet
            | Report::Lost
            | Report::Note(_)
            | Report::Snapshot(_)
            | Report::SnapshotOverdue
            | Report::Released(_)
            | Report::CaptureEnded(_)
            | Report::StopOverdue
            | Report::Killed(_) => {}
        }
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Planned(planned) => self.on_planned(planned),
            Report::Launched(Ok(launched)) => self.on_launched(launched),
            Report::Launched(Err(error)) => self.on_launch_failed(error),
            Report::StartOverdue => self.answer_start(Ok(())),
            Report::Found(found) => self.on_found(found),
            Report::Silent(found, answer) => self.on_silent(found, answer),
            Report::SilentEnded(ended, reason) => self.on_silent_ended(ended, reason),
            Report::Reached(session) => self.on_reached(session),
            Report::ClockSet => self.on_clock_set(),
            Report::Lost => self.on_lost(),
            Report::Note(text) => self.note(&text),
            Report::MachineVerb(verb, done, answer) => self.on_machine_verb(&verb, done, answer),
            Report::Configured(in_force, done, answer) => {
                self.on_configured(*in_force);
                self.end_change(done, answer);
            }
            Report::Snapshot(done) => self.on_snapshot(done),
            Report::SnapshotOverdue => self.on_snapshot_overdue(),
            Report::Released(before) => self.on_released(before),
            Report::CaptureEnded(before) => self.on_capture_ended(before),
            Report::StopOverdue => {
                self.note("the guest has not shut down in time");
                self.kill();
            }
            Report::Killed(Ok(())) => {}
            Report::Killed(Err(error)) => {
                self.vm.note_outcome(Err::<(), _>(error));
            }
        }
    }
}
