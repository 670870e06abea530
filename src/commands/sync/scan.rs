//! A directory as it is, on either side: every file in it by its path.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::super::Failure;
use super::super::transfer::dir::{DEEPEST, Dir, Meta, refused};
use super::manifest::MOST_FILES;

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) meta: Meta,
    /// Where a link leads.
    pub(super) target: Vec<u8>,
}

impl Item {
    /// Says whether it is something that is sent and taken.
    pub(super) fn is_plain(&self) -> bool {
        let plain = [FileType::Directory, FileType::RegularFile, FileType::Symlink];
        plain.contains(&self.meta.kind)
    }
}

pub(super) type Items = BTreeMap<Vec<u8>, Item>;

/// Lists all that is in a directory.
///
/// # Errors
/// What cannot be read: it would count as deleted.
pub(super) fn scan(dir: &Dir) -> Result<Items, Failure> {
    let mut items = Items::new();
    scan_into(dir, &[], 0, &mut items)?;
    Ok(items)
}

fn scan_into(dir: &Dir, prefix: &[u8], depth: usize, items: &mut Items) -> Result<(), Failure> {
    let too_much = |what: &str, sentence: &str| Failure::Refused {
        what: what.to_owned(),
        sentence: sentence.to_owned(),
        errno: 0,
    };
    if depth >= DEEPEST {
        return Err(too_much(dir.shown_itself(), "it is deeper than 256 directories"));
    }
    for name in dir.names().map_err(refused(dir.shown_itself()))? {
        let path = [prefix, name.as_bytes()].concat();
        let Some(meta) = dir.look(&name).map_err(refused(dir.shown(&name)))? else { continue };
        if items.len() >= MOST_FILES {
            return Err(too_much(dir.shown_itself(), "there are more than a million files"));
        }
        let target = match meta.kind == FileType::Symlink {
            true => dir.target(&name).map_err(refused(dir.shown(&name)))?,
            false => Vec::new(),
        };
        items.insert(path.clone(), Item { meta, target });
        if meta.is_dir() {
            let inner = dir.dir(&name).map_err(refused(dir.shown(&name)))?;
            scan_into(&inner, &[&path, &b"/"[..]].concat(), depth + 1, items)?;
        }
    }
    Ok(())
}

/// Splits a path into its directory and its name.
pub(super) fn split(path: &[u8]) -> (&[u8], &OsStr) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], OsStr::from_bytes(&path[slash + 1..])),
        None => (&[], OsStr::from_bytes(path)),
    }
}

/// Opens a directory in another by names, none of which is followed.
pub(super) fn walk(root: &Dir, path: &[u8]) -> std::io::Result<Dir> {
    let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
    names.map(OsStr::from_bytes).try_fold(root.try_clone()?, |dir, name| dir.dir(name))
}

/// Computes the digest of what is read.
pub(super) fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file for its digest.
pub(super) fn digest(root: &Dir, path: &[u8]) -> std::io::Result<String> {
    let (directory, name) = split(path);
    let (mut file, _) = walk(root, directory)?.file(name)?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut digest)?;
    Ok(hex(digest))
}
