//! Versions of the virtual hardware: what was saved of an earlier one is loaded in it, and there is room in
//! the present one.

use crate::common::Mounted;

/// What a guest finds on its first PCI bus, one `address vendor:device` a line.
const DEVICES: &str = "cd /sys/bus/pci/devices; for d in 0000:00:*; do echo $d $(cat $d/vendor):$(cat $d/device); done";

/// Starts a process in the guest, and says which.
fn process(aq: &Mounted, vm: &str) -> String {
    aq.exec(vm, "sleep 100000 > /dev/null 2>&1 & echo $!")
}

#[track_caller]
fn runs(aq: &Mounted, vm: &str, pid: &str) {
    assert_eq!(aq.exec(vm, &format!("kill -0 {pid} && echo runs")), "runs");
}

#[track_caller]
fn has(aq: &Mounted, vm: &str, hardware: &str) {
    assert_eq!(aq.info(vm, "hardware"), hardware);
}

#[track_caller]
fn suspend(aq: &Mounted, vm: &str) {
    aq.sh(&format!("echo suspend > {vm}/ctl; cat {vm}/wait")).ok();
}

/// A VM that an earlier version has started: with the first hardware, and nothing says so.
fn first() -> (Mounted, String) {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo 1 > vm1/config/hardware").ok();
    aq.boot_existing("vm1");
    has(&aq, "vm1", "1");
    aq.sh("echo newest > vm1/config/hardware").ok();
    let pid = process(&aq, "vm1");
    (aq, pid)
}

#[test]
fn a_vm_of_the_first_hardware_resumes_in_it_and_boots_in_the_newest() {
    let (aq, pid) = first();
    let devices = aq.exec("vm1", DEVICES);
    suspend(&aq, "vm1");
    aq.boot_existing("vm1");
    has(&aq, "vm1", "1");
    runs(&aq, "vm1", &pid);
    aq.exec("vm1", "echo one > /root/x; sync");
    aq.sh("mkdir vm1/snapshots/live; cat vm1/wait").ok();
    aq.exec("vm1", "echo two > /root/x; sync");
    aq.stop("vm1");
    // It has what it had, where it was, and room.
    aq.boot_existing("vm1");
    has(&aq, "vm1", "3");
    let now = aq.exec("vm1", DEVICES);
    assert!(devices.lines().all(|device| now.contains(device)), "{devices}\n{now}");
    assert!(now.contains("0000:00:1c.0 ") && !devices.contains("0000:00:1c.0 "), "{now}");
    assert_eq!(aq.exec("vm1", "cat /root/x; cat /sys/class/net/eth0/carrier"), "two\n1");
    aq.sh("echo 'restore live' > vm1/ctl").failed();
    let error = aq.read("vm1/error");
    assert!(error.contains("hardware is 3, the snapshot's is 1; set it so"), "{error}");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "two");
    aq.stop("vm1");
    aq.sh("echo 1 > vm1/config/hardware").ok();
    aq.boot_existing("vm1");
    aq.sh("echo 'restore live' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    runs(&aq, "vm1", &pid);
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
}

#[test]
fn an_image_that_is_warm_in_the_first_hardware_keeps_its_clones_warm() {
    let aq = Mounted::with_image();
    aq.sh("echo 1 > .defaults/hardware; echo warm > .images/tiny/ctl; cat .images/tiny/wait").ok();
    aq.sh("echo newest > .defaults/hardware; mkdir a b").ok();
    aq.boot_existing("a");
    assert_eq!(aq.info("a", "warm"), "yes");
    has(&aq, "a", "1");
    let pid = process(&aq, "a");
    // What is made of the clone is of its hardware.
    aq.sh("mkdir .images/a; echo a > .images/a/source; cat .images/a/wait a/wait").ok();
    suspend(&aq, "a");
    aq.boot_existing("a");
    has(&aq, "a", "1");
    runs(&aq, "a", &pid);
    aq.stop("a");
    aq.boot_existing("a");
    has(&aq, "a", "3");
    aq.sh("mkdir c; echo a > c/config/image").ok();
    aq.boot_existing("c");
    assert_eq!(aq.info("c", "warm"), "yes");
    has(&aq, "c", "1");
    runs(&aq, "c", &pid);
    // An explicit other version boots.
    aq.sh("echo 2 > b/config/hardware").ok();
    aq.boot_existing("b");
    has(&aq, "b", "2");
    let expected =
        "no: hardware is 2, the image's is 1; `echo default > config/hardware` takes the image's";
    assert_eq!(aq.info("b", "warm"), expected);
}

#[test]
fn hardware_that_was_not_recorded_is_detected() {
    let (aq, pid) = first();
    let vm = aq.vm_dir("vm1");
    suspend(&aq, "vm1");
    std::fs::remove_file(vm.memories()).expect("the list");
    aq.boot_existing("vm1");
    has(&aq, "vm1", "1");
    runs(&aq, "vm1", &pid);
    // A record that is lost.
    aq.kill_daemon();
    std::fs::remove_file(vm.run()).expect("the record");
    aq.mount();
    aq.wait_for_ready("vm1");
    has(&aq, "vm1", "1");
    aq.sh("mkdir .images/x; echo vm1 > .images/x/source; cat .images/x/wait vm1/wait").ok();
    assert!(aq.read(".images/x/warm").starts_with("yes"), "{}", aq.read(".images/x/status"));
    suspend(&aq, "vm1");
    aq.boot_existing("vm1");
    has(&aq, "vm1", "1");
    runs(&aq, "vm1", &pid);
}

#[test]
fn there_is_room_for_processors_disks_and_networks() {
    let aq = Mounted::booted();
    has(&aq, "vm1", "3");
    let qmp = |line: &str| {
        let answer = r#"timeout 20 grep -m1 -E '"(return|error)"' <&3 | tr -d '\r'"#;
        let said = aq.sh(&format!("exec 3<> vm1/qmp; echo '{line}' >&3; {answer}")).ok();
        assert_eq!(said, r#"{"return": {}}"#, "{line}");
    };
    let node = r#"{"driver": "null-co", "node-name": "more", "size": 1048576}"#;
    qmp(&format!(r#"{{"execute": "blockdev-add", "arguments": {node}}}"#));
    let cpu = r#""driver": "max-x86_64-cpu", "socket-id": 0, "core-id": 1, "thread-id": 0"#;
    for device in [
        r#""driver": "virtio-blk-pci", "drive": "more", "bus": "spare0""#,
        r#""driver": "virtio-net-pci", "bus": "spare3""#,
        cpu,
    ] {
        qmp(&format!(r#"{{"execute": "device_add", "arguments": {{{device}}}}}"#));
    }
    // Under TCG, Linux 6.9 and later reject absent processors in a package that is present: they know
    // hypervisors by name only, and take the guest for real hardware.
    let rejects = "dmesg | grep -q 'CPU topo: Allowing .* plus 0 hotplug CPUs'";
    let there = "cat /sys/block/vdb/size; ls -d /sys/class/net/eth1";
    let cpu = format!("{{ ls -d /sys/devices/system/cpu/cpu1 || {rejects}; }}");
    let said = aq.exec(
        "vm1",
        &format!(
            "for i in $(seq 100); do ({there} && {cpu}) > /tmp/x 2>&1 && break; sleep 0.1; done; cat /tmp/x"
        ),
    );
    let rejected = aq.exec("vm1", &format!("{rejects} && echo yes || true")) == "yes";
    let cpu = if rejected {
        "ls: /sys/devices/system/cpu/cpu1: No such file or directory"
    } else {
        "/sys/devices/system/cpu/cpu1"
    };
    assert_eq!(said, format!("2048\n/sys/class/net/eth1\n{cpu}"));
}
