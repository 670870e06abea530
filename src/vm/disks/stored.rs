//! `disks.json`: a VM's data disks as they are stored.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::value::DataDiskError;
use crate::store::failure_log::FailureLog;
use crate::store::{file, quarantine};
use crate::vm::backend::{DataDisk, DataFile, DiskFormat, DiskPlace, SPARE_PORTS};

const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vm) struct Stored {
    version: u32,
    /// The next disk's number.
    next: u32,
    /// Those that were removed are called `.NAME@TIME`.
    pub(super) disks: BTreeMap<String, Settings>,
}

/// The settings of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vm) struct Settings {
    pub(super) number: u32,
    /// The port that it is plugged into.
    pub(super) port: u8,
    /// The size of one of the VM's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    /// How long its file was when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) empty: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<Source>,
    /// `None`: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) serial: Option<String>,
    pub(super) created: SystemTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) removed: Option<SystemTime>,
}

/// A file or a block device of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vm) struct Source {
    pub(super) path: PathBuf,
    /// It was looked at once: what a guest writes into a raw disk must not make it another format.
    pub(super) format: DiskFormat,
    pub(super) is_device: bool,
    pub(super) read_only: bool,
    pub(super) size: u64,
}

impl Default for Stored {
    fn default() -> Self {
        Self { version: VERSION, next: 1, disks: BTreeMap::new() }
    }
}

impl Stored {
    pub(super) fn read(path: &Path, failures: &FailureLog) -> Self {
        quarantine::read_versioned(path, VERSION, |stored: &Self| stored.version, failures)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        file::replace_json(path, self)
    }

    /// Lists those that were not removed.
    pub(super) fn present(&self) -> impl Iterator<Item = (&String, &Settings)> {
        self.disks.iter().filter(|(_, settings)| settings.removed.is_none())
    }

    /// Finds one that was not removed by its number.
    pub(super) fn numbered(&self, number: u32) -> Option<(&String, &Settings)> {
        self.present().find(|(_, settings)| settings.number == number)
    }

    pub(super) fn get(&self, name: &str) -> Result<&Settings, DataDiskError> {
        self.disks.get(name).ok_or(DataDiskError::Absent)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Result<&mut Settings, DataDiskError> {
        self.disks.get_mut(name).ok_or(DataDiskError::Absent)
    }

    /// Adds one without content; `taken` are the ports that others have.
    pub(super) fn add(&mut self, name: String, taken: &[u8]) -> Result<(), DataDiskError> {
        if self.disks.contains_key(&name) {
            return Err(DataDiskError::Exists(name));
        }
        let port = self.free_port(taken, None)?;
        let number = self.next;
        self.next += 1;
        self.disks.insert(name, Settings::new(number, port));
        Ok(())
    }

    fn free_port(&self, taken: &[u8], wish: Option<u8>) -> Result<u8, DataDiskError> {
        let is_free =
            |port: &u8| !taken.contains(port) && self.present().all(|(_, disk)| disk.port != *port);
        let mut all = wish.into_iter().chain(0..SPARE_PORTS);
        all.find(is_free).ok_or(DataDiskError::Full)
    }

    /// Puts one aside. Returns its name from then on.
    pub(super) fn put_aside(
        &mut self,
        name: &str,
        now: SystemTime,
    ) -> Result<String, DataDiskError> {
        let settings = self.disks.remove(name).ok_or(DataDiskError::Absent)?;
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let names = (seconds..).map(|time| format!(".{name}@{time}"));
        let aside = { names }.find(|aside| !self.disks.contains_key(aside)).unwrap_or_default();
        self.disks.insert(aside.clone(), Settings { removed: Some(now), ..settings });
        Ok(aside)
    }

    /// Gives one another name; one that was removed is there again.
    pub(super) fn rename(
        &mut self,
        from: &str,
        to: String,
        taken: &[u8],
    ) -> Result<(), DataDiskError> {
        if self.disks.contains_key(&to) {
            return Err(DataDiskError::Exists(to));
        }
        let mut settings = self.get(from)?.clone();
        if settings.removed.take().is_some() {
            settings.port = self.free_port(taken, Some(settings.port))?;
        }
        self.disks.remove(from);
        self.disks.insert(to, settings);
        Ok(())
    }
}

impl Settings {
    fn new(number: u32, port: u8) -> Self {
        Self {
            number,
            port,
            size: None,
            empty: None,
            source: None,
            serial: None,
            created: SystemTime::now(),
            removed: None,
        }
    }

    pub(super) fn place(&self) -> DiskPlace {
        DiskPlace { number: self.number, port: self.port }
    }

    pub(super) fn is_own(&self) -> bool {
        self.size.is_some()
    }

    pub(super) fn serial_of(&self, name: &str) -> String {
        self.serial.clone().unwrap_or_else(|| name.to_owned())
    }

    /// Describes it as a machine is given it; `None` without content.
    pub(super) fn disk(&self, name: &str) -> Option<DataDisk> {
        let file = match (&self.size, self.source.clone()) {
            (Some(_), _) => DataFile::Own,
            (None, Some(Source { path, format, is_device, read_only, .. })) => {
                DataFile::Source { path, format, is_device, read_only }
            }
            (None, None) => return None,
        };
        Some(DataDisk { place: self.place(), serial: self.serial_of(name), file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_port_of_its_own_and_a_removed_one_leaves_it() {
        let mut stored = Stored::default();
        stored.add("a".into(), &[]).unwrap();
        stored.add("b".into(), &[1]).unwrap();
        let port = |stored: &Stored, name: &str| stored.disks[name].port;
        assert_eq!((port(&stored, "a"), port(&stored, "b")), (0, 2));
        stored.add("c".into(), &[3]).unwrap();
        assert_eq!(stored.add("d".into(), &[3]), Err(DataDiskError::Full));
        let aside = stored.put_aside("a", UNIX_EPOCH).unwrap();
        assert_eq!(aside, ".a@0");
        stored.add("d".into(), &[3]).unwrap();
        assert_eq!((port(&stored, "d"), stored.disks["d"].number), (0, 4));
        assert_eq!(stored.rename(&aside, "e".into(), &[3]), Err(DataDiskError::Full));
        stored.rename(&aside, "e".into(), &[]).unwrap();
        assert_eq!((port(&stored, "e"), stored.disks["e"].number), (3, 1));
        let numbers: Vec<_> = stored.present().map(|(_, disk)| disk.number).collect();
        assert_eq!(numbers, [2, 3, 4, 1]);
    }
}
