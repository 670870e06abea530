//! Directories: a [`Descriptor`] bound to the object that its rows are about.
//!
//! [`Directory`] hides the object's type, so that the tree treats all directories alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::control::{Assignment, OpenControl};
use super::descriptor::Descriptor;
use super::draft::Draft;
use super::handle::{Open, OpenRequest};
use super::names::{Entry, Names};
use super::node::{Attr, Body, Keep, Kind, Node};
use super::number::NodeId;
use super::owner::NodeOwner;
use super::scope::Scope;
use super::value::{LiveContent, OpenValue};
use super::{TAIL, TreeError};
use crate::store::bounded::Tail;
use crate::vm::Vm;
use crate::vm::caller::Caller;
use crate::vm::spec::{Form, Key};

/// What the tree does with a directory, whatever it is about.
pub(super) trait Directory {
    fn find(&self, name: &str) -> Option<NodeId>;
    fn entries(&self) -> Vec<Entry>;
    fn own_attr(&self) -> Attr;
    fn attr(&self, row: usize) -> Result<Attr, TreeError>;
    /// Describes a row but for its size and its time, which may need a look at the disk.
    fn outline(&self, row: usize) -> Result<Attr, TreeError>;
    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Result<Open, TreeError>;
    fn target(&self, row: usize, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError>;
    fn admit_removal(&self) -> Result<(), TreeError>;
    fn names(&self) -> &dyn Names;
    /// Returns the VM that the directory belongs to.
    fn vm(&self) -> Option<&Vm>;
}

/// A kind of directory, bound to its object.
pub(super) struct Bound<T: 'static> {
    pub(super) kind: &'static Descriptor<T>,
    pub(super) object: u64,
    pub(super) owner: T,
    pub(super) names: Box<dyn Names>,
    pub(super) scope: Scope,
}

impl<T: NodeOwner> Bound<T> {
    fn rows(&self) -> &'static [Node<T>] {
        (self.kind.rows)()
    }

    fn row(&self, row: usize) -> Result<&'static Node<T>, TreeError> {
        self.rows().get(row).ok_or(TreeError::NotFound)
    }

    fn id(&self) -> NodeId {
        self.kind.node(self.object)
    }

    fn row_id(&self, row: usize, node: &Node<T>) -> NodeId {
        match node.body.directory() {
            Some(kind) => NodeId::directory(kind.id(), self.object),
            None => self.id().row(row),
        }
    }

    fn entry(&self, row: usize, node: &Node<T>) -> Entry {
        let (name, id) = (node.name.to_owned(), self.row_id(row, node));
        Entry { name, id, kind: node.body.kind() }
    }

    fn mtime(&self, node: &Node<T>) -> SystemTime {
        node.mtime.unwrap_or(self.kind.mtime)(&self.owner)
    }

    /// Returns size and time of last change, without reading a whole file for them.
    fn extent(&self, node: &Node<T>) -> (u64, SystemTime) {
        let mtime = self.mtime(node);
        let size = match &node.body {
            Body::Tail(path) => return tail_extent(&path(&self.owner), mtime),
            Body::Value(render) | Body::SlowValue(render) | Body::WritableValue(render, _) => {
                render(&self.owner).len()
            }
            Body::Setting(key) => setting_text(&self.owner, key).len(),
            Body::Page(text) => text.len(),
            Body::Control(_) | Body::Stream(_) | Body::Link(_) | Body::Directory(_) => 0,
        };
        (size as u64, mtime)
    }

    fn row_attr(&self, row: usize, node: &Node<T>, (size, mtime): (u64, SystemTime)) -> Attr {
        let (id, kind, keep) = (self.id().row(row), node.body.kind(), node.body.keep());
        Attr { id, kind, mode: node.mode, size, links: 1, mtime, keep }
    }

    fn live(&self, render: impl Fn(&T) -> String + Send + Sync + 'static) -> OpenValue {
        let owner = self.owner.clone();
        let render = move |owner: &T| render(owner).into_bytes();
        match self.owner.listen() {
            Some(listener) => {
                OpenValue::live(LiveContent { render: Box::new(move || render(&owner)), listener })
            }
            None => OpenValue::fixed(render(&owner)),
        }
    }

    fn open_row(&self, node: &Node<T>, request: &OpenRequest<'_>) -> Result<Open, TreeError> {
        let owner = self.owner.clone();
        let vm = self.owner.vm().cloned();
        match &node.body {
            Body::Directory(_) => Err(TreeError::IsADirectory),
            // The kernel follows links by itself.
            Body::Link(_) => Err(TreeError::NotOffered("links are followed, not opened")),
            Body::Value(render) => Ok(Open::Value(self.live(*render), None)),
            Body::SlowValue(render) => Ok(Open::Value(self.live(*render).slow(), None)),
            Body::Tail(path) => Ok(Open::Tail(Arc::new(Tail::open(path(&owner))))),
            Body::Page(text) => Ok(Open::Value(OpenValue::fixed(text.to_vec()), None)),
            Body::Stream(open) => Open::stream(open(&owner, request), request, vm),
            Body::Setting(key) => self.open_setting(key, request),
            Body::Control(carry_out) => {
                let (carry_out, scope) = (*carry_out, self.scope.clone());
                let control = OpenControl::new(vm, move |text| carry_out(&scope, &owner, text));
                Ok(Open::Control(Arc::new(control)))
            }
            Body::WritableValue(render, set) => {
                let set = *set;
                let assignment = Assignment::new(vm, move |text| set(&owner, text));
                Ok(Open::Value(self.live(*render), Some(assignment)))
            }
        }
    }

    fn open_setting(
        &self,
        key: &'static Key,
        request: &OpenRequest<'_>,
    ) -> Result<Open, TreeError> {
        let settings = self.owner.settings().ok_or(TreeError::NotFound)?;
        let value = self.live(move |owner| setting_text(owner, key));
        let assign = settings.clone().assignment(key, request.append);
        let assignment = Assignment::new(self.owner.vm().cloned(), assign);
        let assignment = match key.form {
            Form::Text => {
                assignment.of_text(Draft::new(key, settings.text_before(key, request.append)))
            }
            Form::Line | Form::List => assignment,
        };
        Ok(Open::Value(value, Some(assignment)))
    }
}

impl<T: NodeOwner> Directory for Bound<T> {
    fn find(&self, name: &str) -> Option<NodeId> {
        let rows = self.rows();
        let row = rows.iter().position(|node| node.name == name);
        row.map(|at| self.row_id(at, &rows[at])).or_else(|| self.names.find(name))
    }

    fn entries(&self) -> Vec<Entry> {
        let rows = self.rows().iter().enumerate().map(|(at, node)| self.entry(at, node));
        rows.chain(self.names.entries()).collect()
    }

    fn own_attr(&self) -> Attr {
        let (links, keep) = match self.names.is_stable() {
            true => {
                let is_directory = |n: &&Node<T>| n.body.kind() == Kind::Directory;
                let rows = self.rows().iter().filter(is_directory).count();
                (rows + self.names.count() + 2, Keep::Forever)
            }
            // What file systems report that do not count sub-directories.
            false => (1, Keep::Never),
        };
        Attr {
            id: self.id(),
            kind: Kind::Directory,
            mode: self.kind.mode,
            size: 0,
            links: u32::try_from(links).unwrap_or(u32::MAX),
            mtime: (self.kind.mtime)(&self.owner),
            keep,
        }
    }

    fn attr(&self, row: usize) -> Result<Attr, TreeError> {
        let node = self.row(row)?;
        Ok(self.row_attr(row, node, self.extent(node)))
    }

    fn outline(&self, row: usize) -> Result<Attr, TreeError> {
        let node = self.row(row)?;
        Ok(self.row_attr(row, node, (0, self.mtime(node))))
    }

    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Result<Open, TreeError> {
        let node = self.row(row)?;
        if request.access.writes() && node.mode & 0o200 == 0 {
            return Err(TreeError::ReadOnly);
        }
        if request.access.reads() && node.mode & 0o400 == 0 {
            return Err(TreeError::WriteOnly);
        }
        self.owner.prepare_open();
        self.open_row(node, request)
    }

    fn target(&self, row: usize, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError> {
        let Body::Link(target) = &self.row(row)?.body else { return Err(TreeError::NotALink) };
        target(&self.owner, caller).ok_or(TreeError::NotFound)
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        self.owner.admit_removal()
    }

    fn names(&self) -> &dyn Names {
        &*self.names
    }

    fn vm(&self) -> Option<&Vm> {
        self.owner.vm()
    }
}

/// Returns what of a file's end is shown, and when the file changed; one that is not there yet is
/// empty and as old as its owner.
fn tail_extent(path: &Path, mtime: SystemTime) -> (u64, SystemTime) {
    let Ok(meta) = std::fs::metadata(path) else { return (0, mtime) };
    (meta.len().min(TAIL), meta.modified().unwrap_or(mtime))
}

fn setting_text(owner: &impl NodeOwner, key: &Key) -> String {
    owner.settings().map(|settings| settings.text(key)).unwrap_or_default()
}
