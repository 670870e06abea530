//! Restores of a memory that another machine saved, and daemons that die during a restore.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{BOOT, Mounted, eventually};

fn set_cpus(aq: &Mounted, cpus: u32) {
    aq.sh(&format!("echo stop > vm1/ctl; cat vm1/wait; echo {cpus} > vm1/config/cpus")).ok();
}

/// A VM with the snapshot `live`, taken with one processor; `/root/x` was `one`, and is `two` by now.
fn with_live_snapshot() -> Mounted {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo one > /root/x; sync");
    aq.sh("mkdir vm1/snapshots/live; cat vm1/wait").ok();
    aq.exec("vm1", "echo two > /root/x; sync");
    aq
}

/// Has QEMU go back without asking us, as a daemon that dies at once would leave it.
fn load_over_qmp(aq: &Mounted) {
    let load = r#"{"execute": "snapshot-load", "arguments":
        {"job-id": "j", "tag": "live", "vmstate": "disk", "devices": ["disk"]}}"#;
    let load = load.replace('\n', " ");
    aq.sh(&format!(
        "exec 3<> vm1/qmp; echo '{load}' >&3; timeout 20 grep -qm1 '\"status\": \"concluded\"' <&3"
    ))
    .ok();
}

#[test]
fn a_snapshot_of_another_machine_is_not_restored_and_nothing_is_lost() {
    let aq = with_live_snapshot();
    set_cpus(&aq, 2);
    aq.boot_existing("vm1");
    let refused = aq.sh("echo 'restore live' > vm1/ctl").failed();
    assert!(refused.contains("Device or resource busy"), "{refused}");
    let error = aq.read("vm1/error");
    assert!(error.contains("cpus is 2, the snapshot's is 1; set it so"), "{error}");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "two");
    // The same for what was suspended: unchanged, it is resumed.
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo 3 > vm1/config/cpus; echo start > vm1/ctl")
        .failed();
    let error = aq.read("vm1/error");
    assert!(error.contains("cpus is 3, the snapshot's is 2"), "{error}");
    assert!(aq.qemus().is_empty());
    aq.sh("echo 2 > vm1/config/cpus").ok();
    aq.boot_existing("vm1");
    aq.exec("vm1", &format!("kill -0 {pid}"));
    // And under another name; in the machine that it is of, it goes back.
    set_cpus(&aq, 1);
    aq.sh("mv vm1/snapshots/live vm1/snapshots/then").ok();
    aq.boot_existing("vm1");
    aq.sh("echo 'restore then' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
}

#[test]
fn a_machine_that_was_restored_half_way_is_ended_and_boots_from_the_snapshots_disk() {
    let aq = with_live_snapshot();
    let uuid = aq.info("vm1", "uuid").parse().expect("a UUID");
    aq.sh("echo stop > vm1/ctl; cat vm1/wait; echo 192M > vm1/config/memory").ok();
    aq.boot_existing("vm1");
    // As with a snapshot that was made outside.
    std::fs::remove_file(aq.store().vm(uuid).memories()).expect("the list");
    // The write fails if the load fails within the time that a request waits for its end.
    aq.sh("echo 'restore live' > vm1/ctl || true").ok();
    let status = aq.sh("cat vm1/wait").ok();
    assert!(status.contains("failed: the snapshot's memory could not be loaded"), "{status}");
    assert!(aq.qemus().is_empty());
    aq.sh("qemu-img check -q vm1/disk").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
    // The same while no daemon runs; the next one reports it.
    load_over_qmp(&aq);
    aq.kill_daemon();
    aq.mount();
    let status = aq.read("vm1/status");
    assert!(status.starts_with("failed: the snapshot's memory"), "{status}");
    assert!(aq.qemus().is_empty());
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
}

#[test]
fn a_guest_brought_back_behind_a_daemon_has_the_time_of_now() {
    let aq = with_live_snapshot();
    aq.sh("sleep 4").ok();
    load_over_qmp(&aq);
    aq.kill_daemon();
    aq.mount();
    eventually("ready", BOOT, || aq.read("vm1/status") == "ready");
    let after = aq.exec("vm1", "cat /root/x; date +%s");
    let (was, time) = after.split_once('\n').expect("state and time");
    assert_eq!(was, "one");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now").as_secs();
    let guest: u64 = time.trim().parse().expect("a time");
    assert!(now.abs_diff(guest) <= 2, "the guest's clock shows {guest}, it is {now}");
    // The next one is not disturbed by what is on QEMU's list.
    aq.sh("echo 'restore live' > vm1/ctl; cat vm1/wait; rmdir vm1/snapshots/live; cat vm1/wait")
        .ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
}
