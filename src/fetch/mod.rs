//! Fetching from the network: HTTP(S), files that are resumed after a cut, checksums, signatures.
//!
//! A build runs on a thread of its own, which may block, so everything here blocks; `Client` drives
//! the asynchronous HTTP client on that thread, and [`Client::run`] does the same for another
//! crate's client. To fetch a file and verify it:
//!
//! ```ignore
//! let client = Client::new(cancel.clone())?;               // one for each build
//! let list = ChecksumList::parse(&list_url, &client.text(&list_url)?)?;
//! let checksum = list.find("disk.qcow2")?;
//! let request = Download { url, cache: &layout.downloads() };
//! let file = client.download(&request, |transfer| progress.fetching(transfer.to_string()))?;
//! file.verify(checksum, &cancel)?;                          // removes what is wrong
//! file.move_to(&dir.join("disk.qcow2"))?;                   // synced, then one rename
//! ```
//!
//! What is transmitted is trusted as little as the network: HTTPS only (plain HTTP to this host
//! alone), no redirect from HTTPS to HTTP, and no file without a checksum. [`Cancel`] ends whatever
//! waits, within moments, from any thread. All errors are [`FetchError`], one sentence each.
//!
//! Not here: where distributions keep their files (`image`), registries of containers.

mod checksum;
mod client;
mod download;
mod partial;
mod signature;

pub use checksum::{Checksum, ChecksumList};
pub use client::{Client, Retries, innermost};
pub use download::{Download, Downloaded, Transfer};
pub use signature::Keys;

#[cfg(test)]
#[path = "../../tests/common/mirror.rs"]
pub(crate) mod mirror;
#[cfg(test)]
pub(crate) mod signer;

use std::io;
use std::path::Path;

use tokio::sync::watch;

/// A flag that ends a download from another thread. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(watch::Sender<bool>);

impl Cancel {
    /// Ends what is under way, and whatever begins after it.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Says whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Fails once it is cancelled.
    ///
    /// # Errors
    /// [`FetchError::Cancelled`].
    pub fn check(&self) -> Result<(), FetchError> {
        if self.is_cancelled() { Err(FetchError::Cancelled) } else { Ok(()) }
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) {
        // The sender is `self`, so it is not dropped meanwhile.
        drop(self.0.subscribe().wait_for(|cancelled| *cancelled).await);
    }
}

/// Why something could not be fetched, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// [`Cancel`] was used.
    #[error("cancelled")]
    Cancelled,
    /// HTTPS cannot be spoken on this host.
    #[error("cannot speak HTTPS: {0}; install the package ca-certificates")]
    NoTls(String),
    /// The address is none.
    #[error("{url}: {reason}")]
    BadUrl {
        /// The address.
        url: String,
        /// What is wrong with it, and what would do.
        reason: String,
    },
    /// A redirect to plain HTTP, or too many of them.
    #[error("{url}: {reason}; use another mirror")]
    Redirect {
        /// The address that redirects.
        url: String,
        /// Where it leads.
        reason: String,
    },
    /// The server's answer.
    #[error("{url}: the server answers {status}")]
    Status {
        /// The address.
        url: String,
        /// `404 Not Found`
        status: String,
    },
    /// No answer, or the connection broke, more often than is tried.
    #[error("cannot fetch {url}: {reason} ({attempts} attempts)")]
    Unreachable {
        /// The address.
        url: String,
        /// The last failure.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The answer is longer than anything of its kind.
    #[error("{url}: the answer is longer than {limit} bytes; it is not what it should be")]
    TooLong {
        /// The address.
        url: String,
        /// The bound.
        limit: usize,
    },
    /// The file does not fit on the disk.
    #[error("no space left for {what}: it takes {needed} more bytes, {free} are free")]
    NoSpace {
        /// The file.
        what: String,
        /// The bytes that are missing from it.
        needed: u64,
        /// The bytes that are free.
        free: u64,
    },
    /// The file is not the one in the list.
    #[error(
        "{url}: its checksum is {found}, the list has {expected}; it was changed on the way or on \
         the server, and is removed"
    )]
    WrongChecksum {
        /// Where it was fetched from.
        url: String,
        /// Its checksum.
        found: String,
        /// The one that it should have.
        expected: String,
    },
    /// The list does not have the file.
    #[error("{list}: it does not name {file}")]
    NotListed {
        /// The list.
        list: String,
        /// The file.
        file: String,
    },
    /// The list is none, or a checksum.
    #[error("{what}: no checksum in it is a SHA-256 or SHA-512")]
    NoChecksum {
        /// The list.
        what: String,
    },
    /// The signature is not a trusted key's.
    #[error("{what}: {reason}")]
    BadSignature {
        /// What is signed.
        what: String,
        /// What is wrong with the signature.
        reason: String,
    },
    /// The disk.
    #[error("{what}: {error}")]
    Io {
        /// The file.
        what: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl FetchError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = path.display().to_string();
        move |error| Self::Io { what, error }
    }
}
