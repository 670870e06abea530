//! Images that are made again while disks are overlays on them.

use std::time::SystemTime;

use parking_lot::Mutex;
use uuid::Uuid;

use super::super::catalogue::ImageStore;
use super::super::source::{BuildError, ImageSource, Progress};
use super::super::tiny::Tiny;
use super::*;
use crate::arch::Arch;
use crate::store::failure_log::FailureLog;
use crate::vm::backend::{DiskFormat, ImageStatus, Images};
use crate::vm::spec::{VmSettings, VmSpec};

/// Makes an image whose disk says what the test has written here, or fails.
#[derive(Debug)]
struct Made(Mutex<Result<&'static str, &'static str>>);

impl ImageSource for Made {
    fn spec(&self) -> &'static str {
        "builtin:made"
    }

    fn kind(&self) -> &'static str {
        "builtin"
    }

    fn recipe(&self) -> Option<u32> {
        Some(2)
    }

    fn build(&self, dir: &Path, _progress: &Progress) -> Result<Manifest, BuildError> {
        let content = (*self.0.lock()).map_err(|why| BuildError::malformed("the kernel", why))?;
        fs::write(dir.join("disk.raw"), content).unwrap();
        Ok(Manifest::of_disk(self, DiskFormat::Raw, 4))
    }
}

struct Fixture {
    layout: Layout,
    source: Arc<Made>,
    store: ImageStore,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let source = Arc::new(Made(Mutex::new(Ok("first"))));
        let store = open(&layout, &source);
        Self { layout, source, store, _dir: dir }
    }

    /// A later daemon's.
    fn reopened(self) -> Self {
        Self { store: open(&self.layout, &self.source), ..self }
    }

    async fn refresh(&self, content: Result<&'static str, &'static str>) {
        *self.source.0.lock() = content;
        self.store.refresh("made").unwrap();
        let mut changes = self.store.listen();
        while self.store.info("made").unwrap().status != ImageStatus::Ready {
            changes.rung().await;
        }
    }

    /// A VM whose disk is made now.
    async fn vm(&self) -> VmDir {
        let uuid = Uuid::new_v4();
        let vm = self.layout.vm(uuid);
        file::private_dir(&vm.0).unwrap();
        let spec = VmSpec { image: "made".into(), ..VmSpec::default() };
        let definition = Definition::new(uuid, SystemTime::now(), VmSettings::new(spec));
        file::replace_json(&vm.definition(), &definition).unwrap();
        let image = self.store.ensure_for("made", &vm.0).await.unwrap();
        let base = self.store.layers(&image, &vm.0).unwrap();
        self.store.bind(&vm.0, &image, &base).unwrap();
        fs::write(vm.disk(), "").unwrap();
        vm
    }

    /// What a VM's disk is an overlay on.
    async fn base(&self, vm: &VmDir) -> String {
        let image = self.store.ensure_for("made", &vm.0).await.unwrap();
        assert_eq!(self.store.boot_of("made", &vm.0).as_ref(), Some(&image));
        let base = self.store.layers(&image, &vm.0).unwrap();
        fs::read_to_string(&base.last().unwrap().path).unwrap()
    }
}

fn open(layout: &Layout, source: &Arc<Made>) -> ImageStore {
    let tiny = vec![Arc::new(Tiny::new("/nowhere".into(), String::new(), Arch::HOST))];
    let sources: Vec<(_, Arc<dyn ImageSource>)> = vec![("made", Arc::clone(source) as _)];
    ImageStore::with_sources(
        layout.clone(),
        &FailureLog::default(),
        (tiny, Default::default()),
        sources,
    )
    .unwrap()
}

#[tokio::test]
async fn a_disk_keeps_its_version_and_new_vms_get_the_new_one() {
    let f = Fixture::new();
    let one = f.vm().await;
    f.refresh(Ok("second")).await;
    let two = f.vm().await;
    f.refresh(Ok("third")).await;
    let three = f.vm().await;
    let f = f.reopened();
    for (vm, expected) in [(&one, "first"), (&two, "second"), (&three, "third")] {
        assert_eq!(f.base(vm).await, expected);
    }
    assert_eq!(
        current_dir(&f.layout, "made"),
        f.store.boot("made").unwrap().disk.parent().unwrap()
    );
    // A removed VM can be brought back.
    file::private_dir(&f.layout.trash()).unwrap();
    fs::rename(&two.0, f.layout.trash().join("two@1")).unwrap();
    fs::remove_dir_all(&one.0).unwrap();
    let f = f.reopened();
    assert!(!f.layout.image("made").join("disk.raw").exists(), "nothing needs the first");
    assert_eq!(dirs(&f.layout, "made").len(), 3);
    assert_eq!(f.base(&VmDir(f.layout.trash().join("two@1"))).await, "second");
    fs::remove_dir_all(f.layout.trash().join("two@1")).unwrap();
    let f = f.reopened();
    assert_eq!(dirs(&f.layout, "made").len(), 2);
    assert_eq!(f.base(&three).await, "third");
    f.store.remove("made").unwrap();
    assert!(!f.layout.image("made").exists());
}

#[tokio::test]
async fn a_refresh_that_fails_or_changes_nothing_leaves_the_image_as_it_is() {
    let f = Fixture::new();
    let vm = f.vm().await;
    let before = f.store.boot("made");
    f.refresh(Err("truncated")).await;
    assert_eq!(f.store.boot("made"), before);
    let progress = f.store.info("made").unwrap().progress;
    assert_eq!(progress, "refresh failed: image made: the kernel: truncated");
    // An image of an older recipe that comes to the same is of the new one from then on.
    let mut old = Manifest::read(&f.layout.image("made")).unwrap();
    old.recipe = 0;
    old.write(&f.layout.image("made")).unwrap();
    let f = f.reopened();
    let made_by = |f: &Fixture| f.store.info("made").unwrap().recipe.unwrap().made_by;
    assert_eq!(made_by(&f), 0);
    f.refresh(Ok("first")).await;
    assert_eq!((made_by(&f), f.store.boot("made")), (2, before));
    let f = f.reopened();
    assert_eq!((made_by(&f), dirs(&f.layout, "made").len()), (2, 1));
    assert_eq!(f.base(&vm).await, "first");
}

#[tokio::test]
async fn a_disk_is_never_read_on_another_version_than_its_own() {
    let f = Fixture::new();
    f.store.ensure("made").await.unwrap();
    f.refresh(Ok("second")).await;
    let vm = f.vm().await;
    f.refresh(Ok("third")).await;
    fs::remove_dir_all(f.layout.image_versions("made").join(version_file(&vm).unwrap().unwrap()))
        .unwrap();
    let error = f.store.ensure_for("made", &vm.0).await.unwrap_err().to_string();
    assert!(error.contains("version that the disk was made from is gone"), "{error}");
    assert_eq!(f.store.boot_of("made", &vm.0), None);
}

#[tokio::test]
async fn while_a_definition_is_damaged_no_version_is_erased() {
    let f = Fixture::new();
    let vm = f.vm().await;
    f.refresh(Ok("second")).await;
    fs::write(vm.definition(), "{").unwrap();
    let f = f.reopened();
    assert!(f.layout.image("made").join("disk.raw").exists());
}
