//! Undoes compression, and reads packages.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::file_tree::FileTree;
use super::source::{BuildError, Result};
use super::unpacked::XZ_MEMORY;

/// No input unpacks to more than this.
const LIMIT: u64 = 512 << 20;

/// Returns `bytes` uncompressed, or as they are if they have no format known here.
pub(super) fn decompress(what: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let read = decoder(bytes).and_then(|decoder| decoder.take(LIMIT).read_to_end(&mut out));
    read.map_err(|e| BuildError::malformed(what, e))?;
    Ok(out)
}

/// Undoes the compression of a stream, if it begins as one of the formats known here.
fn decoder<'a>(mut packed: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match packed.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(packed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
            Box::new(decoder.map_err(|e| io::Error::other(e.to_string()))?)
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        _ => Box::new(packed),
    })
}

/// Adds to `tree` those files of a Debian package whose path `wanted` accepts, and returns the time
/// of the newest of them in seconds since 1970.
pub(super) fn package(
    deb: &Path,
    tree: &mut FileTree,
    wanted: impl Fn(&str) -> bool,
) -> Result<u32> {
    let failed = BuildError::at(deb);
    let mut archive = ar::Archive::new(BufReader::new(File::open(deb).map_err(failed)?));
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(failed)?;
        if entry.header().identifier().starts_with(b"data.tar") {
            let tar = decoder(BufReader::new(entry)).map_err(failed)?;
            return read_tar(tar, tree, wanted).map_err(failed);
        }
    }
    Err(BuildError::malformed(deb.display().to_string(), "it holds no data.tar"))
}

fn read_tar(
    stream: impl Read,
    tree: &mut FileTree,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<u32> {
    let mut archive = tar::Archive::new(stream);
    let mut newest = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").trim_end_matches('/');
        if path.is_empty() || path.split('/').any(|part| part == "..") || !wanted(path) {
            continue;
        }
        if add(&mut entry, path, tree)? {
            let mtime = entry.header().mtime()?;
            newest = newest.max(u32::try_from(mtime).unwrap_or(0));
        }
    }
    Ok(newest)
}

fn add(entry: &mut tar::Entry<'_, impl Read>, path: &str, tree: &mut FileTree) -> io::Result<bool> {
    let header = entry.header().clone();
    let kind = header.entry_type();
    if kind.is_file() {
        let mut bytes = Vec::new();
        entry.take(LIMIT).read_to_end(&mut bytes)?;
        let executable = header.mode()? & 0o111 != 0;
        tree.file(path, if executable { 0o755 } else { 0o644 }, bytes);
    } else if let Some(target) = entry.link_name()?
        && kind.is_symlink()
    {
        tree.symlink(path, &target.to_string_lossy());
    } else {
        return Ok(false);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_and_plain_bytes_are_told_apart_by_their_first_bytes() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"hello").unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(decompress("x", &packed).unwrap(), b"hello");
        assert_eq!(decompress("x", b"hello").unwrap(), b"hello");
        assert!(decompress("x", &packed[..12]).is_err());
    }

    #[test]
    fn a_package_is_an_archive_with_a_tar_in_it_compressed_or_not() {
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o755);
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header, "./usr/bin/x", &b"elf"[..]).unwrap();
        let plain = tar.into_inner().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("x.deb");
        for (name, data) in [("data.tar", plain), ("data.tar.gz", gz.finish().unwrap())] {
            let mut builder = ar::Builder::new(File::create(&deb).unwrap());
            for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), (name, &data)] {
                let header = ar::Header::new(name.into(), bytes.len() as u64);
                builder.append(&header, bytes).unwrap();
            }
            let mut tree = FileTree::default();
            package(&deb, &mut tree, |_| true).unwrap();
            assert_eq!(&*tree.read("usr/bin/x").unwrap(), b"elf");
        }
        std::fs::write(&deb, "!<arch>\n").unwrap();
        let error = package(&deb, &mut FileTree::default(), |_| true).unwrap_err().to_string();
        assert!(error.ends_with("it holds no data.tar"), "{error}");
    }

    #[test]
    fn a_tar_stream_gives_files_and_links_and_no_way_out() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o755);
        header.set_mtime(42);
        builder.append_data(&mut header, "./usr/bin/x", &b"elf"[..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut tree = FileTree::default();
        assert_eq!(read_tar(&bytes[..], &mut tree, |_| true).unwrap(), 42);
        assert_eq!(&*tree.read("usr/bin/x").unwrap(), b"elf");
    }
}
