//! The catalogue with sources whose results the test decides.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;
use crate::arch::Arch;
use crate::image::manifest::Manifest;
use crate::image::source::{BuildError, Progress};
use crate::vm::backend::{DiskFormat, ImageStatus};

/// Builds when the test says so, and as it says.
#[derive(Debug)]
struct Scripted {
    builds: AtomicUsize,
    results: Mutex<mpsc::Receiver<Result<(), BuildError>>>,
}

impl ImageSource for Scripted {
    fn spec(&self) -> &'static str {
        "builtin:scripted"
    }

    fn kind(&self) -> &'static str {
        "builtin"
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest, BuildError> {
        self.builds.fetch_add(1, Ordering::SeqCst);
        fs::write(dir.join("disk.raw"), "disk").unwrap();
        progress.building("half-built 1/2");
        self.results.lock().recv().unwrap()?;
        Ok(Manifest::of_disk(self, DiskFormat::Raw, 4))
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    source: Arc<Scripted>,
    results: mpsc::Sender<Result<(), BuildError>>,
    store: ImageStore,
}

fn with_sources(layout: Layout, sources: Vec<(&str, Arc<dyn ImageSource>)>) -> ImageStore {
    ImageStore::with_sources(layout, &FailureLog::default(), sources_of_tests(), sources).unwrap()
}

fn sources_of_tests() -> (Vec<Arc<Tiny>>, Distributions) {
    let tiny = Tiny::new("/nowhere".into(), String::new(), Arch::HOST);
    (vec![Arc::new(tiny)], Distributions::default())
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let (results, receiver) = mpsc::channel();
    let source = Arc::new(Scripted { builds: AtomicUsize::new(0), results: Mutex::new(receiver) });
    let layout = Layout::new(dir.path());
    let store = with_sources(layout, vec![("scripted", Arc::clone(&source) as _)]);
    Fixture { dir, source, results, store }
}

async fn until(store: &ImageStore, wanted: impl Fn(&ImageInfo) -> bool) -> ImageInfo {
    let mut changes = store.listen();
    loop {
        let info = store.info("scripted").unwrap();
        if wanted(&info) {
            return info;
        }
        changes.rung().await;
    }
}

#[tokio::test]
async fn many_callers_share_one_build_and_one_that_goes_away_does_not_end_it() {
    let f = fixture();
    let first = tokio::spawn({
        let store = f.store.clone();
        async move { store.ensure("scripted").await }
    });
    until(&f.store, |i| i.progress == "half-built 1/2").await;
    first.abort();
    let rest: Vec<_> = (0..32)
        .map(|_| {
            let store = f.store.clone();
            tokio::spawn(async move { store.ensure("scripted").await.unwrap() })
        })
        .collect();
    f.results.send(Ok(())).unwrap();
    for caller in rest {
        let image = caller.await.unwrap();
        assert_eq!(fs::read(&image.disk).unwrap(), b"disk");
    }
    f.store.begin("scripted").unwrap();
    assert_eq!(f.source.builds.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_image_is_there_whole_or_not_at_all() {
    let f = fixture();
    let dir = f.dir.path().join("images/scripted");
    assert_eq!(f.store.info("scripted").unwrap().status, ImageStatus::Absent);
    f.store.begin("scripted").unwrap();
    until(&f.store, |i| i.status == ImageStatus::Building).await;
    assert!(!dir.exists());
    f.results.send(Ok(())).unwrap();
    let info = until(&f.store, |i| i.status == ImageStatus::Ready).await;
    assert!(info.digest.starts_with("sha256:") && info.progress.is_empty());
    let names: Vec<_> =
        fs::read_dir(dir.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["scripted"]);
    // Another daemon finds the same image and builds nothing.
    let again = with_sources(Layout::new(f.dir.path()), vec![]);
    assert_eq!(again.ensure("scripted").await.unwrap().digest, info.digest);
    assert_eq!(again.info("scripted").unwrap().source, "builtin:scripted");
}

#[tokio::test]
async fn a_failure_is_told_and_the_next_caller_tries_again() {
    let f = fixture();
    f.results.send(Err(BuildError::malformed("kernel", "truncated"))).unwrap();
    let error = f.store.ensure("scripted").await.unwrap_err().to_string();
    assert_eq!(error, "image scripted: kernel: truncated");
    let status = f.store.info("scripted").unwrap().status;
    assert_eq!(status, ImageStatus::Failed(error));
    assert_eq!(fs::read_dir(f.dir.path().join("images")).unwrap().count(), 0);
    f.results.send(Ok(())).unwrap();
    f.store.ensure("scripted").await.unwrap();
    assert_eq!(f.source.builds.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_a_killed_daemon_left_half_built_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let half = dir.path().join("images/.scripted.Xy12Zz");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("disk.raw"), "half").unwrap();
    let store = with_sources(Layout::new(dir.path()), vec![]);
    assert!(!half.exists());
    assert_eq!(store.list(), []);
    let error = store.ensure("scripted").await.unwrap_err();
    assert!(matches!(error, BackendError::NoImage { .. }));
}

#[tokio::test]
async fn a_damaged_image_is_made_again() {
    let f = fixture();
    f.results.send(Ok(())).unwrap();
    let image = f.store.ensure("scripted").await.unwrap();
    fs::remove_file(&image.disk).unwrap();
    f.results.send(Ok(())).unwrap();
    f.store.ensure("scripted").await.unwrap();
    assert!(image.disk.exists());
}

#[tokio::test]
async fn a_damaged_image_is_listed_and_says_so_and_others_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    for name in ["json", "folder", "half"] {
        fs::create_dir_all(layout.image(name)).unwrap();
    }
    fs::write(layout.image("json").join("image.json"), "{").unwrap();
    fs::create_dir(layout.image("folder").join("image.json")).unwrap();
    fs::create_dir(layout.image("half").join(".tmpx")).unwrap();
    fs::write(layout.images().join(".half"), "not a directory").unwrap();
    let failures = FailureLog::default();
    let store =
        ImageStore::with_sources(layout.clone(), &failures, sources_of_tests(), vec![]).unwrap();
    for name in ["json", "folder"] {
        let info = store.info(name).unwrap();
        assert!(info.status.to_string().contains("cannot be read"), "{name}: {}", info.status);
        let error = store.ensure(name).await.unwrap_err();
        assert!(error.to_string().contains("put it back"), "{error}");
        let recipe = Recipe::Tiny(Arch::HOST);
        assert!(matches!(store.assign(name, recipe), Err(BackendError::ImageExists { .. })));
        assert!(layout.image(name).join("image.json").exists());
        store.remove(name).unwrap();
    }
    assert_eq!(store.info("half").unwrap().status, ImageStatus::Absent);
    assert_eq!(failures.list().len(), 3, "{}", failures.print());
}
