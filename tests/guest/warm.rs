//! Warm images: VMs that resume a template, each with an identity of its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::common::{BOOT, Mounted, eventually, proc};
use aqfs::store::operation::{self, Operation};
use rustix::process::Signal;

/// What must differ from clone to clone, a word each. The random bytes are read first.
const IDENTITY: &str = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
    cat /proc/sys/kernel/random/uuid /proc/sys/kernel/hostname /etc/machine-id \
        /sys/class/net/eth0/address; od -An -tx1 -v /run/aqfs/seed/dropbear_ed25519_host_key |
    tr -d ' \\n'; echo; date +%s";

fn warm(aq: &Mounted, image: &str) {
    assert_eq!(
        aq.sh(&format!("echo warm > .images/{image}/ctl; cat .images/{image}/wait")).ok(),
        "ready"
    );
    assert!(aq.read(&format!(".images/{image}/warm")).starts_with("yes: cpus 1 memory 256M"));
}

/// Makes a VM that resumes an image's template.
fn clone(aq: &Mounted, name: &str, image: &str) {
    aq.sh(&format!("mkdir {name} && echo {image} > {name}/config/image")).ok();
    aq.boot_existing(name);
    assert_eq!(aq.info(name, "warm"), "yes");
}

/// Reads a clone's identity; checks its name and its clock on the way.
fn identity(aq: &Mounted, name: &str) -> Vec<String> {
    let mut words: Vec<_> = aq.exec(name, IDENTITY).lines().map(str::to_owned).collect();
    let time: u64 = words.pop().and_then(|t| t.parse().ok()).expect("a time");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
    assert!(now.as_secs().abs_diff(time) <= 1, "{name}'s clock shows {time}");
    assert_eq!((words.len(), words[2].as_str()), (6, name), "{words:?}");
    words
}

/// The directory of the template in an image.
fn template(aq: &Mounted, image: &str) -> PathBuf {
    let dir = fs::read_dir(aq.store().templates(image)).expect("templates");
    let found: Vec<_> = dir.map(|e| e.expect("an entry").path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().expect("one")
}

#[test]
fn clones_are_ready_soon_and_none_is_like_another() {
    let aq = Mounted::with_image();
    warm(&aq, "tiny");
    let names = ["one", "two", "three"];
    for name in names {
        clone(&aq, name, "tiny");
    }
    let all: Vec<_> = names.iter().map(|name| identity(&aq, name)).collect();
    assert_distinct(&all);
    for name in names {
        assert_eq!(aq.sh(&format!("ssh -F {name}/ssh_config {name} hostname")).ok(), name);
        let uuid = aq.info(name, "uuid").replace('-', "");
        assert_eq!(aq.exec(name, "cat /etc/machine-id"), uuid);
    }
    // A clone is a VM like any other from then on.
    aq.exec("one", "echo kept > /root/x; sync");
    aq.sh("echo stop > one/ctl; cat one/wait").ok();
    aq.boot_existing("one");
    assert_eq!(aq.info("one", "warm"), "no");
    assert_eq!(aq.exec("one", "cat /root/x; hostname"), "kept\none");
    assert!(aq.read(".images/tiny/warm").starts_with("yes"), "no clone has changed it");
    clone(&aq, "four", "tiny");
    // What clones' disks lie on stays as long as they do.
    aq.sh("echo cold > .images/tiny/ctl").ok();
    assert_eq!(aq.read(".images/tiny/warm"), "no");
    assert!(template(&aq, "tiny").join("disk.qcow2").exists());
    aq.sh("echo stop > one/ctl; cat one/wait").ok();
    aq.boot_existing("one");
    assert_eq!(aq.exec("one", "cat /root/x"), "kept");
}

#[test]
fn sixteen_at_once_are_sixteen_vms() {
    let aq = Mounted::with_image();
    warm(&aq, "tiny");
    let names: Vec<String> = (1..=16).map(|n| format!("vm{n}")).collect();
    let script = format!(
        "for vm in {}; do mkdir $vm; (echo start > $vm/ctl; cat $vm/ready) & done; wait",
        names.join(" ")
    );
    aq.sh_within(&script, BOOT * 2).ok();
    let all: Vec<_> = names.iter().map(|name| identity(&aq, name)).collect();
    names.iter().for_each(|name| assert_eq!(aq.info(name, "warm"), "yes"));
    assert_distinct(&all);
}

/// No word of one is that of another.
#[track_caller]
fn assert_distinct(all: &[Vec<String>]) {
    for word in 0..all[0].len() {
        let distinct: BTreeSet<_> = all.iter().map(|words| &words[word]).collect();
        assert_eq!(distinct.len(), all.len(), "word {word}: {all:?}");
    }
}

#[test]
fn a_vm_that_runs_becomes_an_image_and_runs_on_as_its_clones_do() {
    let aq = Mounted::booted();
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    aq.exec("vm1", "echo disk > /root/x; echo memory > /tmp/x");
    let qemu = aq.info("vm1", "pid");
    aq.sh("mkdir .images/live && echo vm1 > .images/live/source").ok();
    assert_eq!(aq.sh("cat .images/live/wait").ok(), "ready");
    let pause = aq.read(".images/live/warm");
    let pause = pause.rsplit_once("pause ").and_then(|(_, p)| p.strip_suffix("ms"));
    assert!(pause.and_then(|p| p.parse::<u32>().ok()).is_some(), "{pause:?}");
    // The VM itself: the same QEMU, the same process, nothing left in its disk.
    aq.sh("cat vm1/wait").ok();
    assert_eq!((aq.read("vm1/status"), aq.info("vm1", "pid")), ("ready".into(), qemu));
    assert_eq!(aq.exec("vm1", &format!("kill -0 {pid} && cat /root/x /tmp/x")), "disk\nmemory");
    let disk = aq.vm_dir("vm1").disk();
    let list = format!("ls vm1/snapshots; qemu-img snapshot -U -l '{}'", disk.display());
    assert_eq!(aq.sh(&list).ok(), "");
    aq.exec("vm1", "echo changed > /root/x; echo changed > /tmp/x");
    clone(&aq, "a", "live");
    assert_eq!(aq.exec("a", &format!("kill -0 {pid} && cat /root/x /tmp/x")), "disk\nmemory");
    // A clone of a clone.
    aq.exec("a", "echo second > /tmp/x");
    aq.sh("mkdir .images/again && echo a > .images/again/source").ok();
    assert_eq!(aq.sh("cat .images/again/wait").ok(), "ready");
    aq.sh("echo stop > vm1/ctl; cat vm1/wait; rmdir vm1; rmdir .trash/*").ok();
    clone(&aq, "b", "again");
    clone(&aq, "c", "again");
    assert_eq!(aq.exec("b", &format!("kill -0 {pid} && cat /tmp/x /root/x")), "second\ndisk");
    let all = ["a", "b", "c"].map(|name| identity(&aq, name));
    assert_distinct(&all);
}

#[test]
fn what_does_not_fit_boots_and_says_why() {
    let aq = Mounted::with_image();
    warm(&aq, "tiny");
    let table = [
        ("512M", "memory", "memory is 512M, the image's is 256M"),
        ("2", "cpus", "cpus is 2, the image's is 1"),
        ("4G", "disk", "disk is 4G, the image's is 2G"),
        ("quiet", "cmdline", "cmdline is not the image's"),
    ];
    for (at, (value, key, reason)) in table.iter().enumerate() {
        let name = format!("vm{at}");
        aq.sh(&format!("mkdir {name} && echo {value} > {name}/config/{key}")).ok();
        aq.boot_existing(&name);
        let remedy = format!("`echo default > config/{key}` takes the image's");
        assert_eq!(aq.info(&name, "warm"), format!("no: {reason}; {remedy}"));
        assert_eq!(aq.exec(&name, "hostname"), name);
        aq.sh(&format!("echo kill > {name}/ctl; cat {name}/wait")).ok();
    }
    let ram = template(&aq, "tiny").join("ram");
    let file = fs::File::options().write(true).open(&ram).expect("the memory");
    file.write_all_at(b"damage", 100 << 20).expect("written");
    aq.boot("damaged");
    let warm = aq.info("damaged", "warm");
    assert!(warm.starts_with("no: ") && warm.ends_with("/ram is damaged"), "{warm}");
    assert_eq!(aq.exec("damaged", "hostname"), "damaged");
    aq.sh("mkdir off .images/x && echo 'start paused' > off/ctl").ok();
    let refused = aq.sh("echo off > .images/x/source").failed();
    assert!(refused.contains("Host is unreachable") || refused.contains("No route"), "{refused}");
}

#[test]
fn an_image_carries_its_machines_settings_to_new_vms_and_changes_none_that_has_a_disk() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 1G > vm1/config/memory && echo 2 > vm1/config/cpus").ok();
    aq.boot_existing("vm1");
    // Neither what new VMs start from, nor what belongs to vm1 alone, is the image's.
    aq.sh("echo 512M > .defaults/memory; echo 1 > vm1/config/protect").ok();
    aq.sh("mkdir .images/x && echo vm1 > .images/x/source; cat .images/x/wait vm1/wait").ok();
    let carried = aq.read(".images/x/config");
    assert!(carried.contains("cpus 2\n") && carried.contains("memory 1G\n"), "{carried}");
    aq.sh("mkdir c && echo x > c/config/image").ok();
    assert_eq!(aq.sh("cat c/config/memory c/config/cpus c/config/protect").ok(), "1G\n2\n0");
    aq.boot_existing("c");
    assert_eq!(aq.info("c", "warm"), "yes");
    // One that has not run follows another image; what was set stays.
    aq.sh("mkdir d && echo x > d/config/image && echo 1 > d/config/cpus").ok();
    assert_eq!(aq.sh("cat d/config/memory d/config/cpus").ok(), "1G\n1");
    aq.sh("echo tiny > d/config/image").ok();
    assert_eq!(aq.sh("cat d/config/memory d/config/cpus").ok(), "512M\n1");
    // Warming an image again gives it other settings, for VMs without a disk.
    aq.boot("e");
    aq.sh("echo suspend > e/ctl; cat e/wait; echo 256M > .defaults/memory; mkdir f").ok();
    assert_eq!(aq.sh("cat e/config/memory f/config/memory").ok(), "512M\n256M");
    warm(&aq, "tiny");
    aq.sh("echo 128M > .defaults/memory; mkdir g").ok();
    assert_eq!(
        aq.sh("cat e/config/memory f/config/memory g/config/memory").ok(),
        "512M\n256M\n256M"
    );
    aq.kill_daemon();
    aq.mount();
    assert_eq!(aq.sh("cat c/config/memory e/config/memory g/config/memory").ok(), "1G\n512M\n256M");
    aq.boot_existing("e");
    aq.boot_existing("g");
    assert_eq!(aq.info("g", "warm"), "yes");
    // A setting that prevents a warm start is an event.
    aq.sh("mkdir h && echo 512M > h/config/memory").ok();
    let said = aq.sh("exec 3< h/events; echo start > h/ctl; cat h/ready; timeout 1 cat <&3").stdout;
    let expected = "warm no: memory is 512M, the image's is 256M; `echo default > config/memory`";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_guest_whose_host_key_cannot_be_replaced_is_not_captured() {
    let aq = Mounted::booted();
    aq.exec("vm1", "mv /run/aqfs/dropbear.pid /run/kept");
    let balloon = "ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio*";
    let before = aq.exec("vm1", balloon);
    aq.sh("mkdir .images/live && echo vm1 > .images/live/source; cat .images/live/wait vm1/wait");
    let reported = aq.read(".images/live/status");
    assert!(reported.contains("identity of its own: it has neither the SSH server"), "{reported}");
    assert_eq!(aq.read("vm1/status"), "ready");
    assert_eq!(aq.exec("vm1", balloon), before);
    aq.exec("vm1", "mv /run/kept /run/aqfs/dropbear.pid");
    aq.sh("echo vm1 > .images/live/source; cat .images/live/wait vm1/wait").ok();
    clone(&aq, "a", "live");
}

#[test]
fn a_daemon_killed_while_it_captures_or_clones_leaves_nothing_unfinished() {
    let aq = Mounted::with_image();
    aq.sh("echo warm > .images/tiny/ctl").ok();
    eventually("it boots", BOOT, || !aq.qemus().is_empty());
    proc::kill(aq.daemon(), Signal::KILL);
    // No VM owns that machine.
    eventually("its machine is gone", BOOT, || aq.qemus().is_empty());
    aq.mount();
    assert_eq!(aq.read(".images/tiny/warm"), "no");
    assert_eq!(fs::read_dir(aq.store().templates("tiny")).expect("templates").count(), 0);
    warm(&aq, "tiny");
    aq.sh("mkdir vm1 && echo start > vm1/ctl &").ok();
    eventually("it starts", BOOT, || !aq.qemus().is_empty());
    proc::kill(aq.daemon(), Signal::KILL);
    aq.mount();
    let vm = aq.store().vm(aq.info("vm1", "uuid").parse().expect("a UUID"));
    assert!(!operation::is_open(&vm, &Operation::Personalize).expect("operations"));
    let status = aq.read("vm1/status");
    // It was ready already, or it is off: it never runs without an identity of its own.
    if status != "ready" {
        assert!(status.starts_with("failed: the daemon ended") || status == "stopped", "{status}");
        assert!(aq.qemus().is_empty());
        aq.boot_existing("vm1");
    }
    assert_eq!(aq.exec("vm1", "hostname"), "vm1");
}

#[test]
fn a_guest_that_was_paused_by_a_daemon_that_died_is_resumed() {
    let aq = Mounted::booted();
    let pid = aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $!");
    let vm = aq.vm_dir("vm1");
    let requests =
        ["mkdir .images/live && echo vm1 > .images/live/source &", "echo suspend > vm1/ctl &"];
    for request in requests {
        // QEMU reports that the vCPUs stop, and the daemon dies while they are paused.
        let script = format!(
            "exec 3<>vm1/qmp; {request}
             while read -r line <&3; do case $line in *STOP*) kill -KILL {}; break;; esac; done; wait",
            aq.daemon()
        );
        aq.sh(&script);
        assert!(
            operation::is_open(&vm, &Operation::PausedByDaemon).expect("operations"),
            "{request}"
        );
        aq.mount();
        assert_eq!(aq.sh("cat vm1/ready; cat vm1/status").ok().lines().last(), Some("ready"));
        assert_eq!(
            aq.exec("vm1", &format!("kill -0 {pid} && echo $$ > /root/x; sync; echo on")),
            "on"
        );
        assert!(!operation::is_open(&vm, &Operation::PausedByDaemon).expect("operations"));
        let list = format!("ls vm1/snapshots; qemu-img snapshot -U -l '{}'", vm.disk().display());
        assert_eq!(aq.sh(&list).ok(), "");
    }
}
