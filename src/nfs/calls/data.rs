//! SETATTR, READ, WRITE, COMMIT.
//!
//! What was written is in the host's page cache: it survives the daemon, as the bytes of any program of the host.
//! COMMIT waits for the disk. A write that is to be stable at once does not: the guest's kernel asks for that at
//! every close of a small file, and would wait for the disk at each (`doc/adr/0032-shares.md`).

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use rustix::io::{ReadWriteFlags, preadv2};

use super::{Request, Want};
use crate::nfs::LONGEST_IO;
use crate::nfs::attributes::Changes;
use crate::nfs::export::{Export, FileId};
use crate::nfs::facts::{Facts, Time};
use crate::nfs::handle::Handle;
use crate::nfs::open_files::For;
use crate::nfs::status::{Fault, Status};
use crate::nfs::xdr::{Decoder, Encoder};

pub(super) fn setattr(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, place) = request.place(rest)?;
    let changes = Changes::read(rest)?;
    let guard = rest.optional(|rest| Ok((rest.word()?, rest.word()?)))?;
    if !request.is_user() {
        return Err(changes.refusal().into());
    }
    export.may_write()?;
    let shown = place.facts.clone().marked(export.marks.known(place.handle.file));
    let Time { seconds, nanoseconds } = shown.ctime;
    if guard.is_some_and(|ctime| ctime != (seconds, nanoseconds)) {
        return Err(Status::NotSynchronized.into());
    }
    changes.admit_owner(&place.facts, request.caller, &request.who)?;
    if changes.size.is_some() {
        changes.apply_size(&*request.open(&export, &place, For::Writing)?)?;
    }
    changes.apply_mode(&place.fd, &place.facts)?;
    changes.apply_times(&place.fd)?;
    let after = Facts::of(&place.fd).ok();
    export.own_change(place.handle.file, &place.facts, after.as_ref());
    request.changed(out, &export, &place);
    Ok(())
}

pub(super) fn read(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, handle) = request.handle(rest)?;
    let (offset, count) = (rest.long()?, rest.word()?.min(LONGEST_IO));
    let file = request.file(&export, &handle, For::Reading)?;
    read_file(request, out, (&export, &handle), &file, (offset, count), read_at)
}

/// The longest read that is carried out by a thread that has other things to do.
const LONGEST_AT_ONCE: u32 = 64 << 10;

/// Does the same if the file is open and the bytes are in the host's page cache.
pub(super) fn read_at_once(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, handle) = request.handle(rest)?;
    let (offset, count) = (rest.long()?, rest.word()?);
    let file = export.files.get_local(handle.file).ok_or(Status::Io)?;
    if count > LONGEST_AT_ONCE {
        return Err(Status::Io.into());
    }
    read_file(request, out, (&export, &handle), &file, (offset, count), cached_at)
}

fn read_file(
    request: &Request<'_>,
    out: &mut Encoder,
    (export, handle): (&Export, &Handle),
    file: &File,
    (offset, count): (u64, u32),
    read_at: fn(&File, &mut [u8], u64) -> Result<usize, Fault>,
) -> Result<(), Fault> {
    let facts = Facts::of(file)?;
    if request.admit(&facts, Want::Read).is_err() {
        // Programs are read by who may only execute them.
        request.admit(&facts, Want::Search)?;
    }
    export.followed.reads(handle, &facts);
    request.after(out, export, handle.file, Some(&facts));
    let head = out.len();
    out.words(&[0, 0, 0]);
    let begin = out.len();
    out.0.resize(begin + count as usize, 0);
    let read = read_at(file, &mut out.0[begin..], offset)?;
    out.0.truncate(begin + read);
    out.pad(read);
    let count = u32::try_from(read).map_err(|_| Status::Io)?;
    let at_end = offset.saturating_add(u64::from(count)) >= facts.size;
    let words = [count, u32::from(at_end), count].map(u32::to_be_bytes).concat();
    out.0[head..begin].copy_from_slice(&words);
    Ok(())
}

/// Reads until there is no more: a read that is short would be the end of the file.
fn read_at(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Fault> {
    // The kernel has no offsets beyond this.
    if i64::try_from(offset).is_err() {
        return Ok(0);
    }
    let mut read = 0;
    while read < into.len() {
        match file.read_at(&mut into[read..], offset + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

/// Does the same, and fails where that would wait for a disk. Fewer bytes may be the end of the file
/// or what is there of them: that is found out elsewhere.
fn cached_at(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Fault> {
    let whole = into.len();
    match preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT)? {
        read if read == whole => Ok(read),
        _ => Err(Status::Io.into()),
    }
}

/// A write is stable when it is answered: so the guest is told, if it wanted that.
const UNSTABLE: u32 = 0;
const FILE_SYNC: u32 = 2;

pub(super) fn write(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, handle) = request.handle(rest)?;
    let (offset, _count, stable) = (rest.long()?, rest.word()?, rest.word()?);
    let bytes = rest.opaque(LONGEST_IO as usize)?;
    export.may_write()?;
    let file = request.file(&export, &handle, For::Writing)?;
    let before = Facts::of(&*file)?;
    request.admit(&before, Want::Write)?;
    if i64::try_from(offset.saturating_add(bytes.len() as u64)).is_err() {
        return Err(Status::FileTooBig.into());
    }
    file.write_all_at(bytes, offset)?;
    written(request, out, &export, handle.file, (&before, &file));
    out.word(u32::try_from(bytes.len()).map_err(|_| Status::Io)?);
    out.word(if stable == UNSTABLE { UNSTABLE } else { FILE_SYNC });
    out.fixed(&request.server.verifier);
    Ok(())
}

pub(super) fn commit(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, handle) = request.handle(rest)?;
    let (_offset, _count) = (rest.long()?, rest.word()?);
    let file = request.file(&export, &handle, For::Reading)?;
    let before = Facts::of(&*file)?;
    request.admit(&before, Want::Write)?;
    file.sync_data()?;
    written(request, out, &export, handle.file, (&before, &file));
    out.fixed(&request.server.verifier);
    Ok(())
}

fn written(
    request: &Request<'_>,
    out: &mut Encoder,
    export: &Export,
    id: FileId,
    (before, file): (&Facts, &File),
) {
    out.flag(true);
    before.write_before(out);
    let after = Facts::of(file).ok();
    export.own_change(id, before, after.as_ref());
    request.after(out, export, id, after.as_ref());
}
