//! What a new VM's settings start from: built-in values, changed by what is stored.
//!
//! Not here: what a setting means (`spec`), and how it looks as a file (`tree`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

use super::spec::{Key, VmSpec};
use super::{VmError, WriteMode, driver};
use crate::store::failure_log::FailureLog;
use crate::store::{file, quarantine};

/// The settings that a new VM starts from, and that `default` in a VM's `config/` means.
#[derive(Debug)]
pub struct Defaults {
    path: PathBuf,
    state: RwLock<Current>,
    /// One writer at a time, over the write to disk: each starts from what the last has stored.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Current {
    stored: Arc<VmSpec>,
    /// The image that this mount is to use instead.
    image: Option<String>,
    changed: SystemTime,
}

impl Defaults {
    /// Reads the stored defaults; without such a file they are the built-in ones. `image` stands
    /// in for the stored default image and is not stored. A file that cannot be used is put aside.
    pub fn open(path: PathBuf, image: Option<String>, failures: &FailureLog) -> Self {
        let stored = quarantine::read_json(&path, failures).unwrap_or_default();
        let modified = std::fs::metadata(&path).and_then(|m| m.modified());
        let changed = modified.unwrap_or_else(|_| SystemTime::now());
        let state = RwLock::new(Current { stored: Arc::new(stored), image, changed });
        Self { path, state, turn: tokio::sync::Mutex::new(()) }
    }

    /// Takes the image that this mount is to use for the one that is meant by it.
    pub fn settle(&self, meant: impl Fn(&str) -> String) {
        if let Some(image) = &mut self.state.write().image {
            *image = meant(image);
        }
    }

    /// Returns them.
    pub fn spec(&self) -> VmSpec {
        let current = self.state.read();
        let stored = VmSpec::clone(&current.stored);
        match &current.image {
            Some(image) => VmSpec { image: image.clone(), ..stored },
            None => stored,
        }
    }

    /// Returns when they were last changed.
    pub fn changed(&self) -> SystemTime {
        self.state.read().changed
    }

    /// Writes a setting; `default` means the built-in value.
    ///
    /// # Errors
    /// [`VmError::Spec`] for a value that is not accepted, or what the disk answered; nothing
    /// changes then.
    pub async fn assign(
        self: Arc<Self>,
        key: &'static Key,
        text: String,
        mode: WriteMode,
    ) -> Result<(), VmError> {
        let _turn = self.turn.lock().await;
        let mut next = self.state.read().clone();
        let mut spec = VmSpec::clone(&next.stored);
        key.assign(&mut spec, &text, mode, &VmSpec::default())?;
        if key.name == "image" && !text.trim().is_empty() {
            next.image = None;
        }
        let (path, stored) = (self.path.clone(), spec.clone());
        driver::off_thread(move || file::replace_json(&path, &stored), "the defaults").await?;
        *self.state.write() =
            Current { stored: Arc::new(spec), changed: SystemTime::now(), ..next };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::spec::KEYS;

    fn key(name: &str) -> &'static Key {
        KEYS.iter().find(|k| k.name == name).unwrap()
    }

    async fn set(defaults: &Arc<Defaults>, name: &str, text: &str) -> Result<(), VmError> {
        let defaults = Arc::clone(defaults);
        defaults.assign(key(name), text.to_owned(), WriteMode::Replace).await
    }

    #[tokio::test]
    async fn they_are_stored_and_an_image_for_one_run_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("defaults.json");
        let open = |image| Arc::new(Defaults::open(path.clone(), image, &FailureLog::default()));
        let defaults = open(Some("debian".to_owned()));
        set(&defaults, "memory", "1G").await.unwrap();
        assert_eq!((defaults.spec().memory, defaults.spec().image.as_str()), (1 << 30, "debian"));
        let again = open(None);
        assert_eq!((again.spec().memory, again.spec().image.as_str()), (1 << 30, "tiny"));
        set(&defaults, "image", "alpine").await.unwrap();
        assert_eq!(defaults.spec().image, "alpine");
        set(&defaults, "memory", "default").await.unwrap();
        let expected = VmSpec { image: "alpine".into(), ..VmSpec::default() };
        assert_eq!(open(None).spec(), expected);
        assert!(set(&defaults, "cpus", "0").await.is_err());
        assert_eq!(defaults.spec(), expected);
    }

    #[test]
    fn damage_is_told_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (path, failures) = (dir.path().join("defaults.json"), FailureLog::default());
        std::fs::write(&path, "{\"cpus\": ").unwrap();
        assert_eq!(Defaults::open(path, None, &failures).spec(), VmSpec::default());
        assert!(failures.print().contains("defaults.json.unusable@"));
        let kept = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "{\"cpus\": ");
    }
}
