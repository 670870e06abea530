//! The way of a guest to files of the host: a port in the guest, and what it has mounted from there.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::BackendError;

/// Bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Serves what connects to a port of the guest's 127.0.0.1.
pub trait PortServer: fmt::Debug + Send + Sync {
    /// Takes a connection from this port of the guest.
    fn accept(self: Arc<Self>, stream: Box<dyn ByteStream>, from_port: u32);
}

/// Serves files to a guest.
pub trait FileServer: PortServer {
    /// Says which user and group of the guest its login user is. It comes before any connection.
    fn set_guest_user(&self, user: u32, group: u32);
}

/// A port of the guest's 127.0.0.1 that leads to a server. Dropping it closes the port and what came from it.
#[async_trait]
pub trait OpenPort: fmt::Debug + Send + Sync {
    /// Resolves when the port is lost.
    async fn closed(&self);
}

/// A directory that the guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The name of the share.
    pub name: String,
    /// Its path at the server.
    pub path: String,
    /// Where it is mounted: an absolute path.
    pub target: String,
    pub(crate) read_only: bool,
    /// For how many seconds the guest may take attributes and names to be as they were.
    pub cache: u32,
}

/// A port of the guest's 127.0.0.1 that leads to a file server. Dropping it closes the port and what came
/// from it.
#[async_trait]
pub trait FilePort: fmt::Debug + Send + Sync {
    /// Has the guest mount these directories from the port and no others; says for each why it is not mounted.
    async fn mount(&self, mounts: &[Mount]) -> Result<Vec<Result<(), String>>, BackendError>;
    /// Has the guest ask for the attributes of these of its files, which the host has changed.
    async fn look_again(&self, paths: &[String]) -> Result<(), BackendError>;
    /// Resolves when the port is lost.
    async fn closed(&self);
}
