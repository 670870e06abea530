//! What a new daemon finds in a store after the old one was killed, was stopped, or is still there.
//!
//! Not here: guests that run meanwhile, which are `guest::adoption`'s.

use std::fs;

use crate::common::{BOOT, Mounted, eventually, proc};

#[test]
fn a_stale_mount_is_cleaned_up_and_the_vms_are_there_again() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 && echo 3 > vm1/config/cpus").ok();
    let uuid = aq.info("vm1", "uuid");
    aq.kill_daemon();
    eventually("the mount is stale", BOOT, || {
        fs::read_dir(aq.dir()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    aq.mount();
    assert_eq!((aq.info("vm1", "uuid"), aq.read("vm1/config/cpus")), (uuid, "3".to_owned()));
}

#[test]
fn umount_after_a_killed_daemon_takes_both_mounts_away_also_those_in_use() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1").ok();
    let files = aq.store().guest_files();
    let busy = r#"cd store/fs; exec 3<$AQ_MOUNT; kill -KILL $PID
        while kill -0 $PID 2>/dev/null; do :; done; aq umount $AQ_MOUNT && echo gone"#;
    let busy = busy.replace("$PID", &aq.daemon().to_string());
    assert_eq!(aq.cli(&busy).ok(), "gone");
    assert!(!proc::is_mounted(&files) && !proc::is_mounted(&aq.dir()));
    // One that somebody has unmounted in part is cleared away as well.
    aq.mount();
    aq.kill_daemon();
    aq.cli("fusermount3 -uz $AQ_MOUNT && aq umount $AQ_MOUNT").ok();
    assert!(!proc::is_mounted(&files));
    // Another store's is left alone.
    aq.mount();
    let other = Mounted::new();
    other.kill_daemon();
    drop(other);
    assert!(proc::is_mounted(&files) && aq.sh("ls").ok() == "vm1");
}

#[test]
fn a_second_daemon_on_a_store_is_refused_and_names_the_first() {
    let aq = Mounted::new();
    let script =
        r#"mkdir "$SCRATCH/other" && "$AQ" mount "$SCRATCH/other" --store "$SCRATCH/store""#;
    let said = aq.sh(script).failed();
    let first = format!("pid {}, mounted at {}", aq.daemon(), aq.dir().display());
    assert!(said.contains(&first) && said.lines().count() == 1, "{said}");
    aq.sh("mkdir still-works").ok();
}

#[test]
fn a_vm_with_damaged_files_is_broken_and_the_others_work() {
    let aq = Mounted::new();
    aq.sh("mkdir good bad").ok();
    let definition = aq.vm_dir("bad").definition();
    aq.sh(r#"cd /; "$AQ" umount "$SCRATCH/mnt""#).ok();
    fs::write(&definition, "{\"name\": \"bad\", ").expect("our own file");
    aq.mount();
    let listed = aq.sh("ls").ok();
    let bad = listed.lines().find(|&l| l != "good").unwrap_or_else(|| panic!("only {listed}"));
    let status = aq.read(&format!("{bad}/status"));
    assert!(status.starts_with("broken: ") && status.contains("vm.json"), "{status}");
    assert!(aq.write(&format!("{bad}/ctl"), "start").is_err());
    assert_eq!(aq.read("good/status"), "stopped");
    aq.sh("echo 2 > good/config/cpus && ls -lR > /dev/null").ok();
}
