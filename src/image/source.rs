//! Sources of images: each fills an empty directory with an image's files.

use std::fmt;
use std::io;
use std::path::Path;

use super::manifest::Manifest;
use crate::disk::DiskError;
use crate::disk::img::Conversion;
use crate::fetch::{Cancel, FetchError};
use crate::programs;
use crate::vm::backend::{BackendError, ImageStatus};
use crate::vm::spec::ImageSettings;

/// Makes one image. Names, sharing and visibility are the catalogue's.
pub(super) trait ImageSource: fmt::Debug + Send + Sync + 'static {
    /// `builtin:tiny`, as in `.images/NAME/source`.
    fn spec(&self) -> &str;
    /// `builtin`, `disk`, `cloud`, …
    fn kind(&self) -> &str;
    /// The number of the recipe, of a source that has one: it grows when the image changes.
    fn recipe(&self) -> Option<u32> {
        None
    }
    /// Says whether `refresh` makes it again.
    fn is_renewable(&self) -> bool {
        self.recipe().is_some()
    }
    /// Says whether it would make the image that there is, where that is known beforehand.
    fn is_current(&self, _present: &Manifest, _progress: &Progress) -> Result<bool> {
        Ok(false)
    }
    /// Returns the settings that its image will carry, as far as they are known beforehand.
    fn settings(&self) -> ImageSettings {
        ImageSettings::default()
    }
    /// Makes the image's files in `dir`, which is empty and on the store's file system. Blocks
    /// for as long as it takes; only the returned files become part of the image.
    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest>;
}

/// Where a source reports its progress.
pub(super) struct Progress {
    report: Box<dyn Fn(ImageStatus, String) + Send + Sync>,
    cancel: Cancel,
}

impl Progress {
    pub(super) fn new(report: impl Fn(ImageStatus, String) + Send + Sync + 'static) -> Self {
        Self { report: Box::new(report), cancel: Cancel::default() }
    }

    /// Lets `cancel` end the work.
    pub(super) fn until(self, cancel: Cancel) -> Self {
        Self { cancel, ..self }
    }

    /// Returns the flag that ends the work.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    pub(super) fn fetching(&self, what: impl Into<String>) {
        (self.report)(ImageStatus::Fetching, what.into());
    }

    pub(super) fn building(&self, what: impl Into<String>) {
        (self.report)(ImageStatus::Building, what.into());
    }

    /// Copies a disk and reports the progress.
    pub(super) fn copying(&self, copy: &Conversion<'_>) -> Result<()> {
        self.building("copying");
        Ok(copy.run(|percent| self.building(format!("copying {percent} %")))?)
    }
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// A program failed, with this last line on stderr.
    #[error("{tool}: {said}")]
    Tool { tool: &'static str, said: String },
    /// The distribution does not have what is needed; what to do.
    #[error("{what}; {remedy}")]
    Unavailable { what: String, remedy: &'static str },
    /// An input is not what it should be.
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: String },
    /// It cannot be fetched, or is not what it should be.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The system, or another part, refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What making an image answers.
pub(super) type Result<T, E = BuildError> = std::result::Result<T, E>;

impl BuildError {
    /// Wraps the system errors of what is done with a file.
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |error| BackendError::io(path.display().to_string(), &error).into()
    }

    pub(super) fn malformed(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Malformed { what: what.into(), reason: reason.to_string() }
    }

    /// Turns it into what a VM's driver understands, for the image `name`.
    pub(super) fn into_backend(self, name: &str) -> BackendError {
        match self {
            Self::Backend(error) => error,
            Self::Tool { tool, said } if is_full(&said) => {
                BackendError::NoSpace { what: format!("image {name} ({tool}: {said})") }
            }
            Self::Fetch(error) => fetch_failed(name, error),
            other @ (Self::Tool { .. } | Self::Unavailable { .. } | Self::Malformed { .. }) => {
                BackendError::ImageFailed { name: name.to_owned(), reason: other.to_string() }
            }
        }
    }
}

/// Adds the next step.
fn fetch_failed(name: &str, error: FetchError) -> BackendError {
    let pull = format!("`echo pull > .images/{name}/ctl`");
    let reason = match error {
        FetchError::NoSpace { .. } => {
            return BackendError::NoSpace { what: format!("image {name} ({error})") };
        }
        FetchError::Io { what, error } => return BackendError::io(what, &error),
        FetchError::Cancelled => format!("the pull was cancelled; {pull} continues it"),
        FetchError::Unreachable { .. } => format!("{error}; {pull} continues where it was cut"),
        FetchError::WrongChecksum { .. } => format!("{error}; {pull} fetches it again"),
        FetchError::Status { .. }
        | FetchError::NotListed { .. }
        | FetchError::NoChecksum { .. } => {
            format!("{error}; name another release in `source`, or another mirror in images.toml")
        }
        FetchError::NoTls(_)
        | FetchError::BadUrl { .. }
        | FetchError::Redirect { .. }
        | FetchError::TooLong { .. }
        | FetchError::BadSignature { .. } => error.to_string(),
    };
    BackendError::ImageFailed { name: name.to_owned(), reason }
}

impl From<DiskError> for BuildError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::NoSpace { said } | DiskError::QemuImg { said, .. } => {
                Self::Tool { tool: programs::QEMU_IMG.name, said }
            }
            other @ (DiskError::Missing { .. }
            | DiskError::Io { .. }
            | DiskError::InUse { .. }
            | DiskError::NoRoomInTable { .. }) => Self::Backend(other.into()),
        }
    }
}

/// Recognises a full disk in a program's words (in the C locale, which they are run in).
fn is_full(said: &str) -> bool {
    said.contains("No space left on device") || said.contains("Disk quota exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_whoever_noticed_it() {
        let tool = BuildError::Tool {
            tool: "mke2fs",
            said: "Could not allocate block: No space left on device".into(),
        };
        let io = BuildError::at(Path::new("x"))(io::Error::from_raw_os_error(libc::ENOSPC));
        for error in [tool, io] {
            let error = error.into_backend("tiny");
            assert!(matches!(error, BackendError::NoSpace { .. }), "{error:?}");
        }
    }
}
