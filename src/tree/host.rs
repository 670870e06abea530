//! What the files at the root are about: all VMs, and what has gone wrong lately.

use std::sync::Arc;

use crate::registry::Registry;
pub use crate::store::failure_log::{Failure, FailureLog};

/// The object of the root's rows.
#[derive(Clone, Debug)]
pub struct Host {
    /// The VMs.
    pub registry: Arc<Registry>,
    /// The newest failures.
    pub failures: Arc<FailureLog>,
}
