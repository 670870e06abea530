//! Locks of names: one operation at a time on each name, and none waits for an operation on another name.
//!
//! Not here: which names are taken (`registry`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::RegistryError;

/// How long an operation waits for an earlier one of the same name.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

type Lock = Arc<tokio::sync::Mutex<()>>;

/// The names in use by operations under way.
#[derive(Debug, Default)]
pub(super) struct NameLocks(Mutex<HashMap<String, Lock>>);

/// Names on which no other operation begins until this is dropped.
#[derive(Debug)]
pub(super) struct NameGuard<'a> {
    locks: &'a NameLocks,
    held: Vec<(String, Option<OwnedMutexGuard<()>>)>,
}

impl NameLocks {
    /// Locks names; waits for each for 10 s at most.
    ///
    /// # Errors
    /// [`RegistryError::NameBusy`].
    pub(super) async fn take(&self, names: &[&str]) -> Result<NameGuard<'_>, RegistryError> {
        let mut names = names.to_vec();
        // In one order, so that two operations never wait for each other.
        names.sort_unstable();
        names.dedup();
        let mut guard = NameGuard { locks: self, held: Vec::new() };
        for name in names {
            let lock = Arc::clone(self.0.lock().entry(name.to_owned()).or_default());
            let busy = |_| RegistryError::NameBusy { name: name.to_owned() };
            let taken = timeout(TIMEOUT, lock.lock_owned()).await.map_err(busy);
            guard.held.push((name.to_owned(), taken?.into()));
        }
        Ok(guard)
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        let mut locks = self.locks.0.lock();
        for (name, held) in &mut self.held {
            drop(held.take());
            // No other operation waits for it.
            if locks.get(name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
                locks.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_name_waits_for_no_other_and_is_waited_for_with_a_bound() {
        let locks = NameLocks::default();
        let held = locks.take(&["b", "a", "b"]).await.unwrap();
        drop(locks.take(&["c"]).await.unwrap());
        let error = locks.take(&["c", "a"]).await.unwrap_err();
        assert!(matches!(&error, RegistryError::NameBusy { name } if name == "a"), "{error}");
        drop(held);
        drop(locks.take(&["a", "c"]).await.unwrap());
        assert!(locks.0.lock().is_empty());
    }
}
