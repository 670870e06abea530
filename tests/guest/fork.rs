//! `fork`: running copies of a VM that runs.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::Signal;

use crate::common::{BOOT, Mounted, assert_errno, eventually, proc};

/// What must differ from VM to VM, a word each. The random bytes are read first.
const IDENTITY: &str = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
    cat /proc/sys/kernel/random/uuid /proc/sys/kernel/hostname /etc/machine-id \
        /sys/class/net/eth0/address; od -An -tx1 -v /run/aqfs/seed/dropbear_ed25519_host_key |
    tr -d ' \\n'; echo; date +%s";

fn identity(aq: &Mounted, name: &str) -> Vec<String> {
    let mut words: Vec<_> = aq.exec(name, IDENTITY).lines().map(str::to_owned).collect();
    let time: u64 = words.pop().and_then(|t| t.parse().ok()).expect("a time");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
    assert!(now.as_secs().abs_diff(time) <= 1, "{name}'s clock shows {time}");
    assert_eq!((words.len(), words[2].as_str()), (6, name), "{words:?}");
    words
}

#[track_caller]
fn assert_distinct(aq: &Mounted, names: &[&str]) {
    let all: Vec<_> = names.iter().map(|name| identity(aq, name)).collect();
    for word in 0..all[0].len() {
        let distinct: BTreeSet<_> = all.iter().map(|words| &words[word]).collect();
        assert_eq!(distinct.len(), all.len(), "word {word}: {all:?}");
    }
}

/// Writes a word to the disk and to memory of a guest, and into a process.
fn mark(aq: &Mounted, vm: &str, word: &str) {
    aq.exec(
        vm,
        &format!(
            "echo {word} > /root/mark; echo {word} > /dev/shm/mark; [ ! -e /dev/shm/pid ] || kill $(cat /dev/shm/pid)
             sh -c 'sleep 100000; : {word}' > /dev/null 2>&1 & echo $! > /dev/shm/pid; sync"
        ),
    );
}

/// Reads what [`mark`] wrote.
fn marks(aq: &Mounted, vm: &str) -> String {
    let look = "cat /root/mark /dev/shm/mark; tr '\\0' ' ' < /proc/$(cat /dev/shm/pid)/cmdline | sed 's/.*: //'";
    aq.exec(vm, look).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn has(aq: &Mounted, vm: &str, word: &str) {
    assert_eq!(marks(aq, vm), format!("{word} {word} {word}"), "{vm}");
}

/// Forks, and waits until each answers.
fn fork(aq: &Mounted, parent: &str, names: &[&str]) {
    aq.sh_within(&format!("echo fork {} > {parent}/ctl", names.join(" ")), BOOT).ok();
    for name in names {
        aq.wait_for_ready(name);
        assert_eq!(aq.info(name, "warm"), "yes");
    }
    aq.wait_for_ready(parent);
}

/// Lists the directories of VMs in the store.
fn vm_dirs(aq: &Mounted) -> usize {
    fs::read_dir(aq.store().vms()).expect("the VMs").count()
}

#[test]
fn forks_have_all_of_their_parent_and_an_identity_of_their_own() {
    let aq = Mounted::with_image();
    let port = crate::common::free_port();
    aq.sh(&format!(
        "mkdir vm1; cd vm1/config; echo {port}:80 > ports; echo 1 > protect; echo 300M > memory
         echo other > hostname; echo 1 > autoremove"
    ))
    .ok();
    aq.boot_existing("vm1");
    aq.sh("echo default > vm1/config/hostname; mv vm1 parent").ok();
    mark(&aq, "parent", "first");
    aq.sh("mkdir parent/snapshots/clean; cat parent/wait").ok();
    mark(&aq, "parent", "second");
    let qemu = aq.info("parent", "pid");
    // The kernel has heard that there is none, and what is in the root.
    assert_eq!(aq.sh("ls -d a 2> /dev/null; ls").stdout, "parent\n");
    let said = aq.events_of("parent/events", "echo fork a b c > parent/ctl");
    let pause = said.split("forked a b c pause ").nth(1).and_then(|rest| rest.split("ms").next());
    assert!(pause.and_then(|ms| ms.parse::<u32>().ok()).is_some(), "{said}");
    assert_eq!(aq.sh("ls").ok(), "a\nb\nc\nparent");
    for name in ["a", "b", "c"] {
        aq.wait_for_ready(name);
        assert_eq!(aq.info(name, "warm"), "yes");
        has(&aq, name, "second");
        assert_eq!(
            aq.sh(&format!("ls {name}/snapshots; qemu-img snapshot -U -l {name}/disk")).ok(),
            ""
        );
        let config = format!("cd {name}/config; cat memory protect autoremove hostname ports");
        assert_eq!(aq.sh(&config).ok(), "300M\n0\n0\ndefault\ntcp:127.0.0.1:0:80");
    }
    // The parent is what it was, with its past.
    aq.wait_for_ready("parent");
    assert_eq!(aq.info("parent", "pid"), qemu);
    has(&aq, "parent", "second");
    assert_eq!(aq.sh("qemu-img snapshot -U -l parent/disk | grep -c frozen").stdout, "0\n");
    aq.sh("echo restore clean > parent/ctl; cat parent/wait parent/ready").ok();
    has(&aq, "parent", "first");
    assert_eq!(aq.exec("parent", "hostname parent; hostname"), "parent");
    assert_distinct(&aq, &["parent", "a", "b", "c"]);
    mark(&aq, "a", "third");
    has(&aq, "b", "second");
    // A fork is a VM like any other from then on.
    aq.sh("echo stop > a/ctl; cat a/wait").ok();
    aq.boot_existing("a");
    assert_eq!(aq.exec("a", "cat /root/mark; hostname; ls /dev/shm"), "third\na");
    let uuid = aq.info("a", "uuid").replace('-', "");
    assert_eq!(aq.exec("a", "cat /etc/machine-id"), uuid);
}

#[test]
fn whatever_became_of_a_vm_it_can_be_forked_and_its_forks_outlive_it() {
    let aq = Mounted::with_image();
    aq.sh("echo warm > .images/tiny/ctl; cat .images/tiny/wait").ok();
    // A clone, and a fork of that.
    aq.sh("mkdir vm1; echo offline > vm1/config/net").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.info("vm1", "warm"), "yes");
    mark(&aq, "vm1", "one");
    fork(&aq, "vm1", &["a"]);
    mark(&aq, "a", "two");
    fork(&aq, "a", &["b"]);
    has(&aq, "b", "two");
    assert_distinct(&aq, &["vm1", "a", "b"]);
    // What a guest may not reach, its copies may not.
    let closed = "cat b/config/net; tr '\\0' '\\n' < /proc/$(sed -n 's/^pid //p' b/info)/cmdline | grep -c restrict=on";
    assert_eq!(aq.sh(closed).ok(), "offline\n1");
    // Connections of those that it comes from are gone: there is the server, and ours.
    assert_eq!(aq.exec("b", "pidof dropbear | wc -w"), "2");
    // A fork is snapshotted and brought back, and so is its parent.
    for vm in ["a", "vm1"] {
        aq.sh(&format!("mkdir {vm}/snapshots/s; cat {vm}/wait")).ok();
        mark(&aq, vm, "three");
        aq.sh(&format!("echo restore s > {vm}/ctl; cat {vm}/wait {vm}/ready")).ok();
    }
    has(&aq, "a", "two");
    has(&aq, "vm1", "one");
    // Restored, and renamed; suspended, and started.
    aq.sh("mv a c").ok();
    fork(&aq, "c", &["d"]);
    has(&aq, "d", "two");
    aq.sh("echo suspend > d/ctl; cat d/wait").ok();
    aq.boot_existing("d");
    has(&aq, "d", "two");
    mark(&aq, "d", "four");
    fork(&aq, "d", &["e"]);
    has(&aq, "e", "four");
    for vm in ["b", "d"] {
        aq.sh(&format!("echo kill > {vm}/ctl; cat {vm}/wait; rmdir {vm}")).ok();
    }
    // Adopted.
    aq.kill_daemon();
    aq.mount();
    aq.wait_for_ready("e");
    aq.wait_for_ready("c");
    fork(&aq, "e", &["f"]);
    has(&aq, "e", "four");
    has(&aq, "f", "four");
    aq.sh("echo kill > vm1/ctl; echo kill > c/ctl; echo kill > e/ctl; cat vm1/wait c/wait e/wait")
        .ok();
    aq.sh("rm -r vm1 c e; rmdir .trash/*").ok();
    // All that it comes from is gone.
    assert_eq!(aq.sh("ls").ok(), "f");
    has(&aq, "f", "four");
    aq.sh("mkdir .images/x && echo f > .images/x/source; cat .images/x/wait f/wait").ok();
    aq.sh("echo stop > f/ctl; cat f/wait").ok();
    aq.boot_existing("f");
    assert_eq!(aq.exec("f", "cat /root/mark"), "four");
    fork(&aq, "f", &["g"]);
    aq.sh("for vm in f g; do echo kill > $vm/ctl; cat $vm/wait; rmdir $vm; done; rmdir .trash/*")
        .ok();
    aq.sh("mkdir h && echo x > h/config/image").ok();
    aq.boot_existing("h");
    has(&aq, "h", "four");
    // Nothing of any fork is left but the template of the image.
    eventually("disks of forks are erased", BOOT, || {
        fs::read_dir(aq.store().templates("tiny")).expect("templates").count() == 1
    });
    assert_eq!(vm_dirs(&aq), 1);
}

#[test]
fn a_fork_that_is_refused_leaves_nothing() {
    let aq = Mounted::booted();
    aq.sh("mkdir taken").ok();
    let try_fork = |names: &str| aq.write("vm1/ctl", &format!("fork {names}\n"));
    assert_errno(try_fork("a taken"), libc::EEXIST);
    assert_eq!(aq.read("vm1/error"), "taken exists already");
    assert_errno(try_fork("a b a"), libc::EEXIST);
    assert_errno(try_fork("a B"), libc::EINVAL);
    assert_errno(try_fork(""), libc::EINVAL);
    assert_errno(try_fork("vm1"), libc::EEXIST);
    assert_errno(aq.write("taken/ctl", "fork a\n"), libc::EHOSTDOWN);
    aq.sh("echo pause > vm1/ctl").ok();
    assert_errno(try_fork("a"), libc::EHOSTUNREACH);
    assert!(
        aq.read("vm1/error").starts_with("fork: paused; `echo resume"),
        "{}",
        aq.read("vm1/error")
    );
    aq.sh("echo resume > vm1/ctl; cat vm1/ready").ok();
    // A guest that cannot be made unique.
    aq.exec("vm1", "mv /run/aqfs/dropbear.pid /run/kept");
    assert_errno(try_fork("a"), libc::EREMOTEIO);
    aq.exec("vm1", "mv /run/kept /run/aqfs/dropbear.pid");
    // One whose QEMU ends meanwhile.
    let script = "exec 3<>vm1/qmp; (echo 'fork a b' > vm1/ctl; echo $?) 2> /dev/null & \
        while read -r line <&3; do case $line in *STOP*) kill -KILL $(sed -n 's/^pid //p' vm1/info); break;; esac; done; wait";
    assert_eq!(aq.sh_within(script, BOOT).stdout, "1\n");
    eventually("it has failed", BOOT, || aq.read("vm1/status").starts_with("failed"));
    assert_eq!((aq.sh("ls").ok(), vm_dirs(&aq)), ("taken\nvm1".to_owned(), 2));
    assert_eq!(fs::read_dir(aq.store().templates("tiny")).map_or(0, Iterator::count), 0);
    aq.boot_existing("vm1");
    fork(&aq, "vm1", &["a"]);
}

#[test]
fn a_daemon_killed_while_it_forks_leaves_no_half_fork() {
    let aq = Mounted::booted();
    mark(&aq, "vm1", "one");
    let kill = format!("kill -KILL {}", aq.daemon());
    let script = format!(
        "exec 3<>vm1/qmp; (echo fork a b > vm1/ctl) 2> /dev/null &
         while read -r line <&3; do case $line in *STOP*) {kill}; break;; esac; done; wait"
    );
    aq.sh(&script);
    aq.mount();
    assert_eq!((aq.sh("ls").ok(), vm_dirs(&aq)), ("vm1".to_owned(), 1));
    aq.wait_for_ready("vm1");
    has(&aq, "vm1", "one");
    assert_eq!(aq.sh("qemu-img snapshot -U -l vm1/disk").ok(), "");
    fork(&aq, "vm1", &["a"]);
    has(&aq, "a", "one");
    // While forks start.
    aq.sh("(echo fork b c d e > vm1/ctl) 2> /dev/null &").ok();
    eventually("one has its QEMU", BOOT, || aq.qemus().len() > 3);
    proc::kill(aq.daemon(), Signal::KILL);
    aq.mount();
    let names = aq.sh("ls").ok();
    for name in names.lines() {
        aq.wait_for_ready(name);
        assert_eq!(aq.exec(name, "hostname"), name);
        has(&aq, name, "one");
    }
    let count = names.lines().count();
    assert_eq!((aq.qemus().len(), vm_dirs(&aq)), (count, count), "{names}");
    let rest: Vec<&str> = ["b", "c", "d", "e"].into_iter().filter(|n| !names.contains(n)).collect();
    for name in &rest {
        let text = format!("{name}: the daemon ended before this fork was loaded; it is removed");
        assert!(aq.read(".error").contains(&text), "{}", aq.read(".error"));
    }
    fork(&aq, "vm1", &["f"]);
}

#[test]
fn forks_by_the_command_line_are_named_and_waited_for() {
    let aq = Mounted::booted();
    mark(&aq, "vm1", "one");
    aq.sh("mkdir vm1-1").ok();
    assert_eq!(aq.cli_within("aq fork -n 2 vm1", BOOT).ok(), "vm1-0\nvm1-2");
    assert_eq!(aq.sh("cat vm1-0/status vm1-2/status").ok(), "ready\nready");
    has(&aq, "vm1-2", "one");
    assert_eq!(aq.cli_within("aq fork vm1-2 x", BOOT).ok(), "x");
    has(&aq, "x", "one");
    let said = aq.cli("aq fork vm1 x").failed();
    assert!(said.contains("x exists already"), "{said}");
    assert!(aq.cli("aq fork -n 2 vm1 y").code == 2);
}
