//! A machine that runs, as its driver knows it: whether its processors are stopped, how late its
//! guest's clock is, and how far the connection to the guest is. Pure.
//!
//! Not here: what the driver does with the machine meanwhile (`phase::Activity`).

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::clock::GuestClock;
use super::connect::Announcement;
use super::effect::{Effect, Step};
use super::task::Task;
use super::warm_start::WARM;
use crate::vm::backend::{AccelKind, GuestSession, Launched, Machine, MachineEvent, RunFacts};
use crate::vm::exec::Link;
use crate::vm::live::InForce;
use crate::vm::memory::Reservation;
use crate::vm::state::State;

/// A machine that runs.
#[derive(Debug)]
pub(super) struct RunningMachine {
    pub(super) machine: Arc<dyn Machine>,
    pub(super) events: mpsc::Receiver<MachineEvent>,
    /// What is known of it, with the settings that were changed since it was started.
    pub(super) facts: RunFacts,
    /// What the host has promised it; dropped with it.
    pub(super) memory: Option<Reservation>,
    /// When the wait for its guest began: its start, or the loss of the last connection.
    waiting_since: Instant,
    /// How long that took.
    pub(super) ready_after: Option<Duration>,
    /// Its processors are stopped, whatever for.
    pub(super) is_paused: bool,
    clock: GuestClock,
    contact: Contact,
}

/// The connection to the guest. A connection's task makes it, and then waits for its loss.
#[derive(Debug, Default)]
enum Contact {
    /// It was lost while the processors were stopped: it is tried again when they run.
    #[default]
    None,
    Connecting(Task),
    /// Nobody may use it yet: the clock is late, and is set when the processors run.
    Connected(Arc<dyn GuestSession>, Task),
    SettingClock {
        session: Arc<dyn GuestSession>,
        task: Task,
        _setting: Task,
    },
    /// Users' commands run over it.
    Open(Arc<dyn GuestSession>, Task),
}

impl RunningMachine {
    /// Takes a machine that was launched or adopted. Nothing connects to its guest yet.
    pub(super) fn new(
        launched: Launched,
        memory: Option<Reservation>,
        since: Instant,
        now: Instant,
    ) -> Self {
        let Launched { machine, events, paused, .. } = launched;
        let mut clock = GuestClock::default();
        if paused {
            clock.stop(now);
        }
        Self {
            facts: machine.facts().clone(),
            machine,
            events,
            memory,
            waiting_since: since,
            ready_after: None,
            is_paused: paused,
            clock,
            contact: Contact::None,
        }
    }

    /// Returns its state while nothing is done with it.
    pub(super) fn state(&self) -> State {
        match (self.is_paused, &self.contact) {
            (true, _) => State::Paused,
            (false, Contact::Open(..)) => State::Ready,
            (
                false,
                Contact::None
                | Contact::Connecting(_)
                | Contact::Connected(..)
                | Contact::SettingClock { .. },
            ) => State::Running,
        }
    }

    pub(super) fn link(&self) -> Link {
        match &self.contact {
            Contact::Open(session, _) => Link::Up(Arc::clone(session)),
            Contact::None
            | Contact::Connecting(_)
            | Contact::Connected(..)
            | Contact::SettingClock { .. } => Link::Coming,
        }
    }

    /// Returns the connection to its guest, also where users may not use it yet.
    pub(super) fn session(&self) -> Option<&Arc<dyn GuestSession>> {
        match &self.contact {
            Contact::None | Contact::Connecting(_) => None,
            Contact::Connected(session, _)
            | Contact::SettingClock { session, .. }
            | Contact::Open(session, _) => Some(session),
        }
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.clock.is_behind(now)
    }

    pub(super) fn is_clone(&self) -> bool {
        self.facts.warm == WARM
    }

    /// Says whether this is the machine that something was asked of.
    pub(super) fn is(&self, machine: &Arc<dyn Machine>) -> bool {
        Arc::ptr_eq(&self.machine, machine)
    }

    pub(super) fn configured(&mut self, in_force: Option<InForce>) {
        if in_force.is_some() {
            self.facts.in_force = in_force;
        }
    }

    // ----- its processors ----------------------------------------------------------------------

    pub(super) fn paused(&mut self, now: Instant) {
        self.is_paused = true;
        self.clock.stop(now);
    }

    pub(super) fn resumed(&mut self, now: Instant) {
        self.is_paused = false;
        self.clock.run(now);
    }

    /// Makes the guest of a machine that runs again usable: its clock may be late, its connection
    /// may be lost.
    pub(super) fn settle(&mut self, step: &mut Step) {
        match (self.is_paused, &self.contact) {
            (true, _) => {}
            (false, Contact::None) => self.reconnect(Announcement::Missed, step),
            (false, Contact::Connecting(_)) => {}
            (false, Contact::Connected(..) | Contact::SettingClock { .. } | Contact::Open(..)) => {
                self.open(step);
            }
        }
    }

    /// The guest boots anew.
    pub(super) fn reset(&mut self, step: &mut Step) {
        self.clock_of_a_boot();
        self.reconnect(Announcement::Awaited, step);
    }

    /// The guest that a snapshot has brought back shows the time of then, and knows nothing of our
    /// connection.
    pub(super) fn restored(&mut self, step: &mut Step) {
        self.clock.is_of_the_past();
        self.reconnect(Announcement::Missed, step);
    }

    // ----- its clock ---------------------------------------------------------------------------

    /// Nobody knows for how long its processors were stopped.
    pub(super) fn clock_of_the_past(&mut self) {
        self.clock.is_of_the_past();
    }

    /// The guest boots, and reads its clock anew. Under TCG on a busy host its kernel measures its time
    /// stamp counter wrongly, and counts seconds that are none until it notices.
    pub(super) fn clock_of_a_boot(&mut self) {
        match self.facts.accel.kind {
            AccelKind::Tcg => self.clock.is_of_the_past(),
            AccelKind::Kvm => self.clock.is_settled(),
        }
    }

    pub(super) fn clock_set(&mut self, step: &mut Step) {
        // One that was paused meanwhile is late again, and is set when it runs.
        if !self.is_paused {
            self.clock.is_settled();
        }
        self.open(step);
    }

    // ----- its guest ---------------------------------------------------------------------------

    /// Starts to connect, in place of the present connection.
    pub(super) fn connect(&mut self, announcement: Announcement, step: &mut Step) {
        let (task, ticket) = Task::new();
        self.contact = Contact::Connecting(task);
        let (machine, since) = (Arc::clone(&self.machine), self.waiting_since);
        step.then(Effect::Connect { ticket, machine, announcement, since });
    }

    pub(super) fn reconnect(&mut self, announcement: Announcement, step: &mut Step) {
        self.waiting_since = step.now;
        self.connect(announcement, step);
    }

    pub(super) fn connected(
        &mut self,
        session: Arc<dyn GuestSession>,
        took: Duration,
        step: &mut Step,
    ) {
        self.contact = match mem::take(&mut self.contact) {
            Contact::Connecting(task) => {
                self.ready_after = Some(took);
                Contact::Connected(session, task)
            }
            other @ (Contact::None
            | Contact::Connected(..)
            | Contact::SettingClock { .. }
            | Contact::Open(..)) => other,
        };
        self.open(step);
    }

    pub(super) fn lost(&mut self) {
        self.contact = Contact::None;
    }

    /// Opens the connection to users once the guest's clock is right.
    fn open(&mut self, step: &mut Step) {
        let (session, task) = match mem::take(&mut self.contact) {
            Contact::Connected(session, task)
            | Contact::SettingClock { session, task, .. }
            | Contact::Open(session, task) => (session, task),
            none @ (Contact::None | Contact::Connecting(_)) => {
                self.contact = none;
                return;
            }
        };
        self.contact = match (self.is_late(step.now), self.is_paused) {
            (false, true | false) => Contact::Open(session, task),
            (true, true) => Contact::Connected(session, task),
            (true, false) => {
                let (setting, ticket) = Task::new();
                step.then(Effect::SetClock(ticket, Arc::clone(&session)));
                Contact::SettingClock { session, task, _setting: setting }
            }
        };
    }
}
