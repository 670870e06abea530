//! Disks from elsewhere and to elsewhere: an empty one that is installed from a disc, one in another
//! program's format, and export.

use std::fs;
use std::path::Path;

use crate::common::{BOOT, Mounted, eventually};

/// A boot sector that writes `said` to the serial line and then runs `then`: instructions for a 16-bit
/// processor, at 0x7c00.
fn boot_sector(then: &[u8], said: &str) -> Vec<u8> {
    // ds = es = 0; si = what is said, at 0x7c00 and this many bytes.
    let at = u8::try_from(0x14 + then.len()).expect("a short program");
    let print = [
        &[0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0xbe, at, 0x7c][..],
        // lodsb; out 0x3f8, al; until it is 0.
        &[0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5],
    ];
    let mut sector = [&print.concat(), then, said.as_bytes()].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// cli; hlt, for ever.
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// Writes the sector behind this one to the first of the first disk, and has the keyboard's controller
/// reset the machine.
const INSTALL: &[u8] = &[
    0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7e, 0xb9, 0x01, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13, 0xb0, 0xfe,
    0xe6, 0x64, 0xf4, 0xeb, 0xfd,
];

fn installed() -> Vec<u8> {
    boot_sector(HALT, "from the disk\r\n")
}

/// A CD-ROM that a BIOS starts (El Torito) and that installs the disk.
fn installer() -> Vec<u8> {
    const SECTOR: usize = 2048;
    let mut iso = vec![0; 32 * SECTOR];
    let mut put = |at: usize, bytes: &[u8]| iso[at..at + bytes.len()].copy_from_slice(bytes);
    put(16 * SECTOR, b"\x01CD001\x01");
    put(17 * SECTOR, b"\x00CD001\x01EL TORITO SPECIFICATION");
    put(17 * SECTOR + 0x47, &19_u32.to_le_bytes());
    put(18 * SECTOR, b"\xffCD001\x01");
    // The catalogue: its check sum, and one entry of two sectors of 512 bytes.
    put(19 * SECTOR, &[1]);
    put(19 * SECTOR + 0x1c, &[0xaa, 0x55, 0x55, 0xaa]);
    put(19 * SECTOR + 0x20, &[0x88, 0, 0, 0, 0, 0, 2, 0, 20, 0, 0, 0]);
    put(20 * SECTOR, &boot_sector(INSTALL, "from the disc\r\n"));
    put(20 * SECTOR + 512, &installed());
    iso
}

#[track_caller]
fn says(aq: &Mounted, vm: &str, words: &str) {
    eventually(&format!("{vm} says {words:?}"), BOOT, || {
        aq.read(&format!("{vm}/console.log")).contains(words)
    });
}

fn backing_of(aq: &Mounted, file: &Path) -> String {
    let info = format!("qemu-img info --output=json '{}'", file.display());
    aq.sh(&format!("{info} | grep -c backing-filename; true")).ok()
}

#[test]
fn an_empty_disk_is_installed_from_a_disc_and_boots_afterwards() {
    let aq = Mounted::new();
    fs::write(aq.scratch().join("install.iso"), installer()).expect("a disc");
    aq.sh("mkdir .images/empty vm1; echo builtin:blank > .images/empty/source").ok();
    aq.sh("cat .images/empty/wait; echo empty > vm1/config/image; echo 32M > vm1/config/disk").ok();
    aq.sh("echo $SCRATCH/install.iso > vm1/config/cdrom; echo start > vm1/ctl").ok();
    says(&aq, "vm1", "from the disc");
    says(&aq, "vm1", "from the disk");
    // Of an image with that disk, without the disc.
    aq.sh("echo kill > vm1/ctl; cat vm1/wait; mkdir .images/done vm2").ok();
    aq.sh("echo none > vm1/config/cdrom; echo vm1 > .images/done/source; cat .images/done/wait")
        .ok();
    aq.sh("echo done > vm2/config/image; echo start > vm2/ctl").ok();
    says(&aq, "vm2", "from the disk");
    aq.sh("echo kill > vm2/ctl; cat vm2/wait").ok();
}

#[test]
fn a_disk_of_another_program_boots_and_goes_out_again() {
    let aq = Mounted::new();
    let mut disk = installed();
    disk.resize(2 << 20, 0);
    fs::write(aq.scratch().join("x.raw"), &disk).expect("a disk");
    let script = "cd $SCRATCH; qemu-img convert -f raw -O vmdk x.raw x.vmdk && gzip x.vmdk
        cd $AQ_MOUNT; mkdir .images/x vm1; echo $SCRATCH/x.vmdk.gz > .images/x/source
        cat .images/x/wait; qemu-img compare -f raw $SCRATCH/x.raw .images/x/disk";
    assert_eq!(aq.sh(script).ok(), "ready\nImages are identical.");
    aq.sh("echo x > vm1/config/image; echo 32M > vm1/config/disk; echo start > vm1/ctl").ok();
    says(&aq, "vm1", "from the disk");
    aq.sh("echo kill > vm1/ctl; cat vm1/wait; mkdir vm1/snapshots/a").ok();
    let script = "aq export x x.qcow2; aq export vm1 vm.qcow2; aq export vm1@a a.raw --format raw
        aq export x x.vhdx --format vhdx; qemu-img compare -q -f raw x.raw -F vhdx x.vhdx && echo same
        qemu-img check -q vm.qcow2 && cmp -n 2097152 a.raw x.raw && stat -c %s a.raw; ls -A | grep '^\\.'
        ls $AQ_MOUNT/.images";
    let said = aq.cli(script);
    assert_eq!(said.stdout, "same\n33554432\ntiny\nx\n", "{said:?}");
    for name in ["x.qcow2", "vm.qcow2"] {
        assert_eq!(backing_of(&aq, &aq.scratch().join(name)), "0", "{name}");
    }
    let said = aq.cli("aq export nosuch x; aq export tiny x; aq export x .; aq export x /proc/x");
    for words in ["'nosuch' does not exist", "image 'tiny': is absent", "is a directory", "/proc"] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
}

#[test]
fn a_disk_that_is_not_what_its_name_says_is_refused_at_once() {
    let aq = Mounted::new();
    fs::write(aq.scratch().join("x.raw"), installed()).expect("a disk");
    let script = "cd $SCRATCH; cp x.raw x.qcow2; gzip -k x.raw; cp x.raw.gz y.raw; cp x.raw x.box
        qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 1M; mkdir $AQ_MOUNT/.images/x";
    aq.sh(script).ok();
    for (name, words) in [
        ("x.qcow2", "is no qcow2 file"),
        ("y.raw", "have that end in .gz"),
        ("flat.vmdk", "in other files"),
    ] {
        let said = aq.sh(&format!("echo $SCRATCH/{name} > .images/x/source")).failed();
        assert!(said.contains("Invalid argument"), "{name}: {said}");
        assert!(aq.read(".error").contains(words), "{name}: {}", aq.read(".error"));
    }
    let said =
        aq.sh("echo $SCRATCH/x.box > .images/x/source; cat .images/x/wait .images/x/status").ok();
    assert!(said.contains("failed: image x: ") && said.contains("x.box"), "{said}");
}
