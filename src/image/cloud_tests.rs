//! Images are pulled from a mirror that is laid out as Debian's, through the whole catalogue.

use std::fs;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::super::ImageStore;
use super::super::tiny::Tiny;
use super::*;
use crate::arch::Arch;
use crate::fetch::mirror::Mirror;
use crate::store::failure_log::FailureLog;
use crate::store::layout::Layout;
use crate::vm::backend::{ImageInfo, ImageStatus, Images, Recipe};

const DISK: &str = "debian/bookworm/latest/debian-12-genericcloud-amd64.qcow2";
const LIST: &str = "debian/bookworm/latest/SHA512SUMS";

struct Fixture {
    dir: tempfile::TempDir,
    mirror: Mirror,
    store: ImageStore,
    said: Mutex<Vec<String>>,
}

/// A qcow2 image of `size` bytes that is as long as a header of one, and a little more.
fn qcow2(size: u8) -> Vec<u8> {
    let mut disk = vec![0; 200_000];
    disk[..4].copy_from_slice(b"QFI\xfb");
    disk[7] = 3;
    disk[23] = 16;
    disk[30] = size;
    disk[103] = 104;
    disk
}

fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn open(dir: &Path, mirror: &Mirror) -> ImageStore {
    let mut all = Distributions::built_in();
    all.use_mirror(&mirror.url(""));
    let tiny = vec![Arc::new(Tiny::new("/nowhere".into(), String::new(), Arch::HOST))];
    let layout = Layout::new(dir);
    ImageStore::with_sources(layout, &FailureLog::default(), (tiny, all), vec![]).unwrap()
}

fn fixture() -> Fixture {
    let (dir, mirror) = (tempfile::tempdir().unwrap(), Mirror::start());
    let store = open(dir.path(), &mirror);
    let f = Fixture { dir, mirror, store, said: Mutex::default() };
    f.publish(&qcow2(1));
    f
}

impl Fixture {
    fn publish(&self, disk: &[u8]) {
        self.mirror.put(DISK, disk);
        self.mirror.put(LIST, format!("{}  debian-12-genericcloud-amd64.qcow2\n", sum(disk)));
    }

    fn info(&self, name: &str) -> ImageInfo {
        self.store.info(name).unwrap()
    }

    /// Waits until nothing is under way, and keeps what `progress` has said.
    async fn settled(&self, name: &str) -> ImageInfo {
        let mut changes = self.store.listen();
        loop {
            let info = self.info(name);
            self.said.lock().push(info.progress.clone());
            if !matches!(info.status, ImageStatus::Fetching | ImageStatus::Building) {
                return info;
            }
            changes.rung().await;
        }
    }

    async fn pull(&self, name: &str) -> ImageInfo {
        self.store.begin(name).unwrap();
        self.settled(name).await
    }

    /// Pulls what must not become an image; returns why.
    async fn refused(&self) -> String {
        let info = self.pull("debian-12").await;
        let left = fs::read_dir(self.dir.path().join("images")).unwrap().count();
        assert_eq!(left, 0, "nothing half-made");
        let ImageStatus::Failed(reason) = info.status else { panic!("{:?}", info.status) };
        reason
    }
}

#[tokio::test]
async fn a_distribution_is_listed_pulled_refreshed_and_removed() {
    let f = fixture();
    let info = f.info("debian-12");
    assert_eq!(
        (info.status, &*info.source, &*info.kind),
        (ImageStatus::Absent, "debian:12", "cloud")
    );
    assert_eq!(f.info("alpine").source, "alpine:latest");
    let info = f.pull("debian-12").await;
    assert_eq!(info.status, ImageStatus::Ready);
    assert_eq!(info.inputs[1], format!("sha256:{}", sum(&qcow2(1))));
    assert_eq!(info.inputs[2], "SHA512SUMS, not signed");
    assert!(info.settings.table().contains("memory 1G"));
    let first = f.store.boot("debian-12").unwrap();
    assert_eq!((first.seed, first.disk_size), (SeedKind::Nocloud, 512));
    assert_eq!(fs::read(&first.disk).unwrap(), qcow2(1));
    assert_eq!(fs::read_dir(f.dir.path().join("cache/downloads")).unwrap().count(), 0);

    f.store.refresh("debian-12").unwrap();
    let info = f.settled("debian-12").await;
    assert_eq!(info.progress, "nothing has changed since it was made");
    assert_eq!(f.mirror.requests(DISK), 1);
    f.publish(&qcow2(2));
    f.store.refresh("debian-12").unwrap();
    assert_eq!(f.settled("debian-12").await.progress, "");
    let second = f.store.boot("debian-12").unwrap();
    assert_ne!(second.disk, first.disk);
    assert!(first.disk.exists(), "VMs may need it");

    let again = open(f.dir.path(), &f.mirror);
    assert_eq!(again.boot("debian-12").unwrap().disk, second.disk);
    again.refresh("debian-12").unwrap();
    f.store.remove("debian-12").unwrap();
    assert_eq!(f.info("debian-12").status, ImageStatus::Absent);
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_the_image_as_it_is() {
    let f = fixture();
    f.pull("debian-12").await;
    f.mirror.put(LIST, format!("{}  debian-12-genericcloud-amd64.qcow2\n", "0".repeat(64)));
    f.store.refresh("debian-12").unwrap();
    let info = f.settled("debian-12").await;
    assert_eq!(info.status, ImageStatus::Ready);
    assert!(info.progress.starts_with("refresh failed: image debian-12: "), "{}", info.progress);
    assert!(f.store.boot("debian-12").unwrap().disk.exists());
}

#[tokio::test]
async fn what_is_wrong_on_the_server_is_one_sentence_with_the_next_step() {
    let f = fixture();
    let mut flipped = qcow2(1);
    flipped[150_000] ^= 1;
    f.mirror.put(DISK, &flipped);
    let reason = f.refused().await;
    assert!(reason.contains("the list has sha256:") && reason.contains("`echo pull"), "{reason}");
    assert_eq!((f.mirror.requests(DISK), f.mirror.requests(LIST)), (1, 2));

    f.mirror.put(LIST, format!("{}  another.qcow2\n", "0".repeat(64)));
    assert!(f.refused().await.contains("has nothing like"));

    let mut raw = qcow2(1);
    raw[0] = 0;
    f.publish(&raw);
    assert!(f.refused().await.contains("is no qcow2 file, whatever its name says"));

    let mut backed = qcow2(1);
    backed[15] = 1;
    f.publish(&backed);
    assert!(f.refused().await.contains("has a backing file"));

    f.publish(&qcow2(1));
    f.mirror.redirect(DISK, "http://mirror.example/x.qcow2");
    let reason = f.refused().await;
    assert!(reason.contains("redirects to http://mirror.example/x.qcow2"), "{reason}");
}

#[tokio::test]
async fn a_pull_is_cancelled_and_goes_on_from_there_even_in_another_daemon() {
    let f = fixture();
    assert!(matches!(f.store.cancel("debian-12"), Err(BackendError::NothingUnderWay { .. })));
    f.mirror.hold(DISK, 120_000);
    f.store.begin("debian-12").unwrap();
    // A second pull is the same one.
    f.store.begin("debian-12").unwrap();
    let part = || {
        let files = fs::read_dir(f.dir.path().join("cache/downloads")).into_iter().flatten();
        files.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).max().unwrap_or_default()
    };
    while part() < 120_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(f.info("debian-12").status, ImageStatus::Fetching);
    f.store.cancel("debian-12").unwrap();
    let ImageStatus::Failed(reason) = f.settled("debian-12").await.status else { panic!() };
    assert!(
        reason.contains("cancelled; `echo pull > .images/debian-12/ctl` continues"),
        "{reason}"
    );
    f.mirror.release(DISK);
    let again = open(f.dir.path(), &f.mirror);
    again.ensure("debian-12").await.unwrap();
    assert_eq!(f.mirror.ranges(DISK), ["bytes=120000-"]);
}

#[tokio::test]
async fn an_image_of_the_users_own_is_made_of_a_release_or_an_address() {
    let f = fixture();
    let disk = qcow2(3);
    f.mirror.put("x.qcow2", &disk);
    f.store.create("mine").unwrap();
    let (url, checksum) = (f.mirror.url("x.qcow2"), format!("sha256={}", sum(&disk)));
    let bad = Recipe::Url { url: url.clone(), checksum: "sha256=12".into() };
    assert!(matches!(f.store.assign("mine", bad), Err(BackendError::BadSource { .. })));
    let unknown = Recipe::Distribution { name: "beos".into(), version: None };
    let error = f.store.assign("mine", unknown).unwrap_err().to_string();
    assert!(error.contains("known are alpine, debian"), "{error}");
    f.store.assign("mine", Recipe::Url { url, checksum }).unwrap();
    assert_eq!(f.info("mine").status, ImageStatus::Absent);
    // A killed daemon's successor knows what it is to be made from.
    let again = open(f.dir.path(), &f.mirror);
    assert_eq!(fs::read(again.ensure("mine").await.unwrap().disk).unwrap(), disk);
    // A name that is only offered may be given to something else.
    let release = Recipe::Distribution { name: "debian".into(), version: Some("bookworm".into()) };
    f.store.assign("alpine", release).unwrap();
    assert_eq!(f.pull("alpine").await.source, "debian:bookworm");
    f.store.remove("alpine").unwrap();
    assert_eq!(f.info("alpine").source, "alpine:latest");
}
