//! UEFI: its variables are a part of the VM, wherever the disk goes.

use crate::common::Mounted;

/// The directory of the variables, and the end of the names of the test's own.
const VARIABLES: &str = "/sys/firmware/efi/efivars";
const VENDOR: &str = "a1b2c3d4-1111-2222-3333-444455556666";

/// Sets a variable that outlasts the machine. The first write has the attributes too.
fn set(aq: &Mounted, vm: &str, name: &str) {
    let attributes = "\\007\\000\\000\\000";
    aq.exec(vm, &format!("printf '{attributes}yes' > {VARIABLES}/{name}-{VENDOR}"));
    assert!(has(aq, vm).contains(name), "{name} is not set");
}

/// Lists the test's variables in a guest.
fn has(aq: &Mounted, vm: &str) -> String {
    let mount = format!("modprobe efivarfs; mount -t efivarfs none {VARIABLES} 2>/dev/null");
    aq.exec(vm, &format!("{mount}; cd {VARIABLES} && echo $(ls | sed -n 's/-{VENDOR}$//p')"))
}

/// The snapshots in the disk, and in the variables.
fn tags(aq: &Mounted, vm: &str) -> [String; 2] {
    let dir = aq.vm_dir(vm);
    [dir.disk(), dir.nvram()].map(|path| {
        let list = format!("qemu-img snapshot -U -l '{}'", path.display());
        aq.sh(&format!("echo $({list} | awk 'NR > 2 {{ print $2 }}')")).ok()
    })
}

#[test]
fn variables_follow_the_guest_through_snapshots_images_clones_and_a_new_name() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo uefi > vm1/config/firmware").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "ls -d /sys/firmware/efi"), "/sys/firmware/efi");
    assert_eq!(has(&aq, "vm1"), "");
    set(&aq, "vm1", "One");
    aq.sh("mkdir vm1/snapshots/one; cat vm1/wait").ok();
    set(&aq, "vm1", "Two");
    aq.sh("echo 'restore one' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(has(&aq, "vm1"), "One");
    // An image with memory: a clone resumes it, another boots from its disk.
    aq.sh("mkdir .images/x; echo vm1 > .images/x/source; cat .images/x/wait").ok();
    assert_eq!(tags(&aq, "vm1"), ["one", "one"]);
    aq.sh("mkdir warm cold; echo x | tee warm/config/image > cold/config/image").ok();
    assert_eq!(aq.read("cold/config/firmware"), "uefi");
    aq.boot_existing("warm");
    assert_eq!((aq.info("warm", "warm"), has(&aq, "warm")), ("yes".into(), "One".into()));
    set(&aq, "warm", "Three");
    aq.sh("echo suspend > warm/ctl; cat warm/wait; mv warm moved").ok();
    aq.boot_existing("moved");
    assert_eq!(has(&aq, "moved"), "One Three");
    aq.sh("echo '-device\nvirtio-rng-pci' > cold/config/qemu_args").ok();
    aq.boot_existing("cold");
    assert_ne!(aq.info("cold", "warm"), "yes");
    assert_eq!(has(&aq, "cold"), "One");
}

#[test]
fn snapshots_of_a_vm_that_is_off_are_in_both_files() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo uefi > vm1/config/firmware").ok();
    aq.sh("echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait").ok();
    aq.sh("mkdir vm1/snapshots/a vm1/snapshots/b; mv vm1/snapshots/b vm1/snapshots/c").ok();
    assert_eq!(tags(&aq, "vm1"), ["a c", "a c"]);
    let nvram = aq.vm_dir("vm1").nvram();
    let (write, compare) = ("qemu-io -c 'write -q -P 7 0 4k'", "qemu-io -c 'read -P 7 0 4k'");
    aq.sh(&format!("{write} '{}'", nvram.display())).ok();
    aq.sh("echo 'restore a' > vm1/ctl; cat vm1/wait").ok();
    let said = aq.sh(&format!("{compare} '{}'", nvram.display()));
    assert!(said.stdout.contains("Pattern verification failed"), "{said:?}");
    // `rm -r` and its undo: with the snapshots of both.
    aq.sh("rm -r vm1; mv .trash/vm1@* vm1").ok();
    aq.sh("rmdir vm1/snapshots/a; echo 'restore c' > vm1/ctl; cat vm1/wait").ok();
    assert_eq!(tags(&aq, "vm1"), ["c", "c"]);
    // Without UEFI it starts too, and keeps them.
    aq.sh("echo none > vm1/config/firmware; mkdir vm1/snapshots/d").ok();
    aq.sh("echo 'start paused' > vm1/ctl; echo kill > vm1/ctl; cat vm1/wait").ok();
    assert_eq!(tags(&aq, "vm1"), ["c d", "c d"]);
}
