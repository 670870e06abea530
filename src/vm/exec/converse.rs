//! `exec 3<>exec`: a private conversation, a command a line.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{Link, Shared, off, run};
use crate::vm::VmError;
use crate::vm::caller::Caller;
use crate::vm::job::{self, Job, JobId, Output};
use crate::vm::stream::{Bell, Listener, Readiness, Stream};

/// Commands of one conversation that may await an answer.
const AHEAD: usize = 64;

/// `exec` opened for both: each line is a command, run in order; each answer ends with one empty
/// read.
#[derive(Debug)]
pub(super) struct Conversation {
    shared: Arc<Shared>,
    caller: Caller,
    talk: Arc<Talk>,
    commands: mpsc::UnboundedSender<(Arc<Job>, Vec<u8>)>,
    runner: tokio::task::AbortHandle,
}

#[derive(Debug, Default)]
struct Talk {
    bell: Arc<Bell>,
    inner: Mutex<Exchange>,
}

#[derive(Debug, Default)]
struct Exchange {
    /// A line without its end.
    line: Vec<u8>,
    /// Oldest first; the front one is being read.
    answers: VecDeque<Output>,
    /// The VM is off.
    over: bool,
}

impl Conversation {
    pub(super) fn new(shared: Arc<Shared>, caller: Caller) -> Self {
        let talk = Arc::<Talk>::default();
        let (commands, queue) = mpsc::unbounded_channel();
        let runner = converse(Arc::clone(&shared), queue, Arc::clone(&talk));
        let runner = shared.runtime.spawn(runner).abort_handle();
        Self { shared, caller, talk, commands, runner }
    }

    /// Takes one line, or what there is of it, and says how much that was.
    fn take_line(&self, exchange: &mut Exchange, data: &[u8]) -> Result<usize, VmError> {
        let end = data.iter().position(|&byte| byte == b'\n');
        let piece = &data[..end.map_or(data.len(), |n| n + 1)];
        if let Err(error) = job::check(exchange.line.len(), piece) {
            exchange.line.clear();
            return Err(error);
        }
        exchange.line.extend_from_slice(piece);
        if end.is_some() {
            let line = std::mem::take(&mut exchange.line);
            exchange.answers.push_back(self.submit(&line)?);
        }
        Ok(piece.len())
    }

    fn submit(&self, line: &[u8]) -> Result<Output, VmError> {
        let (writer, bell) = (self.caller.clone(), Arc::clone(&self.talk.bell));
        // It is private: no number, no name.
        let job = Job::new(JobId::default(), String::new(), writer, self.shared.spool(), bell);
        let job = Arc::new(job);
        job.collect(line)?;
        let output = job.output();
        if let Some(text) = job.take()
            && self.commands.send((Arc::clone(&job), text)).is_err()
        {
            job.finish(Err(off()));
        }
        Ok(output)
    }
}

/// Runs a conversation's commands one after the other, until the VM is off.
async fn converse(
    shared: Arc<Shared>,
    mut queue: mpsc::UnboundedReceiver<(Arc<Job>, Vec<u8>)>,
    talk: Arc<Talk>,
) {
    // Who leaves it open uses the VM.
    let _use = shared.usage.enter().await;
    let mut link = shared.link.clone();
    loop {
        tokio::select! {
            biased;
            command = queue.recv() => match command {
                Some((job, text)) => run(&shared, &job, text).await,
                None => return,
            },
            () = off_by_request(&mut link) => break,
        }
    }
    talk.inner.lock().over = true;
    talk.bell.ring();
}

/// Resolves when the VM is off or removed, and not because nobody used it.
async fn off_by_request(link: &mut watch::Receiver<Link>) {
    drop(link.wait_for(|link| matches!(link, Link::Off)).await);
}

impl Stream for Conversation {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut exchange = self.talk.inner.lock();
        let Some(front) = exchange.answers.front() else {
            return exchange.over.then(|| Ok(Vec::new()));
        };
        let answer = front.try_read(max)?;
        if answer.as_ref().map_or(true, Vec::is_empty) {
            exchange.answers.pop_front();
            self.talk.bell.ring();
        }
        Some(answer)
    }

    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        let mut exchange = self.talk.inner.lock();
        if exchange.over {
            return Some(Err(off()));
        }
        let mut taken = 0;
        while taken < data.len() && exchange.answers.len() < AHEAD {
            match self.take_line(&mut exchange, &data[taken..]) {
                Ok(len) => taken += len,
                // What came before the bad line is accepted; the rest is refused on its own.
                Err(error) if taken == 0 => return Some(Err(error)),
                Err(_) => break,
            }
        }
        (taken > 0 || data.is_empty()).then_some(Ok(taken))
    }

    fn readiness(&self) -> Readiness {
        let exchange = self.talk.inner.lock();
        let front = exchange.answers.front();
        Readiness {
            readable: front.map_or(exchange.over, Output::readable),
            writable: exchange.answers.len() < AHEAD,
            hung_up: exchange.over && front.is_none(),
        }
    }

    fn listen(&self) -> Listener {
        self.talk.bell.listen()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.runner.abort();
    }
}
