//! Applies one layer, a tar stream, to a [`RootTree`]: files, links, devices, owners, extended
//! attributes and whiteouts.

use std::io::{self, BufReader, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::super::unpacked::XZ_MEMORY;
use super::root_tree::{Body, EntryError, Metadata, RootTree};

/// What a whiteout's name begins with, and the name of one for all of a directory.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where tar has extended attributes.
const XATTR: &str = "SCHILY.xattr.";
/// Layers of real images unpack to a few times their size, holes in files apart.
const RATIO: u64 = 200;
/// Less than this is no attack.
const SMALL: u64 = 1 << 30;

/// Applies a layer, which may be compressed.
pub(super) fn apply(stored: impl Read, size: u64, tree: &mut RootTree) -> Result<(), EntryError> {
    let unpacked = decompress(stored)?;
    let limit = SMALL.max(size.saturating_mul(RATIO));
    let mut bounded = Bounded { from: unpacked, left: limit };
    tree.next_layer();
    let applied = entries(&mut bounded, tree);
    if bounded.left == 0 {
        return Err(EntryError::Bomb(RATIO));
    }
    applied?;
    // What a digest is over goes to the very end.
    io::copy(&mut bounded, &mut io::sink())?;
    if bounded.left == 0 { Err(EntryError::Bomb(RATIO)) } else { Ok(()) }
}

fn entries(from: impl Read, tree: &mut RootTree) -> Result<(), EntryError> {
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        add(&mut entry?, tree)?;
    }
    Ok(())
}

fn add(entry: &mut tar::Entry<'_, impl Read>, tree: &mut RootTree) -> Result<(), EntryError> {
    let path = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    tree.count(entry.size())?;
    let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
    let (dir, name) = match trimmed.iter().rposition(|b| *b == b'/') {
        Some(at) => trimmed.split_at(at + 1),
        None => (&b""[..], trimmed),
    };
    if name == OPAQUE {
        return tree.opaque(dir);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        // Others than these are of one storage driver's own.
        let is_plain = !hidden.is_empty() && !hidden.starts_with(WHITEOUT);
        return if is_plain { tree.whiteout(&[dir, hidden].concat()) } else { Ok(()) };
    }
    place(entry, &path, kind, tree)
}

fn place(
    entry: &mut tar::Entry<'_, impl Read>,
    path: &[u8],
    kind: EntryType,
    tree: &mut RootTree,
) -> Result<(), EntryError> {
    let metadata = metadata(entry)?;
    let link = || entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
    let device = |kind| {
        let number = |n: io::Result<Option<u32>>| Ok::<_, io::Error>(n?.unwrap_or(0));
        let header = entry.header();
        Ok::<_, io::Error>(Body::Device(
            kind,
            number(header.device_major())?,
            number(header.device_minor())?,
        ))
    };
    if kind.is_symlink() {
        tree.special(path, metadata, Body::Symlink(link()))
    } else if kind.is_hard_link() {
        tree.hard_link(path, &link())
    } else if kind.is_character_special() {
        tree.special(path, metadata, device('c')?)
    } else if kind.is_block_special() {
        tree.special(path, metadata, device('b')?)
    } else if kind.is_fifo() {
        tree.special(path, metadata, Body::Fifo)
    } else if kind.is_pax_global_extensions() {
        // Nothing of the file system: comments for all entries.
        Ok(())
    } else if kind.is_dir() || path.ends_with(b"/") {
        tree.directory(path, metadata)
    } else {
        tree.file(path, metadata, entry)
    }
}

fn metadata(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Metadata> {
    let xattrs = match entry.pax_extensions()? {
        Some(extensions) => extensions.filter_map(Result::ok).filter_map(|e| xattr(&e)).collect(),
        None => Vec::new(),
    };
    let header = entry.header();
    // Old archives leave the fields of root empty.
    let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    let mtime = header.mtime().unwrap_or(0);
    Ok(Metadata {
        mode: header.mode()? & 0o7777,
        uid: id(header.uid()),
        gid: id(header.gid()),
        mtime: u32::try_from(mtime).unwrap_or(0),
        xattrs,
    })
}

fn xattr(extension: &tar::PaxExtension<'_>) -> Option<(String, Vec<u8>)> {
    let name = extension.key().ok()?.strip_prefix(XATTR)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let known = name.chars().all(plain) && !name.is_empty();
    known.then(|| (name.to_owned(), extension.value_bytes().to_vec()))
}

/// Reads a limited number of bytes.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.from.read(&mut buffer[..length])?;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Undoes gzip, zstd or xz; bytes of no known format are as they are.
pub(super) fn decompress<'a>(stored: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 << 10, stored);
    let mut magic = Vec::with_capacity(6);
    reader.by_ref().take(6).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(reader);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(ZstdFrames { from: whole, frame: None }),
        [a, 0x2a, 0x4d, 0x18, ..] if a & 0xf0 == 0x50 => {
            Box::new(ZstdFrames { from: whole, frame: None })
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY))
        }
        _ => Box::new(whole),
    })
}

/// A zstd file, which may have several frames, and some to be skipped between them.
struct ZstdFrames<R> {
    from: R,
    frame: Option<FrameDecoder>,
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.frame {
                Some(frame) if frame.can_collect() > 0 => return frame.read(buffer),
                Some(frame) if !frame.is_finished() => {
                    let one = BlockDecodingStrategy::UptoBlocks(1);
                    frame.decode_blocks(&mut self.from, one).map_err(io::Error::other)?;
                }
                Some(_) | None => match next_frame(&mut self.from)? {
                    Some(frame) => self.frame = Some(frame),
                    None => return Ok(0),
                },
            }
        }
    }
}

/// Begins the next frame; `None` at the end.
fn next_frame(from: &mut impl Read) -> io::Result<Option<FrameDecoder>> {
    loop {
        // The decoder does not tell a file that has ended from one that is cut off.
        let mut first = [0];
        if from.read(&mut first)? == 0 {
            return Ok(None);
        }
        let mut decoder = FrameDecoder::new();
        match decoder.init(io::Cursor::new(first).chain(&mut *from)) {
            Ok(()) => return Ok(Some(decoder)),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                io::copy(&mut from.take(length.into()), &mut io::sink())?;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Hashes what is read.
pub(super) struct Hashing<R> {
    from: R,
    digest: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, digest: Sha256::new() }
    }

    /// Reads the rest, and returns the digest as manifests have it.
    pub(super) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(format!("sha256:{:x}", self.digest.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.digest.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::super::root_tree::{Limits, ROOT};
    use super::*;

    fn tar(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        add(&mut builder);
        builder.into_inner().unwrap()
    }

    fn member(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: EntryType, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        // `set_path` refuses what a hostile archive has.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_uid(1000);
        header.set_gid(70_000);
        header.set_mtime(42);
        header.set_size(content.len() as u64);
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn applied(bytes: &[u8], dir: &Path) -> Result<RootTree, EntryError> {
        let limits = Limits { entries: 100, bytes: 4 << 30 };
        let mut tree = RootTree::new(dir.to_owned(), limits);
        apply(bytes, bytes.len() as u64, &mut tree).map(|()| tree)
    }

    #[test]
    fn owners_devices_and_attributes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = tar(|builder| {
            let pair = ("SCHILY.xattr.security.capability", &b"\x01\0\xff"[..]);
            builder.append_pax_extensions([pair]).unwrap();
            member(builder, "ping", EntryType::Regular, b"elf");
            member(builder, "null", EntryType::Char, b"");
        });
        let tree = applied(&bytes, dir.path()).unwrap();
        let Body::Directory(entries) = &tree.inode(ROOT).body else { panic!("no directory") };
        let of = |name: &str| tree.inode(entries[name.as_bytes()].inode);
        let ping = &of("ping").metadata;
        assert_eq!((ping.mode, ping.uid, ping.gid, ping.mtime), (0o640, 1000, 70_000, 42));
        assert_eq!(ping.xattrs, [("security.capability".to_owned(), b"\x01\0\xff".to_vec())]);
        assert_eq!(of("null").body, Body::Device('c', 1, 3));
    }

    #[test]
    fn every_compression_unpacks_to_the_same() {
        let plain = tar(|builder| member(builder, "a", EntryType::Regular, &[7; 5000]));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let frame = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, level);
        // As zstd:chunked has it: several frames, and one to be skipped.
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        let zstd = [frame(&plain[..700]), skipped, frame(&plain[700..])].concat();
        for bytes in [plain.clone(), gzip.finish().unwrap(), zstd.clone()] {
            let mut unpacked = Vec::new();
            decompress(&bytes[..]).unwrap().read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == plain);
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(applied(&zstd[..zstd.len() - 9], dir.path()).is_err(), "it is cut off");
        assert!(applied(&plain[..3000], dir.path()).is_err(), "it is cut off");
    }

    #[test]
    fn what_leads_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = tar(|builder| member(builder, "../escaped", EntryType::Regular, b"x"));
        assert!(matches!(applied(&bytes, dir.path()), Err(EntryError::Escapes(_))));
        assert!(!dir.path().parent().unwrap().join("escaped").exists());
    }

    #[test]
    fn a_bomb_is_defused() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(2 << 30);
        header.set_mode(0o644);
        header.set_cksum();
        gzip.write_all(header.as_bytes()).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..1100).for_each(|_| gzip.write_all(&zeros).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let refused = applied(&gzip.finish().unwrap(), dir.path());
        assert!(matches!(refused, Err(EntryError::Bomb(_))), "{refused:?}");
    }
}
