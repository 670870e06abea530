//! A QEMU that runs: what is known of it, what it reports, and what can be asked of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BackendError, DataDisk, DiskPlace, LaunchPlan};
use crate::vm::hardware::Hardware;
use crate::vm::live::InForce;
use crate::vm::spec::net::{Forward, Mac};
use crate::vm::spec::{HostLimits, IoLimit, MOST_NETS};
use crate::vm::stream::{Stream, StreamAccess};
use crate::vm::template::{Purpose, SavedMachine, Shape, Template};

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
    /// The version of its hardware.
    #[serde(default)]
    pub hardware: Hardware,
    /// The host port on 127.0.0.1 that leads to the guest's SSH server.
    pub ssh_port: u16,
    /// The digest of the image it was started from.
    pub image_digest: String,
    /// `BootImage::announces` of that image.
    pub announces: bool,
    /// What it has of its settings; `None` if that is not known any more.
    #[serde(default)]
    pub in_force: Option<InForce>,
    /// `yes` if it was loaded from a warm image's template; `no`, with the reason if it might have.
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
    /// It met the limit of its memory with this name.
    LimitReached(&'static str),
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
    /// Why it was ended, where that is known: it was of no use any more, or had all the memory that it may have.
    pub unusable: Option<BackendError>,
}

impl ExitReport {
    /// Returns what went wrong.
    pub fn error(&self) -> BackendError {
        let Self { status, stderr, .. } = self.clone();
        self.unusable.clone().unwrap_or(BackendError::QemuDied { status, stderr })
    }
}

/// Where a machine has a network device for nets: one of the ports that it keeps free, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NicPlace(pub u8);

impl NicPlace {
    /// Returns the number of its port of PCI Express: the last ports first.
    pub fn port(self) -> u8 {
        MOST_NETS.saturating_sub(self.0 + 1)
    }
}

/// Something done with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "an operation says what its fields are")]
pub enum SnapshotOp {
    /// Takes one; of a VM that runs, with its memory.
    Take(String),
    /// Goes back to one.
    Restore(String),
    /// Drops one.
    Drop(String),
    /// Gives one another name, which is free; only of a VM that is off.
    Rename { from: String, to: String },
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
    /// Resumes the processors.
    async fn resume(&self) -> Result<(), BackendError>;
    /// Resumes the processors that an earlier daemon had stopped, and cancels what it had begun.
    async fn recover(&self) -> Result<(), BackendError>;
    /// Resets the machine, as the button does.
    async fn reset(&self) -> Result<(), BackendError>;
    /// Presses the power button: the guest may ignore it.
    async fn power_down(&self) -> Result<(), BackendError>;
    /// Leaves the guest so many bytes of memory, at most what it was started with. The guest gives
    /// the rest back when it can.
    async fn set_memory(&self, bytes: u64) -> Result<(), BackendError>;
    /// Adds processors until there are so many.
    async fn add_processors(&self, count: u32) -> Result<(), BackendError>;
    /// Makes the disk larger, to so many bytes.
    async fn grow_disk(&self, bytes: u64) -> Result<(), BackendError>;
    /// Limits how much all its disks together may transfer.
    async fn limit_io(&self, limit: Option<IoLimit>) -> Result<(), BackendError>;
    /// Has the host's kernel hold these limits, as far as this host has what holds them.
    async fn limit_host(&self, limits: &HostLimits);
    /// Changes the disc in the CD-ROM drive; `None` ejects it.
    async fn change_disc(&self, disc: Option<&Path>) -> Result<(), BackendError>;
    /// Opens a port of the host and returns its number, which the kernel picks for port 0.
    async fn add_forward(&self, forward: &Forward) -> Result<u16, BackendError>;
    /// Closes a port of the host; one that is closed already is no error.
    async fn remove_forward(&self, bound: &Forward) -> Result<(), BackendError>;
    /// Lists the network devices for nets that it has.
    async fn nics(&self) -> Result<Vec<NicPlace>, BackendError>;
    /// Plugs a network device in, which is connected to nothing yet.
    async fn plug_nic(&self, place: NicPlace, mac: Mac) -> Result<(), BackendError>;
    /// Takes a network device out.
    async fn unplug_nic(&self, place: NicPlace) -> Result<(), BackendError>;
    /// Connects a network device to the switch with these sockets, in place of what it was connected to.
    async fn connect_nic(&self, place: NicPlace, sockets: &Path) -> Result<(), BackendError>;
    /// Disconnects a network device; one that is connected to nothing is no error.
    async fn disconnect_nic(&self, place: NicPlace) -> Result<(), BackendError>;
    /// Lists the data disks that it has.
    async fn data_disks(&self) -> Result<Vec<DiskPlace>, BackendError>;
    /// Plugs a data disk in.
    async fn plug_disk(&self, disk: &DataDisk) -> Result<(), BackendError>;
    /// Takes a data disk out, which the guest must give back, and closes its file.
    async fn unplug_disk(&self, place: DiskPlace) -> Result<(), BackendError>;
    /// Makes a data disk larger, to so many bytes.
    async fn grow_data_disk(&self, number: u32, bytes: u64) -> Result<(), BackendError>;
    /// Presses chords of keys one after the other, each all at once.
    async fn press_keys(&self, chords: &[Vec<String>]) -> Result<(), BackendError>;
    /// Writes down what it has now, for a later daemon.
    async fn keep(&self, in_force: &InForce) -> Result<(), BackendError>;
    /// Takes, restores or drops a snapshot, memory included; the processors are stopped meanwhile.
    async fn snapshot(&self, op: &SnapshotOp) -> Result<(), BackendError>;
    /// Saves its memory, its state and, at the same instant, its disk, and resumes. `plan` is what it would be
    /// started by now; what is in files is in an empty directory. The disk is saved in a snapshot, which stays,
    /// or for forks also in a file. `guest` makes the guest ready, before the processors are stopped.
    async fn capture(
        &self,
        plan: &LaunchPlan,
        to: (Purpose, &Path),
        snapshot: &str,
        guest: BoxFuture<'_, Result<(), BackendError>>,
    ) -> Result<SavedMachine, BackendError>;
    /// Takes in a template's state. Its processors are stopped before and after.
    async fn load_template(&self, template: &Template) -> Result<(), BackendError>;
    /// Ends QEMU: asks first (`quit`), then kills. Returns when the process is gone; the
    /// `Exited` event comes too.
    async fn kill(&self) -> Result<(), BackendError>;
    /// Opens a conversation in the hypervisor's own protocol, which disturbs no other and ends
    /// with the machine.
    fn monitor(&self, access: StreamAccess) -> Arc<dyn Stream>;
}
