//! `shares.json`: a VM's shares as they are stored, with the key that their file handles are signed with.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::value::ShareError;
use crate::nfs::{Export, Key};
use crate::store::failure_log::FailureLog;
use crate::store::{file, quarantine};
use crate::vm::backend::Mount;

const VERSION: u32 = 1;
/// For how many seconds a guest takes names and attributes to be as they were, unless it is said.
const CACHE: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    version: u32,
    /// It stays with the VM: handles that its guest has are good after a new start of the daemon.
    pub(super) key: Key,
    pub(super) shares: BTreeMap<String, Settings>,
}

/// The settings of one share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// What file handles know it by; another source has another number.
    pub(super) number: u64,
    pub(super) source: Option<String>,
    /// Where the guest has it; `None`: below /mnt, under its name.
    pub(super) target: Option<String>,
    pub(super) read_only: bool,
    pub(super) cache: u32,
    created: SystemTime,
}

impl Default for Stored {
    fn default() -> Self {
        let (half, other) = (Uuid::new_v4(), Uuid::new_v4());
        let mut key = Key::default();
        key[..16].copy_from_slice(half.as_bytes());
        key[16..].copy_from_slice(other.as_bytes());
        Self { version: VERSION, key, shares: BTreeMap::new() }
    }
}

impl Stored {
    pub(super) fn read(path: &Path, failures: &FailureLog) -> Self {
        quarantine::read_versioned(path, VERSION, |stored: &Self| stored.version, failures)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        file::replace_json(path, self)
    }

    /// Refuses a share that is where another one is.
    pub(super) fn check_target(&self, name: &str) -> Result<(), ShareError> {
        let target = |name: &str| self.shares.get(name).map(|share| share.target_of(name));
        let own = target(name);
        let is_other = |other: &&String| *other != name && target(other) == own;
        match (self.shares.keys().find(is_other), own) {
            (Some(other), Some(target)) => {
                Err(ShareError::SameTarget { target, other: other.clone() })
            }
            (Some(_) | None, _) => Ok(()),
        }
    }
}

impl Settings {
    pub(super) fn new() -> Self {
        Self {
            number: fresh_number(),
            source: None,
            target: None,
            read_only: false,
            cache: CACHE,
            created: SystemTime::now(),
        }
    }

    pub(super) fn created(&self) -> SystemTime {
        self.created
    }

    pub(super) fn target_of(&self, name: &str) -> String {
        self.target.clone().unwrap_or_else(|| format!("/mnt/{name}"))
    }

    pub(super) fn mount(&self, name: &str) -> Mount {
        Mount {
            name: name.to_owned(),
            path: Export::path(self.number),
            target: self.target_of(name),
            read_only: self.read_only,
            cache: self.cache,
        }
    }
}

/// Returns a number that no share has had.
pub(super) fn fresh_number() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}
