//! The thread that frees callers with a pending signal. It needs neither the runtime nor the
//! threads that serve requests: if those hang, every caller can be killed all the same.
//!
//! It sleeps while no request waits. While one does, it looks at every caller each [`LOOK`], and
//! checks whether the runtime's workers run; while they do not, name operations are answered
//! ETIMEDOUT. Another thread writes to the log, which may lie on a disk
//! that hangs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Builder};
use std::time::{Duration, SystemTime};

use fuser::Errno;
use tokio::runtime::Handle;

use super::park::{Parked, Wait, Waiting};
use crate::tree::Tree;

/// How often waiting callers are looked at: a signal acts within this and one look.
const LOOK: Duration = Duration::from_millis(50);
/// How long a name operation may take: longer than any program that one may wait for. It continues
/// after its answer.
const NAME_OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request to a guest's file is ended only by a signal that kills.
const UNINTERRUPTED: Duration = Duration::from_secs(5);
/// Looks between two heartbeats of the runtime.
const BEAT: u32 = 20;
/// Looks without an answer to a heartbeat, 5 s of them, after which the runtime is reported to
/// hang. Looks are counted instead of time: a daemon that was stopped has not looked.
const STALLED: u32 = 100;

pub(super) struct Watch {
    parked: Arc<Parked>,
    heart: Heart,
    tree: Arc<Tree>,
}

impl Watch {
    pub(super) fn new(parked: Arc<Parked>, runtime: Handle, tree: Arc<Tree>) -> Self {
        Self { parked, heart: Heart::new(runtime), tree }
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// There is no room for another thread.
    pub(super) fn begin(mut self) -> io::Result<()> {
        Builder::new().name("aq-watch".to_owned()).spawn(move || self.run()).map(drop)
    }

    fn run(&mut self) {
        while self.wait_for_work() {
            thread::sleep(LOOK);
            for waiting in self.waiting() {
                if let Some(errno) = verdict(&waiting, self.heart.stalled) {
                    waiting.request.give_up(errno);
                }
            }
            match self.heart.look() {
                Some(RuntimeChange::Stalled) => self.report(
                    "the daemon's worker threads have not run for 5 s: name operations fail with \
                     ETIMEDOUT, and reads wait; `aq umount` and `aq mount` start another daemon, \
                     VMs run on",
                ),
                Some(RuntimeChange::Recovered) => {
                    self.report("the daemon's worker threads run again");
                }
                None => {}
            }
        }
    }

    /// Sleeps until a request waits; `false`: the mount is gone.
    fn wait_for_work(&mut self) -> bool {
        let mut table = self.parked.table.lock();
        if table.waiting.is_empty() {
            table.watched = false;
            self.heart.rest();
            while !table.watched && !table.over {
                self.parked.begun.wait(&mut table);
            }
        }
        !table.over
    }

    fn waiting(&self) -> Vec<Arc<Waiting>> {
        self.parked.table.lock().waiting.values().cloned().collect()
    }

    /// Reports on the runtime, from a thread of its own: the log may lie on a disk that hangs.
    fn report(&self, text: &'static str) {
        let tree = Arc::clone(&self.tree);
        let report = move || {
            tree.note_fault(SystemTime::now(), libc::ETIMEDOUT, text);
            tracing::error!("{text}");
        };
        // Without room for a thread there is no room for a report.
        drop(Builder::new().name("aq-report".to_owned()).spawn(report));
    }
}

/// Says with what error a request is given up now.
fn verdict(waiting: &Waiting, stalled: bool) -> Option<Errno> {
    let (wait, waited) = (waiting.wait, waiting.since.elapsed());
    let bounded = wait == Wait::Directory;
    match () {
        () if wait == Wait::GuestFile && waited < UNINTERRUPTED => {
            waiting.waiter.is_killed().then_some(Errno::EINTR)
        }
        () if waiting.waiter.is_signalled() => Some(Errno::EINTR),
        () if bounded && (stalled || waiting.since.elapsed() > NAME_OPERATION_TIMEOUT) => {
            Some(Errno::ETIMEDOUT)
        }
        () => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuntimeChange {
    Stalled,
    Recovered,
}

/// Sees whether the runtime's workers run: they carry out a task that does nothing.
struct Heart {
    runtime: Handle,
    /// The last beat that was carried out.
    beaten: Arc<AtomicU64>,
    /// The last beat that was asked for.
    asked: u64,
    looks: u32,
    stalled: bool,
}

impl Heart {
    fn new(runtime: Handle) -> Self {
        Self { runtime, beaten: Arc::default(), asked: 0, looks: 0, stalled: false }
    }

    /// Nothing waits: counting starts again with the next request.
    fn rest(&mut self) {
        self.looks = 0;
    }

    fn look(&mut self) -> Option<RuntimeChange> {
        self.looks += 1;
        let beats = self.beaten.load(Ordering::Relaxed) == self.asked;
        if beats && self.looks >= BEAT {
            self.ask();
        }
        match (beats, self.stalled) {
            (false, false) if self.looks >= STALLED => {
                self.stalled = true;
                Some(RuntimeChange::Stalled)
            }
            (true, true) => {
                self.stalled = false;
                Some(RuntimeChange::Recovered)
            }
            (true, false) | (false, _) => None,
        }
    }

    fn ask(&mut self) {
        (self.asked, self.looks) = (self.asked + 1, 0);
        let (beaten, beat) = (Arc::clone(&self.beaten), self.asked);
        self.runtime.spawn(async move { beaten.store(beat, Ordering::Relaxed) });
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_runtime_that_does_not_run_is_reported_once_and_so_is_its_recovery() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let mut heart = Heart::new(runtime.handle().clone());
        let changes = |heart: &mut Heart, looks: u32| {
            (0..looks).filter_map(|_| heart.look()).collect::<Vec<_>>()
        };
        // Nobody drives it yet.
        assert_eq!(changes(&mut heart, BEAT + STALLED - 1), []);
        assert_eq!(changes(&mut heart, 3 * STALLED), [RuntimeChange::Stalled]);
        runtime.block_on(async { tokio::task::yield_now().await });
        assert_eq!(changes(&mut heart, 1), [RuntimeChange::Recovered]);
        assert_eq!(changes(&mut heart, BEAT), []);
    }
}
