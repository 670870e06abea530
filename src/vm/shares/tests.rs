//! Shares of a VM whose guest is a fake: what is accepted, what is stored, what the guest is told.

use std::fs;

use uuid::Uuid;

use super::*;
use crate::vm::Vm;
use crate::vm::caller::ProcessId;
use crate::vm::driver::tests::{START, Scratch, until, vm_in};
use crate::vm::fake::{Script, backends};
use crate::vm::state::{Command, State};

struct Fixture {
    dir: Scratch,
    source: tempfile::TempDir,
    script: Arc<Script>,
    vm: Vm,
}

async fn fixture() -> Fixture {
    let (dir, source) = (Scratch(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let script = Arc::<Script>::default();
    let vm = vm_in(&backends(&script), dir.0.path(), Uuid::new_v4()).await;
    Fixture { dir, source, script, vm }
}

impl Fixture {
    fn shares(&self) -> Shares {
        self.vm.shares().clone()
    }

    async fn set(&self, field: Field, text: &str) -> Result<(), VmError> {
        self.shares().set("src".into(), field, text.into()).await
    }

    async fn made(&self) -> String {
        self.shares().make("src".into()).await.unwrap();
        let real = self.source.path().canonicalize().unwrap();
        self.set(Field::Source, &format!("{}\n", real.display())).await.unwrap();
        real.display().to_string()
    }

    async fn mounted(&self, wanted: &[&str]) {
        let mut listener = self.vm.listen();
        let targets = || -> Vec<String> {
            self.script.mounted.lock().iter().map(|m| m.target.clone()).collect()
        };
        while targets() != wanted {
            let rung = tokio::time::timeout(Duration::from_secs(60), listener.rung());
            rung.await.unwrap_or_else(|_| panic!("{:?}, wanted {wanted:?}", targets()));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_a_share_is_refused_with_a_sentence() {
    let f = fixture().await;
    let real = f.made().await;
    fs::write(f.source.path().join("file"), "").unwrap();
    let file = format!("{real}/file");
    let gone = format!("{real}/gone");
    let table = [
        (Field::Source, "src", "not an absolute path"),
        (Field::Source, ".", "\"$PWD\""),
        (Field::Source, "/", "all files of the host"),
        (Field::Source, "/nowhere", "contains /nowhere/mount"),
        (Field::Source, "/nowhere/store/vms", "lies in /nowhere/store"),
        (Field::Source, "/../.", "all files of the host"),
        (Field::Source, &file, "not a directory"),
        (Field::Source, &gone, "No such file"),
        (Field::Source, "/tmp\n/etc", "not one line of text"),
        (Field::Target, "/", "cannot be a place"),
        (Field::Target, "mnt", "cannot be a place"),
        (Field::Target, "/mnt/../etc", "cannot be a place"),
        (Field::Target, "/mnt/a\nb", "cannot be a place"),
        (Field::Mode, "rx", "neither `rw` nor `ro`"),
        (Field::Cache, "-1", "from 0 to 3600"),
        (Field::Cache, "3601", "from 0 to 3600"),
        (Field::Cache, "+1", "from 0 to 3600"),
    ];
    for (field, text, said) in table {
        let error = f.set(field, text).await.unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains('\n'), "{text:?}: {error}");
    }
    let share = f.shares().get("src").unwrap();
    let texts = [Field::Source, Field::Target, Field::Mode, Field::Cache].map(|v| share.text(v));
    assert_eq!(texts, [&*real, "/mnt/src", "rw", "1"]);
}

#[tokio::test]
async fn a_source_is_what_its_path_led_to_when_it_was_written() {
    let f = fixture().await;
    let real = f.made().await;
    let inside = f.source.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let link = f.source.path().join("link");
    std::os::unix::fs::symlink("inside", &link).unwrap();
    f.set(Field::Source, &link.display().to_string()).await.unwrap();
    let share = f.shares().get("src").unwrap();
    assert_eq!(share.text(Field::Source), format!("{real}/inside"));
    fs::remove_dir(&inside).unwrap();
    std::os::unix::fs::symlink("/etc", &inside).unwrap();
    let status = share.status(false);
    assert!(status.starts_with("failed: "), "{status}");
}

#[tokio::test]
async fn they_are_stored_and_outlive_the_daemon() {
    let f = fixture().await;
    let real = f.made().await;
    f.set(Field::Mode, "ro").await.unwrap();
    f.set(Field::Cache, "30").await.unwrap();
    f.set(Field::Target, "/srv//x y/").await.unwrap();
    f.shares().make("other".into()).await.unwrap();
    assert!(f.shares().make("other".into()).await.is_err());
    let taken = f.shares().set("other".into(), Field::Target, "/srv/x y".into()).await;
    assert!(taken.unwrap_err().to_string().contains("the share src is at /srv/x y already"));
    let again = Shares::open(f.vm.dir(), &backends(&f.script));
    assert_eq!(again.names(), ["other", "src"]);
    let share = again.get("src").unwrap();
    let texts = [Field::Source, Field::Target, Field::Mode, Field::Cache].map(|v| share.text(v));
    assert_eq!(texts, [&*real, "/srv/x y", "ro", "30"]);
    let key = |shares: &Shares| shares.0.state.lock().stored.key;
    assert_eq!(key(&again), key(&f.shares()));
    f.shares().rename("src".into(), "web".into()).await.unwrap();
    assert!(f.shares().rename("web".into(), "other".into()).await.is_err());
    assert!(f.shares().rename("src".into(), "x".into()).await.is_err());
    assert_eq!(f.shares().names(), ["other", "web"]);
    f.shares().remove("other".into(), None).await.unwrap();
    assert!(f.shares().remove("other".into(), None).await.is_err());
    assert_eq!(Shares::open(f.vm.dir(), &backends(&f.script)).names(), ["web"]);
}

#[tokio::test]
async fn a_damaged_file_is_put_aside() {
    let f = fixture().await;
    f.made().await;
    fs::write(f.vm.dir().shares(), "{").unwrap();
    let backends = backends(&f.script);
    assert!(Shares::open(f.vm.dir(), &backends).names().is_empty());
    assert_eq!(backends.failures.list().len(), 1);
    assert!(!f.vm.dir().shares().exists());
    drop(f.dir);
}

#[tokio::test]
async fn the_guest_has_them_when_it_is_ready_and_follows_every_change() {
    let f = fixture().await;
    f.made().await;
    let share = || f.shares().get("src").unwrap();
    assert!(share().status(true).starts_with("off: "));
    f.vm.perform(START).await.unwrap();
    until(&f.vm, &State::Ready).await;
    f.mounted(&["/mnt/src"]).await;
    assert_eq!(share().status(false), "mounted");
    f.set(Field::Target, "/srv/x").await.unwrap();
    f.mounted(&["/srv/x"]).await;
    f.shares().make("empty".into()).await.unwrap();
    assert!(f.shares().get("empty").unwrap().status(false).starts_with("no source: "));
    f.shares().remove("src".into(), None).await.unwrap();
    f.mounted(&[]).await;
    f.made().await;
    f.mounted(&["/mnt/src"]).await;
    f.vm.perform(Command::Kill).await.unwrap();
    until(&f.vm, &State::Stopped).await;
    assert_eq!(share().outcome, None);
}

#[tokio::test]
async fn a_vm_without_shares_costs_its_guest_nothing() {
    let f = fixture().await;
    f.vm.perform(START).await.unwrap();
    until(&f.vm, &State::Ready).await;
    assert!(!f.script.calls.lock().contains(&"serve_files"));
    f.shares().make("src".into()).await.unwrap();
    f.made_source().await;
    f.mounted(&["/mnt/src"]).await;
}

#[tokio::test]
async fn what_a_process_removes_before_the_vm_comes_back_with_the_vm() {
    let f = fixture().await;
    f.made().await;
    let process = |pid| Some(ProcessId { pid, start: 1 });
    f.shares().remove("src".into(), process(1)).await.unwrap();
    f.shares().bring_back(process(2)).unwrap();
    assert!(f.shares().names().is_empty());
    f.made().await;
    f.shares().remove("src".into(), process(1)).await.unwrap();
    f.shares().bring_back(process(1)).unwrap();
    assert_eq!(Shares::open(f.vm.dir(), &backends(&f.script)).names(), ["src"]);
}

impl Fixture {
    async fn made_source(&self) {
        let real = self.source.path().canonicalize().unwrap();
        self.set(Field::Source, &real.display().to_string()).await.unwrap();
    }
}
