//! A command in the guest: its text, its output, and how it ended.
//!
//! A job is self-contained: what runs it (`exec`) is told nothing but where its output goes. No
//! clock, no connection.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::VmError;
use super::backend::{BackendError, Exit, OutputSink, Source};
use super::caller::Caller;
use super::stream::{Bell, Listener};
use crate::store::spool::{Reader, Spool};

/// Longest command in bytes.
pub const MAX_COMMAND: usize = 1 << 20;

/// One command.
pub struct Job {
    writer: Caller,
    state: Mutex<State>,
    spool: Arc<Spool>,
    /// Rings after every change of output or state.
    bell: Arc<Bell>,
    /// Woken when readers may have made room in the spool.
    room: Notify,
    /// Woken when whoever runs it should stop.
    stop: Notify,
}

#[derive(Debug)]
enum State {
    /// The text is being written; `flushed` says that nothing came since the last FLUSH.
    Collecting {
        text: Vec<u8>,
        flushed: bool,
    },
    /// Waiting for the guest.
    Queued,
    Running,
    Done(Exit),
    Lost(VmError),
}

/// How far a job has come, for whoever picks one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It runs, will run, or has ended; or its text is complete as far as can be told.
    Settled,
    /// Its text is still being written.
    Growing,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("writer", &self.writer)
            .field("status", &self.status_line())
            .finish_non_exhaustive()
    }
}

impl Job {
    /// Makes a job whose text is still to come.
    pub fn new(writer: Caller, spool: Arc<Spool>, bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            writer,
            state: Mutex::new(State::Collecting { text: Vec::new(), flushed: false }),
            spool,
            bell,
            room: Notify::new(),
            stop: Notify::new(),
        })
    }

    /// Returns who wrote it.
    pub fn writer(&self) -> &Caller {
        &self.writer
    }

    /// Adds to the text. Says no (`false`) if the text has been taken already.
    ///
    /// # Errors
    /// [`VmError::Nul`] and [`VmError::TooLong`]; the job is then lost, as half a script must not
    /// run.
    pub fn collect(&self, data: &[u8]) -> Result<bool, VmError> {
        let mut state = self.state.lock();
        let State::Collecting { text, flushed } = &mut *state else {
            return Ok(false);
        };
        if let Err(error) = check(text.len(), data) {
            *state = State::Lost(error.clone());
            drop(state);
            self.bell.ring();
            return Err(error);
        }
        text.extend_from_slice(data);
        *flushed = false;
        Ok(true)
    }

    /// Notes that a descriptor of the writer was closed.
    pub fn flush(&self) {
        if let State::Collecting { flushed, .. } = &mut *self.state.lock() {
            *flushed = true;
        }
    }

    /// Takes the text for running it; `None` if somebody has, or if it is lost.
    pub fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        let State::Collecting { text, .. } = &mut *state else {
            return None;
        };
        let text = std::mem::take(text);
        *state = State::Queued;
        Some(text)
    }

    /// Notes that the guest runs it now.
    pub fn running(&self) {
        *self.state.lock() = State::Running;
    }

    /// Notes how it ended. Only the first end counts.
    pub fn finish(&self, end: Result<Exit, VmError>) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Done(_) | State::Lost(_)) {
            *state = match end {
                Ok(exit) => State::Done(exit),
                Err(error) => State::Lost(error),
            };
        }
        drop(state);
        self.bell.ring();
    }

    /// Ends it from our side: it counts as lost, and whoever runs it hangs up.
    pub fn abandon(&self, reason: VmError) {
        self.finish(Err(reason));
        self.stop.notify_one();
    }

    /// Resolves when it has been abandoned; for the one task that runs it.
    pub async fn abandoned(&self) {
        self.stop.notified().await;
    }

    /// Says whether its text is complete.
    pub fn stage(&self) -> Stage {
        match *self.state.lock() {
            State::Collecting { flushed: false, .. } => Stage::Growing,
            _ => Stage::Settled,
        }
    }

    /// Says whether it has ended, well or not.
    pub fn is_over(&self) -> bool {
        matches!(*self.state.lock(), State::Done(_) | State::Lost(_))
    }

    /// Returns `exit 0`, `signal TERM`, `lost: reason`, or `running` for all that comes before.
    pub fn status_line(&self) -> String {
        match &*self.state.lock() {
            State::Collecting { .. } | State::Queued | State::Running => "running".to_owned(),
            State::Done(Exit::Code(code)) => format!("exit {code}"),
            State::Done(Exit::Signal(name)) => format!("signal {name}"),
            State::Lost(VmError::Lost(reason)) => format!("lost: {reason}"),
            State::Lost(error) => format!("lost: {error}"),
        }
    }

    /// Returns a listener for its output and its end.
    pub fn listen(&self) -> Listener {
        self.bell.listen()
    }

    /// Returns a reader of its output, from the start.
    pub fn output(self: &Arc<Self>) -> Output {
        Output { reader: self.spool.reader(), job: Attached(Arc::clone(self)) }
    }

    fn end(&self) -> Option<Result<(), VmError>> {
        match &*self.state.lock() {
            State::Done(_) => Some(Ok(())),
            State::Lost(error) => Some(Err(error.clone())),
            _ => None,
        }
    }
}

fn check(before: usize, data: &[u8]) -> Result<(), VmError> {
    if data.contains(&0) {
        return Err(VmError::Nul);
    }
    if before + data.len() > MAX_COMMAND {
        return Err(VmError::TooLong { what: "a command", limit: MAX_COMMAND });
    }
    Ok(())
}

/// Output goes to the spool; a full one keeps the sender waiting until a reader has caught up.
#[async_trait]
impl OutputSink for Job {
    async fn accept(&self, _: Source, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut room = std::pin::pin!(self.room.notified());
            // Registered before the look, so that room made in between is not missed.
            room.as_mut().enable();
            match self.spool.try_append(bytes) {
                Ok(0) => room.await,
                Ok(taken) => {
                    bytes = &bytes[taken..];
                    self.bell.ring();
                }
                Err(e) => {
                    let error = BackendError::io("keeping a command's output", &e);
                    return self.abandon(error.into());
                }
            }
        }
    }
}

/// One reading of a job's output.
#[derive(Debug)]
pub struct Output {
    // Dropped in this order: the room is announced once the reader has left.
    reader: Reader,
    job: Attached,
}

/// Tells the job when a reading ends.
#[derive(Debug)]
struct Attached(Arc<Job>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.room.notify_waiters();
    }
}

impl Output {
    /// Takes at most `max` bytes: `None` if there are none yet, empty at the job's end, and an
    /// error after the last byte of one that was lost.
    pub fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        // Looked at before the bytes: what comes before the end is there once the end is.
        let end = self.job.0.end();
        match self.reader.read(max) {
            Ok(bytes) if bytes.is_empty() => end.map(|end| end.map(|()| Vec::new())),
            Ok(bytes) => {
                self.job.0.room.notify_waiters();
                Some(Ok(bytes))
            }
            Err(e) => {
                let error = BackendError::io("reading a command's output", &e);
                Some(Err(error.into()))
            }
        }
    }

    /// Says whether [`Self::try_read`] would answer something.
    pub fn readable(&self) -> bool {
        self.job.0.is_over() || self.has_bytes()
    }

    /// Says whether there are bytes to read.
    pub fn has_bytes(&self) -> bool {
        self.reader.pending() > 0
    }

    /// Returns the job.
    pub fn job(&self) -> &Arc<Job> {
        &self.job.0
    }
}
