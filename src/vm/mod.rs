//! One VM: what it should be ([`spec`]), which states it has ([`state`]), the task that alone
//! changes them ([`driver`]), what that task needs ([`backend`]), and the commands
//! run in its guest ([`exec`], [`job`]).
//!
//! [`Vm`] is a cheap handle: it sends requests to the driver and reads what the driver publishes.
//! What can be opened of it is in `open.rs`.
//! No paths of the mount, no errno, no QEMU or SSH words here.

pub mod backend;
pub mod caller;
pub mod defaults;
pub mod definition;
pub mod disks;
pub mod driver;
pub mod dropped;
pub mod events;
pub mod exec;
#[cfg(test)]
pub(crate) mod fake;
pub mod files;
pub mod hardware;
mod idle;
pub mod job;
pub mod limits;
pub mod live;
pub mod memory;
pub mod nets;
pub mod notice;
mod open;
pub mod origin;
pub mod probe;
mod settings;
pub mod shares;
pub mod spec;
pub mod state;
pub mod stream;
pub mod template;
pub mod web;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use self::backend::{
    BackendError, Console, Guests, Hypervisor, Images, Lifetime, Machine, Pin, RunFacts,
    SnapshotInfo,
};
use self::defaults::Defaults;
use self::disks::{DataDiskError, Disks};
use self::driver::remove::Removal;
use self::dropped::{DroppedSnapshots, Remover};
use self::events::{Event, Feed};
use self::exec::Exec;
use self::files::{FileChanges, Files};
use self::idle::Usage;
use self::job::JobError;
use self::limits::Limits;
use self::memory::{Check, Ledger, Need, Ram};
use self::nets::{NetError, Nets};
use self::probe::Probes;
use self::settings::CurrentSettings;
use self::shares::{ShareError, Shares};
use self::spec::{Edit, Key, SpecError};
use self::state::{Command, Refusal, State, policy};
use self::stream::{Bell, Listener};
use self::template::{Captured, Purpose, Template};
use crate::programs;
use crate::store::failure_log::FailureLog;
use crate::store::layout::VmDir;

/// Why something asked of a VM was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum VmError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("the VM has been removed")]
    Removed,
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: &'static str, limit: usize },
    #[error("a command cannot hold a NUL byte")]
    Nul,
    #[error(transparent)]
    Job(#[from] JobError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Disk(#[from] DataDiskError),
    #[error("lost: {0}")]
    Lost(String),
}

/// The snapshots that are ours: no user can give these names, or sees them.
const OURS: [&str; 2] = [driver::capture::CAPTURE_TAG, driver::suspended::SUSPENDED];

/// What VMs are run with.
#[derive(Clone, Debug)]
pub struct Backends {
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) guests: Arc<dyn Guests>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) defaults: Arc<Defaults>,
    pub(crate) events: Arc<Feed>,
    pub(crate) failures: Arc<FailureLog>,
    pub(crate) memory: Arc<Ledger>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) nets: Nets,
    pub(crate) file_changes: Arc<FileChanges>,
    /// Directories of the host that no guest gets: the mount and the store.
    pub own_dirs: Arc<[PathBuf]>,
}

impl Backends {
    /// Says which programs a VM with these settings cannot start without and are not installed;
    /// `None` if all are there.
    pub fn missing(&self, spec: &spec::VmSpec) -> Option<BackendError> {
        let mut missing = self.hypervisor.missing(spec.arch);
        missing.extend(self.images.missing(&spec.image));
        let (program, remedy) = (programs::names(&missing), programs::remedy(&missing));
        (!missing.is_empty()).then_some(BackendError::Missing { program, remedy })
    }
}

/// A VM's number for the life of the daemon; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub u64);

/// What the driver publishes: everything that a reader may see of a VM's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub(crate) state: State,
    /// When that state began.
    pub since: SystemTime,
    /// What a starting VM is busy with or waits for.
    pub doing: Option<String>,
    /// The running QEMU.
    pub facts: Option<RunFacts>,
    /// From the start to the first exec that worked.
    pub ready_after: Option<Duration>,
}

/// A snapshot as `snapshots/TAG` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub(crate) tag: String,
    /// What is in the disk of it; `None` while it is being taken, and when that failed.
    pub info: Option<SnapshotInfo>,
    /// `ok`, `creating`, or `failed: REASON`.
    pub status: String,
}

/// How a written value meets a list setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// `>`: it replaces what is there.
    Replace,
    /// `>>`: it is added.
    Append,
}

/// A request to the driver, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Request {
    action: Action,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<(), VmError>>;

/// What the driver is asked for.
#[derive(Debug)]
pub(crate) enum Action {
    Command(Command),
    /// To stay off, with the disk as it is, until the receiver hears the end: this image is made of it.
    Pin(String, oneshot::Receiver<()>),
    /// To capture the guest; what is in files goes into a directory.
    Capture(Purpose, PathBuf, oneshot::Sender<Captured>),
    /// To agree to its removal by this process, whose outcome the receiver hears.
    Retire(Remover, oneshot::Receiver<()>),
}

/// A VM. Cloning copies the handle, not the VM.
#[derive(Clone, Debug)]
pub struct Vm(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    id: VmId,
    uuid: Uuid,
    dir: VmDir,
    created: SystemTime,
    name: RwLock<String>,
    settings: CurrentSettings,
    view: watch::Sender<View>,
    bell: Bell,
    backends: Backends,
    /// Snapshots that are not in the disk: being taken (`None`), or failed for this reason.
    pending: Mutex<BTreeMap<String, Option<String>>>,
    /// Snapshots that are in the disk and were dropped.
    dropped: DroppedSnapshots,
    failure: Mutex<(Option<String>, SystemTime)>,
    requests: mpsc::Sender<Request>,
    console: Arc<dyn Console>,
    exec: Exec,
    probes: Probes,
    files: Files,
    shares: Shares,
    disks: Disks,
    /// Of a fork that has not started yet: what it is loaded from.
    fork: Mutex<Option<Template>>,
    /// The machine that runs, for conversations that the driver has no part in.
    machine: RwLock<Option<Arc<dyn Machine>>>,
    lifetime: Lifetime,
    usage: Arc<Usage>,
}

impl Vm {
    pub(crate) fn id(&self) -> VmId {
        self.0.id
    }

    pub(crate) fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    pub(crate) fn dir(&self) -> &VmDir {
        &self.0.dir
    }

    pub(crate) fn created(&self) -> SystemTime {
        self.0.created
    }

    pub(crate) fn name(&self) -> String {
        self.0.name.read().clone()
    }

    pub(crate) fn state(&self) -> State {
        self.0.view.borrow().state.clone()
    }

    /// Returns all that is published of it.
    pub fn view(&self) -> View {
        self.0.view.borrow().clone()
    }

    /// Returns a listener that hears every change of the view and of the last failure.
    pub fn listen(&self) -> Listener {
        self.0.bell.listen()
    }

    /// Adds to the events, under its name at this moment.
    pub fn emit(&self, event: &Event) {
        self.0.backends.events.add(self.id(), &self.0.name.read(), event);
    }

    /// Waits while the VM is `running`: until its guest answers, or it is something else.
    pub async fn reached(&self) {
        let mut listener = self.listen();
        while self.state() == State::Running {
            listener.rung().await;
        }
    }

    /// Returns the last failure's sentence; `None` after a success.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.lock().0.clone()
    }

    /// Returns when something asked of this VM last failed or succeeded.
    pub fn failure_changed(&self) -> SystemTime {
        self.0.failure.lock().1
    }

    /// Remembers how the last thing asked of this VM went: what `error` shows.
    pub fn note_outcome<E: std::fmt::Display>(&self, outcome: Result<(), E>) {
        let failure = outcome.err().map(|e| one_line(&e.to_string()));
        if let Some(sentence) = &failure {
            self.emit(&Event::Failed(sentence.clone()));
        }
        *self.0.failure.lock() = (failure, SystemTime::now());
        self.0.bell.ring();
    }

    /// Says whether `command` would be refused now. The driver decides again when it is due.
    pub fn would_admit(&self, command: &Command) -> Result<(), Refusal> {
        state::admit(&self.state(), command, self.spec().protect)
    }

    /// Lists the snapshots in its disk, without those that were dropped.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let all = self.0.backends.hypervisor.snapshots(&self.0.dir.0);
        let is_listed =
            |s: &SnapshotInfo| !OURS.contains(&s.tag.as_str()) && !self.0.dropped.hides(s);
        all.into_iter().filter(is_listed).collect()
    }

    /// Says whether it is off and its next start resumes what `suspend` has saved.
    pub fn is_suspended(&self) -> bool {
        let saved = || driver::suspended::saved(&*self.0.backends.hypervisor, &self.0.dir);
        self.state().is_off() && saved().is_some()
    }

    /// Says whether it is suspended because nobody used it, so that its next use brings it back.
    pub fn is_asleep(&self) -> bool {
        self.state().is_off() && self.0.usage.is_asleep()
    }

    /// Returns after what time it is suspended if nobody uses it.
    pub fn suspends_in(&self) -> Option<Duration> {
        let runs = matches!(self.state(), State::Running | State::Ready);
        self.spec().idle.filter(|_| runs).map(|time| self.0.usage.left(time))
    }

    /// Lists the snapshots in its disk, those being taken and those that failed, by name.
    pub fn all_snapshots(&self) -> Vec<Snapshot> {
        let mut all: BTreeMap<String, Snapshot> = BTreeMap::new();
        for (tag, failure) in &*self.0.pending.lock() {
            let status = failure.as_ref().map(|reason| format!("failed: {reason}"));
            let status = status.unwrap_or_else(|| "creating".to_owned());
            all.insert(tag.clone(), Snapshot { tag: tag.clone(), info: None, status });
        }
        for info in self.snapshots() {
            let tag = info.tag.clone();
            // QEMU enters a snapshot into the disk's table when it is whole.
            let snapshot = Snapshot { tag: tag.clone(), info: Some(info), status: "ok".to_owned() };
            all.insert(tag, snapshot);
        }
        all.into_values().collect()
    }

    /// Forgets a snapshot that could not be taken; says whether there was one.
    pub fn forget_failed_snapshot(&self, tag: &str) -> bool {
        let mut pending = self.0.pending.lock();
        let failed = pending.get(tag).is_some_and(Option::is_some);
        failed && pending.remove(tag).is_some()
    }

    /// Keeps the VM off, with its disk and its snapshots as they are, until the answer is dropped:
    /// `image` is being made of it.
    ///
    /// # Errors
    /// [`Refusal::MustStop`] if it is not off, [`Refusal::Pinned`] if another image is being made of
    /// it, [`Refusal::NoDisk`] if it never ran.
    pub async fn pin(&self, image: String) -> Result<Pin, VmError> {
        let (pin, end) = oneshot::channel();
        self.ask(Action::Pin(image, end)).await?;
        Ok(Pin(pin))
    }

    /// Says whether it could be captured now. The driver decides again when it is due.
    pub fn admit_capture(&self, purpose: Purpose) -> Result<(), Refusal> {
        policy::capture(purpose).admit(&self.state())
    }

    /// Says whether the host has the memory for so many forks: one copy of the guest's for all, and what
    /// each may change of it.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn check_room_for_forks(&self, count: usize) -> Result<(), BackendError> {
        let (spec, count) = (self.spec(), count as u64);
        let each = Need::of(spec.memory, 0, Ram::CopyOnWrite);
        let guest = spec.memory.saturating_add(each.guest.saturating_mul(count));
        let overhead = each.overhead.saturating_mul(count);
        let memory = spec.memory.saturating_mul(count);
        let machines = u32::try_from(count).unwrap_or(u32::MAX);
        let need = Need { guest, overhead, ram: Ram::Own, memory, machines };
        let check = if spec.overcommit { Check::Overcommitted } else { Check::Strict };
        self.0.backends.memory.check_room(need, check)
    }

    /// Says what holds each limit of the machine that runs, or why nothing does.
    pub fn limits(&self, facts: &RunFacts, spec: &spec::VmSpec) -> Vec<(&'static str, String)> {
        self.0.backends.hypervisor.limits(facts, spec)
    }

    /// Saves the guest's memory and state while it runs; what is in files goes into an empty directory.
    ///
    /// # Errors
    /// [`Refusal::NotReady`], or why it cannot be captured; the guest runs as before.
    pub async fn capture(&self, purpose: Purpose, to: PathBuf) -> Result<Captured, VmError> {
        let (captured, result) = oneshot::channel();
        self.ask(Action::Capture(purpose, to, captured)).await?;
        result.await.map_err(|_| VmError::Removed)
    }

    /// Carries out a verb, owning the handle.
    pub async fn carry_out(self, command: Command) -> Result<(), VmError> {
        self.perform(command).await
    }

    /// Carries out a verb. `start` returns when QEMU has greeted or the launch has failed, after
    /// 2 s at the most; all others return when the request is under way.
    pub async fn perform(&self, command: Command) -> Result<(), VmError> {
        self.0.usage.touch();
        self.ask(Action::Command(command)).await
    }

    /// Writes a setting, which also changes the running machine where QEMU can do that. The driver
    /// parses it into what is then there: two settings written at the same time both count.
    ///
    /// # Errors
    /// [`VmError::Spec`] for a value that is not accepted, or what QEMU answered; nothing changes
    /// then.
    pub async fn configure(
        self,
        key: &'static Key,
        text: String,
        mode: WriteMode,
    ) -> Result<(), VmError> {
        self.perform(Command::Configure(Edit::Write(key, text, mode))).await
    }

    /// Has it agree to its removal by a process: it does nothing until the agreement is dropped. What
    /// that process has dropped shortly before is there again.
    pub async fn retire(&self, by: Remover) -> Result<Removal, VmError> {
        let (removal, outcome) = oneshot::channel();
        self.ask(Action::Retire(by, outcome)).await?;
        Ok(Removal(removal))
    }

    /// Takes note of its new name, which is stored already.
    pub fn renamed(&self, name: String) {
        self.0.backends.nets.renamed(self.uuid(), &name);
        *self.0.name.write() = name;
        self.0.bell.ring();
    }

    async fn ask(&self, action: Action) -> Result<(), VmError> {
        let (answer, result) = oneshot::channel();
        self.0.requests.send(Request { action, answer }).await.map_err(|_| VmError::Removed)?;
        result.await.unwrap_or(Err(VmError::Removed))
    }
}

/// Joins a message's lines, so that a status and an error stay one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}
