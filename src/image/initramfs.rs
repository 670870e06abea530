//! Writes a [`FileTree`] as an initramfs: a cpio archive, uncompressed, because the guest's
//! processor would unpack it more slowly than QEMU copies it.

use std::io;

use cpio::newc::{Builder, ModeFileType, trailer};

use super::file_tree::{FileBody, FileTree};

/// Returns the archive; every file gets the time `mtime`, in seconds since 1970.
pub(super) fn archive(tree: &FileTree, mtime: u32) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for ((path, node), ino) in tree.iter().zip(1..) {
        let (file_type, bytes) = match &node.body {
            FileBody::Directory => (ModeFileType::Directory, &[][..]),
            FileBody::File(bytes) => (ModeFileType::Regular, &bytes[..]),
            FileBody::Symlink(target) => (ModeFileType::Symlink, target.as_bytes()),
        };
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut entry = Builder::new(path)
            .ino(ino)
            .mode(u32::from(node.mode))
            .set_mode_file_type(file_type)
            .mtime(mtime)
            .write(&mut out, size);
        io::Write::write_all(&mut entry, bytes)?;
        entry.finish()?;
    }
    trailer(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_reads_back() {
        let mut tree = FileTree::default();
        tree.file("bin/sh", 0o755, *b"#!");
        tree.symlink("sbin", "bin");
        let bytes = archive(&tree, 7).unwrap();
        let mut names = Vec::new();
        let mut rest = &bytes[..];
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            names.push((entry.name().to_owned(), entry.mode(), entry.file_size()));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("bin".to_owned(), 0o40755, 0),
            ("bin/sh".to_owned(), 0o100_755, 2),
            ("sbin".to_owned(), 0o120_777, 3),
        ];
        assert_eq!(names, expected);
    }
}
