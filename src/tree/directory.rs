//! Directories: a table of rows bound to the object that the rows are about.
//!
//! [`Directory`] hides the object's type, so that the tree treats all of them alike.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;

use super::handle::{Open, OpenRequest};
use super::names::{Entry, ImageNames, JobNames, Names, NoNames, Numbers, VmNames};
use super::node::{Attr, Body, Kind, Node, NodeId, Subject, Table, unpack_job};
use super::table::{CONFIG, DOCS, IMAGE, ImageSubject, JOB, JOBS, JobSubject, ROOT, VM};
use super::{Answer, TAIL, TreeError, read_tail};
use crate::registry::Registry;
use crate::vm::caller::Caller;
use crate::vm::{Vm, VmId};

/// What the tree does with a directory, whatever it is about.
pub(super) trait Directory {
    /// Finds a name.
    fn find(&self, name: &str) -> Option<NodeId>;
    /// Lists the names.
    fn entries(&self) -> Vec<Entry>;
    /// Describes the directory itself.
    fn own_attr(&self) -> Attr;
    /// Describes a row.
    fn attr(&self, row: usize) -> Result<Attr, TreeError>;
    /// Returns a row's kind.
    fn kind(&self, row: usize) -> Kind;
    /// Opens a row.
    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Answer<Open>;
    /// Returns where a link leads.
    fn target(&self, row: usize, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError>;
    /// Returns the names that users make here.
    fn names(&self) -> &dyn Names;
    /// Returns the VM that the directory belongs to.
    fn vm(&self) -> Option<&Vm>;
    /// Says whether its parts may be unlinked, which has no effect.
    fn admit_removal_of_part(&self) -> Result<(), TreeError>;
}

/// Rows bound to their object.
struct Bound<T: 'static> {
    id: NodeId,
    mode: u16,
    rows: &'static [Node<T>],
    object: T,
    names: Box<dyn Names>,
}

impl<T: Subject> Bound<T> {
    fn entry(&self, row: usize, node: &Node<T>) -> Entry {
        let id = match node.body {
            Body::Directory(table) => self.below(table),
            _ => self.id.row(row),
        };
        Entry { name: node.name.to_owned(), id, kind: node.body.kind() }
    }

    /// Returns the directory of another table about the same object.
    fn below(&self, table: Table) -> NodeId {
        let object = self.id.parts().map_or(0, |(_, object, _)| object);
        NodeId::directory(table, object)
    }

    fn rows(&self) -> impl Iterator<Item = Entry> {
        self.rows.iter().enumerate().map(|(at, node)| self.entry(at, node))
    }

    /// Returns the content of what is made on the spot; of anything else, nothing.
    fn content(&self, node: &Node<T>) -> Vec<u8> {
        match &node.body {
            Body::Value(render) => render(&self.object).into_bytes(),
            Body::Setting(key) => setting_text(self.object.vm(), key),
            Body::Tail(_)
            | Body::Control(_)
            | Body::Lines(_)
            | Body::Stream(_)
            | Body::Link(_)
            | Body::Directory(_) => Vec::new(),
        }
    }

    fn open_now(&self, node: &Node<T>, request: &OpenRequest<'_>) -> Result<Open, TreeError> {
        match (&node.body, self.object.vm().cloned()) {
            (Body::Directory(_), _) => Err(TreeError::IsADirectory),
            // The kernel follows links by itself.
            (Body::Link(_), _) => Err(TreeError::NotOffered("links are followed, not opened")),
            (Body::Value(_) | Body::Tail(_), _) => Ok(Open::Value(self.content(node).into())),
            (Body::Stream(open), vm) => {
                let stream = open(&self.object, request)?;
                Ok(Open::Stream { stream, crawler: request.crawler, vm })
            }
            (Body::Setting(key), Some(vm)) => {
                Ok(Open::setting(vm, key, self.content(node), request.append))
            }
            (Body::Control(verbs), Some(vm)) => Ok(Open::control(vm, verbs)),
            (Body::Lines(taker), Some(vm)) => Ok(Open::lines(vm, taker(&self.object))),
            (Body::Setting(_) | Body::Control(_) | Body::Lines(_), None) => {
                Err(TreeError::NotFound)
            }
        }
    }

    /// Returns size and time of last change without reading a whole file for them.
    fn extent(&self, node: &Node<T>) -> (u64, SystemTime) {
        if let Body::Tail(path) = &node.body {
            let meta = std::fs::metadata(path(&self.object)).ok();
            let changed = meta.as_ref().and_then(|m| m.modified().ok());
            let changed = changed.unwrap_or_else(|| self.object.changed(node.name));
            return (meta.map_or(0, |m| m.len().min(TAIL)), changed);
        }
        (self.content(node).len() as u64, self.object.changed(node.name))
    }
}

impl<T: Subject> Directory for Bound<T> {
    fn find(&self, name: &str) -> Option<NodeId> {
        let row = self.rows.iter().position(|node| node.name == name);
        row.map(|at| self.entry(at, &self.rows[at]).id).or_else(|| self.names.find(name))
    }

    fn entries(&self) -> Vec<Entry> {
        self.rows().chain(self.names.entries()).collect()
    }

    fn own_attr(&self) -> Attr {
        let rows = self.rows.iter().filter(|n| n.body.kind() == Kind::Directory).count();
        let below = rows + self.names.count();
        Attr {
            id: self.id,
            kind: Kind::Directory,
            mode: self.mode,
            size: 0,
            links: u32::try_from(below).unwrap_or(u32::MAX).saturating_add(2),
            changed: self.object.changed("."),
        }
    }

    fn attr(&self, row: usize) -> Result<Attr, TreeError> {
        let node = self.rows.get(row).ok_or(TreeError::NotFound)?;
        let (size, changed) = self.extent(node);
        let (id, kind) = (self.id.row(row), node.body.kind());
        Ok(Attr { id, kind, mode: node.mode, size, links: 1, changed })
    }

    fn kind(&self, row: usize) -> Kind {
        self.rows.get(row).map_or(Kind::Value, |node| node.body.kind())
    }

    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Answer<Open> {
        let Some(node) = self.rows.get(row) else {
            return Answer::Now(Err(TreeError::NotFound));
        };
        if request.access.writes() && node.mode & 0o200 == 0 {
            return Answer::Now(Err(TreeError::ReadOnly));
        }
        if request.access.reads() && node.mode & 0o400 == 0 {
            return Answer::Now(Err(TreeError::WriteOnly));
        }
        self.object.opening();
        match &node.body {
            Body::Tail(path) => {
                let read = read_tail(path(&self.object));
                Answer::later(read.map(|content| Ok(Open::Value(content?.into()))))
            }
            _ => Answer::Now(self.open_now(node, request)),
        }
    }

    fn target(&self, row: usize, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError> {
        match self.rows.get(row).map(|node| &node.body) {
            Some(Body::Link(target)) => target(&self.object, caller).ok_or(TreeError::NotFound),
            _ => Err(TreeError::NotALink),
        }
    }

    fn names(&self) -> &dyn Names {
        &*self.names
    }

    fn vm(&self) -> Option<&Vm> {
        self.object.vm()
    }

    fn admit_removal_of_part(&self) -> Result<(), TreeError> {
        self.object.admit_removal_of_part()
    }
}

fn setting_text(vm: Option<&Vm>, key: &crate::vm::spec::Key) -> Vec<u8> {
    let Some(vm) = vm else { return Vec::new() };
    let text = (key.render)(&vm.spec());
    if text.is_empty() { Vec::new() } else { format!("{text}\n").into_bytes() }
}

/// The embedded documentation.
struct Docs(NodeId);

impl Docs {
    fn names() -> impl Iterator<Item = (&'static str, &'static [u8])> {
        DOCS.files().filter_map(|f| Some((f.path().to_str()?, f.contents())))
    }

    fn page(row: usize) -> Result<&'static [u8], TreeError> {
        Self::names().nth(row).map(|(_, text)| text).ok_or(TreeError::NotFound)
    }
}

impl Directory for Docs {
    fn find(&self, name: &str) -> Option<NodeId> {
        Self::names().position(|(n, _)| n == name).map(|row| self.0.row(row))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(row, (name, _)): (usize, (&str, _))| Entry {
            name: name.to_owned(),
            id: self.0.row(row),
            kind: Kind::Value,
        };
        Self::names().enumerate().map(entry).collect()
    }

    fn own_attr(&self) -> Attr {
        let changed = SystemTime::UNIX_EPOCH;
        Attr { id: self.0, kind: Kind::Directory, mode: 0o555, size: 0, links: 2, changed }
    }

    fn attr(&self, row: usize) -> Result<Attr, TreeError> {
        let (id, size) = (self.0.row(row), Self::page(row)?.len() as u64);
        let changed = SystemTime::UNIX_EPOCH;
        Ok(Attr { id, kind: Kind::Value, mode: 0o444, size, links: 1, changed })
    }

    fn kind(&self, _row: usize) -> Kind {
        Kind::Value
    }

    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Answer<Open> {
        if request.access.writes() {
            return Answer::Now(Err(TreeError::ReadOnly));
        }
        Answer::Now(Self::page(row).map(|text| Open::Value(text.into())))
    }

    fn target(&self, _row: usize, _caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError> {
        Err(TreeError::NotALink)
    }

    fn names(&self) -> &dyn Names {
        &NoNames
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }

    fn admit_removal_of_part(&self) -> Result<(), TreeError> {
        Err(TreeError::NotOffered("this is part of every mount"))
    }
}

/// Finds directories by their number.
#[derive(Clone, Debug)]
pub(super) struct Directories {
    registry: Arc<Registry>,
    /// Numbers given to images' names, never reused.
    numbers: Numbers,
}

impl Directories {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, numbers: Arc::default() }
    }

    /// Returns the directory with this number.
    pub(super) fn get(&self, id: NodeId) -> Result<Box<dyn Directory>, TreeError> {
        match id.parts() {
            Some((table, object, None)) => self.directory(id, table, object),
            Some(_) => Err(TreeError::NotADirectory),
            None => Err(TreeError::NotFound),
        }
    }

    /// Returns the directory that a row's number belongs to, and the row.
    pub(super) fn row(&self, id: NodeId) -> Result<(Box<dyn Directory>, usize), TreeError> {
        match id.parts() {
            Some((table, object, Some(row))) => {
                let parent = NodeId::directory(table, object);
                Ok((self.directory(parent, table, object)?, row))
            }
            Some(_) => Err(TreeError::IsADirectory),
            None => Err(TreeError::NotFound),
        }
    }

    /// Describes a node.
    pub(super) fn attr(&self, id: NodeId) -> Result<Attr, TreeError> {
        match id.parts() {
            Some((_, _, None)) => Ok(self.get(id)?.own_attr()),
            _ => self.row(id).and_then(|(directory, row)| directory.attr(row)),
        }
    }

    fn directory(
        &self,
        id: NodeId,
        table: Table,
        object: u64,
    ) -> Result<Box<dyn Directory>, TreeError> {
        let registry = || Arc::clone(&self.registry);
        let vm = || self.registry.by_id(VmId(object)).ok_or(TreeError::NotFound);
        let images = || ImageNames { registry: registry(), numbers: Arc::clone(&self.numbers) };
        Ok(match table {
            Table::Root => bound(id, 0o700, ROOT, registry(), VmNames(registry())),
            Table::Docs => Box::new(Docs(id)),
            Table::Images => bound::<Arc<Registry>>(id, 0o555, &[], registry(), images()),
            Table::Image => bound(id, 0o555, IMAGE, self.image(object)?, NoNames),
            Table::Vm => bound(id, 0o700, VM, vm()?, NoNames),
            Table::Config => bound(id, 0o700, &CONFIG, vm()?, NoNames),
            Table::Jobs => bound(id, 0o700, JOBS, vm()?, JobNames(vm()?)),
            Table::Job => bound(id, 0o700, JOB, self.job(object)?, NoNames),
        })
    }

    fn job(&self, object: u64) -> Result<JobSubject, TreeError> {
        let (vm, job) = unpack_job(object);
        let vm = self.registry.by_id(vm).ok_or(TreeError::NotFound)?;
        let job = vm.jobs().by_id(job).ok_or(TreeError::NotFound)?;
        Ok(JobSubject { vm, job })
    }

    fn image(&self, object: u64) -> Result<ImageSubject, TreeError> {
        let numbers = self.numbers.lock();
        let name = numbers.iter().find(|(_, n)| **n == object).map(|(name, _)| name.clone());
        drop(numbers);
        let info = name.and_then(|name| self.registry.world().images.info(&name));
        let info = info.ok_or(TreeError::NotFound)?;
        Ok(ImageSubject { registry: Arc::clone(&self.registry), info })
    }
}

fn bound<T: Subject>(
    id: NodeId,
    mode: u16,
    rows: &'static [Node<T>],
    object: T,
    names: impl Names + 'static,
) -> Box<dyn Directory> {
    Box::new(Bound { id, mode, rows, object, names: Box::new(names) })
}
