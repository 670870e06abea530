//! Requests that wait: the only place that waits for the kernel.
//!
//! A caller that waits must die of a signal at once, and fuser does not pass on the kernel's
//! interrupts. So a thread (`watch`) looks at each caller while any request waits, and answers
//! EINTR for it. Two may answer a request, and the one that takes the reply out of it does: the
//! task when its future is done, or the watch, which needs no other thread for it.
//!
//! For as long as a name operation lasts, the kernel holds the lock of its directory, and a process
//! that looks for a name in there waits beyond SIGKILL. So name operations have a timeout too.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Instant, SystemTime};

use fuser::{Errno, INodeNo, Request};
use futures::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use super::errno;
use super::waiter::Waiter;
use super::watch::Watch;
use crate::tree::number::NodeId;
use crate::tree::{Answer, Tree, TreeError};

pub(super) struct Park {
    runtime: Handle,
    tree: Arc<Tree>,
    parked: Arc<Parked>,
}

/// What waits, shared with the watch. Nobody holds the lock while anything else is done.
#[derive(Default)]
pub(super) struct Parked {
    pub(super) table: Mutex<RequestTable>,
    pub(super) begun: Condvar,
}

#[derive(Default)]
pub(super) struct RequestTable {
    pub(super) waiting: HashMap<u64, Arc<Waiting>>,
    pub(super) watched: bool,
    pub(super) over: bool,
}

/// A request that waits, and the thread that made it.
pub(super) struct Waiting {
    pub(super) waiter: Waiter,
    pub(super) wait: Wait,
    pub(super) since: Instant,
    pub(super) request: Box<dyn GiveUp>,
}

/// What waits with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The caller alone, for as long as it likes.
    Caller,
    /// Every process that looks for a name in the same directory too: it has a timeout.
    Directory,
    /// The caller alone, for a guest's file, as long as its guest may take. Programs do not expect
    /// EINTR there, so a signal that does not kill counts later.
    GuestFile,
}

pub(super) trait GiveUp: Send + Sync {
    /// Answers with an error; says whether the request is answered. One whose task runs at
    /// this moment is not: the task may be taking bytes, which would be lost. It is asked again at
    /// the next look; a task that is in the same step then hangs, and takes no bytes.
    fn give_up(&self, errno: Errno) -> bool;
}

impl Park {
    /// # Errors
    /// There is no room for another thread.
    pub(super) fn new(runtime: Handle, tree: Arc<Tree>) -> io::Result<Self> {
        let parked = Arc::<Parked>::default();
        Watch::new(Arc::clone(&parked), runtime.clone(), Arc::clone(&tree)).begin()?;
        Ok(Self { runtime, tree, parked })
    }

    /// Replies with an answer about a node: at once if it is there, else when it comes, the caller
    /// is interrupted, or the bound of a directory's wait is over. Giving a future up by dropping
    /// it must lose nothing; one that is given up before it began never begins.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        req: &Request,
        (about, wait): (INodeNo, Wait),
        answer: Answer<T>,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let thread = req.pid();
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
        self.park(req, wait, future, translate, reply);
    }

    /// Replies with what a guest answers about a file, whenever it comes.
    pub(super) fn wait_for_file<T: Send + 'static, E: Send + 'static>(
        &self,
        req: &Request,
        future: BoxFuture<'static, Result<T, E>>,
        translate: impl FnOnce(E) -> Errno + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.park(req, Wait::GuestFile, future, translate, reply);
    }

    fn park<T: Send + 'static, E: Send + 'static>(
        &self,
        req: &Request,
        wait: Wait,
        future: BoxFuture<'static, Result<T, E>>,
        translate: impl FnOnce(E) -> Errno + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let (unique, thread) = (req.unique().0, req.pid());
        let progress = Arc::new(Progress::new(reply));
        let request = Box::new(Arc::clone(&progress));
        let waiting = Waiting { waiter: Waiter::new(thread), wait, since: Instant::now(), request };
        let leaving = self.parked.enter(unique, waiting);
        self.runtime.spawn(async move {
            let _leaving = leaving;
            let done = Stepping { future, progress: &progress }.await;
            if let Some((reply, result)) = done {
                reply(result.map_err(translate));
            }
        });
    }
}

impl Drop for Park {
    fn drop(&mut self) {
        self.parked.table.lock().over = true;
        self.parked.begun.notify_one();
    }
}

impl Parked {
    fn enter(self: &Arc<Self>, unique: u64, waiting: Waiting) -> Leaving {
        let mut table = self.table.lock();
        table.waiting.insert(unique, Arc::new(waiting));
        if !std::mem::replace(&mut table.watched, true) {
            self.begun.notify_one();
        }
        Leaving { parked: Arc::clone(self), unique }
    }
}

/// Takes a request off the table when its task ends, however that is: a reply that is not sent
/// by then goes with it, and fuser answers EIO.
struct Leaving {
    parked: Arc<Parked>,
    unique: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let gone = self.parked.table.lock().waiting.remove(&self.unique);
        drop(gone);
    }
}

type Reply<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

struct Progress<T>(Mutex<ReplyState<T>>);

struct ReplyState<T> {
    /// `None`: it is answered.
    reply: Option<Reply<T>>,
    /// Steps that its task has begun.
    steps: u64,
    /// One of them is under way.
    stepping: bool,
    /// The step that was under way when the watch last looked.
    seen: Option<u64>,
    /// Wakes the task, for it to end.
    waker: Option<Waker>,
}

impl<T> Progress<T> {
    fn new(reply: impl FnOnce(Result<T, Errno>) + Send + 'static) -> Self {
        let (steps, stepping, seen, waker) = (0, false, None, None);
        Self(Mutex::new(ReplyState { reply: Some(Box::new(reply)), steps, stepping, seen, waker }))
    }

    /// Begins a step of the task; `false`: the request is answered.
    fn begin(&self, waker: &Waker) -> bool {
        let mut state = self.0.lock();
        state.stepping = state.reply.is_some();
        state.steps += 1;
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        state.stepping
    }

    /// Ends a step; returns the reply to be sent if it was the last.
    fn end(&self, is_last: bool) -> Option<Reply<T>> {
        let mut state = self.0.lock();
        state.stepping = false;
        is_last.then(|| state.reply.take()).flatten()
    }
}

impl<T: 'static> GiveUp for Arc<Progress<T>> {
    fn give_up(&self, errno: Errno) -> bool {
        let mut state = self.0.lock();
        if state.stepping && state.seen != Some(state.steps) {
            state.seen = Some(state.steps);
            return false;
        }
        let (reply, waker) = (state.reply.take(), state.waker.take());
        drop(state);
        if let Some(reply) = reply {
            reply(Err(errno));
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// Drives a future step by step, until it is done or the watch has answered.
struct Stepping<'a, F, T> {
    future: F,
    progress: &'a Progress<T>,
}

impl<F, T, E> Future for Stepping<'_, F, T>
where
    F: Future<Output = Result<T, E>> + Unpin,
{
    type Output = Option<(Reply<T>, Result<T, E>)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.progress.begin(cx.waker()) {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.future).poll(cx);
        let reply = self.progress.end(polled.is_ready());
        polled.map(|result| reply.map(|reply| (reply, result)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;
    use futures::future::{pending, ready};

    use super::*;

    fn progress() -> (Arc<Progress<u8>>, mpsc::Receiver<Result<u8, Errno>>) {
        let (answer, answered) = mpsc::channel();
        (Arc::new(Progress::new(move |result| answer.send(result).unwrap())), answered)
    }

    #[test]
    fn what_is_interrupted_before_it_begins_never_begins() {
        let (progress, answered) = progress();
        assert!(progress.give_up(Errno::EINTR));
        assert_eq!(answered.recv().unwrap(), Err(Errno::EINTR));
        let future = Box::pin(async { panic!("it began") as Result<u8, TreeError> });
        let done = Stepping { future, progress: &progress }.now_or_never();
        assert!(done.expect("it ends").is_none());
    }

    #[test]
    fn a_step_that_takes_bytes_is_let_finish_and_one_that_hangs_is_not_waited_for() {
        let (progress, answered) = progress();
        assert!(progress.begin(Waker::noop()));
        assert!(!progress.give_up(Errno::EINTR), "a step is under way");
        assert!(progress.end(false).is_none() && progress.begin(Waker::noop()));
        assert!(!progress.give_up(Errno::EINTR), "another step is under way");
        assert!(progress.give_up(Errno::EINTR), "the same step is still under way");
        assert_eq!(answered.recv().unwrap(), Err(Errno::EINTR));
        assert!(progress.end(true).is_none(), "only one answer");
    }

    #[test]
    fn what_is_done_is_answered_with_its_result() {
        let (progress, _answered) = progress();
        let waits = Stepping { future: pending::<Result<u8, TreeError>>(), progress: &progress };
        assert!(waits.now_or_never().is_none());
        let done =
            Stepping { future: ready(Ok::<u8, TreeError>(7)), progress: &progress }.now_or_never();
        let (_reply, result) = done.flatten().expect("a result");
        assert_eq!(result.unwrap(), 7);
    }
}
