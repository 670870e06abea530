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
use crate::vm::caller::Caller;
use crate::vm::spec::Key;
use crate::vm::stream::Stream;

/// One row: everything there is to say about a file that aqfs makes.
#[derive(Debug)]
pub(super) struct Node<T: 'static> {
    /// Its name.
    pub(super) name: &'static str,
    /// Its permissions.
    pub(super) mode: u16,
    /// When its content last changed. It must not move while the content stays: editors compare it
    /// before they write.
    pub(super) mtime: fn(&T) -> SystemTime,
    /// One line: what it is for. `mountpoint-docs/` has the rest.
    pub(super) doc: &'static str,
    /// What reading and writing it means.
    pub(super) body: Body<T>,
}

/// Opens a stream of an object.
pub(super) type OpenStream<T> = fn(&T, &OpenRequest<'_>) -> Result<Arc<dyn Stream>, TreeError>;
/// Carries out the lines of one write to a control file.
pub(super) type CarryOut<T> = fn(&T, &str) -> BoxFuture<'static, VerbOutcome>;
/// Sets a value to the text of one write.
pub(super) type SetValue<T> = fn(&T, &str) -> BoxFuture<'static, Result<(), TreeError>>;

/// How the lines of one write to a control file went.
#[derive(Debug, Default)]
pub(super) struct VerbOutcome {
    /// How many succeeded.
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
    /// A setting.
    Setting(&'static Key),
    /// A value that can be written, and is not a VM's setting.
    WritableValue(fn(&T) -> String, SetValue<T>),
    /// Verbs, one a line.
    Control(CarryOut<T>),
    /// Bytes that come and go; a read may park.
    Stream(OpenStream<T>),
    /// A symbolic link, whose target may depend on the caller; `None`: it has none at present.
    Link(fn(&T, &dyn Fn() -> Caller) -> Option<PathBuf>),
    /// A directory about the same object.
    Directory(&'static dyn AnyDescriptor),
}

impl<T> std::fmt::Debug for Body<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind().name())
    }
}

impl<T> Body<T> {
    /// Says whether size and content need a look at the disk, or at all VMs.
    pub(super) fn is_slow(&self) -> bool {
        match self {
            Self::SlowValue(_) | Self::Tail(_) => true,
            Self::Value(_)
            | Self::Page(_)
            | Self::Setting(_)
            | Self::WritableValue(..)
            | Self::Control(_)
            | Self::Stream(_)
            | Self::Link(_)
            | Self::Directory(_) => false,
        }
    }

    /// Says how long the kernel may remember the attributes.
    pub(super) fn keep(&self) -> Keep {
        match self {
            Self::Page(_) => Keep::Forever,
            Self::Value(_)
            | Self::SlowValue(_)
            | Self::Tail(_)
            | Self::Setting(_)
            | Self::WritableValue(..)
            | Self::Control(_)
            | Self::Stream(_)
            | Self::Link(_)
            | Self::Directory(_) => Keep::Never,
        }
    }

    /// Returns the directory that the row is, if it is one.
    pub(super) fn directory(&self) -> Option<&'static dyn AnyDescriptor> {
        match self {
            Self::Directory(kind) => Some(*kind),
            Self::Value(_)
            | Self::SlowValue(_)
            | Self::Tail(_)
            | Self::Page(_)
            | Self::Setting(_)
            | Self::WritableValue(..)
            | Self::Control(_)
            | Self::Stream(_)
            | Self::Link(_) => None,
        }
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
pub enum Kind {
    /// Exact size, content fixed at open.
    Value,
    /// A value that can be written.
    Setting,
    /// Takes verbs, gives results.
    Control,
    /// Size 0; reads may park.
    Stream,
    /// A symbolic link.
    Link,
    /// Holds other nodes.
    Directory,
}

impl Kind {
    /// Returns the word used in the documentation.
    pub fn name(self) -> &'static str {
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
pub struct Attr {
    /// The node.
    pub id: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// Its permissions.
    pub mode: u16,
    /// Its exact size in bytes; 0 for streams and controls.
    pub size: u64,
    /// 2 and the number of sub-directories, for a directory; 1 where they come and go by
    /// themselves.
    pub links: u32,
    /// When its content last changed.
    pub mtime: SystemTime,
    /// Whether the kernel may remember this.
    pub keep: Keep,
}

/// How long the kernel may remember a name or attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Until it changes them itself.
    Forever,
    /// Not at all: they change by themselves.
    Never,
}
