//! What must hold for any bytes that come from outside: run by the fuzz targets beside this file,
//! and by `tests/rules/corpus.rs` over the committed corpus.

#![allow(dead_code, reason = "each fuzz target uses one of these")]

use aqfs::disk::qcow2::LockedDisk;
use aqfs::disk::snapshot_table::{self, SnapshotRename};
use aqfs::disk::vmstate;
use aqfs::guest::replay_sftp;
use aqfs::nfs::{Export, LONGEST_IO, Server};
use aqfs::qemu::qmp;
use aqfs::registry::fork::VmCommand;
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
            Ok(VmCommand::One(command)) => {
                assert!(VM_VERBS.iter().any(|v| v.name == command.verb()));
            }
            Ok(VmCommand::Fork(names)) => assert!(!names.is_empty()),
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

/// Replies of a guest's SFTP server: whatever it says, nothing is believed that leads elsewhere or is more than
/// was asked for, and the conversation ends.
pub(crate) fn sftp(data: &[u8]) {
    assert_eq!(replay_sftp(data), Ok(()));
}

/// Calls of a guest's kernel, each a number, a length and so many bytes, after the handle of the share if the
/// number is even: each is answered, in bounded space, and nothing outside the share changes.
pub(crate) fn nfs(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let share = dir.path().canonicalize().expect("it is there").join("share");
    std::fs::create_dir(&share).expect("a directory");
    std::fs::write(dir.path().join("secret"), "secret").expect("a file");
    std::fs::write(share.join("a"), "text").expect("a file");
    std::os::unix::fs::symlink("../secret", share.join("b")).expect("a link");
    let server = Server::new([1; 32]);
    server.add(std::sync::Arc::new(Export::new(1, share.clone(), false)));
    let mounted = server.answer(&nfs_call(100_005, 1, &[0, 0, 0, 2, b'/', b'1', 0, 0]));
    let handle = mounted.expect("a reply")[28..96].to_vec();
    let mut rest = data;
    while let Some(([number, length], more)) = rest.split_first_chunk() {
        let (bytes, more) = more.split_at(usize::from(*length).min(more.len()));
        let first = if number & 1 == 0 { &handle[..] } else { &[] };
        let call = nfs_call(100_003, u32::from(number >> 1), &[first, bytes].concat());
        let reply = server.answer(&call).expect("a reply");
        assert!(reply.len() >= 20 && reply.len() <= LONGEST_IO as usize + 4096);
        rest = more;
    }
    server.answer(data);
    assert_eq!(std::fs::read(dir.path().join("secret")).expect("the file"), b"secret");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 2);
    make_removable(&share);
}

/// A call may have taken its owner's permissions of a directory.
fn make_removable(dir: &std::path::Path) {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(dir, open).expect("it is ours");
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_removable(&entry.path());
        }
    }
}

fn nfs_call(program: u32, procedure: u32, arguments: &[u8]) -> Vec<u8> {
    let head = [7, 0, 2, program, 3, procedure, 1, 20, 0, 0, 0, 0, 0, 0, 0];
    head.iter().flat_map(|word: &u32| word.to_be_bytes()).chain(arguments.iter().copied()).collect()
}

fn is_a_sentence(text: &str) {
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}
