//! Limits: what a guest gets that wants more.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Mounted, assert_errno, eventually};

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

/// Says how nice a VM's QEMU is, all its threads.
fn nice(aq: &Mounted, vm: &str) -> String {
    let pid = aq.info(vm, "pid");
    aq.sh(&format!("ps -L -o ni= -p {pid} | sort -u | tr -d ' '")).ok()
}

#[test]
fn what_no_cgroup_holds_is_said_and_qemu_yields() {
    let aq = Mounted::booted();
    let before: i32 = nice(&aq, "vm1").parse().unwrap();
    aq.sh("echo 0.5 > vm1/config/cpu_limit; echo 512M > vm1/config/memory_max").ok();
    let info = aq.read("vm1/info");
    if info.contains("cpu_limit 0.5, by cgroup") {
        println!("not run: there is a delegated cgroup");
        return;
    }
    assert!(
        info.contains("\ncpu_limit 0.5, by nice alone, when others want the processors: "),
        "{info}"
    );
    assert!(info.contains("\nmemory_max 512M, not held: ") && !info.contains("pending"), "{info}");
    let expected = (before + 10).min(19).to_string();
    assert_eq!(nice(&aq, "vm1"), expected);
    // A VM that starts with it yields from its start on.
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo start > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(nice(&aq, "vm1"), expected);
    aq.sh("echo > vm1/config/cpu_limit; echo none > vm1/config/memory_max").ok();
    assert!(!aq.read("vm1/info").contains("limit"));
}

/// Reads a file of the control group that a VM's QEMU is in.
fn group(aq: &Mounted, vm: &str, file: &str) -> String {
    let pid = aq.info(vm, "pid");
    let script = format!(
        "cat $(awk '/ - cgroup2 / {{ print $5 }}' /proc/self/mountinfo)$(sed -n s/^0::// /proc/{pid}/cgroup)/{file}"
    );
    aq.sh(&script).ok()
}

/// Says how many thousandths of a processor a VM's QEMU takes.
fn thousandths(aq: &Mounted, vm: &str) -> u128 {
    let used = || aq.info(vm, "cpu_ms").parse::<u128>().unwrap();
    let (began, before) = (Instant::now(), used());
    std::thread::sleep(Duration::from_secs(6));
    (used() - before) * 1000 / began.elapsed().as_millis()
}

#[test]
#[ignore = "needs a delegated cgroup: run by `tools/test limits`"]
fn a_guest_gets_no_more_of_the_host_than_its_limits() {
    let aq = Mounted::booted();
    let loops = "for n in 1 2; do (trap '' HUP; while :; do :; done) > /dev/null 2>&1 & done";
    aq.exec("vm1", loops);
    let free = thousandths(&aq, "vm1");
    aq.sh("echo 0.3 > vm1/config/cpu_limit").ok();
    assert_eq!(group(&aq, "vm1", "cpu.max"), "30000 100000");
    let held = thousandths(&aq, "vm1");
    println!(
        "processor time of a guest that burns it: {free} without, {held} thousandths with 0.3"
    );
    assert!((200..=360).contains(&held), "{held} thousandths with a limit of 0.3, {free} without");
    // A later daemon finds it so, and changes it.
    aq.kill_daemon();
    aq.mount();
    assert!(aq.info("vm1", "cpu_limit").starts_with("0.3, by cgroup"), "{}", aq.read("vm1/info"));
    aq.sh("echo 1.5 > vm1/config/cpu_limit; mv vm1 moved").ok();
    assert_eq!(group(&aq, "moved", "cpu.max"), "150000 100000");
    // What has a limit from its start on has a group from its start on; a fork has its parent's limits.
    aq.wait_for_ready("moved");
    aq.sh("echo fork b > moved/ctl").ok();
    aq.wait_for_ready("b");
    assert_eq!(group(&aq, "b", "cpu.max"), "150000 100000");
    aq.sh("for vm in b moved; do echo kill > $vm/ctl; cat $vm/wait; done").ok();
    assert_eq!(groups(), "");
}

/// Lists the groups of VMs that there are.
fn groups() -> String {
    let find = "find $(awk '/ - cgroup2 / { print $5 }' /proc/self/mountinfo) -type d -name 'aqfs-*' -not -name aqfs-test-*";
    let said = std::process::Command::new("sh").args(["-c", find]).output().unwrap();
    String::from_utf8(said.stdout).unwrap()
}

#[test]
#[ignore = "needs a delegated cgroup: run by `tools/test limits`"]
fn a_guest_that_takes_more_memory_than_it_may_is_ended_and_it_is_said_why() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo 512M > vm1/config/memory; echo 400M > vm1/config/memory_high").ok();
    aq.boot_existing("vm1");
    let take = "mount -t tmpfs -o size=450m tmpfs /mnt; dd if=/dev/zero of=/mnt/x bs=1M count=";
    let script = format!(
        "last='reached memory_high'; mkdir vm1/jobs/take; echo '{take}420' > vm1/jobs/take/cmd"
    );
    let said = aq.events_of("vm1/events", &script);
    assert!(said.contains("reached memory_high"), "{said}");
    println!("memory.peak with memory_high 400M: {}", group(&aq, "vm1", "memory.peak"));
    aq.sh("echo 256M > vm1/config/memory_max; echo none > vm1/config/memory_high").ok();
    eventually("it is ended", Duration::from_secs(120), || {
        aq.read("vm1/status").starts_with("failed")
    });
    let status = aq.read("vm1/status");
    assert!(status.contains("it had all of config/memory_max, 256M"), "{status}");
    assert_eq!(groups(), "");
    aq.sh("echo none > vm1/config/memory_max; echo start > vm1/ctl; cat vm1/ready").ok();
}

#[test]
fn all_vms_together_have_limits_too() {
    let aq = Mounted::booted();
    aq.sh("echo 1 > .limits/vms; mkdir vm2").ok();
    assert_errno(aq.write("vm2/ctl", "start"), libc::EDQUOT);
    let error = aq.read("vm2/error");
    assert!(error.contains("1 VMs may run at once (.limits/vms), 1 do; stop one"), "{error}");
    assert_errno(aq.write("vm1/ctl", "fork a"), libc::EDQUOT);
    // It counts in a later daemon, and a machine that it finds counts.
    aq.kill_daemon();
    aq.mount();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.read(".limits/vms"), "1");
    assert_errno(aq.write("vm2/ctl", "start"), libc::EDQUOT);
    aq.sh("echo > .limits/vms; echo 300M > .limits/memory; echo 1 > vm2/config/overcommit").ok();
    assert_errno(aq.write("vm2/ctl", "start"), libc::EDQUOT);
    aq.sh("echo 512M > .limits/memory; echo start paused > vm2/ctl; cat vm2/wait").ok();
    let used = aq.read(".limits/used");
    assert!(used.starts_with("vms 2\nmemory 512M\ndisk "), "{used}");
    // The store is full; what runs continues.
    aq.sh("echo 64K > .limits/disk").ok();
    let made = std::fs::create_dir(aq.path("vm3"));
    assert_errno(made, libc::EDQUOT);
    assert_errno(std::fs::create_dir(aq.path("vm1/snapshots/a")), libc::EDQUOT);
    assert_errno(std::fs::create_dir(aq.path(".images/i")), libc::EDQUOT);
    aq.sh("mkdir vm1/disks/d").ok();
    assert_errno(std::fs::write(aq.path("vm1/disks/d/size"), "16M"), libc::EDQUOT);
    assert!(aq.read(".error").contains("the store may take 64K (.limits/disk), and takes "));
    assert_eq!(aq.exec("vm1", "echo continues"), "continues");
    aq.sh("echo none > .limits/disk; mkdir vm3; echo 1.5 > .limits/cpus; grep 'cpus 1.5, ' .limits/used").ok();
}
