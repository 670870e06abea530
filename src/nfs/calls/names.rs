//! CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, linkat, mkdirat, mknodat, openat, renameat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use super::{Request, Want};
use crate::nfs::attributes::Changes;
use crate::nfs::beneath::{checked, link as path_of};
use crate::nfs::export::{Export, Place};
use crate::nfs::facts::{Facts, Time};
use crate::nfs::open_files::For;
use crate::nfs::status::{Fault, Status};
use crate::nfs::xdr::{Decoder, Encoder};

/// The longest target of a symbolic link.
const LONGEST_TARGET: usize = 4096;
/// Names are made for the owner alone, and get their mode when they are there: no file is open to others for a
/// moment, and the daemon's umask does not count.
const PRIVATE: u32 = 0o700;

/// Reads a directory and a name in it, which the caller may change.
fn target<'a>(
    request: &Request<'_>,
    rest: &mut Decoder<'a>,
) -> Result<(Arc<Export>, Place, &'a OsStr), Fault> {
    let (export, dir) = request.directory(rest)?;
    let name = Request::name(rest)?;
    let name = match name {
        b"." | b".." => return Err(Status::Exists.into()),
        name => checked(name)?,
    };
    request.admit(&dir.facts, Want::Write)?;
    export.may_write()?;
    Ok((export, dir, name))
}

/// Answers that a file is there: its handle, its attributes, its directory's.
fn made(
    request: &Request<'_>,
    out: &mut Encoder,
    (export, dir): (&Export, &Place),
    (name, facts): (&OsStr, &Facts),
) {
    let handle = export.handle(dir, name, facts);
    request.new_handle(out, &handle);
    request.after(out, export, handle.file, Some(facts));
    request.changed(out, export, dir);
}

/// How a file is to be created.
enum How {
    /// It may be there.
    Unchecked(Changes),
    Guarded(Changes),
    /// With a mark by which the guest knows that it has created it, when it asks twice.
    Exclusive([u32; 2]),
}

impl How {
    fn read(rest: &mut Decoder<'_>) -> Result<Self, Fault> {
        match rest.word()? {
            0 => Ok(Self::Unchecked(Changes::read(rest)?)),
            1 => Ok(Self::Guarded(Changes::read(rest)?)),
            // The times of a file are its mark; not all file systems have those after 2038.
            2 => Ok(Self::Exclusive([rest.word()?, rest.word()?].map(|word| word & 0x7fff_ffff))),
            _ => Err(Fault::Garbage),
        }
    }

    fn changes(&self) -> Changes {
        let time = |seconds| Time { seconds, nanoseconds: 0 };
        match self {
            Self::Unchecked(changes) | Self::Guarded(changes) => *changes,
            Self::Exclusive([atime, mtime]) => Changes::times(time(*atime), time(*mtime)),
        }
    }
}

pub(super) fn create(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir, name) = target(request, rest)?;
    let how = How::read(rest)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let facts = match openat(&dir.fd, name, flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => created(&export, (&dir, name), File::from(fd), &how.changes())?,
        Err(Errno::EXIST) => existing(request, &export, (&dir, name), &how)?,
        Err(error) => return Err(error.into()),
    };
    made(request, out, (&export, &dir), (name, &facts));
    Ok(())
}

/// Finishes a new file, which stays open: it can be written whatever its mode is.
fn created(
    export: &Export,
    (dir, name): (&Place, &OsStr),
    file: File,
    changes: &Changes,
) -> Result<Facts, Fault> {
    changes.apply_size(&file)?;
    changes.apply_mode(&file, &Facts::of(&file)?)?;
    changes.apply_times(&file)?;
    let facts = Facts::of(&file)?;
    export.marks.own(dir.handle.file, None, Some(&facts));
    let id = export.handle(dir, name, &facts).file;
    export.files.keep(id, For::Writing, file);
    Ok(facts)
}

/// Takes a file that is there as the one that was to be created, where that is asked for.
fn existing(
    request: &Request<'_>,
    export: &Export,
    (dir, name): (&Place, &OsStr),
    how: &How,
) -> Result<Facts, Fault> {
    let (fd, facts) = dir.child(name)?;
    let is_file = facts.kind == FileType::RegularFile;
    match how {
        How::Unchecked(changes) if is_file && changes.size.is_some() => {
            let handle = export.handle(dir, name, &facts);
            let file = request.file(export, &handle, For::Writing)?;
            changes.apply_size(&file)?;
            let after = Facts::of(fd)?;
            export.marks.own(dir.handle.file, Some(&facts), Some(&after));
            Ok(after)
        }
        How::Unchecked(_) if is_file => Ok(facts),
        How::Exclusive(mark) if [facts.atime.seconds, facts.mtime.seconds] == *mark && is_file => {
            Ok(facts)
        }
        How::Unchecked(_) | How::Guarded(_) | How::Exclusive(_) => Err(Status::Exists.into()),
    }
}

pub(super) fn mkdir(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir, name) = target(request, rest)?;
    let changes = Changes::read(rest)?;
    mkdirat(&dir.fd, name, Mode::from_raw_mode(PRIVATE))?;
    let facts = finished(&dir, name, &changes)?;
    made(request, out, (&export, &dir), (name, &facts));
    Ok(())
}

/// Gives a new file its mode and times.
fn finished(dir: &Place, name: &OsStr, changes: &Changes) -> Result<Facts, Fault> {
    let (fd, facts) = dir.child(name)?;
    changes.apply_mode(&fd, &facts)?;
    changes.apply_times(&fd)?;
    Ok(Facts::of(fd)?)
}

pub(super) fn symlink(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir, name) = target(request, rest)?;
    let changes = Changes::read(rest)?;
    let text = rest.opaque(LONGEST_TARGET)?;
    if text.is_empty() || text.contains(&0) {
        return Err(Status::Invalid.into());
    }
    symlinkat(OsStr::from_bytes(text), &dir.fd, name)?;
    let facts = finished(&dir, name, &changes)?;
    export.marks.own(dir.handle.file, None, Some(&facts));
    made(request, out, (&export, &dir), (name, &facts));
    Ok(())
}

pub(super) fn mknod(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir, name) = target(request, rest)?;
    let kind = match rest.word()? {
        6 => FileType::Socket,
        7 => FileType::Fifo,
        // Devices: for the host's root alone.
        3 | 4 => return Err(Status::NotOwner.into()),
        _ => return Err(Status::BadType.into()),
    };
    let changes = Changes::read(rest)?;
    mknodat(&dir.fd, name, kind, Mode::from_raw_mode(0o600), 0)?;
    let facts = finished(&dir, name, &changes)?;
    export.marks.own(dir.handle.file, None, Some(&facts));
    made(request, out, (&export, &dir), (name, &facts));
    Ok(())
}

pub(super) fn remove(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    unlink(request, rest, out, AtFlags::empty())
}

pub(super) fn rmdir(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    unlink(request, rest, out, AtFlags::REMOVEDIR)
}

fn unlink(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
    flags: AtFlags,
) -> Result<(), Fault> {
    let (export, dir, name) = target(request, rest)?;
    let (_, facts) = dir.child(name)?;
    unlinkat(&dir.fd, name, flags)?;
    export.marks.own(dir.handle.file, Some(&facts), None);
    forget(&export, &dir, &facts);
    request.changed(out, &export, &dir);
    Ok(())
}

/// The file was removed. One that has other names stays.
fn forget(export: &Export, dir: &Place, facts: &Facts) {
    if facts.is_directory() || facts.links == 1 {
        let id = facts.id(dir.root.device);
        export.index.lock().is_gone(id);
        export.files.close(id);
    }
}

pub(super) fn rename(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, from, old) = target(request, rest)?;
    let (other, to, new) = target(request, rest)?;
    if other.number != export.number {
        return Err(Status::CrossDevice.into());
    }
    let (fd, facts) = from.child(old)?;
    let replaced = to.child(new).ok().map(|(_, facts)| facts);
    renameat(&from.fd, old, &to.fd, new)?;
    export.marks.own(from.handle.file, Some(&facts), None);
    export.marks.own(to.handle.file, replaced.as_ref(), Facts::of(fd).ok().as_ref());
    if let Some(replaced) = replaced
        && (replaced.device, replaced.inode) != (facts.device, facts.inode)
    {
        forget(&export, &to, &replaced);
    }
    export.handle(&to, new, &facts);
    request.changed(out, &export, &from);
    request.changed(out, &export, &to);
    Ok(())
}

pub(super) fn link(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, file) = request.place(rest)?;
    let (other, dir, name) = target(request, rest)?;
    if other.number != export.number {
        return Err(Status::CrossDevice.into());
    }
    if file.facts.is_directory() {
        return Err(Status::Invalid.into());
    }
    linkat(CWD, path_of(&file.fd), dir.fd.as_fd(), name, AtFlags::SYMLINK_FOLLOW)?;
    let facts = Facts::of(&file.fd)?;
    export.own_change(file.handle.file, &file.facts, Some(&facts));
    export.marks.own(dir.handle.file, None, Some(&facts));
    request.after(out, &export, file.handle.file, Some(&facts));
    request.changed(out, &export, &dir);
    Ok(())
}
