//! A guest's directory as the kernel reads it: `.`, `..` and the names, each with the position after it.
//!
//! Not here: reading it from the guest (`files`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileType, Generation, INodeNo, ReplyDirectoryPlus};

use super::attr::{kind, stat};
use super::name_ttl;
use crate::files::{FileId, GuestFileSystem};
use crate::vm::backend::{DirectoryEntry, FileAttr};

/// A name of a listing.
#[derive(Clone, Copy)]
pub(super) enum Listed<'a> {
    /// The directory or the one above: for the kernel these are names alone.
    Dots(&'static str),
    Entry(&'a DirectoryEntry),
}

/// Returns what comes from a position on, each with the position after it.
pub(super) fn from(
    listing: &[DirectoryEntry],
    offset: u64,
) -> impl Iterator<Item = (u64, Listed<'_>)> {
    let dots = [".", ".."].map(Listed::Dots).into_iter();
    let all = (1..).zip(dots.chain(listing.iter().map(Listed::Entry)));
    all.skip(usize::try_from(offset).unwrap_or(usize::MAX))
}

pub(super) fn name(listed: Listed<'_>) -> &OsStr {
    match listed {
        Listed::Dots(name) => OsStr::new(name),
        Listed::Entry(entry) => OsStr::from_bytes(&entry.name),
    }
}

/// Returns what a listing without attributes says of a name.
pub(super) fn number_and_kind(
    files: &GuestFileSystem,
    directory: FileId,
    listed: Listed<'_>,
) -> (FileId, FileType) {
    match listed {
        Listed::Dots(_) => (directory, FileType::Directory),
        Listed::Entry(entry) => (files.number(directory, &entry.name), kind(entry.attr.mode)),
    }
}

/// Adds a name with its attributes; says whether there was no room for it.
pub(super) fn add_with_attr(
    files: &GuestFileSystem,
    directory: FileId,
    (next, listed): (u64, Listed<'_>),
    reply: &mut ReplyDirectoryPlus,
) -> bool {
    let (id, attr) = match listed {
        Listed::Dots(_) => (directory, FileAttr { mode: libc::S_IFDIR, ..FileAttr::default() }),
        Listed::Entry(entry) => (files.note(directory, &entry.name, &entry.attr), entry.attr),
    };
    let (ttl, attr) = (name_ttl(directory), stat(id, &attr));
    let is_full = reply.add(INodeNo(id.0), next, name(listed), &ttl, &attr, Generation(0));
    if is_full && matches!(listed, Listed::Entry(_)) {
        // The kernel is not told of it after all.
        files.forget(id, 1);
    }
    is_full
}
