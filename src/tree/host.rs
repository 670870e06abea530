//! What the files at the root are about: all VMs, and what has gone wrong lately.

use std::sync::Arc;

use crate::registry::Registry;
pub use crate::store::failures::{Failure, Failures};

/// The object of the root's rows.
#[derive(Clone, Debug)]
pub struct Host {
    /// The VMs.
    pub registry: Arc<Registry>,
    /// The newest failures.
    pub failures: Arc<Failures>,
}
