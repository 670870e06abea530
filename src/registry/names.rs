//! Locks of names: one operation at a time on each name, and none waits for an operation on another name.
//!
//! Not here: which names are taken (`registry`).

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::{RegistryError, Result};

/// How long an operation waits for an earlier one of the same name.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

type Lock = tokio::sync::Mutex<()>;

/// The names in use by operations under way.
#[derive(Debug, Default)]
pub(super) struct NameLocks(Mutex<HashMap<String, Weak<Lock>>>);

impl NameLocks {
    /// Locks names until the guards are dropped; waits for each for 10 s at most.
    pub(super) async fn take(&self, names: &[&str]) -> Result<Vec<OwnedMutexGuard<()>>> {
        let mut names = names.to_vec();
        // In one order, so that two operations never wait for each other.
        names.sort_unstable();
        names.dedup();
        let mut guards = Vec::new();
        for name in names {
            let busy = |_| RegistryError::NameBusy(name.to_owned());
            guards.push(timeout(TIMEOUT, self.lock(name).lock_owned()).await.map_err(busy)?);
        }
        Ok(guards)
    }

    /// Returns the lock of a name, and forgets those that no operation has any more.
    fn lock(&self, name: &str) -> Arc<Lock> {
        let mut locks = self.0.lock();
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = locks.get(name).and_then(Weak::upgrade).unwrap_or_default();
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}
