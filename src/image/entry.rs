//! What is known of one image, and how that is read from the store when a daemon starts.
//!
//! Not here: what is done with images (`catalogue`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::local_disk::DiskFile;
use super::manifest::Manifest;
use super::source::ImageSource;
use super::template::StoredTemplate;
use super::versions;
use crate::store::failure_log::FailureLog;
use crate::store::file;
use crate::store::layout::Layout;
use crate::vm::backend::{BackendError, ImageInfo, ImageStatus, Recipes};
use crate::vm::origin::Origin;
use crate::vm::spec::ImageSettings;

/// One image.
#[derive(Debug)]
pub(super) struct ImageEntry {
    /// `None` for one that has none yet, and for one that cannot be made again just so.
    pub(super) source: Option<Arc<dyn ImageSource>>,
    /// The content of the file `source`, for an image without a source.
    pub(super) spec: String,
    /// It comes with the program, and cannot be redefined or lost.
    pub(super) builtin: bool,
    pub(super) phase: BuildPhase,
    /// The version that new VMs were made from, while another is being made.
    pub(super) present: Option<ImageVersion>,
    /// Earlier versions, which disks may be overlays on.
    pub(super) older: Vec<ImageVersion>,
    pub(super) warmth: TemplateStatus,
    pub(super) progress: String,
    pub(super) changed: SystemTime,
}

/// Whether an image has a template.
#[derive(Clone, Debug, Default)]
pub(super) enum TemplateStatus {
    #[default]
    Cold,
    /// One is being captured: how far that is.
    Warming(String),
    /// The newest one, in this directory.
    Warm(PathBuf, Box<StoredTemplate>),
    Failed(String),
}

/// Whether an image is made.
#[derive(Clone, Debug)]
pub(super) enum BuildPhase {
    Absent,
    UnderWay(ImageStatus),
    Ready(Box<ImageVersion>),
    Failed(BackendError),
}

/// One version of an image, and where it is.
#[derive(Clone, Debug)]
pub(super) struct ImageVersion {
    pub(super) manifest: Manifest,
    pub(super) dir: PathBuf,
    pub(super) size: u64,
}

impl Default for ImageEntry {
    fn default() -> Self {
        Self {
            source: None,
            spec: String::new(),
            builtin: false,
            phase: BuildPhase::Absent,
            present: None,
            older: Vec::new(),
            warmth: TemplateStatus::Cold,
            progress: String::new(),
            changed: SystemTime::now(),
        }
    }
}

impl ImageEntry {
    fn found(finished: ImageVersion, older: Vec<ImageVersion>) -> Self {
        let changed = fs::metadata(&finished.dir).and_then(|m| m.modified());
        Self {
            warmth: TemplateStatus::found(&finished.dir),
            changed: changed.unwrap_or_else(|_| SystemTime::now()),
            spec: finished.manifest.source.clone(),
            phase: BuildPhase::Ready(Box::new(finished)),
            older,
            ..Self::default()
        }
    }

    /// Lists its versions, in no order.
    pub(super) fn versions(&self) -> impl Iterator<Item = &ImageVersion> {
        let current = match &self.phase {
            BuildPhase::Ready(finished) => Some(&**finished),
            BuildPhase::Absent | BuildPhase::UnderWay(_) | BuildPhase::Failed(_) => None,
        };
        current.into_iter().chain(&self.present).chain(&self.older)
    }

    /// Makes the entry of an image that was defined, and not finished when the last daemon ended.
    fn unfinished(spec: &str) -> Self {
        let source = match spec.parse() {
            Ok(Origin::File(path)) => {
                DiskFile::new(path).map(|d| Arc::new(d) as Arc<dyn ImageSource>)
            }
            // `tiny` comes with the program; a VM has changed since, or is gone.
            Ok(Origin::Tiny | Origin::Vm { .. }) | Err(_) => {
                return Self { spec: spec.to_owned(), ..Self::default() };
            }
        };
        let (source, phase) = match source {
            Ok(source) => (Some(source), BuildPhase::Absent),
            Err(error) => (None, BuildPhase::Failed(error)),
        };
        Self { source, phase, spec: spec.to_owned(), ..Self::default() }
    }

    /// Makes the entry of an image whose definition cannot be read.
    fn damaged(name: &str, error: &io::Error) -> Self {
        let reason = format!(
            "its definition cannot be read: {error}; put it back in the store, or `rmdir .images/{name}`"
        );
        let error = BackendError::ImageFailed { name: name.to_owned(), reason };
        Self { phase: BuildPhase::Failed(error), ..Self::default() }
    }

    pub(super) fn spec(&self) -> &str {
        self.source.as_ref().map_or(&self.spec, |s| s.spec())
    }

    pub(super) fn source_to_use(&self, name: &str) -> Result<Arc<dyn ImageSource>, BackendError> {
        if let Some(source) = &self.source {
            return Ok(Arc::clone(source));
        }
        if let BuildPhase::Failed(error) = &self.phase
            && self.spec.is_empty()
        {
            return Err(error.clone());
        }
        if self.spec.is_empty() {
            return Err(BackendError::NoSource { name: name.to_owned() });
        }
        let reason = format!("not finished; `echo pull > .images/{name}/ctl` makes it anew");
        Err(BackendError::ImageFailed { name: name.to_owned(), reason })
    }

    pub(super) fn start_building(&mut self) {
        self.set_phase(BuildPhase::UnderWay(ImageStatus::Fetching));
        "starting".clone_into(&mut self.progress);
    }

    pub(super) fn set_phase(&mut self, phase: BuildPhase) {
        match &phase {
            // An image may be built because it is to be warmed.
            _ if self.warmth.is_under_way() => {}
            BuildPhase::Ready(finished) => self.warmth = TemplateStatus::found(&finished.dir),
            BuildPhase::Absent | BuildPhase::UnderWay(_) | BuildPhase::Failed(_) => {
                self.warmth = TemplateStatus::Cold;
            }
        }
        self.phase = phase;
        self.changed = SystemTime::now();
    }

    /// What it carries to its VMs.
    pub(super) fn settings(&self) -> ImageSettings {
        match (&self.phase, &self.warmth) {
            (BuildPhase::Ready(_), TemplateStatus::Warm(_, stored)) => stored.settings(),
            (
                BuildPhase::Ready(_),
                TemplateStatus::Cold | TemplateStatus::Warming(_) | TemplateStatus::Failed(_),
            ) => self.settings_of_disk(),
            (BuildPhase::Absent | BuildPhase::UnderWay(_) | BuildPhase::Failed(_), _) => {
                ImageSettings::default()
            }
        }
    }

    /// What it would carry without a template.
    pub(super) fn settings_of_disk(&self) -> ImageSettings {
        match &self.phase {
            BuildPhase::Ready(finished) => finished.manifest.settings.clone(),
            BuildPhase::Absent | BuildPhase::UnderWay(_) | BuildPhase::Failed(_) => {
                ImageSettings::default()
            }
        }
    }

    pub(super) fn info(&self, name: &str) -> ImageInfo {
        let (finished, status) = match &self.phase {
            BuildPhase::Absent => (None, ImageStatus::Absent),
            BuildPhase::UnderWay(status) => (None, status.clone()),
            BuildPhase::Ready(finished) => (Some(finished), ImageStatus::Ready),
            BuildPhase::Failed(error) => (None, ImageStatus::Failed(error.to_string())),
        };
        let kind = self.source.as_ref().map(|s| s.kind());
        let manifest = finished.map(|f| &f.manifest);
        ImageInfo {
            name: name.to_owned(),
            source: self.spec().to_owned(),
            kind: manifest.map(|m| m.kind.as_str()).or(kind).unwrap_or_default().to_owned(),
            parent: manifest.and_then(Manifest::parent).unwrap_or_default().to_owned(),
            digest: manifest.map(|m| m.digest.clone()).unwrap_or_default(),
            size: finished.map_or(0, |f| f.size),
            status,
            progress: self.progress.clone(),
            changed: self.changed,
            warm: self.warmth.status(),
            settings: self.settings(),
            recipe: self.recipes(manifest),
        }
    }
}

impl ImageEntry {
    fn recipes(&self, manifest: Option<&Manifest>) -> Option<Recipes> {
        let present = self.source.as_ref()?.recipe()?;
        manifest.map(|manifest| Recipes { made_by: manifest.recipe, present })
    }
}

impl ImageVersion {
    pub(super) fn new(manifest: Manifest, dir: PathBuf) -> Self {
        Self { size: manifest.size(&dir), manifest, dir }
    }

    pub(super) fn is_there(&self) -> bool {
        self.dir.join(&self.manifest.disk).exists()
    }
}

/// Removes half-built images and reads the others.
pub(super) fn scan(
    layout: &Layout,
    failures: &FailureLog,
) -> io::Result<Vec<(String, ImageEntry)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.images())? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') {
            remove_half_built(&path, failures);
        } else if let Some(image) = read(layout, failures, name, &path) {
            found.push((name.to_owned(), image));
        }
    }
    Ok(found)
}

fn remove_half_built(path: &Path, failures: &FailureLog) {
    if let Err(error) = fs::remove_dir_all(path) {
        let text = format!("cannot clear away {}: {error}", path.display());
        failures.note(path, &error, text);
    }
}

/// Reads the image `name` in the directory `path`. A damaged image is left alone and listed as
/// failed; one that is built in is made again when it is needed.
fn read(layout: &Layout, failures: &FailureLog, name: &str, path: &Path) -> Option<ImageEntry> {
    let dir = versions::current_dir(layout, name);
    match Manifest::read(&dir) {
        Ok(manifest) => {
            let older = versions::older(layout, name, &dir);
            Some(ImageEntry::found(ImageVersion::new(manifest, dir), older))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => {
            if let Err(error) = file::sweep(path) {
                tracing::warn!(name, %error, "half written files stay");
            }
            let spec = fs::read_to_string(layout.image_source(name)).unwrap_or_default();
            Some(ImageEntry::unfinished(spec.trim_end()))
        }
        Err(error) => {
            let text = format!("image {name} cannot be used: {error}");
            failures.note(path, &error, text);
            path.is_dir().then(|| ImageEntry::damaged(name, &error))
        }
    }
}
