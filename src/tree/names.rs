//! Names that users make: what `mkdir`, `rmdir` and `mv` mean in a directory.
//!
//! `directories/` has the names of each directory. In one without a [`Names`] of its own users make
//! none.

use super::node::Kind;
use super::number::NodeId;
use super::{Answer, TreeError};
use crate::vm::caller::Caller;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) id: NodeId,
    pub(crate) kind: Kind,
}

impl Entry {
    pub(super) fn directory(id: NodeId, name: String) -> Self {
        Self { name, id, kind: Kind::Directory }
    }
}

/// The names in one directory that are not rows. Those that users make are directories.
pub(super) trait Names {
    fn find(&self, _name: &str) -> Option<NodeId> {
        None
    }

    fn entries(&self) -> Vec<Entry> {
        Vec::new()
    }

    fn count(&self) -> usize {
        self.entries().len()
    }

    /// Says whether there could ever be such a name: if not, the kernel need not ask again.
    fn is_possible(&self, _name: &str) -> bool {
        false
    }

    /// Says whether names come and go by requests of the kernel alone, which it then may remember
    /// for as long as it likes.
    fn is_stable(&self) -> bool {
        true
    }

    /// `mkdir`
    fn make(&self, _name: &str) -> Answer<NodeId> {
        let why = "directories are made at the root, where each is a VM";
        Answer::Now(Err(TreeError::NotOffered(why)))
    }

    /// `rmdir`, by a caller.
    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        Answer::Now(Err(match self.find(name) {
            Some(_) => TreeError::NotOffered("this cannot be removed"),
            None => TreeError::NotFound,
        }))
    }

    /// `ln -s`
    fn link(&self, _name: &str, _target: &str) -> Answer<NodeId> {
        Answer::Now(Err(TreeError::NotOffered("links are made in .images, where each is an alias")))
    }

    /// `rm` of a link that users have made; `None`: there is none of that name.
    fn unlink(&self, _name: &str) -> Option<Answer<()>> {
        None
    }

    /// `mv` into another directory.
    fn move_out(&self, _name: &str, _to: (NodeId, &str)) -> Answer<()> {
        Answer::Now(Err(TreeError::BadRename))
    }

    /// `mv` within the directory.
    fn rename(&self, _from: &str, _to: &str) -> Answer<()> {
        Answer::Now(Err(TreeError::BadRename))
    }
}

pub(super) struct NoNames;

impl Names for NoNames {}
