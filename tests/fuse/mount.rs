//! `aq mount` and `aq umount`: what they do, and the one sentence when they cannot.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::mounted::{AQ, SHORT};
use crate::common::{Mounted, Output, eventually, proc, scratch, shell};
use rustix::process::Signal;

/// Asserts that a command failed with one sentence that holds every one of `words`.
#[track_caller]
fn one_sentence(output: Output, words: &[&str]) {
    let said = output.failed();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(words.iter().all(|w| said.contains(w)), "{said} lacks one of {words:?}");
}

fn with_mount_point() -> tempfile::TempDir {
    let dir = scratch();
    std::fs::create_dir(dir.path().join("mnt")).expect("a directory");
    dir
}

/// `aq mount` in a directory of its own, to be given another environment.
fn mount_command(dir: &Path) -> Command {
    let mut command = Command::new(AQ);
    command.arg("mount").arg(dir.join("mnt")).arg("--store").arg(dir.join("store"));
    command
}

#[test]
fn a_name_that_goes_between_the_open_of_a_directory_and_its_first_read_is_not_kept() {
    let aq = Mounted::new();
    aq.sh("mkdir a b").ok();
    let open = fs::read_dir(aq.dir()).expect("the mount");
    aq.sh("rmdir a").ok();
    assert!(open.count() > 0);
    assert_eq!(aq.sh("ls").ok(), "b");
}

#[test]
fn the_version_is_printed_without_a_mount() {
    let said = shell::finish(Command::new(AQ).arg("--version"), SHORT).ok();
    assert_eq!(said, format!("aq {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_empty_mount_shows_only_our_own_names() {
    let aq = Mounted::new();
    assert_eq!(aq.sh("ls").ok(), "");
    let names = aq.sh("ls -A").ok();
    for name in [".host", ".images", ".docs", ".version"] {
        assert!(names.lines().any(|n| n == name), "{name} is not in {names}");
    }
    assert!(aq.read(".version").contains(env!("CARGO_PKG_VERSION")));
    assert!(aq.read(".host").contains("accel"));
}

#[test]
fn a_directory_that_is_missing_or_none() {
    let dir = with_mount_point();
    let nowhere = dir.path().join("nowhere");
    let mut aq = mount_command(&nowhere);
    one_sentence(shell::finish(&mut aq, SHORT), &["nowhere/mnt", "mkdir"]);
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut aq = Command::new(AQ);
    aq.arg("mount").arg(dir.path().join("file")).arg("--store").arg(dir.path().join("store"));
    one_sentence(shell::finish(&mut aq, SHORT), &["file", "directory"]);
}

#[test]
fn a_directory_that_is_mounted_already() {
    let aq = Mounted::new();
    let script = r#""$AQ" mount "$SCRATCH/mnt" --store "$SCRATCH/another""#;
    one_sentence(aq.sh(script), &["mnt", "mounted"]);
    aq.sh("mkdir still-works").ok();
}

#[test]
fn without_fusermount3_its_package_is_named() {
    if rustix::process::getuid().is_root() {
        return; // root mounts without it
    }
    let dir = with_mount_point();
    let mut aq = mount_command(dir.path());
    one_sentence(shell::finish(aq.env("PATH", dir.path()), SHORT), &["fusermount3", "fuse3"]);
}

#[test]
fn without_dev_fuse_the_remedy_is_named() {
    let namespace = ["unshare", "--user", "--map-root-user", "--mount"];
    let may = Command::new(namespace[0]).args(&namespace[1..]).arg("true").output().unwrap();
    if !may.status.success() {
        println!("NOT RUN: no user namespaces here: {}", String::from_utf8_lossy(&may.stderr));
        return;
    }
    let dir = with_mount_point();
    // Everything but /dev/null is gone from /dev.
    let script = format!(
        "cd {0} && mkdir dev && mount -t tmpfs -o mode=755 none dev && touch dev/null &&
         mount --bind /dev/null dev/null && mount --rbind dev /dev &&
         exec {AQ} mount {0}/mnt --store {0}/store",
        dir.path().display()
    );
    let mut command = Command::new(namespace[0]);
    command.args(&namespace[1..]).args(["sh", "-c", &script]);
    one_sentence(shell::finish(&mut command, SHORT), &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn umount_leaves_alone_what_is_not_ours() {
    let umount = |what: &str| shell::finish(Command::new(AQ).arg("umount").arg(what), SHORT);
    one_sentence(umount("/proc"), &["/proc"]);
    assert!(proc::is_mounted(Path::new("/proc")));
    let dir = with_mount_point();
    one_sentence(umount(dir.path().to_str().unwrap()), &["aqfs-test-", "not"]);
}

#[test]
fn the_store_is_by_default_in_the_users_data_directory() {
    let dir = with_mount_point();
    let mnt = dir.path().join("mnt");
    let mut aq = Command::new(AQ);
    aq.arg("mount").arg(&mnt).env("HOME", dir.path()).env("XDG_DATA_HOME", dir.path().join("data"));
    shell::finish(&mut aq, SHORT).ok();
    shell::run("sh", "mkdir vm1", &mnt, SHORT).ok();
    shell::finish(Command::new(AQ).arg("umount").arg(&mnt), SHORT).ok();
    let vms = dir.path().join("data/aqfs/vms");
    assert_eq!(std::fs::read_dir(vms).unwrap().count(), 1);
}

#[test]
fn in_the_foreground_it_ends_with_its_mount_on_sigterm() {
    let dir = with_mount_point();
    let mnt = dir.path().join("mnt");
    let mut command = mount_command(dir.path());
    let daemon = command.arg("--foreground").stdout(Stdio::null()).spawn().unwrap();
    eventually("mounted", SHORT, || proc::is_mounted(&mnt));
    proc::kill(daemon.id(), Signal::TERM);
    let end = shell::wait(daemon, SHORT).expect("SIGTERM ends it");
    assert!(end.success() && !proc::is_mounted(&mnt), "{end}");
}
