//! A disk image on this host as a source: copied, and refused if it refers to other files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest};
use super::source::{BuildError, ImageSource, Progress, Result};
use crate::disk::img::Conversion;
use crate::disk::qcow2::{HEADER, Header, HeaderError};
use crate::disk::{DiskFormat, Layer, sparse};
use crate::fetch::Downloaded;
use crate::store::file::open_regular;
use crate::vm::backend::{BackendError, SeedKind};

/// The beginnings of other formats: taking them for raw would show the guest a broken disk.
const FOREIGN: &[(&[u8], &str)] = &[
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"QED\0", "QED"),
    (b"<<< ", "VDI"),
    (b"LUKS\xba\xbe", "LUKS"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
];

/// The source.
#[derive(Debug)]
pub(super) struct DiskFile {
    path: PathBuf,
    spec: String,
}

impl DiskFile {
    /// Looks at the file before anything is begun.
    pub(super) fn new(path: PathBuf) -> Result<Self, BackendError> {
        let spec = path.display().to_string();
        let header = read_header(&path).map_err(BackendError::at(&spec))?;
        let refused = |reason| BackendError::BadSource { origin: spec.clone(), reason };
        format_of(&path, &header).map_err(refused)?;
        Ok(Self { path, spec })
    }
}

impl ImageSource for DiskFile {
    fn spec(&self) -> &str {
        &self.spec
    }

    fn kind(&self) -> &'static str {
        "disk"
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest> {
        progress.building("copying");
        let header = read_header(&self.path).map_err(BuildError::at(&self.path))?;
        let bad = |reason| BuildError::malformed(&self.spec, reason);
        let format = format_of(&self.path, &header).map_err(bad)?;
        let name = manifest::disk_name(format);
        let disk = dir.join(name);
        if !share_blocks(&self.path, &disk) {
            let layers = &[Layer { path: self.path.clone(), format }];
            let to = Layer { path: disk.clone(), format };
            progress.copying(&Conversion { layers, snapshot: None, to: &to, base: None })?;
        }
        // The copy is what counts: the original may have changed since it was looked at.
        let header = read_header(&disk).map_err(BuildError::at(&disk))?;
        format_of(&disk, &header).map_err(bad)?;
        progress.building("computing the digest");
        let disk_size = virtual_size(&disk, format, &header)?;
        let seed = SeedKind::Nocloud;
        Ok(Manifest { seed, ..Manifest::of_disk(self, format, disk_size) })
    }
}

/// Takes a disk that was fetched, and has a checksum that counts, into an image's directory. `name`
/// is what the server calls it. A file that cannot become an image is removed.
pub(super) fn take(
    file: Downloaded,
    name: &str,
    dir: &Path,
) -> Result<(DiskFormat, u64), BuildError> {
    let header = read_header(file.path()).map_err(BuildError::at(file.path()))?;
    let format = format_of(Path::new(name), &header).map_err(|reason| {
        file.discard();
        BuildError::malformed(name, reason)
    })?;
    let disk = file.move_to(&dir.join(manifest::disk_name(format)))?;
    Ok((format, virtual_size(&disk, format, &header)?))
}

/// Lets `to` share the blocks of a file where the file system can; says whether it could.
fn share_blocks(from: &Path, to: &Path) -> bool {
    let share = || sparse::reflink(&open_regular(from)?, &File::create(to)?);
    share().is_ok()
}

/// Reads a disk's beginning; the rest of a shorter file is zeros.
fn read_header(path: &Path) -> io::Result<[u8; HEADER]> {
    let file = open_regular(path).map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidInput {
            let what = "not a regular file; copy what is on a device into one first";
            return io::Error::new(error.kind(), what);
        }
        error
    })?;
    let mut bytes = Vec::with_capacity(HEADER);
    file.take(HEADER as u64).read_to_end(&mut bytes)?;
    let mut header = [0; HEADER];
    header[..bytes.len()].copy_from_slice(&bytes);
    Ok(header)
}

/// Recognises the format by the file's own first bytes, and refuses what would make QEMU open
/// another file of the host. A name that says otherwise is a mistake, or a guest's raw disk that a
/// guest has made look like something else.
fn format_of(path: &Path, header: &[u8; HEADER]) -> Result<DiskFormat, String> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match (Header::parse(header), ending) {
        (Ok(_), "raw") => Err("is a qcow2 image; give it a name that ends in .qcow2".to_owned()),
        (Ok(header), _) => refuse_other_files(&header).map(|()| DiskFormat::Qcow2),
        (Err(error @ (HeaderError::Version(_) | HeaderError::Damaged)), _) => {
            Err(format!("is {error}"))
        }
        (Err(HeaderError::Foreign), _) => refuse_other_formats(header, ending),
    }
}

fn refuse_other_formats(header: &[u8; HEADER], ending: &str) -> Result<DiskFormat, String> {
    if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| header.starts_with(magic)) {
        return Err(format!("is in {name} format; unpack or `qemu-img convert` it first"));
    }
    match ending {
        "qcow2" => Err("is not a qcow2 image, whatever its name says".to_owned()),
        _ => Ok(DiskFormat::Raw),
    }
}

fn refuse_other_files(header: &Header) -> Result<(), String> {
    let refusals = [
        (header.has_backing_file, "has a backing file; `qemu-img convert` makes one that has none"),
        (header.is_encrypted, "is encrypted; `qemu-img convert` it first"),
        (header.has_data_file(), "keeps its data in another file; `qemu-img convert` it first"),
    ];
    let refused = refusals.into_iter().find(|(is_so, _)| *is_so);
    refused.map_or(Ok(()), |(_, reason)| Err(reason.to_owned()))
}

fn virtual_size(disk: &Path, format: DiskFormat, header: &[u8; HEADER]) -> Result<u64> {
    let damaged = |error| BuildError::malformed(disk.display().to_string(), error);
    let size = match format {
        DiskFormat::Raw => std::fs::metadata(disk).map_err(BuildError::at(disk))?.len(),
        DiskFormat::Qcow2 => Header::parse(header).map_err(damaged)?.virtual_size,
    };
    Ok(size.next_multiple_of(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(version: u32) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[23] = 16;
        header
    }

    #[test]
    fn the_format_is_what_the_first_bytes_say() {
        let of = |name: &str, header: &[u8; HEADER]| format_of(Path::new(name), header);
        assert_eq!(of("x.img", &qcow2(3)), Ok(DiskFormat::Qcow2));
        assert_eq!(of("x.img", &[0; HEADER]), Ok(DiskFormat::Raw));
        assert!(of("x.qcow2", &[0; HEADER]).is_err());
        assert!(of("x.raw", &qcow2(3)).is_err());
        assert!(of("x.qcow2", &qcow2(9)).is_err());
        let mut vmdk = [0; HEADER];
        vmdk[..4].copy_from_slice(b"KDMV");
        assert!(of("x.img", &vmdk).unwrap_err().contains("VMDK"));
    }

    #[test]
    fn what_leads_to_other_files_is_refused() {
        let of = |header: &[u8; HEADER]| format_of(Path::new("x.qcow2"), header);
        let (mut backed, mut external, mut secret) = (qcow2(2), qcow2(3), qcow2(3));
        backed[15] = 1;
        external[79] = 4;
        secret[35] = 2;
        assert!(of(&backed).unwrap_err().contains("backing file"));
        assert!(of(&external).unwrap_err().contains("another file"));
        assert!(of(&secret).unwrap_err().contains("encrypted"));
    }

    #[test]
    fn a_fifo_and_a_directory_are_no_disks_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("x.raw");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert!(read_header(&fifo).is_err());
        assert!(read_header(dir.path()).is_err());
    }
}
