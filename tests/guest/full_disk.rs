//! A full disk in the middle of a snapshot, a publication and a start: the errno and the sentence say
//! so, what was there stays usable, and what was half written is given back.
//!
//! The store lies on a small tmpfs. Mounting that takes a user namespace, in which the test runs again.
#![allow(clippy::print_stdout, reason = "says that it is skipped")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{BOOT, Mounted, eventually, image, shell};

/// Set for the run in the namespace.
const INSIDE: &str = "AQFS_TEST_INSIDE";
const MIB: u64 = 1 << 20;

/// Runs a test of this program again in namespaces of its own, as their root. Says whether that is
/// where it runs already; if namespaces are not allowed, it does not run at all.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // A mount that is gone outside must not live on in here.
    let namespaces = ["--user", "--map-root-user", "--mount", "--propagation", "slave"];
    if !Command::new("unshare")
        .args(namespaces)
        .arg("true")
        .output()
        .is_ok_and(|o| o.status.success())
    {
        println!("skipped: user namespaces are not allowed here");
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(namespaces).arg(std::env::current_exe().expect("this program"));
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    // There it has another number.
    command.env("AQFS_TEST_CACHE", image::place());
    let said = shell::finish(&mut command, BOOT * 3);
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    false
}

/// A file system of a few MiB, with a store and the image in it.
struct Small {
    aq: Mounted,
    dir: PathBuf,
}

impl Small {
    fn new(dir: &Path) -> Self {
        let (flags, size) = (rustix::mount::MountFlags::empty(), c"size=384m");
        rustix::mount::mount("tmpfs", dir, "tmpfs", flags, size).expect("a tmpfs");
        let store = dir.join("store");
        image::install(&store);
        Self { aq: Mounted::on(store), dir: dir.to_owned() }
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.dir).expect("a file system");
        stat.f_bavail * stat.f_frsize
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    /// Leaves so many bytes free.
    fn fill(&self, left: u64) {
        let size = self.free() - left;
        let zeros = vec![0; usize::try_from(size).expect("memory")];
        fs::write(self.filler(), zeros).expect("room for what fills it");
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).expect("a filler");
    }

    /// Carries out a command that must fail for lack of space.
    #[track_caller]
    fn full(&self, command: &str) {
        let said = self.aq.sh(command).failed();
        assert!(said.contains("No space left on device"), "{command}: {said}");
        let reported = self.aq.sh("tail -n 1 .error").ok();
        assert!(reported.contains(" 28 no space left for "), "{command}: {reported}");
    }

    #[track_caller]
    fn has_its_data(&self) {
        assert_eq!(self.aq.exec("vm1", "cd /root && sha256sum -c -s sum && echo whole"), "whole");
    }
}

#[test]
fn a_full_disk_costs_nothing_that_was_there() {
    if !is_inside("full_disk::a_full_disk_costs_nothing_that_was_there") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let small = Small::new(dir.path());
    let aq = &small.aq;
    aq.sh("mkdir vm1 && echo 128M > vm1/config/memory").ok();
    aq.boot_existing("vm1");
    aq.exec("vm1", "cd /root; head -c 2000000 /dev/urandom > data; sha256sum data > sum; sync");
    small.aq.stop("vm1");
    aq.sh("mkdir vm1/snapshots/clean").ok();

    snapshot_of_a_vm_that_is_off(&small);
    snapshot_of_a_vm_that_runs(&small);
    the_daemons_own_log(&small);
    publication(&small);
    templates(&small);
    forks(&small);
    first_start(&small);
    drop(small.aq);
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
}

/// A VM that is off.
fn snapshot_of_a_vm_that_is_off(small: &Small) {
    let aq = &small.aq;
    small.fill(0);
    small.full("mkdir vm1/snapshots/more");
    small.make_room();
    assert_eq!(aq.sh("rmdir vm1/snapshots/more; ls vm1/snapshots").ok(), "clean");
    aq.sh("mkdir vm1/snapshots/more && rmdir vm1/snapshots/more").ok();
}

/// One that runs: its memory does not fit.
fn snapshot_of_a_vm_that_runs(small: &Small) {
    let aq = &small.aq;
    aq.boot_existing("vm1");
    let before = small.free();
    small.fill(16 * MIB);
    aq.sh("mkdir vm1/snapshots/live; cat vm1/wait");
    let reported = aq.read("vm1/error");
    assert!(reported.starts_with("no space left for the snapshot"), "{reported}");
    assert!(aq.read("vm1/snapshots/live/status").starts_with("failed: no space left"));
    small.make_room();
    // The guest may have met the full disk as well.
    aq.sh("[ $(cat vm1/status) != paused ] || echo resume > vm1/ctl; cat vm1/ready").ok();
    small.has_its_data();
    small.aq.stop("vm1");
    aq.boot_existing("vm1");
    assert!(small.free() + 4 * MIB > before, "{} of {before} are left", small.free());
    small.aq.stop("vm1");
    aq.sh("qemu-img check -q vm1/disk && rmdir vm1/snapshots/live; echo 'restore clean' > vm1/ctl")
        .ok();
    aq.boot_existing("vm1");
    small.has_its_data();
    small.aq.stop("vm1");
}

/// The daemon's own log, which is of no use then and does no harm.
fn the_daemons_own_log(small: &Small) {
    let aq = &small.aq;
    aq.boot_existing("vm1");
    small.fill(0);
    // More lines than there is room for in the file's last page.
    let script = "for n in $(seq 40); do echo pause > vm1/ctl; echo resume > vm1/ctl; done
        cat vm1/ready > /dev/null; cat vm1/status";
    assert_eq!(aq.sh(script).ok(), "ready");
    small.make_room();
    small.has_its_data();
    small.aq.stop("vm1");
}

/// A publication.
fn publication(small: &Small) {
    let aq = &small.aq;
    let before = small.free();
    aq.sh("mkdir .images/x").ok();
    small.fill(4 * MIB);
    aq.sh("echo vm1 > .images/x/source").ok();
    eventually("a failure", BOOT, || {
        aq.read(".images/x/status").starts_with("failed: no space left")
    });
    small.make_room();
    assert!(small.free() + MIB > before);
    assert_eq!(aq.sh("echo pull > .images/x/ctl; cat vm1/wait").ok(), "stopped");
    eventually("the image", BOOT, || aq.read(".images/x/status") == "ready");
}

/// A template: of a VM that runs, which is resumed, and of one that is booted for it.
fn templates(small: &Small) {
    let aq = &small.aq;
    aq.boot_existing("vm1");
    let before = small.free();
    aq.sh("mkdir .images/live").ok();
    small.fill(16 * MIB);
    aq.sh("echo vm1 > .images/live/source; cat .images/live/wait vm1/wait");
    let reported = aq.read(".images/live/status");
    assert!(reported.starts_with("failed: no space left"), "{reported}");
    small.has_its_data();
    aq.sh("echo 128M > .defaults/memory; echo warm > .images/tiny/ctl; cat .images/tiny/wait");
    let reported = aq.read(".images/tiny/warm");
    assert!(reported.starts_with("failed: no space left"), "{reported}");
    assert_eq!(aq.read(".images/tiny/status"), "ready");
    small.make_room();
    assert!(small.free() + 4 * MIB > before, "{} of {before} are left", small.free());
    small.has_its_data();
    small.aq.stop("vm1");
    aq.sh("qemu-img check -q vm1/disk; rmdir .images/live").ok();
}

/// Forks, which are all made or none, wherever it fails.
fn forks(small: &Small) {
    let aq = &small.aq;
    aq.boot_existing("vm1");
    let before = (small.free(), aq.sh("ls").ok());
    for left in [0, MIB / 8, MIB / 2, MIB, 3 * MIB] {
        small.fill(left);
        small.full("echo fork a b > vm1/ctl");
        small.make_room();
        // The guest may have met the full disk as well.
        aq.sh("[ $(cat vm1/status) != paused ] || echo resume > vm1/ctl; cat vm1/wait vm1/ready")
            .ok();
        small.has_its_data();
        assert_eq!(aq.sh("ls").ok(), before.1);
        assert_eq!(aq.sh("qemu-img snapshot -U -l vm1/disk | grep -c frozen").stdout, "0\n");
    }
    assert!(small.free() + 2 * MIB > before.0, "{} of {} are left", small.free(), before.0);
    // Their memory is not on the disk.
    small.fill(12 * MIB);
    aq.sh("echo fork a > vm1/ctl; cat a/ready").ok();
    small.make_room();
    aq.sh("echo kill > a/ctl; cat a/wait; rmdir a; rmdir .trash/a@*").ok();
    small.aq.stop("vm1");
    aq.sh("qemu-img check -q vm1/disk").ok();
}

/// A first start.
fn first_start(small: &Small) {
    let aq = &small.aq;
    aq.sh("mkdir vm2").ok();
    small.fill(0);
    small.full("echo start > vm2/ctl");
    assert_eq!(aq.read("vm2/status"), "stopped");
    small.make_room();
    aq.boot_existing("vm2");
}
