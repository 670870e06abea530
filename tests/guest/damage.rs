//! Damage in the store: each damaged thing is reported and the rest works. What a killed daemon has
//! not finished, the next one does.

use std::fs;
use std::os::unix::fs::FileExt;

use aqfs::disk::snapshot_table::SnapshotRename;
use aqfs::store::layout::VmDir;
use aqfs::store::operation::{self, Operation};

use crate::common::{Mounted, Output};

/// Does something to the store while nothing is mounted, and mounts it again.
fn remount(aq: &Mounted, damage: &str) -> Output {
    aq.cli("aq umount $AQ_MOUNT").ok();
    aq.cli(&format!("cd store && {damage}")).ok();
    aq.try_mount()
}

#[test]
fn a_rmdir_that_fails_leaves_the_vm_as_it_was() {
    let aq = Mounted::with_image();
    aq.make_off("vm1");
    aq.sh("mkdir vm1/snapshots/a").ok();
    aq.cli("chmod 500 store/trash").ok();
    let refused = aq.sh("rm -r vm1").failed();
    assert!(refused.contains("Permission denied"), "{refused}");
    assert_eq!(aq.sh("ls").ok(), "vm1");
    let error = aq.read("vm1/error");
    assert!(error.contains("cannot move the VM to the trash"), "{error}");
    aq.sh("echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait; mv vm1 vm2").ok();
    aq.cli("chmod 700 store/trash").ok();
    aq.sh("rmdir vm2").ok();
    assert_eq!(aq.sh("ls; ls .trash | cut -d @ -f 1").ok(), "vm2");
}

#[test]
fn no_damage_keeps_the_tree_from_being_mounted() {
    let aq = Mounted::with_image();
    aq.make_off("vm1");
    aq.make_off("gone");
    aq.sh("ln -s tiny .images/stable; echo 512M > .defaults/memory; rmdir gone").ok();
    // What is damaged, what is reported, and how it is undone.
    let table = [
        ("echo '{' > aliases.json", "aliases.json.unusable@", "true"),
        ("echo {} > aliases.json; chmod 000 aliases.json", "aliases.json.unusable@", "true"),
        ("mkdir aliases.json", "aliases.json.unusable@", "true"),
        ("echo '{' > defaults.json", "defaults.json.unusable@", "true"),
        ("echo {} > defaults.json; chmod 000 defaults.json", "defaults.json.unusable@", "true"),
        ("mkdir defaults.json", "defaults.json.unusable@", "true"),
        ("rm daemon.log; mkdir daemon.log", "daemon.log.unusable@", "true"),
        ("chmod 000 daemon.log", "daemon.log.unusable@", "true"),
        ("mkdir .tmpx", "cannot clear away", "rmdir .tmpx"),
        ("mkdir -p vms/.new1/x; chmod 000 vms/.new1", "vms/.new1", "chmod 700 vms/.new1"),
        ("echo > vms/.new2; mkdir vms/.new3", "", "true"),
        ("mkdir images/.x; chmod 000 images/.x", "images/.x", "chmod 700 images/.x"),
        ("mkdir images/y; echo '{' > images/y/image.json", "image y", "rm -r images/y"),
        ("mkdir images/y; mkdir images/y/image.json", "image y", "rm -r images/y"),
        ("mkdir -m 000 images/y", "image y", "rmdir images/y"),
        ("echo > images/z", "image z", "rm images/z"),
        ("rm -r cache; echo > cache", "cache", "rm cache"),
        ("echo > trash/junk; mkdir -m 000 trash/old@5x", "", "rmdir trash/old@5x"),
        ("chmod 000 trash/gone@*", "", "chmod 700 trash/gone@*"),
        (
            "chmod 000 trash",
            "trash.unusable@",
            "rmdir trash; mv trash.unusable@* trash; chmod 700 trash",
        ),
        ("mv trash t; echo > trash", "trash.unusable@", "rm -r trash trash.*; mv t trash"),
    ];
    for (damage, reported, undo) in table {
        let mounted = remount(&aq, damage);
        assert_eq!(mounted.code, 0, "{damage}: {mounted:?}");
        assert!(mounted.stderr.contains(reported), "{damage}: {mounted:?}");
        assert!(reported.is_empty() == mounted.stderr.is_empty(), "{damage}: {mounted:?}");
        assert!(aq.read(".error").contains(reported), "{damage}: {}", aq.read(".error"));
        assert_eq!(aq.read("vm1/status"), "stopped", "{damage}");
        aq.sh("ls -lR . > /dev/null; mkdir vm2; rmdir vm2").ok();
        remount(&aq, undo).ok();
    }
    aq.sh("mv .trash/gone@* gone; cat gone/status").ok();
    // Nothing is lost of what was put aside.
    let kept =
        aq.cli("cd store; ls -d aliases.json.unusable@* defaults.json.unusable@* | wc -l").ok();
    assert_eq!(kept, "6");
    aq.cli("aq umount $AQ_MOUNT; chmod -R u+rwX store").ok();
}

#[test]
fn a_vm_whose_files_are_damaged_is_broken_and_others_are_not() {
    let aq = Mounted::with_image();
    // A directory that was closed by mistake is opened by the removal.
    let table = [
        ("echo '{' > $D/vm.json", "broken: "),
        ("chmod 000 $D/vm.json", "broken: "),
        ("rm $D/vm.json; mkdir $D/vm.json", "broken: "),
        ("printf '{\"version\": 1, \"oper' > $D/operation.json", "broken: "),
        ("echo '[\"of another program\"]' > $D/operation.json", "broken: "),
        ("mkdir $D/operation.json", "broken: "),
        ("chmod 000 $D", "stopped"),
    ];
    aq.make_off("well");
    for (damage, back) in table {
        aq.make_off("vm1");
        let dir = aq.vm_dir("vm1").0;
        remount(&aq, &format!("D='{}'; {damage}", dir.display())).ok();
        assert_eq!(aq.read("well/status"), "stopped");
        let broken = aq.sh("grep -l ^broken */status | cut -d / -f 1").ok();
        assert!(aq.sh(&format!("cat {broken}/status")).ok().starts_with("broken: "), "{damage}");
        aq.sh(&format!("ls -lR . > /dev/null; rmdir {broken} && mv .trash/{broken}@* back")).ok();
        assert!(aq.read("back/status").starts_with(back), "{damage}");
        aq.sh("rmdir back").ok();
        aq.cli("chmod -R u+rwX store/trash").ok();
        aq.sh("rmdir .trash/*").ok();
    }
}

#[test]
fn what_becomes_due_and_cannot_be_erased_is_no_error_of_another_removal() {
    let aq = Mounted::with_image();
    aq.make_off("vm1");
    // It becomes due after the mount, and before the daemon's next sweep.
    let due = "due=$(($(date +%s) + 5)); old=trash/old@$((due - 24 * 3600))";
    let old = format!("{due}; mkdir $old; echo > $old/disk.qcow2; chmod 500 $old");
    remount(&aq, &old).ok();
    aq.sh("sleep 6; rmdir vm1").ok();
    assert_eq!(aq.sh("ls; ls .trash | cut -d @ -f 1").ok(), "old\nvm1");
    aq.cli("aq umount $AQ_MOUNT; chmod -R u+rwX store").ok();
}

#[test]
fn what_is_due_and_cannot_be_erased_fails_no_operation() {
    let aq = Mounted::with_image();
    aq.make_off("vm1");
    let old = "mkdir trash/old@5; echo > trash/old@5/disk.qcow2; chmod 500 trash/old@5";
    remount(&aq, old).ok();
    crate::common::eventually("the failure reported", crate::common::mounted::SHORT, || {
        aq.read(".error").contains("remove what is left")
    });
    aq.sh("rmdir vm1").ok();
    assert_eq!(aq.sh("ls .trash | cut -d @ -f 1").ok(), "vm1");
    aq.cli("aq umount $AQ_MOUNT; chmod -R u+rwX store").ok();
}

#[test]
fn a_guest_outlives_a_damaged_list_of_operations() {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    let file = aq.store().vm(aq.info("vm1", "uuid").parse().expect("a UUID")).operation();
    remount(&aq, &format!("truncate -s -3 '{}'", file.display())).ok();
    let status = aq.read("vm1/status");
    let said = ["broken: cannot read ", "operation.json: EOF while parsing", "and remove the file"];
    assert!(said.iter().all(|said| status.contains(said)), "{status}");
    assert_eq!(aq.qemus().len(), 1);
    remount(&aq, &format!("rm '{}'", file.display())).ok();
    aq.wait_for_status("vm1", "ready");
    assert_eq!(aq.exec("vm1", &format!("kill -0 {pid} && echo on")), "on");
    // As a host that has lost power may leave it.
    remount(&aq, &format!("true > '{}'", file.display())).ok();
    aq.wait_for_status("vm1", "ready");
    aq.sh("echo kill > vm1/ctl; cat vm1/wait").ok();
    assert!(!file.exists());
    // Damaged under a daemon, it keeps the VM from being started.
    aq.cli(&format!("echo '{{' > '{}'", file.display())).ok();
    aq.sh("echo start > vm1/ctl").failed();
    let error = aq.read("vm1/error");
    assert!(error.contains("operation.json: EOF") && aq.qemus().is_empty(), "{error}");
    aq.cli(&format!("rm '{}'", file.display())).ok();
    aq.sh("echo 'start paused' > vm1/ctl").ok();
}

/// How a daemon that was killed has left an operation.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// In the file of this version.
    Now,
    /// In a file of its own, as earlier versions.
    Earlier,
}

impl Left {
    fn leave(self, aq: &Mounted, dir: &VmDir, operation: Operation) {
        aq.kill_daemon();
        let (name, text) = match (self, &operation) {
            (Self::Now, _) => {
                operation::begin(dir, operation).expect("operation.json");
                return aq.mount();
            }
            (Self::Earlier, Operation::Personalize) => ("unborn", String::new()),
            (Self::Earlier, Operation::PausedByDaemon) => ("still", String::new()),
            (Self::Earlier, Operation::ChangeDisk) => ("disk.changing", String::new()),
            (Self::Earlier, Operation::RestoreSnapshot { .. } | Operation::Fork) => {
                unreachable!("it had none")
            }
            (Self::Earlier, Operation::RenameSnapshot(bytes)) => {
                ("snapshots.journal", serde_json::to_string_pretty(bytes).expect("JSON"))
            }
        };
        fs::write(dir.0.join(name), text).expect("a file of an earlier version");
        aq.mount();
        assert!(!dir.0.join(name).exists(), "{name}");
    }
}

/// Renames a snapshot in the disk by its first letter only; returns what undoes that.
fn half_renamed(dir: &VmDir, from: &str, to: &str) -> SnapshotRename {
    let disk = fs::File::options().read(true).write(true).open(dir.disk()).expect("a disk");
    let (mut header, mut old) = ([0; 72], vec![0; 256]);
    disk.read_exact_at(&mut header, 0).expect("a header");
    let offset = u64::from_be_bytes(header[64..].try_into().expect("8 bytes"));
    let length = disk.read_at(&mut old, offset).expect("a table");
    old.truncate(length);
    let at = old.windows(from.len()).position(|w| w == from.as_bytes()).expect("the name");
    let mut new = old.clone();
    new[at..at + to.len()].copy_from_slice(to.as_bytes());
    disk.write_all_at(&new[..=at], offset).expect("half a name");
    let rename = serde_json::json!({ "offset": offset, "old": old, "new": new });
    serde_json::from_value(rename).expect("a rename")
}

#[test]
fn what_an_earlier_daemon_has_not_finished_is_recovered() {
    is_recovered(Left::Now);
}

#[test]
fn what_a_daemon_of_an_earlier_version_has_not_finished_is_recovered() {
    is_recovered(Left::Earlier);
}

fn is_recovered(left: Left) {
    let aq = Mounted::with_image();
    aq.make_off("vm1");
    let dir = aq.store().vm(aq.info("vm1", "uuid").parse().expect("a UUID"));
    let open = || operation::list(&dir).expect("operations");
    aq.sh("mkdir vm1/snapshots/older-one").ok();
    left.leave(&aq, &dir, Operation::ChangeDisk);
    let half = half_renamed(&dir, "older-one", "newer-one");
    left.leave(&aq, &dir, Operation::RenameSnapshot(half.into()));
    assert_eq!(aq.sh("ls vm1/snapshots").ok(), "older-one");
    assert_eq!(open(), [Operation::ChangeDisk]);
    aq.boot_existing("vm1");
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    aq.sh("echo pause > vm1/ctl").ok();
    left.leave(&aq, &dir, Operation::PausedByDaemon);
    aq.wait_for_status("vm1", "ready");
    assert_eq!(aq.exec("vm1", &format!("kill -0 {pid} && echo on")), "on");
    assert_eq!(open(), [Operation::ChangeDisk]);
    left.leave(&aq, &dir, Operation::Personalize);
    let status = aq.read("vm1/status");
    assert!(status.starts_with("failed: the daemon ended while it started"), "{status}");
    assert!(aq.qemus().is_empty() && !dir.disk().exists());
    aq.sh("echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait").ok();
    assert_eq!(open(), []);
}
