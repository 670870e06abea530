//! What a node is: a row of a table, about an object.
//!
//! No names of files here (`table.rs`), and nothing about open files (`handle.rs`).

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use super::TreeError;
use super::handle::OpenRequest;
use super::settings::Settings;
use super::verbs::Verb;
use crate::vm::caller::Caller;
use crate::vm::job::JobId;
use crate::vm::spec::Key;
use crate::vm::state::Command;
use crate::vm::stream::{Listener, Stream};
use crate::vm::{Vm, VmId};

/// One row: everything there is to say about a file that aqfs makes.
#[derive(Debug)]
pub struct Node<T: 'static> {
    /// Its name.
    pub name: &'static str,
    /// Its permissions.
    pub mode: u16,
    /// One line: what it is for. Longer words are in `mountpoint-docs/`.
    pub doc: &'static str,
    /// What it does.
    pub body: Body<T>,
}

/// Opens a stream of an object.
pub type OpenStream<T> = fn(&T, &OpenRequest<'_>) -> Result<Arc<dyn Stream>, TreeError>;

/// Text written to an object, being carried out.
pub type Carried<R> = Pin<Box<dyn Future<Output = R> + Send>>;
/// How lines of verbs went: how many went well, and the failure.
pub type Done = (usize, Option<TreeError>);
/// Carries out lines of verbs that were written to an object.
pub type CarryOut<T> = fn(&T, &str) -> Carried<Done>;
/// Takes text that was written to an object.
pub type TakeText<T> = fn(&T, &str) -> Carried<Result<(), TreeError>>;
/// Carries out a line of a control file.
pub type TakeLine = Box<dyn Fn(&str) -> Result<(), TreeError> + Send + Sync>;

/// What reading and writing a node means.
pub enum Body<T: 'static> {
    /// A value or table, made when it is opened; its size is exact.
    Value(fn(&T) -> String),
    /// A value whose making takes a look at the disk, or at all VMs.
    Report(fn(&T) -> String),
    /// The end of a file on disk (1 MiB at the most), and what is added while it is open.
    Tail(fn(&T) -> PathBuf),
    /// A setting.
    Setting(&'static Key),
    /// Verbs of a VM, one a line.
    Control(&'static [Verb]),
    /// Verbs of another object, one a line.
    Orders(CarryOut<T>),
    /// Lines that the object itself understands, and carries out at once.
    Lines(fn(&T) -> TakeLine),
    /// A value that can be written, and is not a VM's setting.
    Text(fn(&T) -> String, TakeText<T>),
    /// Bytes that come and go; a read may park.
    Stream(OpenStream<T>),
    /// A symbolic link, which may lead elsewhere for another caller; `None`: nowhere at present.
    Link(fn(&T, &dyn Fn() -> Caller) -> Option<PathBuf>),
    /// A directory about the same object.
    Directory(Table),
}

impl<T> std::fmt::Debug for Body<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind().name())
    }
}

impl<T> Body<T> {
    /// Says whether size and content take a look at the disk, or at all VMs.
    pub fn is_slow(&self) -> bool {
        match self {
            Self::Report(_) | Self::Tail(_) => true,
            Self::Value(_)
            | Self::Setting(_)
            | Self::Control(_)
            | Self::Orders(_)
            | Self::Lines(_)
            | Self::Text(..)
            | Self::Stream(_)
            | Self::Link(_)
            | Self::Directory(_) => false,
        }
    }

    /// Returns the kind, from which open flags, sizes and documentation follow.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Value(_) | Self::Report(_) | Self::Tail(_) => Kind::Value,
            Self::Setting(_) | Self::Text(..) => Kind::Setting,
            Self::Control(_) | Self::Orders(_) | Self::Lines(_) => Kind::Control,
            Self::Stream(_) => Kind::Stream,
            Self::Link(_) => Kind::Link,
            Self::Directory(_) => Kind::Directory,
        }
    }
}

/// The kinds of nodes, as DESIGN and the documentation name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Exact size, content frozen at open.
    Value,
    /// A value that can be written.
    Setting,
    /// Takes verbs, gives results.
    Control,
    /// Size 0; reads may park.
    Stream,
    /// Leads elsewhere.
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

/// The tables: one for each kind of directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Table {
    /// The mount's root: our dot files, and a directory for each VM.
    Root = 0,
    /// `.docs`.
    Docs = 1,
    /// `.images`.
    Images = 2,
    /// `.images/NAME`.
    Image = 3,
    /// A VM's directory.
    Vm = 4,
    /// `VM/config`.
    Config = 5,
    /// `.trash`.
    Trash = 6,
    /// `.trash/VM@TIME`.
    Removed = 7,
    /// `.defaults`.
    Defaults = 8,
    /// `VM/jobs`.
    Jobs = 9,
    /// `VM/jobs/NAME`. Its object is a VM's number and a job's, packed ([`pack_job`]).
    Job = 10,
    /// `VM/snapshots`.
    Snapshots = 12,
    /// `VM/snapshots/TAG`.
    Snapshot = 13,
    /// A second name in `.images`: the link is the one row of this directory, which has no name.
    Alias = 14,
}

impl Table {
    /// Says whether its names, and what is below them, take a look at the disk.
    pub(super) fn is_slow(self) -> bool {
        match self {
            Self::Snapshots | Self::Snapshot => true,
            Self::Root
            | Self::Docs
            | Self::Images
            | Self::Image
            | Self::Vm
            | Self::Config
            | Self::Trash
            | Self::Removed
            | Self::Defaults
            | Self::Jobs
            | Self::Job
            | Self::Alias => false,
        }
    }
}

/// The bits of a job's number in the object of [`Table::Job`].
const JOB_BITS: u32 = 24;

/// Packs a VM and one of its jobs into one object. The numbers of jobs return after 2^24 of one VM,
/// those of VMs after 2^20: by then the first ones are long forgotten.
pub(super) fn pack_job(vm: VmId, job: JobId) -> u64 {
    vm.0 << JOB_BITS | job.0 & ((1 << JOB_BITS) - 1)
}

/// Unpacks it.
pub(super) fn unpack_job(object: u64) -> (VmId, JobId) {
    (VmId(object >> JOB_BITS), JobId(object & ((1 << JOB_BITS) - 1)))
}

/// A node's number: table, object and row packed together, so that it follows from what the node
/// is, and is never reused as objects' numbers never are. The root is 1, as FUSE wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

const ROW_BITS: u32 = 12;
const OBJECT_BITS: u32 = 44;

impl NodeId {
    /// The mount's root.
    pub const ROOT: Self = Self(1);

    /// Returns the number of the directory with this table, about this object.
    pub fn directory(table: Table, object: u64) -> Self {
        let object = object & ((1 << OBJECT_BITS) - 1);
        Self(((table as u64) << (OBJECT_BITS + ROW_BITS) | object << ROW_BITS) + 1)
    }

    /// Returns the number of a row in this directory.
    pub fn row(self, row: usize) -> Self {
        Self(self.0 + 1 + row as u64)
    }

    /// Returns table, object and row (`None`: the directory itself).
    pub fn parts(self) -> Option<(Table, u64, Option<usize>)> {
        let packed = self.0.checked_sub(1)?;
        let table = match packed >> (OBJECT_BITS + ROW_BITS) {
            0 => Table::Root,
            1 => Table::Docs,
            2 => Table::Images,
            3 => Table::Image,
            4 => Table::Vm,
            5 => Table::Config,
            6 => Table::Trash,
            7 => Table::Removed,
            8 => Table::Defaults,
            9 => Table::Jobs,
            10 => Table::Job,
            12 => Table::Snapshots,
            13 => Table::Snapshot,
            14 => Table::Alias,
            _ => return None,
        };
        let object = (packed >> ROW_BITS) & ((1 << OBJECT_BITS) - 1);
        let row = usize::try_from(packed & ((1 << ROW_BITS) - 1)).ok()?;
        Some((table, object, row.checked_sub(1)))
    }
}

/// What stat(2) tells of a node, in our own terms.
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
    /// 2 and the number of sub-directories, for a directory; 1 where they come and go by themselves.
    pub links: u32,
    /// When its content last changed.
    pub changed: SystemTime,
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

/// The object that a table's rows are about.
pub(super) trait Subject: Clone + Send + Sync + 'static {
    /// Returns when the content of a row last changed.
    fn changed(&self, name: &str) -> SystemTime;
    /// Returns the VM that the rows belong to.
    fn vm(&self) -> Option<&Vm>;
    /// Returns the settings that the rows are.
    fn settings(&self) -> Option<&Settings> {
        None
    }
    /// A row is about to be opened.
    fn opening(&self) {}
    /// Says whether the rows could be removed, as part of the directory that users made: unlinking
    /// one then succeeds, without effect, so that `rm -r`, `find -delete` and `rmdir` agree.
    fn admit_removal(&self) -> Result<(), TreeError> {
        match self.vm() {
            Some(vm) => Ok(vm.would_admit(&Command::Remove)?),
            None => Err(TreeError::NotOffered("this is part of every mount")),
        }
    }
    /// Returns a listener that hears when a row's content may have changed; `None`: nobody tells.
    fn listen(&self) -> Option<Listener> {
        self.vm().map(Vm::listen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_root_is_one() {
        assert_eq!(NodeId::directory(Table::Root, 0), NodeId::ROOT);
        assert_eq!(NodeId(0).parts(), None);
    }

    #[test]
    fn a_job_is_found_by_its_vm_and_its_number() {
        assert_eq!(unpack_job(pack_job(VmId(7), JobId(9))), (VmId(7), JobId(9)));
    }

    proptest! {
        #[test]
        fn numbers_pack_and_unpack(object in 0u64..(1 << OBJECT_BITS), row in 0usize..4000) {
            for table in [Table::Root, Table::Image, Table::Vm, Table::Defaults, Table::Job] {
                let dir = NodeId::directory(table, object);
                prop_assert_eq!(dir.parts(), Some((table, object, None)));
                prop_assert_eq!(dir.row(row).parts(), Some((table, object, Some(row))));
            }
        }
    }
}
