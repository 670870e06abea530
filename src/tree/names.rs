//! Names that users make: what `mkdir`, `rmdir` and `mv` mean in a directory.
//!
//! `directories/` has the names of each directory. In one without a [`Names`] of its own users make
//! none.

use super::node::Kind;
use super::number::NodeId;
use super::{Answer, TreeError};
use crate::vm::caller::Caller;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The node.
    pub id: NodeId,
    /// Its kind.
    pub kind: Kind,
}

impl Entry {
    /// Returns the name of a directory.
    pub(super) fn directory(id: NodeId, name: String) -> Self {
        Self { name, id, kind: Kind::Directory }
    }
}

/// The names in one directory that are not rows. Each is a directory.
pub(super) trait Names {
    /// Finds one.
    fn find(&self, name: &str) -> Option<NodeId> {
        let _any = name;
        None
    }

    /// Lists them.
    fn entries(&self) -> Vec<Entry> {
        Vec::new()
    }

    /// Counts them.
    fn count(&self) -> usize {
        self.entries().len()
    }

    /// Says whether there could ever be such a name: if not, the kernel need not ask again.
    fn is_possible(&self, name: &str) -> bool {
        let _any = name;
        false
    }

    /// Says whether names come and go by requests of the kernel alone, which it then may remember
    /// for as long as it likes.
    fn is_stable(&self) -> bool {
        true
    }

    /// `mkdir`
    fn make(&self, name: &str) -> Answer<NodeId> {
        let _any = name;
        let why = "directories are made at the root, where each is a VM";
        Answer::Now(Err(TreeError::NotOffered(why)))
    }

    /// `rmdir`, by a caller.
    fn remove(&self, name: &str, caller: &dyn Fn() -> Caller) -> Answer<()> {
        let _any = caller;
        Answer::Now(Err(match self.find(name) {
            Some(_) => TreeError::NotOffered("this cannot be removed"),
            None => TreeError::NotFound,
        }))
    }

    /// `ln -s`
    fn link(&self, name: &str, target: &str) -> Answer<NodeId> {
        let _any = (name, target);
        Answer::Now(Err(TreeError::NotOffered("links are made in .images, where each is an alias")))
    }

    /// `rm` of a link that users have made; `None`: there is none of that name.
    fn unlink(&self, name: &str) -> Option<Answer<()>> {
        let _any = name;
        None
    }

    /// `mv` into another directory.
    fn move_out(&self, name: &str, to: (NodeId, &str)) -> Answer<()> {
        let _any = (name, to);
        Answer::Now(Err(TreeError::BadRename))
    }

    /// `mv` within the directory.
    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        let _any = (from, to);
        Answer::Now(Err(TreeError::BadRename))
    }
}

/// No names.
pub(super) struct NoNames;

impl Names for NoNames {}
