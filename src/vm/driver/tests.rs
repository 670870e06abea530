//! The driver against a fake world: what each verb and each event does to the state.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::{Birth, Definition, spawn};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, ExitReport, MachineEvent};
use crate::vm::fake::{Script, clean_exit, world};
use crate::vm::spec::VmSpec;
use crate::vm::state::{Command, Refusal, State};
use crate::vm::stream::{self, Stream};
use crate::vm::{Vm, VmError, VmId};

const START: Command = Command::Start { paused: false };

async fn vm(dir: &Path, script: &Arc<Script>) -> Vm {
    let definition = Definition {
        version: 1,
        uuid: Uuid::nil(),
        created: SystemTime::now(),
        spec: VmSpec::default(),
    };
    let birth = Birth {
        id: VmId(1),
        uuid: Uuid::new_v4(),
        dir: VmDir(dir.to_owned()),
        name: "vm1".into(),
        definition: Ok(definition),
    };
    spawn(birth, world(script)).await
}

async fn until(vm: &Vm, wanted: &State) {
    let mut listener = vm.listen();
    while vm.state() != *wanted {
        tokio::time::timeout(Duration::from_secs(60), listener.rung()).await.unwrap();
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    script: Arc<Script>,
    vm: Vm,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let script = Arc::<Script>::default();
    let vm = vm(dir.path(), &script).await;
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
    assert_eq!(*script.calls.lock(), ["power_down"]);
}

#[tokio::test(start_paused = true)]
async fn a_deaf_guest_is_asked_over_ssh_and_then_killed() {
    let Fixture { _dir, vm, script } = ready().await;
    *script.stubborn.lock() = true;
    let begun = tokio::time::Instant::now();
    vm.perform(Command::Stop { seconds: 10 }).await.unwrap();
    until(&vm, &State::Stopped).await;
    assert_eq!(*script.calls.lock(), ["power_down", "exec", "kill"]);
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_resumed_to_be_stopped() {
    let Fixture { _dir, vm, script } = ready().await;
    vm.perform(Command::Pause).await.unwrap();
    assert_eq!(vm.state(), State::Paused);
    vm.perform(Command::Stop { seconds: 30 }).await.unwrap();
    until(&vm, &State::Stopped).await;
    assert_eq!(*script.calls.lock(), ["pause", "resume", "power_down"]);
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
    let report =
        ExitReport { clean: false, status: "signal KILL".into(), stderr: "out of luck".into() };
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
    assert_eq!(vm.state(), State::Ready);
}

#[tokio::test(start_paused = true)]
async fn settings_are_stored_and_the_image_is_fixed_by_the_disk() {
    let Fixture { _dir, vm, .. } = ready().await;
    let key = |name: &str| crate::vm::spec::KEYS.iter().find(|k| k.name == name).unwrap();
    let mode = crate::vm::WriteMode::Replace;
    vm.clone().configure(key("memory"), "512M\n".into(), mode).await.unwrap();
    let stored: Definition = crate::store::file::read_json(&vm.dir().definition()).unwrap();
    assert_eq!(stored.spec.memory, 512 << 20);
    let error = vm.clone().configure(key("image"), "other".into(), mode).await.unwrap_err();
    assert!(matches!(error, VmError::Refused(Refusal::HasDisk { .. })), "{error}");
}
