//! QEMU as the hypervisor: [`Qemu`] implements `vm::backend::Hypervisor`.
//!
//! - [`cmdline`]: a launch as arguments. [`launch`]: starting it. [`machine`]: what then runs.
//! - [`qmp`], [`connect`]: the daemon's connection; [`monitor`]: users' own. [`process`],
//!   [`run_record`]: the process, and the record by which a later daemon finds it.
//! - [`adopt`]: taking over a QEMU that an earlier daemon started. `unresponsive`: one that does
//!   not answer.
//! - `capture`, `migrate`: writing a machine's memory to a file, and resuming from it.
//! - `live_snapshot`, `rename`: snapshots with memory; `snapshot_shapes`: which machine each was
//!   taken of. `migration_stream`: what QEMU notes in a saved memory. `repair`: undoing what a
//!   crash cut short. `vm_disk`: a VM's disk.
//! - `data_disks`: the files of data disks. `companions`: the files that have the disk's snapshots too.
//! - `firmware`: UEFI firmware on the host. `nvram`: a VM's UEFI variables.
//! - `logs`: QEMU's logs, bounded. [`limits`]: what the host's kernel holds a QEMU to.
//! - [`switch`]: the switches of nets.
//! - [`accel`], `kvm_probe`: KVM or TCG. [`install`]: the installed program. [`host_memory`]: what
//!   machines take of the host's memory, and what there is.
//!
//! Not here: when a machine is started or stopped (`vm::state`), and what is inside the guest.

pub mod accel;
pub mod adopt;
mod capture;
pub mod cmdline;
mod companions;
pub mod connect;
mod data_disks;
mod events;
mod firmware;
pub mod host_memory;
pub mod install;
mod kvm_probe;
pub mod launch;
pub mod limits;
mod live_snapshot;
mod logs;
pub mod machine;
mod migrate;
mod migration_stream;
pub mod monitor;
mod nvram;
pub mod process;
pub mod qmp;
mod rename;
mod repair;
pub mod run_record;
mod snapshot_shapes;
pub mod switch;
mod template_memfd;
#[cfg(test)]
#[cfg(feature = "qemu_tests")]
mod tests;
mod unresponsive;
mod vm_disk;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::arch::Arch;
use crate::disk::snapshot_table;
use crate::proc;
use crate::programs::{self, Program};
use crate::store::layout::{Layout, VmDir};
use crate::vm::backend::{
    Accel, Adoption, DiskPlace, Hypervisor, Images, LaunchPlan, Launched, Result, RunFacts,
    SilentMachine, SnapshotInfo, SnapshotOp,
};
use crate::vm::driver::off_thread;
use crate::vm::hardware::Hardware;
use crate::vm::memory::Ram;
use crate::vm::spec::{AccelChoice, CpuLimit, VmSpec};
use crate::vm::template::{Memory, Saved, Shape, Template};
use accel::AccelChooser;
use install::Installation;
use limits::Groups;
use logs::LogLimiter;
use template_memfd::TemplateMemfd;

/// The QEMU of this host.
#[derive(Debug)]
pub struct Qemu {
    chooser: AccelChooser,
    installations: [OnceCell<Installation>; Arch::ALL.len()],
    sealed: TemplateMemfd,
    logs: LogLimiter,
    groups: Arc<Groups>,
}

impl Qemu {
    /// Makes the hypervisor of the store at `layout`. The kernel of `images`' default image proves
    /// whether KVM works. Nothing is run yet.
    pub fn new(layout: Layout, images: Arc<dyn Images>) -> Self {
        Self {
            groups: Arc::new(Groups::new(layout.root())),
            chooser: AccelChooser::new(layout, images),
            installations: Default::default(),
            sealed: TemplateMemfd::default(),
            logs: LogLimiter::default(),
        }
    }

    /// Returns what is installed for an architecture, asked once. A failure is not remembered: the
    /// program may be installed at any time.
    pub async fn installation(&self, arch: Arch) -> Result<&Installation> {
        let cell = match arch {
            Arch::X86_64 => &self.installations[0],
            Arch::Aarch64 => &self.installations[1],
        };
        cell.get_or_try_init(|| Installation::probe(arch)).await
    }
}

impl Qemu {
    /// Returns the descriptor of a template's memory that a clone inherits, unless it opens the file itself.
    async fn memory_of(
        &self,
        template: &Template,
        qemu: &Installation,
    ) -> Result<Option<Arc<OwnedFd>>> {
        match &template.saved {
            Saved::Nameless(memory) => Ok(Some(Arc::clone(&memory.ram))),
            Saved::Files { .. } if qemu.keeps_templates() => Ok(None),
            Saved::Files { ram, .. } => self.sealed.of(template, ram).await.map(Some),
        }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("accel", self.chooser.known())];
        let [pc, arm] = &self.installations;
        let host = match Arch::HOST {
            Arch::X86_64 => pc,
            Arch::Aarch64 => arm,
        };
        if let Some(installation) = host.get() {
            facts.push(("qemu", installation.version.clone()));
            facts.push(("machine", installation.machine.clone()));
        }
        facts
    }

    fn missing(&self, arch: Arch) -> Vec<&'static Program> {
        programs::missing(&[&arch.platform().emulator, &programs::QEMU_IMG])
    }

    async fn accel(&self, choice: AccelChoice, arch: Arch) -> Result<Accel> {
        self.chooser.choose(choice, arch, self.installation(arch).await?).await
    }

    fn memory_available(&self) -> u64 {
        host_memory::available()
    }

    fn memory_overhead(&self, spec: &VmSpec) -> u64 {
        host_memory::overhead(spec.memory, spec.cpus, self.chooser.likely(spec.accel, spec.arch))
    }

    fn memory_taken(&self, facts: &RunFacts, ram: Ram) -> u64 {
        let held = proc::memory_of(facts.pid);
        match ram {
            Ram::Own => held.own + held.shared,
            Ram::CopyOnWrite => held.own,
        }
    }

    fn cpu_ms(&self, facts: &RunFacts) -> u64 {
        proc::usage(facts.pid).cpu_ms
    }

    fn has_connections(&self, ports: &[u16]) -> bool {
        proc::has_connections(ports)
    }

    fn limits(&self, facts: &RunFacts, spec: &VmSpec) -> Vec<(&'static str, String)> {
        self.groups.describe(facts, spec)
    }

    async fn limit_all_cpus(&self, limit: Option<CpuLimit>) {
        self.groups.set_total(limit).await;
    }

    fn holds_cpus(&self) -> Result<(), String> {
        limits::place::find().map(drop)
    }

    fn disk_size(&self, dir: &Path) -> Result<Option<u64>> {
        vm_disk::virtual_size(&VmDir(dir.to_owned()))
    }

    async fn shape(&self, plan: &LaunchPlan) -> Result<Shape> {
        let qemu = self.installation(plan.spec.arch).await?;
        launch::shape(plan, qemu)
    }

    fn saved_hardware(&self, dir: &Path, tag: &str) -> Option<Hardware> {
        snapshot_shapes::hardware_of(&VmDir(dir.to_owned()), tag)
    }

    fn saved_disks(&self, dir: &Path, tag: &str) -> Option<Vec<DiskPlace>> {
        snapshot_shapes::disks_of(&VmDir(dir.to_owned()), tag)
    }

    async fn make_data_disk(&self, dir: &Path, number: u32, bytes: u64) -> Result<()> {
        data_disks::make(&VmDir(dir.to_owned()), number, bytes).await
    }

    async fn grow_data_disk(&self, dir: &Path, number: u32, bytes: u64) -> Result<()> {
        data_disks::grow(&VmDir(dir.to_owned()), number, bytes).await
    }

    fn data_disk_size(&self, dir: &Path, number: u32) -> Result<Option<u64>> {
        data_disks::size(&VmDir(dir.to_owned()), number)
    }

    fn data_disk_snapshots(&self, dir: &Path, number: u32) -> Vec<SnapshotInfo> {
        data_disks::snapshots(&VmDir(dir.to_owned()), number)
    }

    async fn erase_data_disk(&self, dir: &Path, number: u32) -> Result<()> {
        data_disks::erase(&VmDir(dir.to_owned()), number).await
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Launched> {
        let qemu = self.installation(plan.spec.arch).await?;
        let ram = match &plan.memory {
            Memory::Clone(template) => self.memory_of(template, qemu).await?,
            Memory::Own | Memory::CaptureTarget { .. } => None,
        };
        let launched = match launch::launch(&plan, qemu, ram, &self.groups).await {
            Ok(launched) => launched,
            Err(error) => {
                self.groups.remove(plan.uuid).await;
                return Err(error);
            }
        };
        self.logs.keep(&VmDir(plan.dir), &launched.machine).await;
        Ok(launched)
    }

    fn recover_disk(&self, dir: &Path) -> Result<()> {
        rename::recover(&VmDir(dir.to_owned()))
    }

    async fn discard_disk(&self, dir: &Path) -> Result<()> {
        vm_disk::discard(&VmDir(dir.to_owned())).await
    }

    async fn snapshot(&self, dir: PathBuf, op: &SnapshotOp) -> Result<()> {
        let dir = VmDir(dir);
        rename::recover(&dir)?;
        match op {
            SnapshotOp::Take(tag) => repair::marked(&dir, companions::take(&dir, tag)).await,
            SnapshotOp::Restore(tag) => repair::marked(&dir, companions::restore(&dir, tag)).await,
            SnapshotOp::Drop(tag) => {
                repair::marked(&dir, companions::drop_snapshot(&dir, tag)).await
            }
            SnapshotOp::Rename { from, to } => {
                // What another file alone has must not be in the way of the new name.
                companions::recover(&dir).await?;
                let (from, to) = (from.clone(), to.clone());
                off_thread(move || Ok(rename::rename(&dir, &from, &to)), "rename a snapshot")
                    .await?
            }
        }
    }

    fn snapshots(&self, dir: &Path) -> Vec<SnapshotInfo> {
        // No disk, no snapshots; a damaged one shows itself when it is used.
        snapshot_table::list(&VmDir(dir.to_owned()).disk()).unwrap_or_default()
    }

    async fn adopt(&self, dir: PathBuf, uuid: Uuid) -> Adoption {
        let dir = VmDir(dir);
        let adoption = adopt::adopt(dir.clone(), uuid, &self.groups).await;
        if let Adoption::Running(launched) = &adoption {
            self.logs.keep(&dir, &launched.machine).await;
        }
        adoption
    }

    async fn silent(&self, dir: PathBuf, uuid: Uuid) -> Result<Arc<dyn SilentMachine>> {
        Ok(Arc::new(unresponsive::find(VmDir(dir), uuid)?))
    }
}
