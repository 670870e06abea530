//! Operations on names, over fake backends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::vm::backend::SnapshotOp;
use crate::vm::caller::ProcessId;
use crate::vm::dropped::Remover;
use crate::vm::fake::{Script, backends, clean_exit};
use crate::vm::state::{Command, State};

const ME: Remover = Some(ProcessId { pid: 7, start: 7 });

struct Fixture {
    _dir: tempfile::TempDir,
    script: Arc<Script>,
    registry: Arc<Registry>,
}

async fn fixture() -> Fixture {
    let (dir, script) = (tempfile::tempdir().unwrap(), Arc::<Script>::default());
    let registry = Registry::open(Layout::new(dir.path()), backends(&script)).await.unwrap();
    Fixture { _dir: dir, script, registry: Arc::new(registry) }
}

impl Fixture {
    /// A VM that is off and has a disk with snapshots.
    async fn off(&self, name: &str, tags: &[&str]) -> Vm {
        let vm = Arc::clone(&self.registry).create(name.to_owned()).await.unwrap();
        vm.perform(Command::Start { paused: false }).await.unwrap();
        vm.reached().await;
        self.script.report_of(vm.uuid(), clean_exit()).await;
        let mut listener = vm.listen();
        while vm.state() != State::Stopped {
            listener.rung().await;
        }
        for tag in tags {
            vm.perform(SnapshotOp::Take((*tag).to_owned()).into()).await.unwrap();
        }
        vm
    }

    async fn remove(&self, name: &str) -> Result<(), RegistryError> {
        Arc::clone(&self.registry).remove(name.to_owned(), ME).await
    }

    /// Brings the only removed VM back.
    async fn undo(&self, to: &str) -> Vm {
        let removed = self.registry.trash().list().remove(0).name;
        Arc::clone(&self.registry).restore(removed, to.to_owned()).await.unwrap();
        self.registry.get(to).unwrap()
    }
}

fn tags(vm: &Vm) -> Vec<String> {
    vm.snapshots().into_iter().map(|s| s.tag).collect()
}

#[tokio::test(start_paused = true)]
async fn an_undo_brings_back_what_the_same_process_has_dropped() {
    let f = fixture().await;
    let vm = f.off("vm1", &["a", "b"]).await;
    vm.perform(Command::Snapshot(SnapshotOp::Drop("a".into()), ME)).await.unwrap();
    vm.perform(Command::Snapshot(SnapshotOp::Drop("b".into()), None)).await.unwrap();
    f.remove("vm1").await.unwrap();
    assert!(f.registry.is_empty());
    sleep(Duration::from_secs(600)).await;
    assert_eq!(tags(&f.undo("back").await), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_moved_to_the_trash_is_there_and_usable() {
    let f = fixture().await;
    let vm = f.off("vm1", &["a"]).await;
    vm.perform(Command::Snapshot(SnapshotOp::Drop("a".into()), ME)).await.unwrap();
    // No name in the trash is free: it is a file.
    let trash = f.registry.layout().trash();
    fs::remove_dir(&trash).unwrap();
    fs::write(&trash, "").unwrap();
    let error = f.remove("vm1").await.unwrap_err();
    assert!(error.to_string().contains("cannot move the VM to the trash"), "{error}");
    let vm = f.registry.get("vm1").unwrap();
    // It answers when it is as it was.
    vm.perform(Command::Kill).await.unwrap_err();
    assert!(tags(&vm).is_empty() && f.registry.by_id(vm.id()).is_some());
    vm.perform(Command::Start { paused: false }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_answer_holds_up_no_other_and_can_be_renamed() {
    let f = fixture().await;
    let vm = f.off("slow", &["a"]).await;
    f.off("other", &[]).await;
    vm.perform(Command::Snapshot(SnapshotOp::Drop("a".into()), ME)).await.unwrap();
    // After a minute the snapshot is dropped, which hangs.
    *f.script.slow.lock() = Duration::from_secs(24 * 3600);
    sleep(Duration::from_secs(61)).await;
    let begun = tokio::time::Instant::now();
    let (removed, others) = tokio::join!(f.remove("slow"), async {
        f.remove("other").await.unwrap();
        let made = Arc::clone(&f.registry).create("new".into()).await.map(drop);
        let renamed = Arc::clone(&f.registry).rename("new".into(), "other".into()).await;
        made.and(renamed).map(|()| begun.elapsed())
    });
    assert!(others.unwrap() < Duration::from_secs(1));
    assert!(matches!(removed, Err(RegistryError::NoAnswer { .. })), "{removed:?}");
    assert_eq!(begun.elapsed().as_secs(), names::TIMEOUT.as_secs());
    Arc::clone(&f.registry).rename("slow".into(), "late".into()).await.unwrap();
    assert_eq!(f.registry.get("late").unwrap().name(), "late");
}

#[tokio::test(start_paused = true)]
async fn a_broken_vm_is_removed_and_comes_back_broken() {
    let f = fixture().await;
    let vm = f.off("vm1", &[]).await;
    fs::write(vm.dir().definition(), "{").unwrap();
    f.remove("vm1").await.unwrap();
    let closed = fs::Permissions::from_mode(0o000);
    let removed = f.registry.trash().list().remove(0);
    fs::set_permissions(removed.dir.definition(), closed).unwrap();
    assert!(matches!(f.undo("vm1").await.state(), State::Broken(_)));
}
