//! The hypervisor against a real QEMU. The guests are boot sectors of a few instructions, in a
//! store whose path is too long for a socket's address.

mod adoption;
mod kvm_probe;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::process::Process;
use super::run_record::RunRecord;
use super::{Qemu, run_record};
use crate::arch::Arch;
use crate::store::file;
use crate::store::layout::{Layout, VmDir};
use crate::vm::backend::{
    Accel, AccelKind, Adoption, BackendError, BootImage, DiskFormat, ForkBase, Hypervisor,
    ImageInfo, Images, LaunchPlan, Launched, Lifetime, MachineEvent, Recipe, SeedKind,
};
use crate::vm::spec::{AccelChoice, ImageSettings, VmSpec};
use crate::vm::stream::{Bell, Listener};
use crate::vm::template::{Capture, Captured, Layer, Memory, Template};

/// `hlt; jmp -1`.
const IDLE: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Sleeps for ever by the ACPI register of q35: `out 0x604, 0x2000`.
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4];
/// Writes 64 sectors, moves on by 64, and so on for ever (BIOS call 13h, function 43h).
const WRITER: &[u8] = &[
    0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x30, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0x66, 0x83, 0x06, 0x38,
    0x7c, 0x40, 0xeb, 0xf0,
];
/// Its address packet, at offset 0x30: 64 sectors from 1000:0000 to sector 2048.
const PACKET: &[u8] = &[0x10, 0, 64, 0, 0, 0, 0, 0x10, 0, 8, 0, 0, 0, 0, 0, 0];
/// Longer than anything here takes, also on a machine that is busy with other tests.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One VM in a store of its own. No QEMU of it outlives this value.
struct Vm {
    store: tempfile::TempDir,
    dir: VmDir,
    plan: LaunchPlan,
}

impl Vm {
    fn new(boot: &[u8]) -> Self {
        Self::within(tempfile::tempdir().unwrap(), boot)
    }

    fn within(store: tempfile::TempDir, boot: &[u8]) -> Self {
        let uuid = Uuid::new_v4();
        let layout = Layout::new(store.path().join("long".repeat(25)));
        let dir = layout.vm(uuid);
        file::private_dir(&dir.0).unwrap();
        let disk = layout.root().join("base, x.raw");
        write_boot_sector(&disk, boot);
        let plan = plan(uuid, &dir, &disk);
        Self { store, dir, plan }
    }

    fn paused() -> Self {
        let mut vm = Self::new(IDLE);
        vm.plan.paused = true;
        vm
    }

    fn qemu(&self) -> Qemu {
        let layout = Layout::new(self.store.path());
        Qemu::new(layout, Arc::new(OneKernel(None)))
    }

    async fn launch(&self) -> Launched {
        self.qemu().launch(self.plan.clone()).await.unwrap()
    }

    async fn adopt(&self) -> Adoption {
        self.qemu().adopt(self.dir.0.clone(), self.plan.uuid).await
    }

    /// The processes that run in the VM's directory.
    fn processes(&self) -> Vec<u32> {
        let cwd = fs::canonicalize(&self.dir.0).unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter(|e| fs::read_link(e.path().join("cwd")).is_ok_and(|d| d == cwd))
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for pid in self.processes() {
            let raw = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            let flags = rustix::process::PidfdFlags::empty();
            if let Ok(pidfd) = rustix::process::pidfd_open(raw, flags) {
                rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).ok();
                rustix::process::waitid(
                    rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
                    rustix::process::WaitIdOptions::EXITED,
                )
                .ok();
            }
        }
    }
}

fn write_boot_sector(disk: &Path, code: &[u8]) {
    let file = fs::File::create(disk).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(code, 0).unwrap();
    file.write_all_at(PACKET, 0x30).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

fn plan(uuid: Uuid, dir: &VmDir, disk: &Path) -> LaunchPlan {
    LaunchPlan {
        uuid,
        name: "vm1".into(),
        dir: dir.0.clone(),
        spec: VmSpec { memory: 32 << 20, disk: 64 << 20, ..VmSpec::default() },
        image: image(disk, None),
        accel: Accel { kind: AccelKind::Tcg, cpu: "max".into(), reason: "a test".into() },
        hardware: crate::vm::hardware::Hardware::NEWEST,
        paused: false,
        base: vec![Layer { path: disk.into(), format: DiskFormat::Raw }],
        nics: Vec::new(),
        disks: Vec::new(),
        memory: Memory::Own,
        cold: None,
        lifetime: Lifetime::Own,
    }
}

fn image(disk: &Path, kernel: Option<&Path>) -> BootImage {
    BootImage {
        name: "tiny".into(),
        digest: "sha256:0".into(),
        disk: disk.into(),
        format: DiskFormat::Raw,
        disk_size: 64 << 20,
        kernel: kernel.map(Into::into),
        efi_kernel: None,
        initrd: None,
        cmdline: String::new(),
        announces: true,
        seed: SeedKind::FwCfg,
        nvram: None,
    }
}

/// Images of which only the kernel counts.
#[derive(Debug)]
struct OneKernel(Option<std::path::PathBuf>);

#[async_trait]
impl Images for OneKernel {
    fn missing(&self, _name: &str) -> Vec<&'static crate::programs::Program> {
        Vec::new()
    }

    fn settings(&self, _: &str) -> ImageSettings {
        ImageSettings::default()
    }
    fn settings_of_disk(&self, _: &str) -> ImageSettings {
        ImageSettings::default()
    }
    fn list(&self) -> Vec<ImageInfo> {
        Vec::new()
    }
    fn info(&self, _: &str) -> Option<ImageInfo> {
        None
    }
    fn begin(&self, _: &str) -> Result<(), BackendError> {
        Ok(())
    }
    async fn template(&self, _: &str) -> Option<Result<Template, String>> {
        None
    }
    fn layers(&self, _: &BootImage, _: &Path) -> Result<Vec<Layer>, BackendError> {
        Ok(Vec::new())
    }
    fn bind(&self, _: &Path, _: &BootImage, _: &[Layer]) -> Result<(), BackendError> {
        Ok(())
    }
    fn refresh(&self, _: &str) -> Result<(), BackendError> {
        Ok(())
    }
    fn boot_of(&self, _: &str, _: &Path) -> Option<BootImage> {
        None
    }
    async fn ensure_for(&self, name: &str, _: &Path) -> Result<BootImage, BackendError> {
        self.ensure(name).await
    }
    fn warm(&self, _: &str, _: Arc<dyn Capture>) -> Result<(), BackendError> {
        Ok(())
    }
    async fn fork_base(&self, _: BootImage, _: &Captured) -> Result<ForkBase, BackendError> {
        unreachable!()
    }

    async fn copy_fork_base(&self, _: &ForkBase, _: &Captured) -> Result<(), BackendError> {
        unreachable!()
    }

    async fn fork_disk(&self, _: &ForkBase, _: &Path) -> Result<(), BackendError> {
        unreachable!()
    }

    fn forked(&self, _: ForkBase) {}

    fn sweep(&self) {}

    fn cool(&self, _: &str) -> Result<(), BackendError> {
        Ok(())
    }
    fn boot(&self, _: &str) -> Option<BootImage> {
        None
    }
    fn create(&self, _: &str) -> Result<(), BackendError> {
        Ok(())
    }
    fn assign(&self, _: &str, _: Recipe) -> Result<(), BackendError> {
        Ok(())
    }
    fn remove(&self, _: &str) -> Result<(), BackendError> {
        Ok(())
    }
    async fn ensure(&self, name: &str) -> Result<BootImage, BackendError> {
        let name = name.to_owned();
        let kernel = self.0.as_ref().ok_or(BackendError::NoImage { name })?;
        Ok(image(Path::new("/nowhere"), Some(kernel)))
    }
    fn listen(&self) -> Listener {
        Bell::default().listen()
    }
}

async fn next(events: &mut mpsc::Receiver<MachineEvent>) -> MachineEvent {
    let event = timeout(TIMEOUT, events.recv()).await;
    event.expect("no event in time").expect("no more events")
}

/// Waits for an event, passing over others.
async fn until(events: &mut mpsc::Receiver<MachineEvent>, wanted: &MachineEvent) {
    while next(events).await != *wanted {}
}

/// Reads events to the last one, which is the exit.
async fn end(events: &mut mpsc::Receiver<MachineEvent>) -> crate::vm::backend::ExitReport {
    loop {
        if let MachineEvent::Exited(report) = next(events).await {
            assert_eq!(timeout(TIMEOUT, events.recv()).await.unwrap(), None);
            return report;
        }
    }
}

fn record_of(vm: &Vm) -> RunRecord {
    run_record::read(&vm.dir).unwrap().unwrap()
}

#[tokio::test]
async fn what_is_lost_in_a_flood_of_events_is_asked_for_afterwards() {
    let vm = Vm::paused();
    let Launched { machine, mut events, .. } = vm.launch().await;
    for _ in 0..200 {
        machine.resume().await.unwrap();
        machine.reset().await.unwrap();
        machine.pause().await.unwrap();
    }
    let (mut last, mut count) = (None, 0);
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(3), events.recv()).await {
        if matches!(event, MachineEvent::Paused | MachineEvent::Resumed) {
            last = Some(event);
        }
        count += 1;
    }
    assert!(count > 200, "{count} events are no flood");
    assert_eq!(last, Some(MachineEvent::Paused));
    machine.kill().await.unwrap();
    end(&mut events).await;
}

#[tokio::test]
async fn a_machine_pauses_resumes_resets_and_ends_when_told() {
    let vm = Vm::paused();
    let Launched { machine, mut events, paused, .. } = vm.launch().await;
    let facts = machine.facts().clone();
    assert!(paused && facts.ssh_port > 0 && facts.uuid == vm.plan.uuid);
    assert_eq!(record_of(&vm).facts, facts);
    machine.resume().await.unwrap();
    until(&mut events, &MachineEvent::Resumed).await;
    machine.pause().await.unwrap();
    until(&mut events, &MachineEvent::Paused).await;
    machine.reset().await.unwrap();
    until(&mut events, &MachineEvent::Reset).await;
    machine.power_down().await.unwrap();
    machine.kill().await.unwrap();
    let report = end(&mut events).await;
    assert!(report.clean && report.status == "exit 0", "{report:?}");
    assert!(vm.processes().is_empty() && !vm.dir.run().exists());
    let error = machine.pause().await.unwrap_err();
    assert!(matches!(error, BackendError::QemuDied { .. }), "{error}");
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_ends_cleanly() {
    let vm = Vm::new(POWER_OFF);
    let Launched { mut events, .. } = vm.launch().await;
    until(&mut events, &MachineEvent::ShutDown { by_guest: true }).await;
    let report = end(&mut events).await;
    assert!(report.clean, "{report:?}");
    assert!(matches!(vm.adopt().await, Adoption::NeverRan));
}

#[tokio::test]
async fn nonsense_in_qemu_args_fails_with_qemus_own_words_and_leaves_nothing() {
    let mut vm = Vm::paused();
    vm.plan.spec.qemu_args = vec!["-device".into(), "nonsense".into()];
    let error = vm.qemu().launch(vm.plan.clone()).await.unwrap_err();
    let expected =
        "QEMU ended (exit 1): -device nonsense: 'nonsense' is not a valid device model name";
    assert_eq!(error.to_string(), expected);
    assert!(matches!(vm.adopt().await, Adoption::NeverRan));
    vm.plan.spec.qemu_args.clear();
    vm.launch().await.machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_machine_that_qemu_does_not_know_is_named() {
    let mut vm = Vm::paused();
    vm.plan.spec.machine = Some("pc-q35-99.9".into());
    let error = vm.qemu().launch(vm.plan.clone()).await.unwrap_err().to_string();
    assert!(
        error.ends_with("it knows no machine pc-q35-99.9; `echo q35 > config/machine`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_qemu_that_does_not_greet_is_ended_after_the_timeout() {
    let mut vm = Vm::paused();
    let waits = "socket,id=x,path=never,server=on,wait=on";
    vm.plan.spec.qemu_args = vec!["-chardev".into(), waits.into()];
    let error = vm.qemu().launch(vm.plan.clone()).await.unwrap_err();
    assert!(matches!(error, BackendError::QmpTimeout { .. }), "{error}");
    assert!(vm.processes().is_empty());
}

#[tokio::test]
async fn a_killed_qemu_is_noticed_and_remembered() {
    let vm = Vm::paused();
    let Launched { machine, mut events, .. } = vm.launch().await;
    let process = Process::of(machine.facts().pid).unwrap();
    process.signal(Signal::KILL).unwrap();
    let report = end(&mut events).await;
    assert_eq!((report.clean, report.status.as_str()), (false, "signal KILL"));
    let Adoption::Ended(reason) = vm.adopt().await else {
        panic!("a dead QEMU was adopted");
    };
    assert!(reason.contains("while no daemon watched"), "{reason}");
    vm.launch().await.machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_qemu_that_hangs_is_killed_within_the_timeouts() {
    let vm = Vm::paused();
    let Launched { machine, mut events, .. } = vm.launch().await;
    let process = Process::of(machine.facts().pid).unwrap();
    process.signal(Signal::STOP).unwrap();
    let began = Instant::now();
    machine.kill().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(6));
    assert_eq!(end(&mut events).await.status, "signal KILL");
    assert!(!vm.dir.run().exists(), "an end that was asked for is remembered as a failure");
}

#[tokio::test]
async fn a_second_qemu_for_one_vm_is_refused_and_harms_nothing() {
    let vm = Vm::paused();
    let launched = vm.launch().await;
    let error = vm.qemu().launch(vm.plan.clone()).await.unwrap_err();
    assert!(matches!(error, BackendError::Io { errno: libc::EBUSY, .. }), "{error}");
    launched.machine.resume().await.unwrap();
    launched.machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_launch_that_is_given_up_leaves_no_qemu() {
    let vm = Vm::paused();
    let qemu = vm.qemu();
    qemu.installation(Arch::HOST).await.unwrap();
    let appears = async {
        while vm.processes().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        result = qemu.launch(vm.plan.clone()) => panic!("too fast: {result:?}"),
        () = appears => {}
    }
    let vanishes = async {
        while !vm.processes().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, vanishes).await.unwrap();
}

/// A mounted tmpfs, which goes with this value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let size = c"size=4m";
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, size).ok()?;
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_pauses_the_guest_which_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new() else {
        println!("skipped: it takes the right to mount a tmpfs");
        return;
    };
    let filler = disk.0.path().join("filler");
    fs::write(&filler, vec![0; 1 << 20]).unwrap();
    let vm = Vm::within(tempfile::tempdir_in(disk.0.path()).unwrap(), WRITER);
    let Launched { machine, mut events, .. } = vm.launch().await;
    until(&mut events, &MachineEvent::DiskFull).await;
    until(&mut events, &MachineEvent::Paused).await;
    fs::remove_file(&filler).unwrap();
    machine.resume().await.unwrap();
    until(&mut events, &MachineEvent::Resumed).await;
    machine.kill().await.unwrap();
    drop(vm);
}
