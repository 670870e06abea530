//! The web for a guest with `net allow`: a port of its 127.0.0.1 that leads to a proxy on the host, for each
//! connection to the guest, however the guest has come to be what it is.
//!
//! Not here: the proxy itself (`proxy`), and QEMU, which drops everything else (`qemu::cmdline`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Vm;
use super::backend::{BackendError, ByteStream, GuestSession, PortServer};
use super::events::Event;
use super::spec::net::Network;
use super::stream::Listener;
use crate::proxy::{self, Policy, Target};

/// The proxy's port in the guest.
pub(crate) const PORT: u16 = 3128;
/// What programs look for.
const VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
const WITHOUT_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// Connections of one guest at the same time.
const MOST: usize = 256;
/// How long a guest that answers is not `ready` because its proxy is still missing.
const SETTLED_TIMEOUT: Duration = Duration::from_secs(20);
/// After how long what has failed is tried again: the first time, and at the most.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How long the same refusal is not told again, and how many are remembered.
const TOLD: Duration = Duration::from_secs(60);
const MOST_TOLD: usize = 1000;

/// A guest that has its proxy as long as this lives.
#[derive(Debug)]
pub struct WebAttachment {
    task: AbortHandle,
    tried: watch::Receiver<bool>,
}

impl WebAttachment {
    /// Waits until it has its proxy, needs none, or has been refused one, but not for long.
    pub async fn settled(&self) {
        let mut tried = self.tried.clone();
        // A task that has ended has no more to say.
        drop(timeout(SETTLED_TIMEOUT, tried.wait_for(|tried| *tried)).await);
    }
}

impl Drop for WebAttachment {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Vm {
    /// Gives the guest of a new connection its proxy, whenever its settings want that.
    pub(super) fn attach_web(&self, session: &Arc<dyn GuestSession>) -> WebAttachment {
        let (done, tried) = watch::channel(false);
        let (vm, session) = (self.clone(), Arc::clone(session));
        let task = tokio::spawn(Follower { vm, session, done, pause: RETRY }.run()).abort_handle();
        WebAttachment { task, tried }
    }

    fn has_proxy(&self) -> bool {
        self.spec().net == Network::Allow
    }
}

struct Follower {
    vm: Vm,
    session: Arc<dyn GuestSession>,
    /// The proxy is there, is not wanted, or has been refused.
    done: watch::Sender<bool>,
    /// After how long the next failure is tried again.
    pause: Duration,
}

impl Follower {
    async fn run(mut self) {
        let mut changes = self.vm.listen();
        loop {
            changes.forget_past();
            if !self.vm.has_proxy() {
                self.session.set_environment(Vec::new());
                self.done.send_replace(true);
                changes.rung().await;
                continue;
            }
            self.session.set_environment(variables());
            let proxy = Arc::new(GuestProxy::of(self.vm.clone()));
            match self.session.serve_web(proxy).await {
                Ok(port) => {
                    self.pause = RETRY;
                    self.done.send_replace(true);
                    tokio::select! {
                        () = port.closed() => {}
                        () = self.unwanted(&mut changes) => {}
                    }
                }
                Err(error) => self.failed(&error).await,
            }
        }
    }

    async fn unwanted(&self, changes: &mut Listener) {
        while self.vm.has_proxy() {
            changes.rung().await;
        }
    }

    async fn failed(&mut self, error: &BackendError) {
        let why = format!("the guest has no proxy, and so reaches nothing: {error}");
        if self.vm.failure().as_ref() != Some(&why) {
            self.vm.note_outcome(Err(why));
        }
        self.done.send_replace(true);
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_RETRY);
    }
}

/// Returns the variables by which a command finds the proxy.
fn variables() -> Vec<(String, String)> {
    let proxy = VARIABLES.map(|name| (name.to_owned(), format!("http://127.0.0.1:{PORT}")));
    let without = WITHOUT_PROXY.map(|name| (name.to_owned(), "localhost,127.0.0.1,::1".to_owned()));
    proxy.into_iter().chain(without).collect()
}

/// What comes from the port of one guest.
#[derive(Debug)]
struct GuestProxy {
    policy: Arc<AllowList>,
    permits: Arc<Semaphore>,
}

impl GuestProxy {
    fn of(vm: Vm) -> Self {
        let policy = AllowList { vm, told: Mutex::default() };
        Self { policy: Arc::new(policy), permits: Arc::new(Semaphore::new(MOST)) }
    }
}

impl PortServer for GuestProxy {
    fn accept(self: Arc<Self>, stream: Box<dyn ByteStream>, _from_port: u32) {
        // One too many is closed at once.
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return };
        let policy = Arc::clone(&self.policy);
        tokio::spawn(async move {
            proxy::serve(stream, policy).await;
            drop(permit);
        });
    }
}

/// `config/allow`, as it is at each request.
#[derive(Debug)]
struct AllowList {
    vm: Vm,
    /// What was refused, and when that was told.
    told: Mutex<HashMap<String, Instant>>,
}

impl Policy for AllowList {
    fn permits(&self, target: &Target) -> bool {
        let spec = self.vm.spec();
        let holds = spec.allow.iter().any(|allowed| allowed.holds(&target.host, target.port));
        spec.net == Network::Allow && holds
    }

    fn refused(&self, target: &Target) {
        let (mut told, now, target) = (self.told.lock(), Instant::now(), target.to_string());
        told.retain(|_, at| now.duration_since(*at) < TOLD);
        if told.len() < MOST_TOLD && !told.contains_key(&target) {
            self.vm.emit(&Event::Refused(target.clone()));
            told.insert(target, now);
        }
    }
}
