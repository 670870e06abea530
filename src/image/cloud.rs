//! Disks from the network as sources: a distribution's own, and one at an address with a checksum.
//!
//! Not here: which distributions there are (`distribution`), where a release is (`release`), how a
//! file is fetched (`fetch`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::distribution::{Distribution, Distributions};
use super::local_disk;
use super::manifest::Manifest;
use super::release::{Release, Wanted};
use super::source::{BuildError, ImageSource, Progress};
use crate::disk::DiskFormat;
use crate::fetch::{Checksum, Client, Download, Downloaded, FetchError};
use crate::vm::backend::{BackendError, SeedKind};

/// The word for the newest release.
const NEWEST: &str = "latest";

/// A distribution's disk.
#[derive(Debug)]
pub(super) struct CloudDisk {
    row: Distribution,
    version: Option<String>,
    spec: String,
    downloads: PathBuf,
}

impl CloudDisk {
    /// Describes the release `version`, or the newest, of the distribution `name`.
    ///
    /// # Errors
    /// `BadSource` for a distribution that is not known.
    pub(super) fn new(
        all: &Distributions,
        (name, version): (&str, Option<&str>),
        downloads: PathBuf,
    ) -> Result<Self, BackendError> {
        let version = version.filter(|v| *v != NEWEST);
        let row = all.find(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|row| &*row.name).collect();
            let reason = format!("no distribution of this name; known are {}", known.join(", "));
            BackendError::BadSource { origin: name.to_owned(), reason }
        })?;
        let spec = format!("{}:{}", row.name, version.unwrap_or(NEWEST));
        Ok(Self { row, version: version.map(str::to_owned), spec, downloads })
    }

    fn resolve(&self, client: &Client, progress: &Progress) -> Result<Release, BuildError> {
        progress.fetching(format!("asking {} for {}", self.row.mirror, self.spec));
        let arch = std::env::consts::ARCH;
        Wanted { row: &self.row, version: self.version.as_deref(), arch }.resolve(client)
    }

    /// Fetches a release. While a mirror is being changed, its disk may be newer than the list that
    /// was read: if the list is another one by then, it is that one's disk.
    fn fetch(
        &self,
        client: &Client,
        dir: &Path,
        progress: &Progress,
    ) -> Result<(Release, Disk), BuildError> {
        let release = self.resolve(client, progress)?;
        let fetched =
            fetch(client, (&release.url, &release.checksum), &self.downloads, dir, progress);
        let wrong = match fetched {
            Err(wrong @ BuildError::Fetch(FetchError::WrongChecksum { .. })) => wrong,
            other => return other.map(|disk| (release, disk)),
        };
        let again = self.resolve(client, progress)?;
        if again.checksum == release.checksum {
            return Err(wrong);
        }
        let place = (&*again.url, &again.checksum);
        fetch(client, place, &self.downloads, dir, progress).map(|disk| (again, disk))
    }
}

impl ImageSource for CloudDisk {
    fn spec(&self) -> &str {
        &self.spec
    }

    fn kind(&self) -> &'static str {
        "cloud"
    }

    fn is_renewable(&self) -> bool {
        true
    }

    fn is_current(&self, present: &Manifest, progress: &Progress) -> Result<bool, BuildError> {
        let client = Client::new(progress.cancel().clone())?;
        let release = self.resolve(&client, progress)?;
        Ok(present.inputs.contains(&release.checksum.to_string()))
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest, BuildError> {
        let client = Client::new(progress.cancel().clone())?;
        let (release, disk) = self.fetch(&client, dir, progress)?;
        progress.building("computing the digest");
        let seed = SeedKind::Nocloud;
        let checksum = release.checksum.to_string();
        let inputs = vec![release.url, checksum, release.trust, self.row.first_boot()];
        let settings = self.row.settings();
        Ok(Manifest { seed, inputs, settings, ..Manifest::of_disk(self, disk.format, disk.size) })
    }
}

/// A disk at an address, whose checksum the user gives.
#[derive(Debug)]
pub(super) struct RemoteDisk {
    url: String,
    checksum: Checksum,
    spec: String,
    downloads: PathBuf,
}

impl RemoteDisk {
    /// Describes the disk at `url` with the checksum `sha256=…`.
    ///
    /// # Errors
    /// `BadSource` for a checksum that is none.
    pub(super) fn new(url: &str, checksum: &str, downloads: PathBuf) -> Result<Self, BackendError> {
        let spec = format!("{url}#{checksum}");
        let parsed = checksum.parse().map_err(|()| {
            let reason = "no SHA-256 or SHA-512; write URL#sha256=HEX, as `sha256sum` prints it";
            BackendError::BadSource { origin: spec.clone(), reason: reason.to_owned() }
        })?;
        Ok(Self { url: url.to_owned(), checksum: parsed, spec, downloads })
    }
}

impl ImageSource for RemoteDisk {
    fn spec(&self) -> &str {
        &self.spec
    }

    fn kind(&self) -> &'static str {
        "url"
    }

    fn is_renewable(&self) -> bool {
        true
    }

    /// The checksum is a part of the source.
    fn is_current(&self, _present: &Manifest, _progress: &Progress) -> Result<bool, BuildError> {
        Ok(true)
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest, BuildError> {
        let client = Client::new(progress.cancel().clone())?;
        progress.fetching(format!("asking for {}", self.url));
        let disk = fetch(&client, (&self.url, &self.checksum), &self.downloads, dir, progress)?;
        progress.building("computing the digest");
        let inputs = vec![self.url.clone(), self.checksum.to_string()];
        let seed = SeedKind::Nocloud;
        Ok(Manifest { seed, inputs, ..Manifest::of_disk(self, disk.format, disk.size) })
    }
}

/// A disk in the image's directory.
struct Disk {
    format: DiskFormat,
    size: u64,
}

fn fetch(
    client: &Client,
    (url, checksum): (&str, &Checksum),
    downloads: &Path,
    dir: &Path,
    progress: &Progress,
) -> Result<Disk, BuildError> {
    let request = Download { url, cache: downloads };
    let download = || client.download(&request, |t| progress.fetching(t.to_string()));
    let verify = |file: &Downloaded| {
        progress.building("verifying the checksum");
        file.verify(checksum, progress.cancel())
    };
    let mut file = download()?;
    match verify(&file) {
        // What an earlier download has left may be of another file, or damaged by a crash.
        Err(FetchError::WrongChecksum { .. }) if file.is_resumed => {
            drop(file);
            file = download()?;
            verify(&file)?;
        }
        verified => verified?,
    }
    let name = url.rsplit('/').next().unwrap_or(url);
    let (format, size) = local_disk::take(file, name, dir, progress)?;
    Ok(Disk { format, size })
}

/// Lists the images that the distributions offer: by the name in `.images`.
pub(super) fn offers(all: &Distributions, downloads: &Path) -> Vec<(String, Arc<dyn ImageSource>)> {
    let source = |row: &Distribution, version: Option<&str>| {
        CloudDisk::new(all, (&row.name, version), downloads.to_owned()).ok()
    };
    let named = |row: &Distribution| -> Vec<_> {
        let offers = row.offers().filter_map(|(name, version)| Some((name, source(row, version)?)));
        offers.map(|(name, disk)| (name, Arc::new(disk) as Arc<dyn ImageSource>)).collect()
    };
    all.listed().flat_map(named).collect()
}

#[cfg(test)]
#[path = "cloud_tests.rs"]
mod tests;
