//! What a guest or QEMU prints without end takes a bounded part of the host's disk.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::common::{BOOT, Mounted, eventually};

/// What is kept, what may be there more, and what is printed until somebody has looked.
const BOUND: u64 = 3 << 20;

fn on_disk(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// Waits until a file is `length` bytes long and returns the most that it took on the disk.
fn most_while_growing(path: &PathBuf, length: u64) -> u64 {
    let mut most = 0;
    eventually("much is printed", 3 * BOOT, || {
        most = most.max(on_disk(path));
        std::fs::metadata(path).is_ok_and(|meta| meta.len() >= length)
    });
    most
}

/// Reads on, as `tail -f` does, to the last line.
fn follow(mut file: File) -> Vec<u8> {
    let mut seen = Vec::new();
    eventually("the last line is read", 4 * BOOT, || {
        file.read_to_end(&mut seen).expect("it is read");
        seen.ends_with(b"the-last-line\r\n")
    });
    seen
}

#[test]
fn a_guest_that_prints_without_end_and_a_reader_that_follows() {
    let aq = Mounted::booted();
    let log = aq.vm_dir("vm1").console_log();
    let follower = File::open(aq.path("vm1/console.log")).expect("it opens");
    let reading = std::thread::spawn(move || follow(follower));
    let print = "dmesg -n 1; yes 0123456789abcdef0123456789abcdef | head -c 3500000 >/dev/ttyS0; \
        echo the-last-line >/dev/ttyS0";
    aq.sh(&format!(
        "cat > vm1/exec <<'END'\n({print}) </dev/null >/dev/null 2>&1 &\nEND\ncat vm1/exec"
    ))
    .ok();
    let most = most_while_growing(&log, 3_500_000);
    eventually("the last line", BOOT, || aq.sh("tail -n1 vm1/console.log").stdout.contains("last"));
    assert!(most <= BOUND && on_disk(&log) <= BOUND, "{most} bytes on the disk");
    let shown = std::fs::read(aq.path("vm1/console.log")).expect("the scrollback");
    assert_eq!(shown.len(), 1 << 20);
    assert!(!shown.contains(&0), "what was given back is shown");
    let followed = reading.join().expect("tail's output");
    assert!(!followed.contains(&0) && followed.len() > 1 << 20, "{} bytes", followed.len());
}

#[test]
fn a_qemu_that_prints_without_end_also_what_it_printed_without_a_daemon() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; printf -- '-d\nin_asm\n' > vm1/config/qemu_args; echo start > vm1/ctl").ok();
    let log = aq.vm_dir("vm1").log();
    let most = most_while_growing(&log, 8 * BOUND);
    assert!(most <= 4 * BOUND, "{most} bytes on the disk");
    aq.kill_daemon();
    let length = std::fs::metadata(&log).expect("the log").len();
    most_while_growing(&log, length + (4 << 20));
    aq.mount();
    eventually("bounded again", BOOT, || on_disk(&log) <= 4 * BOUND);
    aq.sh("echo kill > vm1/ctl; cat vm1/wait").ok();
    assert!(aq.sh("tail -c 1000 vm1/log").ok().len() > 100);
}
