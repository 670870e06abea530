//! Data disks: what a VM has beside its own disk. What there are, what they may be, and how it goes with each;
//! `disks.json` keeps them (`doc/adr/0043-data-disks.md`).
//!
//! Not here: what users do to them (`change`), which values are accepted (`value`), the file (`stored`), the machines
//! that have them (`attach`), the guests that find them (`found`), QEMU's devices (`qemu`).

mod attach;
mod change;
mod found;
mod stored;
mod value;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::OwnedMutexGuard;

use self::stored::{Settings, Stored};
pub use self::value::{DataDiskError, Field, is_name};
use super::dropped::Remover;
use super::spec::render_size;
use super::{Backends, Vm, VmError, driver::off_thread};
use crate::store::layout::VmDir;

/// For how long a disk that was removed comes back with the VM that its remover removes.
const REMOVED_LASTS: Duration = Duration::from_secs(60);
/// What is being done, for error sentences.
const LIST: &str = "the VM's list of disks";

/// The data disks of one VM.
#[derive(Clone, Debug)]
pub struct Disks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: VmDir,
    own_dirs: Arc<[PathBuf]>,
    state: Mutex<State>,
    /// Held while they change, and while the machine's memory is saved or loaded.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct State {
    stored: Stored,
    /// How it went with each, by its number, in the machine that runs.
    outcomes: BTreeMap<u32, Result<(), String>>,
    /// Disks that were removed shortly ago.
    removed: Vec<Removed>,
    changed: SystemTime,
}

#[derive(Debug)]
struct Removed {
    name: String,
    /// What it is called now, if it has data.
    aside: Option<String>,
    settings: Settings,
    by: Remover,
    at: Instant,
}

/// A data disk as its directory shows it.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(crate) name: String,
    settings: Settings,
    outcome: Option<Result<(), String>>,
}

/// The data disks of a VM that is made.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct DisksOfCopy(Stored);

impl DisksOfCopy {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.disks.is_empty()
    }
}

impl Disks {
    /// Reads those of the VM with this directory. A file that is damaged is put aside.
    pub(super) fn open(dir: &VmDir, backends: &Backends) -> Self {
        let stored = Stored::read(&dir.disks_file(), &backends.failures);
        let changed = stored.disks.values().map(|disk| disk.created).max();
        let changed = changed.unwrap_or(SystemTime::UNIX_EPOCH);
        settle_files(dir, &stored);
        Self(Arc::new(Inner {
            dir: dir.clone(),
            own_dirs: Arc::clone(&backends.own_dirs),
            state: Mutex::new(State {
                stored,
                outcomes: BTreeMap::new(),
                removed: Vec::new(),
                changed,
            }),
            turn: Arc::default(),
        }))
    }

    /// Lists their names, with those of removed ones.
    pub fn names(&self) -> Vec<String> {
        self.0.state.lock().stored.disks.keys().cloned().collect()
    }

    /// Finds one.
    pub fn get(&self, name: &str) -> Option<Disk> {
        let state = self.0.state.lock();
        let settings = state.stored.disks.get(name)?.clone();
        let outcome = state.outcomes.get(&settings.number).cloned();
        Some(Disk { name: name.to_owned(), settings, outcome })
    }

    /// Returns when one last came, went, or changed.
    pub fn changed(&self) -> SystemTime {
        self.0.state.lock().changed
    }

    /// Lists the ports that they have.
    pub(super) fn ports(&self) -> Vec<u8> {
        self.0.state.lock().stored.present().map(|(_, disk)| disk.port).collect()
    }

    /// Lists them in a line, with their sizes.
    pub fn summary(&self) -> String {
        let all: Vec<Disk> = self.names().iter().filter_map(|name| self.get(name)).collect();
        let present = all.iter().filter(|disk| !disk.is_removed());
        let words = present.map(|disk| format!("{} {}", disk.name, disk.text(Field::Size)));
        words.map(|words| words.trim_end().to_owned()).collect::<Vec<_>>().join(", ")
    }

    /// Waits until nobody else changes them, or saves or loads the machine's memory.
    pub(super) async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.0.turn).lock_owned().await
    }

    /// Returns the list of those with these numbers, for a copy of the VM.
    pub(crate) fn of_copy(&self, numbers: &[u32]) -> DisksOfCopy {
        let mut stored = self.stored();
        let is_copied = |disk: &Settings| disk.removed.is_none() && numbers.contains(&disk.number);
        stored.disks.retain(|_, disk| is_copied(disk));
        // Something may be written to the copy's file from now on.
        stored.disks.values_mut().for_each(|disk| disk.empty = None);
        DisksOfCopy(stored)
    }

    fn stored(&self) -> Stored {
        self.0.state.lock().stored.clone()
    }

    fn settings(&self, name: &str) -> Result<Settings, DataDiskError> {
        self.0.state.lock().stored.get(name).cloned()
    }

    /// Changes the list. The caller has the turn.
    async fn change<T: Send + 'static>(
        &self,
        edit: impl FnOnce(&mut Stored) -> Result<T, DataDiskError> + Send + 'static,
    ) -> Result<T, VmError> {
        let inner = Arc::clone(&self.0);
        let write = move || {
            let mut new = inner.state.lock().stored.clone();
            let result = match edit(&mut new) {
                Ok(result) => result,
                Err(error) => return Ok(Err(error)),
            };
            new.write(&inner.dir.disks_file())?;
            settle_files(&inner.dir, &new);
            let mut state = inner.state.lock();
            (state.stored, state.changed) = (new, SystemTime::now());
            Ok(Ok(result))
        };
        Ok(off_thread(write, LIST).await??)
    }

    fn note_removed(&self, removed: Removed) {
        let mut state = self.0.state.lock();
        state.removed.retain(|removed| removed.at.elapsed() < REMOVED_LASTS);
        state.removed.push(removed);
    }

    /// The VM is removed by a process: what that has removed of its disks shortly before stays with it.
    pub(super) fn bring_back(&self, by: Remover) -> io::Result<()> {
        let mut stored = self.stored();
        let before = stored.clone();
        for removed in std::mem::take(&mut self.0.state.lock().removed) {
            let is_free = !stored.disks.contains_key(&removed.name);
            if removed.by == by && removed.at.elapsed() < REMOVED_LASTS && is_free {
                // It may have been brought back, or erased, meanwhile.
                let aside = removed.aside.map(|aside| stored.disks.remove(&aside).is_some());
                if aside != Some(false) {
                    stored.disks.insert(removed.name, removed.settings);
                }
            }
        }
        if stored != before {
            stored.write(&self.0.dir.disks_file())?;
            settle_files(&self.0.dir, &stored);
            self.0.state.lock().stored = stored;
        }
        Ok(())
    }
}

/// Gives each file the name that goes with the list, which is written first.
fn settle_files(dir: &VmDir, stored: &Stored) {
    for settings in stored.disks.values().filter(|settings| settings.is_own()) {
        let (present, removed) =
            (dir.data_disk(settings.number), dir.removed_disk(settings.number));
        let (from, to) = match settings.removed {
            None => (removed, present),
            Some(_) => (present, removed),
        };
        if from.exists()
            && let Err(error) = fs::rename(&from, &to)
        {
            tracing::warn!(from = %from.display(), %error, "keeps its name");
        }
    }
}

impl Vm {
    /// Returns its data disks.
    pub fn disks(&self) -> &Disks {
        &self.0.disks
    }
}

impl Disk {
    /// Returns a value as it is read.
    pub fn text(&self, field: Field) -> String {
        match field {
            Field::Serial => self.settings.serial_of(&self.name),
            Field::Size => self.size().map(render_size).unwrap_or_default(),
            Field::Source => {
                let source = self.settings.source.as_ref();
                source.map(|source| source.path.display().to_string()).unwrap_or_default()
            }
        }
    }

    fn size(&self) -> Option<u64> {
        self.settings.size.or(self.settings.source.as_ref().map(|source| source.size))
    }

    pub(crate) fn created(&self) -> SystemTime {
        self.settings.created
    }

    /// Says whether it was removed.
    pub fn is_removed(&self) -> bool {
        self.settings.removed.is_some()
    }

    /// Says in a line whether the machine has it, and why not.
    pub fn status(&self, is_off: bool) -> String {
        if self.is_removed() {
            return "removed: `mv` gives it a name again, `rmdir` erases it".to_owned();
        }
        let Some(size) = self.size() else {
            return "no content: `echo 10G > size` makes it, or `echo FILE > source`".to_owned();
        };
        let read_only = self.settings.source.as_ref().is_some_and(|source| source.read_only);
        match &self.outcome {
            _ if is_off => "off: the VM does not run".to_owned(),
            Some(Ok(())) if read_only => format!("attached: {}, read-only", render_size(size)),
            Some(Ok(())) => format!("attached: {}", render_size(size)),
            Some(Err(why)) => format!("failed: {why}"),
            None => "waiting: the VM starts".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
