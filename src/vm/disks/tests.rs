//! Data disks of a VM whose machine is a fake: what is accepted, what is stored, what the machine is told.

use uuid::Uuid;

use super::*;
use crate::vm::backend::{DiskPlace, SnapshotOp};
use crate::vm::caller::ProcessId;
use crate::vm::driver::tests::{START, Scratch, until, vm_in};
use crate::vm::fake::{Script, backends, clean_exit};
use crate::vm::state::State as VmState;

struct Fixture {
    dir: Scratch,
    script: Arc<Script>,
    vm: Vm,
}

async fn fixture() -> Fixture {
    let dir = Scratch(tempfile::tempdir().unwrap());
    let script = Arc::<Script>::default();
    let vm = vm_in(&backends(&script), dir.0.path(), Uuid::new_v4()).await;
    Fixture { dir, script, vm }
}

impl Fixture {
    async fn make(&self, name: &str) {
        self.vm.clone().make_disk(name.into()).await.unwrap();
    }

    async fn set(&self, name: &str, field: Field, text: &str) -> Result<(), VmError> {
        self.vm.clone().set_disk(name.into(), field, text.into()).await
    }

    async fn with_data(&self, name: &str) {
        self.make(name).await;
        self.set(name, Field::Size, "10G\n").await.unwrap();
        let number = self.vm.disks().settings(name).unwrap().number;
        fs::write(self.vm.dir().data_disk(number), "10737418240 and data").unwrap();
    }

    async fn remove(&self, name: &str, by: Remover) -> Result<(), VmError> {
        self.vm.clone().remove_disk(name.into(), by).await
    }

    async fn ready(&self) {
        self.vm.perform(START).await.unwrap();
        until(&self.vm, &VmState::Ready).await;
        drop(self.vm.disks().hold().await);
    }

    async fn off(&self) {
        self.script.report_of(self.vm.uuid(), clean_exit()).await;
        until(&self.vm, &VmState::Stopped).await;
    }

    fn status(&self, name: &str) -> String {
        self.vm.disks().get(name).unwrap().status(self.vm.state().is_off())
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.script.changes.lock())
    }
}

const ME: Remover = Some(ProcessId { pid: 7, start: 7 });

#[tokio::test(start_paused = true)]
async fn a_disk_is_made_and_grows_while_the_vm_runs_and_the_next_machine_has_it_from_its_start() {
    let f = fixture().await;
    f.make("data").await;
    assert!(f.status("data").starts_with("no content"));
    f.ready().await;
    f.set("data", Field::Size, "10G\n").await.unwrap();
    assert_eq!(f.status("data"), "attached: 10G");
    f.set("data", Field::Size, "12G").await.unwrap();
    let shrinks = f.set("data", Field::Size, "11G").await.unwrap_err().to_string();
    assert_eq!(shrinks, "size: a disk does not shrink: 11G is less than 12G");
    assert_eq!(f.told(), ["data disk 1 data", "data disk 1 12884901888"]);
    f.off().await;
    assert_eq!(f.status("data"), "off: the VM does not run");
    f.ready().await;
    // The fake's file does not grow with its machine.
    assert_eq!(f.told(), ["data disk 1 12884901888"]);
    assert_eq!(f.status("data"), "attached: 12G");
}

#[tokio::test(start_paused = true)]
async fn a_removed_disk_that_has_data_is_put_aside_and_an_empty_one_is_not() {
    let f = fixture().await;
    f.make("empty").await;
    f.set("empty", Field::Size, "1G").await.unwrap();
    f.with_data("data").await;
    f.ready().await;
    f.remove("empty", ME).await.unwrap();
    f.remove("data", ME).await.unwrap();
    assert_eq!(f.told(), ["no data disk 1", "no data disk 2"]);
    let names = f.vm.disks().names();
    let [aside] = &*names else { panic!("{names:?}") };
    assert!(aside.starts_with(".data@") && f.vm.dir().removed_disk(2).exists());
    assert!(f.status(aside).starts_with("removed"));
    f.vm.clone().rename_disk(aside.clone(), "again".into()).await.unwrap();
    assert_eq!(
        (f.status("again"), f.told()),
        ("attached: 10G".into(), vec!["data disk 2 again".into()])
    );
    f.remove("again", ME).await.unwrap();
    let aside = f.vm.disks().names().remove(0);
    f.remove(&aside, ME).await.unwrap();
    assert!(f.vm.disks().names().is_empty() && !f.vm.dir().removed_disk(2).exists());
}

#[tokio::test(start_paused = true)]
async fn what_rm_has_removed_stays_with_the_vm_that_it_removes() {
    let f = fixture().await;
    f.with_data("data").await;
    f.remove("data", ME).await.unwrap();
    f.vm.disks().bring_back(Some(ProcessId { pid: 8, start: 8 })).unwrap();
    assert!(f.vm.disks().get("data").is_none());
    f.vm.clone().rename_disk(f.vm.disks().names().remove(0), "data".into()).await.unwrap();
    f.remove("data", ME).await.unwrap();
    f.vm.disks().bring_back(ME).unwrap();
    assert_eq!(f.vm.disks().names(), ["data"]);
    assert!(f.vm.dir().data_disk(1).exists());
    let again = vm_in(&backends(&f.script), f.dir.0.path(), f.vm.uuid()).await;
    assert_eq!(again.disks().names(), ["data"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_made_to_fit_the_memory_that_it_loads() {
    let f = fixture().await;
    f.with_data("old").await;
    f.ready().await;
    f.vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
    *f.script.saved_disks.lock() = Some(vec![DiskPlace { number: 1, port: 0 }]);
    f.with_data("new").await;
    f.told();
    f.vm.perform(SnapshotOp::Restore("a".into()).into()).await.unwrap();
    assert_eq!(f.told(), ["no data disk 2", "data disk 2 new"]);
    f.remove("old", ME).await.unwrap();
    let refused = f.vm.perform(SnapshotOp::Restore("a".into()).into()).await.unwrap_err();
    assert!(
        refused.to_string().contains("has the disk old, which was removed; `mv disks/.old@"),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_memory_is_saved_of_a_guest_with_a_disk_of_the_users() {
    let f = fixture().await;
    let file = f.dir.0.path().join("file.raw");
    fs::write(&file, [0; 4096]).unwrap();
    let path = file.canonicalize().unwrap().display().to_string();
    f.make("data").await;
    f.make("other").await;
    f.ready().await;
    f.set("data", Field::Source, &format!("{path}\n")).await.unwrap();
    assert_eq!(f.status("data"), "attached: 4K");
    let twice = f.set("other", Field::Source, &path).await.unwrap_err();
    assert!(matches!(twice, VmError::Disk(DataDiskError::Twice { .. })), "{twice}");
    let own = f.set("data", Field::Size, "1G").await.unwrap_err();
    assert!(matches!(own, VmError::Disk(DataDiskError::HasSource(_))), "{own}");
    for command in [SnapshotOp::Take("a".into()).into(), crate::vm::state::Command::Suspend] {
        let refused = f.vm.perform(command).await.unwrap_err().to_string();
        assert!(refused.contains("a disk from a source (data)"), "{refused}");
    }
    f.remove("data", ME).await.unwrap();
    f.vm.perform(SnapshotOp::Take("a".into()).into()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bad_names_and_a_full_machine_are_refused() {
    let f = fixture().await;
    for name in ["a/b", "", ".x", "a\nb", "123456789012345678901"] {
        let bad = f.vm.clone().make_disk(name.into()).await.unwrap_err();
        assert!(matches!(bad, VmError::Disk(DataDiskError::BadName(_))), "{bad}");
    }
    for name in ["a", "b", "c", "d"] {
        f.make(name).await;
    }
    let full = f.vm.clone().make_disk("e".into()).await.unwrap_err();
    assert!(matches!(full, VmError::Disk(DataDiskError::Full)), "{full}");
    assert!(matches!(f.remove("x", ME).await, Err(VmError::Disk(DataDiskError::Absent))));
}

#[tokio::test(start_paused = true)]
async fn a_fork_gets_the_disks_that_are_copied() {
    let f = fixture().await;
    f.with_data("data").await;
    f.make("none").await;
    let copy = serde_json::to_value(f.vm.disks().of_copy(&[1])).unwrap();
    let disks = copy["disks"].as_object().unwrap();
    assert_eq!(disks.keys().collect::<Vec<_>>(), ["data"]);
    assert_eq!((&disks["data"]["number"], &copy["next"]), (&1.into(), &3.into()));
    assert_eq!(f.vm.disks().summary(), "data 10G, none");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_vm_is_not_resumed_without_a_disk_of_its_guest() {
    let f = fixture().await;
    f.with_data("data").await;
    f.ready().await;
    *f.script.saved_disks.lock() = Some(vec![DiskPlace { number: 1, port: 0 }]);
    f.vm.perform(crate::vm::state::Command::Suspend).await.unwrap();
    until(&f.vm, &VmState::Stopped).await;
    f.remove("data", ME).await.unwrap();
    let refused = f.vm.perform(START).await.unwrap_err().to_string();
    assert!(refused.contains("the disk data, which was removed; `mv disks/.data@"), "{refused}");
    let aside = f.vm.disks().names().remove(0);
    f.vm.clone().rename_disk(aside, "data".into()).await.unwrap();
    assert!(f.vm.is_suspended());
    f.ready().await;
    assert_eq!(f.status("data"), "attached: 10G");
}
