//! A VM's settings in the daemon: what is stored of them, and what holds.
//!
//! Until the VM has a disk it follows its image: what that carries at the moment holds. The first
//! start notes it down beside the disk, and from then on the machine keeps what it was made with
//! (`doc/adr/` says why). Which value holds is decided in `spec::resolve`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;

use super::definition::Definition;
use super::driver::off_thread;
use super::spec::{ImageSettings, VmSettings, VmSpec};
use super::{BackendError, Vm};
use crate::store::file;
use crate::store::layout::VmDir;

#[derive(Debug)]
pub(super) struct CurrentSettings(RwLock<Inner>);

#[derive(Debug)]
struct Inner {
    stored: Arc<VmSettings>,
    changed: SystemTime,
    /// When the VM is removed.
    expires: Option<SystemTime>,
    /// What the image carried when the disk was made; `None` as long as there is no disk.
    made_with: Option<ImageSettings>,
    /// What holds, and what the image carried when that was resolved.
    resolved: (ImageSettings, Arc<VmSpec>),
}

impl CurrentSettings {
    /// Takes the settings of the VM in `dir`.
    pub(super) fn new(definition: Definition, dir: &VmDir) -> Self {
        let Definition { settings: stored, created: changed, expires, .. } = definition;
        let made_with = dir.disk().exists().then(|| read(dir));
        let resolved = (ImageSettings::default(), stored.resolve(&ImageSettings::default()).into());
        Self(RwLock::new(Inner { stored: stored.into(), changed, expires, made_with, resolved }))
    }
}

/// A file that is absent or damaged carries nothing: the VM's own values and `.defaults` hold.
fn read(dir: &VmDir) -> ImageSettings {
    let path = dir.image_settings();
    file::read_json(&path).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "the image's settings are not known");
        }
        ImageSettings::default()
    })
}

impl Vm {
    /// Returns its settings: what holds at this moment.
    pub fn spec(&self) -> Arc<VmSpec> {
        let image = self.image_settings(&self.settings());
        let held = self.0.settings.0.read();
        if held.resolved.0 == image {
            return Arc::clone(&held.resolved.1);
        }
        drop(held);
        let mut held = self.0.settings.0.write();
        let spec = Arc::new(held.stored.resolve(&image));
        held.resolved = (image, Arc::clone(&spec));
        spec
    }

    pub(crate) fn settings(&self) -> Arc<VmSettings> {
        Arc::clone(&self.0.settings.0.read().stored)
    }

    /// Returns when a setting was last changed.
    pub fn configured(&self) -> SystemTime {
        self.0.settings.0.read().changed
    }

    /// Returns when it is removed.
    pub fn expires(&self) -> Option<SystemTime> {
        self.0.settings.0.read().expires
    }

    /// Returns how long it is until then.
    pub fn expires_in(&self) -> Option<Duration> {
        self.expires().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Returns what the image carries to the VM, if these are its settings.
    pub(super) fn image_settings(&self, settings: &VmSettings) -> ImageSettings {
        let made_with = self.0.settings.0.read().made_with.clone();
        made_with.unwrap_or_else(|| self.0.backends.images.settings(settings.image()))
    }

    /// Puts stored settings into force.
    pub(super) fn set_settings(&self, settings: VmSettings, expires: Option<SystemTime>) {
        let image = self.image_settings(&settings);
        let mut held = self.0.settings.0.write();
        held.resolved = (image.clone(), settings.resolve(&image).into());
        (held.stored, held.changed) = (settings.into(), SystemTime::now());
        held.expires = expires;
        drop(held);
        self.0.bell.ring();
    }

    /// Notes down, before the first start, what its image carries: the VM keeps that.
    pub(super) async fn keep_image_settings(&self) -> Result<(), BackendError> {
        if self.dir().disk().exists() {
            return Ok(());
        }
        let carried = self.0.backends.images.settings(self.settings().image());
        let (path, stored) = (self.dir().image_settings(), carried.clone());
        let keep = move || match stored.is_empty() {
            true => file::remove(&path),
            false => file::replace_json(&path, &stored),
        };
        off_thread(keep, "the image's settings").await?;
        self.0.settings.0.write().made_with = Some(carried);
        Ok(())
    }

    /// Follows the image again, if no disk came of a start, or it was discarded.
    pub(super) fn follow_image_without_disk(&self) {
        if !self.dir().disk().exists() {
            self.0.settings.0.write().made_with = None;
        }
    }
}
