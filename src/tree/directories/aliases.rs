//! Second names in `.images`: links that users make.

use std::time::SystemTime;

use crate::tree::TreeError;
use crate::tree::descriptor::{Descriptor, no_names};
use crate::tree::node::{Body, Node};
use crate::tree::number::{DirectoryId, NodeId};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::vm::Vm;

/// A second name in `.images`: the link is the one row of this directory, which has no name.
pub(super) static ALIAS: Descriptor<AliasOwner> = Descriptor {
    id: DirectoryId(14),
    page: None,
    mode: 0o700,
    rows: || ROWS,
    resolve: AliasOwner::resolve,
    path: |_| "/.images".to_owned(),
    mtime: |alias| alias.changed,
    names: no_names,
    members: &[],
    is_slow: false,
};

static ROWS: &[Node<AliasOwner>] = &[Node {
    name: "alias",
    mode: 0o777,
    mtime: |alias| alias.changed,
    doc: "leads to an image",
    body: Body::Link(|alias, _| Some(alias.image.clone().into())),
}];

/// Returns the number of the link.
pub(super) fn id(alias: u64) -> NodeId {
    ALIAS.node(alias).row(0)
}

/// A second name of an image.
#[derive(Clone)]
pub(super) struct AliasOwner {
    image: String,
    /// When it may have been made.
    changed: SystemTime,
}

impl AliasOwner {
    fn resolve(scope: &Scope, id: u64) -> Result<Self, TreeError> {
        let registry = &scope.host.registry;
        let alias = registry.aliases().by_id(id).ok_or(TreeError::NotFound)?;
        Ok(Self { image: alias.image, changed: registry.changed() })
    }
}

impl NodeOwner for AliasOwner {
    fn vm(&self) -> Option<&Vm> {
        None
    }
}
