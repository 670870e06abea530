//! What needs no guest: reading a value, making and removing a VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::Mounted;
use crate::hello;
use crate::measure::{Row, timed};

/// `cat status` against a file of the smallest filesystem: by a new process, and by system calls.
pub(crate) fn status() -> Vec<Row> {
    let aq = Mounted::new();
    aq.sh("mkdir vm1").ok();
    let dir = aq.scratch().join("hello");
    fs::create_dir(&dir).expect("a directory");
    let session = hello::mount(&dir);
    let (ours, reference) = (aq.path("vm1/status"), dir.join(hello::NAME));
    let rows = vec![
        Row::ratio("cat status / cat on an empty fuser fs", cat(&ours), cat(&reference), 1.3),
        Row::ratio("open, read, close of status / of the same", read(&ours), read(&reference), 1.3),
    ];
    drop(session);
    rows
}

fn cat(file: &Path) -> Duration {
    timed(300, || {
        let cat = Command::new("cat").arg(file).stdout(Stdio::null()).status();
        assert!(cat.expect("cat runs").success());
    })
}

fn read(file: &Path) -> Duration {
    timed(5000, || drop(fs::read(file).expect("the file")))
}

/// `mkdir` and `rmdir` of a VM against what the store itself needs to make a file durable.
pub(crate) fn names() -> Vec<Row> {
    let aq = Mounted::new();
    let sync = aq.store().root().join("durable");
    let store = timed(50, || {
        aqfs::store::file::replace(&sync, b"{}").expect("a durable file");
    });
    fs::remove_file(sync).expect("our own file");
    let (vm, mut made, mut removed) = (aq.path("vm1"), Vec::new(), Vec::new());
    for _ in 0..50 {
        made.push(timed(1, || fs::create_dir(&vm).expect("mkdir")));
        removed.push(timed(1, || fs::remove_dir(&vm).expect("rmdir")));
    }
    let promise = Duration::from_millis(1);
    let median = crate::common::median;
    vec![
        Row::excess("mkdir of a VM / the store's own fsync", median(made), store, promise),
        Row::excess("rmdir of a VM / the store's own fsync", median(removed), store, promise),
    ]
}

/// `ls -l` of a mount with 1,000 VMs against the smallest filesystem with 1,000 directories, for
/// each VM; the first time after a pause in which the kernel has forgotten, and at once again.
pub(crate) fn listing() -> Vec<Row> {
    let (few, many) = (list(100), list(hello::DIRECTORIES));
    let promise = Duration::from_micros(60);
    vec![
        Row::bound("ls -l of 1,000 VMs: the first time, each", many.first, promise),
        Row::ratio("the same / 1,000 directories of an empty fs", many.first, many.reference, 2.0),
        Row::ratio("the same / with 100 VMs: linear", many.first, few.first, 1.5),
        Row::bound("ls -l of 1,000 VMs: again, from the kernel's cache", many.again, promise),
        Row::ratio(
            "ls of 1,000 VMs / of the empty fs, each",
            many.names,
            many.reference_names,
            1.5,
        ),
    ]
}

/// The same where some of the VMs run: what `.metrics` and `.host` say of them is in the listing with `-A`.
pub(crate) fn listing_running() -> Vec<Row> {
    let aq = Mounted::with_image();
    for n in 0..VMS {
        fs::create_dir(aq.path(&format!("vm{n:04}"))).expect("mkdir");
    }
    let none = cold(&aq.dir());
    let running: Vec<_> = (0..RUNNING).map(|n| format!("vm{n:04}")).collect();
    let all = running.join(" ");
    let script = format!(
        "for v in {all}; do echo 128M > $v/config/memory; echo start > $v/ctl; done
         for v in {all}; do cat $v/ready; done"
    );
    aq.sh_within(&script, Duration::from_secs(300)).ok();
    let some = cold(&aq.dir());
    let kill = format!("for v in {all}; do echo kill > $v/ctl; done; cat vm*/wait");
    aq.sh_within(&kill, Duration::from_secs(60)).ok();
    let promise = Duration::from_micros(60);
    vec![
        Row::bound("ls -lA of 1,000 VMs, 16 running: first, each", some, promise),
        Row::ratio("the same / with none running", some, none, 1.5),
    ]
}

const VMS: usize = 1000;
const RUNNING: usize = 16;

/// Returns the time of `ls -lA` for each VM after a pause in which the kernel has forgotten them.
fn cold(dir: &PathBuf) -> Duration {
    let once = |_| {
        std::thread::sleep(Duration::from_millis(1200));
        ls(dir, "-lA", VMS)
    };
    crate::common::median((0..5).map(once).collect())
}

/// Times for each directory of a listing.
struct Listing {
    first: Duration,
    again: Duration,
    reference: Duration,
    names: Duration,
    reference_names: Duration,
}

fn list(vms: usize) -> Listing {
    let aq = Mounted::new();
    for n in 0..vms {
        fs::create_dir(aq.path(&format!("vm{n:04}"))).expect("mkdir");
    }
    let dir = aq.scratch().join("hello");
    fs::create_dir(&dir).expect("a directory");
    let session = hello::mount(&dir);
    let (mut first, mut again, mut reference) = (Vec::new(), Vec::new(), Vec::new());
    let (ours, theirs) = (aq.dir(), dir.join(hello::MANY));
    for _ in 0..5 {
        // Names and attributes of directories are kept for a second.
        std::thread::sleep(Duration::from_millis(1200));
        first.push(ls(&ours, "-l", vms));
        again.push(ls(&ours, "-l", vms));
        reference.push(ls(&theirs, "-l", hello::DIRECTORIES));
    }
    let names = (0..5).map(|_| ls(&ours, "-f", vms)).collect();
    let reference_names = (0..5).map(|_| ls(&theirs, "-f", hello::DIRECTORIES)).collect();
    drop(session);
    let median = crate::common::median;
    Listing {
        first: median(first),
        again: median(again),
        reference: median(reference),
        names: median(names),
        reference_names: median(reference_names),
    }
}

/// Returns the time of one `ls` for each of what it lists.
fn ls(dir: &PathBuf, option: &str, count: usize) -> Duration {
    let all = timed(1, || {
        let ls = Command::new("ls").arg(option).arg(dir).stdout(Stdio::null()).status();
        assert!(ls.expect("ls runs").success());
    });
    all / u32::try_from(count).expect("a small number")
}
