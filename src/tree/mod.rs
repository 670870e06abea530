//! The tree: which names exist and what is done with them, over the tables of [`table`].
//!
//! No kernel and no sockets: every operation is a plain function that answers now or returns a
//! future ([`Answer`]); it neither awaits nor reads a clock, so it is tested without a mount.

pub mod directory;
pub mod handle;
pub mod host;
pub mod manual;
mod metrics;
pub mod names;
pub mod node;
mod refused;
mod render;
mod requests;
pub mod settings;
pub mod subject;
pub mod table;
pub mod verbs;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures::FutureExt;
use parking_lot::Mutex;

use self::directory::{Directories, Directory};
use self::handle::{Open, OpenRequest};
use self::host::{Failure, Host};
use self::names::Entry;
use self::node::{Attr, Keep, Kind, NodeId};
use self::refused::Refused;
use self::verbs::VerbError;
use crate::registry::{Registry, RegistryError};
use crate::vm::caller::Caller;
use crate::vm::state::{Command, Refusal};
use crate::vm::{VmError, one_line};

/// Why an operation on the tree was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TreeError {
    /// There is no such name.
    #[error("no such file")]
    NotFound,
    /// There is no such name, unless the kernel makes it.
    #[error("no such file")]
    NeverFound,
    /// A directory was wanted.
    #[error("not a directory")]
    NotADirectory,
    /// A symbolic link was wanted.
    #[error("not a symbolic link")]
    NotALink,
    /// A file was wanted.
    #[error("a directory")]
    IsADirectory,
    /// The file cannot be written.
    #[error("read-only")]
    ReadOnly,
    /// The file cannot be read.
    #[error("write-only")]
    WriteOnly,
    /// Files are not created here.
    #[error("files cannot be created here; `mkdir NAME` at the root makes a VM")]
    NoCreation,
    /// The operation is not offered here.
    #[error("not permitted here: {0}")]
    NotOffered(&'static str),
    /// A name that is not of the form of names here.
    #[error(
        "{0:?} cannot be a name here: letters, digits, dots, dashes and underscores, at most 64"
    )]
    BadName(String),
    /// A rename that is not from one name that users make to another in the same directory.
    #[error("only what `mkdir` makes can be renamed, and only within its directory")]
    BadRename,
    /// A snapshot that is to be another VM's.
    #[error(
        "a snapshot is a point in the past of this VM alone; `mkdir .images/x; echo VM@TAG > \
         .images/x/source` makes an image of it for others"
    )]
    OthersSnapshot,
    /// The open file is unknown.
    #[error("unknown file handle")]
    BadHandle,
    /// Nothing can be read or written without waiting.
    #[error("would have to wait")]
    WouldBlock,
    /// An earlier line of this open file has failed.
    #[error("an earlier line failed; read this descriptor, or open the file again")]
    Latched,
    /// A write is too long.
    #[error("more than {0} bytes in one write")]
    TooBig(usize),
    /// Text was wanted.
    #[error("not UTF-8 text")]
    NotText,
    /// A line of a control file is not a command.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// The VM refused or failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The registry refused or failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl TreeError {
    /// Says whether `error` should tell of it: not of what is said by the errno alone.
    pub(crate) fn is_worth_noting(&self) -> bool {
        !matches!(
            self,
            Self::NotFound | Self::NeverFound | Self::WouldBlock | Self::Latched | Self::BadHandle
        )
    }
}

impl From<Refusal> for TreeError {
    fn from(refusal: Refusal) -> Self {
        Self::Vm(refusal.into())
    }
}

/// Who asks, and when.
pub struct By<'a> {
    /// Finds the process and its relations, which takes a look at `/proc`.
    pub caller: &'a dyn Fn() -> Caller,
    /// The time of the request.
    pub now: SystemTime,
}

impl std::fmt::Debug for By<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("By").field("now", &self.now).finish_non_exhaustive()
    }
}

/// A result that is here, or one to come.
pub enum Answer<T> {
    /// Here it is.
    Now(Result<T, TreeError>),
    /// Waiting for it is the caller's business; dropping the future gives it up.
    Later(Pin<Box<dyn Future<Output = Result<T, TreeError>> + Send>>),
}

impl<T> Answer<T> {
    fn later(future: impl Future<Output = Result<T, TreeError>> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }
}

impl<T> std::fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

/// A file that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The number of the open file.
    pub handle: u64,
    /// What kind of file it is, from which the kernel's flags follow.
    pub kind: Kind,
}

/// A directory that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedDirectory {
    /// The number of the open directory.
    pub handle: u64,
    /// Whether the kernel may remember its names.
    pub keep: Keep,
}

/// The names of an open directory, frozen.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The names, without `.` and `..`.
    pub entries: Arc<[Entry]>,
    /// Whether the kernel may remember them.
    pub keep: Keep,
}

/// A name that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub attr: Attr,
    /// Whether the kernel may remember the name.
    pub keep: Keep,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    directories: Directories,
    open: Mutex<HashMap<u64, Arc<Open>>>,
    listings: Mutex<HashMap<u64, Listing>>,
    next_handle: AtomicU64,
    refused: Refused,
}

impl Tree {
    /// Returns the tree over a registry.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            directories: Directories::new(Host {
                failures: Arc::clone(&registry.backends().failures),
                registry,
            }),
            open: Mutex::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            refused: Refused::default(),
        })
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// [`TreeError::NotFound`] for a name that may come by itself, [`TreeError::NeverFound`] for
    /// one that only the kernel could bring about.
    pub fn lookup(&self, parent: NodeId, name: &str) -> Result<Found, TreeError> {
        let directory = self.directories.get(parent)?;
        let id = Self::find(&*directory, name)?;
        Ok(Found { attr: self.attr(id)?, keep: keep(&*directory) })
    }

    fn find(directory: &dyn Directory, name: &str) -> Result<NodeId, TreeError> {
        directory.find(name).ok_or_else(|| match directory.names().is_possible(name) {
            true if keep(directory) == Keep::Never => TreeError::NotFound,
            _ => TreeError::NeverFound,
        })
    }

    /// Describes a node.
    ///
    /// # Errors
    /// [`TreeError::NotFound`] for one whose object is gone.
    pub fn attr(&self, id: NodeId) -> Result<Attr, TreeError> {
        self.directories.attr(id)
    }

    /// Opens a file: what the row says, or [`TreeError::ReadOnly`] for a write to what cannot be
    /// written.
    pub fn open(self: &Arc<Self>, id: NodeId, request: &OpenRequest<'_>) -> Answer<Opened> {
        let tree = Arc::clone(self);
        let opened = self.open_only(id, request);
        opened.map(move |open| open.map(|(open, kind)| tree.enter(open, kind)))
    }

    fn open_only(&self, id: NodeId, request: &OpenRequest<'_>) -> Answer<(Open, Kind)> {
        let (directory, row) = match self.directories.row(id) {
            Ok(found) => found,
            Err(error) => return Answer::Now(Err(error)),
        };
        let (kind, vm) = (directory.kind(row), directory.vm().cloned());
        let with_kind = move |open: Result<Open, _>| open.map(|open| (open, kind));
        match directory.open(row, request) {
            Answer::Now(open) => Answer::Now(with_kind(handle::noted(vm.as_ref(), open))),
            later @ Answer::Later(_) => later.map(with_kind),
        }
    }

    fn enter(&self, open: Open, kind: Kind) -> Opened {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(handle, Arc::new(open));
        Opened { handle, kind }
    }

    /// Opens a directory: its names are frozen, so that offsets into it stay right.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`], [`TreeError::NotFound`].
    pub fn open_directory(&self, id: NodeId) -> Result<OpenedDirectory, TreeError> {
        self.list(id).map(|listing| self.enter_listing(listing))
    }

    fn list(&self, id: NodeId) -> Result<Listing, TreeError> {
        let directory = self.directories.get(id)?;
        Ok(Listing { entries: directory.entries().into(), keep: keep(&*directory) })
    }

    fn enter_listing(&self, listing: Listing) -> OpenedDirectory {
        let (handle, keep) = (self.next_handle.fetch_add(1, Ordering::Relaxed), listing.keep);
        self.listings.lock().insert(handle, listing);
        OpenedDirectory { handle, keep }
    }

    /// Returns the names of an open directory, without `.` and `..`.
    ///
    /// # Errors
    /// [`TreeError::BadHandle`].
    pub fn listing(&self, handle: u64) -> Result<Listing, TreeError> {
        self.listings.lock().get(&handle).cloned().ok_or(TreeError::BadHandle)
    }

    /// Forgets an open directory.
    pub fn release_directory(&self, handle: u64) {
        self.listings.lock().remove(&handle);
    }

    /// Returns an open file.
    ///
    /// # Errors
    /// [`TreeError::BadHandle`].
    pub fn handle(&self, handle: u64) -> Result<Arc<Open>, TreeError> {
        self.open.lock().get(&handle).cloned().ok_or(TreeError::BadHandle)
    }

    /// Forgets an open file.
    pub fn release(&self, handle: u64) {
        // Dropped outside the lock: what a stream does at its end is its own affair.
        let open = self.open.lock().remove(&handle);
        drop(open);
    }

    /// Returns where a symbolic link leads for this caller.
    ///
    /// # Errors
    /// [`TreeError::NotALink`]; [`TreeError::NotFound`] for one that leads nowhere at present.
    pub fn target(&self, id: NodeId, caller: &dyn Fn() -> Caller) -> Result<PathBuf, TreeError> {
        let (directory, row) = self.directories.row(id)?;
        directory.target(row, caller)
    }

    /// Makes a directory: at the root, a VM.
    pub fn make_directory(&self, parent: NodeId, name: &str) -> Answer<Attr> {
        let made = match self.directories.get(parent) {
            Ok(directory) => directory.names().make(name),
            Err(error) => return Answer::Now(Err(error)),
        };
        let directories = self.directories.clone();
        match made {
            Answer::Now(made) => Answer::Now(made.and_then(|id| directories.attr(id))),
            Answer::Later(made) => {
                Answer::later(made.map(move |made| made.and_then(|id| directories.attr(id))))
            }
        }
    }

    /// Removes a directory that users make; or (without effect, so that `rm -r` works) a part of a
    /// VM that could be removed.
    pub fn remove_directory(&self, parent: NodeId, name: &str, by: &By<'_>) -> Answer<()> {
        let directory = match self.directories.get(parent) {
            Ok(directory) => directory,
            Err(error) => return Answer::Now(Err(error)),
        };
        match directory.names().find(name) {
            Some(_) => match self.is_refused_with_its_vm(&*directory, by) {
                Ok(()) => directory.names().remove(name, by.caller),
                Err(error) => Answer::Now(Err(error)),
            },
            None => Answer::Now(self.remove_part(parent, name)),
        }
    }

    /// Makes a symbolic link: in `.images`, an alias.
    pub fn make_link(&self, parent: NodeId, name: &str, target: &str) -> Answer<Attr> {
        let made = match self.directories.get(parent) {
            Ok(directory) => directory.names().link(name, target),
            Err(error) => return Answer::Now(Err(error)),
        };
        let directories = self.directories.clone();
        match made {
            Answer::Now(made) => Answer::Now(made.and_then(|id| directories.attr(id))),
            Answer::Later(made) => {
                Answer::later(made.map(move |made| made.and_then(|id| directories.attr(id))))
            }
        }
    }

    /// Unlinks a link that users have made, or (without effect) a file of ours.
    pub fn unlink(&self, parent: NodeId, name: &str, by: &By<'_>) -> Answer<()> {
        let directory = match self.directories.get(parent) {
            Ok(directory) => directory,
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(unlinked) = directory.names().unlink(name) {
            return unlinked;
        }
        let done = self.remove_part(parent, name);
        if let (Some(vm), Err(_)) = (directory.vm(), &done) {
            self.refused.add(vm.id(), (by.caller)().process(), by.now);
        }
        Answer::Now(done)
    }

    /// Refuses to remove what lies in a VM to a process that has just been refused the VM's own files:
    /// `rm -r` of a VM that stays must leave its snapshots and jobs.
    fn is_refused_with_its_vm(
        &self,
        directory: &dyn Directory,
        by: &By<'_>,
    ) -> Result<(), TreeError> {
        let Some(vm) = directory.vm() else { return Ok(()) };
        let refusal = vm.would_admit(&Command::Remove).err();
        let Some(refusal) = refusal else { return Ok(()) };
        let process = (by.caller)().process();
        if !self.refused.holds(vm.id(), process, by.now) {
            return Ok(());
        }
        self.refused.add(vm.id(), process, by.now);
        handle::noted(Some(vm), Err(refusal.into()))
    }

    /// Unlinks a file of ours: nothing happens, and it says what `rmdir` of its object would say, so
    /// that `rm -r`, `find -delete` and `rmdir` agree.
    ///
    /// # Errors
    /// The refusal that the object's removal would meet.
    pub fn remove_part(&self, parent: NodeId, name: &str) -> Result<(), TreeError> {
        let directory = self.directories.get(parent)?;
        if directory.find(name).is_none() {
            return Err(TreeError::NotFound);
        }
        handle::noted(directory.vm(), directory.admit_removal())
    }

    /// Renames what users have made.
    pub fn rename(&self, from: (NodeId, &str), to: (NodeId, &str)) -> Answer<()> {
        match self.directories.get(from.0) {
            Ok(directory) if from.0 == to.0 => directory.names().rename(from.1, to.1),
            Ok(directory) => directory.names().move_out(from.1, to),
            Err(error) => Answer::Now(Err(error)),
        }
    }

    /// Remembers a request that failed, for `.error`.
    pub fn note_failure(
        &self,
        time: SystemTime,
        pid: u32,
        id: NodeId,
        errno: i32,
        error: &TreeError,
    ) {
        if error.is_worth_noting() {
            let path = self.directories.path(id);
            let text = one_line(&error.to_string());
            self.directories.host().failures.add(Failure { time, pid, path, errno, text });
        }
    }

    /// Remembers a fault of the daemon itself, for `.error`.
    pub fn note_fault(&self, time: SystemTime, errno: i32, text: &str) {
        let (pid, path) = (std::process::id(), "/".to_owned());
        let failure = Failure { time, pid, path, errno, text: text.to_owned() };
        self.directories.host().failures.add(failure);
    }
}

fn keep(directory: &dyn Directory) -> Keep {
    if directory.names().is_stable() { Keep::Forever } else { Keep::Never }
}

/// How much of a file's end a [`node::Body::Tail`] shows: what of it is kept.
pub(crate) const TAIL: u64 = crate::store::bounded::KEPT;
