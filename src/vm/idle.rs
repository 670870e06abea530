//! Whether a VM is in use: what keeps one with `config/idle` from being suspended, and what brings it
//! back (`doc/adr/0040-suspended-when-idle.md`).
//!
//! A command, an open console and the like hold an [`InUse`]. What cannot hold one is looked at a few times in an
//! idle time: the machine's processor time, connections to its ports, terminals, open files of the guest.
//!
//! Not here: how a VM is suspended (`driver`).

mod watch;

pub(super) use self::watch::begin;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::exec::Link;
use super::state::{Command, Refusal};
use super::stream::{Bell, Listener, Readiness, Stream};
use super::{Action, Request, VmError};

/// Who uses a VM, and since when nobody does.
#[derive(Debug)]
pub struct Usage {
    inner: Mutex<Inner>,
    /// Rings when a suspension is over.
    bell: Bell,
    /// Where the request to bring the VM back goes.
    requests: Option<mpsc::Sender<Request>>,
}

#[derive(Debug)]
struct Inner {
    users: usize,
    /// When it was used last.
    last: Instant,
    /// It is being suspended because nobody uses it.
    is_suspending: bool,
    /// It was suspended because nobody used it, and its next use brings it back.
    is_asleep: bool,
    /// What suspends it.
    watch: Option<AbortHandle>,
}

/// A use of a VM; dropping this ends it.
#[derive(Debug)]
pub(super) struct InUse(Arc<Usage>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.users -= 1;
        inner.last = Instant::now();
    }
}

impl Usage {
    /// Begins with a VM that nobody uses.
    pub(super) fn new(requests: Option<mpsc::Sender<Request>>) -> Arc<Self> {
        let (last, bell) = (Instant::now(), Bell::default());
        let inner = Inner { users: 0, last, is_suspending: false, is_asleep: false, watch: None };
        Arc::new(Self { inner: Mutex::new(inner), bell, requests })
    }

    /// Notes that it is used at this moment.
    pub(super) fn touch(&self) {
        self.inner.lock().last = Instant::now();
    }

    /// Begins a use. The VM may be on its way to be suspended.
    pub(super) fn hold(self: &Arc<Self>) -> InUse {
        self.inner.lock().users += 1;
        InUse(Arc::clone(self))
    }

    /// Begins a use once the VM is not on its way to be suspended: from then on it is not.
    pub(super) async fn enter(self: &Arc<Self>) -> InUse {
        let (mut listener, held) = (self.bell.listen(), self.hold());
        while self.inner.lock().is_suspending {
            listener.rung().await;
        }
        held
    }

    /// Returns how much of an idle time is left.
    pub(super) fn left(&self, of: Duration) -> Duration {
        let inner = self.inner.lock();
        if inner.users > 0 { of } else { of.saturating_sub(inner.last.elapsed()) }
    }

    /// Says whether the next use of the VM, which is off, brings it back.
    pub(super) fn is_asleep(&self) -> bool {
        self.inner.lock().is_asleep
    }

    pub(super) fn set_asleep(&self, is_asleep: bool) {
        self.inner.lock().is_asleep = is_asleep;
    }

    /// Begins a suspension, unless somebody uses the VM.
    fn begin_suspending(&self) -> Option<Suspending<'_>> {
        let mut inner = self.inner.lock();
        inner.is_suspending = inner.users == 0;
        inner.is_suspending.then_some(Suspending(self))
    }

    /// Has another task watch the VM, or none.
    pub(super) fn watched_by(&self, task: Option<AbortHandle>) {
        let earlier = std::mem::replace(&mut self.inner.lock().watch, task);
        if let Some(earlier) = earlier {
            earlier.abort();
        }
    }

    /// Starts a VM that is asleep. Another use may have begun that already.
    ///
    /// # Errors
    /// Why it is not started.
    async fn wake(&self) -> Result<(), VmError> {
        let Some(requests) = &self.requests else { return Ok(()) };
        let (answer, started) = oneshot::channel();
        let action = Action::Command(Command::Start { paused: false });
        let asked = requests.send(Request { action, answer }).await;
        asked.map_err(|_| VmError::Removed)?;
        match started.await.unwrap_or(Err(VmError::Removed)) {
            Err(VmError::Refused(Refusal::Already(_))) => Ok(()),
            answer => answer,
        }
    }
}

/// A suspension that is under way; dropping this ends it, also if its task is aborted.
#[derive(Debug)]
struct Suspending<'a>(&'a Usage);

impl Drop for Suspending<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        (inner.is_suspending, inner.last) = (false, Instant::now());
        drop(inner);
        self.0.bell.ring();
    }
}

/// Waits until the guest is connected or the VM is off. One that is asleep is brought back, once.
///
/// # Errors
/// Why it is not started.
pub(super) async fn settled(
    link: &mut tokio::sync::watch::Receiver<Link>,
) -> Result<Link, VmError> {
    let mut is_woken = false;
    loop {
        let now = link.wait_for(|link| !matches!(link, Link::Coming)).await;
        let now = now.map_err(|_| VmError::Removed)?.clone();
        match now {
            Link::Asleep(usage) if !is_woken => {
                is_woken = true;
                usage.wake().await?;
            }
            Link::Up(_) | Link::Off | Link::Asleep(_) => return Ok(now),
            Link::Coming => {}
        }
    }
}

/// A stream that is a use of the VM as long as it is open.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) stream: Arc<dyn Stream>,
    pub(super) _use: InUse,
}

impl Stream for Used {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        self.stream.try_read(max)
    }

    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        self.stream.try_write(data)
    }

    fn readiness(&self) -> Readiness {
        self.stream.readiness()
    }

    fn listen(&self) -> Listener {
        self.stream.listen()
    }

    fn flush(&self) {
        self.stream.flush();
    }
}
