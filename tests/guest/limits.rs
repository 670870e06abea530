//! Limits: what a guest gets that wants more.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Mounted;

/// Has the guest write so many MiB to its disk, and says how long that took.
fn write(aq: &Mounted, vm: &str, mebibytes: u32) -> Duration {
    let began = Instant::now();
    let file = "/root/written";
    aq.exec(vm, &format!("dd if=/dev/zero of={file} bs=1M count={mebibytes} conv=fsync 2>&1"));
    began.elapsed()
}

/// Says what QEMU has for the disk: bytes and operations a second.
fn throttled(aq: &Mounted, vm: &str) -> String {
    let script = format!(
        r#"exec 3<>{vm}/qmp; read -r _ <&3; echo '{{"execute": "query-block"}}' >&3
        while read -r line <&3; do case $line in *disk0*) break ;; esac; done; echo "$line""#
    );
    let answer: Value = serde_json::from_str(&aq.sh(&script).ok()).unwrap();
    let blocks = answer["return"].as_array().unwrap();
    let is_disk = |block: &&Value| block["qdev"].as_str().is_some_and(|id| id.contains("disk0"));
    let disk = &blocks.iter().find(is_disk).unwrap()["inserted"];
    format!("{} {}", disk["bps"], disk["iops"])
}

#[test]
fn a_disk_is_as_fast_as_io_limit_says_at_once_and_after_everything() {
    let aq = Mounted::booted();
    aq.sh("echo 4M > vm1/config/io_limit").ok();
    assert_eq!(aq.sh("grep -c pending vm1/info").stdout, "0\n");
    // A tenth of a second's worth passes at once.
    let limited = write(&aq, "vm1", 12);
    assert!(limited >= Duration::from_millis(2800), "12 MiB at 4 MiB/s took {limited:?}");
    aq.sh("echo > vm1/config/io_limit").ok();
    assert_eq!(
        (aq.read("vm1/config/io_limit"), throttled(&aq, "vm1")),
        ("none".into(), "0 0".into())
    );
    let free = write(&aq, "vm1", 12);
    assert!(free < limited, "{free:?} without a limit, {limited:?} with one");
    // It stays whatever becomes of the machine.
    aq.sh("echo 64M 800iops > vm1/config/io_limit; mkdir vm1/snapshots/a; cat vm1/wait").ok();
    let expected = "67108864 800";
    assert_eq!(throttled(&aq, "vm1"), expected);
    aq.sh("echo restore a > vm1/ctl; cat vm1/wait vm1/ready; echo fork b > vm1/ctl").ok();
    aq.wait_for_ready("b");
    assert_eq!((throttled(&aq, "vm1"), throttled(&aq, "b")), (expected.into(), expected.into()));
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; mv vm1 moved; echo start > moved/ctl; cat moved/ready").ok();
    assert_eq!(throttled(&aq, "moved"), expected);
    assert_eq!(aq.read("moved/config/io_limit"), "64M 800iops");
}

#[test]
fn a_later_daemon_has_the_limit_and_changes_it() {
    let aq = Mounted::booted();
    aq.sh("echo 64M > vm1/config/io_limit").ok();
    aq.kill_daemon();
    aq.mount();
    aq.wait_for_ready("vm1");
    assert_eq!(throttled(&aq, "vm1"), "67108864 0");
    aq.sh("echo 5iops > vm1/config/io_limit").ok();
    assert_eq!(throttled(&aq, "vm1"), "0 5");
}
