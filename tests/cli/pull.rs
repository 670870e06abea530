//! `aq pull`, `aq images` and the files under them, against a mirror on this host that is laid out as
//! Debian's.
//!
//! Not here: which release is chosen, and what a wrong server brings (`image::release`, `image::cloud`).

use std::process::Stdio;

use sha2::{Digest, Sha256};

use crate::common::mirror::Mirror;
use crate::common::mounted::SHORT;
use crate::common::{Mounted, eventually};

const DIR: &str = "debian/bookworm/latest";
const DISK: &str = "debian/bookworm/latest/debian-12-genericcloud-amd64.qcow2";

/// A qcow2 image without a cluster in use.
fn qcow2(size: u8) -> Vec<u8> {
    let mut disk = vec![0; 400_000];
    disk[..4].copy_from_slice(b"QFI\xfb");
    (disk[7], disk[23], disk[30], disk[103]) = (3, 16, size, 104);
    disk
}

fn publish(mirror: &Mirror, disk: &[u8]) {
    mirror.put(DISK, disk);
    let sum: String = Sha256::digest(disk).iter().map(|b| format!("{b:02x}")).collect();
    mirror
        .put(&format!("{DIR}/SHA512SUMS"), format!("{sum}  debian-12-genericcloud-amd64.qcow2\n"));
}

fn mounted(mirror: &Mirror) -> Mounted {
    publish(mirror, &qcow2(1));
    Mounted::with_distributions(&format!("mirror = \"{}\"\n", mirror.url("")))
}

#[test]
fn an_image_is_listed_pulled_refreshed_and_listed() {
    let mirror = Mirror::start();
    let aq = mounted(&mirror);
    assert!(aq.sh("ls .images").ok().contains("debian-12"));
    assert!(!aq.cli("aq images").ok().contains("debian"));
    let said = aq.cli("aq pull debian:12");
    assert!(said.code == 0 && said.stdout.starts_with("debian-12: ready, "), "{said:?}");
    assert!(aq.cli("aq images").ok().contains("debian-12            ready"));
    assert!(aq.cli("aq images --all").ok().contains("alpine               absent"));
    let said = aq.cli("aq pull --refresh debian-12").ok();
    assert!(said.ends_with("; nothing has changed since it was made"), "{said}");
    publish(&mirror, &qcow2(2));
    let said = aq.cli("aq pull --refresh --json debian-12 | tail -n1").ok();
    let last: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&last["status"], &last["inputs"][2]),
        (&"ready".into(), &"SHA512SUMS, not signed".into())
    );
    let said = aq.cli("aq pull debian:bookworm beos:5");
    assert!(said.code == 1 && said.stderr.contains("no distribution of this name"), "{said:?}");
    assert!(said.stdout.contains("debian-bookworm: ready"), "{said:?}");
    assert!(!aq.sh("ls .images").ok().contains("beos"));
}

#[test]
fn ctrl_c_of_a_run_ends_the_pull_that_it_has_begun() {
    let mirror = Mirror::start();
    let aq = mounted(&mirror);
    mirror.put("x.qcow2", qcow2(1));
    let url = format!("{}#sha256={}", mirror.url("x.qcow2"), "0".repeat(64));
    // What the mirror lists stays listed; what was to be made for the run alone is gone.
    for (image, held, left) in [("debian-12", DISK, true), (&*url, "x.qcow2", false)] {
        mirror.hold(held, 300_000);
        let mut run = aq.aq().args(["run", image, "true"]).stderr(Stdio::piped()).spawn().unwrap();
        let statuses = "cat .images/*/status | grep -c fetching";
        eventually("the pull", SHORT, || aq.sh(statuses).stdout.trim() == "1");
        let pid = rustix::process::Pid::from_child(&run);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(130), "{image}");
        assert_eq!(aq.sh("ls; ls .trash").ok(), "", "{image}");
        let said = std::io::read_to_string(run.stderr.take().unwrap()).unwrap();
        assert!(said.contains("cancelled"), "{said}");
        assert_eq!(aq.sh("cat .images/*/status | grep -c cancelled").stdout.trim() == "1", left);
        aq.sh("echo pull > .images/debian-12/ctl").ok();
        mirror.release(held);
        assert_eq!(aq.sh("cat .images/debian-12/wait").ok(), "ready");
    }
    assert!(aq.sh("ls -d .images/x").failed().contains("No such file"));
}

#[test]
fn an_image_that_is_not_there_is_named_with_the_next_step() {
    let aq = Mounted::new();
    let said = aq.cli("aq run tinny true").failed();
    let sentence = "image 'tinny' does not exist. Did you mean 'tiny'? `aq images --all` lists";
    assert!(said.contains(sentence), "{said}");
    assert!(aq.cli("aq pull tinny").failed().contains(sentence));
}

#[test]
fn ctrl_c_cancels_a_pull_and_the_next_one_continues_it() {
    let mirror = Mirror::start();
    let aq = mounted(&mirror);
    mirror.hold(DISK, 300_000);
    let mut pull = aq.aq().args(["pull", "debian-12"]).stderr(Stdio::piped()).spawn().unwrap();
    let part = aq.store().downloads();
    let length = || {
        let files = std::fs::read_dir(&part).into_iter().flatten().filter_map(Result::ok);
        files.filter_map(|e| e.metadata().ok()).map(|m| m.len()).max().unwrap_or_default()
    };
    eventually("the part", SHORT, || length() == 300_000);
    assert_eq!(aq.read(".images/debian-12/status"), "fetching");
    let pid = rustix::process::Pid::from_child(&pull);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(pull.wait().unwrap().code(), Some(130));
    eventually("the end", SHORT, || aq.read(".images/debian-12/status").contains("cancelled"));
    assert!(aq.sh("echo cancel > .images/debian-12/ctl").stderr.contains("already"));
    // A killed daemon's part is gone on from, too.
    aq.kill_daemon();
    aq.mount();
    mirror.release(DISK);
    aq.cli("aq pull debian-12").ok();
    assert_eq!(mirror.ranges(DISK), ["bytes=300000-"]);
}
