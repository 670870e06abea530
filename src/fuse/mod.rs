//! Kernel requests in, replies out: a translation, nothing else.
//!
//! Decisions and names are the tree's (`tree`). Nothing here blocks: an answer that is not there
//! yet goes to [`park`], the one place that waits for the kernel; [`watch`] frees callers with a
//! pending signal. [`adapter`] has every request, [`reply`] what several replies share.

mod adapter;
mod attr;
mod caller;
pub(crate) mod errno;
pub(crate) mod files;
mod flags;
pub mod mountpoint;
mod park;
mod poll;
mod reply;
#[cfg(test)]
#[cfg(feature = "fuse_tests")]
mod tests;
pub mod touch;
mod waiter;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, INodeNo, MountOption, Session, SessionACL};
use tokio::runtime::Handle;

use self::adapter::Adapter;
use crate::registry::Registry;
use crate::tree::Tree;

/// Requests are answered from memory or parked, so that two threads are never both busy for long.
const THREADS: usize = 2;

/// The name under which mounts appear in `/proc/mounts`.
pub const FS_NAME: &str = "aqfs";

pub(crate) struct Mounted {
    session: Session<Adapter>,
}

impl Mounted {
    /// Mounts a tree.
    ///
    /// # Errors
    /// What mount(2) or fusermount3 answered.
    pub(crate) fn mount(tree: Arc<Tree>, at: &Path, runtime: Handle) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(FS_NAME.to_owned()),
            MountOption::Subtype(FS_NAME.to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let adapter = Adapter::new(tree, runtime)?;
        Ok(Self { session: Session::new(adapter, at, &config)? })
    }

    /// Has the kernel forget what it knows of the root when VMs are made that it did not ask for: it remembers
    /// which names there are, and which there are not, as all others come and go by its own requests.
    pub(crate) fn follow_names(&self, registry: &Registry) {
        let notifier = self.session.notifier();
        registry.on_names_made(move |names| {
            let forget = |name: &String| match notifier.inval_entry(INodeNo::ROOT, name.as_ref()) {
                // It has never heard of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            };
            let done = names.iter().try_for_each(forget);
            if let Err(error) = done.and_then(|()| notifier.inval_inode(INodeNo::ROOT, 0, 0)) {
                tracing::warn!(%error, "the mount may not show new VMs yet");
            }
        });
    }

    /// Serves requests until the tree is unmounted.
    ///
    /// # Errors
    /// What reading from the kernel answered.
    pub(crate) fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}
