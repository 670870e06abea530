//! How programs learn that something has happened to a guest: `events` and inotify.

use rustix::process::Signal;

use crate::common::mounted::SHORT;
use crate::common::{Mounted, eventually, proc};

#[test]
fn every_status_is_an_event_and_a_change_for_inotify() {
    let aq = Mounted::with_image();
    let said = aq.events_of(
        ".events",
        "last='status stopped'; mkdir vm1
        timeout 60 inotifywait -m -e attrib --format '%f' vm1 > $SCRATCH/seen 2> $SCRATCH/err &
        until grep -q established $SCRATCH/err; do sleep 0.02; done
        echo start > vm1/ctl; cat vm1/ready > /dev/null
        echo kill > vm1/ctl; cat vm1/wait > /dev/null
        until [ $(grep -c status $SCRATCH/seen) -ge 3 ]; do sleep 0.02; done; kill $!",
    );
    let expected = "vm1 created\n\
        vm1 status starting\n\
        vm1 status running\n\
        vm1 status ready\n\
        vm1 status stopping\n\
        vm1 status stopped";
    assert_eq!(said, expected);
}

/// A daemon that is killed while it waits for itself would keep the mount, and every process that
/// waits in it.
#[test]
fn the_daemon_has_another_process_touch_its_mount_which_ends_with_it() {
    let aq = Mounted::with_image();
    let touchers = || {
        let all = proc::of_store(aq.scratch(), "aq").into_iter();
        all.filter(|&pid| pid != aq.daemon()).collect::<Vec<_>>()
    };
    assert!(touchers().is_empty());
    aq.boot("vm1");
    let first = touchers();
    assert_eq!(first.len(), 1, "{first:?}");
    proc::kill(first[0], Signal::KILL);
    eventually("the process gone", SHORT, || !proc::alive(first[0]));
    aq.sh("echo pause > vm1/ctl; echo resume > vm1/ctl").ok();
    eventually("another one", SHORT, || touchers().len() == 1);
    aq.kill_daemon();
    eventually("none left", SHORT, || touchers().is_empty());
    aq.mount();
    aq.sh("echo kill > vm1/ctl; cat vm1/wait").ok();
}

#[test]
fn a_removed_vm_comes_back_from_the_trash_bootable() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo kept > /root/x; sync");
    let uuid = aq.info("vm1", "uuid");
    aq.sh("echo stop > vm1/ctl; cat vm1/wait; rm -r vm1; ls .trash").ok();
    aq.sh("mv .trash/vm1@* back").ok();
    aq.boot_existing("back");
    assert_eq!(aq.exec("back", "cat /root/x; hostname"), "kept\nback");
    assert_eq!(aq.info("back", "uuid"), uuid);
    aq.sh("echo kill > back/ctl; cat back/wait; rmdir back; rm -r .trash/back@*").ok();
    assert_eq!(aq.sh("ls -A .trash").ok(), "");
}
