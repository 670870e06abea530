//! What needs no guest: reading a value, making and removing a VM.

use std::fs;
use std::path::Path;
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
