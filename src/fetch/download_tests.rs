//! Downloads from a server with faults.

use std::fs;
use std::time::Duration;

use super::super::mirror::Mirror;
use super::super::{ChecksumList, Retries};
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    mirror: Mirror,
    body: Vec<u8>,
}

/// A server with a file that has no repetitions.
fn fixture() -> Fixture {
    let mut state = 7_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    let body: Vec<u8> = (0..300_000).map(|_| byte()).collect();
    let (dir, mirror) = (tempfile::tempdir().unwrap(), Mirror::start());
    mirror.put("disk.qcow2", &body);
    Fixture { dir, mirror, body }
}

fn client(cancel: &Cancel) -> Client {
    let retries = Retries { at_first: 2, later: 3, pause: Duration::from_millis(5) };
    Client::with_retries(cancel.clone(), retries).unwrap()
}

impl Fixture {
    fn fetch_from(&self, url: &str, cancel: &Cancel) -> Result<Downloaded, FetchError> {
        let cache = self.dir.path().join("downloads");
        client(cancel).download(&Download { url, cache: &cache }, |_| {})
    }

    fn fetch(&self) -> Result<Downloaded, FetchError> {
        self.fetch_from(&self.mirror.url("disk.qcow2"), &Cancel::default())
    }

    /// What is left in the cache.
    fn left(&self) -> usize {
        fs::read_dir(self.dir.path().join("downloads")).unwrap().count()
    }
}

#[test]
fn a_file_is_fetched_and_moved_and_leaves_nothing() {
    let f = fixture();
    let to = f.dir.path().join("disk");
    let file = f.fetch().unwrap();
    file.move_to(&to).unwrap();
    assert!(fs::read(&to).unwrap() == f.body);
    assert_eq!(f.left(), 0);
}

#[test]
fn a_cut_is_gone_on_from_and_so_is_a_killed_daemon_s_part() {
    let f = fixture();
    f.mirror.cut_next("disk.qcow2", 100_000);
    assert!(fs::read(f.fetch().unwrap().path()).unwrap() == f.body);
    assert_eq!(f.mirror.ranges("disk.qcow2"), ["bytes=100000-"]);
    // The file is complete, and no daemon has taken it: it is not fetched again.
    assert!(fs::read(f.fetch().unwrap().path()).unwrap() == f.body);
    assert_eq!(f.mirror.requests("disk.qcow2"), 2);
}

#[test]
fn a_server_that_goes_away_leaves_what_came_and_its_successor_goes_on() {
    let mut f = fixture();
    let (url, port) = (f.mirror.url("disk.qcow2"), f.mirror.port());
    f.mirror.hold("disk.qcow2", 200_000);
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let fetch = scope.spawn(|| {
            let cache = f.dir.path().join("downloads");
            client(&cancel).download(&Download { url: &url, cache: &cache }, |_| {})
        });
        while f.left_bytes() < 200_000 {
            std::thread::yield_now();
        }
        f.mirror.stop();
        let error = fetch.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("(3 attempts)"), "{error}");
    });
    f.mirror = Mirror::start_on(port);
    f.mirror.put("disk.qcow2", &f.body);
    assert!(fs::read(f.fetch().unwrap().path()).unwrap() == f.body);
    assert_eq!(f.mirror.ranges("disk.qcow2"), ["bytes=200000-"]);
}

#[test]
fn another_file_of_the_same_name_is_fetched_from_its_beginning() {
    let f = fixture();
    f.mirror.cut_next("disk.qcow2", 50_000);
    let mut changed = f.body.clone();
    changed.reverse();
    // The first attempt brings 50,000 bytes, then the server has another file.
    let url = f.mirror.url("disk.qcow2");
    let cache = f.dir.path().join("downloads");
    let file = client(&Cancel::default()).download(&Download { url: &url, cache: &cache }, |t| {
        if t.waiting.is_some() {
            f.mirror.put("disk.qcow2", &changed);
        }
    });
    assert!(fs::read(file.unwrap().path()).unwrap() == changed);
}

#[test]
fn a_server_without_ranges_or_that_always_breaks_off_has_an_end() {
    let f = fixture();
    f.mirror.without_ranges("disk.qcow2");
    f.mirror.cut_next("disk.qcow2", 100_000);
    assert!(fs::read(f.fetch().unwrap().path()).unwrap() == f.body);
    assert!(f.mirror.ranges("disk.qcow2").is_empty());
    f.fetch().unwrap().discard();
    f.mirror.hold("disk.qcow2", 10);
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let url = f.mirror.url("disk.qcow2");
        let (f, cancel) = (&f, &cancel);
        let fetch = scope.spawn(move || f.fetch_from(&url, cancel));
        while f.left_bytes() != 10 {
            std::thread::yield_now();
        }
        cancel.cancel();
        assert!(matches!(fetch.join().unwrap(), Err(FetchError::Cancelled)));
    });
}

#[test]
fn a_wrong_checksum_removes_the_file() {
    let f = fixture();
    let file = f.fetch().unwrap();
    let wrong = "0".repeat(64).parse().unwrap();
    let error = file.verify(&wrong, &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("the list has sha256:0000"), "{error}");
    assert_eq!(f.left(), 0);
    drop(file);
    let file = f.fetch().unwrap();
    let digest = wrong.of_same_kind(file.path(), &Cancel::default()).unwrap().to_string();
    let list = format!("{}  disk.qcow2\n", digest.trim_start_matches("sha256:"));
    let list = ChecksumList::parse("LIST", &list).unwrap();
    file.verify(list.find("disk.qcow2").unwrap(), &Cancel::default()).unwrap();
}

#[test]
fn a_file_that_does_not_fit_is_told_before_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let error = check_room(&dir.path().join("x"), "disk.qcow2", Some(1 << 60), 0).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no space left for disk.qcow2: it takes 1152921504606846976 more")
    );
    check_room(&dir.path().join("x"), "disk.qcow2", Some(1 << 60), (1 << 60) - 1).unwrap();
}

#[test]
fn a_transfer_prints_how_far_it_is_and_how_fast() {
    let transfer = Transfer {
        name: "disk.qcow2".into(),
        done: 13 << 20,
        total: Some(52 << 20),
        rate: 3_500_000,
        waiting: None,
    };
    assert_eq!(transfer.to_string(), "disk.qcow2: 13.0M of 52.0M, 3.3M/s, 25 %");
    let waiting = Transfer { waiting: Some("connection refused".into()), ..transfer };
    assert_eq!(
        waiting.to_string(),
        "disk.qcow2: connection refused, trying again; 13.0M are there"
    );
}

impl Fixture {
    /// The bytes of the part in the cache.
    fn left_bytes(&self) -> u64 {
        let files = fs::read_dir(self.dir.path().join("downloads")).into_iter().flatten();
        let parts = files
            .filter_map(Result::ok)
            .filter(|e| e.path().extension().is_some_and(|x| x == "part"));
        parts.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
    }
}
