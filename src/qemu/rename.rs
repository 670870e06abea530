//! Another name for a snapshot, which `qemu-img` cannot give: the disk's table of snapshots is
//! rewritten where it is, in the clusters that it has.
//!
//! A rollback journal beside the disk holds what was there before. It is on disk before the table
//! changes and gone when the new one is; so a crash at any moment leaves the old name or the new
//! one. Nobody else writes the image meanwhile: it is locked as QEMU locks it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::qcow2::{Header, Table, bytes_at, open};
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::BackendError;

/// Bytes of a disk that are being replaced by others, as many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    /// Where they are.
    offset: u64,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Journal {
    /// Puts the new bytes in place, for good.
    fn apply(&self, disk: &File) -> io::Result<()> {
        disk.write_all_at(&self.new, self.offset)?;
        disk.sync_all()
    }

    /// Puts the old ones back.
    fn undo(&self, disk: &File) -> io::Result<()> {
        disk.write_all_at(&self.old, self.offset)?;
        disk.sync_all()
    }

    /// Says whether the disk holds the old bytes, the new ones, or a mixture: if not, somebody else
    /// has written there since, and the journal is worth nothing.
    fn is_current(&self, disk: &File) -> io::Result<bool> {
        let there = bytes_at(disk, self.offset, self.new.len())?;
        let mut bytes = self.old.iter().zip(&self.new).zip(&there);
        let is_mixture = bytes.all(|((old, new), now)| now == old || now == new);
        Ok(is_mixture && Header::read(disk)?.offset == self.offset)
    }
}

/// Does what [`rename`] does off the runtime's own threads.
///
/// # Errors
/// As [`rename`].
pub(super) async fn off_thread(dir: VmDir, from: &str, to: &str) -> Result<(), BackendError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let done = tokio::task::spawn_blocking(move || rename(&dir, &from, &to)).await;
    done.unwrap_or_else(|e| Err(BackendError::io("rename a snapshot", &io::Error::other(e))))
}

/// Gives the snapshot `from` the name `to`, and leaves everything else of it as it is.
///
/// # Errors
/// `NoRoomInTable`; `Io` with `EBUSY` while another program uses the disk, or with what reading and
/// writing answer. The snapshot has its old name then.
fn rename(dir: &VmDir, from: &str, to: &str) -> Result<(), BackendError> {
    let failed = |e: io::Error| BackendError::io(format!("rename the snapshot {from}"), &e);
    let disk = open(&dir.disk())?;
    roll_back(dir, &disk).map_err(failed)?;
    let header = Header::read(&disk).map_err(failed)?;
    let mut table = Table::read(&disk, &header).map_err(failed)?;
    if header.read_only {
        return Err(failed(io::Error::other("the disk is damaged, `qemu-img check` says more")));
    }
    let old = table.bytes().len();
    table.rename(from, to).map_err(failed)?;
    let new = table.bytes();
    let clusters = |bytes: usize| (bytes as u64).div_ceil(header.cluster);
    if clusters(old) != clusters(new.len()) {
        return Err(BackendError::NoRoomInTable { length: from.len() });
    }
    replace(dir, &disk, header.offset, &new, old).map_err(failed)
}

/// Replaces the `old` bytes of the table by `new` ones.
fn replace(dir: &VmDir, disk: &File, offset: u64, new: &[u8], old: usize) -> io::Result<()> {
    let length = old.max(new.len());
    let mut new = new.to_vec();
    new.resize(length, 0);
    let journal = Journal { offset, old: bytes_at(disk, offset, length)?, new };
    file::replace_json(&dir.snapshot_journal(), &journal)?;
    let done = journal.apply(disk).and_then(|()| forget(dir));
    if done.is_err() {
        // What cannot be put back now is put back from the journal later.
        drop(journal.undo(disk).and_then(|()| forget(dir)));
    }
    done
}

/// Finishes what a crash has interrupted: the snapshot has its old name again.
///
/// # Errors
/// As [`rename`]; the journal stays.
pub(super) fn recover(dir: &VmDir) -> Result<(), BackendError> {
    if !dir.snapshot_journal().exists() {
        return Ok(());
    }
    let disk = open(&dir.disk())?;
    roll_back(dir, &disk).map_err(|e| BackendError::io("a snapshot's half written name", &e))
}

fn roll_back(dir: &VmDir, disk: &File) -> io::Result<()> {
    let journal: Journal = match file::read_json(&dir.snapshot_journal()) {
        Ok(journal) => journal,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // It appears whole, or not at all.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return forget(dir),
        Err(e) => return Err(e),
    };
    if journal.is_current(disk)? {
        journal.undo(disk)?;
    }
    forget(dir)
}

fn forget(dir: &VmDir) -> io::Result<()> {
    fs::remove_file(dir.snapshot_journal())?;
    file::sync_dir(&dir.0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::qemu::qcow2;
    use crate::vm::backend::SnapshotInfo;

    struct Disk {
        _keep: tempfile::TempDir,
        dir: VmDir,
    }

    impl Disk {
        fn new(cluster: u32, tags: &[&str]) -> Self {
            let keep = tempfile::tempdir().unwrap();
            let dir = VmDir(keep.path().to_owned());
            let disk = Self { _keep: keep, dir };
            let option = format!("cluster_size={cluster}");
            disk.img(&["create", "-q", "-f", "qcow2", "-o", &option, "disk.qcow2", "1M"]);
            tags.iter().for_each(|tag| drop(disk.img(&["snapshot", "-c", tag, "disk.qcow2"])));
            disk
        }

        fn img(&self, args: &[&str]) -> String {
            let done =
                Command::new("qemu-img").args(args).current_dir(&self.dir.0).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap()
        }

        fn list(&self) -> Vec<SnapshotInfo> {
            qcow2::snapshots(&self.dir.disk()).unwrap()
        }

        fn tags(&self) -> Vec<String> {
            self.list().into_iter().map(|s| s.tag).collect()
        }

        /// What QEMU itself lists: ID, TAG, SIZE, DATE, CLOCK and, where there is one, ICOUNT.
        fn lines(&self) -> Vec<Vec<String>> {
            let text = self.img(&["snapshot", "-l", "disk.qcow2"]);
            text.lines()
                .skip(2)
                .map(|l| l.split_whitespace().map(str::to_owned).collect())
                .collect()
        }

        fn file(&self) -> File {
            File::options().read(true).write(true).open(self.dir.disk()).unwrap()
        }

        fn offset(&self) -> u64 {
            Header::read(&self.file()).unwrap().offset
        }

        fn is_sound(&self) {
            self.img(&["check", "-q", "disk.qcow2"]);
            assert_eq!(fs::read_dir(&self.dir.0).unwrap().count(), 1);
        }
    }

    /// Gives each entry of the table what QEMU versions of now and later may write there.
    fn adorn(disk: &Disk, adornments: &[(usize, [u8; 24])]) {
        let (file, header) = (disk.file(), Header::read(&disk.file()).unwrap());
        let mut table = Table::read(&file, &header).unwrap();
        let clusters = |table: &Table| (table.bytes().len() as u64).div_ceil(header.cluster);
        let before = clusters(&table);
        table.adorn(adornments);
        if clusters(&table) != before {
            return;
        }
        file.write_all_at(&table.bytes(), header.offset).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_name_changes_and_nothing_else(
            small in any::<bool>(),
            tags in proptest::collection::btree_set("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", 2..7),
            which in any::<prop::sample::Index>(),
            adornments in proptest::collection::vec((2usize..7, any::<[u8; 24]>()), 0..6),
        ) {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let ((to, tags), which) = (tags.split_last().unwrap(), which);
            let disk = Disk::new(if small { 512 } else { 65536 }, tags);
            let from = which.get(tags);
            adorn(&disk, &adornments);
            let (before, mut lines, bytes) = (disk.list(), disk.lines(), fs::read(disk.dir.disk()).unwrap());
            match rename(&disk.dir, from, to) {
                Ok(()) => {
                    let at = before.iter().position(|s| s.tag == *from).unwrap();
                    lines[at][1] = (*to).to_owned();
                    let mut expected = before;
                    expected[at].tag = (*to).to_owned();
                    prop_assert_eq!(disk.list(), expected);
                }
                Err(BackendError::NoRoomInTable { length }) => {
                    prop_assert!(small && length == from.len() && length != to.len());
                    prop_assert_eq!(fs::read(disk.dir.disk()).unwrap(), bytes);
                }
                Err(other) => panic!("{other}"),
            }
            prop_assert_eq!(disk.lines(), lines);
            disk.is_sound();
            // QEMU writes the table anew, and frees the clusters of the old one.
            disk.img(&["snapshot", "-d", &disk.tags()[0], "disk.qcow2"]);
            disk.is_sound();
        }
    }

    #[test]
    fn a_crash_at_any_byte_leaves_the_old_name() {
        let disk = Disk::new(65536, &["first", "second", "third"]);
        let (file, offset) = (disk.file(), disk.offset());
        let header = Header::read(&file).unwrap();
        for to in ["x", "a-name-that-is-longer"] {
            let mut table = Table::read(&file, &header).unwrap();
            let old = table.bytes().len();
            table.rename("second", to).unwrap();
            let mut new = table.bytes();
            let length = old.max(new.len());
            new.resize(length, 0);
            let journal = Journal { offset, old: bytes_at(&file, offset, length).unwrap(), new };
            for written in (0..length).step_by(7).chain([length]) {
                file::replace_json(&disk.dir.snapshot_journal(), &journal).unwrap();
                file.write_all_at(&journal.new[..written], offset).unwrap();
                recover(&disk.dir).unwrap();
                assert_eq!(disk.tags(), ["first", "second", "third"], "{written} bytes of {to}");
            }
        }
        disk.is_sound();
    }

    #[test]
    fn a_journal_that_the_disk_has_outlived_is_dropped() {
        let disk = Disk::new(65536, &["a"]);
        let old = bytes_at(&disk.file(), disk.offset(), 64).unwrap();
        let journal = Journal { offset: disk.offset(), old: old.clone(), new: old };
        file::replace_json(&disk.dir.snapshot_journal(), &journal).unwrap();
        disk.img(&["snapshot", "-d", "a", "disk.qcow2"]);
        disk.img(&["snapshot", "-c", "b", "disk.qcow2"]);
        recover(&disk.dir).unwrap();
        assert_eq!(disk.tags(), ["b"]);
        disk.is_sound();
    }

    #[test]
    fn a_disk_in_use_is_left_alone_and_ours_is_ours() {
        let disk = Disk::new(65536, &["a"]);
        let qemu = open(&disk.dir.disk()).unwrap();
        let error = rename(&disk.dir, "a", "b").unwrap_err();
        assert!(matches!(error, BackendError::Io { errno: libc::EBUSY, .. }), "{error}");
        let mut other = Command::new("qemu-img");
        let other = other.args(["snapshot", "-c", "b"]).arg(disk.dir.disk()).output().unwrap();
        let said = String::from_utf8_lossy(&other.stderr);
        assert!(said.contains("lock"), "{said}");
        drop(qemu);
        rename(&disk.dir, "a", "b").unwrap();
        assert_eq!(disk.tags(), ["b"]);
    }

    #[test]
    fn what_is_no_disk_or_has_no_such_snapshot_is_left_as_it_is() {
        let disk = Disk::new(65536, &["a"]);
        let errno = |e: BackendError| e.to_string();
        assert!(errno(rename(&disk.dir, "b", "c").unwrap_err()).contains("not found"));
        fs::write(disk.dir.disk(), [0; 4096]).unwrap();
        assert!(errno(rename(&disk.dir, "a", "b").unwrap_err()).contains("not a qcow2"));
        assert_eq!(fs::read(disk.dir.disk()).unwrap(), [0; 4096]);
        assert_eq!(fs::read_dir(&disk.dir.0).unwrap().count(), 1);
    }
}
