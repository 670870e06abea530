//! Second names in `.images`: links that users make.

use std::time::SystemTime;

use crate::tree::TreeError;
use crate::tree::descriptor::Descriptor;
use crate::tree::node::Node;
use crate::tree::number::NodeId;
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;

/// A second name in `.images`: the link is the one row of this directory, which has no name.
pub(super) static ALIAS: Descriptor<AliasOwner> = Descriptor {
    rows: || ROWS,
    ..Descriptor::new(14, AliasOwner::resolve, |_| "/.images".to_owned(), |alias| alias.changed)
};

static ROWS: &[Node<AliasOwner>] =
    &[Node::link("alias", "leads to an image", |alias, _| Some(alias.image.clone().into()))];

pub(super) fn id(alias: u64) -> NodeId {
    ALIAS.node(alias).row(0)
}

#[derive(Clone)]
pub(super) struct AliasOwner {
    image: String,
    /// When it may have been made.
    changed: SystemTime,
}

impl AliasOwner {
    fn resolve(scope: &Scope, id: u64) -> Result<Self, TreeError> {
        let registry = &scope.registry;
        let alias = registry.aliases().by_id(id).ok_or(TreeError::NotFound)?;
        Ok(Self { image: alias.image, changed: registry.changed() })
    }
}

impl NodeOwner for AliasOwner {}
