//! `disks/`: data disks, in all that happens to a VM.

use std::fs;

use libc::{EEXIST, EINVAL, ENOSPC, ERANGE};

use crate::common::{BOOT, Mounted, assert_errno, eventually};

/// Defines a function of the guest's shell that names the device with a serial number.
const DEV: &str = "dev() { for b in /sys/block/vd*; do [ \"$(cat $b/serial)\" = $1 ] && echo /dev/${b##*/}; done; }";

fn in_guest(aq: &Mounted, vm: &str, script: &str) -> String {
    aq.exec(vm, &format!("{DEV}; {script}"))
}

/// Writes a word to the beginning of a disk.
fn write(aq: &Mounted, vm: &str, disk: &str, word: &str) {
    in_guest(
        aq,
        vm,
        &format!("printf '%-16s' {word} | dd of=$(dev {disk}) conv=fsync 2>/dev/null"),
    );
}

/// Reads it, from the disk itself.
fn read(aq: &Mounted, vm: &str, disk: &str) -> String {
    let script =
        format!("echo 3 > /proc/sys/vm/drop_caches; dd if=$(dev {disk}) bs=16 count=1 2>/dev/null");
    in_guest(aq, vm, &script).trim().to_owned()
}

#[track_caller]
fn is_there(aq: &Mounted, vm: &str, disk: &str, size: u64) {
    let look = format!("cat /sys/block/$(basename $(dev {disk}))/size");
    eventually(&format!("{disk} in {vm}"), BOOT, || {
        in_guest(aq, vm, &look) == (size / 512).to_string()
    });
}

#[track_caller]
fn is_gone(aq: &Mounted, vm: &str, disk: &str) {
    eventually(&format!("no {disk} in {vm}"), BOOT, || {
        in_guest(aq, vm, &format!("dev {disk}")).is_empty()
    });
}

fn make(aq: &Mounted, vm: &str, disk: &str) {
    aq.sh(&format!("mkdir {vm}/disks/{disk} && echo 64M > {vm}/disks/{disk}/size")).ok();
}

fn status(aq: &Mounted, vm: &str, disk: &str) -> String {
    aq.read(&format!("{vm}/disks/{disk}/status"))
}

#[test]
fn a_disk_comes_grows_and_goes_while_the_guest_runs_and_is_there_after_a_boot() {
    let aq = Mounted::booted();
    make(&aq, "vm1", "data");
    // Nothing is waited for: the guest has it when the write has returned.
    assert_ne!(in_guest(&aq, "vm1", "dev data"), "");
    is_there(&aq, "vm1", "data", 64 << 20);
    assert_eq!(status(&aq, "vm1", "data"), "attached: 64M");
    write(&aq, "vm1", "data", "first");
    assert_errno(fs::write(aq.path("vm1/disks/data/size"), "32M"), EINVAL);
    aq.sh("echo 96M > vm1/disks/data/size").ok();
    is_there(&aq, "vm1", "data", 96 << 20);
    // Rebooted; of a killed daemon; renamed.
    aq.stop("vm1");
    assert_eq!(status(&aq, "vm1", "data"), "off: the VM does not run");
    aq.boot_existing("vm1");
    is_there(&aq, "vm1", "data", 96 << 20);
    assert_eq!(read(&aq, "vm1", "data"), "first");
    aq.kill_daemon();
    aq.mount();
    aq.wait_for_ready("vm1");
    eventually("it is known", BOOT, || status(&aq, "vm1", "data") == "attached: 96M");
    aq.sh("mv vm1 vm2").ok();
    // One that has data is put aside, and comes back.
    aq.sh("rmdir vm2/disks/data").ok();
    is_gone(&aq, "vm2", "data");
    assert_eq!(aq.sh("ls vm2/disks").ok(), "");
    aq.sh("mv vm2/disks/.data@* vm2/disks/again").ok();
    is_there(&aq, "vm2", "again", 96 << 20);
    assert_eq!(read(&aq, "vm2", "again"), "first");
    aq.sh("rmdir vm2/disks/again && rmdir vm2/disks/.again@*").ok();
    assert_eq!(aq.sh("ls -A vm2/disks").ok(), "");
}

#[test]
fn snapshots_and_suspend_take_disks_along() {
    let aq = Mounted::booted();
    aq.sh("mkdir vm1/snapshots/none; cat vm1/wait").ok();
    make(&aq, "vm1", "data");
    is_there(&aq, "vm1", "data", 64 << 20);
    write(&aq, "vm1", "data", "one");
    aq.sh("mkdir vm1/snapshots/one; cat vm1/wait").ok();
    write(&aq, "vm1", "data", "two");
    aq.sh("echo 96M > vm1/disks/data/size").ok();
    make(&aq, "vm1", "new");
    is_there(&aq, "vm1", "new", 64 << 20);
    write(&aq, "vm1", "new", "kept");
    // The disk of then is as it was then, as large as it is now; a later one is untouched.
    aq.sh("echo 'restore one' > vm1/ctl; cat vm1/wait vm1/ready").ok();
    is_there(&aq, "vm1", "new", 64 << 20);
    is_there(&aq, "vm1", "data", 96 << 20);
    assert_eq!((read(&aq, "vm1", "data"), read(&aq, "vm1", "new")), ("one".into(), "kept".into()));
    // A memory that knows of no disk.
    aq.sh("echo 'restore none' > vm1/ctl; cat vm1/wait vm1/ready").ok();
    for disk in ["data", "new"] {
        is_there(&aq, "vm1", disk, if disk == "data" { 96 << 20 } else { 64 << 20 });
    }
    assert_eq!((read(&aq, "vm1", "data"), read(&aq, "vm1", "new")), ("one".into(), "kept".into()));
    // Suspended, with a process; a disk that is made meanwhile comes when it runs.
    let pid = in_guest(&aq, "vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait").ok();
    aq.sh("rmdir vm1/disks/data; echo start > vm1/ctl").failed();
    let error = aq.read("vm1/error");
    assert!(
        error.contains("its guest has the disk data, which was removed; `mv disks/.data@"),
        "{error}"
    );
    aq.sh("mv vm1/disks/.data@* vm1/disks/data").ok();
    make(&aq, "vm1", "late");
    aq.sh("echo 128M > vm1/disks/data/size").ok();
    aq.boot_existing("vm1");
    in_guest(&aq, "vm1", &format!("kill -0 {pid}"));
    is_there(&aq, "vm1", "late", 64 << 20);
    is_there(&aq, "vm1", "data", 128 << 20);
    assert_eq!((read(&aq, "vm1", "data"), read(&aq, "vm1", "new")), ("one".into(), "kept".into()));
    // A disk of the memory that was removed is missed before anything changes.
    write(&aq, "vm1", "new", "now");
    aq.sh("rmdir vm1/disks/data").ok();
    aq.sh("echo 'restore one' > vm1/ctl").failed();
    let error = aq.read("vm1/error");
    assert!(error.contains("has the disk data, which was removed; `mv disks/.data@"), "{error}");
    assert_errno(
        fs::remove_dir(aq.path(aq.sh("cd vm1/disks; echo .data@*").ok().trim()).as_path()),
        libc::ENOENT,
    );
    aq.sh("rmdir vm1/disks/.data@*").failed();
    assert!(aq.read("vm1/error").contains("is a part of snapshots: one; drop them first"));
    aq.sh(
        "mv vm1/disks/.data@* vm1/disks/data; echo 'restore one' > vm1/ctl; cat vm1/wait vm1/ready",
    )
    .ok();
    is_there(&aq, "vm1", "data", 128 << 20);
    is_there(&aq, "vm1", "new", 64 << 20);
    assert_eq!((read(&aq, "vm1", "data"), read(&aq, "vm1", "new")), ("one".into(), "now".into()));
}

#[test]
fn snapshots_of_a_vm_that_is_off_are_of_all_disks() {
    let aq = Mounted::booted();
    make(&aq, "vm1", "data");
    is_there(&aq, "vm1", "data", 64 << 20);
    write(&aq, "vm1", "data", "one");
    aq.stop("vm1");
    aq.sh("mkdir vm1/snapshots/off; mv vm1/snapshots/off vm1/snapshots/one").ok();
    aq.boot_existing("vm1");
    write(&aq, "vm1", "data", "two");
    aq.sh("mkdir vm1/snapshots/live; cat vm1/wait; rmdir vm1/snapshots/live; cat vm1/wait").ok();
    aq.stop("vm1");
    aq.sh("echo 'restore one' > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(read(&aq, "vm1", "data"), "one");
    aq.stop("vm1");
    let uuid = aq.info("vm1", "uuid").parse().expect("a UUID");
    let list = format!("qemu-img snapshot -l {}", aq.store().vm(uuid).data_disk(1).display());
    assert_eq!(aq.sh(&format!("{list} | awk 'NR > 2 {{print $2}}'")).ok(), "one");
    // `rm -r` removes the disk before the VM, which has it again when it is brought back.
    aq.sh("rm -rf vm1; mv .trash/vm1@* vm1").ok();
    assert_eq!(aq.sh("ls -A vm1/disks").ok(), "data");
    aq.boot_existing("vm1");
    assert_eq!(read(&aq, "vm1", "data"), "one");
}

#[test]
fn a_file_of_the_user_is_attached_and_stays_his() {
    let aq = Mounted::booted();
    let scratch = aq.scratch().display().to_string();
    aq.sh("truncate -s 8M $SCRATCH/file.raw; printf hello > $SCRATCH/hello; dd if=$SCRATCH/hello of=$SCRATCH/file.raw conv=notrunc 2>&1; mkdir vm1/disks/data vm2 vm2/disks/data; echo $SCRATCH/file.raw > vm1/disks/data/source").ok();
    is_there(&aq, "vm1", "data", 8 << 20);
    assert!(read(&aq, "vm1", "data").starts_with("hello"));
    // Another VM does not get it at the same time, and starts all the same.
    aq.sh(&format!("echo {scratch}/file.raw > vm2/disks/data/source")).ok();
    aq.boot_existing("vm2");
    eventually("it is refused", BOOT, || {
        status(&aq, "vm2", "data").contains("another program has it open")
    });
    // No memory is saved with it.
    for verb in ["mkdir vm1/snapshots/a", "echo suspend > vm1/ctl", "echo fork c > vm1/ctl"] {
        aq.sh(verb).failed();
        let error = aq.read("vm1/error");
        assert!(error.contains("disk"), "{error}");
    }
    write(&aq, "vm1", "data", "written");
    aq.sh("rmdir vm1/disks/data").ok();
    is_gone(&aq, "vm1", "data");
    let content = fs::read(aq.scratch().join("file.raw")).expect("the file");
    assert!(content.starts_with(b"written"));
    // What is read-only, an image, and one that is gone at the next start.
    aq.sh("chmod 400 $SCRATCH/file.raw; qemu-img create -q -f qcow2 $SCRATCH/a.qcow2 8M; mkdir vm1/disks/ro vm1/disks/a; echo $SCRATCH/a.qcow2 > vm1/disks/a/source; rmdir vm2/disks/data; echo $SCRATCH/file.raw > vm1/disks/ro/source").ok();
    is_there(&aq, "vm1", "a", 8 << 20);
    assert!(read(&aq, "vm1", "ro").starts_with("written"));
    assert_eq!(status(&aq, "vm1", "ro"), "attached: 8M, read-only");
    aq.stop("vm1");
    aq.sh("rm -f $SCRATCH/file.raw; mkdir vm1/snapshots/off").ok();
    aq.boot_existing("vm1");
    is_there(&aq, "vm1", "a", 8 << 20);
    assert!(status(&aq, "vm1", "ro").contains("No such file"), "{}", status(&aq, "vm1", "ro"));
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_a_sentence() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 vm1/disks/a vm1/disks/b; qemu-img create -q -f qcow2 -b x -u -F raw $SCRATCH/b.qcow2 1M; cp $SCRATCH/b.qcow2 $SCRATCH/b.raw; mkfifo $SCRATCH/fifo; truncate -s 1M $SCRATCH/ok").ok();
    for (file, text, errno) in [
        ("size", "0", ERANGE),
        ("size", "many", EINVAL),
        ("size", "99999T", ERANGE),
        ("serial", "a b", EINVAL),
        ("source", "file", EINVAL),
        ("source", "$SCRATCH", EINVAL),
        ("source", "$SCRATCH/fifo", EINVAL),
        ("source", "$SCRATCH/b.qcow2", EINVAL),
        ("source", "$SCRATCH/b.raw", EINVAL),
        ("source", "$SCRATCH/gone", libc::ENOENT),
        ("source", "$STORE/lock", EINVAL),
    ] {
        let text = text
            .replace("$SCRATCH", &aq.scratch().display().to_string())
            .replace("$STORE", &aq.store().root().display().to_string());
        assert_errno(fs::write(aq.path(&format!("vm1/disks/a/{file}")), &text), errno);
        assert!(aq.read("vm1/error").starts_with(file), "{text}");
    }
    for name in ["123456789012345678901", ".x", "a\nb"] {
        assert_errno(fs::create_dir(aq.path(&format!("vm1/disks/{name}"))), EINVAL);
    }
    assert_errno(fs::create_dir(aq.path("vm1/disks/a")), EEXIST);
    aq.sh("echo $SCRATCH/ok > vm1/disks/a/source").ok();
    aq.sh("echo $SCRATCH/ok > vm1/disks/b/source").failed();
    assert!(aq.read("vm1/error").ends_with("is the disk a already"));
    // Four ports, for disks and nets together.
    aq.sh("mkdir .nets/lab vm1/disks/c; echo lab > vm1/config/nets").ok();
    assert_errno(fs::create_dir(aq.path("vm1/disks/d")), ENOSPC);
    aq.sh("echo none > vm1/config/nets; mkdir vm1/disks/d").ok();
    assert_errno(fs::write(aq.path("vm1/config/nets"), "lab"), ENOSPC);
}

#[test]
fn a_fork_has_copies_and_a_clone_of_a_warm_image_gets_its_disk_when_it_runs() {
    let aq = Mounted::with_image();
    aq.sh("echo warm > .images/tiny/ctl; cat .images/tiny/wait; mkdir vm1").ok();
    make(&aq, "vm1", "data");
    aq.boot_existing("vm1");
    assert_eq!(aq.info("vm1", "warm"), "yes");
    is_there(&aq, "vm1", "data", 64 << 20);
    write(&aq, "vm1", "data", "parent");
    aq.sh("mkdir vm1/snapshots/a; cat vm1/wait vm1/ready").ok();
    aq.sh_within(
        "echo fork f g > vm1/ctl || cat vm1/status vm1/error >&2; cat f/ready g/ready",
        BOOT,
    )
    .ok();
    write(&aq, "f", "data", "fork");
    for (vm, word) in [("vm1", "parent"), ("f", "fork"), ("g", "parent")] {
        is_there(&aq, vm, "data", 64 << 20);
        assert_eq!(read(&aq, vm, "data"), word, "{vm}");
        assert_eq!(status(&aq, vm, "data"), "attached: 64M", "{vm}");
    }
    // A fork's own past, and one that boots.
    aq.sh("mkdir f/snapshots/b; cat f/wait").ok();
    write(&aq, "f", "data", "later");
    aq.sh("echo 'restore b' > f/ctl; cat f/wait f/ready").ok();
    assert_eq!(read(&aq, "f", "data"), "fork");
    aq.stop("g");
    aq.boot_existing("g");
    assert_eq!(read(&aq, "g", "data"), "parent");
    // The parent's past is untouched.
    write(&aq, "vm1", "data", "now");
    aq.sh("echo 'restore a' > vm1/ctl; cat vm1/wait vm1/ready").ok();
    assert_eq!(read(&aq, "vm1", "data"), "parent");
}
