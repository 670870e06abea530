//! The scope: what directories are found in, and how a node is found by its number.

use super::TreeError;
use super::descriptor;
use super::directory::Directory;
use super::host::Host;
use super::node::Attr;
use super::number::{NodeId, Numbers};
use crate::vm::{Vm, VmId};

/// What directories are found in.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// The VMs, and what failed lately.
    pub(super) host: Host,
    /// Numbers given to names that have none of their own.
    pub(super) numbers: Numbers,
}

impl Scope {
    /// Finds a VM by its number.
    pub(super) fn vm(&self, id: u64) -> Result<Vm, TreeError> {
        self.host.registry.by_id(VmId(id)).ok_or(TreeError::NotFound)
    }

    /// Finds a directory by its number.
    pub(super) fn directory(&self, id: NodeId) -> Result<Box<dyn Directory>, TreeError> {
        match id.parts() {
            Some((kind, object, None)) => {
                descriptor::find(kind).ok_or(TreeError::NotFound)?.bind(self, object)
            }
            Some(_) => Err(TreeError::NotADirectory),
            None => Err(TreeError::NotFound),
        }
    }

    /// Finds the directory that a row's number belongs to, and the row.
    pub(super) fn row(&self, id: NodeId) -> Result<(Box<dyn Directory>, usize), TreeError> {
        match id.parts() {
            Some((kind, object, Some(row))) => {
                let kind = descriptor::find(kind).ok_or(TreeError::NotFound)?;
                Ok((kind.bind(self, object)?, row))
            }
            Some(_) => Err(TreeError::IsADirectory),
            None => Err(TreeError::NotFound),
        }
    }

    /// Describes a node.
    pub(super) fn attr(&self, id: NodeId) -> Result<Attr, TreeError> {
        match id.parts() {
            Some((_, _, None)) => Ok(self.directory(id)?.own_attr()),
            Some((_, _, Some(_))) | None => {
                self.row(id).and_then(|(directory, row)| directory.attr(row))
            }
        }
    }

    /// Returns a node's path in the mount; `?` for a directory whose object is gone.
    pub(super) fn path(&self, id: NodeId) -> String {
        let Some((kind, object, row)) = id.parts() else { return "/".to_owned() };
        let Some(kind) = descriptor::find(kind) else { return "?".to_owned() };
        let directory = kind.path(self, object).unwrap_or_else(|_| "?".to_owned());
        match row.and_then(|row| kind.row(row)) {
            Some(row) => format!("{directory}/{}", row.name),
            None => directory,
        }
    }
}
