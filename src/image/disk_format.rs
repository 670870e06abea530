//! What a file is that is to become a disk: by its content, compared with its name. What would make QEMU
//! open another file of the host is refused.
//!
//! Not here: unpacking (`unpacked`) and copying (`local_disk`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::disk::qcow2::{HEADER, Header, HeaderError};
use crate::disk::{DiskFormat, ForeignFormat};
use crate::store::file::open_regular;

/// How many bytes of a file are looked at: what says that it is an ISO image is at 32 KiB.
const LENGTH: usize = 36 << 10;
/// The most bytes of a VMDK's description that are read, as QEMU does.
const LONGEST_DESCRIPTION: u64 = 64 << 10;

/// The beginnings of formats that are not taken: taking them for raw would show the guest a broken disk.
const REFUSED: &[(&[u8], &str)] = &[
    (b"# Disk DescriptorFile", "a VMDK disk whose data are in other files"),
    (b"COWD", "a VMDK disk of an old form"),
    (b"conectix", "a VHD disk"),
    (b"QED\0", "a QED disk"),
    (b"LUKS\xba\xbe", "an encrypted disk (LUKS)"),
];

/// A form of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

impl Compression {
    const ALL: [(Self, &'static str, &'static [u8]); 4] = [
        (Self::Gzip, "gz", b"\x1f\x8b"),
        (Self::Xz, "xz", b"\xfd7zXZ\0"),
        (Self::Zstd, "zst", b"\x28\xb5\x2f\xfd"),
        (Self::Bzip2, "bz2", b"BZh"),
    ];

    /// Recognises it by the first bytes of a file.
    pub(super) fn of(header: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|(.., magic)| header.starts_with(magic)).map(|(is, ..)| is)
    }

    fn named(ending: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, name, _)| *name == ending).map(|(is, ..)| is)
    }

    fn ending(self) -> &'static str {
        Self::ALL.into_iter().find(|(is, ..)| *is == self).map_or("", |(_, name, _)| name)
    }
}

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name<'a> {
    /// The ending that names the format: `qcow2`.
    pub(super) ending: &'a str,
    pub(super) compression: Option<Compression>,
}

impl<'a> Name<'a> {
    pub(super) fn of(path: &'a Path) -> Self {
        let compression = ending(path).and_then(Compression::named);
        let inner =
            if compression.is_some() { path.file_stem().map(Path::new) } else { Some(path) };
        Self { ending: inner.and_then(ending).unwrap_or_default(), compression }
    }

    /// Says whether the file has to be unpacked.
    ///
    /// # Errors
    /// A file that is compressed and not called so, or the other way round.
    pub(super) fn check_compression(&self, found: Option<Compression>) -> Result<(), String> {
        match (self.compression, found) {
            (named, found) if named == found => Ok(()),
            (_, Some(found)) => {
                let ending = found.ending();
                Err(format!(
                    "is compressed, which its name does not say; have that end in .{ending}"
                ))
            }
            (Some(named), None) => {
                Err(format!("is not a .{} file, whatever its name says", named.ending()))
            }
            (None, None) => Ok(()),
        }
    }
}

fn ending(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

/// A format that a disk is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceFormat {
    /// It is kept as it is.
    Kept(DiskFormat),
    /// It is converted.
    Converted(ForeignFormat),
}

/// What a file begins with. What is beyond the end of a shorter one is zeros.
#[derive(Debug)]
pub(super) struct Beginning {
    bytes: Vec<u8>,
    file: File,
}

impl Beginning {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = open_regular(path).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidInput {
                let what = "not a regular file; copy what is on a device into one first";
                return io::Error::new(error.kind(), what);
            }
            error
        })?;
        let mut bytes = Vec::with_capacity(LENGTH);
        (&file).take(LENGTH as u64).read_to_end(&mut bytes)?;
        bytes.resize(LENGTH, 0);
        Ok(Self { bytes, file })
    }

    pub(super) fn compression(&self) -> Option<Compression> {
        Compression::of(&self.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.len() == 0)
    }

    /// Returns the format of a file that is not compressed. A name that says otherwise is a mistake, or a
    /// guest's raw disk that a guest has made look like something else.
    ///
    /// # Errors
    /// Why the file cannot become a disk, as what is said of it.
    pub(super) fn format(&self, ending: &str) -> Result<SourceFormat, String> {
        let content = self.content()?;
        match ending {
            "qcow2" | "raw" | "iso" | "vmdk" | "vhdx" | "vdi" if content.ending() != ending => {
                Err(content.misnamed(ending))
            }
            "img" | "" if matches!(content, Content::Foreign(_)) => Err(content.misnamed(ending)),
            _ => self.check(content),
        }
    }

    fn content(&self) -> Result<Content, String> {
        match Header::parse(self.qcow2_header()) {
            Ok(_) => return Ok(Content::Qcow2),
            Err(error @ (HeaderError::Version(_) | HeaderError::Damaged)) => {
                return Err(format!("is {error}"));
            }
            Err(HeaderError::Foreign) => {}
        }
        if let Some((_, what)) = REFUSED.iter().find(|(magic, _)| self.bytes.starts_with(magic)) {
            return Err(format!("is {what}; `qemu-img convert` makes one that is accepted"));
        }
        Ok(match &self.bytes {
            b if b.starts_with(b"KDMV") => Content::Foreign(ForeignFormat::Vmdk),
            b if b.starts_with(b"vhdxfile") => Content::Foreign(ForeignFormat::Vhdx),
            b if b[0x40..].starts_with(b"\x7f\x10\xda\xbe") => Content::Foreign(ForeignFormat::Vdi),
            b if b[0x8001..].starts_with(b"CD001") => Content::Iso,
            _ => Content::Raw,
        })
    }

    fn qcow2_header(&self) -> &[u8; HEADER] {
        self.bytes.first_chunk().unwrap_or(&[0; HEADER])
    }

    fn check(&self, content: Content) -> Result<SourceFormat, String> {
        match content {
            Content::Qcow2 => {
                let header = Header::parse(self.qcow2_header()).map_err(|e| format!("is {e}"))?;
                refuse_other_files(&header)?;
                Ok(SourceFormat::Kept(DiskFormat::Qcow2))
            }
            Content::Iso if self.bytes[510..512] != [0x55, 0xaa] => Err(
                "is an ISO image that starts from a CD-ROM drive only; make an image of builtin:blank, \
                 and give the path to the config/cdrom of its VM"
                    .to_owned(),
            ),
            Content::Raw | Content::Iso => Ok(SourceFormat::Kept(DiskFormat::Raw)),
            Content::Foreign(format) => {
                if format == ForeignFormat::Vmdk {
                    self.refuse_other_extents()?;
                }
                Ok(SourceFormat::Converted(format))
            }
        }
    }

    /// Refuses a VMDK whose own description names other files: QEMU would open them.
    fn refuse_other_extents(&self) -> Result<(), String> {
        let number = |at: usize| {
            self.bytes[at..at + 8].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte))
        };
        let (capacity, offset, sectors) = (number(12), number(28), number(36));
        let elsewhere = "keeps its data in other files; `qemu-img convert` makes one that does not";
        if capacity == 0 {
            return Err(elsewhere.to_owned());
        }
        let length = sectors.saturating_mul(512).min(LONGEST_DESCRIPTION);
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        let at = offset.checked_mul(512).ok_or("is a damaged VMDK disk")?;
        self.file
            .read_exact_at(&mut text, at)
            .map_err(|e| format!("is a damaged VMDK disk: {e}"))?;
        let text = String::from_utf8_lossy(&text);
        match description(&text, "parentCID") {
            None | Some("ffffffff") => {}
            Some(_) => {
                return Err("has a parent; `qemu-img convert` makes one that has none".to_owned());
            }
        }
        match description(&text, "createType") {
            Some("monolithicSparse" | "streamOptimized") => Ok(()),
            // Without a description it is a piece of a disk that has several.
            None | Some(_) => Err(elsewhere.to_owned()),
        }
    }
}

/// Returns a value of a VMDK's description: `createType="streamOptimized"`.
fn description<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value =
        text.lines().find_map(|line| line.trim().strip_prefix(key)?.trim().strip_prefix('='));
    value.map(|value| value.trim().trim_matches('"'))
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Qcow2,
    Iso,
    Foreign(ForeignFormat),
    /// Nothing that is known.
    Raw,
}

impl Content {
    fn ending(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Iso => "iso",
            Self::Foreign(format) => format.word(),
            Self::Raw => "raw",
        }
    }

    fn misnamed(self, ending: &str) -> String {
        let is = match self {
            Self::Qcow2 => "is a qcow2 image",
            Self::Iso => "is an ISO image",
            Self::Foreign(ForeignFormat::Vmdk) => "is a VMDK disk",
            Self::Foreign(ForeignFormat::Vhdx) => "is a VHDX disk",
            Self::Foreign(ForeignFormat::Vdi) => "is a VDI disk",
            Self::Raw => {
                return format!(
                    "is no {ending} file, whatever its name says; a raw disk ends in .raw"
                );
            }
        };
        format!("{is}, which its name does not say; have that end in .{}", self.ending())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::qemu_img;

    fn of(ending: &str, bytes: &[u8]) -> Result<SourceFormat, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        Beginning::read(&path).unwrap().format(ending)
    }

    fn qcow2(version: u32) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[23] = 16;
        header
    }

    #[test]
    fn the_format_is_what_the_content_says_and_the_name_must_agree() {
        let (kept, raw) =
            (SourceFormat::Kept(DiskFormat::Qcow2), SourceFormat::Kept(DiskFormat::Raw));
        assert_eq!(of("img", &qcow2(3)), Ok(kept));
        assert_eq!(of("img", &[0; HEADER]), Ok(raw));
        assert!(of("qcow2", &[0; HEADER]).unwrap_err().contains("is no qcow2 file"));
        assert!(of("raw", &qcow2(3)).unwrap_err().contains("end in .qcow2"));
        assert!(of("vmdk", &qcow2(3)).is_err() && of("qcow2", &qcow2(9)).is_err());
        let mut vmdk = [0; HEADER];
        vmdk[..4].copy_from_slice(b"KDMV");
        assert!(of("img", &vmdk).unwrap_err().contains("is a VMDK disk"));
        assert!(of("vmdk", &vmdk).unwrap_err().contains("in other files"));
        assert!(of("img", b"conectix").unwrap_err().contains("VHD"));
    }

    #[test]
    fn an_iso_image_is_a_disk_if_a_bios_starts_it_from_one() {
        let mut iso = vec![0; 40 << 10];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        assert!(of("iso", &iso).unwrap_err().contains("config/cdrom"));
        assert!(of("raw", &iso).unwrap_err().contains("end in .iso"));
        iso[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(of("iso", &iso), Ok(SourceFormat::Kept(DiskFormat::Raw)));
        assert!(of("iso", &[0; 512]).is_err());
    }

    #[test]
    fn what_leads_to_other_files_is_refused() {
        let (mut backed, mut external, mut secret) = (qcow2(2), qcow2(3), qcow2(3));
        backed[15] = 1;
        external[79] = 4;
        secret[35] = 2;
        assert!(of("qcow2", &backed).unwrap_err().contains("backing file"));
        assert!(of("qcow2", &external).unwrap_err().contains("another file"));
        assert!(of("qcow2", &secret).unwrap_err().contains("encrypted"));
    }

    #[test]
    fn a_vmdk_stands_alone_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let format = |name: &str| Beginning::read(&dir.path().join(name)).unwrap().format("vmdk");
        let create =
            |args: &[&str]| drop(qemu_img(dir.path(), &[&["create", "-q"], args].concat()));
        create(&["-f", "vmdk", "a.vmdk", "4M"]);
        create(&["-f", "vmdk", "-o", "subformat=streamOptimized", "s.vmdk", "4M"]);
        create(&["-f", "vmdk", "-b", "a.vmdk", "-F", "vmdk", "b.vmdk"]);
        create(&["-f", "vmdk", "-o", "subformat=monolithicFlat", "f.vmdk", "4M"]);
        for name in ["a.vmdk", "s.vmdk"] {
            assert_eq!(format(name), Ok(SourceFormat::Converted(ForeignFormat::Vmdk)));
        }
        assert!(format("b.vmdk").unwrap_err().contains("has a parent"));
        assert!(format("f.vmdk").unwrap_err().contains("in other files"));
    }

    #[test]
    fn a_name_says_format_and_compression() {
        let name = |path: &'static str| Name::of(Path::new(path));
        assert_eq!(name("/a/x.qcow2"), Name { ending: "qcow2", compression: None });
        let xz = Some(Compression::Xz);
        assert_eq!(name("/a/x.raw.xz"), Name { ending: "raw", compression: xz });
        assert!(name("x.raw").check_compression(xz).unwrap_err().contains("end in .xz"));
        assert!(name("x.raw.xz").check_compression(None).unwrap_err().contains("not a .xz file"));
        assert!(name("x.raw.gz").check_compression(xz).is_err());
        assert_eq!(name("x.raw.xz").check_compression(xz), Ok(()));
    }

    #[test]
    fn a_fifo_and_a_directory_are_no_disks_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("x.raw");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert!(Beginning::read(&fifo).is_err());
        assert!(Beginning::read(dir.path()).is_err());
    }
}
