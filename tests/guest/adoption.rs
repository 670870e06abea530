//! The guest belongs to the user, not to the daemon: guests that outlive the daemon, and what a new
//! daemon does with them.

use std::fs;

use rustix::process::Signal;

use crate::common::{BOOT, Mounted, assert_errno, eventually, proc};

#[test]
fn guests_outlive_a_killed_daemon() {
    let aq = Mounted::with_image();
    let vms = ["vm1", "vm2", "vm3"];
    aq.sh("mkdir vm1 vm2 vm3 && for vm in *; do echo start > $vm/ctl; done").ok();
    vms.iter().for_each(|vm| aq.wait_for_ready(vm));
    let pids = vms.map(|vm| aq.info(vm, "pid"));
    let logs = vms.map(|vm| aq.vm_dir(vm).console_log());
    let later =
        "(trap '' HUP; sleep 3; echo said-without-a-daemon > /dev/console) > /dev/null 2>&1 &";
    vms.iter().for_each(|vm| drop(aq.exec(vm, later)));
    aq.kill_daemon();
    eventually("every guest has spoken", BOOT, || {
        logs.iter().all(|log| {
            fs::read_to_string(log).unwrap_or_default().contains("said-without-a-daemon")
        })
    });
    aq.mount();
    for (vm, pid) in vms.iter().zip(pids) {
        aq.wait_for_ready(vm);
        assert_eq!(aq.info(vm, "pid"), pid);
        assert_eq!(aq.exec(vm, "hostname"), *vm);
        assert!(aq.read(&format!("{vm}/console.log")).contains("said-without-a-daemon"));
    }
    assert_eq!(aq.qemus().len(), 3);
    aq.sh("for vm in *; do echo kill > $vm/ctl; cat $vm/wait; rmdir $vm; done").ok();
}

#[test]
fn guests_outlive_an_unmount() {
    let aq = Mounted::booted();
    let qemus = aq.qemus();
    aq.sh(r#"cd /; "$AQ" umount "$SCRATCH/mnt""#).ok();
    assert_eq!(aq.qemus(), qemus);
    aq.mount();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.qemus(), qemus);
}

#[test]
fn a_qemu_that_died_meanwhile_is_a_failure_that_can_be_started_again() {
    let aq = Mounted::booted();
    aq.kill_daemon();
    aq.qemus().iter().for_each(|&pid| proc::kill(pid, Signal::KILL));
    eventually("QEMU gone", BOOT, || aq.qemus().is_empty());
    aq.mount();
    assert!(aq.read("vm1/status").starts_with("failed: "), "{}", aq.read("vm1/status"));
    aq.sh("echo start > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
}

#[test]
fn a_qemu_that_dies_under_the_daemon_is_a_failure() {
    let aq = Mounted::booted();
    aq.qemus().iter().for_each(|&pid| proc::kill(pid, Signal::KILL));
    aq.wait_for_status("vm1", "failed: ");
    assert!(aq.read("vm1/status").contains("KILL"), "{}", aq.read("vm1/status"));
    assert_errno(aq.write("vm1/exec", "true"), libc::EHOSTDOWN);
}

/// A VM whose QEMU does not answer the daemon that finds it, as while it writes a snapshot of a large
/// memory; returns its process and the id of its boot.
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
