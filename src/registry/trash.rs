//! Removed VMs, kept for a day: `.trash/VM@TIME`.
//!
//! A removal is one rename; so is its undoing. What has never run is not kept.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::definition::Definition;

/// How long a removed VM is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A removed VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its number, never given twice.
    pub id: u64,
    /// `vm1@1795182212`
    pub name: String,
    /// Where it lies now.
    pub dir: VmDir,
    /// When it was removed.
    pub since: SystemTime,
}

impl Removed {
    /// Returns the image that its disk was made from; `None` if its definition is damaged.
    pub fn image(&self) -> Option<String> {
        let stored = file::read_json::<Definition>(&self.dir.definition());
        stored.ok().map(|stored| stored.settings.image().to_owned())
    }

    /// Returns when it will be erased.
    pub fn until(&self) -> SystemTime {
        self.since + KEPT
    }
}

/// The removed VMs of a store.
#[derive(Debug)]
pub struct Trash {
    dir: PathBuf,
    items: Mutex<Items>,
}

#[derive(Debug, Default)]
struct Items {
    by_name: BTreeMap<String, Removed>,
    next_id: u64,
}

impl Items {
    fn add(&mut self, name: String, dir: PathBuf, since: SystemTime) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_name.insert(name.clone(), Removed { id, name, dir: VmDir(dir), since });
    }
}

impl Trash {
    /// Opens the trash in a directory, made if need be, and erases what is due.
    ///
    /// # Errors
    /// What the disk answered.
    pub fn open(dir: PathBuf, now: SystemTime) -> io::Result<Self> {
        file::private_dir(&dir)?;
        let mut items = Items::default();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match parse(&entry.file_name()) {
                Some((name, since)) => items.add(name, entry.path(), since),
                // An erasure that was not finished.
                None if entry.file_name().as_encoded_bytes().starts_with(b".") => {
                    fs::remove_dir_all(entry.path())?;
                }
                None => {}
            }
        }
        let trash = Self { dir, items: Mutex::new(items) };
        trash.expire(now)?;
        Ok(trash)
    }

    /// Lists what is in it, by name.
    pub fn list(&self) -> Vec<Removed> {
        self.items.lock().by_name.values().cloned().collect()
    }

    /// Finds a removed VM by its name here.
    pub fn get(&self, name: &str) -> Option<Removed> {
        self.items.lock().by_name.get(name).cloned()
    }

    /// Finds a removed VM by its number.
    pub fn by_id(&self, id: u64) -> Option<Removed> {
        self.items.lock().by_name.values().find(|item| item.id == id).cloned()
    }

    /// Takes in the VM that lies at `from`, and erases what is due. One that has never run, and so
    /// has no disk, is erased at once.
    pub(super) fn put(&self, from: &VmDir, name: &str, now: SystemTime) -> io::Result<()> {
        if !from.disk().exists() {
            return erase(&from.0);
        }
        let (mut time, mut kept) = (seconds(now), String::new());
        while kept.is_empty() || self.dir.join(&kept).exists() {
            kept = format!("{name}@{time}");
            time += 1;
        }
        let at = self.dir.join(&kept);
        fs::rename(&from.0, &at)?;
        file::sync_dir(&self.dir)?;
        self.items.lock().add(kept, at, now);
        self.expire(now)
    }

    /// Gives a removed VM back: it then lies at `to`.
    pub(super) fn take(&self, item: &Removed, to: &VmDir) -> io::Result<()> {
        fs::rename(&item.dir.0, &to.0)?;
        self.items.lock().by_name.remove(&item.name);
        file::sync_dir(to.0.parent().unwrap_or(&self.dir))
    }

    /// Erases a removed VM for good; says whether there was one of that name.
    pub(super) fn erase(&self, name: &str) -> io::Result<bool> {
        let Some(item) = self.get(name) else { return Ok(false) };
        erase(&item.dir.0)?;
        self.items.lock().by_name.remove(name);
        Ok(true)
    }

    fn expire(&self, now: SystemTime) -> io::Result<()> {
        let due = self.list().into_iter().filter(|item| item.until() <= now);
        due.map(|item| self.erase(&item.name)).try_for_each(|done| done.map(drop))
    }
}

/// Renames before it removes: a crash in the middle leaves nothing that looks like a VM.
fn erase(dir: &Path) -> io::Result<()> {
    let mut doomed = std::ffi::OsString::from(".");
    doomed.push(dir.file_name().unwrap_or_default());
    let doomed = dir.with_file_name(doomed);
    fs::rename(dir, &doomed)?;
    fs::remove_dir_all(doomed)
}

fn parse(name: &std::ffi::OsStr) -> Option<(String, SystemTime)> {
    let name = name.to_str()?;
    let time = name.rsplit_once('@')?.1.parse().ok()?;
    let hidden = name.starts_with('.');
    (!hidden).then(|| (name.to_owned(), UNIX_EPOCH + Duration::from_secs(time)))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(root: &Path, name: &str) -> VmDir {
        let dir = VmDir(root.join(name));
        fs::create_dir(&dir.0).unwrap();
        fs::write(dir.disk(), b"").unwrap();
        dir
    }

    #[test]
    fn what_is_removed_is_kept_for_a_day_and_can_be_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let trash = Trash::open(root.path().join("trash"), now).unwrap();
        let (a, b) = (vm(root.path(), "a"), vm(root.path(), "b"));
        trash.put(&a, "vm1", now).unwrap();
        trash.put(&b, "vm1", now).unwrap();
        let names: Vec<_> = trash.list().into_iter().map(|i| i.name).collect();
        assert_eq!(names, ["vm1@1000000", "vm1@1000001"]);
        trash.take(&trash.get("vm1@1000000").unwrap(), &a).unwrap();
        assert!(a.disk().exists() && trash.list().len() == 1);

        let again = Trash::open(root.path().join("trash"), now + KEPT / 2).unwrap();
        assert_eq!(again.list().len(), 1);
        let later = Trash::open(root.path().join("trash"), now + KEPT * 2).unwrap();
        assert!(later.list().is_empty());
        assert_eq!(fs::read_dir(root.path().join("trash")).unwrap().count(), 0);
    }

    #[test]
    fn what_never_ran_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let trash = Trash::open(root.path().join("trash"), SystemTime::now()).unwrap();
        let dir = VmDir(root.path().join("a"));
        fs::create_dir(&dir.0).unwrap();
        trash.put(&dir, "vm1", SystemTime::now()).unwrap();
        assert!(trash.list().is_empty() && !dir.0.exists());
    }
}
