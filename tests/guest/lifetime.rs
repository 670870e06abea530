//! `config/expire` and `config/idle`: VMs that are removed and suspended by themselves.

use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, eventually};

/// Says what of VMs there is, and what is in the trash.
fn names(aq: &Mounted) -> String {
    aq.sh("ls; ls .trash | sed 's/@.*/@/'").ok().replace('\n', " ")
}

#[test]
fn a_vm_is_removed_when_its_time_is_over_and_undone_it_stays() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo kept > /root/x; sync");
    aq.sh("echo 1h > vm1/config/expire; mkdir vm1/snapshots/a; cat vm1/wait vm1/ready").ok();
    assert_eq!(aq.info("vm1", "expires"), "in 59m");
    let said = aq.events_of(".events", "last='vm1 removed'; echo 5s > vm1/config/expire");
    let words: Vec<_> = said.lines().map(|line| line.trim_start_matches("vm1 ")).collect();
    let [written, announced, rest @ ..] = words.as_slice() else { panic!("{said}") };
    assert!(announced.starts_with("expires in ") && announced.ends_with("ms"), "{said}");
    assert_eq!(*written, "config expire");
    assert_eq!(rest, ["expired", "status stopping", "status stopped", "removed"]);
    assert_eq!(names(&aq), "vm1@");
    let said = aq.events_of(".events", "last='expires'; mv .trash/vm1@* back");
    assert_eq!(said, "back created\nback expires never");
    assert_eq!(
        aq.sh("cat back/config/expire; ls back/snapshots; grep -c expires back/info").stdout,
        "never\na\n0\n"
    );
    aq.boot_existing("back");
    assert_eq!(aq.exec("back", "cat /root/x"), "kept");
}

#[test]
fn the_time_begins_with_its_writing_and_with_the_making_of_a_vm() {
    let aq = Mounted::booted();
    // It is written anew, and cleared.
    aq.sh("echo 2s > vm1/config/expire; echo 1d > vm1/config/expire").ok();
    assert_eq!(aq.info("vm1", "expires"), "in 23h");
    aq.sh("echo 2s > vm1/config/expire; echo > vm1/config/expire").ok();
    assert_eq!(aq.sh("cat vm1/config/expire; grep -c expires vm1/info").stdout, "never\n0\n");
    // A new VM has that of the defaults; a fork has that of its parent; an image has none.
    aq.sh("echo 2h > .defaults/expire; mkdir new; echo > .defaults/expire; mkdir kept").ok();
    assert_eq!(aq.info("new", "expires"), "in 119m");
    aq.sh("echo 3h > vm1/config/expire; echo fork a > vm1/ctl").ok();
    aq.wait_for_ready("a");
    assert_eq!(
        (aq.read("a/config/expire"), aq.info("a", "expires")),
        ("3h".into(), "in 2h".into())
    );
    // It is no part of the guest's state.
    aq.sh("mkdir vm1/snapshots/s; cat vm1/wait; echo 4h > vm1/config/expire
           echo restore s > vm1/ctl; cat vm1/wait; mv vm1 moved")
        .ok();
    assert_eq!(aq.info("moved", "expires"), "in 3h");
    assert_eq!(names(&aq), "a kept moved new");
    // What never ran is not kept; what is suspended, paused or stopped goes as what runs does.
    aq.sh("echo suspend > moved/ctl; cat moved/wait; echo pause > a/ctl").ok();
    aq.sh("for vm in new moved a; do echo 2s > $vm/config/expire; done").ok();
    eventually("they are removed", BOOT, || names(&aq) == "kept a@ moved@");
    aq.sh("mv .trash/moved@* moved").ok();
    assert_eq!(aq.info("moved", "suspended"), "yes");
}

#[test]
fn what_protects_a_vm_and_what_passes_without_a_daemon() {
    let aq = Mounted::booted();
    aq.sh("echo 1 > vm1/config/protect").ok();
    let said = aq.events_of("vm1/events", "last=error; echo 1s > vm1/config/expire");
    assert!(said.ends_with("error rmdir: protected; `echo 0 > config/protect` first"), "{said}");
    assert_eq!((names(&aq).as_str(), aq.exec("vm1", "hostname").as_str()), ("vm1", "vm1"));
    let said = aq.events_of(".events", "last='vm1 removed'; echo 0 > vm1/config/protect");
    assert!(said.contains("vm1 expired"), "{said}");
    // With autoremove it is not kept.
    aq.sh("mv .trash/vm1@* vm1; echo 1 > vm1/config/autoremove").ok();
    aq.boot_existing("vm1");
    let written = Instant::now();
    aq.sh("echo 2s > vm1/config/expire; mkdir vm2; echo 2s > vm2/config/expire
           echo 1 > vm2/config/autostart")
        .ok();
    aq.kill_daemon();
    eventually("the time is over", BOOT, || written.elapsed() > Duration::from_secs(3));
    assert_eq!(aq.qemus().len(), 1);
    aq.mount();
    eventually("they are removed", BOOT, || names(&aq).is_empty());
    assert!(aq.qemus().is_empty());
}

/// Waits until a VM was suspended because nobody used it.
fn wait_until_asleep(aq: &Mounted, vm: &str) {
    let bound = 4 * BOOT;
    eventually("it is suspended", bound, || {
        aq.sh(&format!("grep -c '^wakes yes' {vm}/info")).stdout == "1\n"
    });
    assert_eq!(
        (aq.read(&format!("{vm}/status")), aq.info(vm, "suspended")),
        ("stopped".into(), "yes".into())
    );
}

#[test]
fn an_idle_vm_is_suspended_and_each_use_brings_it_back_with_its_processes() {
    let aq = Mounted::booted();
    aq.exec("vm1", "sleep 100000 > /dev/null 2>&1 & echo $! > /dev/shm/pid");
    let said = aq.events_of("vm1/events", "last=' suspended'; echo 5s > vm1/config/idle");
    let words: Vec<_> = said.lines().collect();
    let [written, announced, rest @ ..] = words.as_slice() else { panic!("{said}") };
    assert!(*written == "config idle" && announced.starts_with("suspends in "), "{said}");
    assert_eq!(rest, ["status saving", "status stopping", "status stopped", "suspended"]);
    wait_until_asleep(&aq, "vm1");
    let look = "kill -0 $(cat /dev/shm/pid) && hostname";
    assert_eq!(aq.exec("vm1", look), "vm1");
    assert!(aq.info("vm1", "suspends").starts_with("in "));
    wait_until_asleep(&aq, "vm1");
    assert_eq!(aq.sh_within(&format!("ssh -F vm1/ssh_config vm1 '{look}'"), BOOT).ok(), "vm1");
    wait_until_asleep(&aq, "vm1");
    let pid = aq.exec("vm1", "cat /dev/shm/pid");
    wait_until_asleep(&aq, "vm1");
    assert_eq!(aq.sh_within("cat vm1/fs/dev/shm/pid", BOOT).ok(), pid);
    // Under another name, and a later daemon.
    wait_until_asleep(&aq, "vm1");
    aq.sh("mv vm1 web").ok();
    aq.kill_daemon();
    aq.mount();
    assert_eq!(aq.cli_within("aq exec web hostname", BOOT).ok(), "vm1");
    // Who suspends it himself starts it himself.
    aq.sh("echo never > web/config/idle; echo suspend > web/ctl; cat web/wait").ok();
    assert!(aq.sh("echo hostname > web/exec").failed().contains("Host is down"));
}

#[test]
fn what_is_in_use_is_not_suspended() {
    let aq = Mounted::booted();
    let qemu = aq.info("vm1", "pid");
    aq.sh("echo 3s > vm1/config/idle").ok();
    assert_eq!(aq.exec("vm1", "sleep 8; hostname"), "vm1");
    let ssh = "ssh -F vm1/ssh_config vm1 'sleep 8; hostname'";
    assert_eq!(aq.sh_within(ssh, BOOT).ok(), "vm1");
    assert_eq!(aq.sh_within("exec 3<>vm1/console; sleep 8; cat vm1/status", BOOT).ok(), "ready");
    // A guest that works without a word from outside.
    aq.exec("vm1", "(timeout 15 sh -c 'while :; do :; done'; : > /root/done) > /dev/null 2>&1 &");
    wait_until_asleep(&aq, "vm1");
    assert_eq!(aq.exec("vm1", "cat /root/done && hostname"), "vm1");
    assert_ne!(aq.info("vm1", "pid"), qemu);
    // One that is paused stays so.
    aq.sh("echo pause > vm1/ctl; sleep 6; cat vm1/status").ok();
    assert_eq!(aq.read("vm1/status"), "paused");
}
