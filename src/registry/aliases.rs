//! Second names of images: symbolic links that users make in `.images`.
//!
//! An alias is a name for people and scripts: it is looked up when it is used, and no VM depends
//! on it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::store::file;

/// The aliases of a store.
#[derive(Debug)]
pub struct Aliases {
    path: PathBuf,
    targets: Mutex<BTreeMap<String, String>>,
}

impl Aliases {
    /// Reads them from a file; there are none where it is not.
    ///
    /// # Errors
    /// What the disk answered, or that the file is damaged.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let targets = match file::read_json(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            read => read?,
        };
        Ok(Self { path, targets: Mutex::new(targets) })
    }

    /// Returns the image that an alias stands for.
    pub fn get(&self, alias: &str) -> Option<String> {
        self.targets.lock().get(alias).cloned()
    }

    /// Lists the aliases.
    pub fn list(&self) -> Vec<String> {
        self.targets.lock().keys().cloned().collect()
    }

    /// Makes an alias, or gives it another image.
    pub(super) fn set(&self, alias: &str, image: &str) -> io::Result<()> {
        self.change(|targets| {
            targets.insert(alias.to_owned(), image.to_owned());
        })
    }

    /// Removes an alias.
    pub(super) fn remove(&self, alias: &str) -> io::Result<()> {
        self.change(|targets| {
            targets.remove(alias);
        })
    }

    /// Removes the aliases of an image that is gone.
    pub(super) fn forget(&self, image: &str) -> io::Result<()> {
        if self.targets.lock().values().any(|target| target == image) {
            return self.change(|targets| targets.retain(|_, target| target != image));
        }
        Ok(())
    }

    /// The file is written under the lock, so that the last change is what is kept.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) -> io::Result<()> {
        let mut targets = self.targets.lock();
        let mut changed = targets.clone();
        change(&mut changed);
        file::replace_json(&self.path, &changed)?;
        *targets = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_kept_and_go_with_their_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases.json");
        let aliases = Aliases::open(path.clone()).unwrap();
        aliases.set("stable", "web-1").unwrap();
        aliases.set("next", "web-2").unwrap();
        aliases.set("stable", "web-2").unwrap();
        let again = Aliases::open(path).unwrap();
        assert_eq!(again.get("stable").as_deref(), Some("web-2"));
        again.remove("next").unwrap();
        again.forget("web-1").unwrap();
        assert_eq!(again.list(), ["stable"]);
        again.forget("web-2").unwrap();
        assert!(again.list().is_empty() && again.get("stable").is_none());
    }
}
