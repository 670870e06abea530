//! Starting machines and finding them again, and their disks while no machine runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Accel, BackendError, BootImage, DataDisk, DiskPlace, Machine, MachineEvent, NicPlace, RunFacts,
    SnapshotInfo, SnapshotOp,
};
use crate::arch::Arch;
use crate::programs::Program;
use crate::vm::hardware::Hardware;
use crate::vm::memory::Ram;
use crate::vm::spec::{AccelChoice, CpuLimit, VmSpec};
use crate::vm::template::{Layer, Memory, Saved, Shape, Template};

/// Everything that a launch needs; nothing is looked up later.
#[derive(Clone, Debug)]
pub struct LaunchPlan {
    /// The VM's identity, also the SMBIOS UUID.
    pub uuid: Uuid,
    /// The VM's name at this moment, for QEMU's `-name` and the guest.
    pub name: String,
    /// The VM's directory on disk (`store::layout::VmDir` names what is in it).
    pub dir: PathBuf,
    pub(crate) spec: VmSpec,
    pub(crate) image: BootImage,
    pub(crate) accel: Accel,
    /// The version of its hardware.
    pub hardware: Hardware,
    /// Start with the processors stopped.
    pub paused: bool,
    /// What the disk is made an overlay on, top first.
    pub base: Vec<Layer>,
    /// The network devices for nets that it has from its start.
    pub nics: Vec<NicPlace>,
    /// The data disks that it has from its start.
    pub disks: Vec<DataDisk>,
    /// Where its memory comes from.
    pub memory: Memory,
    /// Why it boots, where it might have been loaded from a template.
    pub cold: Option<String>,
    /// When it must have ended.
    pub lifetime: Lifetime,
}

impl LaunchPlan {
    /// Says whether it is loaded from a machine that was forked.
    pub(crate) fn is_fork(&self) -> bool {
        matches!(&self.memory, Memory::Clone(Template { saved: Saved::Nameless(_), .. }))
    }
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

/// A machine just started or adopted, with its events.
#[derive(Debug)]
pub struct Launched {
    pub(crate) machine: Arc<dyn Machine>,
    /// Its events, `Exited` last.
    pub events: mpsc::Receiver<MachineEvent>,
    /// Its processors are stopped.
    pub paused: bool,
    /// Its clock may show the past: it was restored from a snapshot, or was paused.
    pub clock_is_behind: bool,
}

/// What became of a QEMU that an earlier daemon had started.
#[derive(Debug)]
pub enum Adoption {
    /// Nothing had been started.
    NeverRan,
    /// It runs and is ours again.
    Running(Launched),
    /// It has ended: why, as far as is known.
    Ended(String),
    /// A process is there that may be it, but it cannot be adopted; it is left alone until a user asks
    /// for its end.
    Unclear(String),
}

/// A QEMU that does not answer, and is surely the VM's.
#[async_trait]
pub trait SilentMachine: fmt::Debug + Send + Sync {
    /// Ends it by signals; returns when it is gone.
    async fn kill(&self) -> Result<(), BackendError>;
}

/// Starts machines.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Says what is known of the hypervisor and the accelerators, as rows of `.host`, at once.
    fn facts(&self) -> Vec<(&'static str, String)>;
    /// Returns the programs that guests of this architecture cannot do without and that are not
    /// installed, at once.
    fn missing(&self, arch: Arch) -> Vec<&'static Program>;
    /// Picks an accelerator: the verdict of `auto` is proven once and cached.
    async fn accel(&self, choice: AccelChoice, arch: Arch) -> Result<Accel, BackendError>;
    /// Returns the bytes of memory that machines could take now, within the limits that hold here.
    fn memory_available(&self) -> u64;
    /// Returns the bytes that a machine may come to take beside its guest's memory.
    fn memory_overhead(&self, spec: &VmSpec) -> u64;
    /// Returns the bytes that a running machine has taken for itself.
    fn memory_taken(&self, facts: &RunFacts, ram: Ram) -> u64;
    /// Returns the processor time that a running machine has taken, in milliseconds.
    fn cpu_ms(&self, facts: &RunFacts) -> u64;
    /// Says whether another process is connected to one of a machine's ports of the host.
    fn has_connections(&self, ports: &[u16]) -> bool;
    /// Says what holds each limit of a running machine, or why nothing does: keys and sentences.
    fn limits(&self, facts: &RunFacts, spec: &VmSpec) -> Vec<(&'static str, String)>;
    /// Sets what all machines together get of the host's processors, as far as this host has what holds it.
    async fn limit_all_cpus(&self, limit: Option<CpuLimit>);
    /// Says why nothing holds that, and the next step.
    fn holds_cpus(&self) -> Result<(), String>;
    /// Returns the size in bytes of the disk in a VM's directory; `None` if there is none yet.
    fn disk_size(&self, dir: &Path) -> Result<Option<u64>, BackendError>;
    /// Says what a machine of this plan would be like.
    async fn shape(&self, plan: &LaunchPlan) -> Result<Shape, BackendError>;
    /// Returns the hardware of the machine whose memory is in a snapshot; `None` if it is not known.
    fn saved_hardware(&self, dir: &Path, tag: &str) -> Option<Hardware>;
    /// Returns where the machine whose memory is in a snapshot had data disks; `None` if it is not known.
    fn saved_disks(&self, dir: &Path, tag: &str) -> Option<Vec<DiskPlace>>;
    /// Makes the file of a data disk.
    async fn make_data_disk(&self, dir: &Path, number: u32, bytes: u64)
    -> Result<(), BackendError>;
    /// Makes a data disk that no machine has larger; one that is larger already stays as it is.
    async fn grow_data_disk(&self, dir: &Path, number: u32, bytes: u64)
    -> Result<(), BackendError>;
    /// Returns the size in bytes that a guest sees of a data disk; `None` without its file. A look at the
    /// file itself, at once.
    fn data_disk_size(&self, dir: &Path, number: u32) -> Result<Option<u64>, BackendError>;
    /// Lists the snapshots that a data disk has, at once.
    fn data_disk_snapshots(&self, dir: &Path, number: u32) -> Vec<SnapshotInfo>;
    /// Erases the file of a data disk.
    async fn erase_data_disk(&self, dir: &Path, number: u32) -> Result<(), BackendError>;
    /// Makes the disk if there is none, starts QEMU and waits for its greeting (2 s at most).
    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, BackendError>;
    /// Puts back what a crash has left half written in the disk's own tables, at once.
    fn recover_disk(&self, dir: &Path) -> Result<(), BackendError>;
    /// Removes the disk of a VM that is off.
    async fn discard_disk(&self, dir: &Path) -> Result<(), BackendError>;
    /// Takes, restores, drops or renames a snapshot of a VM that is off.
    async fn snapshot(&self, dir: PathBuf, op: &SnapshotOp) -> Result<(), BackendError>;
    /// Lists the snapshots in a VM's disk, whoever made them; none if it has no disk yet. Looks at
    /// the file itself, at once.
    fn snapshots(&self, dir: &Path) -> Vec<SnapshotInfo>;
    /// Finds the QEMU that an earlier daemon started for this VM.
    async fn adopt(&self, dir: PathBuf, uuid: Uuid) -> Adoption;
    /// Takes hold of the QEMU on record that cannot be adopted, if it is surely the VM's.
    async fn silent(
        &self,
        dir: PathBuf,
        uuid: Uuid,
    ) -> Result<Arc<dyn SilentMachine>, BackendError>;
}
