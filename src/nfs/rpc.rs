//! ONC RPC (RFC 5531): what a call says of itself, and how a reply begins.
//!
//! No procedures here, and no connections.

use super::xdr::{Decoder, Encoder, Garbage};

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
/// Flavors of credentials.
const AUTH_NONE: u32 = 0;
pub(super) const AUTH_SYS: u32 = 1;
/// The longest credentials, and the longest name of a machine in them.
const LONGEST_AUTH: usize = 400;
const LONGEST_MACHINE: usize = 255;

/// A call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) id: u32,
    pub(super) program: u32,
    pub(super) version: u32,
    pub(super) procedure: u32,
    pub(super) caller: Caller,
    pub(super) arguments: Decoder<'a>,
}

/// Who calls, as the guest's kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Nobody,
    User(u32),
}

/// Why a call was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not this version of RPC.
    Rpc,
    /// Not these credentials.
    Credentials,
    NoProgram,
    /// The program has this version alone.
    OtherVersion(u32),
    NoProcedure,
    Garbage,
}

impl<'a> Call<'a> {
    /// Reads a message. What is no call at all is an error: the peer does not speak RPC.
    pub(super) fn read(message: &'a [u8]) -> Result<Result<Self, (u32, Refused)>, Garbage> {
        let mut rest = Decoder::new(message);
        let (id, kind) = (rest.word()?, rest.word()?);
        if kind != CALL {
            return Err(Garbage);
        }
        if rest.word()? != RPC_VERSION {
            return Ok(Err((id, Refused::Rpc)));
        }
        let [program, version, procedure] = [rest.word()?, rest.word()?, rest.word()?];
        let Ok(caller) = Caller::read(&mut rest) else {
            return Ok(Err((id, Refused::Credentials)));
        };
        Ok(Ok(Self { id, program, version, procedure, caller, arguments: rest }))
    }
}

impl Caller {
    /// Reads credentials and the verifier after them.
    fn read(rest: &mut Decoder<'_>) -> Result<Self, Garbage> {
        let flavor = rest.word()?;
        let mut body = Decoder::new(rest.opaque(LONGEST_AUTH)?);
        let caller = match flavor {
            AUTH_NONE => Self::Nobody,
            AUTH_SYS => {
                let _stamp = body.word()?;
                body.opaque(LONGEST_MACHINE)?;
                Self::User(body.word()?)
            }
            _ => return Err(Garbage),
        };
        let _flavor = rest.word()?;
        rest.opaque(LONGEST_AUTH)?;
        Ok(caller)
    }
}

/// Begins the reply to a call that was carried out.
pub(super) fn accepted(id: u32) -> Encoder {
    let mut reply = Encoder::default();
    // Accepted, without a verifier, successful.
    reply.words(&[id, REPLY, 0, AUTH_NONE, 0, 0]);
    reply
}

/// Reads the first word of what a procedure has answered; `None` if the call was not carried out.
pub(super) fn status_of(reply: &[u8]) -> Option<u32> {
    let mut rest = Decoder::new(reply);
    // As [`accepted`] begins a reply.
    let head = [(); 6].map(|()| rest.word().ok());
    let is_carried_out = head[1..] == [REPLY, 0, AUTH_NONE, 0, 0].map(Some);
    if is_carried_out { rest.word().ok() } else { None }
}

/// Returns the whole reply to a call that was not.
pub(super) fn refused(id: u32, why: Refused) -> Encoder {
    let mut reply = Encoder::default();
    reply.words(&[id, REPLY]);
    let accepted = |state: u32| vec![0, AUTH_NONE, 0, state];
    let words = match why {
        Refused::Rpc => vec![1, 0, RPC_VERSION, RPC_VERSION],
        // Denied, as the credentials are bad.
        Refused::Credentials => vec![1, 1, 1],
        Refused::NoProgram => accepted(1),
        Refused::OtherVersion(ours) => [accepted(2), vec![ours, ours]].concat(),
        Refused::NoProcedure => accepted(3),
        Refused::Garbage => accepted(4),
    };
    words.into_iter().for_each(|word| reply.word(word));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn a_call_says_who_calls() {
        let head = [7, 0, 2, 100_003, 3, 1];
        let user = message(&[&head[..], &[1, 20, 0, 0, 1000, 1000, 0, 0, 0, 9]].concat());
        let call = Call::read(&user).unwrap().unwrap();
        assert_eq!((call.id, call.program, call.procedure), (7, 100_003, 1));
        assert_eq!(call.caller, Caller::User(1000));
        assert_eq!({ call.arguments }.word(), Ok(9));
        let nobody = message(&[&head[..], &[0, 0, 0, 0]].concat());
        assert_eq!(Call::read(&nobody).unwrap().unwrap().caller, Caller::Nobody);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = |words: &[u32]| Call::read(&message(words)).map(|call| call.map(|_| ()));
        assert_eq!(refused(&[7, 1]), Err(Garbage));
        assert_eq!(refused(&[7, 0, 3]), Ok(Err((7, Refused::Rpc))));
        assert_eq!(refused(&[7, 0, 2, 1, 1, 1, 6, 0, 0, 0]), Ok(Err((7, Refused::Credentials))));
        assert_eq!(refused(&[7, 0, 2, 1, 1, 1, 1, 401]), Ok(Err((7, Refused::Credentials))));
        assert_eq!(refused(&[7, 0, 2, 1]), Err(Garbage));
    }
}
