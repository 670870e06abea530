//! A command in the guest: its text, its options, its output, and how it ended.
//!
//! A job is self-contained: what runs it (`exec`) knows nothing but where its output goes and
//! where its input comes from. No connection.

pub mod input;
pub mod order;
mod output;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use self::input::Input;
use self::order::Order;
pub use self::output::Output;
use super::VmError;
use super::backend::{ExecOptions, Exit, JobControl, JobIo, OutputKind};
use super::caller::Caller;
use super::stream::{Bell, Listener};
use crate::store::spool::Spool;

/// Longest command in bytes.
pub const MAX_COMMAND: usize = 1 << 20;
/// Signals and the like that may wait for the command to start.
const MAX_ORDERS: usize = 64;

/// Why something asked of a job was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum JobError {
    #[error("there is a job {0} already")]
    Exists(String),
    #[error("{0:?} cannot name a job: letters, digits, `.`, `_` and `-`, 64 at the most")]
    BadName(String),
    #[error("no such job")]
    Absent,
    #[error("it has been started: {0} comes before; `mkdir` another job")]
    Started(&'static str),
    #[error("the command does not run: {0}")]
    NotRunning(String),
    #[error("more than {0} lines wait for the command to start")]
    TooMany(usize),
    #[error("the job has no terminal; `pty 80x24` before the start gives it one")]
    NoTerminal,
    #[error("the command's input has ended; open stdin before the command is written")]
    InputEnded,
    #[error("{line:?}: usage: {usage}")]
    Usage { line: String, usage: &'static str },
}

/// A job's number among those of its VM; never given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct JobId(pub u64);

/// Who has made a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A write to `exec`: standard output and standard error are one stream, the input is empty.
    Exec,
    /// `mkdir` in `jobs`: everything apart, and it can be talked to.
    Directory,
}

/// One command.
pub struct Job {
    id: JobId,
    origin: Origin,
    label: Mutex<Label>,
    state: Mutex<State>,
    text: Mutex<Vec<u8>>,
    options: Mutex<ExecOptions>,
    stdout: Arc<Spool>,
    stderr: Arc<Spool>,
    input: Arc<Input>,
    orders: mpsc::Sender<JobControl>,
    pending: tokio::sync::Mutex<mpsc::Receiver<JobControl>>,
    /// Rings after every change of output or state.
    bell: Arc<Bell>,
    /// Woken when readers may have made room in the spool.
    room: Notify,
    /// Woken when whoever runs it should stop.
    stop: Notify,
}

#[derive(Debug)]
struct Label {
    name: String,
    writer: Caller,
    changed: SystemTime,
}

#[derive(Debug)]
enum State {
    /// The text is being written; `flushed` says that nothing came since the last FLUSH.
    Collecting {
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
    /// It runs, will run, or has ended; or its text is complete as far as is known.
    Settled,
    /// Its text is still being written.
    Growing,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("label", &*self.label.lock())
            .field("status", &self.status_line())
            .finish_non_exhaustive()
    }
}

impl Job {
    /// Makes a job of `exec`, whose text is still to come, with one spool for its output.
    pub fn new(
        id: JobId,
        name: String,
        writer: Caller,
        spool: Arc<Spool>,
        bell: Arc<Bell>,
    ) -> Self {
        let (orders, pending) = mpsc::channel(MAX_ORDERS);
        Self {
            id,
            origin: Origin::Exec,
            label: Mutex::new(Label { name, writer, changed: SystemTime::now() }),
            state: Mutex::new(State::Collecting { flushed: false }),
            text: Mutex::default(),
            options: Mutex::default(),
            stdout: Arc::clone(&spool),
            stderr: spool,
            input: Arc::default(),
            orders,
            pending: tokio::sync::Mutex::new(pending),
            bell,
            room: Notify::new(),
            stop: Notify::new(),
        }
    }

    /// Makes a job that is a directory: nobody has written it yet.
    pub fn directory(id: JobId, name: String, stdout: Arc<Spool>, stderr: Arc<Spool>) -> Self {
        let job = Self::new(id, name, Caller::default(), stdout, Arc::default());
        Self { origin: Origin::Directory, stderr, ..job }
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn name(&self) -> String {
        self.label.lock().name.clone()
    }

    /// Gives it another name, which is free.
    pub(super) fn rename(&self, name: &str) {
        name.clone_into(&mut self.label.lock().name);
    }

    pub(crate) fn changed(&self) -> SystemTime {
        self.label.lock().changed
    }

    pub(crate) fn writer(&self) -> Caller {
        self.label.lock().writer.clone()
    }

    /// Notes who writes it.
    pub(super) fn written_by(&self, writer: Caller) {
        self.label.lock().writer = writer;
    }

    pub(crate) fn text(&self) -> Vec<u8> {
        self.text.lock().clone()
    }

    pub(crate) fn input(&self) -> &Arc<Input> {
        &self.input
    }

    pub(crate) fn options(&self) -> ExecOptions {
        self.options.lock().clone()
    }

    /// Adds to the text. Says no (`false`) if the text has been taken already.
    ///
    /// # Errors
    /// [`VmError::Nul`] and [`VmError::TooLong`]; the job is then lost, as half a script must not
    /// run.
    pub fn collect(&self, data: &[u8]) -> Result<bool, VmError> {
        let mut state = self.state.lock();
        let State::Collecting { flushed } = &mut *state else {
            return Ok(false);
        };
        let mut text = self.text.lock();
        if let Err(error) = check(text.len(), data) {
            *state = State::Lost(error.clone());
            drop((state, text));
            self.touch();
            return Err(error);
        }
        text.extend_from_slice(data);
        *flushed = false;
        Ok(true)
    }

    /// Notes that a descriptor of the writer was closed.
    pub fn flush(&self) {
        if let State::Collecting { flushed } = &mut *self.state.lock() {
            *flushed = !self.text.lock().is_empty();
        }
    }

    /// Takes the text for running it; `None` if there is none, if somebody has, or if it is lost.
    pub fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        let text = self.text.lock().clone();
        if text.is_empty() || !matches!(*state, State::Collecting { .. }) {
            return None;
        }
        *state = State::Queued;
        drop(state);
        self.touch();
        Some(text)
    }

    /// Carries out a line of its `ctl`.
    pub fn obey(&self, line: &str) -> Result<(), JobError> {
        match order::parse(line)? {
            Order::Prepare(name, change) => {
                let state = self.state.lock();
                if !matches!(*state, State::Collecting { .. }) || self.origin == Origin::Exec {
                    return Err(JobError::Started(name));
                }
                change.apply(&mut self.options.lock());
                Ok(())
            }
            Order::Control(control) => self.send(control),
        }
    }

    fn send(&self, control: JobControl) -> Result<(), JobError> {
        match *self.state.lock() {
            State::Queued | State::Running if self.origin == Origin::Directory => {}
            State::Queued | State::Running => {
                let why = "a command of exec takes no control lines; `mkdir` a job for that";
                return Err(JobError::NotRunning(why.to_owned()));
            }
            State::Collecting { .. } => return Err(JobError::NotRunning("new".to_owned())),
            State::Done(_) | State::Lost(_) => {
                return Err(JobError::NotRunning("it has ended".to_owned()));
            }
        }
        let resized = matches!(control, JobControl::Resize(_));
        if resized && self.options.lock().terminal.is_none() {
            return Err(JobError::NoTerminal);
        }
        self.orders.try_send(control).map_err(|_| JobError::TooMany(MAX_ORDERS))
    }

    fn touch(&self) {
        self.label.lock().changed = SystemTime::now();
        self.bell.ring();
    }

    /// Notes that the guest runs it now.
    pub fn running(&self) {
        *self.state.lock() = State::Running;
        self.touch();
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
        self.input.close();
        self.touch();
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
            State::Collecting { .. }
            | State::Queued
            | State::Running
            | State::Done(_)
            | State::Lost(_) => Stage::Settled,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(*self.state.lock(), State::Done(_) | State::Lost(_))
    }

    /// Says whether anything of its text has been written.
    pub fn is_written(&self) -> bool {
        self.is_started() || !self.text.lock().is_empty()
    }

    /// Says whether its text has been taken, or is refused.
    pub fn is_started(&self) -> bool {
        !matches!(*self.state.lock(), State::Collecting { .. })
    }

    /// Returns `new`, `running` (also for one that waits for the guest), `exit 0`, `signal TERM` or
    /// `lost: reason`.
    pub fn status_line(&self) -> String {
        match &*self.state.lock() {
            State::Collecting { .. } => "new".to_owned(),
            State::Queued | State::Running => "running".to_owned(),
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

    /// Returns a reader of its output, from the start: of a command of `exec`, all of it.
    pub fn output(self: &Arc<Self>) -> Output {
        Output::new(self.stdout.reader(), Arc::clone(self))
    }

    /// Returns a reader of what it says on standard error alone: `None` where that is not kept
    /// apart.
    pub fn errors(self: &Arc<Self>) -> Option<Output> {
        let apart = self.origin == Origin::Directory;
        apart.then(|| Output::new(self.stderr.reader(), Arc::clone(self)))
    }

    fn spool(&self, source: OutputKind) -> &Arc<Spool> {
        match source {
            OutputKind::Stdout => &self.stdout,
            OutputKind::Stderr => &self.stderr,
        }
    }

    fn end(&self) -> Option<Result<(), VmError>> {
        match &*self.state.lock() {
            State::Done(_) => Some(Ok(())),
            State::Lost(error) => Some(Err(error.clone())),
            State::Collecting { .. } | State::Queued | State::Running => None,
        }
    }
}

/// Says whether `data` may follow so many bytes of a command.
pub(super) fn check(before: usize, data: &[u8]) -> Result<(), VmError> {
    if data.contains(&0) {
        return Err(VmError::Nul);
    }
    if before + data.len() > MAX_COMMAND {
        return Err(VmError::TooLong { what: "a command", limit: MAX_COMMAND });
    }
    Ok(())
}

#[async_trait]
impl JobIo for Job {
    async fn input(&self) -> Option<Vec<u8>> {
        let on_terminal = self.options.lock().terminal.is_some();
        self.input.next(on_terminal).await
    }

    async fn control(&self) -> JobControl {
        match self.pending.lock().await.recv().await {
            Some(control) => control,
            None => std::future::pending().await,
        }
    }
}
