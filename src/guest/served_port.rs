//! A port of the guest's 127.0.0.1 that leads to the daemon, by a reverse forward on an SSH connection of its
//! own, and what root does there for it.
//!
//! Not here: what is served at the port (`shares`, `web`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::connection::{Connection, SshAccess, unreachable};
use super::ssh::ATTEMPT_TIMEOUT;
use crate::vm::backend::{BackendError, Exit, OutputKind, OutputSink, PortServer};

const PREPARE: &str = include_str!("served_port/prepare.sh");
/// The line that a guest whose root is a container's runs beside the container; others do nothing at it.
const SYSTEM: &str = ": aqfs-system\n";
/// Runs the script that is its input as root, with the numbers of the login user and its group. Of a container it
/// is the image's root that has mounts and files, while modules and programs are ours.
const AS_ROOT: &str = "if [ -e /run/aqfs/shell ]; then { modprobe nfs; modprobe nfsv3; } 2>/dev/null; \
    PATH=/dev/aqfs/bin exec /bin/chroot /proc/1/cwd /dev/aqfs/bin/busybox sh -s 0 0; fi\n\
    user=$(id -u) group=$(id -g); case $user in 0) as= ;; *) as='sudo -n' ;; esac; \
    exec $as sh -s \"$user\" \"$group\"";
/// How long the guest may take to do it: to mount, it may load modules first.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How much a guest may say.
const LONGEST_ANSWER: usize = 64 << 10;

/// A connection to the guest, and the port that it is to have.
#[derive(Debug)]
pub(super) struct ServedPort {
    connection: Arc<Connection>,
    pub(super) port: u16,
}

/// The guest's login user and its group.
pub(super) type GuestUser = (u32, u32);

impl ServedPort {
    /// Connects and has the guest free the port. It is not open before [`listen`](Self::listen).
    pub(super) async fn prepared(
        access: &SshAccess,
        port: u16,
        server: Arc<dyn PortServer>,
    ) -> Result<(Self, GuestUser), BackendError> {
        let opening = Connection::serving(access, server);
        let late = |_| unreachable("no further connection in time");
        let connection = timeout(ATTEMPT_TIMEOUT, opening).await.map_err(late)??;
        let served = Self { connection, port };
        let user = served.prepare().await?;
        Ok((served, user))
    }

    pub(super) async fn listen(&self) -> Result<(), BackendError> {
        self.connection.listen(self.port).await
    }

    pub(super) async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Runs a script as root and returns its lines.
    pub(super) async fn run(&self, script: &str) -> Result<Vec<String>, BackendError> {
        run_as_root(&self.connection, script).await
    }

    /// Has the guest free the port; returns its login user.
    async fn prepare(&self) -> Result<(u32, u32), BackendError> {
        let port = self.port;
        let script = format!("user=$1 group=$2 port={port} hex={port:04X}\n{PREPARE}");
        let lines = self.run(&script).await?;
        let failed = lines.iter().find_map(|line| line.strip_prefix("failed: "));
        if let Some(why) = failed {
            return Err(cannot(why));
        }
        let user = lines.iter().find_map(|line| line.strip_prefix("user "));
        let (user, group) = user.and_then(|ids| ids.split_once(' ')).unwrap_or_default();
        let number =
            |text: &str| text.parse().map_err(|_| cannot("it does not say who its login user is"));
        Ok((number(user)?, number(group)?))
    }
}

/// Runs a script as root and returns its lines.
pub(super) async fn run_as_root(
    connection: &Connection,
    script: &str,
) -> Result<Vec<String>, BackendError> {
    let said = Answer::default();
    let command = [SYSTEM, AS_ROOT].concat();
    let running = connection.exec(command.as_bytes(), script.as_bytes(), &said);
    let late = |_| BackendError::GuestTimeout { seconds: TIMEOUT.as_secs() };
    match timeout(TIMEOUT, running).await.map_err(late)?? {
        Exit::Code(0) => Ok(said.lines(OutputKind::Stdout)),
        Exit::Code(_) | Exit::Signal(_) => Err(BackendError::fact(
            "this needs root in the guest, or `sudo -n` for its login user",
            said.lines(OutputKind::Stderr).pop().unwrap_or_default(),
            libc::EPERM,
        )),
    }
}

fn cannot(why: impl Into<String>) -> BackendError {
    BackendError::fact("the guest cannot have a port for the daemon", why, libc::EPERM)
}

/// What a script says.
#[derive(Debug, Default)]
struct Answer(Mutex<[Vec<u8>; 2]>);

impl Answer {
    fn lines(&self, source: OutputKind) -> Vec<String> {
        let said = self.0.lock();
        let text = String::from_utf8_lossy(&said[usize::from(source == OutputKind::Stderr)]);
        let is_control = |c: char| c.is_control();
        text.lines().map(|line| line.replace(is_control, "")).collect()
    }
}

#[async_trait]
impl OutputSink for Answer {
    async fn accept(&self, source: OutputKind, bytes: &[u8]) {
        let mut said = self.0.lock();
        let said = &mut said[usize::from(source == OutputKind::Stderr)];
        let room = LONGEST_ANSWER.saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
