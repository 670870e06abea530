//! A server of NFSv3 (RFC 1813) for the directories that a VM's guest can mount: `doc/adr/0032-shares.md`.
//!
//! It answers the calls of one guest, from any stream of bytes. Beneath the directories only; with the rights of
//! the user who runs it. How a guest gets to it is not here (`guest::shares`), nor which directories there are
//! (`vm::shares`).

mod attributes;
mod beneath;
mod calls;
mod connection;
mod export;
mod facts;
mod followed;
mod handle;
mod index;
mod listing;
mod marks;
mod mount;
mod open_files;
mod repeated;
mod rpc;
mod search;
mod status;
#[cfg(test)]
mod tests;
mod xdr;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

pub use self::export::Export;
use self::facts::Identity;
pub use self::handle::Key;
use self::repeated::Repeated;
use self::rpc::{Call, Refused};

/// The longest read or write.
pub const LONGEST_IO: u32 = 256 << 10;
/// Connections at a time: a guest's kernel has one.
const MOST_CONNECTIONS: usize = 4;
/// Names the host's present boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Ports from here on can be used by everybody in the guest.
const FIRST_UNPRIVILEGED: u32 = 1024;

/// The server of one guest.
pub struct Server {
    key: Key,
    exports: RwLock<HashMap<u64, Arc<Export>>>,
    who: RwLock<Identity>,
    connections: Semaphore,
    repeated: Repeated,
    /// Changes when written bytes may be lost that the guest takes to be written: with the host's boot.
    verifier: [u8; 8],
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("exports", &*self.exports.read()).finish_non_exhaustive()
    }
}

impl Server {
    /// Makes one that gives handles signed with `key`.
    pub fn new(key: Key) -> Self {
        // Where it cannot be read, the guest writes again what it has not committed.
        let boot =
            std::fs::read_to_string(BOOT_ID).unwrap_or_else(|_| format!("{:?}", SystemTime::now()));
        let digest = <sha2::Sha256 as sha2::Digest>::digest(boot.as_bytes());
        let mut verifier = [0; 8];
        verifier.copy_from_slice(&digest[..8]);
        Self {
            key,
            exports: RwLock::default(),
            who: RwLock::new(Identity::of_process((0, 0))),
            connections: Semaphore::new(MOST_CONNECTIONS),
            repeated: Repeated::default(),
            verifier,
        }
    }

    /// Says which user and group of the guest the host's user is.
    pub fn set_guest_user(&self, user: u32, group: u32) {
        *self.who.write() = Identity::of_process((user, group));
    }

    /// Offers a directory.
    pub fn add(&self, export: Arc<Export>) {
        self.exports.write().insert(export.number, export);
    }

    /// Offers it no more: what the guest still has of it is stale.
    pub fn remove(&self, number: u64) {
        self.exports.write().remove(&number);
    }

    /// Lets the guest write into one, or only read.
    pub fn set_read_only(&self, number: u64, read_only: bool) {
        if let Some(export) = self.export(number) {
            export.set_read_only(read_only);
        }
    }

    /// Closes all files: nobody is connected. The next guest may be one of the past, which has not heard what
    /// this one was told, nor done what it did.
    pub fn close_files(&self) {
        for export in self.exports.read().values() {
            export.files.close_all();
            export.listings.close();
            export.followed.doubt();
            export.marks.forget();
        }
    }

    /// Lists files that the guest has read lately and that the host has changed since the guest has asked for
    /// their attributes: the number of the share, and the path beneath it. It looks at the disk.
    pub fn changed_files(&self) -> Vec<(u64, PathBuf)> {
        let exports: Vec<_> = self.exports.read().values().map(Arc::clone).collect();
        let changed = |export: Arc<Export>| {
            let number = export.number;
            export.changed_files().into_iter().map(move |path| (number, path))
        };
        exports.into_iter().flat_map(changed).collect()
    }

    /// Serves a connection from this port of the guest to its end. Every user of the guest can connect, and can
    /// say that it is any user; only root can have a port below 1024.
    ///
    /// # Errors
    /// It is not root's, there are too many, or the peer does not speak the protocol.
    pub async fn serve(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        from_port: u32,
    ) -> io::Result<()> {
        if from_port >= FIRST_UNPRIVILEGED {
            return Err(io::Error::other(format!("port {from_port} of the guest is not root's")));
        }
        let server = Arc::clone(&self);
        let _place = self.connections.try_acquire().map_err(io::Error::other)?;
        connection::serve(server, stream).await
    }

    /// Carries out a call and returns the reply; `None` if it is no call.
    pub fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let call = match Call::read(message).ok()? {
            Ok(call) => call,
            Err((id, why)) => return Some(rpc::refused(id, why).0),
        };
        let id = call.id;
        let once = call.program == calls::PROGRAM && calls::is_about_names(call.procedure);
        let carry_out = || self.carry_out(call).unwrap_or_else(|why| rpc::refused(id, why)).0;
        Some(if once { self.repeated.answer(message, carry_out) } else { carry_out() })
    }

    /// Does the same for a call that can be carried out without waiting for anything: to hand it to another
    /// thread and back takes longer than to read a page. `None` for others.
    pub(super) fn answer_at_once(&self, message: &[u8]) -> Option<Vec<u8>> {
        let call = Call::read(message).ok()?.ok()?;
        match call.program {
            calls::PROGRAM => Some(calls::read_at_once(self, call)?.0),
            _ => None,
        }
    }

    fn carry_out(&self, call: Call<'_>) -> Result<xdr::Encoder, Refused> {
        match call.program {
            calls::PROGRAM => calls::carry_out(self, call),
            mount::PROGRAM => mount::carry_out(self, call),
            _ => Err(Refused::NoProgram),
        }
    }

    fn export(&self, number: u64) -> Option<Arc<Export>> {
        self.exports.read().get(&number).map(Arc::clone)
    }
}
