//! Undoing a removal: `mv .trash/VM@TIME VM` after `rm -r VM` brings back all that the VM had.

use std::path::PathBuf;

use crate::common::Mounted;

/// A VM that is off and has never run a guest, with snapshots of its disk.
fn off(aq: &Mounted, vm: &str, tags: &str) {
    aq.make_off(vm);
    aq.sh(&format!("cd {vm}/snapshots && mkdir {tags}")).ok();
}

fn disk(aq: &Mounted, vm: &str) -> PathBuf {
    aq.vm_dir(vm).disk()
}

/// What `qemu-img` finds in a disk.
fn in_disk(aq: &Mounted, vm: &str) -> String {
    let list = "qemu-img snapshot -l \"$1\" | awk 'NR > 2 { print $2 }' | sort";
    let disk = disk(aq, vm);
    aq.sh(&format!("set -- '{}'; qemu-img check -q \"$1\" && echo $({list})", disk.display())).ok()
}

#[test]
fn snapshots_and_a_suspended_memory_come_back() {
    let aq = Mounted::with_image();
    aq.boot("c");
    let pid = aq.exec("c", "sleep 100000 > /dev/null 2>&1 & echo $!");
    aq.exec("c", "echo one > /tmp/x; echo one > /root/x; sync");
    aq.sh("mkdir c/snapshots/live; cat c/wait").ok();
    aq.exec("c", "echo two > /tmp/x; echo two > /root/x; sync");
    aq.sh("echo suspend > c/ctl; cat c/wait; mkdir c/snapshots/off; echo web > c/config/hostname")
        .ok();
    aq.sh("rm -r c && mv .trash/c@* c").ok();
    assert_eq!(aq.sh("echo $(ls c/snapshots)").ok(), "live off");
    assert_eq!((aq.read("c/status").as_str(), &*aq.info("c", "suspended")), ("stopped", "yes"));
    assert_eq!(aq.read("c/config/hostname"), "web");
    aq.boot_existing("c");
    assert_eq!(aq.exec("c", &format!("kill -0 {pid} && cat /tmp/x /root/x")), "two\ntwo");
    aq.sh("echo 'restore live' > c/ctl; cat c/wait").ok();
    aq.wait_for_ready("c");
    assert_eq!(aq.exec("c", &format!("kill -0 {pid} && cat /tmp/x /root/x")), "one\none");
    // The same of a clone of what was undone, under another name, and by another program.
    aq.stop("c");
    aq.sh("find c -delete && mv .trash/c@* d").ok();
    aq.boot_existing("d");
    assert_eq!(aq.exec("d", "cat /root/x"), "one");
    aq.stop("d");
    assert_eq!(in_disk(&aq, "d"), "live off");
}

#[test]
fn a_removal_that_is_refused_takes_nothing() {
    let aq = Mounted::with_image();
    off(&aq, "a", "s t");
    aq.sh("echo 'start paused' > a/ctl; mkdir a/jobs/j").ok();
    let programs = ["rm -r a", "find a -delete", "busybox rm -r a"];
    for program in programs {
        assert!(aq.sh(program).failed().contains("busy"), "{program}");
        assert_eq!(aq.sh("echo $(ls a/snapshots a/jobs)").ok(), "a/jobs: j last a/snapshots: s t");
    }
    aq.sh("echo kill > a/ctl; cat a/wait; echo 1 > a/config/protect").ok();
    for program in programs {
        assert!(aq.sh(program).failed().contains("permitted"), "{program}");
        assert_eq!(aq.sh("echo $(ls a/snapshots)").ok(), "s t", "{program}");
    }
    // By itself each can be removed.
    aq.sh("rm -r a/snapshots/s a/jobs/j; echo 0 > a/config/protect; rm -r a").ok();
}

#[test]
fn what_another_process_has_dropped_stays_dropped() {
    let aq = Mounted::with_image();
    off(&aq, "vm1", "a b");
    aq.sh("rmdir vm1/snapshots/a").ok();
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "b");
    aq.sh("rm -r vm1 && mv .trash/vm1@* vm1").ok();
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "b");
    // A name that was given up is free, and its space comes back with the next change.
    assert_eq!(in_disk(&aq, "vm1"), "a b");
    aq.sh("mkdir vm1/snapshots/a; rmdir vm1/snapshots/b; mkdir vm1/snapshots/c").ok();
    assert_eq!(in_disk(&aq, "vm1"), "a c");
    aq.sh("busybox rm -r vm1 && mv .trash/vm1@* vm1").ok();
    assert_eq!(aq.sh("echo $(ls vm1/snapshots)").ok(), "a c");
    assert_eq!(in_disk(&aq, "vm1"), "a c");
}

#[test]
fn a_killed_daemon_forgets_neither() {
    let aq = Mounted::with_image();
    off(&aq, "vm1", "a b");
    aq.sh("rmdir vm1/snapshots/a").ok();
    aq.kill_daemon();
    aq.mount();
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "b");
    assert_eq!(in_disk(&aq, "vm1"), "a b");
    aq.sh("rm -r vm1").ok();
    aq.kill_daemon();
    aq.mount();
    aq.sh("mv .trash/vm1@* vm1").ok();
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "b");
    aq.sh("echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait").ok();
    assert_eq!(in_disk(&aq, "vm1"), "b");
}
