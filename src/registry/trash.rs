//! Removed VMs, kept for a day: `.trash/VM@TIME`.
//!
//! A removal is one rename; so is its undoing. What has never run is not kept.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::failure_log::FailureLog;
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::store::{file, quarantine};
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
    /// Its directory now.
    pub dir: VmDir,
    /// When it was removed.
    pub since: SystemTime,
    /// The image that its disk was made from; `None` if its definition is damaged. Read once, because
    /// listing an image's users needs it for each VM.
    pub image: Option<String>,
}

impl Removed {
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
    /// Notified when a VM comes in.
    pub(super) arrived: Notify,
}

#[derive(Debug, Default)]
struct Items {
    by_name: BTreeMap<String, Removed>,
    next_id: u64,
    /// Directories that could not be erased yet.
    leftovers: Vec<PathBuf>,
}

impl Items {
    fn add(&mut self, name: String, dir: VmDir, since: SystemTime, image: Option<String>) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_name.insert(name.clone(), Removed { id, name, dir, since, image });
    }
}

fn image_of(dir: &VmDir) -> Option<String> {
    let stored = file::read_json::<Definition>(&dir.definition());
    stored.ok().map(|stored| stored.settings.image().to_owned())
}

impl Trash {
    /// Opens the trash in a directory, made if need be. Nothing is erased yet. A directory that cannot
    /// be used is quarantined.
    pub fn open(dir: PathBuf, failures: &FailureLog) -> Self {
        let items = read(&dir).or_else(|error| {
            quarantine::quarantine(&dir, &error, failures);
            read(&dir)
        });
        let items = items.unwrap_or_else(|error| {
            let text = format!("nothing can be removed: the trash {}: {error}", dir.display());
            failures.note(&dir, &error, text);
            Items::default()
        });
        Self { dir, items: Mutex::new(items), arrived: Notify::new() }
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

    /// Takes in the VM whose directory is `from`. One that has never run, and so has no disk of use, is erased
    /// at once. If this fails, the directory is where it was.
    pub(super) fn put(&self, from: &VmDir, name: &str, now: SystemTime) -> io::Result<()> {
        // One that cannot be looked into is kept. The disk of a fork that was never loaded is of no use.
        let is_half = operation::is_open(from, &Operation::Fork).unwrap_or(false);
        if is_half || (matches!(from.disk().try_exists(), Ok(false)) && !from.data_disks().exists())
        {
            return self.discard(&from.0);
        }
        let (mut time, mut kept) = (seconds(now), String::new());
        while kept.is_empty() || self.dir.join(&kept).exists() {
            kept = format!("{name}@{time}");
            time += 1;
        }
        let at = self.dir.join(&kept);
        rename(&from.0, &at)?;
        let dir = VmDir(at);
        let image = image_of(&dir);
        self.items.lock().add(kept, dir, now, image);
        self.arrived.notify_one();
        sync(&self.dir);
        Ok(())
    }

    /// Moves a removed VM's directory to `to`.
    pub(super) fn take(&self, item: &Removed, to: &VmDir) -> io::Result<()> {
        fs::rename(&item.dir.0, &to.0)?;
        self.items.lock().by_name.remove(&item.name);
        sync(to.0.parent().unwrap_or(&self.dir));
        Ok(())
    }

    /// Erases a removed VM for good; says whether there was one of that name.
    ///
    /// # Errors
    /// What the disk answered. If it is not in the list any more, a part of it is left.
    pub(super) fn erase(&self, name: &str) -> io::Result<bool> {
        let Some(item) = self.get(name) else { return Ok(false) };
        let hidden = hide(&item.dir.0)?;
        self.items.lock().by_name.remove(name);
        fs::remove_dir_all(&hidden).map(|()| true).map_err(|e| incomplete(&e, &hidden))
    }

    /// Hides a directory and erases it. What cannot be erased now is left to [`Self::sweep`].
    fn discard(&self, dir: &Path) -> io::Result<()> {
        let hidden = hide(dir)?;
        if fs::remove_dir_all(&hidden).is_err() {
            self.items.lock().leftovers.push(hidden);
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Erases what is due, and what an earlier erasure has left. Each failure is reported once.
    pub(super) fn sweep(&self, now: SystemTime, failures: &FailureLog) {
        let leftovers = std::mem::take(&mut self.items.lock().leftovers);
        for hidden in leftovers {
            if let Err(error) = fs::remove_dir_all(&hidden) {
                failures.note(&hidden, &error, incomplete(&error, &hidden).to_string());
            }
        }
        for item in self.list().into_iter().filter(|item| item.until() <= now) {
            if let Err(error) = self.erase(&item.name) {
                failures.note(&item.dir.0, &error, format!(".trash/{}: {error}", item.name));
            }
        }
    }

    /// Returns how long nothing is due; `None`: until something comes in.
    pub(super) fn idle(&self, now: SystemTime) -> Option<Duration> {
        let items = self.items.lock();
        if !items.leftovers.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = items.by_name.values().map(Removed::until).min()?;
        Some(due.duration_since(now).unwrap_or_default())
    }
}

fn read(dir: &Path) -> io::Result<Items> {
    file::private_dir(dir)?;
    let mut items = Items::default();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match parse(&entry.file_name()) {
            Some((name, since)) => {
                let dir = VmDir(entry.path());
                let image = image_of(&dir);
                items.add(name, dir, since, image);
            }
            // An erasure that was not finished.
            None if entry.file_name().as_encoded_bytes().starts_with(b".") => {
                items.leftovers.push(entry.path());
            }
            None => {}
        }
    }
    Ok(items)
}

/// A directory that is closed to its own user cannot move to another one.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(from, fs::Permissions::from_mode(0o700))?;
            fs::rename(from, to)
        }
        done => done,
    }
}

/// Gives a directory a hidden name before it is removed: a crash in the middle leaves nothing that looks like
/// a VM.
fn hide(dir: &Path) -> io::Result<PathBuf> {
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(dir.file_name().unwrap_or_default());
    let hidden = dir.with_file_name(hidden);
    fs::rename(dir, &hidden)?;
    Ok(hidden)
}

fn incomplete(error: &io::Error, hidden: &Path) -> io::Error {
    let text =
        format!("not all of it can be erased ({error}); remove what is left: {}", hidden.display());
    io::Error::new(error.kind(), text)
}

/// Makes a rename durable. Without that, the VM may be where it was after the host has lost power.
fn sync(dir: &Path) {
    if let Err(error) = file::sync_dir(dir) {
        tracing::warn!(dir = %dir.display(), %error, "not synced");
    }
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
    use uuid::Uuid;

    use super::*;
    use crate::vm::spec::{VmSettings, VmSpec};

    fn vm(root: &Path, name: &str) -> VmDir {
        let dir = VmDir(root.join(name));
        fs::create_dir(&dir.0).unwrap();
        fs::write(dir.disk(), b"").unwrap();
        dir
    }

    fn open(root: &Path) -> Trash {
        Trash::open(root.join("trash"), &FailureLog::default())
    }

    #[test]
    fn what_is_removed_is_kept_for_a_day_and_can_be_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (trash, failures) = (open(root.path()), FailureLog::default());
        assert_eq!(trash.idle(now), None);
        let (a, b) = (vm(root.path(), "a"), vm(root.path(), "b"));
        trash.put(&a, "vm1", now).unwrap();
        trash.put(&b, "vm1", now).unwrap();
        let names: Vec<_> = trash.list().into_iter().map(|i| i.name).collect();
        assert_eq!(names, ["vm1@1000000", "vm1@1000001"]);
        trash.take(&trash.get("vm1@1000000").unwrap(), &a).unwrap();
        assert!(a.disk().exists() && trash.list().len() == 1);

        let again = open(root.path());
        again.sweep(now + KEPT / 2, &failures);
        assert_eq!(again.list().len(), 1);
        assert!(again.idle(now + KEPT / 2).unwrap() > Duration::from_secs(3600));
        again.sweep(now + KEPT * 2, &failures);
        assert!(again.list().is_empty() && failures.list().is_empty());
        assert_eq!(fs::read_dir(root.path().join("trash")).unwrap().count(), 0);
    }

    #[test]
    fn the_image_of_a_removed_vm_is_known_without_a_read_of_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let (dir, trash) = (vm(root.path(), "a"), open(root.path()));
        let settings = VmSettings::new(VmSpec::default());
        let definition = Definition::new(Uuid::new_v4(), SystemTime::now(), settings);
        file::replace_json(&dir.definition(), &definition).unwrap();
        trash.put(&dir, "vm1", SystemTime::now()).unwrap();
        for trash in [open(root.path()), trash] {
            let removed = trash.list().remove(0);
            fs::rename(removed.dir.definition(), root.path().join("elsewhere")).unwrap();
            assert_eq!(removed.image.as_deref(), Some("tiny"));
            fs::rename(root.path().join("elsewhere"), removed.dir.definition()).unwrap();
        }
    }

    #[test]
    fn what_never_ran_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let trash = open(root.path());
        let dir = VmDir(root.path().join("a"));
        fs::create_dir(&dir.0).unwrap();
        trash.put(&dir, "vm1", SystemTime::now()).unwrap();
        assert!(trash.list().is_empty() && !dir.0.exists());
    }

    #[test]
    fn a_trash_that_is_a_file_is_quarantined() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("trash"), "x").unwrap();
        let failures = FailureLog::default();
        let trash = Trash::open(root.path().join("trash"), &failures);
        assert!(failures.print().contains("trash.unusable@"));
        trash.put(&vm(root.path(), "a"), "vm1", SystemTime::now()).unwrap();
        assert_eq!(trash.list().len(), 1);
    }

    #[test]
    fn what_cannot_be_erased_is_reported_once_and_delays_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (trash, failures) = (open(root.path()), FailureLog::default());
        for name in ["a", "b"] {
            trash.put(&vm(root.path(), name), name, now).unwrap();
        }
        // A file where a directory should be cannot be removed as one.
        let a = trash.get("a@1000000").unwrap().dir.0;
        fs::remove_dir_all(&a).unwrap();
        fs::write(&a, "x").unwrap();
        trash.sweep(now + KEPT * 2, &failures);
        trash.sweep(now + KEPT * 2, &failures);
        assert!(trash.list().is_empty());
        let reported = failures.print();
        assert!(
            reported.lines().count() == 1 && reported.contains("remove what is left"),
            "{reported}"
        );
    }
}
