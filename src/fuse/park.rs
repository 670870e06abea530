//! Requests that wait: the only place that waits for the kernel.
//!
//! A parked process must die of a signal at once, and fuser does not hand on the kernel's
//! interrupts. So, while anything is parked, each caller is looked at every 50 ms: one with a
//! signal that it does not block is answered EINTR, and the kernel lets the signal act. Nothing
//! parked, no timer.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{Errno, INodeNo, Request};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::errno;
use crate::tree::node::NodeId;
use crate::tree::{Answer, Tree, TreeError};

/// How often parked callers are looked at: a signal acts within this and one look.
const LOOK: Duration = Duration::from_millis(50);

/// The parked requests.
#[derive(Debug)]
pub(super) struct Park {
    runtime: Handle,
    tree: Arc<Tree>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    parked: HashMap<u64, Parked>,
    watched: bool,
}

#[derive(Debug)]
struct Parked {
    waiter: Arc<Waiter>,
    interrupt: oneshot::Sender<()>,
}

impl Park {
    pub(super) fn new(runtime: Handle, tree: Arc<Tree>) -> Self {
        Self { runtime, tree, table: Arc::default() }
    }

    /// Replies with an answer about a node: at once if it is there, else when it comes or the caller is
    /// interrupted. Giving a future up by dropping it must lose nothing.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        req: &Request,
        about: INodeNo,
        answer: Answer<T>,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let (unique, thread) = (req.unique().0, req.pid());
        let tree = Arc::clone(&self.tree);
        let translate = move |error: TreeError| {
            let (now, errno) = (SystemTime::now(), errno::of(&error));
            tree.note_failure(now, thread, NodeId(about.0), errno.into(), &error);
            errno
        };
        let future = match answer {
            Answer::Now(result) => return reply(result.map_err(translate)),
            Answer::Later(future) => future,
        };
        let interrupted = self.enter(unique, thread);
        let table = Arc::clone(&self.table);
        self.runtime.spawn(async move {
            let result = tokio::select! {
                biased;
                result = future => result.map_err(translate),
                Ok(()) = interrupted => Err(Errno::EINTR),
            };
            table.lock().parked.remove(&unique);
            reply(result);
        });
    }

    fn enter(&self, unique: u64, thread: u32) -> oneshot::Receiver<()> {
        let (interrupt, interrupted) = oneshot::channel();
        let mut table = self.table.lock();
        table.parked.insert(unique, Parked { waiter: Arc::new(Waiter::new(thread)), interrupt });
        if !std::mem::replace(&mut table.watched, true) {
            self.runtime.spawn(watch(Arc::clone(&self.table)));
        }
        interrupted
    }
}

/// Looks at the callers for as long as there are any.
async fn watch(table: Arc<Mutex<Table>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let waiters = {
            let mut table = table.lock();
            if table.parked.is_empty() {
                table.watched = false;
                return;
            }
            let waiters = table.parked.iter().map(|(unique, p)| (*unique, Arc::clone(&p.waiter)));
            waiters.collect::<Vec<_>>()
        };
        for (unique, _) in waiters.into_iter().filter(|(_, waiter)| waiter.is_signalled()) {
            if let Some(parked) = table.lock().parked.remove(&unique) {
                // A future that is done at this very moment has won.
                let _done = parked.interrupt.send(());
            }
        }
    }
}

/// A thread that waits, and its `/proc/TID/status`, kept open from the first look on: to open it
/// each time would cost as much again.
#[derive(Debug)]
struct Waiter {
    thread: u32,
    status: Mutex<Option<File>>,
}

impl Waiter {
    fn new(thread: u32) -> Self {
        Self { thread, status: Mutex::default() }
    }

    /// Says whether it has a signal pending that it does not block, or is gone. Thread 0 is one in
    /// another pid namespace, which cannot be looked at.
    fn is_signalled(&self) -> bool {
        if self.thread == 0 {
            return false;
        }
        let mut buffer = [0; 4096];
        match self.read_status(&mut buffer) {
            Ok(length) => has_unblocked_signal(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) => {
                matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
            }
        }
    }

    fn read_status(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut status = self.status.lock();
        if status.is_none() {
            *status = Some(File::open(format!("/proc/{}/status", self.thread))?);
        }
        status.as_ref().map_or(Ok(0), |file| file.read_at(buffer, 0))
    }
}

fn has_unblocked_signal(status: &str) -> bool {
    let mask = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signals_do_not_interrupt() {
        let status = |pending: &str, shared: &str, blocked: &str| {
            format!("Name:\tcat\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\n")
        };
        let table = [
            (status("0000000000000000", "0000000000000000", "0000000000000000"), false),
            (status("0000000000000002", "0000000000000000", "0000000000000000"), true),
            (status("0000000000000000", "0000000000000100", "0000000000000000"), true),
            (status("0000000000004000", "0000000000000000", "0000000000004000"), false),
            (String::new(), false),
        ];
        for (status, expected) in table {
            assert_eq!(has_unblocked_signal(&status), expected, "{status}");
        }
    }

    #[test]
    fn a_thread_that_is_gone_is_interrupted_and_an_unknown_one_is_not() {
        let is_signalled = |thread| Waiter::new(thread).is_signalled();
        assert!(is_signalled(u32::MAX));
        assert!(!is_signalled(0));
        assert!(!is_signalled(std::process::id()));
    }

    #[test]
    fn a_thread_that_ends_between_two_looks_is_interrupted() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            ended.recv().ok();
        });
        let waiter = Waiter::new(told.recv().unwrap().cast_unsigned());
        assert!(!waiter.is_signalled());
        drop(end);
        thread.join().unwrap();
        // A thread is joined a moment before the kernel has forgotten it.
        while !waiter.is_signalled() {
            std::thread::yield_now();
        }
    }
}
