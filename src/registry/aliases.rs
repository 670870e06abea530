//! Aliases of images: symbolic links that users make in `.images`.
//!
//! An alias is resolved when it is used, and no VM depends on it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::store::failure_log::FailureLog;
use crate::store::{file, quarantine};

/// The aliases of a store.
#[derive(Debug)]
pub struct Aliases {
    path: PathBuf,
    /// Held by a change while it writes the file. A look-up does not wait for it.
    writer: Mutex<()>,
    links: Mutex<Links>,
}

/// An alias, without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Its number, never given twice: a renamed alias is the same to the kernel.
    pub id: u64,
    /// The image.
    pub image: String,
}

#[derive(Clone, Debug, Default)]
struct Links {
    by_name: BTreeMap<String, Alias>,
    next_id: u64,
}

impl Links {
    fn add(&mut self, alias: String, image: String) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.by_name.insert(alias, Alias { id, image });
        id
    }
}

impl Aliases {
    /// Reads them from a file; without one there are none. A file that cannot be used is quarantined.
    pub fn open(path: PathBuf, failures: &FailureLog) -> Self {
        let stored: BTreeMap<String, String> =
            quarantine::read_json(&path, failures).unwrap_or_default();
        let mut links = Links::default();
        for (alias, image) in stored {
            links.add(alias, image);
        }
        Self { path, writer: Mutex::default(), links: Mutex::new(links) }
    }

    /// Finds an alias.
    pub fn get(&self, name: &str) -> Option<Alias> {
        self.links.lock().by_name.get(name).cloned()
    }

    /// Finds an alias by its number.
    pub fn by_id(&self, id: u64) -> Option<Alias> {
        self.links.lock().by_name.values().find(|alias| alias.id == id).cloned()
    }

    /// Lists the aliases and their names.
    pub fn list(&self) -> Vec<(String, Alias)> {
        let links = self.links.lock();
        links.by_name.iter().map(|(name, alias)| (name.clone(), alias.clone())).collect()
    }

    /// Makes an alias and returns its number.
    pub(super) fn add(&self, name: &str, image: &str) -> io::Result<u64> {
        self.change(|links| links.add(name.to_owned(), image.to_owned()))
    }

    /// Gives an alias another name, and replaces one that has it.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|links| {
            if let Some(alias) = links.by_name.remove(from) {
                links.by_name.insert(to.to_owned(), alias);
            }
        })
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|links| drop(links.by_name.remove(name)))
    }

    /// Removes the aliases of an image that is gone.
    pub(super) fn forget(&self, image: &str) -> io::Result<()> {
        if self.links.lock().by_name.values().any(|alias| alias.image == image) {
            return self.change(|links| links.by_name.retain(|_, alias| alias.image != image));
        }
        Ok(())
    }

    /// One change at a time, so that the last one is what is kept.
    fn change<T>(&self, change: impl FnOnce(&mut Links) -> T) -> io::Result<T> {
        let _only = self.writer.lock();
        let mut changed = self.links.lock().clone();
        let result = change(&mut changed);
        let stored: BTreeMap<_, _> =
            changed.by_name.iter().map(|(name, alias)| (name, &alias.image)).collect();
        file::replace_json(&self.path, &stored)?;
        *self.links.lock() = changed;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_kept_and_go_with_their_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases.json");
        let aliases = Aliases::open(path.clone(), &FailureLog::default());
        let image = |aliases: &Aliases, name: &str| aliases.get(name).map(|alias| alias.image);
        aliases.add("stable", "web-1").unwrap();
        aliases.add("next", "web-2").unwrap();
        let id = aliases.get("next").unwrap().id;
        aliases.rename("next", "stable").unwrap();
        assert_eq!(aliases.by_id(id), aliases.get("stable"));
        assert_eq!(image(&aliases, "next"), None);
        let again = Aliases::open(path, &FailureLog::default());
        assert_eq!(image(&again, "stable").as_deref(), Some("web-2"));
        again.add("old", "web-1").unwrap();
        again.remove("old").unwrap();
        again.forget("web-1").unwrap();
        assert_eq!(again.list().len(), 1);
        again.forget("web-2").unwrap();
        assert!(again.list().is_empty());
    }
}
