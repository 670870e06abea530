//! The MOUNT protocol (RFC 1813, appendix I): how a guest's kernel gets the handle of a share's directory.

use super::Server;
use super::handle::Handle;
use super::rpc::{AUTH_SYS, Call, Refused, accepted};
use super::xdr::{Decoder, Encoder, Garbage};

pub(super) const PROGRAM: u32 = 100_005;
const VERSION: u32 = 3;
const LONGEST_PATH: usize = 1024;

const NO_ENTRY: u32 = 2;

pub(super) fn carry_out(server: &Server, mut call: Call<'_>) -> Result<Encoder, Refused> {
    if call.version != VERSION {
        return Err(Refused::OtherVersion(VERSION));
    }
    let mut reply = accepted(call.id);
    let done = match call.procedure {
        // Nothing; forget what I have mounted: nobody keeps a list.
        0 | 4 => Ok(()),
        1 => mount(server, &mut call.arguments, &mut reply),
        // Forget this one.
        3 => call.arguments.opaque(LONGEST_PATH).map(drop),
        // Lists of what is mounted and what there is: the guest knows what it may mount.
        2 | 5 => {
            reply.flag(false);
            Ok(())
        }
        _ => return Err(Refused::NoProcedure),
    };
    done.map(|()| reply).map_err(|Garbage| Refused::Garbage)
}

fn mount(server: &Server, arguments: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Garbage> {
    let path = arguments.opaque(LONGEST_PATH)?;
    let number = std::str::from_utf8(path).ok().and_then(|path| path.strip_prefix('/'));
    let number = number.and_then(|number| u64::from_str_radix(number, 16).ok());
    let Some(export) = number.and_then(|number| server.export(number)) else {
        reply.word(NO_ENTRY);
        return Ok(());
    };
    reply.word(0);
    reply.opaque(&Handle::root(export.number).seal(&server.key));
    reply.word(1);
    reply.word(AUTH_SYS);
    Ok(())
}
