//! Requests that wait: the only place that waits for the kernel.
//!
//! A parked process must die of a signal at once, and fuser does not hand on the kernel's
//! interrupts. So, while anything is parked, each caller is looked at every 50 ms: one with a
//! signal that it does not block is answered EINTR, and the kernel lets the signal act. Nothing
//! parked, no timer.

use std::collections::HashMap;
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
    /// The thread that waits.
    thread: u32,
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
        table.parked.insert(unique, Parked { thread, interrupt });
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
        let threads = {
            let mut table = table.lock();
            if table.parked.is_empty() {
                table.watched = false;
                return;
            }
            table.parked.iter().map(|(unique, p)| (*unique, p.thread)).collect::<Vec<_>>()
        };
        let signalled = threads.into_iter().filter(|(_, thread)| is_signalled(*thread));
        for (unique, _) in signalled.collect::<Vec<_>>() {
            if let Some(parked) = table.lock().parked.remove(&unique) {
                // A future that is done at this very moment has won.
                let _done = parked.interrupt.send(());
            }
        }
    }
}

/// Says whether a thread has a signal pending that it does not block, or is gone. Thread 0 is one
/// in another pid namespace, which cannot be looked at.
fn is_signalled(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => has_unblocked_signal(&status),
        Err(_) => true,
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
        assert!(is_signalled(u32::MAX));
        assert!(!is_signalled(0));
        assert!(!is_signalled(std::process::id()));
    }
}
