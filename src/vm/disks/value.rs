//! What a data disk's files may hold: size, source, serial.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::stored::Source;
use crate::disk::qcow2::{HEADER, Header, MAGIC};
use crate::vm::backend::DiskFormat;
use crate::vm::spec::{MAX_DISK, is_object_name, parse_size, render_size};

/// The longest serial number of virtio-blk, and so the longest name.
const LONGEST_SERIAL: usize = 20;
const MIN_SIZE: u64 = 1 << 20;

/// Why a data disk is not made, or something asked of it not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum DataDiskError {
    #[error("a disk named {0} exists")]
    Exists(String),
    #[error("no such disk")]
    Absent,
    #[error(
        "{0:?} is not a disk's name: at most {LONGEST_SERIAL} letters, digits, dots, dashes and underscores, \
         a letter or digit first"
    )]
    BadName(String),
    #[error(
        "the machine has no port for another disk: four are for disks and nets together; `rmdir` a disk, or \
         leave a net (config/nets)"
    )]
    Full,
    #[error("size: {0:?} is not a size such as 10G")]
    NotASize(String),
    #[error("size: {0:?} is not between 1M and {max}", max = render_size(MAX_DISK))]
    SizeRange(String),
    #[error("size: a disk does not shrink: {wanted} is less than {}", render_size(*.size))]
    Shrinks { wanted: String, size: u64 },
    #[error("size: {0:?} has a source, whose size it has; `mkdir` another disk")]
    HasSource(String),
    #[error("source: {0:?} is one of the VM's own, which has data; `mkdir` another disk")]
    IsOwn(String),
    #[error("source: {0:?} is not an absolute path, and the daemon does not know where you are")]
    Relative(String),
    #[error(
        "source: {path}: {reason}; name a file or a block device that is there and that you can read"
    )]
    Source { path: String, reason: String, errno: i32 },
    #[error("source: {0} is neither a file nor a block device")]
    NoFile(String),
    #[error("source: {path} lies in {own}, which is the daemon's own; name a file elsewhere")]
    Own { path: String, own: String },
    #[error("source: {path} is the disk {other} already")]
    Twice { path: String, other: String },
    #[error("source: {path}: {why}")]
    Format { path: String, why: &'static str },
    #[error(
        "serial: {0:?} is not up to {LONGEST_SERIAL} letters, digits, dots, dashes and underscores"
    )]
    Serial(String),
    #[error("the VM starts; try again when it runs")]
    Starting,
    #[error("the disk is a part of snapshots: {0}; drop them first")]
    Held(String),
    #[error("the disk {0} was removed; `mv` gives it a name again")]
    Removed(String),
    #[error(
        "the memory of a VM with a disk from a source ({0}) is not saved: the file may have changed when it is \
         loaded; stop the VM, or `rmdir disks/{0}` first"
    )]
    SavesSource(String),
    #[error(
        "the guest of snapshot {tag} has the disk {disk}, which was removed; `mv disks/{aside} disks/{disk}`, or \
         restore while the VM is off"
    )]
    Lacks { tag: String, disk: String, aside: String },
    #[error("snapshot {0} is not in all disks that its guest has; restore while the VM is off")]
    NoSnapshot(String),
    #[error(
        "the guest of snapshot {tag} has the disk {disk} at another port; restore while the VM is off"
    )]
    Elsewhere { tag: String, disk: String },
}

/// A value of a data disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The serial number that the guest sees.
    Serial,
    /// The size.
    Size,
    /// The file or block device of the host.
    Source,
}

/// Says whether a data disk can have this name, which is also its serial number.
pub fn is_name(name: &str) -> bool {
    is_object_name(name) && name.len() <= LONGEST_SERIAL
}

pub(super) fn size(text: &str) -> Result<u64, DataDiskError> {
    let bytes = parse_size(text).ok_or_else(|| DataDiskError::NotASize(text.to_owned()))?;
    match (MIN_SIZE..=MAX_DISK).contains(&bytes) {
        true => Ok(bytes.next_multiple_of(1 << 20)),
        false => Err(DataDiskError::SizeRange(text.to_owned())),
    }
}

/// Returns a serial number; `None`: the disk's name.
pub(super) fn serial(text: &str) -> Result<Option<String>, DataDiskError> {
    match text {
        "default" => Ok(None),
        text if is_name(text) => Ok(Some(text.to_owned())),
        text => Err(DataDiskError::Serial(text.to_owned())),
    }
}

/// Looks at what a path leads to. Whether it is a qcow2 image follows from its name and its first bytes: a
/// guest writes the bytes of a raw disk, and must not make it an image that names other files.
pub(super) fn source(text: &str, own: &[PathBuf]) -> Result<Source, DataDiskError> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(DataDiskError::Relative(text.to_owned()));
    }
    // Before it is looked at: our own mount would ask this daemon.
    apart(path, own)?;
    let failed = |error: std::io::Error| DataDiskError::Source {
        path: text.to_owned(),
        reason: error.to_string(),
        errno: error.raw_os_error().unwrap_or(0),
    };
    let real = path.canonicalize().map_err(failed)?;
    apart(&real, own)?;
    let kind = real.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DataDiskError::NoFile(text.to_owned()));
    }
    let (mut file, read_only) = open(&real).map_err(failed)?;
    let (format, size) = format(&mut file, &real, text)?;
    let size = match size {
        Some(size) => size,
        None => file.seek(SeekFrom::End(0)).map_err(failed)?,
    };
    if real.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return Err(DataDiskError::Format {
            path: text.to_owned(),
            why: "its path is not one line of text",
        });
    }
    Ok(Source { path: real, format, is_device: kind.is_block_device(), read_only, size })
}

/// Opens a file to write, or else to read.
fn open(path: &Path) -> std::io::Result<(File, bool)> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => Ok((file, false)),
        Err(_) => Ok((File::options().read(true).custom_flags(flags).open(path)?, true)),
    }
}

/// Returns the format and, of an image, the size that a guest sees.
fn format(
    file: &mut File,
    real: &Path,
    text: &str,
) -> Result<(DiskFormat, Option<u64>), DataDiskError> {
    let refused = |why| DataDiskError::Format { path: text.to_owned(), why };
    let is_named_so = real.extension().is_some_and(|extension| extension == "qcow2");
    let header = Header::read(file);
    if !is_named_so {
        return match begins_as_image(file) {
            false => Ok((DiskFormat::Raw, None)),
            true => Err(refused(
                "it begins as a qcow2 image does, which a guest can have written; call it NAME.qcow2 if it is one",
            )),
        };
    }
    let header = header.map_err(|_| refused("it is called .qcow2 and is no such image"))?;
    match header.has_backing_file || header.has_data_file() || header.is_encrypted {
        false => Ok((DiskFormat::Qcow2, Some(header.virtual_size))),
        true => Err(refused(
            "the image needs another file or a key; `qemu-img convert` makes one that stands alone",
        )),
    }
}

fn begins_as_image(file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; HEADER];
    file.read_at(&mut bytes, 0).is_ok() && bytes.starts_with(MAGIC)
}

/// Refuses what lies in our own directories.
fn apart(path: &Path, own: &[PathBuf]) -> Result<(), DataDiskError> {
    match own.iter().find(|own| path.starts_with(own)) {
        None => Ok(()),
        Some(own) => Err(DataDiskError::Own {
            path: path.display().to_string(),
            own: own.display().to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::testing::qemu_img;

    #[test]
    fn sizes_and_serials_are_checked() {
        assert_eq!(size("10G"), Ok(10 << 30));
        assert_eq!(size("1500k"), Ok(2 << 20));
        for (text, expected) in [
            ("0", "size: \"0\" is not between 1M and 64T"),
            ("x", "size: \"x\" is not a size such as 10G"),
            ("99999T", "size: \"99999T\" is not between 1M and 64T"),
        ] {
            assert_eq!(size(text).unwrap_err().to_string(), expected);
        }
        assert_eq!(serial("default"), Ok(None));
        for bad in ["a b", "x,y", "123456789012345678901", "ü", "a\nb"] {
            serial(bad).unwrap_err();
        }
    }

    #[test]
    fn what_a_guest_can_have_written_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let path = |name: &str| real.join(name).display().to_string();
        fs::write(path("raw"), [1; 4096]).unwrap();
        fs::write(path("no.qcow2"), [1; 4096]).unwrap();
        qemu_img(&real, &["create", "-q", "-f", "qcow2", "a.qcow2", "3M"]);
        fs::copy(path("a.qcow2"), path("named.raw")).unwrap();
        qemu_img(
            &real,
            &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2"],
        );
        let look = |name: &str| source(&path(name), &["/nowhere".into()]);
        let raw = look("raw").unwrap();
        assert_eq!((raw.format, raw.size, raw.read_only), (DiskFormat::Raw, 4096, false));
        let image = look("a.qcow2").unwrap();
        assert_eq!((image.format, image.size), (DiskFormat::Qcow2, 3 << 20));
        for (name, words) in [
            ("named.raw", "begins as a qcow2 image"),
            ("no.qcow2", "is no such image"),
            ("b.qcow2", "needs another file"),
            ("gone", "No such file"),
            ("", "neither a file nor a block device"),
        ] {
            let said = look(name).unwrap_err().to_string();
            assert!(said.contains(words), "{name}: {said}");
        }
        let said = source(&path("raw"), std::slice::from_ref(&real)).unwrap_err().to_string();
        assert!(said.contains("which is the daemon's own"), "{said}");
        assert_eq!(source("raw", &[]), Err(DataDiskError::Relative("raw".into())));
    }
}
