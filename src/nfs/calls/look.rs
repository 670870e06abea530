//! GETATTR, LOOKUP, ACCESS, READLINK, FSSTAT, FSINFO, PATHCONF.

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, fstatvfs, readlinkat};

use super::{Request, Want};
use crate::nfs::LONGEST_IO;
use crate::nfs::beneath::{checked, link};
use crate::nfs::export::{Export, Place};
use crate::nfs::facts::Facts;
use crate::nfs::handle::Handle;
use crate::nfs::marks;
use crate::nfs::status::{Fault, Status};
use crate::nfs::xdr::{Decoder, Encoder};

pub(super) fn getattr(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, handle) = request.handle(rest)?;
    // A file that is open is found without its name.
    let open = export.files.get(handle.file, crate::nfs::open_files::For::Reading);
    let facts = match open {
        Some(file) => Facts::of(&*file)?,
        None => found(&export, &handle)?,
    };
    request.attributes(out, &export, handle.file, &facts);
    Ok(())
}

/// Finds a file; a directory with what has changed in it.
fn found(export: &Export, handle: &Handle) -> Result<Facts, Status> {
    let place = export.find(handle)?;
    if place.facts.is_directory() {
        export.marks.look(&place, marks::ASKED);
    }
    Ok(place.facts)
}

pub(super) fn lookup(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir) = request.directory(rest)?;
    let name = Request::name(rest)?;
    request.admit(&dir.facts, Want::Search)?;
    let (handle, facts) = match name {
        b"." => (dir.handle, dir.facts.clone()),
        b".." => {
            let above = export.above(&dir)?;
            (above, export.find(&above)?.facts)
        }
        _ => {
            let name = checked(name)?;
            let (_, facts) = dir.child(name)?;
            (export.handle(&dir, name, &facts), facts)
        }
    };
    out.opaque(&handle.seal(&request.server.key));
    request.after(out, &export, handle.file, Some(&facts));
    request.after(out, &export, dir.handle.file, Some(&dir.facts));
    Ok(())
}

const READ: u32 = 0x01;
const LOOKUP: u32 = 0x02;
const MODIFY: u32 = 0x04;
const EXTEND: u32 = 0x08;
const DELETE: u32 = 0x10;
const EXECUTE: u32 = 0x20;

pub(super) fn access(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, place) = request.place(rest)?;
    let asked = rest.word()?;
    let writable = export.may_write().is_ok();
    let may = |want: Want| match want {
        Want::Write if !writable => false,
        Want::Read | Want::Write | Want::Search => may(request, &place, want),
    };
    let search = if place.facts.is_directory() { LOOKUP } else { EXECUTE };
    let mut granted = 0;
    for (want, bits) in
        [(Want::Read, READ), (Want::Write, MODIFY | EXTEND | DELETE), (Want::Search, search)]
    {
        if asked & bits != 0 && may(want) {
            granted |= asked & bits;
        }
    }
    request.after(out, &export, place.handle.file, Some(&place.facts));
    out.word(granted);
    Ok(())
}

fn may(request: &Request<'_>, place: &Place, want: Want) -> bool {
    if !request.is_user() {
        return request.admit(&place.facts, want).is_ok();
    }
    // A symbolic link has no rights, and would be followed.
    if place.facts.kind == FileType::Symlink {
        return true;
    }
    let access = match want {
        Want::Read => Access::READ_OK,
        Want::Write => Access::WRITE_OK,
        Want::Search => Access::EXEC_OK,
    };
    accessat(CWD, link(&place.fd), access, AtFlags::empty()).is_ok()
}

pub(super) fn readlink(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, place) = request.place(rest)?;
    let target = readlinkat(&place.fd, "", Vec::new())?;
    request.after(out, &export, place.handle.file, Some(&place.facts));
    out.opaque(target.as_bytes());
    Ok(())
}

pub(super) fn fsstat(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, place) = request.place(rest)?;
    let stat = fstatvfs(&place.fd)?;
    request.after(out, &export, place.handle.file, Some(&place.facts));
    for blocks in [stat.f_blocks, stat.f_bfree, stat.f_bavail] {
        out.long(blocks.saturating_mul(stat.f_frsize));
    }
    for files in [stat.f_files, stat.f_ffree, stat.f_favail] {
        out.long(files);
    }
    // It may change at any time.
    out.word(0);
    Ok(())
}

/// Hard links, symbolic links, one PATHCONF for all files, times that can be set.
const PROPERTIES: u32 = 0x1b;
/// The listing of a directory at a time, in bytes.
const LISTING: u32 = 64 << 10;

pub(super) fn fsinfo(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, place) = request.place(rest)?;
    request.after(out, &export, place.handle.file, Some(&place.facts));
    // Reads and writes: the longest, the preferred, and what their length should be a multiple of.
    out.words(&[LONGEST_IO, LONGEST_IO, 4096, LONGEST_IO, LONGEST_IO, 4096, LISTING]);
    out.long(i64::MAX.cast_unsigned());
    // Times are as fine as a nanosecond.
    out.word(0);
    out.word(1);
    out.word(PROPERTIES);
    Ok(())
}

/// Links that a file can have, as ext4 has them, and bytes of a name.
const MOST_LINKS: u32 = 65_000;
const LONGEST_NAME: u32 = 255;

pub(super) fn pathconf(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, place) = request.place(rest)?;
    request.after(out, &export, place.handle.file, Some(&place.facts));
    out.word(MOST_LINKS);
    out.word(LONGEST_NAME);
    // Names are not cut; only root gives files away; case counts, and is kept.
    out.words(&[1, 1, 0, 1]);
    Ok(())
}
