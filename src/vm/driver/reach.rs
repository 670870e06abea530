//! The way into the guest: trying until an exec works, and again when the connection is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Driver, Report};
use crate::vm::backend::{GuestAddress, GuestSession};
use crate::vm::exec::Link;
use crate::vm::state::State;

/// The first pause between two attempts; each is twice the last, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A guest that has not answered for long is asked every two seconds, which costs next to nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long to wait for an announcement before trying without one.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the guest has said that it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcement {
    /// It will say so.
    Awaited,
    /// It has just said so.
    Heard,
    /// It said so long ago.
    Missed,
}

impl Driver {
    /// Starts trying to get into the guest.
    pub(super) fn reach(&mut self, announcement: Announcement) {
        let begun = self.begun;
        let Some(running) = &self.running else { return };
        let facts = running.machine.facts();
        let at = GuestAddress {
            port: facts.ssh_port,
            user: self.vm.spec().ssh_user.clone(),
            dir: self.vm.dir().0.clone(),
        };
        let wait = facts.announces && announcement == Announcement::Awaited;
        let (vm, guests) = (self.vm.clone(), Arc::clone(&self.backends.guests));
        self.reaching = Some(self.task(|to| async move {
            if wait {
                tokio::time::sleep(ANNOUNCE_TIMEOUT).await;
            }
            let (mut told, mut pause) = (String::new(), FIRST_PAUSE);
            let session = loop {
                match guests.connect(&at).await {
                    Ok(session) => break session,
                    Err(error) => to.note_once(&mut told, &error).await,
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            };
            let took = begun.elapsed();
            vm.0.view.send_modify(|view| view.ready_after = Some(took));
            to.report(Report::Reached(Arc::clone(&session))).await;
            session.closed().await;
            to.report(Report::Lost).await;
        }));
    }

    pub(super) fn on_reached(&mut self, session: Arc<dyn GuestSession>) {
        self.session = Some(session);
        self.guest_answers();
    }

    pub(super) fn on_lost(&mut self) {
        self.session = None;
        self.reaching = None;
        self.setting_clock = None;
        if self.running.is_none() {
            return;
        }
        self.link.send_replace(Link::Coming);
        match self.state() {
            // A stopped guest cannot answer; `on_resumed` tries again.
            State::Paused => return,
            State::Ready => self.enter(State::Running),
            State::Stopped
            | State::Starting
            | State::Running
            | State::Saving
            | State::Stopping
            | State::Failed(_)
            | State::Unreachable(_)
            | State::Broken(_) => {}
        }
        self.begun = Instant::now();
        self.reach(Announcement::Missed);
    }

    /// Goes back to the state that was left for a while. What a machine does, and whether its guest
    /// answers, may have changed meanwhile.
    pub(super) fn enter_again(&mut self, before: State) {
        let is_late = self.clock.is_behind();
        let answers = self.session.is_some();
        self.enter(match (&self.running, self.halted) {
            (None, _) => before,
            (Some(_), true) => State::Paused,
            (Some(_), false) if answers && !is_late => State::Ready,
            (Some(_), false) => State::Running,
        });
        if answers && is_late && !self.halted {
            self.guest_answers();
        }
    }

    pub(super) fn on_announced(&mut self) {
        if self.session.is_some() {
            return;
        }
        self.reach(Announcement::Heard);
        if self.state() == State::Stopping {
            self.press_power_button();
        }
    }

    pub(super) fn on_reset(&mut self) {
        self.session = None;
        self.setting_clock = None;
        self.clock_of_a_boot();
        self.link.send_replace(Link::Coming);
        if self.state() == State::Ready {
            self.enter(State::Running);
        }
        self.begun = Instant::now();
        self.reach(Announcement::Awaited);
    }

    pub(super) fn on_resumed(&mut self) {
        self.halted = false;
        self.clock.run();
        if self.state() != State::Paused {
            return;
        }
        self.enter_again(State::Running);
        if self.session.is_none() && self.reaching.is_none() {
            self.begun = Instant::now();
            self.reach(Announcement::Missed);
        }
    }
}
