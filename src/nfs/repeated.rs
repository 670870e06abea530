//! Calls that make and remove names, and their replies: a guest whose connection was lost asks again what was not
//! answered, and must not hear that the name is there already which it has made itself.
//!
//! A repeated call is carried out again. Only if that fails at what the first one has done, the reply is the first
//! one's: a guest that was restored may ask the same once more, and the name may be another one by then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::rpc::status_of;
use super::status::Status;

/// Calls that are remembered, half a kilobyte each.
const MOST: usize = 512;
/// For how long: until a lost connection is noticed, and there is another one.
const LASTS: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(super) struct Repeated(Mutex<VecDeque<Done>>);

/// The reply to a call that has succeeded; locked as long as it is at work.
type Reply = Arc<Mutex<Option<Vec<u8>>>>;

#[derive(Debug)]
struct Done {
    call: [u8; 32],
    at: Instant,
    reply: Reply,
}

impl Repeated {
    /// Carries out a call, the same one after the other.
    pub(super) fn answer(&self, message: &[u8], carry_out: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        let first = self.first(message);
        let mut first = first.lock();
        let reply = carry_out();
        let is = |status: Status| status_of(&reply) == Some(status as u32);
        if let Some(earlier) = &*first
            && (is(Status::Exists) || is(Status::NoEntry))
        {
            return earlier.clone();
        }
        if status_of(&reply) == Some(0) {
            *first = Some(reply.clone());
        }
        reply
    }

    /// Finds what is known of a call; its number and who calls are in the message.
    fn first(&self, message: &[u8]) -> Reply {
        let call = Sha256::digest(message).into();
        let mut done = self.0.lock();
        done.retain(|done| done.at.elapsed() < LASTS);
        if let Some(first) = done.iter().find(|done| done.call == call) {
            return Arc::clone(&first.reply);
        }
        if done.len() >= MOST {
            done.pop_front();
        }
        let reply = Reply::default();
        done.push_back(Done { call, at: Instant::now(), reply: Arc::clone(&reply) });
        reply
    }
}
