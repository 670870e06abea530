//! A disk image on this host as a source: unpacked, converted where its format is another program's, or
//! copied.
//!
//! Not here: what a file is (`disk_format`), and unpacking (`unpacked`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::disk_format::{Beginning, Name, SourceFormat};
use super::manifest::{self, Manifest};
use super::source::{BuildError, ImageSource, Progress, Result};
use super::unpacked;
use crate::disk::img::{self, Conversion};
use crate::disk::{DiskFormat, Layer, qcow2, sparse};
use crate::fetch::Downloaded;
use crate::store::file::open_regular;
use crate::vm::backend::{BackendError, SeedKind};

/// The ending of Vagrant's boxes.
const BOX: &str = "box";
/// What was unpacked, in the image's directory.
const UNPACKED: &str = ".unpacked";

/// The source.
#[derive(Debug)]
pub(super) struct DiskFile {
    path: PathBuf,
    spec: String,
}

impl DiskFile {
    /// Looks at the file before anything is begun.
    ///
    /// # Errors
    /// What opening answers, or `BadSource` saying why it cannot become an image.
    pub(super) fn new(path: PathBuf) -> Result<Self, BackendError> {
        let spec = path.display().to_string();
        let beginning = Beginning::read(&path).map_err(BackendError::at(&spec))?;
        let refused = |reason| BackendError::BadSource { origin: spec.clone(), reason };
        look(&beginning, &Name::of(&path)).map_err(refused)?;
        Ok(Self { path, spec })
    }
}

/// Refuses what can be refused by a file's beginning; what is in a packed one is seen later.
fn look(beginning: &Beginning, name: &Name<'_>) -> Result<(), String> {
    if beginning.is_empty() {
        return Err("is empty; builtin:blank makes an empty disk".to_owned());
    }
    if name.ending == BOX {
        return Ok(());
    }
    name.check_compression(beginning.compression())?;
    if name.compression.is_none() {
        beginning.format(name.ending)?;
    }
    Ok(())
}

impl ImageSource for DiskFile {
    fn spec(&self) -> &str {
        &self.spec
    }

    fn kind(&self) -> &'static str {
        "disk"
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest> {
        let (format, size) = import((&self.path, &self.path), dir, progress)?;
        progress.building("computing the digest");
        let seed = SeedKind::Nocloud;
        Ok(Manifest { seed, ..Manifest::of_disk(self, format, size) })
    }
}

/// Takes a disk that was fetched, and has a checksum that counts, into an image's directory. `name`
/// is what the server calls it. A file that cannot become an image is removed.
pub(super) fn take(
    file: Downloaded,
    name: &str,
    dir: &Path,
    progress: &Progress,
) -> Result<(DiskFormat, u64)> {
    let (path, parts) = (file.path(), Name::of(Path::new(name)));
    let beginning = Beginning::read(path).map_err(BuildError::at(path))?;
    let is_plain = parts.ending != BOX && parts.compression.is_none() && !beginning.is_empty();
    if is_plain
        && beginning.compression().is_none()
        && let Ok(SourceFormat::Kept(format)) = beginning.format(parts.ending)
    {
        let disk = file.move_to(&dir.join(manifest::disk_name(format)))?;
        return Ok((format, virtual_size(&disk, format)?));
    }
    let taken = import((path, Path::new(name)), dir, progress);
    if matches!(taken, Ok(_) | Err(BuildError::Malformed { .. })) {
        file.discard();
    }
    taken
}

/// Makes the disk of the image in `dir` from a file, which `name` names. Returns its format and size.
pub(super) fn import(
    (from, name): (&Path, &Path),
    dir: &Path,
    progress: &Progress,
) -> Result<(DiskFormat, u64)> {
    let what = name.display().to_string();
    let parts = Name::of(name);
    let beginning = Beginning::read(from).map_err(BuildError::at(from))?;
    look(&beginning, &parts).map_err(|reason| BuildError::malformed(&what, reason))?;
    let to = dir.join(UNPACKED);
    if parts.ending == BOX {
        let inner = unpacked::unbox(&what, from, &to, progress)?;
        let what = format!("{what}: {inner}");
        // Boxes call any format so.
        return take_in((&to, &what, Name::of(Path::new(&inner)).ending, true), dir, progress);
    }
    if parts.compression.is_some() {
        unpacked::unpack(&what, from, &to, progress)?;
        return take_in((&to, &what, parts.ending, true), dir, progress);
    }
    take_in((from, &what, parts.ending, false), dir, progress)
}

/// Takes in a file that is not packed. One that is ours is moved.
fn take_in(
    (from, what, ending, is_ours): (&Path, &str, &str, bool),
    dir: &Path,
    progress: &Progress,
) -> Result<(DiskFormat, u64)> {
    let bad = |reason| BuildError::malformed(what, reason);
    let format = |path: &Path| {
        Beginning::read(path).map_err(BuildError::at(path))?.format(ending).map_err(bad)
    };
    let found = format(from)?;
    let kept = match found {
        SourceFormat::Kept(kept) => kept,
        SourceFormat::Converted(_) => DiskFormat::Qcow2,
    };
    let disk = dir.join(manifest::disk_name(kept));
    match found {
        SourceFormat::Kept(_) if is_ours => {
            fs::rename(from, &disk).map_err(BuildError::at(&disk))?;
        }
        SourceFormat::Kept(kept) => {
            copy((from, kept), &disk, progress)?;
            // The copy is what counts: the original may have changed since it was looked at.
            if format(&disk)? != found {
                return Err(bad("changed while it was copied".to_owned()));
            }
        }
        SourceFormat::Converted(foreign) => {
            img::import((from, foreign), &disk, |percent| {
                progress.building(format!("converting {percent} %"));
            })?;
            if is_ours {
                fs::remove_file(from).map_err(BuildError::at(from))?;
            }
        }
    }
    Ok((kept, virtual_size(&disk, kept)?))
}

fn copy((from, format): (&Path, DiskFormat), to: &Path, progress: &Progress) -> Result<()> {
    progress.building("copying");
    if share_blocks(from, to) {
        return Ok(());
    }
    let layers = &[Layer { path: from.to_owned(), format }];
    let to = Layer { path: to.to_owned(), format };
    progress.copying(&Conversion { layers, snapshot: None, to: &to, base: None })
}

/// Lets `to` share the blocks of a file where the file system can; says whether it could.
fn share_blocks(from: &Path, to: &Path) -> bool {
    let share = || sparse::reflink(&open_regular(from)?, &File::create(to)?);
    share().is_ok()
}

fn virtual_size(disk: &Path, format: DiskFormat) -> Result<u64> {
    let size = match format {
        DiskFormat::Raw => fs::metadata(disk).map(|m| m.len()),
        DiskFormat::Qcow2 => qcow2::Header::of(disk).map(|header| header.virtual_size),
    };
    Ok(size.map_err(BuildError::at(disk))?.next_multiple_of(512))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::qemu_img;

    /// Has a file taken in under its name, and returns what became of it.
    fn taken(dir: &Path, name: &str) -> Result<(DiskFormat, u64), String> {
        let to = tempfile::tempdir().unwrap();
        let path = dir.join(name);
        let made = DiskFile::new(path.clone()).map_err(|e| e.to_string());
        made.and_then(|_| {
            let done = import((&path, &path), to.path(), &Progress::new(|_, _| ()));
            let (format, size) = done.map_err(|e| e.to_string())?;
            let left: Vec<_> = fs::read_dir(to.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "{left:?}");
            let disk = to.path().join(manifest::disk_name(format));
            let json =
                format!(r#"{{"driver":"{}","file.filename":"{}"}}"#, format.word(), disk.display());
            let compared = format!("json:{json}");
            qemu_img(dir, &["compare", "-q", "-f", "raw", "plain.raw", &compared]);
            Ok((format, size))
        })
    }

    fn packed(dir: &Path, program: &str, from: &str, to: &str) {
        let script = format!("{program} -c '{from}' > '{to}'");
        let done = std::process::Command::new("sh").args(["-c", &script]).current_dir(dir).status();
        assert!(done.unwrap().success());
    }

    #[test]
    fn each_format_becomes_the_same_disk_packed_or_not() {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path();
        let bytes = [vec![7; 1 << 20], vec![0; 2 << 20], vec![9; 1 << 20]].concat();
        fs::write(dir.join("plain.raw"), bytes).unwrap();
        for format in ["qcow2", "vmdk", "vhdx", "vdi"] {
            let to = format!("x.{format}");
            qemu_img(dir, &["convert", "-f", "raw", "-O", format, "plain.raw", &to]);
            assert_eq!(taken(dir, &to), Ok((DiskFormat::Qcow2, 4 << 20)), "{to}");
        }
        assert_eq!(taken(dir, "plain.raw"), Ok((DiskFormat::Raw, 4 << 20)));
        for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("bzip2", "bz2")] {
            let to = format!("plain.raw.{ending}");
            packed(dir, program, "plain.raw", &to);
            assert_eq!(taken(dir, &to), Ok((DiskFormat::Raw, 4 << 20)), "{to}");
        }
        packed(dir, "gzip", "x.vmdk", "x.vmdk.gz");
        assert_eq!(taken(dir, "x.vmdk.gz"), Ok((DiskFormat::Qcow2, 4 << 20)));
    }

    #[test]
    fn a_packed_disk_that_is_not_what_its_name_says_leaves_nothing() {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path();
        fs::write(dir.join("plain.raw"), vec![7; 1 << 20]).unwrap();
        packed(dir, "gzip", "plain.raw", "x.qcow2.gz");
        packed(dir, "gzip", "plain.raw", "x.raw");
        fs::write(dir.join("empty.raw"), "").unwrap();
        let refused = |name: &str| taken(dir, name).unwrap_err();
        assert!(refused("x.qcow2.gz").contains("is no qcow2 file"), "{}", refused("x.qcow2.gz"));
        assert!(refused("x.raw").contains("end in .gz"), "{}", refused("x.raw"));
        assert!(refused("empty.raw").contains("builtin:blank"));
    }
}
