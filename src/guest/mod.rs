//! The way into a guest: SSH keys ([`keys`]), what it reads at boot ([`seed`]), the SSH connection
//! ([`ssh`]), the identity of one that does not boot (`identity`), its files (`sftp`), a configuration for OpenSSH
//! ([`ssh_config`]) and the serial line ([`console`], with terminals on it: `tty`). The only place
//! that names `russh`.
//!
//! No policy: when to connect, and how often to try again, is the driver's business.

mod connection;
pub mod console;
mod identity;
pub mod keys;
mod nets;
mod nocloud;
mod probe;
pub mod seed;
mod served_port;
mod sftp;
mod shares;
mod shell;
pub mod ssh;
pub mod ssh_config;
mod supervise;
mod tty;
mod user_data;
mod web;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

pub use self::sftp::replay as replay_sftp;
use crate::store::file;
use crate::store::layout::{Layout, VmDir};
use crate::vm::backend::{
    BackendError, ClientHost, Console, GuestAddress, GuestSession, Guests, IdentityPort,
    LaunchPlan, SeedKind,
};
use crate::vm::spec::VmSpec;
use crate::vm::spec::container::ContainerProcess;

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
        let (client_key, plan) = (self.client_key.clone(), plan.clone());
        let work = move || {
            write_seed(&client_key, &plan)?;
            let dir = VmDir(plan.dir);
            let written = write_for_boot(&dir, &plan.spec);
            written.map_err(|e| BackendError::io("what the guest reads at boot", &e))?;
            ssh_config::write_known_hosts(&dir, plan.uuid)
        };
        self.runtime
            .spawn_blocking(work)
            .await
            .map_err(|e| BackendError::io("writing the seed", &io::Error::other(e)))?
    }

    async fn connect(&self, at: &GuestAddress) -> Result<Arc<dyn GuestSession>, BackendError> {
        let session = ssh::connect(&self.client_key, at).await?;
        Ok(Arc::new(session))
    }

    async fn identity(&self, dir: &Path) -> Result<Box<dyn IdentityPort>, BackendError> {
        Ok(Box::new(identity::Port::connect(self.client_key.clone(), dir).await?))
    }

    fn client_config(&self, host: &ClientHost) -> String {
        ssh_config::render(&self.client_key, host)
    }

    fn console(&self, dir: PathBuf) -> Arc<dyn Console> {
        Arc::new(console::SerialConsole::new(dir, self.runtime.clone()))
    }
}

/// Connects to one of QEMU's sockets in a VM's directory, through a descriptor: the directory's own
/// name may be too long for an address.
async fn socket(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    UnixStream::connect(VmDir::socket(dir.as_raw_fd(), name)).await
}

fn hostname(plan: &LaunchPlan) -> &str {
    plan.spec.hostname.as_ref().unwrap_or(&plan.name)
}

/// Returns the lines of `authorized_keys` that a guest gets: ours and the settings'.
fn authorized_keys(client_key: &Path, further: &[String]) -> Result<String, BackendError> {
    let ours = keys::ensure(client_key, "aqfs")?;
    let mut authorized = keys::public_line(&ours)?;
    further.iter().for_each(|line| authorized.extend([line, "\n"]));
    Ok(authorized)
}

/// The keys stay what they are; the seed follows the settings, is written at every start, and so need not
/// outlast a crash of the host.
fn write_seed(client_key: &Path, plan: &LaunchPlan) -> Result<(), BackendError> {
    let (dir, hostname, instance) = (VmDir(plan.dir.clone()), hostname(plan), plan.uuid);
    let authorized = authorized_keys(client_key, &plan.spec.ssh_key)?;
    let host = keys::ensure(&dir.host_key(), hostname)?;
    let (path, bytes) = match plan.image.seed {
        SeedKind::FwCfg => {
            let container = plan.spec.container.as_ref();
            let exports = container.map(ContainerProcess::exports).unwrap_or_default();
            (dir.seed(), seed::tar(hostname, instance, &authorized, &host, &exports))
        }
        SeedKind::Nocloud => {
            let public = keys::public_line(&host)?;
            let volume = keys::openssh(&host).and_then(|private| {
                nocloud::volume(&nocloud::NoCloudData {
                    instance,
                    hostname,
                    authorized: &authorized,
                    host_key: (&String::from_utf8_lossy(&private), &public),
                    user_data: plan.spec.user_data.as_deref(),
                    network_data: plan.spec.network_data.as_deref(),
                })
            });
            (dir.cidata(), volume)
        }
    };
    bytes
        .and_then(|bytes| file::replace_unsynced(&path, &bytes))
        .map_err(|e| BackendError::io(format!("writing {}", path.display()), &e))
}

/// Writes what QEMU hands to Ignition and to systemd, a credential a file.
fn write_for_boot(dir: &VmDir, spec: &VmSpec) -> io::Result<()> {
    match &spec.ignition {
        Some(text) => file::replace(&dir.ignition(), text.as_bytes())?,
        None => file::remove(&dir.ignition())?,
    }
    let credentials = dir.credentials();
    match std::fs::remove_dir_all(&credentials) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if spec.credentials.is_empty() {
        return Ok(());
    }
    file::private_dir(&credentials)?;
    for (number, line) in spec.credentials.iter().enumerate() {
        let text = format!("io.systemd.credential:{line}");
        file::replace(&credentials.join(number.to_string()), text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::vm::backend::{Accel, AccelKind, BootImage, DiskFormat, Lifetime};
    use crate::vm::template::Memory;

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
                efi_kernel: None,
                initrd: None,
                cmdline: String::new(),
                announces: true,
                seed: SeedKind::FwCfg,
                nvram: None,
            },
            accel: Accel { kind: AccelKind::Tcg, cpu: "max".into(), reason: "test".into() },
            hardware: crate::vm::hardware::Hardware::NEWEST,
            paused: false,
            base: Vec::new(),
            nics: Vec::new(),
            disks: Vec::new(),
            memory: Memory::Own,
            cold: None,
            lifetime: Lifetime::Own,
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
        let named = read(dir.seed());
        assert_ne!(before.2, named);
        plan.spec.ssh_key = vec!["ssh-ed25519 AAAA me".into()];
        guests.prepare(&plan).await.unwrap();
        let seed = String::from_utf8_lossy(&read(dir.seed())).into_owned();
        assert!(seed.contains(" aqfs\nssh-ed25519 AAAA me\n"), "{seed}");
        plan.spec.credentials = vec!["a=b,c".into(), "d=e".into()];
        plan.spec.ignition = Some("{}".into());
        guests.prepare(&plan).await.unwrap();
        assert_eq!(read(dir.credentials().join("0")), b"io.systemd.credential:a=b,c");
        assert_eq!(read(dir.ignition()), b"{}");
        plan.spec.credentials.clear();
        plan.spec.ignition = None;
        guests.prepare(&plan).await.unwrap();
        assert!(!dir.credentials().exists() && !dir.ignition().exists());
    }
}
