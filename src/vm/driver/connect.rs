//! Connecting to the guest: trying until an exec works, then waiting for the loss of the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use super::task::{Report, Ticket};
use crate::vm::backend::{GuestAddress, Machine};

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
    /// It has said so, just now or long ago.
    Past,
}

impl Driver {
    /// Starts trying to connect to the guest. `since` is when the wait for it began.
    pub(super) fn connect(
        &self,
        ticket: Ticket,
        machine: &Arc<dyn Machine>,
        announcement: Announcement,
        since: Instant,
    ) {
        let facts = machine.facts();
        let (vm, port) = (self.vm.clone(), facts.ssh_port);
        let machine = Arc::clone(machine);
        let must_wait = facts.announces && announcement == Announcement::Awaited;
        let guests = Arc::clone(&self.vm.0.backends.guests);
        self.spawn(ticket, |to| async move {
            if must_wait {
                tokio::time::sleep(ANNOUNCE_TIMEOUT).await;
            }
            let (mut noted, mut pause) = (String::new(), FIRST_PAUSE);
            let session = loop {
                // Where one user is refused, another may have been set since the last attempt.
                let (user, dir) = (vm.spec().ssh_user.clone(), vm.dir().0.clone());
                match guests.connect(&GuestAddress { port, user, dir }).await {
                    Ok(session) => break session,
                    Err(error) => to.note_once(&mut noted, &error).await,
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            };
            // A guest that is ready has its shares and its proxy, and is on its nets, unless that takes
            // too long.
            let shares = vm.attach_shares(&session);
            let web = vm.attach_web(&session);
            let nets = vm.attach_nets(&session, &machine);
            tokio::join!(shares.mounted(), web.settled(), nets.settled());
            vm.0.backends.file_changes.tell(vm.id());
            to.report(Report::Connected(Arc::clone(&session), since.elapsed())).await;
            session.closed().await;
            drop((shares, web, nets));
            Report::Lost
        });
    }
}
