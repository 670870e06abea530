//! What is told of a group's memory: that a limit was met, and that the kernel ended QEMU for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::group::{Group, MEMORY_EVENTS, MemoryEvents};
use crate::qemu::events::EventSink;
use crate::sys;
use crate::vm::backend::MachineEvent;

/// A limit that is met all the time is told so often.
const INTERVAL: Duration = Duration::from_secs(60);

/// Watches a group until it is dropped.
#[derive(Debug)]
pub struct Watch {
    group: Group,
    last: Arc<Mutex<MemoryEvents>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins.
    pub fn begin(group: Group, sink: EventSink) -> Self {
        let last = Arc::new(Mutex::new(group.events()));
        let task = tokio::spawn(follow(group.clone(), sink, Arc::clone(&last)));
        Self { group, last, task }
    }

    /// Says whether the kernel has ended QEMU for want of memory. systemd takes a group away as soon as nobody is in
    /// it, so what was seen last counts too.
    pub fn was_killed(&self) -> bool {
        self.group.events().killed > 0 || self.last.lock().killed > 0
    }
}

async fn follow(group: Group, sink: EventSink, last: Arc<Mutex<MemoryEvents>>) {
    let Some(changes) = changes(&group) else { return };
    let mut told: [Option<Instant>; 2] = [None; 2];
    loop {
        let Ok(mut ready) = changes.readable().await else { return };
        let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
        let mut reader = inotify::Reader::new(changes.get_ref(), &mut buffer);
        while reader.next().is_ok_and(|event| !event.events().contains(ReadFlags::IGNORED)) {}
        ready.clear_ready();
        let now = group.events();
        let before = *last.lock();
        if now == MemoryEvents::default() {
            // The group is gone.
            return;
        }
        *last.lock() = now;
        let met = [("memory_high", now.high > before.high), ("memory_max", now.max > before.max)];
        for ((key, is_met), told) in met.into_iter().zip(&mut told) {
            if is_met && told.is_none_or(|at| at.elapsed() >= INTERVAL) {
                *told = Some(Instant::now());
                sink.push(MachineEvent::LimitReached(key));
            }
        }
    }
}

fn changes(group: &Group) -> Option<AsyncFd<std::os::fd::OwnedFd>> {
    let notify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    inotify::add_watch(&notify, group.0.join(MEMORY_EVENTS), WatchFlags::MODIFY).ok()?;
    sys::readable_fd(notify).ok()
}
