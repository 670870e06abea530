//! What must hold for any bytes that come from outside: run by the fuzz targets beside this file,
//! and by `tests/rules/corpus.rs` over the committed corpus.

#![allow(dead_code, reason = "each fuzz target uses one of these")]

use aqfs::disk::qcow2::LockedDisk;
use aqfs::disk::snapshot_table::{self, SnapshotRename};
use aqfs::disk::vmstate;
use aqfs::qemu::qmp;
use aqfs::tree::verbs::{VM_VERBS, parse_lines};
use aqfs::vm::WriteMode;
use aqfs::vm::spec::{KEYS, VmSpec, is_object_name, is_vm_name};

/// One write to `ctl`: every line is a known verb or an error of one line that says which.
pub(crate) fn ctl(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines: Vec<_> = parse_lines(VM_VERBS, text).collect();
    assert!(lines.len() <= text.lines().count());
    for line in lines {
        match line {
            Ok(command) => assert!(VM_VERBS.iter().any(|v| v.name == command.verb())),
            Err(error) => is_a_sentence(&error.to_string()),
        }
    }
}

/// A write to a setting, named by the first byte: what is accepted reads back, written again it
/// changes nothing, and it survives the store.
pub(crate) fn config(data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let key = &KEYS[usize::from(*first >> 1) % KEYS.len()];
    let mode = if first & 1 == 0 { WriteMode::Replace } else { WriteMode::Append };
    let mut spec = VmSpec::default();
    if let Err(error) = key.assign(&mut spec, text, mode, &VmSpec::default()) {
        return is_a_sentence(&error.to_string());
    }
    let mut again = spec.clone();
    let canonical = (key.render)(&spec);
    key.assign(&mut again, &canonical, WriteMode::Replace, &VmSpec::default())
        .expect("what is read can be written");
    assert_eq!(again, spec, "{canonical:?}");
    let stored = serde_json::to_vec(&spec).expect("JSON");
    assert_eq!(serde_json::from_slice::<VmSpec>(&stored).expect("our own JSON"), spec);
}

/// A name: what is accepted is safe as a file's name and as a word of a command line.
pub(crate) fn names(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    if is_vm_name(name) {
        assert!(is_object_name(name) && name.len() <= 32);
    }
    if is_object_name(name) {
        assert!(name.is_ascii() && name.len() <= 64 && !name.starts_with(['.', '-']));
        assert!(!name.contains(|c: char| c == '/' || c.is_ascii_control() || c == ' '));
    }
}

/// A line from QEMU: any bytes are something, and the newline at its end does not matter.
pub(crate) fn qmp(data: &[u8]) {
    let line = qmp::parse(data);
    let with_newline = [data, b"\n"].concat();
    assert_eq!(qmp::parse(&with_newline), line);
}

/// An image, of any origin: a snapshot that can be renamed has the new name and nothing else
/// changes; undone, the image is what it was.
pub(crate) fn qcow2(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk");
    std::fs::write(&path, data).expect("an image");
    let Ok(before) = snapshot_table::list(&path) else { return };
    let disk = LockedDisk::open(&path).expect("nobody else has it open");
    // A name that is not UTF-8 is listed, and cannot be named.
    if let Some(first) = before.first().filter(|s| !s.tag.contains('\u{fffd}')) {
        vmstate::start_of(&path, &first.tag, 1024).ok();
        if let Ok(rename) = SnapshotRename::prepare(&disk, &first.tag, "renamed") {
            rename.finish(&disk).expect("the table is in the file");
            let mut expected = before.clone();
            "renamed".clone_into(&mut expected[0].tag);
            assert_eq!(snapshot_table::list(&path).expect("it is still a table"), expected);
            rename.undo(&disk).expect("what was written can be written again");
            let bytes = std::fs::read(&path).expect("the image");
            let (old, beyond) = bytes.split_at(data.len());
            assert!(old == data && beyond.iter().all(|b| *b == 0), "it is what it was");
        }
    }
    vmstate::drop_unowned(&disk).ok();
}

fn is_a_sentence(text: &str) {
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}
