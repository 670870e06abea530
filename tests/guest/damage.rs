//! Damage in the store: each damaged thing is told and the rest works.

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
    // What is done, what is told of it, and how it is undone.
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
    for (damage, told, undo) in table {
        let mounted = remount(&aq, damage);
        assert_eq!(mounted.code, 0, "{damage}: {mounted:?}");
        assert!(mounted.stderr.contains(told), "{damage}: {mounted:?}");
        assert!(told.is_empty() == mounted.stderr.is_empty(), "{damage}: {mounted:?}");
        assert!(aq.read(".error").contains(told), "{damage}: {}", aq.read(".error"));
        assert_eq!(aq.read("vm1/status"), "stopped", "{damage}");
        aq.sh("ls -lR . > /dev/null; mkdir vm2; rmdir vm2").ok();
        remount(&aq, undo).ok();
    }
    aq.sh("mv .trash/gone@* gone; cat gone/status").ok();
    // Nothing is lost of what was put aside.
    let kept =
        aq.cli("cd store; ls -d aliases.json.unusable@* defaults.json.unusable@* | wc -l").ok();
    assert_eq!(kept, "6");
    aq.cli("cd store; chmod -R u+rwX .").ok();
}

#[test]
fn a_vm_whose_files_are_damaged_is_broken_and_others_are_not() {
    let aq = Mounted::with_image();
    // A directory that was closed by mistake is opened by the removal.
    let table = [
        ("echo '{' > $D/vm.json", "broken: "),
        ("chmod 000 $D/vm.json", "broken: "),
        ("rm $D/vm.json; mkdir $D/vm.json", "broken: "),
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
fn what_is_due_and_cannot_be_erased_is_nobodys_error() {
    let aq = Mounted::with_image();
    aq.make_off("vm1");
    let old = "mkdir trash/old@5; echo > trash/old@5/disk.qcow2; chmod 500 trash/old@5";
    remount(&aq, old).ok();
    crate::common::eventually("the failure told", crate::common::mounted::SHORT, || {
        aq.read(".error").contains("remove what is left")
    });
    aq.sh("rmdir vm1").ok();
    assert_eq!(aq.sh("ls .trash | cut -d @ -f 1").ok(), "vm1");
    aq.cli("chmod -R u+rwX store").ok();
}
