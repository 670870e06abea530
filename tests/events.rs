//! What tells programs that something has happened: `events`, `.error`, `.metrics`, POLLPRI and
//! inotify.
#![cfg(feature = "fuse_tests")]

mod common;

use common::Mounted;

/// Reads `.events` in the background while the script runs, then prints what it said, without times.
fn events_of(aq: &Mounted, file: &str, script: &str) -> String {
    let script = format!(
        r#"
        exec 9<{file}; timeout 90 cat <&9 > "$SCRATCH/said" & reader=$!
        {script}
        # The reader has all that there was once it has seen the last event.
        until grep -q "$last" "$SCRATCH/said"; do sleep 0.02; done
        kill $reader; wait $reader 2>/dev/null
        cut -d' ' -f2- "$SCRATCH/said""#
    );
    aq.sh(&script).ok()
}

#[test]
fn the_life_of_a_vm_is_told_to_who_listens() {
    let aq = Mounted::new();
    let said = events_of(
        &aq,
        ".events",
        "last='vm2 removed'
        mkdir vm1; echo 2 > vm1/config/cpus; echo stop > vm1/ctl; mv vm1 vm2; rmdir vm2",
    );
    let expected = "vm1 created\n\
        vm1 config cpus\n\
        vm1 error stop: already stopped\n\
        vm1 renamed vm2\n\
        vm2 removed";
    assert_eq!(said, expected);
}

#[test]
fn one_vms_file_tells_of_that_vm_alone() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 vm2").ok();
    let said = events_of(
        &aq,
        "vm1/events",
        "last='config memory'
        echo 2 > vm2/config/cpus; echo 1G > vm1/config/memory",
    );
    assert_eq!(said, "config memory");
}

#[test]
fn failures_anywhere_are_listed_with_who_and_why() {
    let aq = Mounted::new();
    let said = aq
        .sh("mkdir vm1; echo nonsense > vm1/ctl; echo 0 > vm1/config/cpus; echo x > vm1/new
        cut -d' ' -f3- .error");
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert!(lines[0].starts_with("/vm1/ctl 22 unknown verb \"nonsense\""), "{lines:?}");
    assert!(lines[1].starts_with("/vm1/config/cpus 34 cpus: 0 is out of range"), "{lines:?}");
    assert!(lines[2].starts_with("/vm1 13 files cannot be created here"), "{lines:?}");
    assert_eq!(lines.len(), 3);
}

#[test]
fn metrics_are_of_prometheus_form() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 vm2").ok();
    let text = aq.read(".metrics");
    assert!(text.contains("aqfs_vms{state=\"stopped\"} 2\n"), "{text}");
    let mut typed = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(kind == "gauge" || (kind == "counter" && name.ends_with("_total")), "{line}");
            assert!(!typed.contains(&name), "{name} twice");
            typed.push(name);
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert_eq!(typed.last(), Some(&name), "a sample outside its group: {line}");
            let value = line.rsplit(' ').next().expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_value_that_is_kept_open_tells_by_poll_that_it_has_changed() {
    let aq = Mounted::new();
    let script = r#"
import os, select
f = os.open("vm1/config/cpus", os.O_RDONLY)
p = select.poll(); p.register(f, select.POLLPRI)
print(os.read(f, 9), p.poll(0))
os.system("(sleep 0.2; echo 3 > vm1/config/cpus) &")
print(p.poll(5000) == [(f, select.POLLPRI | select.POLLERR)], os.pread(f, 9, 0), p.poll(0))
"#;
    let said = aq.sh(&format!("mkdir vm1; python3 -c '{script}'")).ok();
    assert_eq!(said, "b'1\\n' []\nTrue b'3\\n' []");
}

#[cfg(feature = "qemu_tests")]
mod with_a_guest {
    use rustix::process::Signal;

    use super::*;
    use crate::common::mounted::SHORT;
    use crate::common::{eventually, proc};

    #[test]
    fn every_status_is_an_event_and_a_change_for_inotify() {
        let aq = Mounted::with_image();
        let said = events_of(
            &aq,
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

    /// A daemon that is killed while it waits for itself would keep the mount, and who waits in it.
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
        let aq = Mounted::with_image();
        aq.boot("vm1");
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
}
