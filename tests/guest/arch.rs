//! A guest of another architecture than the host's, translated by QEMU.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use crate::common::{BOOT, Mounted, eventually, image};

/// Fetching packages, building the image and booting it, on a busy machine.
const BUILD: Duration = Duration::from_secs(300);
const OTHER: &str = if cfg!(target_arch = "aarch64") { "x86_64" } else { "aarch64" };

#[test]
fn a_guest_of_another_architecture_answers_and_goes_back_to_a_snapshot() {
    let aq = Mounted::new();
    // Packages that earlier runs have fetched.
    let packages = image::place().join("packages/debian");
    fs::create_dir_all(&packages).expect("the cache of tests");
    fs::create_dir_all(aq.store().cache()).expect("the store's cache");
    symlink(packages, aq.store().cache().join("debian")).expect("a link");
    aq.sh(&format!("mkdir .images/other; echo builtin:tiny-{OTHER} > .images/other/source")).ok();
    aq.sh("mkdir vm1; echo other > vm1/config/image").ok();
    assert_eq!(aq.read("vm1/config/arch"), OTHER);
    let ready = aq.sh_within("echo start > vm1/ctl; cat vm1/ready vm1/error", BUILD).ok();
    assert!(ready.starts_with("ready ") && ready.ends_with("ok"), "{ready}");
    assert_eq!(
        aq.exec("vm1", "uname -m; hostname; echo early > /root/file; sync"),
        format!("{OTHER}\nvm1")
    );
    aq.sh("mkdir vm1/snapshots/early").ok();
    eventually("the snapshot", BOOT, || aq.read("vm1/snapshots/early/status") == "ok");
    aq.exec("vm1", "echo late > /root/file; sync");
    aq.sh("echo 'restore early' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/file"), "early");
    let said = aq.sh("mkdir vm2; echo other > vm2/config/image; \
        echo kvm > vm2/config/accel; echo start > vm2/ctl; cat vm2/wait vm2/error");
    assert!(said.stdout.contains(&format!("the guest's processor is {OTHER}")), "{said:?}");
}
