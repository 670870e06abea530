//! What a VM's driver needs from the world, as traits: a hypervisor, a way into the guest, a serial
//! line, images. `qemu`, `guest` and `image` implement them; tests use fakes.
//!
//! No policy here (`state.rs`), and no names of files on disk (`store::layout`).

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::live::InForce;
use super::memory::Ram;
use super::spec::net::Forward;
use super::spec::{AccelChoice, VmSpec};
use super::stream::Stream;
use super::warm::{Freeze, Layer, Memory, Shape, Template, WarmStatus};

/// What went wrong outside the policy: a variant per fact, so that each has its own errno.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BackendError {
    /// A program that we start is not installed.
    #[error("{program} is not installed; {remedy}")]
    Missing {
        /// The program's name.
        program: String,
        /// What to do about it.
        remedy: String,
    },
    /// The accelerator that the config demands cannot be used.
    #[error("no {wanted} here: {reason}; `echo auto > config/accel` picks what works")]
    NoAccelerator {
        /// The word in `config/accel`.
        wanted: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// QEMU ended before it was asked to.
    #[error("QEMU ended ({status}): {stderr}")]
    QemuDied {
        /// `exit 1`, `signal KILL`.
        status: String,
        /// Its last line on stderr, or a remark that there was none.
        stderr: String,
    },
    /// What `suspend` has saved cannot be gone on with.
    #[error(
        "cannot go on from what was suspended: {reason}; `rmdir snapshots/suspended` and `start` boot afresh"
    )]
    CannotResume {
        /// QEMU's words.
        reason: String,
    },
    /// A snapshot's memory is of a machine of another shape.
    #[error(
        "the memory in snapshot {tag} is another machine's: {difference}; set it so and start again, \
         or restore while the VM is off, which brings back the disk alone"
    )]
    OtherMachine {
        /// The snapshot.
        tag: String,
        /// In what they differ.
        difference: String,
    },
    /// Going back failed half-way: the machine has lost its memory, and was ended.
    #[error(
        "the snapshot's memory could not be loaded: {reason}; the disk is back as it was then, and \
         `start` boots from it"
    )]
    HalfRestored {
        /// QEMU's words.
        reason: String,
    },
    /// A guest cannot go on as another one.
    #[error("the guest cannot be given an identity of its own: {reason}")]
    Twin {
        /// What is missing, or the guest's own words.
        reason: String,
    },
    /// QEMU did not do what QMP asked of it.
    #[error("QEMU refused {command}: {text}")]
    QmpRefused {
        /// The QMP command.
        command: String,
        /// QEMU's own description.
        text: String,
    },
    /// QEMU did not answer on QMP in time.
    #[error("QEMU did not answer {command} within {seconds} s; `echo kill > ctl` ends it")]
    QmpTimeout {
        /// The QMP command, or `greeting`.
        command: String,
        /// The bound.
        seconds: u64,
    },
    /// There is no such image.
    #[error("no image named {name}; `ls .images` lists them")]
    NoImage {
        /// The name in `config/image`.
        name: String,
    },
    /// An image has no source.
    #[error("image {name} has no source; `echo SOURCE > .images/{name}/source`")]
    NoSource {
        /// The image.
        name: String,
    },
    /// An image cannot be made from this source.
    #[error("source {origin}: {reason}")]
    BadSource {
        /// The source.
        origin: String,
        /// Why, and what would do.
        reason: String,
    },
    /// There is an image of that name.
    #[error("image {name} exists; `rmdir .images/{name}` removes it")]
    ImageExists {
        /// The image.
        name: String,
    },
    /// An image is in use, or being made.
    #[error("image {name}: {reason}")]
    ImageBusy {
        /// The image.
        name: String,
        /// By whom, and the next step.
        reason: String,
    },
    /// An image could not be built or fetched.
    #[error("image {name}: {reason}")]
    ImageFailed {
        /// The image.
        name: String,
        /// The cause and the next step.
        reason: String,
    },
    /// The guest cannot be reached over SSH.
    #[error("guest unreachable: {reason}")]
    Unreachable {
        /// What was tried and how it failed.
        reason: String,
    },
    /// The guest did not answer within the bound.
    #[error(
        "the guest did not answer over SSH within {seconds} s; `cat console.log` shows how far it got"
    )]
    GuestTimeout {
        /// The bound.
        seconds: u64,
    },
    /// The guest refused our key.
    #[error("the guest refused our key for user {user}; see config/ssh_user")]
    KeyRefused {
        /// The login name tried.
        user: String,
    },
    /// The guest's host key is not the one that we made for it.
    #[error(
        "the guest shows another SSH host key than the one made for it; refusing to talk to it"
    )]
    WrongHostKey,
    /// A command for a terminal is too long to be sent.
    #[error("a command on a terminal has {limit} bytes at the most; copy it into the guest first")]
    TooLong {
        /// The bound.
        limit: usize,
    },
    /// The host's disk is full.
    #[error("no space left for {what}; free some, then try again")]
    NoSpace {
        /// The file or its purpose.
        what: String,
    },
    /// The host does not have the memory.
    #[error("not enough memory: {what}")]
    NoMemory {
        /// Who wanted how much.
        what: String,
    },
    /// The disk's table of snapshots would take more or fewer clusters.
    #[error(
        "the disk's table of snapshots is to the byte full: another name has to be of {length} \
         bytes too, or `rmdir` one snapshot first"
    )]
    NoRoomInTable {
        /// The length of the old name.
        length: usize,
    },
    /// A host port is taken.
    #[error("host port {port} is taken; `ss -lnp` shows by whom, config/ports has the list")]
    PortTaken {
        /// The forward as written in the config.
        port: String,
    },
    /// A file that a setting names is not there.
    #[error("config/{key}: {path}: {reason}; `echo none > config/{key}` does without it")]
    NoFile {
        /// The setting.
        key: &'static str,
        /// The path.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// Settings that do not fit each other or the image.
    #[error("config/{key}: {reason}")]
    Unfit {
        /// The setting.
        key: &'static str,
        /// Why, and the next step.
        reason: String,
    },
    /// QEMU knows no such key.
    #[error(
        "no key named {key}; names are QEMU's: a to z, 0 to 9, f1 to f12, ctrl, alt, shift, ret, \
         esc, spc, tab, backspace, delete, up, down, left, right …"
    )]
    UnknownKey {
        /// What was asked for.
        key: String,
    },
    /// Anything else that the host's system calls answered.
    #[error("{what}: {error}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's own words.
        error: String,
        /// Its errno, 0 if it has none.
        errno: i32,
    },
}

impl BackendError {
    /// Says whether the machine is gone, or on its way out.
    pub fn is_the_end(&self) -> bool {
        matches!(self, Self::QemuDied { .. } | Self::HalfRestored { .. })
    }

    /// Wraps a system error, telling a full disk and a lack of memory apart from the rest.
    pub fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        let what = what.into();
        // By the kind: a library may have wrapped the system's own error.
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::NoSpace { what },
            ErrorKind::OutOfMemory => Self::NoMemory { what },
            _ => {
                let errno = error.raw_os_error().unwrap_or(0);
                Self::Io { what, error: error.to_string(), errno }
            }
        }
    }
}

/// What an image offers for booting. Every source of images ends in this shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootImage {
    /// Its name under `.images`.
    pub name: String,
    /// `sha256:…` over its contents.
    pub digest: String,
    /// The frozen base disk, absolute.
    pub disk: PathBuf,
    /// The base disk's format.
    pub format: DiskFormat,
    /// The base disk's virtual size in bytes: a VM's disk is never smaller.
    pub disk_size: u64,
    /// A kernel for direct boot; `None` boots from the disk.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub cmdline: String,
    /// The guest opens the virtio-serial port `org.aqfs.ready` when SSH listens, and keeps it open.
    pub announces: bool,
    /// How the guest is told its name and keys.
    #[serde(default)]
    pub seed: SeedKind,
}

/// How a guest is told its name and its keys at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedKind {
    /// A tar file in fw_cfg: images of ours.
    #[default]
    FwCfg,
    /// A disk labelled `cidata`, which cloud-init reads: stock cloud images.
    Nocloud,
}

/// The format of a disk image: always told to QEMU, never probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format, version 3.
    Qcow2,
}

/// How guests' instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelKind {
    /// Linux's hypervisor.
    Kvm,
    /// QEMU's translator: slower, and no security boundary.
    Tcg,
}

impl AccelKind {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A verdict on accelerators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accel {
    /// Which one.
    pub kind: AccelKind,
    /// QEMU's `-cpu` argument that goes with it.
    pub cpu: String,
    /// Why, in a few words: shown in `.host` and `info`.
    pub reason: String,
}

/// Everything that a launch needs; nothing is looked up later.
#[derive(Clone, Debug)]
pub struct LaunchPlan {
    /// The VM's identity, also the SMBIOS UUID.
    pub uuid: Uuid,
    /// The VM's name at this moment, for QEMU's `-name` and the guest.
    pub name: String,
    /// The VM's directory on disk (`store::layout::VmDir` names what is in it).
    pub dir: PathBuf,
    /// What it should be.
    pub spec: VmSpec,
    /// What it boots.
    pub image: BootImage,
    /// How it runs.
    pub accel: Accel,
    /// Start with the processors stopped.
    pub paused: bool,
    /// What the disk is made an overlay on, top first.
    pub base: Vec<Layer>,
    /// Where its memory comes from.
    pub memory: Memory,
    /// Why it boots, where it might have gone on from a warm image.
    pub cold: Option<String>,
    /// When it must have ended.
    pub lifetime: Lifetime,
}

/// How long a machine may live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as it likes: it is the user's.
    #[default]
    Own,
    /// Until the daemon ends, at the latest: it is ours.
    Ours,
}

/// What is known about a running QEMU, written to disk so that a later daemon can adopt it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFacts {
    /// QEMU's process number.
    pub pid: u32,
    /// Its start time in clock ticks since boot: with the pid, its identity.
    pub pid_start: u64,
    /// The VM's UUID as QEMU knows it.
    pub uuid: Uuid,
    /// When QEMU was started.
    pub since: SystemTime,
    /// How it runs.
    pub accel: Accel,
    /// `7.2.22`.
    pub qemu_version: String,
    /// The machine type with its version.
    pub machine: String,
    /// The host port on 127.0.0.1 that leads to the guest's SSH server.
    pub ssh_port: u16,
    /// The digest of the image it was started from.
    pub image_digest: String,
    /// `BootImage::announces` of that image.
    pub announces: bool,
    /// What it has of its settings; `None` if that is not known any more.
    #[serde(default)]
    pub in_force: Option<InForce>,
    /// `yes` if it went on from a warm image; `no`, with the reason if it might have.
    #[serde(default)]
    pub warm: String,
    /// What it was like when it was started; `None` if that is not known any more.
    #[serde(default)]
    pub shape: Option<Shape>,
}

/// What a machine reports by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The processors stopped (`STOP`).
    Paused,
    /// The processors run again (`RESUME`).
    Resumed,
    /// The guest or somebody else reset the machine.
    Reset,
    /// The guest said on its ready port that its SSH server listens.
    Announced,
    /// The machine was shut down, by the guest itself or from outside.
    ShutDown {
        /// The guest did it.
        by_guest: bool,
    },
    /// QEMU paused the machine because the host's disk is full.
    DiskFull,
    /// QEMU has ended; nothing follows.
    Exited(ExitReport),
}

/// How QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// It ended with status 0, or (status unknown after an adoption) after a `SHUTDOWN` event.
    pub clean: bool,
    /// `exit 0`, `signal KILL`, or `unknown` for a process that was not our child.
    pub status: String,
    /// Its last line on stderr, empty if there was none.
    pub stderr: String,
    /// Why we ended it, if it was of no use any more.
    pub spoiled: Option<BackendError>,
}

impl ExitReport {
    /// Returns what went wrong.
    pub fn error(&self) -> BackendError {
        let Self { status, stderr, .. } = self.clone();
        self.spoiled.clone().unwrap_or(BackendError::QemuDied { status, stderr })
    }
}

/// A point in a VM's past, kept in its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub tag: String,
    /// Its number, for which the hypervisor may take a name.
    pub id: String,
    /// When it was taken.
    pub created: SystemTime,
    /// Bytes of memory and device state; 0 if the VM was off.
    pub memory: u64,
    /// The disk's virtual size at that time, in bytes.
    pub disk_size: u64,
}

/// Something done with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotOp {
    /// Takes one; of a VM that runs, with its memory.
    Take(String),
    /// Goes back to one.
    Restore(String),
    /// Drops one.
    Drop(String),
    /// Gives one another name; only of a VM that is off.
    Rename {
        /// Its name.
        from: String,
        /// A name that is free.
        to: String,
    },
}

/// A QEMU that runs.
#[async_trait]
pub trait Machine: fmt::Debug + Send + Sync {
    /// What is known about it.
    fn facts(&self) -> &RunFacts;
    /// Says whether the processors have run since QEMU was started.
    async fn has_run(&self) -> Result<bool, BackendError>;
    /// Stops the processors.
    async fn pause(&self) -> Result<(), BackendError>;
    /// Lets the processors run.
    async fn resume(&self) -> Result<(), BackendError>;
    /// Resets the machine, as the button does.
    async fn reset(&self) -> Result<(), BackendError>;
    /// Presses the power button: the guest may ignore it.
    async fn power_down(&self) -> Result<(), BackendError>;
    /// Leaves the guest so many bytes of memory, at most what it was started with. The guest gives
    /// the rest back when it can.
    async fn set_memory(&self, bytes: u64) -> Result<(), BackendError>;
    /// Makes the disk larger, to so many bytes.
    async fn grow_disk(&self, bytes: u64) -> Result<(), BackendError>;
    /// Changes the disc in the CD-ROM drive; `None` ejects it.
    async fn change_disc(&self, disc: Option<&Path>) -> Result<(), BackendError>;
    /// Opens a port of the host and returns its number, which the kernel picks for port 0.
    async fn add_forward(&self, forward: &Forward) -> Result<u16, BackendError>;
    /// Closes a port of the host; one that is closed already is no error.
    async fn remove_forward(&self, bound: &Forward) -> Result<(), BackendError>;
    /// Presses chords of keys one after the other, each all at once.
    async fn press_keys(&self, chords: &[Vec<String>]) -> Result<(), BackendError>;
    /// Writes down what it has now, for a later daemon.
    async fn keep(&self, in_force: &InForce) -> Result<(), BackendError>;
    /// Takes, restores or drops a snapshot, memory included; the processors stand still meanwhile.
    async fn snapshot(&self, op: &SnapshotOp) -> Result<(), BackendError>;
    /// Writes its memory and state into an empty directory and goes on; returns how long it stood
    /// still. `plan` is what it would be started by now. Takes a snapshot of the disk at the same
    /// instant, which stays.
    async fn freeze(
        &self,
        plan: &LaunchPlan,
        to: &Path,
        snapshot: &str,
    ) -> Result<Duration, BackendError>;
    /// Takes in a template's state. Its processors are stopped before and after.
    async fn thaw(&self, template: &Template) -> Result<(), BackendError>;
    /// Ends QEMU: asks first (`quit`), then kills. Returns when the process is gone; the
    /// `Exited` event comes too.
    async fn kill(&self) -> Result<(), BackendError>;
    /// Opens a conversation in the hypervisor's own protocol, which disturbs no other and ends
    /// with the machine.
    fn monitor(&self, access: MonitorAccess) -> Arc<dyn Stream>;
}

/// How a monitor is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorAccess {
    /// Read only: the greeting, then events.
    Watch,
    /// Write only: commands, whose answers nobody reads.
    Send,
    /// Commands, their answers, and events.
    Converse,
}

/// A machine just started or adopted, with its events.
#[derive(Debug)]
pub struct Launched {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Its events, `Exited` last.
    pub events: mpsc::Receiver<MachineEvent>,
    /// Its processors are stopped.
    pub paused: bool,
    /// It was brought back to a snapshot, and its clock may still be of then.
    pub restored: bool,
}

/// What became of a QEMU that an earlier daemon had started.
#[derive(Debug)]
pub enum Adoption {
    /// Nothing had been started.
    NeverRan,
    /// It runs and is ours again.
    Running(Launched),
    /// It has ended: why, as far as can be told.
    Ended(String),
    /// A process is there that may be it, but it cannot be adopted; it is left alone.
    Unclear(String),
}

/// Starts machines.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Says what is known of the hypervisor and the accelerators, as rows of `.host`, at once.
    fn facts(&self) -> Vec<(&'static str, String)>;
    /// Picks an accelerator: the verdict of `auto` is proven once and cached.
    async fn accel(&self, choice: AccelChoice) -> Result<Accel, BackendError>;
    /// Returns the bytes of memory that machines could take now, within the limits that hold here.
    fn memory_available(&self) -> u64;
    /// Returns the bytes that a machine may come to take beside its guest's memory.
    fn memory_overhead(&self, spec: &VmSpec) -> u64;
    /// Returns the bytes that a running machine has taken for itself.
    fn memory_taken(&self, facts: &RunFacts, ram: Ram) -> u64;
    /// Returns the size in bytes of the disk in a VM's directory; `None` if there is none yet.
    fn disk_size(&self, dir: &Path) -> Result<Option<u64>, BackendError>;
    /// Says what a machine of this plan would be like.
    async fn shape(&self, plan: &LaunchPlan) -> Result<Shape, BackendError>;
    /// Makes the disk if there is none, starts QEMU and waits for its greeting (2 s at most).
    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, BackendError>;
    /// Removes the disk of a VM that is off.
    async fn discard_disk(&self, dir: &Path) -> Result<(), BackendError>;
    /// Takes, restores, drops or renames a snapshot of a VM that is off.
    async fn snapshot(&self, dir: PathBuf, op: &SnapshotOp) -> Result<(), BackendError>;
    /// Lists the snapshots in a VM's disk, whoever made them; none if it has no disk yet. Looks at
    /// the file itself, at once.
    fn snapshots(&self, dir: &Path) -> Vec<SnapshotInfo>;
    /// Finds the QEMU that an earlier daemon started for this VM.
    async fn adopt(&self, dir: PathBuf, uuid: Uuid) -> Adoption;
}

/// Where a guest's SSH server is and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestAddress {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The login name.
    pub user: String,
    /// The VM's directory, which holds the public host key to expect.
    pub dir: PathBuf,
}

/// A guest as other SSH clients should know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHost {
    /// The VM's name.
    pub name: String,
    /// The VM's identity.
    pub uuid: Uuid,
    /// The VM's directory.
    pub dir: PathBuf,
    /// The login name.
    pub user: String,
    /// The port on 127.0.0.1, or why it cannot be reached and what to do.
    pub port: Result<u16, String>,
}

/// How a command in the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its exit status.
    Code(u32),
    /// The signal that ended it, without `SIG`.
    Signal(String),
}

/// Which of a command's outputs bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes a command's output, in order of arrival. Waiting in it closes the SSH window.
#[async_trait]
pub trait OutputSink: Send + Sync {
    /// Takes a chunk.
    async fn accept(&self, source: Source, bytes: &[u8]);
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What a running command can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// A signal for all of its processes: a name without `SIG`, or a number.
    Signal(String),
    /// Another size of its terminal.
    Resize(WindowSize),
}

/// The host's side of a command that is talked to while it runs.
#[async_trait]
pub trait Attendant: OutputSink {
    /// Waits for the next bytes of its input; `None` at the end. First asked when the command runs,
    /// and not again after the end. Dropping the future loses nothing.
    async fn input(&self) -> Option<Vec<u8>>;
    /// Waits for the next thing to tell it. Dropping the future loses nothing.
    async fn control(&self) -> Control;
}

/// What a command is run with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Variables, names checked.
    pub env: Vec<(String, String)>,
    /// Its directory; a relative one starts at the user's home.
    pub cwd: Option<String>,
    /// A terminal of this size: standard error then goes to standard output.
    pub terminal: Option<WindowSize>,
}

/// A working SSH connection to a guest.
#[async_trait]
pub trait GuestSession: fmt::Debug + Send + Sync {
    /// Runs `command` with `stdin` as its whole input and returns how it ended. Dropping the
    /// future hangs up on the command (SIGHUP, then the channel is closed).
    async fn exec(
        &self,
        command: &[u8],
        stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Exit, BackendError>;
    /// Runs `command` in a process group of its own and returns how it ended. Dropping the future
    /// kills the group.
    async fn run(
        &self,
        command: &[u8],
        surroundings: &Surroundings,
        attendant: &dyn Attendant,
    ) -> Result<Exit, BackendError>;
    /// Resolves when the connection is lost.
    async fn closed(&self);
}

/// Opens connections to guests.
#[async_trait]
pub trait Guests: fmt::Debug + Send + Sync {
    /// Makes what lets us in (host key, seed) under the VM's directory, before its first start.
    async fn prepare(&self, plan: &LaunchPlan) -> Result<(), BackendError>;
    /// Connects, logs in and proves it by running `true`: one attempt, bounded.
    async fn connect(&self, at: &GuestAddress) -> Result<Arc<dyn GuestSession>, BackendError>;
    /// Opens the port on which a guest is told who it is.
    async fn identity(&self, dir: &Path) -> Result<Box<dyn IdentityPort>, BackendError>;
    /// Returns a configuration with which other clients get into a guest without a question.
    fn client_config(&self, host: &ClientHost) -> String;
    /// Returns the serial line of the VM with this directory. It is not attached yet.
    fn console(&self, dir: PathBuf) -> Arc<dyn Console>;
}

/// A line to a program in the guest that waits to be told who the guest is. It is no SSH: no key is
/// exchanged before the guest has random numbers of its own.
#[async_trait]
pub trait IdentityPort: fmt::Debug + Send + Sync {
    /// Has the guest of `session` wait on this port.
    async fn arm(&mut self, session: &dyn GuestSession) -> Result<(), BackendError>;
    /// Tells the guest that it is the machine of `plan`, and returns when it is: with its own
    /// random numbers, time, name, network address and keys.
    async fn tell(&mut self, plan: &LaunchPlan) -> Result<(), BackendError>;
    /// Has the guest wait no more.
    async fn dismiss(&mut self);
}

/// How a console is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleAccess {
    /// Read only: the last 64 KiB of scrollback, then live.
    Watch,
    /// Read and write: from now.
    Talk,
    /// Write only.
    Send,
    /// A crawler: what is buffered, then end of file.
    Peek,
}

/// A VM's serial line, fanned out to any number of readers.
pub trait Console: fmt::Debug + Send + Sync {
    /// Connects to the running machine's serial socket, and again whenever that is lost. Streams
    /// opened since the last [`detach`](Self::detach) get its bytes.
    fn attach(&self);
    /// The machine has ended, or its launch has failed: readers get what is left, then end of
    /// file. Streams opened from now on wait for the next machine.
    fn detach(&self);
    /// Opens a stream with a cursor of its own.
    fn open(&self, access: ConsoleAccess) -> Arc<dyn Stream>;
    /// Returns the path of a terminal on this line that nobody has open now. It stays good until
    /// the machine ends, and then hangs up.
    fn terminal(&self) -> Result<PathBuf, BackendError>;
    /// Bytes that slow readers have lost.
    fn lost(&self) -> u64;
}

/// What an image is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageStatus {
    /// Known, and nothing is on disk.
    Absent,
    /// Its inputs are being fetched.
    Fetching,
    /// It is being put together.
    Building,
    /// It can be booted.
    Ready,
    /// The last attempt failed.
    Failed(String),
}

/// The word of an image's `status`, with its reason.
impl fmt::Display for ImageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Fetching => f.write_str("fetching"),
            Self::Building => f.write_str("building"),
            Self::Ready => f.write_str("ready"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// What `.images/NAME` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// Where it comes from: `builtin:tiny`.
    pub source: String,
    /// `builtin`, `disk`, `cloud`, …
    pub kind: String,
    /// The image that the VM it was made from used; empty for others.
    pub parent: String,
    /// `sha256:…`, empty until it is ready.
    pub digest: String,
    /// Bytes on disk.
    pub size: u64,
    /// What it is doing.
    pub status: ImageStatus,
    /// One line for people: `building root file system 3/5`.
    pub progress: String,
    /// Last change.
    pub changed: SystemTime,
    /// Whether a machine is frozen in it.
    pub warm: WarmStatus,
}

/// Keeps a VM that is off from being started or removed; dropping it lets the VM go.
#[derive(Debug)]
pub struct Hold(
    #[expect(dead_code, reason = "its end is its message")] pub(super) oneshot::Sender<()>,
);

/// A VM's disk that is to become an image.
#[derive(Debug)]
pub struct Publication {
    /// `vm1@clean`
    pub origin: String,
    /// The VM's disk.
    pub disk: PathBuf,
    /// The snapshot in it; `None`: as it is.
    pub snapshot: Option<String>,
    /// The image that the VM was made from.
    pub base: BootImage,
    /// What the disk is an overlay on, top first.
    pub layers: Vec<Layer>,
    /// Keeps the disk as it is meanwhile.
    pub hold: Option<Hold>,
}

/// A VM that runs and is to become an image.
#[derive(Debug)]
pub struct LivePublication {
    /// `vm1`
    pub origin: String,
    /// The VM.
    pub machine: Arc<dyn Freeze>,
    /// The image that it was made from.
    pub base: BootImage,
}

/// What an image is made from.
#[derive(Debug)]
pub enum Recipe {
    /// `builtin:tiny`
    Tiny,
    /// A disk image on this host.
    File(PathBuf),
    /// The disk of a VM that is off.
    Vm(Box<Publication>),
    /// A VM that runs: its disk and its memory.
    Live(Box<LivePublication>),
}

/// The images.
#[async_trait]
pub trait Images: fmt::Debug + Send + Sync {
    /// Lists them by name, also those that are not on disk yet.
    fn list(&self) -> Vec<ImageInfo>;
    /// Describes one.
    fn info(&self, name: &str) -> Option<ImageInfo>;
    /// Starts building or fetching in the background; does nothing if it is ready or under way.
    fn begin(&self, name: &str) -> Result<(), BackendError>;
    /// Returns an image that is ready.
    fn boot(&self, name: &str) -> Option<BootImage>;
    /// Makes an image without a source. Looks at the disk, as the next two do.
    fn create(&self, name: &str) -> Result<(), BackendError>;
    /// Says what an image is made from and begins to make it.
    fn assign(&self, name: &str, recipe: Recipe) -> Result<(), BackendError>;
    /// Removes an image that nothing uses.
    fn remove(&self, name: &str) -> Result<(), BackendError>;
    /// Returns the image, building it first if need be. Builders of one image share one build.
    async fn ensure(&self, name: &str) -> Result<BootImage, BackendError>;
    /// Returns the machine frozen in an image, once it has been checked; `None` if there is none,
    /// and what is wrong with it if it is not what was frozen.
    async fn template(&self, name: &str) -> Option<Result<Template, String>>;
    /// Returns what the disk in a VM's directory is an overlay on, top first; what a new one would
    /// be if there is none.
    fn layers(&self, image: &BootImage, dir: &Path) -> Result<Vec<Layer>, BackendError>;
    /// Notes what the disk that is going to be made in a VM's directory is an overlay on.
    fn bind(&self, dir: &Path, base: &[Layer]) -> Result<(), BackendError>;
    /// Begins to keep a machine frozen in an image: one that boots from it.
    fn warm(&self, name: &str, machine: Arc<dyn Freeze>) -> Result<(), BackendError>;
    /// Forgets the machine frozen in an image.
    fn cool(&self, name: &str) -> Result<(), BackendError>;
    /// Returns a listener that hears every change of status and progress.
    fn listen(&self) -> super::stream::Listener;
}
