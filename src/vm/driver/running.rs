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
use crate::vm::memory::Reservation;
use crate::vm::state::State;

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
    pub(super) clock: GuestClock,
    contact: Contact,
}

/// The connection to the guest. A connection's task makes it, and then waits for its loss.
#[derive(Debug, Default)]
enum Contact {
    /// It was lost while the processors were stopped: it is tried again when they run.
    #[default]
    None,
    Connecting(Task),
    Connected {
        session: Arc<dyn GuestSession>,
        _task: Task,
        access: Access,
    },
}

/// Who may use a connection.
#[derive(Debug)]
enum Access {
    /// Nobody yet: the clock is late, and is set when the processors run.
    Closed,
    SettingClock {
        _task: Task,
    },
    /// Users' commands run over it.
    Open,
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
        match (self.is_paused, self.link()) {
            (true, _) => State::Paused,
            (false, Link::Up(_)) => State::Ready,
            (false, Link::Coming | Link::Off | Link::Asleep(_)) => State::Running,
        }
    }

    pub(super) fn link(&self) -> Link {
        match &self.contact {
            Contact::Connected { session, access: Access::Open, .. } => {
                Link::Up(Arc::clone(session))
            }
            Contact::None | Contact::Connecting(_) | Contact::Connected { .. } => Link::Coming,
        }
    }

    /// Returns the connection to its guest, also where users may not use it yet.
    pub(super) fn session(&self) -> Option<&Arc<dyn GuestSession>> {
        if let Contact::Connected { session, .. } = &self.contact { Some(session) } else { None }
    }

    pub(super) fn is_clone(&self) -> bool {
        self.facts.warm == WARM
    }

    /// Says whether this is the machine that something was asked of.
    pub(super) fn is(&self, machine: &Arc<dyn Machine>) -> bool {
        Arc::ptr_eq(&self.machine, machine)
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
        match self.contact {
            Contact::None if !self.is_paused => self.reconnect(Announcement::Past, step),
            Contact::Connected { .. } if !self.is_paused => self.open(step),
            Contact::None | Contact::Connecting(_) | Contact::Connected { .. } => {}
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
        self.reconnect(Announcement::Past, step);
    }

    // ----- its clock ---------------------------------------------------------------------------

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
        step.then(Effect::Connect(ticket, machine, announcement, since));
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
                Contact::Connected { session, _task: task, access: Access::Closed }
            }
            other @ (Contact::None | Contact::Connected { .. }) => other,
        };
        self.open(step);
    }

    pub(super) fn lost(&mut self) {
        self.contact = Contact::None;
    }

    /// Opens the connection to users once the guest's clock is right.
    fn open(&mut self, step: &mut Step) {
        let (is_late, is_paused) = (self.clock.is_behind(step.now), self.is_paused);
        let Contact::Connected { session, access, .. } = &mut self.contact else { return };
        *access = match (is_late, is_paused) {
            (false, _) => Access::Open,
            (true, true) => Access::Closed,
            (true, false) => {
                let (task, ticket) = Task::new();
                step.then(Effect::SetClock(ticket, Arc::clone(session)));
                Access::SettingClock { _task: task }
            }
        };
    }
}
