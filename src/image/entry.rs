//! What is known of one image, and how that is read from the store when a daemon starts.
//!
//! Not here: what is done with images (`catalogue`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::blank::Blank;
use super::local_disk::DiskFile;
use super::manifest::Manifest;
use super::source::ImageSource;
use super::template::StoredTemplate;
use super::versions;
use crate::fetch::Cancel;
use crate::store::failure_log::FailureLog;
use crate::store::file;
use crate::store::layout::Layout;
use crate::vm::backend::{BackendError, ImageInfo, ImageStatus, Recipes, Result};
use crate::vm::origin::Origin;
use crate::vm::spec::ImageSettings;

/// One image.
#[derive(Debug)]
pub(super) struct ImageEntry {
    /// `None` for one that has none yet, and for one that cannot be made again just so.
    pub(super) source: Option<Arc<dyn ImageSource>>,
    /// The content of the file `source`, for an image without a source.
    pub(super) spec: String,
    /// Ends the work that is under way.
    pub(super) cancel: Cancel,
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
            cancel: Cancel::default(),
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

    /// Returns the version that new VMs are made from, if it is ready.
    pub(super) fn ready(&self) -> Option<&ImageVersion> {
        match &self.phase {
            BuildPhase::Ready(finished) => Some(finished),
            BuildPhase::Absent | BuildPhase::UnderWay(_) | BuildPhase::Failed(_) => None,
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.phase, BuildPhase::UnderWay(_))
    }

    /// Lists its versions, in no order.
    pub(super) fn versions(&self) -> impl Iterator<Item = &ImageVersion> {
        self.ready().into_iter().chain(&self.present).chain(&self.older)
    }

    /// Makes the entry of an image that was defined, and not finished when the last daemon ended.
    fn unfinished(spec: &str) -> Self {
        let mut image = Self { spec: spec.to_owned(), ..Self::default() };
        match spec.parse() {
            Ok(Origin::File(path)) => match DiskFile::new(path) {
                Ok(source) => image.source = Some(Arc::new(source)),
                Err(error) => image.phase = BuildPhase::Failed(error),
            },
            Ok(Origin::Blank) => image.source = Some(Arc::new(Blank)),
            // `tiny` comes with the program; a VM has changed since, or is gone.
            // What is pulled or a container gets its source from the catalogue.
            Ok(
                Origin::Tiny(_)
                | Origin::Vm { .. }
                | Origin::Distribution { .. }
                | Origin::Url { .. }
                | Origin::Registry(_)
                | Origin::Archive(_)
                | Origin::RootFs(_),
            )
            | Err(_) => {}
        }
        image
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

    pub(super) fn source_to_use(&self, name: &str) -> Result<Arc<dyn ImageSource>> {
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

    /// Makes the entry of an image that can be pulled.
    pub(super) fn offered(source: Arc<dyn ImageSource>) -> Self {
        Self { spec: source.spec().to_owned(), source: Some(source), ..Self::default() }
    }

    pub(super) fn start_building(&mut self) {
        self.cancel = Cancel::default();
        self.set_phase(BuildPhase::UnderWay(ImageStatus::Fetching));
        "starting".clone_into(&mut self.progress);
    }

    pub(super) fn set_phase(&mut self, phase: BuildPhase) {
        self.phase = phase;
        // An image may be built because it is to be warmed.
        if !self.warmth.is_under_way() {
            self.warmth = self.ready().map(|f| TemplateStatus::found(&f.dir)).unwrap_or_default();
        }
        self.changed = SystemTime::now();
    }

    /// What it carries to its VMs.
    pub(super) fn settings(&self) -> ImageSettings {
        match self.ready().and(self.warmth.newest()) {
            Some((_, stored)) => stored.settings(),
            None => self.settings_of_disk(),
        }
    }

    /// What it would carry without a template.
    pub(super) fn settings_of_disk(&self) -> ImageSettings {
        let ready = self.ready().map(|finished| finished.manifest.settings.clone());
        ready.or_else(|| Some(self.source.as_ref()?.settings())).unwrap_or_default()
    }

    pub(super) fn info(&self, name: &str) -> ImageInfo {
        let status = match &self.phase {
            BuildPhase::Absent => ImageStatus::Absent,
            BuildPhase::UnderWay(status) => status.clone(),
            BuildPhase::Ready(_) => ImageStatus::Ready,
            BuildPhase::Failed(error) => ImageStatus::Failed(error.to_string()),
        };
        let (source, manifest) = (self.source.as_ref(), self.ready().map(|f| &f.manifest));
        let kind = source.map(|s| s.kind());
        let present = source.and_then(|s| s.recipe());
        ImageInfo {
            name: name.to_owned(),
            source: self.spec().to_owned(),
            kind: manifest.map(|m| m.kind.as_str()).or(kind).unwrap_or_default().to_owned(),
            parent: manifest.and_then(Manifest::parent).unwrap_or_default().to_owned(),
            digest: manifest.map(|m| m.digest.clone()).unwrap_or_default(),
            size: self.ready().map_or(0, |f| f.size),
            status,
            progress: self.progress.clone(),
            changed: self.changed,
            warm: self.warmth.status(),
            settings: self.settings(),
            recipe: manifest
                .zip(present)
                .map(|(m, present)| Recipes { made_by: m.recipe, present }),
            inputs: manifest.map(|m| m.inputs.clone()).unwrap_or_default(),
        }
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
