//! The guest belongs to the user, not to the daemon: what a new daemon finds after the old one
//! was killed, stopped, or is still there.
#![cfg(feature = "fuse_tests")]

mod common;

use std::fs;

use common::Mounted;
#[cfg(feature = "qemu_tests")]
use common::{assert_errno, proc};
#[cfg(feature = "qemu_tests")]
use rustix::process::Signal;

#[test]
fn a_stale_mount_is_cleaned_up_and_the_vms_are_there_again() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 && echo 3 > vm1/config/cpus").ok();
    let uuid = aq.info("vm1", "uuid");
    aq.kill_daemon();
    common::eventually("the mount is stale", common::BOOT, || {
        fs::read_dir(aq.dir()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    aq.mount();
    assert_eq!((aq.info("vm1", "uuid"), aq.read("vm1/config/cpus")), (uuid, "3".to_owned()));
}

#[test]
fn a_second_daemon_on_a_store_is_told_of_the_first() {
    let aq = Mounted::new();
    let script =
        r#"mkdir "$SCRATCH/other" && "$AQ" mount "$SCRATCH/other" --store "$SCRATCH/store""#;
    let said = aq.sh(script).failed();
    let first = format!("pid {}, mounted at {}", aq.daemon(), aq.dir().display());
    assert!(said.contains(&first) && said.lines().count() == 1, "{said}");
    aq.sh("mkdir still-works").ok();
}

#[test]
fn a_vm_with_damaged_files_is_broken_and_the_others_work() {
    let aq = Mounted::new();
    aq.sh("mkdir good bad").ok();
    let definition = aq.store().vm(aq.info("bad", "uuid").parse().expect("a UUID")).definition();
    aq.sh(r#"cd /; "$AQ" umount "$SCRATCH/mnt""#).ok();
    fs::write(&definition, "{\"name\": \"bad\", ").expect("our own file");
    aq.mount();
    let listed = aq.sh("ls").ok();
    let bad = listed.lines().find(|&l| l != "good").unwrap_or_else(|| panic!("only {listed}"));
    let status = aq.read(&format!("{bad}/status"));
    assert!(status.starts_with("broken: ") && status.contains("vm.json"), "{status}");
    assert!(aq.write(&format!("{bad}/ctl"), "start").is_err());
    assert_eq!(aq.read("good/status"), "stopped");
    aq.sh("echo 2 > good/config/cpus && ls -lR > /dev/null").ok();
}

#[cfg(feature = "qemu_tests")]
#[test]
fn guests_outlive_a_killed_daemon() {
    let aq = Mounted::with_image();
    let vms = ["vm1", "vm2", "vm3"];
    aq.sh("mkdir vm1 vm2 vm3 && for vm in *; do echo start > $vm/ctl; done").ok();
    vms.iter().for_each(|vm| aq.wait_for_ready(vm));
    let pids = vms.map(|vm| aq.info(vm, "pid"));
    let logs =
        vms.map(|vm| aq.store().vm(aq.info(vm, "uuid").parse().expect("a UUID")).console_log());
    let later = "(trap '' HUP; sleep 3; echo said-to-nobody > /dev/console) > /dev/null 2>&1 &";
    vms.iter().for_each(|vm| drop(aq.exec(vm, later)));
    aq.kill_daemon();
    common::eventually("every guest has spoken", common::BOOT, || {
        logs.iter()
            .all(|log| fs::read_to_string(log).unwrap_or_default().contains("said-to-nobody"))
    });
    aq.mount();
    for (vm, pid) in vms.iter().zip(pids) {
        aq.wait_for_ready(vm);
        assert_eq!(aq.info(vm, "pid"), pid);
        assert_eq!(aq.exec(vm, "hostname"), *vm);
        assert!(aq.read(&format!("{vm}/console.log")).contains("said-to-nobody"));
    }
    assert_eq!(aq.qemus().len(), 3);
    aq.sh("for vm in *; do echo kill > $vm/ctl; cat $vm/wait; rmdir $vm; done").ok();
}

#[cfg(feature = "qemu_tests")]
#[test]
fn guests_outlive_an_unmount() {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    let qemus = aq.qemus();
    aq.sh(r#"cd /; "$AQ" umount "$SCRATCH/mnt""#).ok();
    assert_eq!(aq.qemus(), qemus);
    aq.mount();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.qemus(), qemus);
}

#[cfg(feature = "qemu_tests")]
#[test]
fn a_qemu_that_died_meanwhile_is_a_failure_that_can_be_started_again() {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    aq.kill_daemon();
    aq.qemus().iter().for_each(|&pid| common::proc::kill(pid, rustix::process::Signal::KILL));
    common::eventually("QEMU gone", common::BOOT, || aq.qemus().is_empty());
    aq.mount();
    assert!(aq.read("vm1/status").starts_with("failed: "), "{}", aq.read("vm1/status"));
    aq.sh("echo start > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
}

#[cfg(feature = "qemu_tests")]
#[test]
fn a_qemu_that_dies_under_the_daemon_is_a_failure() {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    aq.qemus().iter().for_each(|&pid| common::proc::kill(pid, rustix::process::Signal::KILL));
    aq.wait_for_status("vm1", "failed: ");
    assert!(aq.read("vm1/status").contains("KILL"), "{}", aq.read("vm1/status"));
    assert_errno(aq.write("vm1/exec", "true"), libc::EHOSTDOWN);
}

/// A VM whose QEMU does not answer the daemon that finds it, as while it writes a snapshot of a large
/// memory; returns its process and what tells its boot from others.
#[cfg(feature = "qemu_tests")]
fn unreachable(aq: &Mounted) -> (u32, String) {
    aq.boot("vm1");
    let qemu: u32 = aq.info("vm1", "pid").parse().expect("a pid");
    let boot = aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id");
    proc::kill(qemu, Signal::STOP);
    aq.kill_daemon();
    aq.mount();
    let status = aq.read("vm1/status");
    assert!(status.starts_with("unreachable: ") && status.contains("greeting"), "{status}");
    (qemu, boot)
}

#[cfg(feature = "qemu_tests")]
#[test]
fn a_qemu_that_does_not_answer_is_left_alone_and_found_when_it_does() {
    let aq = Mounted::with_image();
    let (qemu, boot) = unreachable(&aq);
    for attempt in ["rmdir vm1", "rm -r vm1", "echo start > vm1/ctl", "echo stop > vm1/ctl"] {
        let said = aq.sh(attempt).failed();
        assert!(said.contains("Device or resource busy"), "{attempt}: {said}");
        let error = aq.read("vm1/error");
        assert!(error.contains("`echo kill > ctl` ends it"), "{error}");
    }
    assert_errno(fs::read(aq.path("vm1/ready")), libc::EHOSTUNREACH);
    let listed = aq.cli("aq ls -l").ok();
    assert!(listed.contains(" unreachable tiny"), "{listed}");
    assert!(aq.read(".metrics").contains("aqfs_vms{state=\"unreachable\"} 1\n"));
    aq.kill_daemon();
    aq.mount();
    proc::kill(qemu, Signal::CONT);
    aq.wait_for_status("vm1", "ready");
    assert_eq!(aq.info("vm1", "pid"), qemu.to_string());
    assert_eq!(aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id"), boot);
}

#[cfg(feature = "qemu_tests")]
#[test]
fn a_qemu_that_does_not_answer_is_ended_by_kill() {
    let aq = Mounted::with_image();
    let (qemu, boot) = unreachable(&aq);
    assert_eq!(aq.sh("echo kill > vm1/ctl && cat vm1/wait").ok(), "stopped");
    assert!(!proc::alive(qemu));
    aq.boot_existing("vm1");
    assert_ne!(aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id"), boot);
    aq.sh("echo kill > vm1/ctl && cat vm1/wait && rm -r vm1").ok();
}
