//! Getting a VM's shares into its guest, and keeping them there: for each connection to the guest, however the
//! guest has come to be what it is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{GuestConnections, Inner};
use crate::vm::Vm;
use crate::vm::backend::{BackendError, FilePort, GuestSession};

/// How long a guest that answers is not `ready` because its shares are still being mounted.
const MOUNTED_TIMEOUT: Duration = Duration::from_secs(20);
/// After how long what has failed is tried again: the first time, and at the most.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How often files that the guest reads are looked at: a program of the host can change them without an event.
const LOOK: Duration = Duration::from_secs(1);

/// A guest that has its shares as long as this lives.
#[derive(Debug)]
pub struct Attachment {
    shares: Arc<Inner>,
    task: AbortHandle,
    tried: watch::Receiver<bool>,
}

impl Attachment {
    /// Waits until its shares are mounted or have failed to, but not for long.
    pub async fn mounted(&self) {
        let mut tried = self.tried.clone();
        // A task that has ended has no more to say.
        drop(timeout(MOUNTED_TIMEOUT, tried.wait_for(|tried| *tried)).await);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.task.abort();
        self.shares.state.lock().outcomes.clear();
        self.shares.server.close_files();
    }
}

impl Vm {
    /// Gives the guest of a new connection its shares.
    pub(in crate::vm) fn attach_shares(&self, session: &Arc<dyn GuestSession>) -> Attachment {
        let shares = Arc::clone(&self.0.shares.0);
        let (done, tried) = watch::channel(false);
        let follower = Follower {
            vm: self.clone(),
            shares: Arc::clone(&shares),
            session: Arc::clone(session),
            done,
            pause: RETRY,
        };
        let task = tokio::spawn(follower.run()).abort_handle();
        Attachment { shares, task, tried }
    }
}

struct Follower {
    vm: Vm,
    shares: Arc<Inner>,
    session: Arc<dyn GuestSession>,
    /// The shares were mounted, or have failed to.
    done: watch::Sender<bool>,
    /// After how long the next failure is tried again.
    pause: Duration,
}

impl Follower {
    async fn run(mut self) {
        let mut changes = self.shares.changes.subscribe();
        loop {
            changes.borrow_and_update();
            // A VM that never had any costs nothing.
            if !self.shares.path.exists() {
                self.done.send_replace(true);
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let server = Arc::new(GuestConnections(Arc::clone(&self.shares.server)));
            match self.session.serve_files(server).await {
                Ok(port) => self.serve(&*port, &mut changes).await,
                Err(error) => self.failed(&error),
            }
            self.done.send_replace(true);
            self.wait(&mut changes).await;
        }
    }

    /// Follows the changes until the port is lost, or nothing is wanted any more.
    async fn serve(&mut self, port: &dyn FilePort, changes: &mut watch::Receiver<u64>) {
        loop {
            changes.borrow_and_update();
            let (is_empty, all_well) = match self.mount(port).await {
                Ok(state) => state,
                Err(error) => return self.failed(&error),
            };
            self.done.send_replace(true);
            if is_empty {
                return;
            }
            tokio::select! {
                () = port.closed() => return,
                _ = changes.changed() => {}
                never = self.tell_changes(port) => match never {},
                () = sleep(self.pause), if !all_well => {
                    self.pause = (self.pause * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    /// Has the guest mount what it is to have. Says whether that is nothing, and whether all is well.
    async fn mount(&self, port: &dyn FilePort) -> Result<(bool, bool), BackendError> {
        let shares = Arc::clone(&self.shares);
        let looked = tokio::task::spawn_blocking(move || shares.wanted()).await;
        let mounts = looked.map_err(|e| BackendError::fact("the shares", e.to_string(), 0))?;
        let outcomes = port.mount(&mounts).await?;
        for (mount, outcome) in mounts.iter().zip(outcomes) {
            self.shares.note(&mount.name, outcome);
        }
        let state = self.shares.state.lock();
        let failure = state.outcomes.iter().find_map(|(name, outcome)| {
            let why = outcome.as_ref().err()?;
            Some(format!("the share {name} is not in the guest: {why}"))
        });
        let is_empty = state.stored.shares.is_empty();
        drop(state);
        let all_well = failure.is_none();
        self.report(failure);
        Ok((is_empty, all_well))
    }

    /// Has the guest look at files that it reads when the host has changed them.
    async fn tell_changes(&self, port: &dyn FilePort) -> Infallible {
        loop {
            sleep(LOOK).await;
            let shares = Arc::clone(&self.shares);
            let looked = tokio::task::spawn_blocking(move || shares.changed_files()).await;
            let changed = looked.unwrap_or_default();
            if !changed.is_empty() {
                // A guest that does not answer loses its port, which is noticed elsewhere.
                drop(port.look_again(&changed).await);
            }
        }
    }

    fn failed(&self, error: &BackendError) {
        let names: Vec<String> = self.shares.state.lock().stored.shares.keys().cloned().collect();
        names.iter().for_each(|name| self.shares.note(name, Err(error.to_string())));
        let sentence = names.first().map(|_| format!("the shares are not in the guest: {error}"));
        self.report(sentence);
    }

    /// Tells whoever looks, once.
    fn report(&self, failure: Option<String>) {
        match failure {
            Some(why) if self.vm.failure().as_ref() != Some(&why) => {
                self.vm.note_outcome(Err(why));
            }
            Some(_) | None => self.vm.0.bell.ring(),
        }
    }

    async fn wait(&mut self, changes: &mut watch::Receiver<u64>) {
        let is_empty = self.shares.state.lock().stored.shares.is_empty();
        tokio::select! {
            _ = changes.changed() => self.pause = RETRY,
            () = sleep(self.pause), if !is_empty => {
                self.pause = (self.pause * 2).min(LONGEST_RETRY);
            }
        }
    }
}
