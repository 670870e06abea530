//! `.limits`: what all VMs of the mount together may have.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};

use super::line;
use crate::registry::Registry;
use crate::tree::TreeError;
use crate::tree::descriptor::Descriptor;
use crate::tree::node::{Body, Node};
use crate::tree::scope::Scope;
use crate::vm::limits::Total;

/// `.limits`
pub(super) static LIMITS: Descriptor<Arc<Registry>> = Descriptor {
    page: Some(".limits/"),
    rows: || ROWS,
    ..Descriptor::new(40, Scope::host, |_| "/.limits".to_owned(), |registry| registry.changed())
};

/// A row: a limit that can be written.
macro_rules! limit {
    ($name:literal, $which:ident, $doc:literal) => {
        Node::new(
            $name,
            0o600,
            $doc,
            Body::WritableValue(
                |registry| render(registry, Total::$which),
                |registry, text| set(registry, Total::$which, text),
            ),
        )
        .follows(|registry| registry.backends().limits.changed())
    };
}

static ROWS: &[Node<Arc<Registry>>] = &[
    limit!(
        "cpus",
        Cpus,
        "how much of the host's processors all get, where a cgroup holds it: 1.5, or none"
    ),
    limit!(
        "disk",
        Disk,
        "what the store may take: 20G, or none; beyond, nothing starts or is made"
    ),
    limit!("memory", Memory, "the sum of config/memory of those that run: 4G, or none"),
    Node::slow_value("used", "what of each is used, and whether cpus is held", |registry| {
        let backends = registry.backends();
        backends.limits.print(backends.memory.used())
    }),
    limit!("vms", Vms, "how many may run at once: 8, or none"),
];

fn render(registry: &Arc<Registry>, which: Total) -> String {
    line(&registry.backends().limits.render(which))
}

fn set(
    registry: &Arc<Registry>,
    which: Total,
    text: &str,
) -> BoxFuture<'static, Result<(), TreeError>> {
    let limits = Arc::clone(&registry.backends().limits);
    limits.set(which, text.to_owned()).err_into().boxed()
}
