//! Undoes compression, and reads packages.

use std::io::{self, Read};
use std::path::Path;

use super::command::Tool;
use super::file_tree::FileTree;
use super::source::{BuildError, Result};

const DPKG_DEB: Tool = Tool {
    name: "dpkg-deb",
    remedy: "install the package dpkg, or name an image of your own in config/image",
};

/// No input unpacks to more than this.
const LIMIT: u64 = 512 << 20;

/// Returns `bytes` uncompressed, or as they are if they have no format known here.
pub(super) fn decompress(what: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let damaged = |e: &dyn std::fmt::Display| BuildError::malformed(what, e);
    let mut out = Vec::new();
    let reader: Box<dyn Read + '_> = match bytes {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(bytes)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(lzma_rust2::XzReader::new(bytes, false)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(bytes).map_err(|e| damaged(&e))?)
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(lz4_flex::frame::FrameDecoder::new(bytes)),
        _ => return Ok(bytes.to_vec()),
    };
    let read = reader.take(LIMIT).read_to_end(&mut out);
    read.map_err(|e| damaged(&e))?;
    Ok(out)
}

/// Adds to `tree` those files of a package whose path `wanted` accepts, and returns the time of
/// the newest of them in seconds since 1970.
pub(super) fn package(
    deb: &Path,
    tree: &mut FileTree,
    wanted: impl Fn(&str) -> bool,
) -> Result<u32> {
    let mut call = DPKG_DEB.command();
    call.arg("--fsys-tarfile").arg(deb);
    // The program's own words explain a broken stream better than the stream does.
    let result = DPKG_DEB.stream(&mut call, |tar| read_tar(tar, tree, wanted))?;
    result.unwrap_or(Ok(0)).map_err(BuildError::at(deb))
}

fn read_tar(
    mut stream: impl Read,
    tree: &mut FileTree,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<u32> {
    let mut archive = tar::Archive::new(&mut stream);
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
    // Read to the very end: else dpkg-deb fails of a broken pipe.
    io::copy(&mut stream, &mut io::sink())?;
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
