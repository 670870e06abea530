//! An image in a tar file: an OCI image layout, or what `docker save` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::config::{self, Config, Descriptor, Manifest};
use super::layer::{Hashing, decompress};
use super::{Layer, Parts};
use crate::image::source::{BuildError, Progress};

/// The largest manifest or configuration.
const LARGEST_TEXT: u64 = 4 << 20;
/// How deep lists of manifests may be nested.
const DEPTH: usize = 4;

/// An open archive: where in it each file is.
#[derive(Debug)]
struct Archive {
    name: String,
    file: File,
    members: BTreeMap<String, (u64, u64)>,
}

/// A line of `manifest.json`, as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

/// Reads the parts of an image; layers are copied out into `scratch`.
pub(super) fn parts(path: &Path, scratch: &Path, progress: &Progress) -> Result<Parts, BuildError> {
    progress.building("reading the archive");
    let archive = Archive::open(path, scratch)?;
    if archive.members.contains_key("index.json") {
        return archive.layout(scratch);
    }
    if archive.members.contains_key("manifest.json") {
        return archive.saved(scratch);
    }
    Err(archive.refuse("it holds neither index.json nor manifest.json; `skopeo copy … oci-archive:FILE` and `docker save` make such files"))
}

impl Archive {
    fn open(path: &Path, scratch: &Path) -> Result<Self, BuildError> {
        let failed = BuildError::at(path);
        let name = path.display().to_string();
        let mut file = crate::store::file::open_regular(path).map_err(failed)?;
        let mut magic = [0; 262];
        let length = file.read(&mut magic).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        if length < 262 || &magic[257..262] != b"ustar" {
            let whole = scratch.join("archive");
            let unpacked = unpack(file, &whole).map_err(|e| BuildError::malformed(&name, e))?;
            file = unpacked;
        }
        let members = index(&file).map_err(|e| {
            BuildError::malformed(&name, format_args!("it is no whole tar file: {e}"))
        })?;
        Ok(Self { name, file, members })
    }

    fn refuse(&self, reason: impl std::fmt::Display) -> BuildError {
        BuildError::malformed(&self.name, reason)
    }

    fn member(&self, name: &str) -> Result<(impl Read + '_, u64), BuildError> {
        let absent = || self.refuse(format_args!("it names {name}, which it does not hold"));
        let (at, size) = *self.members.get(name).ok_or_else(absent)?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at)).map_err(|e| self.refuse(e))?;
        Ok((file.take(size), size))
    }

    fn text(&self, name: &str) -> Result<Vec<u8>, BuildError> {
        let (reader, size) = self.member(name)?;
        if size > LARGEST_TEXT {
            return Err(self.refuse(format_args!("{name} is larger than {LARGEST_TEXT} bytes")));
        }
        let mut bytes = Vec::new();
        let mut reader = reader;
        reader.read_to_end(&mut bytes).map_err(|e| self.refuse(e))?;
        Ok(bytes)
    }

    /// Reads a manifest or a configuration, and checks its digest.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, BuildError> {
        let bytes = self.text(&blob_name(descriptor))?;
        let digest = Hashing::new(&bytes[..]).finish().map_err(|e| self.refuse(e))?;
        if digest == descriptor.digest {
            return Ok(bytes);
        }
        Err(self.refuse(format_args!("{} is damaged: its digest is {digest}", descriptor.digest)))
    }

    fn layout(&self, scratch: &Path) -> Result<Parts, BuildError> {
        let mut manifest: Manifest = config::parse(&self.name, &self.text("index.json")?)?;
        for _ in 0..DEPTH {
            if manifest.manifests.is_empty() {
                break;
            }
            let chosen = config::pick(&self.name, &manifest.manifests)?;
            manifest = config::parse(&self.name, &self.blob(&chosen)?)?;
        }
        let of = manifest.config.ok_or_else(|| self.refuse("its manifest has no configuration"))?;
        let config: Config = config::parse(&self.name, &self.blob(&of)?)?;
        let layers = manifest.layers.iter().enumerate().map(|(number, descriptor)| {
            self.layer(number, &blob_name(descriptor), Some(descriptor.digest.clone()), scratch)
        });
        Ok(Parts { layers: layers.collect::<Result<_, _>>()?, config })
    }

    fn saved(&self, scratch: &Path) -> Result<Parts, BuildError> {
        let saved: Vec<Saved> = config::parse(&self.name, &self.text("manifest.json")?)?;
        let [saved] = &saved[..] else {
            let reason = format!("it holds {} images; save one alone", saved.len());
            return Err(self.refuse(reason));
        };
        let config: Config = config::parse(&self.name, &self.text(&saved.config)?)?;
        let layers = saved.layers.iter().enumerate().map(|(number, name)| {
            let diff_id = config.rootfs.diff_ids.get(number).cloned();
            self.layer(number, name, diff_id, scratch)
        });
        Ok(Parts { layers: layers.collect::<Result<_, _>>()?, config })
    }

    fn layer(
        &self,
        number: usize,
        name: &str,
        digest: Option<String>,
        scratch: &Path,
    ) -> Result<Layer, BuildError> {
        let (mut reader, size) = self.member(name)?;
        let path = scratch.join(format!("layer{number}"));
        let mut copy = File::create(&path).map_err(BuildError::at(&path))?;
        io::copy(&mut reader, &mut copy).map_err(BuildError::at(&path))?;
        Ok(Layer { name: format!("layer {}", number + 1), path, size, digest, is_ours: true })
    }
}

fn blob_name(descriptor: &Descriptor) -> String {
    format!("blobs/{}", descriptor.digest.replacen(':', "/", 1))
}

fn unpack(from: File, to: &Path) -> io::Result<File> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(to)?;
    io::copy(&mut decompress(from)?, &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Finds the regular files of a tar file.
fn index(file: &File) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let length = file.metadata()?.len();
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").to_owned();
        let (at, size) = (entry.raw_file_position(), entry.size());
        if at.saturating_add(size) > length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if entry.header().entry_type().is_file() {
            members.insert(path, (at, size));
        }
    }
    Ok(members)
}
