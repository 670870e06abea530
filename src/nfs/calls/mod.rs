//! The procedures of NFSv3, a row each.
//!
//! Here: what all of them share. `look.rs` has those that only look, `data.rs` those that read and write,
//! `names.rs` those that make and remove names, `list.rs` those that list directories.

mod data;
mod list;
mod look;
mod names;

use std::fs::File;
use std::sync::Arc;

use super::Server;
use super::export::{Export, FileId, Place};
use super::facts::{Facts, Identity};
use super::handle::{Handle, LONGEST};
use super::marks;
use super::open_files::{self, For};
use super::rpc::{Call, Caller, Refused, accepted};
use super::status::{Fault, Status};
use super::xdr::{Decoder, Encoder};

pub(super) const PROGRAM: u32 = 100_003;
const VERSION: u32 = 3;
const READ: u32 = 6;

/// The longest name that is read: longer ones than a file can have get an answer of their own.
const LONGEST_NAME: usize = 4096;

/// A procedure.
struct Procedure {
    /// Words of zero after an error: the attributes that there would be.
    absent: u32,
    run: fn(&Request<'_>, &mut Decoder<'_>, &mut Encoder) -> Result<(), Fault>,
}

/// By their numbers.
static PROCEDURES: [Procedure; 22] = [
    Procedure { absent: 0, run: |_, _, _| Ok(()) },
    Procedure { absent: 0, run: look::getattr },
    Procedure { absent: 2, run: data::setattr },
    Procedure { absent: 1, run: look::lookup },
    Procedure { absent: 1, run: look::access },
    Procedure { absent: 1, run: look::readlink },
    Procedure { absent: 1, run: data::read },
    Procedure { absent: 2, run: data::write },
    Procedure { absent: 2, run: names::create },
    Procedure { absent: 2, run: names::mkdir },
    Procedure { absent: 2, run: names::symlink },
    Procedure { absent: 2, run: names::mknod },
    Procedure { absent: 2, run: names::remove },
    Procedure { absent: 2, run: names::rmdir },
    Procedure { absent: 4, run: names::rename },
    Procedure { absent: 3, run: names::link },
    Procedure { absent: 1, run: list::readdir },
    Procedure { absent: 1, run: list::readdirplus },
    Procedure { absent: 1, run: look::fsstat },
    Procedure { absent: 1, run: look::fsinfo },
    Procedure { absent: 1, run: look::pathconf },
    Procedure { absent: 2, run: data::commit },
];

/// Says whether a procedure makes or removes names: done twice, it fails the second time.
pub(super) fn is_about_names(procedure: u32) -> bool {
    // From CREATE to LINK.
    (8..=15).contains(&procedure)
}

pub(super) fn carry_out(server: &Server, mut call: Call<'_>) -> Result<Encoder, Refused> {
    if call.version != VERSION {
        return Err(Refused::OtherVersion(VERSION));
    }
    let number = usize::try_from(call.procedure).unwrap_or(usize::MAX);
    let procedure = PROCEDURES.get(number).ok_or(Refused::NoProcedure)?;
    let request = Request { server, caller: call.caller, who: *server.who.read() };
    let mut reply = accepted(call.id);
    let begin = reply.len();
    if number > 0 {
        reply.word(0);
    }
    match (procedure.run)(&request, &mut call.arguments, &mut reply) {
        Ok(()) => Ok(reply),
        Err(Fault::Garbage) => Err(Refused::Garbage),
        Err(Fault::Status(status)) => {
            reply.0.truncate(begin);
            reply.word(status as u32);
            (0..procedure.absent).for_each(|_| reply.word(0));
            Ok(reply)
        }
    }
}

/// Carries out a READ of a file that is open, from the host's page cache.
pub(super) fn read_at_once(server: &Server, mut call: Call<'_>) -> Option<Encoder> {
    if (call.version, call.procedure) != (VERSION, READ) {
        return None;
    }
    let request = Request { server, caller: call.caller, who: *server.who.read() };
    let mut reply = accepted(call.id);
    reply.word(0);
    data::read_at_once(&request, &mut call.arguments, &mut reply).ok()?;
    Some(reply)
}

/// One call: who calls whom.
struct Request<'s> {
    server: &'s Server,
    caller: Caller,
    who: Identity,
}

/// What somebody wants to do with a file, as bits of a mode.
#[derive(Clone, Copy)]
enum Want {
    Read = 4,
    Write = 2,
    Search = 1,
}

impl Request<'_> {
    /// Reads a handle, and finds the share that it is of.
    fn handle(&self, rest: &mut Decoder<'_>) -> Result<(Arc<Export>, Handle), Fault> {
        let bytes = rest.opaque(LONGEST)?;
        let handle = Handle::open(bytes, &self.server.key).ok_or(Status::BadHandle)?;
        let export = self.server.export(handle.share).ok_or(Status::Stale)?;
        Ok((export, handle))
    }

    /// Reads a handle, and finds its file.
    fn place(&self, rest: &mut Decoder<'_>) -> Result<(Arc<Export>, Place), Fault> {
        let (export, handle) = self.handle(rest)?;
        let place = export.find(&handle)?;
        if place.facts.is_directory() {
            export.marks.look(&place, marks::BESIDE);
        }
        Ok((export, place))
    }

    fn directory(&self, rest: &mut Decoder<'_>) -> Result<(Arc<Export>, Place), Fault> {
        let (export, place) = self.place(rest)?;
        Ok((export, place.directory()?))
    }

    /// Says whether the caller is the host's user: the guest's root is, and its login user.
    fn is_user(&self) -> bool {
        match self.caller {
            Caller::User(uid) => uid == 0 || uid == self.who.guest.0,
            Caller::Nobody => false,
        }
    }

    /// What the user may do is the host's kernel's business. Others of the guest may do what the mode lets
    /// others do, and change nothing.
    fn admit(&self, facts: &Facts, want: Want) -> Result<(), Status> {
        let allowed = match want {
            Want::Read | Want::Search => facts.mode & want as u32 != 0,
            Want::Write => false,
        };
        match allowed || self.is_user() {
            true => Ok(()),
            false => Err(Status::Access),
        }
    }

    /// Reads a name.
    fn name<'a>(rest: &mut Decoder<'a>) -> Result<&'a [u8], Fault> {
        Ok(rest.opaque(LONGEST_NAME)?)
    }

    /// Opens the file of a handle, unless it is open.
    fn file(&self, export: &Export, handle: &Handle, what: For) -> Result<Arc<File>, Status> {
        if let Some(file) = export.files.get(handle.file, what) {
            return Ok(file);
        }
        let place = export.find(handle)?;
        self.open(export, &place, what)
    }

    fn open(&self, export: &Export, place: &Place, what: For) -> Result<Arc<File>, Status> {
        let id = place.handle.file;
        match export.files.get(id, what) {
            Some(file) => Ok(file),
            None => Ok(export.files.keep(id, what, open_files::open(place, what, &self.who)?)),
        }
    }

    /// Writes attributes.
    fn attributes(&self, out: &mut Encoder, export: &Export, file: FileId, facts: &Facts) {
        export.followed.told(file, facts);
        self.marked(out, export, file, &facts.clone().marked(export.marks.known(file)));
    }

    fn marked(&self, out: &mut Encoder, export: &Export, file: FileId, facts: &Facts) {
        facts.write(out, &self.who, export.number, export.number_of(file));
    }

    /// Writes attributes as they are after a call (`post_op_attr`).
    fn after(&self, out: &mut Encoder, export: &Export, file: FileId, facts: Option<&Facts>) {
        out.flag(facts.is_some());
        if let Some(facts) = facts {
            self.attributes(out, export, file, facts);
        }
    }

    /// Writes what a directory was before a call and is after it (`wcc_data`): with the same mark, as the guest
    /// takes what differs for its own doing.
    fn changed(&self, out: &mut Encoder, export: &Export, dir: &Place) {
        let file = dir.handle.file;
        let mark = export.marks.known(file);
        out.flag(true);
        dir.facts.clone().marked(mark).write_before(out);
        let after = Facts::of(&dir.fd).ok();
        out.flag(after.is_some());
        if let Some(after) = after {
            export.followed.told(file, &after);
            self.marked(out, export, file, &after.marked(mark));
        }
    }

    /// Writes the handle of a file (`post_op_fh3`).
    fn new_handle(&self, out: &mut Encoder, handle: &Handle) {
        out.flag(true);
        out.opaque(&handle.seal(&self.server.key));
    }
}
