//! What a step of the state machine has the driver do.
//!
//! Not here: which steps have which effects (`phase`); how they are done (the modules that are named
//! in [`Driver::perform`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::capture::Capture;
use super::connect::Announcement;
use super::task::{Report, Ticket};
use super::verb::{MachineVerb, ShutDown};
use super::{Answer, Driver, dropped, paused_by_daemon};
use crate::vm::VmError;
use crate::vm::backend::{GuestSession, LaunchPlan, Machine, SilentMachine, SnapshotOp};
use crate::vm::dropped::Remover;
use crate::vm::events::Event;
use crate::vm::live::InForce;
use crate::vm::spec::Edit;

/// One step of the state machine: when it happens, and the effects that it collects.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) now: Instant,
    /// What comes before the new state is published: it explains the state.
    pub(super) first: Vec<Effect>,
    /// What comes after it: who hears an answer finds the new state.
    pub(super) then: Vec<Effect>,
}

impl Step {
    pub(super) fn at(now: Instant) -> Self {
        Self { now, first: Vec::new(), then: Vec::new() }
    }

    pub(super) fn first(&mut self, effect: Effect) {
        self.first.push(effect);
    }

    pub(super) fn then(&mut self, effect: Effect) {
        self.then.push(effect);
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.first(Effect::Note(text.into()));
    }

    pub(super) fn answer(&mut self, answer: Answer, result: Result<(), impl Into<VmError>>) {
        self.then(Effect::Answer(answer, result.map_err(Into::into)));
    }

    /// Answers who waits, for as long as somebody does.
    pub(super) fn answer_if_awaited(&mut self, answer: &mut Option<Answer>) {
        if let Some(answer) = answer.take() {
            self.answer(answer, Ok::<_, VmError>(()));
        }
    }

    /// Answers who waits; when nobody does, `error` shows a failure.
    pub(super) fn end(&mut self, answer: Option<Answer>, result: Result<(), impl Into<VmError>>) {
        match (answer, result) {
            (Some(answer), result) => self.answer(answer, result),
            (None, Err(error)) => self.then(Effect::Failed(error.into())),
            (None, Ok(())) => {}
        }
    }
}

/// Something that the driver does. What takes long is a task, which reports back.
#[derive(Debug)]
pub(super) enum Effect {
    // ----- words -----
    /// A line for the VM's log.
    Note(String),
    Emit(Event),
    /// A sentence for `error`.
    Failed(VmError),
    Answer(Answer, Result<(), VmError>),
    /// Ends a change of settings, and answers who asked for it.
    EndChange(Answer, Result<(), VmError>),

    // ----- at once -----
    /// Connects the console and `qmp` to a machine.
    Attach(Arc<dyn Machine>),
    /// The machine is gone, or does not come.
    Detach,
    /// Corrects what the host has promised the machine.
    ReserveForRunning,
    /// The guest is not paused by the daemon any more.
    EndPause,
    /// Lists a snapshot that is not in the disk: it is being taken, or could not be for this reason.
    List(String, Option<String>),
    /// It is in the disk now.
    Unlist(String),
    /// Drops the snapshots that are marked as dropped, after a while.
    DropMarkedLater,
    /// Lists the snapshots that are marked as dropped again.
    LiftMarks,

    // ----- tasks -----
    /// Reports after a while.
    Remind(Ticket, Duration, Report),
    /// Makes everything ready that comes before QEMU; the processors stay stopped, if so.
    Plan(Ticket, bool),
    Launch(Box<LaunchPlan>),
    /// Looks again and again for a machine that runs and does not answer.
    Search(Ticket),
    /// Finds the process of a machine that does not answer.
    FindSilent(Answer),
    EndSilent(Ticket, Arc<dyn SilentMachine>),
    /// Connects to the guest, which is waited for since then.
    Connect(Ticket, Arc<dyn Machine>, Announcement, Instant),
    SetClock(Ticket, Arc<dyn GuestSession>),
    SendVerb(Arc<dyn Machine>, MachineVerb, Answer),
    PressPowerButton(Arc<dyn Machine>),
    ShutDown(Ticket, ShutDown),
    Kill(Ticket, Arc<dyn Machine>),
    /// Works on a snapshot, in the machine or, without one, in the disk.
    Snapshot(Ticket, Option<Arc<dyn Machine>>, SnapshotOp, Remover),
    /// Saves everything; whether the processors were stopped already.
    Suspend(Ticket, Arc<dyn Machine>, bool),
    Capture(Capture),
    Pin(oneshot::Receiver<()>, Answer),
    /// Changes settings, and the machine where it can follow.
    Configure(Edit, Option<Arc<dyn Machine>>, Option<InForce>, Answer),
    Retire(Remover, oneshot::Receiver<()>, Answer),
}

impl Driver {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Note(text) => self.vm.note(&text),
            Effect::Emit(event) => self.vm.emit(&event),
            Effect::Failed(error) => self.vm.note_outcome(Err(error)),
            Effect::Answer(answer, result) => drop(answer.send(result)),
            Effect::EndChange(answer, done) => self.end_change(answer, done),
            Effect::Attach(machine) => self.attach(Some(machine)),
            Effect::Detach => self.attach(None),
            Effect::ReserveForRunning => self.reserve_for_running(),
            Effect::EndPause => paused_by_daemon::end(self.vm.dir()),
            Effect::List(tag, failure) => drop(self.vm.0.pending.lock().insert(tag, failure)),
            Effect::Unlist(tag) => drop(self.vm.0.pending.lock().remove(&tag)),
            Effect::DropMarkedLater => dropped::drop_later(&self.vm),
            Effect::LiftMarks => dropped::lift_all(&self.vm),
            Effect::Remind(ticket, after, report) => self.remind(ticket, after, report),
            Effect::Plan(ticket, paused) => self.plan(ticket, paused),
            Effect::Launch(plan) => self.launch(*plan),
            Effect::Search(ticket) => self.search(ticket),
            Effect::FindSilent(answer) => self.find_silent(answer),
            Effect::EndSilent(ticket, machine) => self.end_silent(ticket, machine),
            Effect::Connect(ticket, machine, announcement, since) => {
                self.connect(ticket, &machine, announcement, since);
            }
            Effect::SetClock(ticket, session) => self.set_clock(ticket, session),
            Effect::SendVerb(machine, verb, answer) => self.send_verb(machine, verb, answer),
            Effect::PressPowerButton(machine) => self.press_power_button(machine),
            Effect::ShutDown(ticket, how) => self.shut_down(ticket, how),
            Effect::Kill(ticket, machine) => self.kill(ticket, machine),
            Effect::Snapshot(ticket, machine, op, by) => self.snapshot(ticket, machine, op, by),
            Effect::Suspend(ticket, machine, paused) => self.suspend(ticket, machine, paused),
            Effect::Capture(asked) => self.capture(asked),
            Effect::Pin(end, answer) => self.pin(end, answer),
            Effect::Configure(edit, machine, in_force, answer) => {
                self.configure(edit, machine, in_force, answer);
            }
            Effect::Retire(by, outcome, answer) => self.retire(by, outcome, answer),
        }
    }

    fn attach(&self, machine: Option<Arc<dyn Machine>>) {
        let is_there = machine.is_some();
        match &machine {
            Some(machine) => self.vm.follow_disks(machine),
            None => self.vm.disks().detached(),
        }
        *self.vm.0.machine.write() = machine;
        self.vm.0.backends.nets.runs(self.vm.uuid(), is_there);
        match is_there {
            true => self.vm.console().attach(),
            false => self.vm.console().detach(),
        }
    }

    fn remind(&self, ticket: Ticket, after: Duration, report: Report) {
        self.spawn(ticket, |_| async move {
            tokio::time::sleep(after).await;
            report
        });
    }
}
