//! READDIR and READDIRPLUS.

use std::os::unix::ffi::OsStrExt;

use super::{Request, Want};
use crate::nfs::export::{Export, Place};
use crate::nfs::listing::{Listing, Name};
use crate::nfs::status::{Fault, Status};
use crate::nfs::xdr::{Decoder, Encoder};

/// The longest listing that is given at a time.
const LONGEST: usize = 64 << 10;
/// What an answer has beside the names: the directory's attributes, the verifier, the ends of the lists.
const FRAME: usize = 128;
/// What a name takes without attributes, beside its bytes.
const PLAIN: usize = 28;

pub(super) fn readdir(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir) = request.directory(rest)?;
    let (at, _verifier, count) = (rest.long()?, rest.long()?, rest.word()? as usize);
    list(request, out, (&export, &dir, at), Limits { all: count, names: count }, |_, _| {})
}

pub(super) fn readdirplus(
    request: &Request<'_>,
    rest: &mut Decoder<'_>,
    out: &mut Encoder,
) -> Result<(), Fault> {
    let (export, dir) = request.directory(rest)?;
    let (at, _verifier) = (rest.long()?, rest.long()?);
    let (names, all) = (rest.word()? as usize, rest.word()? as usize);
    list(request, out, (&export, &dir, at), Limits { all, names }, |out, name| {
        facts(request, out, (&export, &dir), name);
    })
}

/// How long an answer may be, in bytes.
#[derive(Clone, Copy)]
struct Limits {
    all: usize,
    names: usize,
}

fn list(
    request: &Request<'_>,
    out: &mut Encoder,
    (export, dir, at): (&Export, &Place, u64),
    limits: Limits,
    more: impl Fn(&mut Encoder, &Name),
) -> Result<(), Fault> {
    request.admit(&dir.facts, Want::Read)?;
    let mut listing = export.listings.from(dir, at)?;
    request.after(out, export, dir.handle.file, Some(&dir.facts));
    // A verifier: places in a directory stay good.
    out.long(0);
    let limit = limits.all.min(LONGEST).saturating_sub(FRAME);
    let mut left = Left { begin: out.len(), limit, names: limits.names };
    let is_over = left.fill(out, &mut listing, export, dir, more)?;
    out.flag(false);
    out.flag(is_over);
    if !is_over {
        export.listings.keep(listing);
    }
    Ok(())
}

/// The room that is left in an answer.
struct Left {
    begin: usize,
    limit: usize,
    names: usize,
}

impl Left {
    /// Adds names while there is room; says whether the listing is over.
    fn fill(
        &mut self,
        out: &mut Encoder,
        listing: &mut Listing,
        export: &Export,
        dir: &Place,
        more: impl Fn(&mut Encoder, &Name),
    ) -> Result<bool, Fault> {
        while let Some(name) = listing.peek()? {
            let before = out.len();
            entry(out, name, number(export, dir, name));
            more(out, name);
            let plain = PLAIN + name.name.len();
            if out.len() - self.begin > self.limit || plain > self.names {
                out.0.truncate(before);
                return match before == self.begin {
                    true => Err(Status::TooSmall.into()),
                    false => Ok(false),
                };
            }
            self.names -= plain;
            listing.take();
        }
        Ok(true)
    }
}

fn entry(out: &mut Encoder, name: &Name, number: u64) {
    out.flag(true);
    out.long(number);
    out.opaque(name.name.as_bytes());
    out.long(name.next);
}

fn number(export: &Export, dir: &Place, name: &Name) -> u64 {
    match name.name.as_bytes() {
        b"." => export.number_of(dir.handle.file),
        // Of the root too: what is above it is nobody's business.
        b".." => export.above(dir).map_or(0, |above| export.number_of(above.file)),
        _ => name.inode,
    }
}

/// Adds what LOOKUP would say of a name, unless it is gone.
fn facts(request: &Request<'_>, out: &mut Encoder, (export, dir): (&Export, &Place), name: &Name) {
    let found = match name.name.as_bytes() {
        b"." | b".." => None,
        _ => dir.child(&name.name).ok(),
    };
    let Some((_, facts)) = found else {
        out.flag(false);
        out.flag(false);
        return;
    };
    let handle = export.handle(dir, &name.name, &facts);
    request.after(out, export, handle.file, Some(&facts));
    request.new_handle(out, &handle);
}
