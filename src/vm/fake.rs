//! Fakes for tests of the layers above: machines that a test plays, guests that answer
//! at once (`fake::guest`), one image. Never part of the program.

mod guest;
mod machine;
mod snapshots;
pub(super) mod switch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::BoxFuture;
use machine::FakeMachine;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Backends;
use super::backend::*;
use super::defaults::Defaults;
use super::hardware::{Devices, Hardware};
use super::limits::Limits;
use super::live::{Bound, InForce};
use super::memory::{Ledger, Ram};
use super::nets::Nets;
use super::spec::net::{Forward, Mac};
use super::spec::{AccelChoice, CpuLimit, HostLimits, ImageSettings, IoLimit, VmSpec};
use super::stream::{Bell, Listener, Readiness, Stream, StreamAccess};
use super::template::{
    Capture, Captured, Layer, Memory, Purpose, Saved, SavedDisk, SavedMachine, Shape, Template,
    WarmStatus,
};
use crate::arch::Arch;
use crate::programs::Program;
use crate::store::failure_log::FailureLog;
use crate::store::layout::{Layout, VmDir};
use crate::vm::VmError;

/// What a test says of the backends, and sees of it.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// The next launch fails like this.
    pub(crate) launch_error: Mutex<Option<BackendError>>,
    /// What is not installed.
    pub(crate) missing: Mutex<Vec<&'static Program>>,
    /// Guests do not answer.
    pub(crate) mute: Mutex<bool>,
    /// The power button does nothing.
    pub(crate) stubborn: Mutex<bool>,
    /// Of which hardware saved memories are.
    pub(crate) saved_hardware: Mutex<Option<Hardware>>,
    /// Where machines whose memory is saved had data disks.
    pub(crate) saved_disks: Mutex<Option<Vec<DiskPlace>>>,
    /// The template of the image.
    pub(crate) template: Mutex<Option<Result<Template, String>>>,
    /// How many layers the disk made last was noted to lie on.
    pub(crate) bound: Mutex<usize>,
    /// What the image carries.
    pub(crate) carried: Mutex<ImageSettings>,
    /// The next capture fails like this.
    pub(crate) capture_error: Mutex<Option<BackendError>>,
    /// The next clone does not take it.
    pub(crate) load_error: Mutex<Option<BackendError>>,
    /// The next clone cannot be personalized, for this reason.
    pub(crate) personalize_error: Mutex<Option<BackendError>>,
    /// What was asked of machines.
    pub(crate) calls: Mutex<Vec<&'static str>>,
    /// What its shape was changed to.
    pub(crate) changes: Mutex<Vec<String>>,
    /// The directories of the host that its guest was told to mount last.
    pub(crate) mounted: Mutex<Vec<Mount>>,
    /// Ports of the host that are taken.
    pub(crate) taken: Mutex<Vec<u16>>,
    /// How large disks are, once there are any.
    pub(crate) disk: Mutex<Option<u64>>,
    /// The next snapshot of a machine that runs fails like this.
    pub(crate) snapshot_error: Mutex<Option<BackendError>>,
    /// The next snapshot of a VM that is off fails like this.
    pub(crate) disk_error: Mutex<Option<BackendError>>,
    /// Whoever looks at snapshots meets a fault.
    pub(crate) faulty: Mutex<bool>,
    /// How long a snapshot takes.
    pub(crate) slow: Mutex<Duration>,
    /// How long a change of the machine takes.
    pub(crate) slow_change: Mutex<Duration>,
    /// The next change of a machine fails like this.
    pub(crate) change_error: Mutex<Option<BackendError>>,
    /// Machines do not answer a later daemon.
    pub(crate) silent: Mutex<bool>,
    /// The process that should be such a machine's is not surely it.
    pub(crate) silent_error: Mutex<Option<BackendError>>,
    /// How much memory the host has; `None`: any amount.
    pub(crate) memory: Mutex<Option<u64>>,
    /// How much of it each machine has taken.
    pub(crate) taken_memory: Mutex<u64>,
    /// Whoever asks for the hypervisor's facts waits for this.
    pub(crate) disk_hangs: Mutex<()>,
    /// The events of the machine launched last.
    pub(crate) events: Mutex<Option<mpsc::Sender<MachineEvent>>>,
    /// The machines that run, which a later daemon finds again.
    machines: Mutex<HashMap<Uuid, Arc<FakeMachine>>>,
}

impl Script {
    /// Has the machine report something.
    pub(crate) async fn report(&self, event: MachineEvent) {
        let events = self.events.lock().clone().unwrap();
        events.send(event).await.unwrap();
    }

    /// Has the machine of a VM report something; `Exited` is its end.
    pub(crate) async fn report_of(&self, vm: Uuid, event: MachineEvent) {
        let machine = self.machines.lock().get(&vm).cloned().unwrap();
        machine.report(event).await;
    }

    /// Forgets a machine that has ended.
    fn forget(&self, vm: Uuid) {
        self.machines.lock().remove(&vm);
    }

    /// Says whether a VM's machine runs.
    pub(crate) fn runs(&self, vm: Uuid) -> bool {
        self.machines.lock().contains_key(&vm)
    }
}

/// Makes a hypervisor that follows a script.
pub(crate) fn fake(script: &Arc<Script>) -> Arc<dyn Hypervisor> {
    Arc::new(Fake(Arc::clone(script)))
}

/// Makes backends that follow a script.
pub(crate) fn backends(script: &Arc<Script>) -> Backends {
    let fake = Arc::new(Fake(Arc::clone(script)));
    let limits = Limits::open(&Layout::new("/nowhere"), fake.clone(), &FailureLog::default());
    let defaults = Defaults::open("/nowhere/defaults.json".into(), None, &FailureLog::default());
    Backends {
        hypervisor: fake.clone(),
        memory: Ledger::new(fake.clone(), Arc::clone(&limits)),
        limits,
        nets: Nets::open(
            &Layout::new("/nowhere"),
            Arc::new(switch::FakeSwitches),
            &FailureLog::default(),
        ),
        guests: fake.clone(),
        images: fake,
        events: Arc::default(),
        failures: Arc::default(),
        defaults: Arc::new(defaults),
        file_changes: Arc::default(),
        own_dirs: Arc::from(["/nowhere/mount".into(), "/nowhere/store".into()]),
    }
}

/// How a fake QEMU ends when all is well.
pub(crate) fn clean_exit() -> MachineEvent {
    let report =
        ExitReport { clean: true, status: "exit 0".into(), stderr: String::new(), unusable: None };
    MachineEvent::Exited(report)
}

/// Makes a machine without a driver.
pub(crate) fn launched(script: &Arc<Script>, plan: LaunchPlan) -> Launched {
    machine::launched(script, plan)
}

/// Makes a machine that does not answer.
pub(crate) fn silent(script: &Arc<Script>) -> Arc<dyn SilentMachine> {
    Arc::new(machine::Silent(Arc::clone(script), Uuid::nil()))
}

/// Makes a connection to a guest.
pub(crate) fn session(script: &Arc<Script>) -> Arc<dyn GuestSession> {
    Arc::new(guest::FakeSession(Arc::clone(script)))
}

/// Makes the plan of a machine with the built-in settings.
pub(crate) fn plan() -> LaunchPlan {
    LaunchPlan {
        uuid: Uuid::nil(),
        name: "vm1".into(),
        dir: "/nowhere".into(),
        spec: VmSpec::default(),
        image: boot_image("tiny"),
        accel: accel(),
        hardware: Hardware::NEWEST,
        paused: false,
        base: Vec::new(),
        nics: Vec::new(),
        disks: Vec::new(),
        memory: Memory::Own,
        cold: None,
        lifetime: Lifetime::Own,
    }
}

fn accel() -> Accel {
    Accel { kind: AccelKind::Tcg, cpu: "max".into(), reason: "fake".into() }
}

fn boot_image(name: &str) -> BootImage {
    BootImage {
        name: name.to_owned(),
        digest: "sha256:0".into(),
        disk: "/nowhere".into(),
        format: DiskFormat::Raw,
        disk_size: 0,
        kernel: None,
        efi_kernel: None,
        initrd: None,
        cmdline: String::new(),
        announces: false,
        seed: SeedKind::FwCfg,
        nvram: None,
    }
}

#[derive(Debug)]
struct Fake(Arc<Script>);

#[async_trait]
impl Hypervisor for Fake {
    fn facts(&self) -> Vec<(&'static str, String)> {
        drop(self.0.disk_hangs.lock());
        vec![("accel", "tcg: fake".to_owned())]
    }

    fn missing(&self, _arch: Arch) -> Vec<&'static Program> {
        self.0.missing.lock().clone()
    }

    async fn accel(&self, choice: AccelChoice, _arch: Arch) -> Result<Accel, BackendError> {
        if choice == AccelChoice::Kvm {
            return Err(BackendError::NoAccelerator {
                wanted: "kvm".into(),
                reason: "fake".into(),
            });
        }
        Ok(accel())
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, BackendError> {
        if let Some(error) = self.0.launch_error.lock().take() {
            return Err(error);
        }
        snapshots::make_disk(&plan.dir);
        self.0.disk.lock().get_or_insert(plan.spec.disk);
        Ok(machine::launched(&self.0, plan))
    }

    fn memory_available(&self) -> u64 {
        self.0.memory.lock().unwrap_or(u64::MAX)
    }

    fn memory_overhead(&self, _spec: &VmSpec) -> u64 {
        0
    }

    fn memory_taken(&self, _facts: &RunFacts, _ram: Ram) -> u64 {
        *self.0.taken_memory.lock()
    }

    fn cpu_ms(&self, _facts: &RunFacts) -> u64 {
        0
    }

    fn has_connections(&self, _ports: &[u16]) -> bool {
        false
    }

    fn limits(&self, _facts: &RunFacts, _spec: &VmSpec) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    async fn limit_all_cpus(&self, _limit: Option<CpuLimit>) {}

    fn holds_cpus(&self) -> Result<(), String> {
        Ok(())
    }

    fn disk_size(&self, _dir: &Path) -> Result<Option<u64>, BackendError> {
        Ok(*self.0.disk.lock())
    }

    async fn shape(&self, plan: &LaunchPlan) -> Result<Shape, BackendError> {
        Ok(Shape {
            accel: plan.accel.kind,
            cpu: plan.accel.cpu.clone(),
            cpus: plan.spec.cpus,
            memory: plan.spec.memory,
            disk: plan.spec.disk,
            devices: Devices { hardware: plan.hardware, ..Devices::default() },
            ..Shape::sample()
        })
    }

    fn saved_hardware(&self, _dir: &Path, _tag: &str) -> Option<Hardware> {
        *self.0.saved_hardware.lock()
    }

    fn saved_disks(&self, _dir: &Path, _tag: &str) -> Option<Vec<DiskPlace>> {
        self.0.saved_disks.lock().clone()
    }

    async fn make_data_disk(
        &self,
        dir: &Path,
        number: u32,
        bytes: u64,
    ) -> Result<(), BackendError> {
        let dir = VmDir(dir.to_owned());
        std::fs::create_dir_all(dir.data_disks()).unwrap();
        std::fs::write(dir.data_disk(number), bytes.to_string()).unwrap();
        Ok(())
    }

    async fn grow_data_disk(
        &self,
        dir: &Path,
        number: u32,
        bytes: u64,
    ) -> Result<(), BackendError> {
        self.make_data_disk(dir, number, bytes).await
    }

    fn data_disk_size(&self, dir: &Path, number: u32) -> Result<Option<u64>, BackendError> {
        let text = std::fs::read_to_string(VmDir(dir.to_owned()).data_disk(number));
        Ok(text.ok().and_then(|text| text.trim().parse().ok()))
    }

    fn data_disk_snapshots(&self, dir: &Path, _number: u32) -> Vec<SnapshotInfo> {
        snapshots::list(dir)
    }

    async fn erase_data_disk(&self, dir: &Path, number: u32) -> Result<(), BackendError> {
        let dir = VmDir(dir.to_owned());
        std::fs::remove_file(dir.data_disk(number)).ok();
        std::fs::remove_file(dir.removed_disk(number)).ok();
        Ok(())
    }

    fn recover_disk(&self, _dir: &Path) -> Result<(), BackendError> {
        Ok(())
    }

    async fn discard_disk(&self, _dir: &Path) -> Result<(), BackendError> {
        *self.0.disk.lock() = None;
        self.0.calls.lock().push("discard");
        Ok(())
    }

    async fn snapshot(&self, dir: PathBuf, op: &SnapshotOp) -> Result<(), BackendError> {
        self.0.calls.lock().push("snapshot, off");
        let slow = *self.0.slow.lock();
        tokio::time::sleep(slow).await;
        if let Some(error) = self.0.disk_error.lock().take() {
            return Err(error);
        }
        snapshots::perform(&dir, op, 0);
        Ok(())
    }

    fn snapshots(&self, dir: &Path) -> Vec<SnapshotInfo> {
        assert!(!*self.0.faulty.lock(), "a fault");
        snapshots::list(dir)
    }

    async fn adopt(&self, _dir: PathBuf, uuid: Uuid) -> Adoption {
        let Some(machine) = self.0.machines.lock().get(&uuid).cloned() else {
            return Adoption::NeverRan;
        };
        if *self.0.silent.lock() {
            return Adoption::Unclear("fake".to_owned());
        }
        let (to, events) = mpsc::channel(16);
        *machine.events.lock() = to;
        let paused = machine.paused.load(Ordering::Relaxed);
        Adoption::Running(Launched { machine, events, paused, clock_is_behind: false })
    }

    async fn silent(
        &self,
        _dir: PathBuf,
        uuid: Uuid,
    ) -> Result<Arc<dyn SilentMachine>, BackendError> {
        match self.0.silent_error.lock().clone() {
            Some(error) => Err(error),
            None => Ok(Arc::new(machine::Silent(Arc::clone(&self.0), uuid))),
        }
    }
}

/// A stream that never says anything.
#[derive(Debug)]
struct Silence(Bell);

impl Stream for Silence {
    fn try_read(&self, _max: usize) -> Option<Result<Vec<u8>, VmError>> {
        None
    }

    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        Some(Ok(data.len()))
    }

    fn readiness(&self) -> Readiness {
        Readiness { readable: false, writable: true, hung_up: false }
    }

    fn listen(&self) -> Listener {
        self.0.listen()
    }
}

#[async_trait]
impl Images for Fake {
    fn missing(&self, _name: &str) -> Vec<&'static Program> {
        Vec::new()
    }

    fn list(&self) -> Vec<ImageInfo> {
        self.info("tiny").into_iter().collect()
    }

    fn info(&self, name: &str) -> Option<ImageInfo> {
        (name == "tiny").then(|| ImageInfo {
            name: name.to_owned(),
            source: "builtin:tiny".into(),
            kind: "builtin".into(),
            parent: String::new(),
            digest: "sha256:0".into(),
            size: 0,
            status: ImageStatus::Ready,
            progress: String::new(),
            changed: SystemTime::UNIX_EPOCH,
            warm: WarmStatus::Cold,
            settings: self.settings(name),
            recipe: None,
            inputs: Vec::new(),
        })
    }

    fn settings(&self, _name: &str) -> ImageSettings {
        self.0.carried.lock().clone()
    }

    fn settings_of_disk(&self, _name: &str) -> ImageSettings {
        self.0.carried.lock().without_machine()
    }

    async fn template(&self, _name: &str) -> Option<Result<Template, String>> {
        self.0.template.lock().clone()
    }

    fn layers(&self, image: &BootImage, _dir: &Path) -> Result<Vec<Layer>, BackendError> {
        Ok(vec![Layer { path: image.disk.clone(), format: image.format }])
    }

    fn bind(&self, _dir: &Path, _image: &BootImage, base: &[Layer]) -> Result<(), BackendError> {
        *self.0.bound.lock() = base.len();
        Ok(())
    }

    fn refresh(&self, _name: &str) -> Result<(), BackendError> {
        Ok(())
    }

    fn boot_of(&self, _name: &str, _dir: &Path) -> Option<BootImage> {
        None
    }

    async fn ensure_for(&self, name: &str, _dir: &Path) -> Result<BootImage, BackendError> {
        self.ensure(name).await
    }

    fn warm(&self, name: &str, _machine: Arc<dyn Capture>) -> Result<(), BackendError> {
        Err(BackendError::ImageBusy { name: name.to_owned(), reason: "fake".into() })
    }

    fn cool(&self, _name: &str) -> Result<(), BackendError> {
        Ok(())
    }

    fn begin(&self, _name: &str) -> Result<(), BackendError> {
        Ok(())
    }

    fn boot(&self, _name: &str) -> Option<BootImage> {
        None
    }

    fn create(&self, name: &str) -> Result<(), BackendError> {
        Err(BackendError::ImageExists { name: name.to_owned() })
    }

    fn assign(&self, name: &str, _recipe: Recipe) -> Result<(), BackendError> {
        Err(BackendError::ImageExists { name: name.to_owned() })
    }

    fn remove(&self, name: &str) -> Result<(), BackendError> {
        Err(BackendError::ImageBusy { name: name.to_owned(), reason: "fake".into() })
    }

    async fn ensure(&self, name: &str) -> Result<BootImage, BackendError> {
        Ok(boot_image(name))
    }

    async fn fork_base(
        &self,
        image: BootImage,
        captured: &Captured,
    ) -> Result<ForkBase, BackendError> {
        Ok(ForkBase {
            image,
            layers: captured.disk.clone(),
            reflink: None,
            size: 0,
            data: Vec::new(),
        })
    }

    async fn copy_fork_base(
        &self,
        _base: &ForkBase,
        _captured: &Captured,
    ) -> Result<(), BackendError> {
        Ok(())
    }

    async fn fork_disk(&self, _base: &ForkBase, dir: &Path) -> Result<(), BackendError> {
        snapshots::make_disk(dir);
        Ok(())
    }

    fn forked(&self, _base: ForkBase) {}

    fn sweep(&self) {}

    fn listen(&self) -> Listener {
        Bell::default().listen()
    }
}
