//! Switches: what joins the network devices of several machines.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::BackendError;

/// A switch that runs, in a process of its own that outlives the daemon.
#[async_trait]
pub trait Switch: fmt::Debug + Send + Sync {
    /// Returns the directory of its sockets, which machines are connected by.
    fn sockets(&self) -> &Path;
    /// Waits for its end, and says how it ended.
    async fn ended(&self) -> String;
    /// Ends it, and removes what it has left.
    async fn end(&self);
}

/// Starts switches and finds them again.
#[async_trait]
pub trait Switches: fmt::Debug + Send + Sync {
    /// Starts one in a directory of its own, which is made if need be.
    async fn start(&self, dir: &Path) -> Result<Arc<dyn Switch>, BackendError>;
    /// Finds the one that an earlier daemon has started in this directory, if it still runs.
    async fn adopt(&self, dir: &Path) -> Option<Arc<dyn Switch>>;
    /// Lists the networks that the host has a way to: their address, and the length of their prefix.
    /// Looks at the host.
    fn host_networks(&self) -> Vec<(Ipv4Addr, u8)>;
}
