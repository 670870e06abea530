//! The driver with fake backends: what each verb and each event does to the state.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::{Definition, NewVm, spawn};
use crate::arch::Arch;
use crate::programs;
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::{
    BackendError, DiskFormat, ExitReport, Lifetime, MachineEvent, SnapshotOp,
};
use crate::vm::fake::{Script, backends, clean_exit};
use crate::vm::spec::{Edit, ImageSettings, VmSettings, VmSpec};
use crate::vm::state::{Command, Refusal, State};
use crate::vm::stream::{self, Stream};
use crate::vm::template::{Layer, Purpose, Saved, Shape, Template};
use crate::vm::{Backends, Vm, VmError, VmId};

pub(in crate::vm) const START: Command = Command::Start { paused: false };

async fn vm(dir: &Path, script: &Arc<Script>) -> Vm {
    vm_in(&backends(script), dir, Uuid::new_v4()).await
}

pub(in crate::vm) async fn vm_in(backends: &Backends, dir: &Path, uuid: Uuid) -> Vm {
    let settings = VmSettings::new(VmSpec::default());
    let definition = Definition::new(Uuid::nil(), SystemTime::now(), settings);
    let new_vm = NewVm {
        lifetime: Lifetime::Own,
        id: VmId(1),
        uuid,
        dir: VmDir(dir.to_owned()),
        name: "vm1".into(),
        definition: Ok(definition),
    };
    spawn(new_vm, backends.clone()).await
}

pub(in crate::vm) async fn until(vm: &Vm, wanted: &State) {
    let mut listener = vm.listen();
    while vm.state() != *wanted {
        tokio::time::timeout(Duration::from_secs(60), listener.rung()).await.unwrap();
    }
}

struct Fixture {
    _dir: Scratch,
    script: Arc<Script>,
    vm: Vm,
}

/// A directory that is gone in the end, although the driver may be adding a line to the VM's log in
/// this very moment.
pub(in crate::vm) struct Scratch(pub(in crate::vm) tempfile::TempDir);

impl Drop for Scratch {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir_all(self.0.path()).is_ok() || !self.0.path().exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

async fn fixture() -> Fixture {
    let dir = Scratch(tempfile::tempdir().unwrap());
    let script = Arc::<Script>::default();
    let vm = vm(dir.0.path(), &script).await;
    Fixture { _dir: dir, script, vm }
}

async fn ready() -> Fixture {
    let fixture = fixture().await;
    fixture.vm.perform(START).await.unwrap();
    until(&fixture.vm, &State::Ready).await;
    fixture
}

#[tokio::test(start_paused = true)]
async fn start_leads_to_ready_and_the_notice_says_so() {
    let Fixture { _dir, vm, .. } = ready().await;
    let notice: Arc<dyn Stream> = Arc::new(crate::vm::notice::Notice::ready(&vm).unwrap());
    let line = stream::read(Arc::clone(&notice), 100).await.unwrap();
    assert!(line.starts_with(b"ready ") && line.ends_with(b"ms\n"), "{line:?}");
    assert_eq!(notice.try_read(100).unwrap().unwrap(), b"");
}

/// The fake images have no base to capture upon.
#[tokio::test(start_paused = true)]
async fn a_capture_that_fails_before_it_begins_leaves_the_vm_as_it_was() {
    let Fixture { _dir, vm, script } = ready().await;
    assert!(vm.capture(Purpose::Template, "/nowhere".into()).await.is_err());
    until(&vm, &State::Ready).await;
    vm.perform(Command::Reset).await.unwrap();
    assert!(!script.calls.lock().contains(&"capture"));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_is_running_and_not_ready() {
    let Fixture { _dir, vm, script } = fixture().await;
    *script.mute.lock() = true;
    vm.perform(START).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(vm.state(), State::Running);
    *script.mute.lock() = false;
    until(&vm, &State::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn stop_presses_the_button_and_the_guest_obeys() {
    let Fixture { _dir, vm, script } = ready().await;
    vm.perform(Command::Stop { seconds: 30 }).await.unwrap();
    until(&vm, &State::Stopped).await;
    assert_eq!(*script.calls.lock(), ["exec", "power_down"]);
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_ours_leaves_nobody_waiting() {
    let Fixture { _dir, vm, script } = ready().await;
    *script.faulty.lock() = true;
    assert!(vm.perform(SnapshotOp::Take("now".into()).into()).await.is_err());
    let mut listener = vm.listen();
    while !matches!(vm.state(), State::Failed(_)) {
        listener.rung().await;
    }
    assert!(vm.state().to_string().contains("`aq umount` and `aq mount`"));
}

#[tokio::test(start_paused = true)]
async fn a_deaf_guest_is_asked_over_ssh_and_then_killed() {
    let Fixture { _dir, vm, script } = ready().await;
    *script.stubborn.lock() = true;
    let begun = tokio::time::Instant::now();
    vm.perform(Command::Stop { seconds: 10 }).await.unwrap();
    until(&vm, &State::Stopped).await;
    assert_eq!(*script.calls.lock(), ["exec", "power_down", "exec", "kill"]);
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_resumed_to_be_stopped() {
    let Fixture { _dir, vm, script } = ready().await;
    vm.perform(Command::Pause).await.unwrap();
    assert_eq!(vm.state(), State::Paused);
    vm.perform(Command::Stop { seconds: 30 }).await.unwrap();
    until(&vm, &State::Stopped).await;
    assert_eq!(*script.calls.lock(), ["exec", "pause", "resume", "power_down"]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_powers_itself_off_ends_stopped() {
    let Fixture { _dir, vm, script } = ready().await;
    script.report(MachineEvent::ShutDown { by_guest: true }).await;
    script.report(clean_exit()).await;
    until(&vm, &State::Stopped).await;
    assert_eq!(vm.failure(), None);
}

#[tokio::test(start_paused = true)]
async fn a_qemu_that_dies_is_failed_with_its_last_words() {
    let Fixture { _dir, vm, script } = ready().await;
    let report = ExitReport {
        clean: false,
        status: "signal KILL".into(),
        stderr: "out of luck".into(),
        unusable: None,
    };
    script.report(MachineEvent::Exited(report)).await;
    let failed = State::Failed("QEMU ended (signal KILL): out of luck".into());
    until(&vm, &failed).await;
    assert_eq!(vm.failure().unwrap(), "QEMU ended (signal KILL): out of luck");
    vm.perform(START).await.unwrap();
    until(&vm, &State::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_fails_is_told_and_kept() {
    let Fixture { _dir, vm, script } = fixture().await;
    let died = BackendError::QemuDied { status: "exit 1".into(), stderr: "-x: bad".into() };
    *script.launch_error.lock() = Some(died);
    let error = vm.perform(START).await.unwrap_err();
    assert!(matches!(error, VmError::Backend(BackendError::QemuDied { .. })), "{error}");
    assert_eq!(vm.state(), State::Failed("QEMU ended (exit 1): -x: bad".into()));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_before_qemu_leaves_the_state_alone() {
    let Fixture { _dir, vm, .. } = fixture().await;
    let key = |name: &str| crate::vm::spec::KEYS.iter().find(|k| k.name == name).unwrap();
    let set = |name, value: &str| {
        vm.clone().configure(key(name), value.to_owned(), crate::vm::WriteMode::Replace)
    };
    set("image", "nosuch").await.unwrap();
    let error = vm.perform(START).await.unwrap_err();
    assert!(matches!(error, VmError::Backend(BackendError::NoImage { .. })), "{error}");
    set("image", "tiny").await.unwrap();
    set("accel", "kvm").await.unwrap();
    let error = vm.perform(START).await.unwrap_err();
    assert!(matches!(error, VmError::Backend(BackendError::NoAccelerator { .. })), "{error}");
    assert_eq!(vm.state(), State::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_start_without_its_programs_is_refused_before_any_work() {
    let Fixture { _dir, vm, script } = fixture().await;
    script.missing.lock().extend([&Arch::X86_64.platform().emulator, &programs::QEMU_IMG]);
    let since = vm.view().since;
    let error = vm.perform(START).await.unwrap_err();
    let words =
        "qemu-system-x86_64, qemu-img are not installed; `apt install qemu-system-x86 qemu-utils`";
    assert!(error.to_string().starts_with(words), "{error}");
    assert_eq!((vm.state(), vm.view().since), (State::Stopped, since), "it has not been starting");
    script.missing.lock().clear();
    vm.perform(START).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_running_until_the_guest_answers_again() {
    let Fixture { _dir, vm, script } = ready().await;
    *script.mute.lock() = true;
    vm.perform(Command::Reset).await.unwrap();
    assert_eq!(vm.state(), State::Running);
    *script.mute.lock() = false;
    until(&vm, &State::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_pauses_and_says_so() {
    let Fixture { _dir, vm, script } = ready().await;
    script.report(MachineEvent::DiskFull).await;
    until(&vm, &State::Paused).await;
    assert!(vm.failure().unwrap().starts_with("no space left"), "{:?}", vm.failure());
    vm.perform(Command::Resume).await.unwrap();
    until(&vm, &State::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_finds_nothing_to_end_while_a_vm_that_is_off_is_saved() {
    let Fixture { _dir, vm, script } = ready().await;
    vm.perform(Command::Kill).await.unwrap();
    until(&vm, &State::Stopped).await;
    *script.slow.lock() = Duration::from_secs(60);
    vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
    assert_eq!(vm.state(), State::Saving);
    vm.perform(Command::Kill).await.unwrap();
    until(&vm, &State::Stopped).await;
    assert_eq!(script.calls.lock().last(), Some(&"snapshot, off"));
}

#[tokio::test(start_paused = true)]
async fn a_qemu_that_dies_while_it_saves_is_never_shown_as_it_was_before() {
    let Fixture { _dir, vm, script } = ready().await;
    let (status, stderr) = ("signal KILL".to_owned(), String::new());
    // The connection may be seen to close before the process is seen to end.
    *script.snapshot_error.lock() =
        Some(BackendError::QemuDied { status: "unknown".into(), stderr: stderr.clone() });
    vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
    assert_eq!(vm.state(), State::Saving);
    let report = ExitReport { clean: false, status, stderr, unusable: None };
    script.report(MachineEvent::Exited(report)).await;
    until(&vm, &State::Failed("QEMU ended (signal KILL):".into())).await;
    assert!(vm.all_snapshots()[0].status.starts_with("failed: QEMU ended (signal KILL)"));
}

#[tokio::test(start_paused = true)]
async fn settings_are_stored_and_the_image_is_fixed_by_the_disk() {
    let Fixture { _dir, vm, .. } = ready().await;
    let key = |name: &str| crate::vm::spec::KEYS.iter().find(|k| k.name == name).unwrap();
    let mode = crate::vm::WriteMode::Replace;
    vm.clone().configure(key("memory"), "512M\n".into(), mode).await.unwrap();
    let stored: Definition = crate::store::file::read_json(&vm.dir().definition()).unwrap();
    assert_eq!(stored.settings.resolve(&ImageSettings::default()).memory, 512 << 20);
    let error = vm.clone().configure(key("image"), "other".into(), mode).await.unwrap_err();
    assert!(matches!(error, VmError::Refused(Refusal::HasDisk { .. })), "{error}");
}

/// A VM of an image that carries this memory.
async fn of_image(memory: u64) -> Fixture {
    let fixture = fixture().await;
    *fixture.script.carried.lock() = ImageSettings::of_shape(2, memory, 2 << 30);
    fixture
}

#[tokio::test(start_paused = true)]
async fn a_vm_follows_its_image_until_it_has_a_disk_and_keeps_then_what_it_was_made_with() {
    let Fixture { _dir, vm, script } = of_image(1 << 30).await;
    assert_eq!((vm.spec().memory, vm.spec().cpus), (1 << 30, 2));
    *script.carried.lock() = ImageSettings::of_shape(2, 512 << 20, 2 << 30);
    assert_eq!(vm.spec().memory, 512 << 20);
    set(&vm, "cpus", "3").await.unwrap();
    vm.perform(START).await.unwrap();
    until(&vm, &State::Ready).await;
    let in_force = vm.view().facts.unwrap().in_force.unwrap().spec;
    assert_eq!((in_force.memory, in_force.cpus), (512 << 20, 3));
    // The image is warmed with other settings.
    *script.carried.lock() = ImageSettings::of_shape(2, 4 << 30, 2 << 30);
    assert_eq!(vm.spec().memory, 512 << 20);
    set(&vm, "cpus", "default").await.unwrap();
    assert_eq!((vm.spec().cpus, vm.spec().memory), (2, 512 << 20));
    vm.perform(Command::Kill).await.unwrap();
    until(&vm, &State::Stopped).await;
    // A later daemon finds the same.
    let found = crate::store::file::read_json::<Definition>(&vm.dir().definition()).unwrap();
    let new_vm = NewVm {
        lifetime: Lifetime::Own,
        id: VmId(2),
        uuid: vm.uuid(),
        dir: vm.dir().clone(),
        name: "vm1".into(),
        definition: Ok(found),
    };
    let later = spawn(new_vm, backends(&script)).await;
    assert_eq!(later.spec(), vm.spec());
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_makes_no_disk_binds_the_vm_to_nothing() {
    let Fixture { _dir, vm, script } = of_image(1 << 30).await;
    let died = BackendError::QemuDied { status: "exit 1".into(), stderr: "no".into() };
    *script.launch_error.lock() = Some(died);
    vm.perform(START).await.unwrap_err();
    *script.carried.lock() = ImageSettings::of_shape(2, 512 << 20, 2 << 30);
    assert_eq!(vm.spec().memory, 512 << 20);
}

#[tokio::test(start_paused = true)]
async fn the_image_is_fixed_while_a_disk_is_being_made_of_it_and_free_after_a_start_is_called_off()
{
    let Fixture { _dir, vm, script } = of_image(1 << 30).await;
    let starter = vm.clone();
    let begun = tokio::spawn(async move { starter.perform(START).await });
    until(&vm, &State::Starting).await;
    let error = set(&vm, "image", "other").await.unwrap_err();
    assert!(matches!(error, VmError::Refused(Refusal::Busy { .. })), "{error}");
    vm.perform(Command::Kill).await.unwrap();
    drop(begun.await);
    if !vm.dir().disk().exists() {
        *script.carried.lock() = ImageSettings::of_shape(2, 512 << 20, 2 << 30);
        assert_eq!(vm.spec().memory, 512 << 20);
    }
}

#[tokio::test(start_paused = true)]
async fn what_prevents_a_warm_start_is_an_event_with_the_next_step() {
    let Fixture { _dir, vm, script } = fixture().await;
    *script.template.lock() = Some(Ok(template()));
    set(&vm, "memory", "512M").await.unwrap();
    let events = vm.open_events();
    vm.perform(START).await.unwrap();
    until(&vm, &State::Ready).await;
    let text = String::from_utf8(events.try_read(1 << 16).unwrap().unwrap()).unwrap();
    let expected = " warm no: memory is 512M, the image's is 256M; `echo default > config/memory` \
        takes the image's\n";
    assert!(text.contains(expected), "{text}");
    assert_eq!(vm.failure(), None);
}

pub(in crate::vm) async fn set(vm: &Vm, name: &str, text: &str) -> Result<(), VmError> {
    let key = crate::vm::spec::KEYS.iter().find(|k| k.name == name).unwrap();
    vm.clone().configure(key, text.to_owned(), crate::vm::WriteMode::Replace).await
}

fn pending(vm: &Vm) -> Vec<&'static str> {
    vm.view().facts.unwrap().in_force.unwrap().pending(&vm.spec())
}

#[tokio::test(start_paused = true)]
async fn a_running_machine_follows_its_settings_as_far_as_it_can() {
    let Fixture { _dir, vm, script } = ready().await;
    set(&vm, "memory", "128M").await.unwrap();
    assert_eq!(pending(&vm), Vec::<&str>::new());
    set(&vm, "memory", "1G").await.unwrap();
    set(&vm, "cpus", "2").await.unwrap();
    set(&vm, "cdrom", "/x.iso").await.unwrap();
    set(&vm, "protect", "1").await.unwrap();
    assert_eq!(pending(&vm), ["cpus", "memory", "cdrom"]);
    vm.perform(Command::Configure(Edit::Disk(3 << 30))).await.unwrap();
    let keys = vec![vec!["a".to_owned()]];
    vm.perform(Command::PressKeys { chords: keys }).await.unwrap();
    let mebi = |n: u64| n << 20;
    let expected = [
        format!("memory {}", mebi(128)),
        // Back to what it was started with, no further.
        format!("memory {}", mebi(256)),
        format!("disk {}", mebi(3072)),
        "keys [[\"a\"]]".to_owned(),
    ];
    assert_eq!(*script.changes.lock(), expected);
    vm.perform(Command::Kill).await.unwrap();
    until(&vm, &State::Stopped).await;
    vm.perform(START).await.unwrap();
    assert_eq!(pending(&vm), Vec::<&str>::new());
}

#[tokio::test(start_paused = true)]
async fn ports_change_all_or_not_at_all() {
    let Fixture { _dir, vm, script } = ready().await;
    set(&vm, "ports", "1:1\n2:2").await.unwrap();
    script.taken.lock().push(4);
    let before = vm.spec();
    let error = set(&vm, "ports", "3:3\n2:2\n4:4").await.unwrap_err();
    assert!(matches!(error, VmError::Backend(BackendError::PortTaken { .. })), "{error}");
    assert_eq!(vm.spec(), before);
    let stored: Definition = crate::store::file::read_json(&vm.dir().definition()).unwrap();
    assert_eq!(stored.settings.resolve(&ImageSettings::default()), *before);
    let forward = |text: &str| text.parse().unwrap();
    let error = vm.perform(Command::Configure(Edit::RemovePort(forward("3:3")))).await.unwrap_err();
    assert!(error.to_string().starts_with("ports: tcp:127.0.0.1:3:3 is not in"), "{error}");
    vm.perform(Command::Configure(Edit::AddPort(forward("0:80")))).await.unwrap();
    let bound = vm.view().facts.unwrap().in_force.unwrap().forwards;
    assert_eq!(bound.last().unwrap().actual(), forward("40000:80"));
    vm.perform(Command::Configure(Edit::RemovePort(forward("0:80")))).await.unwrap();
    let expected = ["+1", "+2", "-1", "+3", "-3", "+1", "+40000", "-40000"];
    let at = |change: &String| change.replace("tcp:127.0.0.1:", "");
    let done: Vec<_> = script.changes.lock().iter().map(at).collect();
    let short = |c: &String| c.split(':').next().unwrap().replace("+0", "+40000");
    assert_eq!(done.iter().map(short).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_disk_grows_and_does_not_shrink() {
    let Fixture { _dir, vm, .. } = fixture().await;
    set(&vm, "disk", "1G").await.unwrap();
    vm.perform(START).await.unwrap();
    let error = set(&vm, "disk", "512M").await.unwrap_err();
    assert!(error.to_string().starts_with("disk: 512M is smaller than the disk"), "{error}");
    set(&vm, "disk", "2G").await.unwrap();
    assert!(set(&vm, "disk", "1G").await.is_err());
    assert_eq!(vm.spec().disk, 2 << 30);
}

#[tokio::test(start_paused = true)]
async fn two_that_add_to_a_list_at_once_both_get_their_wish() {
    let Fixture { _dir, vm, .. } = fixture().await;
    let key = crate::vm::spec::KEYS.iter().find(|k| k.name == "ports").unwrap();
    let add = |text: &str| vm.clone().configure(key, text.to_owned(), crate::vm::WriteMode::Append);
    let (one, two) = tokio::join!(add("1:1"), add("2:2"));
    one.and(two).unwrap();
    assert_eq!(vm.spec().ports.len(), 2);
}

fn template() -> Template {
    let layer = |path: &str| Layer { path: path.into(), format: DiskFormat::Raw };
    Template {
        id: "1".into(),
        saved: Saved::in_dir("/nowhere".as_ref()),
        base: vec![layer("/nowhere/warm"), layer("/nowhere")],
        shape: Shape::sample(),
    }
}

fn begin(dir: &Scratch, operation: Operation) {
    operation::begin(&VmDir(dir.0.path().to_owned()), operation).unwrap();
}

fn operations(dir: &Scratch) -> Vec<Operation> {
    operation::list(&VmDir(dir.0.path().to_owned())).unwrap()
}

/// Starts a VM whose image has a template.
async fn warm_start(prepare: impl FnOnce(&Script)) -> (Fixture, Result<(), VmError>) {
    let fixture = fixture().await;
    *fixture.script.template.lock() = Some(Ok(template()));
    prepare(&fixture.script);
    let started = fixture.vm.perform(START).await;
    (fixture, started)
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_personalized_before_anybody_else_connects() {
    let (Fixture { _dir: dir, script, vm }, started) = warm_start(|_| ()).await;
    started.unwrap();
    until(&vm, &State::Ready).await;
    assert_eq!(script.calls.lock()[..3], ["load_template", "resume", "personalize"]);
    assert_eq!(operations(&dir), []);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_not_taken_is_no_reason_not_to_boot() {
    let damage = BackendError::QmpRefused { command: "migrate".into(), text: "no".into() };
    let (Fixture { script, vm, .. }, started) =
        warm_start(|script| *script.load_error.lock() = Some(damage)).await;
    started.unwrap();
    until(&vm, &State::Ready).await;
    assert_eq!(script.calls.lock()[..3], ["load_template", "kill", "discard"]);
    assert_eq!(*script.bound.lock(), 1, "the new disk lies on the image alone");
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_cannot_be_personalized_is_ended_and_its_disk_discarded() {
    let error = BackendError::PersonalizationFailed { reason: "no vmgenid".into() };
    let (Fixture { _dir: dir, script, vm }, started) =
        warm_start(|script| *script.personalize_error.lock() = Some(error)).await;
    assert!(
        matches!(started, Err(VmError::Backend(BackendError::PersonalizationFailed { .. }))),
        "{started:?}"
    );
    until(
        &vm,
        &State::Failed("the guest cannot be given an identity of its own: no vmgenid".into()),
    )
    .await;
    assert_eq!(*script.calls.lock(), ["load_template", "resume", "personalize", "kill", "discard"]);
    assert_eq!(operations(&dir), []);
}

#[tokio::test(start_paused = true)]
async fn a_clone_found_half_made_is_ended() {
    let dir = Scratch(tempfile::tempdir().unwrap());
    begin(&dir, Operation::Personalize);
    let script = Arc::<Script>::default();
    let vm = vm(dir.0.path(), &script).await;
    let reason = "the daemon ended while it started; start it again".to_owned();
    assert_eq!(vm.state(), State::Failed(reason));
    assert_eq!(*script.calls.lock(), ["discard"]);
    vm.perform(START).await.unwrap();
    until(&vm, &State::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_fork_found_half_made_is_ended_and_cannot_be_started() {
    let dir = Scratch(tempfile::tempdir().unwrap());
    begin(&dir, Operation::Fork);
    let script = Arc::<Script>::default();
    let vm = vm(dir.0.path(), &script).await;
    assert!(matches!(vm.state(), State::Failed(reason) if reason.contains("cannot be started")));
    assert_eq!(*script.calls.lock(), ["discard"]);
    // It would boot from the image, and not be what it was made as.
    let refused = vm.perform(START).await.unwrap_err().to_string();
    assert!(refused.starts_with("the fork cannot be started"), "{refused}");
    assert_eq!(operations(&dir), [Operation::Fork]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_answers_first_while_it_is_saved_is_ready_afterwards() {
    let Fixture { _dir, script, vm } = fixture().await;
    *script.mute.lock() = true;
    vm.perform(START).await.unwrap();
    until(&vm, &State::Running).await;
    std::fs::write(vm.dir().disk(), "").unwrap();
    *script.slow.lock() = Duration::from_secs(30);
    vm.perform(SnapshotOp::Take("s".into()).into()).await.unwrap();
    assert_eq!(vm.state(), State::Saving);
    *script.mute.lock() = false;
    until(&vm, &State::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_while_a_guest_is_saved_leaves_it_paused() {
    let Fixture { _dir, script, vm } = ready().await;
    std::fs::write(vm.dir().disk(), "").unwrap();
    *script.slow.lock() = Duration::from_secs(30);
    vm.perform(SnapshotOp::Take("s".into()).into()).await.unwrap();
    let events = script.events.lock().clone().unwrap();
    events.send(MachineEvent::DiskFull).await.unwrap();
    events.send(MachineEvent::Paused).await.unwrap();
    until(&vm, &State::Paused).await;
    events.send(MachineEvent::Resumed).await.unwrap();
    until(&vm, &State::Ready).await;
}

/// A VM that an earlier daemon has left paused, taken up by the next.
async fn adopted_paused(mark: bool) -> (Scratch, Arc<Script>, Vm) {
    let dir = Scratch(tempfile::tempdir().unwrap());
    let (script, uuid) = (Arc::<Script>::default(), Uuid::new_v4());
    let earlier = vm_in(&backends(&script), dir.0.path(), uuid).await;
    earlier.perform(START).await.unwrap();
    until(&earlier, &State::Ready).await;
    earlier.perform(Command::Pause).await.unwrap();
    if mark {
        begin(&dir, Operation::PausedByDaemon);
    }
    let vm = vm_in(&backends(&script), dir.0.path(), uuid).await;
    (dir, script, vm)
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_the_daemon_has_paused_is_resumed_by_the_next_daemon() {
    let (dir, script, vm) = adopted_paused(true).await;
    until(&vm, &State::Ready).await;
    // Its clock was stopped too.
    assert!(script.calls.lock().ends_with(&["recover", "exec"]));
    assert_eq!(operations(&dir), []);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_its_user_has_paused_stays_so() {
    let (_dir, script, vm) = adopted_paused(false).await;
    assert_eq!(vm.state(), State::Paused);
    assert_eq!(script.calls.lock().last(), Some(&"pause"));
}

/// A name operation holds its directory in the kernel, so it does not wait for a large memory.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_takes_long_is_answered_before_it_is_done() {
    let Fixture { _dir, vm, script } = ready().await;
    std::fs::write(vm.dir().disk(), "").unwrap();
    *script.slow.lock() = Duration::from_secs(30);
    let begun = tokio::time::Instant::now();
    vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_millis(500));
    let snapshots = vm.all_snapshots();
    let taken = snapshots.iter().find(|snapshot| snapshot.tag == "a").unwrap();
    assert_eq!((taken.status.as_str(), vm.state()), ("creating", State::Saving));
    until(&vm, &State::Ready).await;
    assert_eq!(begun.elapsed().as_secs(), 30);
}
