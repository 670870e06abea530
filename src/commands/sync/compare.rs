//! What has changed on a side since the last common state.
//!
//! A file counts as changed if its kind, its permissions or its size are others, or its time and its content
//! are. The content is looked at too where the time may be the same by chance.

use std::collections::BTreeSet;
use std::io;

use rustix::fs::FileType;

use super::super::transfer::dir::Dir;
use super::manifest::{FileRecord, LinkRecord, Manifest, Name, Record, What};
use super::scan::{Item, Items, digest};

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change<'a> {
    pub(super) path: &'a [u8],
    /// What it was.
    pub(super) was: Option<&'a Record>,
    /// What it is.
    pub(super) is: Option<&'a Item>,
}

impl Change<'_> {
    /// Says whether it can be sent and taken: what a file has become is none of a FIFO, a socket, a device.
    pub(super) fn is_plain(&self) -> bool {
        self.is.is_none_or(Item::is_plain)
    }
}

/// A side, with all that is there.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Dir,
    pub(super) items: Items,
    /// A link has two words: the host's, and what `fs` shows of the guest's.
    pub(super) link: fn(&LinkRecord) -> &Name,
}

/// Lists what has changed, by path.
pub(super) fn changes<'a>(manifest: &'a Manifest, tree: &'a Tree) -> io::Result<Vec<Change<'a>>> {
    let paths: BTreeSet<&[u8]> =
        manifest.files.keys().chain(tree.items.keys()).map(Vec::as_slice).collect();
    let mut found = Vec::new();
    for path in paths {
        let change = Change { path, was: manifest.files.get(path), is: tree.items.get(path) };
        if is_changed(&change, tree)? {
            found.push(change);
        }
    }
    Ok(found)
}

/// Says whether what is there is not what was recorded.
pub(super) fn is_changed(change: &Change<'_>, tree: &Tree) -> io::Result<bool> {
    let (Some(was), Some(is)) = (change.was, change.is) else { return Ok(true) };
    Ok(match &was.what {
        What::Directory => !is.meta.is_dir() || is.meta.mode != was.mode,
        What::Link(link) => {
            is.meta.kind != FileType::Symlink || is.target != (tree.link)(link).bytes()
        }
        What::File(file) => {
            is.meta.kind != FileType::RegularFile
                || is.meta.mode != was.mode
                || is.meta.size != file.size
                || (may_differ(file, is) && digest(&tree.root, change.path)? != file.digest)
        }
    })
}

/// Says whether the content has to be looked at.
fn may_differ(file: &FileRecord, is: &Item) -> bool {
    file.is_recent || is.meta.mtime.0 != file.mtime
}
