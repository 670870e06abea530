//! A VM's life, from `mkdir` to `rmdir`, with a real guest.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::{Mounted, assert_errno, eventually};
use rustix::process::Signal;

#[test]
fn a_guest_keeps_its_files_while_it_is_off() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1").ok();
    assert_eq!(aq.read("vm1/status"), "stopped");
    aq.sh("echo start > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.read("vm1/status"), "ready");
    assert_eq!(aq.exec("vm1", "echo kept > /root/kept && sync && uname -s"), "Linux");
    assert_eq!(aq.sh("echo stop > vm1/ctl && cat vm1/wait").ok(), "stopped");
    aq.sh("echo start > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/kept"), "kept");
}

#[test]
fn the_guest_is_called_as_its_directory_and_sized_as_its_config_says() {
    let aq = Mounted::with_image();
    aq.sh("mkdir web && cd web/config && echo 2 > cpus && echo 384M > memory").ok();
    aq.sh("echo start > web/ctl").ok();
    aq.wait_for_ready("web");
    let said =
        aq.exec("web", "hostname; nproc; awk '/MemTotal/ {print ($2 > 300000)}' /proc/meminfo");
    assert_eq!(said.lines().collect::<Vec<_>>(), ["web", "2", "1"]);
}

#[test]
fn a_guest_that_powers_itself_off_ends_stopped() {
    let aq = Mounted::booted();
    aq.sh("echo poweroff > vm1/exec").ok();
    aq.wait_for_status("vm1", "stopped");
    eventually("QEMU gone", Duration::from_secs(10), || aq.qemus().is_empty());
}

#[test]
fn pause_resume_reset_kill() {
    let aq = Mounted::booted();
    let boot = aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(aq.sh("echo pause > vm1/ctl && cat vm1/status").ok(), "paused");
    aq.sh("echo resume > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id"), boot);
    assert_eq!(aq.sh("echo reset > vm1/ctl && cat vm1/status").ok(), "running");
    aq.wait_for_ready("vm1");
    assert_ne!(aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id"), boot);
    assert_eq!(aq.sh("echo kill > vm1/ctl && cat vm1/wait").ok(), "stopped");
    assert!(aq.qemus().is_empty());
}

/// How many seconds a guest's clock is behind the host's.
fn behind(aq: &Mounted, vm: &str) -> i64 {
    aq.wait_for_ready(vm);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let guest: i64 = aq.exec(vm, "date +%s").parse().expect("seconds");
    i64::try_from(now.as_secs()).expect("a clock of our time") - guest
}

#[test]
fn a_guest_that_is_ready_has_the_right_clock_after_every_kind_of_pause() {
    let aq = Mounted::booted();
    aq.sh("echo pause > vm1/ctl && sleep 4 && echo resume > vm1/ctl").ok();
    assert!(behind(&aq, "vm1") <= 1, "after a pause");
    aq.sh("echo pause > vm1/ctl").ok();
    aq.kill_daemon();
    std::thread::sleep(Duration::from_secs(4));
    aq.mount();
    aq.sh("echo resume > vm1/ctl").ok();
    assert!(behind(&aq, "vm1") <= 1, "after a daemon's end");
    aq.sh("mkdir vm1/snapshots/a && cat vm1/wait && sleep 4 && echo 'restore a' > vm1/ctl").ok();
    aq.sh("cat vm1/wait").ok();
    assert!(behind(&aq, "vm1") <= 1, "after a snapshot");
    aq.sh("echo kill > vm1/ctl && cat vm1/wait && echo 'start paused' > vm1/ctl").ok();
    aq.sh("sleep 4 && echo resume > vm1/ctl").ok();
    assert!(behind(&aq, "vm1") <= 1, "after a start that was paused");
}

#[test]
fn what_is_so_already_is_refused_and_changes_nothing() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1").ok();
    for verb in ["stop", "kill"] {
        assert_errno(aq.write("vm1/ctl", verb), libc::EALREADY);
    }
    aq.boot_existing("vm1");
    let qemus = aq.qemus();
    for verb in ["start", "start paused", "resume"] {
        assert_errno(aq.write("vm1/ctl", verb), libc::EALREADY);
        assert!(aq.read("vm1/error").contains("already ready"), "{}", aq.read("vm1/error"));
    }
    assert_eq!((aq.read("vm1/status").as_str(), aq.qemus()), ("ready", qemus));
}

#[test]
fn a_running_vm_survives_every_way_of_removing_it() {
    let aq = Mounted::booted();
    let (qemus, files) = (aq.qemus(), aq.sh("find vm1 | sort").ok());
    let stubborn = "Device or resource busy";
    for attempt in ["rmdir vm1", "rm -r vm1", "rm -rf vm1", "find vm1 -delete"] {
        let said = aq.sh(attempt).failed();
        assert!(said.contains(stubborn), "{attempt}: {said}");
    }
    assert_eq!((aq.qemus(), aq.sh("find vm1 | sort").ok()), (qemus, files));
    assert_eq!(aq.exec("vm1", "echo alive"), "alive");
    aq.sh("echo kill > vm1/ctl && cat vm1/wait").ok();
    aq.sh("rm -r vm1 && test ! -e vm1").ok();
}

#[test]
fn a_qemu_that_hangs_delays_neither_kill_nor_names() {
    let aq = Mounted::booted();
    aq.qemus().iter().for_each(|&pid| crate::common::proc::kill(pid, Signal::STOP));
    let script = "(for n in 1 2 3; do echo 128M > vm1/config/memory; done) 2> /dev/null & sleep 0.5
        rmdir vm1 2>&1; mkdir vm2 && mv vm1 vm3 && mv vm2 vm4 && rmdir vm4 && echo kill > vm3/ctl";
    let began = Instant::now();
    let said = aq.sh(script).ok();
    assert!(said.contains("Device or resource busy"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(aq.sh("cat vm3/wait").ok(), "stopped");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    aq.boot_existing("vm3");
}

#[test]
fn stop_becomes_a_kill_when_the_guest_does_not_listen() {
    let aq = Mounted::booted();
    aq.deafen("vm1");
    let began = Instant::now();
    assert_eq!(aq.sh("echo 'stop 1' > vm1/ctl && cat vm1/wait").ok(), "stopped");
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_vm_started_paused_runs_when_it_is_resumed() {
    let aq = Mounted::with_image();
    let said =
        aq.sh("mkdir vm1 && echo 'start paused' > vm1/ctl && cat vm1/status vm1/console.log");
    assert_eq!(said.ok(), "paused");
    aq.sh("echo resume > vm1/ctl").ok();
    aq.wait_for_ready("vm1");
}

#[test]
fn two_vms_do_not_disturb_each_other() {
    let aq = Mounted::with_image();
    aq.sh("mkdir a b && echo start | tee a/ctl b/ctl").ok();
    for vm in ["a", "b"] {
        aq.wait_for_ready(vm);
        assert_eq!(aq.exec(vm, "hostname"), vm);
    }
    assert_ne!(aq.info("a", "ssh_port"), aq.info("b", "ssh_port"));
    aq.sh("echo kill > a/ctl && cat a/wait && rmdir a").ok();
    assert_eq!(aq.exec("b", "hostname"), "b");
}

#[test]
fn without_qemu_its_package_is_named() {
    let aq = Mounted::with_image();
    let script = "aq umount; mkdir bin; ln -s $(command -v fusermount3) bin
        PATH=$SCRATCH/bin $AQ mount $AQ_MOUNT --store $SCRATCH/store";
    aq.cli(script).ok();
    let said = aq.sh("mkdir vm1; echo start > vm1/ctl; cat vm1/wait vm1/error vm1/status").stdout;
    assert!(said.contains("qemu-system") && said.contains("install"), "{said}");
}
