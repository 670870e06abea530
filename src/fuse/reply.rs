//! Replies that several requests share: names, new entries, listings.

use std::time::Duration;

use fuser::{
    Errno, FileType, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
};

use super::attr::{self, Owner};
use super::flags::{LONG, ttl};
use crate::tree::names::Entry;
use crate::tree::node::{Attr, Keep, Kind};
use crate::tree::number::NodeId;
use crate::tree::{Found, Listing, TreeError};

pub(super) enum Looked {
    Found(Found),
    /// There is no such name, and the kernel need not ask again for a while.
    Absent(Duration),
}

impl Looked {
    pub(super) fn of(found: Result<Found, TreeError>) -> Result<Self, TreeError> {
        match found {
            Ok(found) => Ok(Self::Found(found)),
            Err(TreeError::NotFound) => Ok(Self::Absent(Duration::ZERO)),
            Err(TreeError::NeverFound) => Ok(Self::Absent(LONG)),
            Err(error) => Err(error),
        }
    }

    pub(super) fn reply(self, owner: &Owner, reply: ReplyEntry) {
        match self {
            Self::Found(Found { attr, keep }) => {
                let attr_of = owner.attr(&attr);
                reply.entry_with_ttls(&ttl(attr.keep), &ttl(keep), &attr_of, Generation(0));
            }
            Self::Absent(ttl) => reply.entry(&ttl, &owner.nothing(), Generation(0)),
        }
    }
}

/// Adds the names of a directory to a reply, from an offset on, as many as it takes.
pub(super) fn add_names(reply: &mut ReplyDirectory, ino: INodeNo, listing: &Listing, offset: u64) {
    let dots = [(ino, FileType::Directory, "."), (INodeNo::ROOT, FileType::Directory, "..")];
    let names =
        listing.entries.iter().map(|e| (INodeNo(e.id.0), attr::file_type(e.kind), &*e.name));
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    for (at, (ino, kind, name)) in dots.into_iter().chain(names).enumerate().skip(from) {
        if reply.add(ino, at as u64 + 1, kind, name) {
            break;
        }
    }
}

/// As [`add_names`], with the attributes that `attr_of` finds; a name that is gone meanwhile has
/// none, and is left out.
pub(super) fn add_names_with_attr(
    reply: &mut ReplyDirectoryPlus,
    (ino, owner): (INodeNo, &Owner),
    listing: &Listing,
    offset: u64,
    attr_of: impl Fn(&Entry) -> Option<Attr>,
) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let dot = |id, name: &str| Entry { name: name.to_owned(), id, kind: Kind::Directory };
    let dots = [dot(NodeId(ino.0), "."), dot(NodeId::ROOT, "..")];
    for (at, entry) in dots.iter().chain(&*listing.entries).enumerate().skip(from) {
        let Some(attr) = attr_of(entry) else { continue };
        let (ino, next) = (INodeNo(entry.id.0), at as u64 + 1);
        // One time for the name and the attributes: the shorter.
        let keep = if listing.keep == Keep::Never { Keep::Never } else { attr.keep };
        let (keep, attr) = (ttl(keep), owner.attr(&attr));
        if reply.add(ino, next, &entry.name, &keep, &attr, Generation(0)) {
            break;
        }
    }
}

/// Replies with a new entry. The kernel made its name, so it may remember it.
pub(super) fn made_entry(owner: &Owner, attr: &Attr, reply: ReplyEntry) {
    reply.entry_with_ttls(&ttl(attr.keep), &LONG, &owner.attr(attr), Generation(0));
}

/// A reply that can be an error instead: fuser's have no trait for it.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);
