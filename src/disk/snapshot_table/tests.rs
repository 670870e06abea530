//! The table against what `qemu-img` reads and writes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::disk::testing::qemu_img;

/// An image of 1 MiB, alone in a directory.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new(cluster: u32, tags: &[&str]) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        let option = format!("cluster_size={cluster}");
        image.run(&["create", "-q", "-f", "qcow2", "-o", &option, "d", "1M"]);
        tags.iter().for_each(|tag| drop(image.run(&["snapshot", "-c", tag, "d"])));
        image
    }

    fn run(&self, args: &[&str]) -> String {
        qemu_img(self.dir.path(), args)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("d")
    }

    fn list(&self) -> Vec<SnapshotInfo> {
        list(&self.path()).unwrap()
    }

    fn tags(&self) -> Vec<String> {
        self.list().into_iter().map(|s| s.tag).collect()
    }

    /// What QEMU itself lists: ID, TAG, SIZE, DATE, CLOCK and, where there is one, ICOUNT.
    fn lines(&self) -> Vec<Vec<String>> {
        let text = self.run(&["snapshot", "-l", "d"]);
        text.lines().skip(2).map(|l| l.split_whitespace().map(str::to_owned).collect()).collect()
    }

    fn lock(&self) -> LockedDisk {
        LockedDisk::open(&self.path()).unwrap()
    }

    fn prepare(&self, from: &str, to: &str) -> Result<SnapshotRename, DiskError> {
        SnapshotRename::prepare(&self.lock(), from, to)
    }

    fn check(&self) {
        self.run(&["check", "-q", "d"]);
    }

    /// Gives each entry of the table extra data, as other versions of QEMU may: so many words of 8
    /// bytes.
    fn extend_entries(&self, extras: &[(usize, [u8; 24])]) {
        let disk = self.lock();
        let header = Header::read(disk.file()).unwrap();
        let mut table = SnapshotTable::read(disk.file(), &header).unwrap();
        let clusters = |t: &SnapshotTable| (t.bytes().len() as u64).div_ceil(header.cluster_size);
        let before = clusters(&table);
        for (entry, (words, bytes)) in table.entries.iter_mut().zip(extras) {
            entry.extra = bytes.to_vec();
            entry.extra.resize(words * 8, 7);
            let size = u32::try_from(entry.extra.len()).unwrap();
            entry.fixed[36..].copy_from_slice(&size.to_be_bytes());
        }
        if clusters(&table) == before {
            write(disk.file(), &table.bytes(), header.snapshot_table).unwrap();
        }
    }
}

#[test]
fn the_table_is_what_qemu_img_wrote() {
    let image = Image::new(65536, &[]);
    assert_eq!(image.list(), []);
    for tag in ["clean", "with a space", "a-rather-long-name-that-is-padded"] {
        image.run(&["snapshot", "-c", tag, "d"]);
    }
    image.run(&["snapshot", "-d", "with a space", "d"]);
    assert_eq!(image.tags(), ["clean", "a-rather-long-name-that-is-padded"]);
    assert!(image.list().iter().all(|s| s.memory == 0 && s.disk_size == 1 << 20));
    assert!(image.list()[0].created.elapsed().unwrap() < Duration::from_secs(60));
}

#[test]
fn what_is_no_image_has_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    assert_eq!(list(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    fs::write(&path, [0; 512]).unwrap();
    assert_eq!(list(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn every_length_of_the_last_name_is_read() {
    let image = Image::new(65536, &[]);
    for length in 1..=9 {
        let tag = "x".repeat(length);
        image.run(&["snapshot", "-c", &tag, "d"]);
        assert_eq!(image.tags().last().unwrap(), &tag);
    }
}

proptest! {
    #[test]
    fn no_table_makes_the_reader_panic(table in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = table.as_slice();
        while Entry::read(&mut bytes).is_ok() {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_name_changes_and_nothing_else(
        small in any::<bool>(),
        tags in proptest::collection::btree_set("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", 2..7),
        which in any::<prop::sample::Index>(),
        extras in proptest::collection::vec((2usize..7, any::<[u8; 24]>()), 0..6),
    ) {
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let (to, tags) = tags.split_last().unwrap();
        let image = Image::new(if small { 512 } else { 65536 }, tags);
        let from = which.get(tags);
        image.extend_entries(&extras);
        let (before, mut lines) = (image.list(), image.lines());
        match image.prepare(from, to) {
            Ok(rename) => {
                rename.finish(&image.lock()).unwrap();
                let at = before.iter().position(|s| s.tag == *from).unwrap();
                lines[at][1] = (*to).to_owned();
                let mut expected = before;
                expected[at].tag = (*to).to_owned();
                prop_assert_eq!(image.list(), expected);
            }
            Err(DiskError::NoRoomInTable { length }) => {
                prop_assert!(small && length == from.len() && length != to.len());
            }
            Err(other) => panic!("{other}"),
        }
        prop_assert_eq!(image.lines(), lines);
        image.check();
        // QEMU writes the table anew, and frees the clusters of the old one.
        image.run(&["snapshot", "-d", &image.tags()[0], "d"]);
        image.check();
    }
}

#[test]
fn a_crash_at_any_byte_can_be_undone() {
    let image = Image::new(65536, &["first", "second", "third"]);
    for to in ["x", "a-name-that-is-longer"] {
        let rename = image.prepare("second", to).unwrap();
        let length = rename.new.len();
        for written in (0..length).step_by(7).chain([length]) {
            let disk = image.lock();
            write(disk.file(), &rename.new[..written], rename.offset).unwrap();
            rename.undo(&disk).unwrap();
            assert_eq!(image.tags(), ["first", "second", "third"], "{written} bytes of {to}");
        }
    }
    image.check();
}

#[test]
fn a_table_that_was_changed_since_is_not_undone() {
    let image = Image::new(65536, &["a"]);
    let rename = image.prepare("a", "c").unwrap();
    image.run(&["snapshot", "-d", "a", "d"]);
    image.run(&["snapshot", "-c", "b", "d"]);
    rename.undo(&image.lock()).unwrap();
    assert_eq!(image.tags(), ["b"]);
    image.check();
}

#[test]
fn a_locked_disk_is_kept_from_qemu_img_and_from_us() {
    let image = Image::new(65536, &["a"]);
    let locked = image.lock();
    let second = LockedDisk::open(&image.path()).unwrap_err();
    assert!(matches!(second, DiskError::InUse { .. }), "{second}");
    let mut other = Command::new("qemu-img");
    let other = other.args(["snapshot", "-c", "b"]).arg(image.path()).output().unwrap();
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(said.contains("lock"), "{said}");
    drop(locked);
    image.run(&["snapshot", "-c", "b", "d"]);
}

#[test]
fn what_is_no_disk_or_has_no_such_snapshot_cannot_be_renamed() {
    let image = Image::new(65536, &["a"]);
    assert!(image.prepare("b", "c").unwrap_err().to_string().contains("not found"));
    fs::write(image.path(), [0; 4096]).unwrap();
    assert!(image.prepare("a", "b").unwrap_err().to_string().contains("not a qcow2"));
}
