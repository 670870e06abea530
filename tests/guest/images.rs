//! Images that users make: of VMs, of snapshots, of disks on this host.

use std::fs;

use crate::common::{BOOT, Mounted, eventually, proc};
use rustix::process::Signal;

#[track_caller]
fn made(aq: &Mounted, image: &str) {
    let status = format!(".images/{image}/status");
    eventually(&format!("image {image} made"), BOOT, || {
        let status = aq.read(&status);
        assert!(!status.starts_with("failed"), "{status}");
        status == "ready"
    });
}

/// Writes a command that must fail with this errno, whose sentence is then in `.error`.
#[track_caller]
fn refused(aq: &Mounted, command: &str, errno: &str, sentence: &str) {
    let said = aq.sh(command).failed();
    assert!(said.contains(errno), "{command}: {said}");
    let reported = aq.sh("tail -n 1 .error; head -n 1 .error").ok();
    assert!(reported.contains(sentence), "{command}: {reported}");
}

/// Names in the store that are no finished or defined image.
fn leftovers(aq: &Mounted) -> Vec<String> {
    let entries = fs::read_dir(aq.store().images()).expect("the images").flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn a_vm_and_its_snapshot_become_images_that_outlive_it() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo early > /root/early; sync");
    aq.stop("vm1");
    aq.sh("mkdir vm1/snapshots/clean").ok();
    aq.boot_existing("vm1");
    aq.exec("vm1", "echo late > /root/late; sync");
    aq.sh("mkdir .images/now .images/then").ok();
    let tagged = "echo vm1@clean > .images/now/source";
    refused(&aq, tagged, "Device or resource busy", "echo stop > ctl");
    aq.stop("vm1");
    refused(&aq, "echo vm1@no > .images/then/source", "No such file", "no snapshot named no");
    aq.sh("echo vm1 > .images/now/source; cat vm1/wait").ok();
    made(&aq, "now");
    aq.sh("echo vm1@clean > .images/then/source; cat vm1/wait").ok();
    made(&aq, "then");
    assert_eq!(aq.read("vm1/status"), "stopped");
    assert_eq!(aq.sh("cat .images/now/{source,kind,refs}").ok(), "vm1\nvm\n0");
    assert_eq!(aq.read(".images/then/source"), "vm1@clean");
    // Nothing of the VM is needed any more.
    aq.sh("rmdir vm1 && rmdir .trash/vm1@*").ok();
    for (vm, image) in [("now1", "now"), ("now2", "now"), ("then1", "then")] {
        aq.sh(&format!("mkdir {vm} && echo {image} > {vm}/config/image")).ok();
    }
    aq.boot_existing("now1");
    aq.boot_existing("then1");
    assert_eq!(aq.exec("now1", "cat /root/early /root/late; hostname"), "early\nlate\nnow1");
    assert_eq!(aq.exec("then1", "cd /root; echo *"), "early");
    aq.exec("now1", "echo mine > /root/late; sync");
    aq.boot_existing("now2");
    assert_eq!(aq.exec("now2", "cat /root/late"), "late");
    assert_eq!(aq.read(".images/now/refs"), "2");
    refused(&aq, "rmdir .images/now", "Device or resource busy", "is used by now1, now2");
    aq.sh("echo kill > then1/ctl; cat then1/wait; rmdir then1").ok();
    refused(&aq, "rm -r .images/then", "Device or resource busy", ".trash/then1@");
    aq.sh("rmdir .trash/then1@* && rm -r .images/then").ok();
    assert_eq!(aq.sh("ls .images").ok(), "now\ntiny");
    assert_eq!(leftovers(&aq), [""; 0]);
}

#[test]
fn what_an_image_is_being_made_of_stays_until_it_is_made() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait").ok();
    // Enough that `qemu-img` can be caught at it.
    aq.sh("qemu-io -c 'write -q -P 7 64M 512M' vm1/disk && mkdir vm1/snapshots/clean").ok();
    aq.sh("mkdir .images/x .images/y && echo vm1@clean > .images/x/source").ok();
    eventually("a copy", BOOT, || {
        aq.qemu_imgs().iter().for_each(|&pid| proc::kill(pid, Signal::STOP));
        aq.qemu_imgs().iter().any(|&pid| proc::process(pid).is_some_and(|p| p.state == 'T'))
    });
    let table = [
        "rmdir vm1/snapshots/clean",
        "rm -r vm1/snapshots/clean",
        "mv vm1/snapshots/clean vm1/snapshots/dirty",
        "mkdir vm1/snapshots/other",
        "echo 'restore clean' > vm1/ctl",
        "echo start > vm1/ctl",
        "rmdir vm1",
        "echo vm1 > .images/y/source",
    ];
    for command in table {
        refused(&aq, command, "Device or resource busy", "image x is being made of this VM");
    }
    // There is nothing to kill, and nothing comes of it.
    aq.sh("echo kill > vm1/ctl").ok();
    assert_eq!(aq.read("vm1/status"), "saving");
    aq.qemu_imgs().iter().for_each(|&pid| proc::kill(pid, Signal::CONT));
    made(&aq, "x");
    assert_eq!(aq.sh("cat vm1/wait && rmdir vm1/snapshots/clean && rmdir vm1").ok(), "stopped");
}

#[test]
fn a_disk_file_becomes_an_image_with_what_is_in_it_and_nothing_else() {
    let aq = Mounted::with_image();
    let tiny = aq.store().image("tiny");
    let at = aq.scratch().join("disks");
    fs::create_dir(&at).expect("a directory");
    let script = format!(
        "cd '{0}' && cp --sparse=always '{1}/disk.raw' a.raw && truncate -s 4G big.raw &&
         qemu-img convert -O qcow2 a.raw a.qcow2 && cp a.qcow2 b.img &&
         qemu-img create -q -f qcow2 -b /etc/passwd -F raw backed.qcow2 1M &&
         qemu-img create -q -f qcow2 -o data_file=data external.qcow2 1M &&
         cp a.qcow2 liar.raw && cp a.raw liar.qcow2 && cp a.raw closed.raw && chmod 0 closed.raw",
        at.display(),
        tiny.display()
    );
    aq.sh(&script).ok();
    for (name, file) in [("raw", "a.raw"), ("qcow2", "a.qcow2"), ("img", "b.img")] {
        let path = at.join(file).display().to_string();
        aq.sh(&format!("mkdir .images/{name} && echo '{path}' > .images/{name}/source")).ok();
        made(&aq, name);
        let facts = aq.sh(&format!("cat .images/{name}/{{source,kind,progress}}")).ok();
        assert_eq!(facts.trim_end(), format!("{path}\ndisk"));
    }
    // The same bytes, whatever they are called; the guest sees the same disk.
    let digest = |name: &str| aq.read(&format!(".images/{name}/digest"));
    assert!(digest("qcow2") == digest("img") && digest("raw") != digest("img"));
    let copy = aq.store().image("img").join("disk.qcow2");
    aq.sh(&format!("qemu-img compare -q '{}' '{}/a.raw'", copy.display(), at.display())).ok();
    refused(&aq, "echo vm1 > .images/raw/source", "No such file", "vm1");
    aq.sh("mkdir .images/x").ok();
    let table = [
        ("backed.qcow2", "Invalid argument", "backing file"),
        ("external.qcow2", "Invalid argument", "in another file"),
        ("liar.raw", "Invalid argument", "is a qcow2 image"),
        ("liar.qcow2", "Invalid argument", "is no qcow2 file"),
        ("closed.raw", "Permission denied", "closed.raw"),
        ("absent.raw", "No such file", "absent.raw"),
    ];
    for (file, errno, sentence) in table {
        let path = at.join(file);
        let write = format!("echo '{}' > .images/x/source", path.display());
        refused(&aq, &write, errno, sentence);
    }
    assert_eq!(aq.sh("cat .images/x/{source,status}").ok(), "absent");
    refused(&aq, "rmdir .images/y", "No such file", "");
}

#[test]
fn names_and_sources_that_cannot_be() {
    let aq = Mounted::new();
    let table = [
        ("mkdir .images/tiny", "File exists", ""),
        ("mkdir '.images/a b'", "Invalid argument", "cannot be a name here"),
        (
            "mkdir .images/x; echo alpine:3 22 > .images/x/source",
            "Invalid argument",
            "use `builtin:tiny`",
        ),
        ("echo oci: > .images/x/source", "Invalid argument", "VM@SNAPSHOT"),
        ("echo nobody > .images/x/source", "No such file", "no VM named nobody"),
        ("mkdir vm1; echo vm1 > .images/x/source", "No such file", "made at the first start"),
        ("echo pull > .images/x/ctl", "No such file", "has no source"),
        ("echo push > .images/x/ctl", "Invalid argument", "verbs are pull"),
        ("echo x > .images/x/status", "Permission denied", ""),
        ("echo x > vm1/config/image; echo start > vm1/ctl", "No such file", "has no source"),
    ];
    for (command, errno, sentence) in table {
        refused(&aq, command, errno, sentence);
    }
    let talk = "exec 3<> .images/x/ctl; echo pull >&3; cat <&3";
    assert!(aq.sh(talk).stdout.starts_with("error: image x has no source"));
    aq.sh("rmdir vm1 .images/x && ! ls .images/x").ok();
    assert_eq!(aq.sh("ls .images").ok(), "tiny");
}

#[test]
fn a_daemon_killed_while_it_copies_leaves_no_half_image() {
    let aq = Mounted::with_image();
    let disk = aq.scratch().join("big.raw");
    // A hole takes no time to make and long to hash.
    aq.sh(&format!("truncate -s 16G '{}' && mkdir .images/x", disk.display())).ok();
    aq.sh(&format!("echo '{}' > .images/x/source", disk.display())).ok();
    let status = aq.read(".images/x/status");
    assert!(["fetching", "building"].contains(&status.as_str()), "{status}");
    refused(&aq, "rmdir .images/x", "Device or resource busy", "is being made");
    eventually("a half image", BOOT, || !leftovers(&aq).is_empty());
    aq.kill_daemon();
    aq.mount();
    assert_eq!(leftovers(&aq), [""; 0]);
    assert_eq!(aq.sh("cat .images/x/status").ok(), "absent");
    assert_eq!(aq.read(".images/x/source"), disk.display().to_string());
    // A smaller disk under the same name: pull finishes what was begun.
    aq.sh(&format!("truncate -s 1M '{}' && echo pull > .images/x/ctl", disk.display())).ok();
    made(&aq, "x");
    aq.sh("rm -r .images/x && ! test -e .images/x").ok();
}

/// Makes the image of a mounted store one that an earlier aqfs has made, which had other contents.
fn make_older(aq: &Mounted) {
    let manifest = aq.store().image("tiny").join("image.json");
    let text = fs::read_to_string(&manifest).expect("the manifest");
    let (mut without, mut digest) = (String::new(), String::new());
    for line in text.lines().filter(|line| !line.contains("\"recipe\"")) {
        match line.split_once("sha256:") {
            Some((before, rest)) => {
                digest = format!("{:0>64}", 1);
                without.push_str(&format!("{before}sha256:{digest}{}\n", &rest[64..]));
            }
            None => without.push_str(&format!("{line}\n")),
        }
    }
    assert!(!digest.is_empty(), "{text}");
    aqfs::store::file::replace(&manifest, without.as_bytes()).expect("written");
}

#[test]
fn tiny_made_again_is_for_new_vms_and_disks_keep_what_they_were_made_from() {
    let aq = Mounted::with_image();
    aq.cli("aq umount \"$AQ_MOUNT\"").ok();
    make_older(&aq);
    aq.mount();
    let reported = aq.read(".images/tiny/recipe");
    assert!(reported.starts_with("0, this aqfs has "), "{reported}");
    let present = reported.trim_start_matches("0, this aqfs has ").split(';').next();
    let present = present.expect("a number").to_owned();
    assert!(reported.ends_with("; `echo refresh > ctl` makes the image again"), "{reported}");
    let doctor = aq.cli("AQ_STORE=${SCRATCH}/store aq doctor").stdout;
    assert!(doctor.contains("the image tiny was made by recipe 0, this aqfs has"), "{doctor}");
    aq.boot("vm1");
    aq.exec("vm1", "echo kept > /root/x; sync");
    aq.sh("echo warm > .images/tiny/ctl; cat .images/tiny/wait; mkdir clone").ok();
    aq.boot_existing("clone");
    assert_eq!(aq.info("clone", "warm"), "yes");
    let old = aq.read(".images/tiny/digest");
    aq.sh("echo refresh > .images/tiny/ctl").ok();
    // What runs, runs on, and what has a disk need not wait.
    aq.sh("echo stop > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.sh_within("cat .images/tiny/wait", BOOT * 4).ok(), "ready");
    assert_eq!(aq.read(".images/tiny/progress"), "");
    assert_eq!(
        aq.sh("cat .images/tiny/recipe .images/tiny/warm .images/tiny/refs").ok(),
        format!("{present}\nno\n2")
    );
    assert_ne!(aq.read(".images/tiny/digest"), old);
    aq.boot("new");
    let digests = ["vm1", "clone", "new"].map(|vm| aq.info(vm, "image_digest"));
    assert_eq!(digests, [old.clone(), old.clone(), aq.read(".images/tiny/digest")]);
    assert_eq!(aq.info("new", "warm"), "no");
    assert!(aq.sh("readlink -f new/disk | xargs qemu-img info -U").ok().contains("/versions/"));
    // A later daemon knows them apart, and a clone of the old template starts on its own disk.
    aq.kill_daemon();
    aq.mount();
    aq.sh("for vm in vm1 clone new; do echo stop > $vm/ctl; cat $vm/wait; done").ok();
    for vm in ["vm1", "clone", "new"] {
        aq.boot_existing(vm);
    }
    assert_eq!(aq.exec("vm1", "cat /root/x"), "kept");
    let digests = ["vm1", "clone", "new"].map(|vm| aq.info(vm, "image_digest"));
    assert_eq!(digests, [old.clone(), old, aq.read(".images/tiny/digest")]);
    // An image made from one on the old version has that one's kernel.
    aq.sh("echo stop > vm1/ctl; cat vm1/wait; mkdir .images/x; echo vm1 > .images/x/source").ok();
    made(&aq, "x");
    aq.sh("mkdir of-x && echo x > of-x/config/image").ok();
    aq.boot_existing("of-x");
    assert_eq!(aq.exec("of-x", "cat /root/x"), "kept");
    refused(&aq, "rmdir .images/tiny", "Device or resource busy", "is used by");
    // When the last is gone, the next daemon makes room.
    let first = aq.store().image("tiny").join("disk.raw");
    aq.sh("echo kill > clone/ctl; cat clone/wait; rmdir clone vm1; rmdir .trash/*").ok();
    assert!(first.exists());
    aq.kill_daemon();
    aq.mount();
    assert!(!first.exists());
    aq.boot("last");
    assert_eq!(aq.info("last", "image_digest"), aq.info("new", "image_digest"));
}
