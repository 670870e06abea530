//! Snapshots: what qemu-img calls one, of VMs that are off and of VMs that run.

use crate::common::Mounted;

/// `qemu-img snapshot -l` and `ls snapshots/` agree, but for what is ours, and what was dropped and
/// is still in the disk; and the image is sound.
fn agrees(aq: &Mounted, vm: &str, tags: &str) {
    let dir = aq.vm_dir(vm);
    let script = format!(
        "cd '{vm}/snapshots' && echo $(ls) &&
        echo $(qemu-img snapshot -U -l '{}' | awk 'NR > 2 && !/ \\./ {{ print $2 }}' | sort |
            while read -r tag; do grep -qs '\"tag\": \"'\"$tag\"'\"' '{}' || echo \"$tag\"; done)",
        dir.disk().display(),
        dir.dropped_snapshots().display(),
    );
    assert_eq!(aq.sh(&script).ok(), format!("{tags}\n{tags}").trim());
    if aq.read(&format!("{vm}/status")) == "stopped" {
        aq.sh(&format!("qemu-img check -q '{}'", dir.disk().display())).ok();
    }
}

/// Has QEMU take a snapshot by itself.
fn savevm(aq: &Mounted, vm: &str, tag: &str) {
    let save = format!(
        r#"{{"execute": "human-monitor-command", "arguments": {{"command-line": "savevm {tag}"}}}}"#
    );
    aq.sh(&format!("exec 3<> {vm}/qmp; echo '{save}' >&3; head -n 2 <&3")).ok();
}

/// What `qemu-img` finds in the disk.
fn in_disk(aq: &Mounted, vm: &str) -> String {
    let disk = aq.vm_dir(vm).disk();
    let list = format!("qemu-img snapshot -U -l '{}'", disk.display());
    aq.sh(&format!("echo $({list} | awk 'NR > 2 {{ print $2 }}' | sort)")).ok()
}

#[test]
fn a_vm_that_is_off_goes_back_in_time() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo one > /root/x; sync");
    aq.stop("vm1");
    aq.sh("mkdir vm1/snapshots/clean && cat vm1/snapshots/clean/status").ok();
    agrees(&aq, "vm1", "clean");
    assert_eq!(aq.read("vm1/snapshots/clean/memory"), "0");
    aq.boot_existing("vm1");
    aq.exec("vm1", "echo two > /root/x; sync");
    let refused = aq.sh("echo 'restore clean' > vm1/ctl").failed();
    assert!(refused.contains("Device or resource busy"), "{refused}");
    assert!(aq.read("vm1/error").contains("taken while the VM was off"));
    aq.stop("vm1");
    aq.sh("echo 'restore clean' > vm1/ctl; cat vm1/wait").ok();
    agrees(&aq, "vm1", "clean");
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
    aq.stop("vm1");
    aq.sh("rmdir vm1/snapshots/clean").ok();
    agrees(&aq, "vm1", "");
}

#[test]
fn a_vm_that_runs_is_brought_back_with_its_processes_and_the_right_time() {
    let aq = Mounted::booted();
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    aq.exec("vm1", "echo one > /root/x; echo one > /tmp/x; sync");
    aq.sh("mkdir vm1/snapshots/live; cat vm1/wait").ok();
    agrees(&aq, "vm1", "live");
    assert_eq!(aq.read("vm1/status"), "ready");
    assert!(aq.read("vm1/snapshots/live/memory").parse::<u64>().expect("a number") > 1 << 20);
    aq.exec("vm1", &format!("kill {pid}; echo two > /root/x; rm /tmp/x; sync"));
    aq.sh("sleep 2; echo 'restore live' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    let after = aq.exec("vm1", &format!("kill -0 {pid} && cat /root/x /tmp/x; date +%s"));
    let (state, time) = after.rsplit_once('\n').expect("state and time");
    assert_eq!(state, "one\none");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
    let guest: u64 = time.trim().parse().expect("a time");
    assert!(now.as_secs().abs_diff(guest) <= 2, "the guest's clock shows {guest}");
    agrees(&aq, "vm1", "live");
    aq.sh("rmdir vm1/snapshots/live").ok();
    agrees(&aq, "vm1", "");
}

#[test]
fn what_was_suspended_is_resumed_at_the_next_start() {
    let aq = Mounted::booted();
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!; echo one > /tmp/x");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait").ok();
    assert_eq!((aq.read("vm1/status").as_str(), &*aq.info("vm1", "suspended")), ("stopped", "yes"));
    agrees(&aq, "vm1", "");
    assert!(aq.qemus().is_empty());
    aq.sh("sleep 3").ok();
    aq.boot_existing("vm1");
    let after = aq.exec("vm1", &format!("kill -0 {pid} && cat /tmp/x; date +%s"));
    let (state, time) = after.rsplit_once('\n').expect("state and time");
    assert_eq!(state, "one");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
    let guest: u64 = time.trim().parse().expect("a time");
    assert!(now.as_secs().abs_diff(guest) <= 2, "the guest's clock shows {guest}");
    agrees(&aq, "vm1", "");
    assert_eq!(aq.info("vm1", "suspended"), "no");
}

/// The disk's size in MiB, and how many bytes behind its first 2 GiB are not zero.
fn behind_2_gib(aq: &Mounted, vm: &str) -> String {
    let size = "$(( $(cat /sys/class/block/vda/size) >> 11 ))";
    let bytes = "$(dd if=/dev/vda bs=1M skip=2048 count=64 2>/dev/null | tr -d '\\0' | wc -c)";
    aq.exec(vm, &format!("echo 3 > /proc/sys/vm/drop_caches; echo {size} {bytes}"))
}

fn restore(aq: &Mounted, vm: &str, tag: &str) {
    aq.sh(&format!("echo 'restore {tag}' > {vm}/ctl; cat {vm}/wait")).ok();
    aq.wait_for_ready(vm);
}

#[test]
fn a_guest_brought_back_has_the_disk_that_its_setting_says_and_nothing_of_a_memory_in_it() {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    aq.sh("mkdir vm1/snapshots/two; cat vm1/wait").ok();
    restore(&aq, "vm1", "two");
    aq.sh("echo 'resize 3G' > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(behind_2_gib(&aq, "vm1"), "3072 0");
    aq.sh("mkdir vm1/snapshots/three; cat vm1/wait").ok();
    restore(&aq, "vm1", "three");
    restore(&aq, "vm1", "two");
    assert_eq!(behind_2_gib(&aq, "vm1"), "3072 0");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo 'resize 4G' > vm1/ctl").ok();
    agrees(&aq, "vm1", "three two");
    aq.boot_existing("vm1");
    assert_eq!(behind_2_gib(&aq, "vm1"), "4096 0");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    restore(&aq, "vm1", "two");
    aq.stop("vm1");
    agrees(&aq, "vm1", "three two");
}

#[test]
fn suspended_is_a_name_like_any_other() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo one > /tmp/x");
    aq.sh("mkdir vm1/snapshots/suspended; cat vm1/wait; echo pause > vm1/ctl").ok();
    aq.sh("echo resume > vm1/ctl; cat vm1/ready").ok();
    agrees(&aq, "vm1", "suspended");
    aq.exec("vm1", "echo two > /tmp/x");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait").ok();
    agrees(&aq, "vm1", "suspended");
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /tmp/x"), "two");
    aq.sh("echo 'restore suspended' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "cat /tmp/x"), "one");
    aq.stop("vm1");
    agrees(&aq, "vm1", "suspended");
    let refused = aq.sh("mkdir vm1/snapshots/.suspended").failed();
    assert!(refused.contains("Invalid argument"), "{refused}");
}

#[test]
fn what_was_suspended_is_given_up_by_a_kill() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo one > /tmp/x; echo one > /root/x; sync");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo kill > vm1/ctl").ok();
    assert_eq!(aq.info("vm1", "suspended"), "no");
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x; ls /tmp/x 2> /dev/null"), "one");
}

/// Has the VM look as one that an earlier version has suspended.
fn suspended_by_an_earlier_version(aq: &Mounted, vm: &str) {
    let dir = aq.vm_dir(vm);
    aq.sh(&format!("echo pause > {vm}/ctl")).ok();
    savevm(aq, vm, "suspended");
    aq.sh(&format!("echo kill > {vm}/ctl; cat {vm}/wait")).ok();
    aq.sh(&format!("rm '{}'", dir.format().display())).ok();
}

#[test]
fn what_an_earlier_version_has_suspended_is_resumed() {
    let aq = Mounted::with_image();
    for vm in ["vm1", "vm2"] {
        aq.boot(vm);
        aq.exec(vm, &format!("echo {vm} > /tmp/x"));
        suspended_by_an_earlier_version(&aq, vm);
    }
    // One is found by a daemon, the other in the trash.
    aq.sh("rmdir vm2").ok();
    aq.kill_daemon();
    aq.mount();
    aq.sh("mv .trash/vm2@* vm2").ok();
    for vm in ["vm1", "vm2"] {
        assert_eq!(aq.info(vm, "suspended"), "yes");
        agrees(&aq, vm, "");
        aq.boot_existing(vm);
        assert_eq!(aq.exec(vm, "cat /tmp/x"), vm);
        aq.sh(&format!("mkdir {vm}/snapshots/suspended; cat {vm}/wait")).ok();
        aq.stop(vm);
    }
    // From now on the name is the user's.
    aq.kill_daemon();
    aq.mount();
    for vm in ["vm1", "vm2"] {
        assert_eq!(aq.info(vm, "suspended"), "no");
        agrees(&aq, vm, "suspended");
    }
}

#[test]
fn what_a_suspend_cut_short_has_saved_takes_no_guest_back() {
    let aq = Mounted::booted();
    // A daemon that dies between the saving and the end leaves a paused machine and this.
    aq.sh("echo pause > vm1/ctl").ok();
    savevm(&aq, "vm1", ".suspended");
    assert_eq!(in_disk(&aq, "vm1"), ".suspended");
    aq.sh("echo resume > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(in_disk(&aq, "vm1"), "");
    aq.exec("vm1", "echo later > /root/x; sync");
    aq.stop("vm1");
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "later");
}

#[test]
fn a_machine_that_was_loaded_and_has_not_run_is_started_anew() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo 'start paused' > vm1/ctl").ok();
    // A daemon that dies before it has the saved state loaded leaves the like of this.
    savevm(&aq, "vm1", ".suspended");
    assert_eq!(in_disk(&aq, "vm1"), ".suspended");
    aq.kill_daemon();
    aq.mount();
    assert_eq!(aq.read("vm1/status"), "stopped");
    assert!(aq.qemus().is_empty());
    aq.boot_existing("vm1");
    assert_eq!(in_disk(&aq, "vm1"), "");
}

#[test]
fn names_that_are_taken_absent_or_odd() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1").ok();
    let refused = aq.sh("mkdir vm1/snapshots/a").failed();
    assert!(refused.contains("No such file"), "{refused}");
    assert!(aq.read("vm1/error").contains("made at the first start"));
    aq.sh("echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait").ok();
    aq.sh("mkdir vm1/snapshots/a").ok();
    let table = [
        ("mkdir vm1/snapshots/a", "File exists"),
        ("mkdir 'vm1/snapshots/a b'", "Invalid argument"),
        ("rmdir vm1/snapshots/b", "No such file"),
        ("echo 'restore b' > vm1/ctl", "No such file"),
        ("mv vm1/snapshots/b vm1/snapshots/c", "No such file"),
        ("busybox mv vm1/snapshots/a 'vm1/snapshots/a b'", "Invalid argument"),
        ("mkdir vm2; mv vm1/snapshots/a vm2/snapshots/a", "Operation not permitted"),
        ("busybox mv vm1/snapshots/a vm2/snapshots/a", "Operation not permitted"),
        ("mkdir vm1/snapshots/b; mv -T vm1/snapshots/a vm1/snapshots/b", "File exists"),
    ];
    for (command, errno) in table {
        let said = aq.sh(command).failed();
        assert!(said.contains(errno), "{command}: {said}");
    }
    aq.sh("rmdir vm1/snapshots/b vm2").ok();
    let disk = aq.vm_dir("vm1").disk();
    aq.sh(&format!("qemu-img snapshot -c 'made outside' '{}'", disk.display())).ok();
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "a\nmade outside");
    aq.sh("rm -r vm1/snapshots/a 'vm1/snapshots/made outside'").ok();
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "");
}

#[test]
fn a_snapshot_gets_another_name_and_is_the_same() {
    let aq = Mounted::booted();
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!; echo one > /tmp/x");
    aq.sh("mkdir vm1/snapshots/live; cat vm1/wait").ok();
    let refused = aq.sh("mv vm1/snapshots/live vm1/snapshots/now").failed();
    assert!(refused.contains("Device or resource busy"), "{refused}");
    assert!(aq.read("vm1/error").contains("`echo stop > ctl` first"), "{}", aq.read("vm1/error"));
    aq.stop("vm1");
    aq.sh("mkdir vm1/snapshots/clean").ok();
    let facts = |tag: &str| aq.sh(&format!("cat vm1/snapshots/{tag}/{{created,memory,size}}")).ok();
    let before = facts("live");
    // A shell that is in it stays in it.
    aq.sh("cd vm1/snapshots/live && mv ../live ../renamed-to-this && cat memory status &&
         cd ../.. && mv snapshots/clean snapshots/c")
        .ok();
    assert_eq!(facts("renamed-to-this"), before);
    agrees(&aq, "vm1", "c renamed-to-this");
    aq.sh("echo 'restore c' > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    aq.sh("echo 'restore renamed-to-this' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", &format!("kill -0 {pid} && cat /tmp/x")), "one");
    aq.sh("rmdir vm1/snapshots/c vm1/snapshots/renamed-to-this").ok();
    agrees(&aq, "vm1", "");
}

#[test]
fn a_name_that_is_the_number_of_another_is_not_taken_for_it() {
    let aq = Mounted::booted();
    // The first one has the number 1.
    for tag in ["2", "1"] {
        aq.exec("vm1", &format!("echo {tag} > /root/x; sync"));
        aq.sh(&format!("mkdir vm1/snapshots/{tag}; cat vm1/wait")).ok();
    }
    let refused = aq.sh("echo 'restore 1' > vm1/ctl").failed();
    assert!(refused.contains("Device or resource busy"), "{refused}");
    assert!(aq.read("vm1/error").contains("is also the number of snapshot 2"));
    aq.stop("vm1");
    aq.sh("echo 'restore 1' > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "1");
}

#[test]
fn a_qemu_killed_while_it_saves_leaves_the_disk_sound() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo one > /root/x; sync; head -c 60000000 /dev/urandom > /tmp/ram");
    let pid = aq.info("vm1", "pid");
    // The write answers after half a second; the memory takes longer than the kill comes.
    aq.sh(&format!("mkdir vm1/snapshots/live & sleep 0.1; kill -9 {pid}; wait; cat vm1/wait"));
    let status = aq.read("vm1/status");
    assert!(status.starts_with("failed: QEMU ended"), "{status}");
    let disk = aq.vm_dir("vm1").disk();
    let check = format!("qemu-img check '{}'", disk.display());
    let lost = aq.sh(&check);
    assert!([0, 3].contains(&lost.code), "{lost:?}");
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/x"), "one");
    aq.stop("vm1");
    // The start has given back what was lost.
    aq.sh(&check).ok();
}
