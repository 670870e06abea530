//! Names: making, removing and renaming files.
//!
//! SFTP gives one word, "failure", for most reasons. Where the reason can be seen, it is looked for.

use std::sync::Arc;

use super::error::{FileSystemError, Result};
use super::nodes::FileId;
use super::open_file::Remote;
use super::{At, GuestFileSystem, PERMISSIONS, ROOT, full_or_failed, or};
use crate::vm::VmId;
use crate::vm::backend::{
    Existing, FileAnswer, FileAttr, FileChange, FileError, GuestFile, OpenFile,
};

impl GuestFileSystem {
    /// Makes and opens a file: its attributes, and what [`keep_created`](Self::keep_created) takes.
    pub(crate) async fn create(
        &self,
        directory: FileId,
        name: &[u8],
        how: &OpenFile,
    ) -> Result<(FileAttr, Created)> {
        let at = self.at_name(directory, name).await?;
        let _changing = self.siblings.changing(at.vm);
        let fresh = OpenFile { exclusive: true, ..*how };
        // Both are on their way before the first is answered.
        let (opened, found) = (at.files.open(&at.path, &fresh), at.files.attr(&at.path));
        let (file, attr): (Box<dyn GuestFile>, FileAttr) = match (opened.await, found.await) {
            (Ok(file), attr) => {
                let attr = with_permissions(&*file, attr?, how.create.unwrap_or_default()).await?;
                (file, attr)
            }
            (Err(FileError::Failed), Ok(_)) if how.exclusive => {
                return Err(FileSystemError::Exists);
            }
            (Err(FileError::Failed), Ok(attr)) => {
                let existing = OpenFile { create: None, exclusive: false, ..*how };
                (at.files.open(&at.path, &existing).await?, attr)
            }
            (Err(FileError::Failed), Err(_)) => return Err(full_or_failed(&parent(&at)).await),
            (Err(error), _) => return Err(error.into()),
        };
        let attr = self.shown(&*at.files, attr);
        Ok((attr, Created { remote: Remote { files: at.files, file: file.into() }, vm: at.vm }))
    }

    /// Keeps a new file open under the number that it has.
    pub(crate) fn keep_created(&self, id: FileId, how: OpenFile, created: Created) -> u64 {
        self.keep(id, how, created.remote, created.vm)
    }

    pub(crate) async fn make_directory(
        &self,
        directory: FileId,
        name: &[u8],
        mode: u32,
    ) -> Result<FileAttr> {
        let at = self.at_name(directory, name).await?;
        let _changing = self.siblings.changing(at.vm);
        let made = at.files.make_directory(&at.path, mode & PERMISSIONS);
        let attr = self.made(&at, made).await?;
        if attr.mode & 0o777 == mode & 0o777 {
            return Ok(attr);
        }
        let permissions = Some(mode & PERMISSIONS);
        let change = FileChange { permissions, ..FileChange::default() };
        at.files.change(&at.path, &change).await?;
        Ok(self.shown(&*at.files, at.files.attr(&at.path).await?))
    }

    pub(crate) async fn make_link(
        &self,
        directory: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<FileAttr> {
        let at = self.at_name(directory, name).await?;
        let _changing = self.siblings.changing(at.vm);
        let made = at.files.make_link(target, &at.path);
        self.made(&at, made).await
    }

    pub(crate) async fn link(
        &self,
        id: FileId,
        directory: FileId,
        name: &[u8],
    ) -> Result<FileAttr> {
        let (existing, at) = (self.at(id).await?, self.at_name(directory, name).await?);
        if existing.vm != at.vm {
            return Err(FileSystemError::CrossDevice);
        }
        let _changing = self.siblings.changing(at.vm);
        let made = at.files.link(&existing.path, &at.path);
        match self.made(&at, made).await {
            Err(FileSystemError::Guest(FileError::Failed)) => Err(FileSystemError::CrossDevice),
            Err(error) => Err(error),
            Ok(attr) => {
                self.nodes.link(id, directory, name);
                Ok(attr)
            }
        }
    }

    /// Returns the attributes of what is being made.
    async fn made(&self, at: &At, made: FileAnswer<()>) -> Result<FileAttr> {
        let found = at.files.attr(&at.path);
        match (made.await, found.await) {
            (Ok(()), attr) => Ok(self.shown(&*at.files, attr?)),
            (Err(FileError::Failed), Ok(_)) => Err(FileSystemError::Exists),
            (Err(FileError::Failed), Err(_)) => Err(full_or_failed(&parent(at)).await),
            (Err(error), _) => Err(error.into()),
        }
    }

    pub(crate) async fn remove(&self, directory: FileId, name: &[u8]) -> Result<()> {
        let at = self.at_name(directory, name).await?;
        let _changing = self.siblings.changing(at.vm);
        at.files.remove(&at.path).await.map_err(or(FileSystemError::NotOffered))?;
        self.nodes.remove(directory, name);
        Ok(())
    }

    pub(crate) async fn remove_directory(&self, directory: FileId, name: &[u8]) -> Result<()> {
        let at = self.at_name(directory, name).await?;
        let _changing = self.siblings.changing(at.vm);
        at.files.remove_directory(&at.path).await.map_err(or(FileSystemError::NotEmpty))?;
        self.nodes.remove(directory, name);
        Ok(())
    }

    pub(crate) async fn rename(
        &self,
        from: (FileId, &[u8]),
        to: (FileId, &[u8]),
        existing: Existing,
    ) -> Result<()> {
        if from.0 == ROOT || to.0 == ROOT {
            return Err(FileSystemError::NotOffered);
        }
        let (old, new) = (self.at_name(from.0, from.1).await?, self.at_name(to.0, to.1).await?);
        if old.vm != new.vm {
            return Err(FileSystemError::CrossDevice);
        }
        let _changing = self.siblings.changing(old.vm);
        match old.files.rename(&old.path, &new.path, existing).await {
            Ok(()) => self.nodes.rename(from, to),
            Err(FileError::Failed) => return Err(why_not_renamed(&new, existing).await),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A file that was made, and is open.
#[derive(Debug)]
pub(crate) struct Created {
    remote: Remote,
    vm: VmId,
}

/// The guest's server takes away what its own umask has: what the program wants is set again.
async fn with_permissions(file: &dyn GuestFile, attr: FileAttr, wanted: u32) -> Result<FileAttr> {
    if attr.mode & PERMISSIONS == wanted & PERMISSIONS {
        return Ok(attr);
    }
    let permissions = Some(wanted & PERMISSIONS);
    let changed = file.change(&FileChange { permissions, ..FileChange::default() });
    let found = file.attr();
    changed.await?;
    Ok(found.await?)
}

/// A file system's space can be asked for at what exists.
pub(super) fn parent(at: &At) -> At {
    let end = at.path.iter().rposition(|b| *b == b'/').unwrap_or(0).max(1);
    At { files: Arc::clone(&at.files), vm: at.vm, path: at.path[..end].to_vec() }
}

async fn why_not_renamed(new: &At, existing: Existing) -> FileSystemError {
    match (new.files.attr(&new.path).await, existing) {
        (Ok(_), Existing::Keep) => FileSystemError::Exists,
        (Ok(attr), Existing::Replace) if attr.mode & super::KIND == super::DIRECTORY => {
            FileSystemError::NotEmpty
        }
        // `mv` then copies.
        (Ok(_) | Err(_), Existing::Replace | Existing::Keep) => FileSystemError::CrossDevice,
    }
}
