//! A share as the server sees it: a directory of the host, and how a handle leads to a file beneath it.
//!
//! Not here: what is done with the file (`calls`), how a file is looked for that is not where it was (`search`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::beneath;
use super::facts::{Facts, mix};
use super::followed::Followed;
use super::handle::{Handle, Trail};
use super::index::Index;
use super::listing::Listings;
use super::marks::Marks;
use super::open_files::OpenFiles;
use super::search;
use super::status::Status;

/// For how long the share's directory is taken to be where it was.
const ROOT_LASTS: Duration = Duration::from_millis(500);

/// Which file it is, beneath a share. The share's own directory is [`FileId::ROOT`], also when another one has
/// taken its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    /// 0: the file system of the share's directory.
    pub(super) device: u32,
    pub(super) inode: u64,
    pub(super) birth: u32,
}

impl FileId {
    pub(super) const ROOT: Self = Self { device: 0, inode: 0, birth: 0 };
}

/// A directory of the host that a guest can mount.
#[derive(Debug)]
pub struct Export {
    /// What the guest's mounts and handles know it by.
    pub number: u64,
    source: PathBuf,
    read_only: AtomicBool,
    root: Mutex<Option<(Arc<Root>, Instant)>>,
    pub(super) index: Mutex<Index>,
    pub(super) files: OpenFiles,
    pub(super) listings: Listings,
    pub(super) marks: Marks,
    pub(super) followed: Followed,
}

/// The share's directory, as it was found.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    pub(super) device: u64,
    inode: u64,
}

/// A file that was found.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) root: Arc<Root>,
    /// An open file that nothing can be read from: it only says which file is meant.
    pub(super) fd: OwnedFd,
    pub(super) facts: Facts,
    pub(super) handle: Handle,
}

impl Export {
    /// Describes a directory by its absolute path, in which no symbolic link may be.
    pub fn new(number: u64, source: PathBuf, read_only: bool) -> Self {
        Self {
            number,
            source,
            read_only: AtomicBool::new(read_only),
            root: Mutex::default(),
            index: Mutex::default(),
            files: OpenFiles::default(),
            listings: Listings::default(),
            marks: Marks::default(),
            followed: Followed::default(),
        }
    }

    /// Returns the directory.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Returns the path by which a guest mounts it.
    pub fn path(number: u64) -> String {
        format!("/{number:016x}")
    }

    /// Lets the guest write, or only read, from now on.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    /// Says whether the directory is there and can be read.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn check(&self) -> io::Result<()> {
        let root = Root::open(&self.source)?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        beneath::reopen(&root.fd, flags).map(drop).map_err(io::Error::from)
    }

    pub(super) fn may_write(&self) -> Result<(), Status> {
        match self.read_only.load(Ordering::Relaxed) {
            true => Err(Status::ReadOnly),
            false => Ok(()),
        }
    }

    /// Returns the share's directory. One that was replaced is followed.
    pub(super) fn root(&self) -> Result<Arc<Root>, Status> {
        let mut known = self.root.lock();
        if let Some((root, since)) = &*known
            && since.elapsed() < ROOT_LASTS
        {
            return Ok(Arc::clone(root));
        }
        let found = Root::open(&self.source).map_err(|_| Status::Stale)?;
        let root = match known.take() {
            Some((old, _)) if (old.device, old.inode) == (found.device, found.inode) => old,
            Some(_) | None => Arc::new(found),
        };
        *known = Some((Arc::clone(&root), Instant::now()));
        Ok(root)
    }

    /// Finds the file of a handle.
    pub(super) fn find(&self, handle: &Handle) -> Result<Place, Status> {
        let root = self.root()?;
        let path = self.index.lock().path(handle.file);
        if let Some(path) = path
            && let Ok(place) = root.place(&path, *handle)
        {
            return Ok(place);
        }
        if self.index.lock().is_known_gone(handle.file) {
            return Err(Status::Stale);
        }
        let found = search::find(&root, handle);
        let Some(found) = found else {
            self.index.lock().is_gone(handle.file);
            return Err(Status::Stale);
        };
        self.learn_path(handle, &found);
        root.place(&found.path, *handle)
    }

    /// Lists files that the guest has read lately and has not heard of since they were changed.
    pub(super) fn changed_files(&self) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        for (handle, told) in self.followed.all() {
            let path = self.index.lock().path(handle.file);
            let found = path.and_then(|path| {
                let place = self.root().ok()?.place(&path, handle).ok()?;
                Some((path, place.facts))
            });
            match found {
                Some((path, facts)) if told != Some(facts.ctime) => {
                    self.followed.told(handle.file, &facts);
                    changed.push(path);
                }
                Some(_) => {}
                None => self.followed.forget(handle.file),
            }
        }
        changed
    }

    /// The guest has changed a file: its directory is not changed by anybody else.
    pub(super) fn own_change(&self, file: FileId, before: &Facts, after: Option<&Facts>) {
        if let Some(dir) = self.index.lock().parent(file) {
            self.marks.own(dir, Some(before), after);
        }
    }

    /// Notes a file that a search has found, and the directories above it.
    fn learn_path(&self, handle: &Handle, found: &search::Found) {
        let mut index = self.index.lock();
        let (mut parent, mut trail) = (FileId::ROOT, Trail::default());
        for (name, above) in found.path.iter().zip(&found.above) {
            index.learn(*above, parent, name, trail);
            (parent, trail) = (*above, trail.below(above.inode));
        }
        if let Some(name) = found.path.file_name() {
            index.learn(handle.file, parent, name, handle.trail);
        }
    }

    /// Returns the handle of a file that was found under a name in a directory.
    pub(super) fn handle(&self, dir: &Place, name: &OsStr, facts: &Facts) -> Handle {
        let file = facts.id(dir.root.device);
        let parent = dir.handle.file;
        let trail = match parent == FileId::ROOT {
            true => Trail::default(),
            false => dir.handle.trail.below(parent.inode),
        };
        let trail = self.index.lock().learn(file, parent, name, trail);
        Handle { share: self.number, file, trail }
    }

    /// Returns the handle of the directory above one.
    pub(super) fn above(&self, dir: &Place) -> Result<Handle, Status> {
        let index = self.index.lock();
        let root = Handle::root(self.number);
        if dir.handle.file == FileId::ROOT {
            return Ok(root);
        }
        let parent = index.parent(dir.handle.file).ok_or(Status::Stale)?;
        if parent == FileId::ROOT {
            return Ok(root);
        }
        let trail = index.trail(parent).ok_or(Status::Stale)?;
        Ok(Handle { share: self.number, file: parent, trail })
    }

    /// Returns a file's number in the guest: the host's inode, but for the root, which may be replaced, and for
    /// other file systems mounted beneath it.
    pub(super) fn number_of(&self, file: FileId) -> u64 {
        match file {
            FileId::ROOT => u64::from(mix(self.number)) | 1 << 63,
            FileId { device: 0, inode, .. } => inode,
            FileId { device, inode, .. } => inode ^ u64::from(device) << 32,
        }
    }
}

impl Root {
    fn open(source: &Path) -> io::Result<Self> {
        let fd = beneath::open_root(source)?;
        let stat = rustix::fs::fstat(&fd)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let facts = Facts::of(&fd).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { fd, device: facts.device, inode: facts.inode })
    }

    /// Opens a path and checks that it is the file of a handle.
    pub(super) fn place(self: &Arc<Self>, path: &Path, handle: Handle) -> Result<Place, Status> {
        let fd = beneath::open(self.fd.as_fd(), path)?;
        let facts = Facts::of(&fd)?;
        if handle.file != FileId::ROOT && facts.id(self.device) != handle.file {
            return Err(Status::Stale);
        }
        Ok(Place { root: Arc::clone(self), fd, facts, handle })
    }
}

impl Place {
    /// It must be a directory.
    pub(super) fn directory(self) -> Result<Self, Status> {
        match self.facts.is_directory() {
            true => Ok(self),
            false => Err(Status::NotDirectory),
        }
    }

    /// Looks at a name in it.
    pub(super) fn child(&self, name: &OsStr) -> Result<(OwnedFd, Facts), Status> {
        let fd = beneath::child(&self.fd, name)?;
        let facts = Facts::of(&fd)?;
        Ok((fd, facts))
    }
}
