//! The way into a guest: SSH keys ([`keys`]), what it is told at boot ([`seed`]), the SSH
//! connection ([`ssh`]) and the serial line ([`console`]). The only place that names `russh`.
//!
//! No policy: when to connect, and how often to try again, is the driver's business.

mod connection;
pub mod console;
pub mod keys;
pub mod seed;
pub mod ssh;
mod supervise;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::Handle;

use crate::store::file;
use crate::store::layout::{Layout, VmDir};
use crate::vm::backend::{BackendError, Console, GuestAddress, GuestSession, Guests, LaunchPlan};

/// Guests reached over SSH on a forwarded port and over QEMU's serial socket.
#[derive(Debug)]
pub struct SshGuests {
    client_key: PathBuf,
    runtime: Handle,
}

impl SshGuests {
    /// Makes it for one store; connections and serial lines live on `runtime`.
    pub fn new(layout: &Layout, runtime: Handle) -> Self {
        Self { client_key: layout.client_key(), runtime }
    }
}

#[async_trait]
impl Guests for SshGuests {
    async fn prepare(&self, plan: &LaunchPlan) -> Result<(), BackendError> {
        let (client_key, dir) = (self.client_key.clone(), VmDir(plan.dir.clone()));
        let hostname = plan.spec.hostname.clone();
        let hostname = hostname.unwrap_or_else(|| plan.name.clone());
        let work = move || write_seed(&client_key, &dir, &hostname);
        self.runtime.spawn_blocking(work).await.map_err(|e| {
            let reason = std::io::Error::other(e);
            BackendError::io("writing the seed", &reason)
        })?
    }

    async fn connect(&self, at: &GuestAddress) -> Result<Arc<dyn GuestSession>, BackendError> {
        let session = ssh::connect(&self.client_key, at).await?;
        Ok(Arc::new(session))
    }

    fn console(&self, dir: PathBuf) -> Arc<dyn Console> {
        Arc::new(console::SerialConsole::new(dir, self.runtime.clone()))
    }
}

/// The keys stay what they are; the seed follows the settings.
fn write_seed(client_key: &Path, dir: &VmDir, hostname: &str) -> Result<(), BackendError> {
    let ours = keys::ensure(client_key, "aqfs")?;
    let host = keys::ensure(&dir.host_key(), hostname)?;
    let path = dir.seed();
    seed::tar(hostname, &keys::public_line(&ours)?, &host)
        .and_then(|bytes| file::replace(&path, &bytes))
        .map_err(|e| BackendError::io(format!("writing {}", path.display()), &e))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::vm::backend::{Accel, AccelKind, BootImage, DiskFormat};
    use crate::vm::spec::VmSpec;

    fn plan(dir: PathBuf) -> LaunchPlan {
        LaunchPlan {
            uuid: Uuid::nil(),
            name: "vm1".into(),
            dir,
            spec: VmSpec::default(),
            image: BootImage {
                name: "tiny".into(),
                digest: "sha256:0".into(),
                disk: "/nowhere".into(),
                format: DiskFormat::Raw,
                disk_size: 0,
                kernel: None,
                initrd: None,
                cmdline: String::new(),
                announces: true,
            },
            accel: Accel { kind: AccelKind::Tcg, cpu: "max".into(), reason: "test".into() },
            paused: false,
        }
    }

    #[tokio::test]
    async fn preparing_twice_keeps_the_keys_and_follows_the_settings() {
        let store = tempfile::tempdir().unwrap();
        let layout = Layout::new(store.path());
        let guests = SshGuests::new(&layout, Handle::current());
        let dir = layout.vm(Uuid::nil());
        file::private_dir(&dir.0).unwrap();
        let mut plan = plan(dir.0.clone());
        guests.prepare(&plan).await.unwrap();
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let before = (read(layout.client_key()), read(dir.host_key()), read(dir.seed()));
        guests.prepare(&plan).await.unwrap();
        let again = (read(layout.client_key()), read(dir.host_key()), read(dir.seed()));
        assert!(before == again, "a second preparation changes nothing");
        plan.spec.hostname = Some("web.example.org".into());
        guests.prepare(&plan).await.unwrap();
        assert_eq!(before.1, read(dir.host_key()));
        assert_ne!(before.2, read(dir.seed()));
    }
}
