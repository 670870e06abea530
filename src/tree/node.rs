//! What a node is: a row of a directory, about the object that the directory is about.
//!
//! No names of files here (`directories/`), and nothing about open files (`handle.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;

use super::TreeError;
use super::descriptor::AnyDescriptor;
use super::handle::OpenRequest;
use super::number::NodeId;
use super::scope::Scope;
use crate::vm::caller::Caller;
use crate::vm::spec::Key;
use crate::vm::stream::Stream;

/// One row: everything there is to say about a file that aqfs makes.
pub(super) struct Node<T: 'static> {
    pub(super) name: &'static str,
    pub(super) mode: u16,
    /// When its content last changed; `None`: with its directory. It must not move while the content
    /// stays: editors compare it before they write.
    pub(super) mtime: Option<fn(&T) -> SystemTime>,
    /// One line: what it is for. `mountpoint-docs/` has the rest.
    pub(super) doc: &'static str,
    pub(super) body: Body<T>,
}

impl<T> Node<T> {
    pub(super) const fn new(
        name: &'static str,
        mode: u16,
        doc: &'static str,
        body: Body<T>,
    ) -> Self {
        Self { name, mode, mtime: None, doc, body }
    }

    pub(super) const fn value(
        name: &'static str,
        doc: &'static str,
        render: fn(&T) -> String,
    ) -> Self {
        Self::new(name, 0o444, doc, Body::Value(render))
    }

    pub(super) const fn slow_value(
        name: &'static str,
        doc: &'static str,
        render: fn(&T) -> String,
    ) -> Self {
        Self::new(name, 0o444, doc, Body::SlowValue(render))
    }

    pub(super) const fn tail(
        name: &'static str,
        doc: &'static str,
        path: fn(&T) -> PathBuf,
    ) -> Self {
        Self::new(name, 0o444, doc, Body::Tail(path))
    }

    pub(super) const fn page(name: &'static str, doc: &'static str, text: &'static [u8]) -> Self {
        Self::new(name, 0o444, doc, Body::Page(text))
    }

    pub(super) const fn setting(key: &'static Key) -> Self {
        Self::new(key.name, 0o600, key.doc, Body::Setting(key))
    }

    pub(super) const fn control(
        name: &'static str,
        doc: &'static str,
        carry_out: CarryOut<T>,
    ) -> Self {
        Self::new(name, 0o600, doc, Body::Control(carry_out))
    }

    pub(super) const fn stream(
        name: &'static str,
        mode: u16,
        doc: &'static str,
        open: OpenStream<T>,
    ) -> Self {
        Self::new(name, mode, doc, Body::Stream(open))
    }

    pub(super) const fn link(name: &'static str, doc: &'static str, target: Target<T>) -> Self {
        Self::new(name, 0o777, doc, Body::Link(target))
    }

    pub(super) const fn directory(
        name: &'static str,
        doc: &'static str,
        kind: &'static dyn AnyDescriptor,
    ) -> Self {
        Self::new(name, 0o700, doc, Body::Directory(kind))
    }

    /// Says when the content last changed, of a row that does not change with its directory.
    pub(super) const fn follows(self, mtime: fn(&T) -> SystemTime) -> Self {
        Self { mtime: Some(mtime), ..self }
    }
}

pub(super) type OpenStream<T> = fn(&T, &OpenRequest<'_>) -> Result<Arc<dyn Stream>, TreeError>;
/// Carries out the lines of one write to a control file.
pub(super) type CarryOut<T> = fn(&Scope, &T, &str) -> BoxFuture<'static, VerbOutcome>;
/// Sets a value to the text of one write.
pub(super) type SetValue<T> = fn(&T, &str) -> BoxFuture<'static, Result<(), TreeError>>;

/// Finds where a link leads; `None`: it leads nowhere at present.
pub(super) type Target<T> = fn(&T, &dyn Fn() -> Caller) -> Option<PathBuf>;

/// How the lines of one write to a control file went.
#[derive(Debug, Default)]
pub(super) struct VerbOutcome {
    pub(super) succeeded: usize,
    /// Why the next one failed; the ones after it were not tried.
    pub(super) failure: Option<TreeError>,
}

/// What reading and writing a node means.
pub(super) enum Body<T: 'static> {
    /// A value or table, made when it is opened; its size is exact.
    Value(fn(&T) -> String),
    /// A value whose making looks at the disk, or at all VMs.
    SlowValue(fn(&T) -> String),
    /// The end of a file on disk (1 MiB at the most), and what is added while it is open.
    Tail(fn(&T) -> PathBuf),
    /// Text that is part of the program.
    Page(&'static [u8]),
    Setting(&'static Key),
    /// A value that can be written, and is not a VM's setting.
    WritableValue(fn(&T) -> String, SetValue<T>),
    /// Verbs, one a line.
    Control(CarryOut<T>),
    /// Bytes that come and go; a read may park.
    Stream(OpenStream<T>),
    /// A symbolic link, whose target may depend on the caller.
    Link(Target<T>),
    Directory(&'static dyn AnyDescriptor),
}

impl<T> Body<T> {
    /// Says whether size and content need a look at the disk, or at all VMs.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::SlowValue(_) | Self::Tail(_))
    }

    pub(super) fn keep(&self) -> Keep {
        if matches!(self, Self::Page(_)) { Keep::Forever } else { Keep::Never }
    }

    pub(super) fn directory(&self) -> Option<&'static dyn AnyDescriptor> {
        let Self::Directory(kind) = self else { return None };
        Some(*kind)
    }

    /// Returns the kind, from which open flags, sizes and documentation follow.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Value(_) | Self::SlowValue(_) | Self::Tail(_) | Self::Page(_) => Kind::Value,
            Self::Setting(_) | Self::WritableValue(..) => Kind::Setting,
            Self::Control(_) => Kind::Control,
            Self::Stream(_) => Kind::Stream,
            Self::Link(_) => Kind::Link,
            Self::Directory(_) => Kind::Directory,
        }
    }
}

/// The kinds of nodes, as DESIGN and the documentation name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Exact size, content fixed at open.
    Value,
    Setting,
    /// Takes verbs, gives results.
    Control,
    /// Size 0; reads may park.
    Stream,
    Link,
    Directory,
}

impl Kind {
    /// Returns the word used in the documentation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Setting => "setting",
            Self::Control => "control",
            Self::Stream => "stream",
            Self::Link => "link",
            Self::Directory => "directory",
        }
    }
}

/// What stat(2) reports of a node, in our own terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) id: NodeId,
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    /// Its exact size in bytes; 0 for streams and controls.
    pub(crate) size: u64,
    /// 2 and the number of sub-directories, for a directory; 1 where they come and go by
    /// themselves.
    pub(crate) links: u32,
    pub(crate) mtime: SystemTime,
    pub(crate) keep: Keep,
}

/// How long the kernel may remember a name or attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Until it changes them itself.
    Forever,
    /// Not at all: they change by themselves.
    Never,
}
