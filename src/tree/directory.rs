//! Directories: a table of rows bound to the object that the rows are about.
//!
//! [`Directory`] hides the object's type, so that the tree treats all of them alike.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::handle::{Open, OpenRequest, Source, Value};
use super::host::Host;
use super::names::{
    Entry, ImageNames, JobNames, Names, NoNames, Numbers, SnapshotNames, TrashNames, VmNames,
};
use super::node::{Attr, Body, Keep, Kind, Node, NodeId, Subject, Table, unpack_job};
use super::settings::Settings;
use super::subject::{AliasSubject, ImageSubject, JobSubject, SnapshotSubject};
use super::table::{
    ALIAS, CONFIG, DOCS, IMAGE, IMAGES, JOB, JOBS, REMOVED, ROOT, SNAPSHOT, SNAPSHOTS, TRASH, VM,
};
use super::{Answer, TAIL, TreeError};
use crate::vm::caller::Caller;
use crate::vm::spec::Key;
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
    /// Describes a row but for its size and its time, which may take a look at the disk.
    fn outline(&self, row: usize) -> Result<Attr, TreeError>;
    /// Returns a row's name.
    fn row_name(&self, row: usize) -> Option<&'static str>;
    /// Says whether a row's attributes or content take a look at the disk.
    fn is_slow(&self, row: usize) -> bool;
    /// Returns a row's kind.
    fn kind(&self, row: usize) -> Kind;
    /// Opens a row.
    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Answer<Open>;
    /// Returns where a link leads.
    fn target(&self, row: usize, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError>;
    /// Says whether the rows could be removed together with the directory.
    fn admit_removal(&self) -> Result<(), TreeError>;
    /// Returns the names that users make here.
    fn names(&self) -> &dyn Names;
    /// Returns the VM that the directory belongs to.
    fn vm(&self) -> Option<&Vm>;
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
            Body::Value(_)
            | Body::Report(_)
            | Body::Tail(_)
            | Body::Setting(_)
            | Body::Control(_)
            | Body::Orders(_)
            | Body::Lines(_)
            | Body::Text(..)
            | Body::Stream(_)
            | Body::Link(_) => self.id.row(row),
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
            Body::Value(render) | Body::Report(render) | Body::Text(render, _) => {
                render(&self.object).into_bytes()
            }
            Body::Setting(key) => setting_text(&self.object, key),
            Body::Tail(_)
            | Body::Control(_)
            | Body::Orders(_)
            | Body::Lines(_)
            | Body::Stream(_)
            | Body::Link(_)
            | Body::Directory(_) => Vec::new(),
        }
    }

    fn live(&self, render: fn(&T) -> String) -> Value {
        self.live_with(move |object| render(object).into_bytes())
    }

    fn live_with(&self, render: impl Fn(&T) -> Vec<u8> + Send + Sync + 'static) -> Value {
        let object = self.object.clone();
        match self.object.listen() {
            Some(listener) => {
                Value::live(Source { render: Box::new(move || render(&object)), listener })
            }
            None => Value::fixed(render(&object)),
        }
    }

    fn open_now(&self, node: &Node<T>, request: &OpenRequest<'_>) -> Result<Open, TreeError> {
        match (&node.body, self.object.vm().cloned()) {
            (Body::Directory(_), _) => Err(TreeError::IsADirectory),
            // The kernel follows links by itself.
            (Body::Link(_), _) => Err(TreeError::NotOffered("links are followed, not opened")),
            (Body::Value(render), _) => Ok(Open::Value(self.live(*render))),
            (Body::Report(render), _) => Ok(Open::Value(self.live(*render).slow())),
            (Body::Tail(path), _) => Ok(Open::tail(path(&self.object))),
            (Body::Stream(open), vm) => {
                let crawler = request.crawler && !request.access.writes();
                match open(&self.object, request) {
                    Ok(stream) => Ok(Open::Stream { stream, crawler, vm }),
                    // Who walks over everything has not asked for this: it finds nothing.
                    Err(_) if crawler => Ok(Open::Value(Value::fixed(Vec::new()))),
                    Err(error) => Err(error),
                }
            }
            (Body::Setting(key), _) => {
                let key: &'static Key = key;
                let settings = self.object.settings().ok_or(TreeError::NotFound)?;
                let value = self.live_with(move |object: &T| setting_text(object, key));
                Ok(Open::Setting(settings.clone().open(key, value, request.append)))
            }
            (Body::Control(verbs), Some(vm)) => Ok(Open::control(vm, verbs)),
            (Body::Lines(taker), Some(vm)) => Ok(Open::lines(vm, taker(&self.object))),
            (Body::Control(_) | Body::Lines(_), None) => Err(TreeError::NotFound),
            (Body::Orders(carry_out), vm) => {
                let (object, carry_out) = (self.object.clone(), *carry_out);
                Ok(Open::orders(vm, move |text| carry_out(&object, text)))
            }
            (Body::Text(render, take), vm) => {
                let (object, take) = (self.object.clone(), *take);
                Ok(Open::text(vm, self.live(*render), move |text| take(&object, text)))
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
        let (links, keep) = match self.names.is_stable() {
            true => {
                let rows = self.rows.iter().filter(|n| n.body.kind() == Kind::Directory).count();
                (rows + self.names.count() + 2, Keep::Forever)
            }
            // As file systems have it that do not count.
            false => (1, Keep::Never),
        };
        Attr {
            id: self.id,
            kind: Kind::Directory,
            mode: self.mode,
            size: 0,
            links: u32::try_from(links).unwrap_or(u32::MAX),
            changed: self.object.changed("."),
            keep,
        }
    }

    fn attr(&self, row: usize) -> Result<Attr, TreeError> {
        let outline = self.outline(row)?;
        let (size, changed) = self.extent(&self.rows[row]);
        Ok(Attr { size, changed, ..outline })
    }

    fn outline(&self, row: usize) -> Result<Attr, TreeError> {
        let node = self.rows.get(row).ok_or(TreeError::NotFound)?;
        let (id, kind, changed) =
            (self.id.row(row), node.body.kind(), self.object.changed(node.name));
        Ok(Attr { id, kind, mode: node.mode, size: 0, links: 1, changed, keep: Keep::Never })
    }

    fn row_name(&self, row: usize) -> Option<&'static str> {
        self.rows.get(row).map(|node| node.name)
    }

    fn is_slow(&self, row: usize) -> bool {
        self.rows.get(row).is_some_and(|node| node.body.is_slow())
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
        Answer::Now(self.open_now(node, request))
    }

    fn target(&self, row: usize, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError> {
        match self.rows.get(row).map(|node| &node.body) {
            Some(Body::Link(target)) => target(&self.object, caller).ok_or(TreeError::NotFound),
            _ => Err(TreeError::NotALink),
        }
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        self.object.admit_removal()
    }

    fn names(&self) -> &dyn Names {
        &*self.names
    }

    fn vm(&self) -> Option<&Vm> {
        self.object.vm()
    }
}

fn setting_text(object: &impl Subject, key: &Key) -> Vec<u8> {
    object.settings().map(|settings| settings.text(key)).unwrap_or_default()
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
        Attr {
            id: self.0,
            kind: Kind::Directory,
            mode: 0o555,
            size: 0,
            links: 2,
            changed,
            keep: Keep::Forever,
        }
    }

    fn attr(&self, row: usize) -> Result<Attr, TreeError> {
        let (id, size) = (self.0.row(row), Self::page(row)?.len() as u64);
        let changed = SystemTime::UNIX_EPOCH;
        Ok(Attr {
            id,
            kind: Kind::Value,
            mode: 0o444,
            size,
            links: 1,
            changed,
            keep: Keep::Forever,
        })
    }

    fn outline(&self, row: usize) -> Result<Attr, TreeError> {
        self.attr(row)
    }

    fn row_name(&self, row: usize) -> Option<&'static str> {
        Self::names().nth(row).map(|(name, _)| name)
    }

    fn is_slow(&self, _row: usize) -> bool {
        false
    }

    fn kind(&self, _row: usize) -> Kind {
        Kind::Value
    }

    fn open(&self, row: usize, request: &OpenRequest<'_>) -> Answer<Open> {
        if request.access.writes() {
            return Answer::Now(Err(TreeError::ReadOnly));
        }
        Answer::Now(Self::page(row).map(|text| Open::Value(Value::fixed(text.to_vec()))))
    }

    fn target(&self, _row: usize, _caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError> {
        Err(TreeError::NotALink)
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        Err(TreeError::NotOffered("this is part of every mount"))
    }

    fn names(&self) -> &dyn Names {
        &NoNames
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

/// Finds directories by their number.
#[derive(Clone, Debug)]
pub(super) struct Directories {
    host: Host,
    /// Numbers given to images' names, never reused.
    numbers: Numbers,
    /// Numbers given to snapshots, by VM and tag.
    snapshots: Numbers,
}

impl Directories {
    pub(super) fn new(host: Host) -> Self {
        Self { host, numbers: Arc::default(), snapshots: Arc::default() }
    }

    /// Returns what is above all directories.
    pub(super) fn host(&self) -> &Host {
        &self.host
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

    /// Returns a node's path in the mount, as well as it is still known.
    pub(super) fn path(&self, id: NodeId) -> String {
        let Some((table, object, row)) = id.parts() else { return "/".to_owned() };
        let vm = || self.host.registry.by_id(VmId(object)).map_or("?".to_owned(), |vm| vm.name());
        let directory = match table {
            Table::Root => String::new(),
            Table::Docs => "/.docs".to_owned(),
            Table::Images | Table::Alias => "/.images".to_owned(),
            Table::Image => {
                format!("/.images/{}", name_of(&self.numbers, object).unwrap_or_default())
            }
            Table::Vm => format!("/{}", vm()),
            Table::Config => format!("/{}/config", vm()),
            Table::Defaults => "/.defaults".to_owned(),
            Table::Jobs => format!("/{}/jobs", vm()),
            Table::Job => self
                .job(object)
                .map_or("?".to_owned(), |j| format!("/{}/jobs/{}", j.vm.name(), j.job.name())),
            Table::Snapshots => format!("/{}/snapshots", vm()),
            Table::Snapshot => {
                let snapshot = self.snapshot(object);
                snapshot.map_or("?".to_owned(), |s| format!("/{}/snapshots", s.vm.name()))
            }
            Table::Trash | Table::Removed => "/.trash".to_owned(),
        };
        let file = row.zip(self.row(id).ok()).and_then(|(row, (dir, _))| dir.row_name(row));
        file.map_or(directory.clone(), |name| format!("{directory}/{name}"))
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
        let (host, registry) = (|| self.host.clone(), || Arc::clone(&self.host.registry));
        let vm = || self.host.registry.by_id(VmId(object)).ok_or(TreeError::NotFound);
        let removed = || self.host.registry.trash().by_id(object).ok_or(TreeError::NotFound);
        let settings = |vm| Settings { vm, registry: registry() };
        let images = || ImageNames { registry: registry(), numbers: Arc::clone(&self.numbers) };
        Ok(match table {
            Table::Root => bound(id, 0o700, ROOT, host(), VmNames(registry())),
            Table::Docs => Box::new(Docs(id)),
            Table::Images => bound(id, 0o700, IMAGES, host(), images()),
            Table::Image => bound(id, 0o700, IMAGE, self.image(object)?, NoNames),
            Table::Vm => bound(id, 0o700, VM, vm()?, NoNames),
            Table::Config => bound(id, 0o700, &CONFIG, settings(Some(vm()?)), NoNames),
            Table::Defaults => bound(id, 0o700, &CONFIG, settings(None), NoNames),
            Table::Jobs => bound(id, 0o700, JOBS, vm()?, JobNames(vm()?)),
            Table::Job => bound(id, 0o700, JOB, self.job(object)?, NoNames),
            Table::Trash => bound(id, 0o700, TRASH, host(), TrashNames(registry())),
            Table::Snapshots => {
                let numbers = Arc::clone(&self.snapshots);
                bound(id, 0o700, SNAPSHOTS, vm()?, SnapshotNames { vm: vm()?, numbers })
            }
            Table::Snapshot => bound(id, 0o700, SNAPSHOT, self.snapshot(object)?, NoNames),
            Table::Removed => bound(id, 0o700, REMOVED, removed()?, NoNames),
            Table::Alias => bound(id, 0o700, ALIAS, self.alias(object)?, NoNames),
        })
    }

    fn job(&self, object: u64) -> Result<JobSubject, TreeError> {
        let (vm, job) = unpack_job(object);
        let vm = self.host.registry.by_id(vm).ok_or(TreeError::NotFound)?;
        let job = vm.jobs().by_id(job).ok_or(TreeError::NotFound)?;
        Ok(JobSubject { vm, job })
    }

    fn snapshot(&self, object: u64) -> Result<SnapshotSubject, TreeError> {
        let key = name_of(&self.snapshots, object).ok_or(TreeError::NotFound)?;
        let (vm, tag) = key.split_once('/').ok_or(TreeError::NotFound)?;
        let vm = vm.parse().ok().and_then(|id| self.host.registry.by_id(VmId(id)));
        let vm = vm.ok_or(TreeError::NotFound)?;
        let snapshot = vm.all_snapshots().into_iter().find(|s| s.tag == tag);
        Ok(SnapshotSubject { vm, snapshot: snapshot.ok_or(TreeError::NotFound)? })
    }

    fn alias(&self, object: u64) -> Result<AliasSubject, TreeError> {
        let registry = &self.host.registry;
        let alias = registry.aliases().by_id(object).ok_or(TreeError::NotFound)?;
        Ok(AliasSubject { image: alias.image, changed: registry.changed() })
    }

    fn image(&self, object: u64) -> Result<ImageSubject, TreeError> {
        let info = name_of(&self.numbers, object)
            .and_then(|name| self.host.registry.backends().images.info(&name));
        let info = info.ok_or(TreeError::NotFound)?;
        Ok(ImageSubject { registry: Arc::clone(&self.host.registry), info })
    }
}

/// Finds the name that was given a number.
fn name_of(numbers: &Numbers, object: u64) -> Option<String> {
    numbers.lock().iter().find(|(_, number)| **number == object).map(|(name, _)| name.clone())
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
