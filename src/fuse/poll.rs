//! poll(2): notifying the kernel that an open file has become readable or has changed.

use std::collections::HashMap;

use fuser::{PollEvents, PollNotifier};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::tree::handle::Polled;
use crate::vm::stream::Listener;

/// The open files that a program polls: a task each, which ends with its one notification.
pub(super) struct Polls {
    runtime: Handle,
    watched: Mutex<HashMap<u64, JoinHandle<()>>>,
}

impl Polls {
    pub(super) fn new(runtime: Handle) -> Self {
        Self { runtime, watched: Mutex::default() }
    }

    /// Notifies once, when the bell next rings. The kernel then polls again, and calls this again
    /// if a program waits; so the newest notifier is the only one needed.
    pub(super) fn watch(&self, file: u64, listener: Option<Listener>, notifier: PollNotifier) {
        let Some(mut listener) = listener else { return };
        let task = self.runtime.spawn(async move {
            listener.rung().await;
            // The kernel refuses it when no program waits any more.
            drop(notifier.notify());
        });
        if let Some(old) = self.watched.lock().insert(file, task) {
            old.abort();
        }
    }

    pub(super) fn forget(&self, file: u64) {
        if let Some(task) = self.watched.lock().remove(&file) {
            task.abort();
        }
    }
}

/// Translates readiness into poll(2)'s bits. Changed content is reported as sysfs does.
pub(super) fn events(polled: &Polled) -> PollEvents {
    let bits = [
        (polled.readiness.readable, PollEvents::POLLIN | PollEvents::POLLRDNORM),
        (polled.readiness.writable, PollEvents::POLLOUT | PollEvents::POLLWRNORM),
        (polled.readiness.hung_up, PollEvents::POLLHUP),
        (polled.changed, PollEvents::POLLPRI | PollEvents::POLLERR),
    ];
    bits.into_iter().filter_map(|(holds, bits)| holds.then_some(bits)).collect()
}
