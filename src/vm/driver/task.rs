//! Background tasks of a driver, and what they report when they are done.
//!
//! Not here: what is done about it, which is in `phase`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{AbortHandle, AbortRegistration, Abortable};
use tokio::sync::mpsc;

use super::verb::MachineVerb;
use super::{Answer, Driver};
use crate::vm::VmError;
use crate::vm::backend::{
    Adoption, BackendError, GuestSession, LaunchPlan, Launched, Machine, SilentMachine,
};
use crate::vm::live::InForce;

pub(super) type Done = Result<(), BackendError>;

/// What the driver's own tasks report.
#[derive(Debug)]
pub(super) enum Report {
    /// The image is there and the plan is made.
    Planned(Result<Box<LaunchPlan>, BackendError>),
    Launched(Result<Launched, BackendError>),
    /// The write of a verb has waited long enough: its work continues.
    AnswerOverdue,
    /// What an earlier daemon has left of a machine.
    Found(Adoption),
    /// A machine that does not answer is surely the VM's, or is not; who asked for its end waits.
    Silent(Result<Arc<dyn SilentMachine>, BackendError>, Answer),
    /// It has ended, or has not.
    SilentEnded(Done),
    /// An exec in the guest has worked, after so long.
    Connected(Arc<dyn GuestSession>, Duration),
    /// The guest's clock is set, as far as it can be.
    ClockSet,
    Lost,
    Note(String),
    ButtonPressed(Done),
    /// A verb that QEMU carries out at once is done, or was refused.
    MachineVerb(Arc<dyn Machine>, MachineVerb, Done, Answer),
    Configured(Box<Configured>),
    SnapshotDone(Done),
    Unpinned,
    /// The copy of the machine's memory and disk is done.
    CaptureEnded(Arc<dyn Machine>),
    StopOverdue,
    /// `kill` is over; the machine's `Exited` event says the rest.
    Killed(Done),
    /// The VM's directory is gone, or stays.
    Retired {
        is_gone: bool,
    },
}

/// What a change of settings has done.
#[derive(Debug)]
pub(super) struct Configured {
    /// The machine that it changed, if there was one.
    pub(super) machine: Option<Arc<dyn Machine>>,
    /// What that has now.
    pub(super) in_force: Option<InForce>,
    pub(super) done: Result<(), VmError>,
    pub(super) answer: Answer,
}

/// A background task. Dropping this ends it, and what it has reported by then is not heard any more.
#[derive(Debug)]
pub(super) struct Task(AbortHandle);

/// What the work of a [`Task`] runs under.
#[derive(Debug)]
pub(super) struct Ticket(AbortRegistration);

impl Task {
    pub(super) fn new() -> (Self, Ticket) {
        let (handle, registration) = AbortHandle::new_pair();
        (Self(handle), Ticket(registration))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
pub(super) struct Sent {
    /// Its task, if that can be dropped.
    task: Option<AbortHandle>,
    report: Report,
}

impl Sent {
    /// Returns the report, unless its task was dropped meanwhile.
    pub(super) fn heard(self) -> Option<Report> {
        let is_dropped = self.task.is_some_and(|task| task.is_aborted());
        (!is_dropped).then_some(self.report)
    }
}

/// The way from a background task to its driver.
#[derive(Clone)]
pub(super) struct Reporter {
    task: Option<AbortHandle>,
    to: mpsc::Sender<Sent>,
}

impl Reporter {
    pub(super) async fn report(&self, report: Report) {
        // A driver that is gone wants no reports.
        drop(self.to.send(Sent { task: self.task.clone(), report }).await);
    }

    /// Notes an error unless it is the one that was noted last.
    pub(super) async fn note_once(&self, last: &mut String, error: &BackendError) {
        let text = error.to_string();
        if *last != text {
            self.report(Report::Note(text.clone())).await;
            *last = text;
        }
    }
}

impl Driver {
    /// Starts the work of a task. What it returns is its last report.
    pub(super) fn spawn<F>(&self, ticket: Ticket, work: impl FnOnce(Reporter) -> F)
    where
        F: Future<Output = Report> + Send + 'static,
    {
        let Ticket(registration) = ticket;
        let to = Reporter { task: Some(registration.handle()), to: self.reporter.clone() };
        drop(tokio::spawn(Abortable::new(reported(work(to.clone()), to), registration)));
    }

    /// Starts work that nothing ends early: somebody waits for its answer.
    pub(super) fn detach<F>(&self, work: impl FnOnce(Reporter) -> F)
    where
        F: Future<Output = Report> + Send + 'static,
    {
        let to = Reporter { task: None, to: self.reporter.clone() };
        drop(tokio::spawn(reported(work(to.clone()), to)));
    }
}

async fn reported(work: impl Future<Output = Report>, to: Reporter) {
    to.report(work.await).await;
}
