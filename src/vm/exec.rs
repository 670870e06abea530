//! The `exec` file: which text becomes a command, when it starts, and who gets its output.
//!
//! `echo CMD > exec` collects a text ([`Draft`]); it starts when the file is released, or when a
//! relative of the writer opens `exec` to read after the text was flushed: a release comes some
//! time after close(2) and so may be overtaken by the reader's open, while a flush comes before
//! close(2) returns, but also in the middle of `{ echo a; ls; echo b; } > exec`.
//!
//! `jobs/NAME/cmd` is the same for a job that has a directory; its other files are in [`files`],
//! names and the choice of "the caller's last job" in [`roster`].
//!
//! No SSH here: a command is handed to whatever [`GuestSession`] the VM's driver has published.

mod converse;
mod files;
mod roster;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use self::converse::Conversation;
use self::roster::Roster;
use super::VmError;
use super::backend::{BackendError, Exit, GuestSession};
use super::caller::Caller;
use super::idle::{self, Usage};
use super::job::{Job, Origin, Output, Stage};
use super::state::{Asked, Refusal};
use super::stream::{Listener, Nothing, Readiness, Stream, StreamAccess};
use crate::store::spool::Spool;

/// How long a command waits for a guest that is coming up. A cold boot under translation takes
/// half of it on a slow host.
pub const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long output may still arrive after the VM went off: what the sockets hold, no more.
const GRACE: Duration = Duration::from_secs(2);
/// Longest text given to the shell as an argument: dropbear refuses more than 9000 bytes.
const MAX_ARGUMENT: usize = 8 << 10;

/// The way into the guest at this moment, published by the VM's driver.
#[derive(Clone, Debug)]
pub enum Link {
    /// The VM is off.
    Off,
    /// It is starting or runs without having answered yet.
    Coming,
    /// Commands can be run.
    Up(Arc<dyn GuestSession>),
    /// The VM is off because nobody used it; its next use brings it back.
    Asleep(Arc<Usage>),
}

impl Link {
    /// Says whether both are the same way.
    pub(super) fn is(&self, other: &Self) -> bool {
        if let (Self::Up(session), Self::Up(other)) = (self, other) {
            return Arc::ptr_eq(session, other);
        }
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// The `exec` file of one VM.
#[derive(Debug)]
pub struct Exec(Arc<Shared>);

struct Shared {
    spool_dir: PathBuf,
    link: watch::Receiver<Link>,
    usage: Arc<Usage>,
    runtime: Handle,
    jobs: Roster,
    /// Called when a command has ended, before anybody hears of that.
    ended: Ended,
}

/// What is to be done when a command has ended.
pub type Ended = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

impl Exec {
    /// Makes one for a VM. Output that outgrows memory lies in nameless files in `spool_dir`.
    pub fn new(
        spool_dir: PathBuf,
        link: watch::Receiver<Link>,
        usage: Arc<Usage>,
        runtime: Handle,
        ended: Ended,
    ) -> Self {
        Self(Arc::new(Shared { spool_dir, link, usage, runtime, jobs: Roster::default(), ended }))
    }

    /// Opens the file.
    ///
    /// # Errors
    /// [`Refusal::Off`] when the VM is off, except for reading what an earlier command left.
    pub fn open(&self, caller: Caller, access: StreamAccess) -> Result<Arc<dyn Stream>, VmError> {
        match access {
            StreamAccess::Write => {
                self.0.admit()?;
                let (shared, text) = (Arc::clone(&self.0), Mutex::new(Text::Empty));
                Ok(Arc::new(Draft { shared, writer: caller, text }))
            }
            StreamAccess::Converse => {
                self.0.admit()?;
                Ok(Arc::new(Conversation::new(Arc::clone(&self.0), caller)))
            }
            StreamAccess::Read => self.0.read(&caller),
            StreamAccess::Peek => {
                let job = self.0.jobs.last(&caller, |job| job.origin() == Origin::Exec);
                Ok(Playback::of(job.map(|job| job.output()), true))
            }
        }
    }

    /// Returns the session with the guest, if it answers now.
    pub(super) fn session(&self) -> Option<Arc<dyn GuestSession>> {
        match &*self.0.link.borrow() {
            Link::Up(session) => Some(Arc::clone(session)),
            Link::Off | Link::Coming | Link::Asleep(_) => None,
        }
    }

    /// Returns the caller's last job: of its closest relative's jobs the newest.
    pub fn last_job(&self, caller: &Caller) -> Option<Arc<Job>> {
        self.0.jobs.last(caller, Job::is_written)
    }
}

impl Shared {
    fn admit(&self) -> Result<(), VmError> {
        match *self.link.borrow() {
            Link::Off => Err(off()),
            Link::Coming | Link::Up(_) | Link::Asleep(_) => Ok(()),
        }
    }

    fn read(self: &Arc<Self>, reader: &Caller) -> Result<Arc<dyn Stream>, VmError> {
        let job = self.jobs.last(reader, |job| job.origin() == Origin::Exec);
        match &job {
            Some(job) if stage_for(reader, job) == Stage::Settled => self.start(job),
            Some(_) => {}
            None => self.admit()?,
        }
        Ok(Playback::of(job.map(|job| job.output()), false))
    }

    fn spool(&self) -> Arc<Spool> {
        Spool::new(self.spool_dir.clone())
    }

    fn enlist(&self, writer: &Caller) -> Arc<Job> {
        self.jobs.add(|id, name| Job::new(id, name, writer.clone(), self.spool(), Arc::default()))
    }

    /// Runs a job whose text is complete; does nothing if it runs already.
    fn start(self: &Arc<Self>, job: &Arc<Job>) {
        if let Some(text) = job.take() {
            let (shared, job) = (Arc::clone(self), Arc::clone(job));
            self.runtime.spawn(async move {
                run(&shared, &job, text).await;
                shared.jobs.forget_old();
            });
        }
    }
}

fn off() -> VmError {
    Refusal::Off(Asked { verb: "exec", state: "off".to_owned() }).into()
}

/// Nobody waits for a text that it would have to finish itself.
fn stage_for(reader: &Caller, job: &Job) -> Stage {
    if reader.kinship(&job.writer()) == Some((0, 0)) { Stage::Settled } else { job.stage() }
}

/// Runs a job to its end. Dropping this hangs up on it.
async fn run(shared: &Shared, job: &Job, text: Vec<u8>) {
    tokio::select! {
        end = used(shared, job, text) => {
            (shared.ended)();
            job.finish(end);
        }
        () = job.abandoned() => {}
    }
}

/// Executes a job, which is a use of the VM.
async fn used(shared: &Shared, job: &Job, text: Vec<u8>) -> Result<Exit, VmError> {
    let _use = shared.usage.enter().await;
    execute(shared.link.clone(), job, text).await
}

async fn execute(
    mut link: watch::Receiver<Link>,
    job: &Job,
    text: Vec<u8>,
) -> Result<Exit, VmError> {
    let session = connected(&mut link).await?;
    job.running();
    let (command, stdin) = match text.len() {
        0..=MAX_ARGUMENT => (text, Vec::new()),
        _ if job.origin() == Origin::Directory => (text, Vec::new()),
        _ => (b"sh -s".to_vec(), text),
    };
    let options = job.options();
    let mut exit = match job.origin() {
        Origin::Exec => session.exec(&command, &stdin, job),
        Origin::Directory => session.run(&command, &options, job),
    };
    tokio::select! {
        exit = &mut exit => return Ok(exit?),
        () = gone(&mut link) => {}
    }
    let lost = || VmError::Lost("the VM went off while the command ran".to_owned());
    timeout(GRACE, exit).await.map_or_else(|_| Err(lost()), |exit| Ok(exit?))
}

/// Waits until commands can be run, for [`READY_TIMEOUT`] at the most.
pub(super) async fn connected(
    link: &mut watch::Receiver<Link>,
) -> Result<Arc<dyn GuestSession>, VmError> {
    match timeout(READY_TIMEOUT, idle::settled(link)).await {
        Ok(Ok(Link::Up(session))) => Ok(session),
        Ok(Ok(Link::Off | Link::Coming | Link::Asleep(_))) => {
            Err(VmError::Lost("the VM went off before it was ready".to_owned()))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(BackendError::GuestTimeout { seconds: READY_TIMEOUT.as_secs() }.into()),
    }
}

/// Resolves when the VM is off or removed.
async fn gone(link: &mut watch::Receiver<Link>) {
    drop(link.wait_for(|link| matches!(link, Link::Off | Link::Asleep(_))).await);
}

/// `exec` opened for writing: one command, collected.
#[derive(Debug)]
struct Draft {
    shared: Arc<Shared>,
    writer: Caller,
    text: Mutex<Text>,
}

#[derive(Debug)]
enum Text {
    Empty,
    Job(Arc<Job>),
    /// What follows a refused piece must not run as a command of its own.
    Refused(VmError),
}

impl Draft {
    /// Text that comes after a reader has started the command begins the next one.
    fn collect(&self, text: &mut Text, data: &[u8]) -> Result<(), VmError> {
        loop {
            let job = match text {
                Text::Refused(error) => return Err(error.clone()),
                Text::Job(job) => Arc::clone(job),
                Text::Empty => self.shared.enlist(&self.writer),
            };
            match job.collect(data) {
                Ok(true) => {
                    *text = Text::Job(job);
                    return Ok(());
                }
                Ok(false) => *text = Text::Empty,
                Err(error) => *text = Text::Refused(error),
            }
        }
    }
}

impl Stream for Draft {
    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        if data.is_empty() {
            return Some(Ok(0));
        }
        let done = self.collect(&mut self.text.lock(), data);
        Some(done.map(|()| data.len()))
    }

    fn readiness(&self) -> Readiness {
        Readiness { readable: false, writable: true, hung_up: false }
    }

    fn flush(&self) {
        if let Text::Job(job) = &*self.text.lock() {
            job.flush();
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Text::Job(job) = self.text.get_mut() {
            self.shared.start(job);
        }
    }
}

/// `exec` opened for reading: the output of one command, from its start.
#[derive(Debug)]
struct Playback {
    output: Option<Output>,
    peek: bool,
}

impl Playback {
    fn of(output: Option<Output>, peek: bool) -> Arc<dyn Stream> {
        Arc::new(Self { output, peek })
    }
}

impl Stream for Playback {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let end = || Some(Ok(Vec::new()));
        let answer = self.output.as_ref().map_or_else(end, |o| o.try_read(max));
        match answer {
            None | Some(Err(_)) if self.peek => end(),
            answer => answer,
        }
    }

    fn readiness(&self) -> Readiness {
        let ended = |o: &Output| o.job().is_over() && !o.has_bytes();
        Readiness {
            readable: self.peek || self.output.as_ref().is_none_or(Output::readable),
            writable: false,
            hung_up: self.output.as_ref().is_none_or(ended),
        }
    }

    fn listen(&self) -> Listener {
        let output = self.output.as_ref();
        output.map_or_else(|| Nothing.listen(), |o| o.job().listen())
    }
}

#[cfg(test)]
mod tests;
