//! The proxy's port in the guest.
//!
//! Not here: the proxy (`proxy`), when a guest has it (`vm::web`).

use std::sync::Arc;

use async_trait::async_trait;

use super::connection::SshAccess;
use super::served_port::ServedPort;
use crate::vm::backend::{BackendError, OpenPort, PortServer};
use crate::vm::web::PORT;

/// Opens the port, and has the proxy serve what comes from there.
pub(super) async fn open(
    access: &SshAccess,
    proxy: Arc<dyn PortServer>,
) -> Result<Box<dyn OpenPort>, BackendError> {
    let (served, _user) = ServedPort::prepared(access, PORT, proxy).await?;
    served.listen().await?;
    Ok(Box::new(served))
}

#[async_trait]
impl OpenPort for ServedPort {
    async fn closed(&self) {
        Self::closed(self).await;
    }
}
