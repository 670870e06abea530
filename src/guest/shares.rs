//! Host directories in the guest: a port of the guest's 127.0.0.1 that leads to the daemon's file server, by a
//! reverse forward on an SSH connection of its own, and the mounts of it.
//!
//! Not here: which directories, and when (`vm::shares`); the server (`nfs`).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::connection::{Connection, SshAccess, unreachable};
use super::shell::quoted;
use super::ssh::ATTEMPT_TIMEOUT;
use crate::vm::backend::{BackendError, Exit, FilePort, FileServer, Mount, OutputKind, OutputSink};

const PREPARE: &str = include_str!("shares/prepare.sh");
const MOUNT: &str = include_str!("shares/mount.sh");
/// The port, which is the same in every guest: an NFS client comes back to the one that it knows, also from a
/// snapshot. Where the login user is root it is one that nobody else in the guest can listen on.
const ROOT_PORT: u16 = 649;
const USER_PORT: u16 = 20_649;
/// How long the guest may take to mount: it may load modules first.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How much a guest may say.
const LONGEST_ANSWER: usize = 64 << 10;

/// Opens the port, and has the server serve what comes from there.
pub(super) async fn open(
    access: &SshAccess,
    server: Arc<dyn FileServer>,
) -> Result<Box<dyn FilePort>, BackendError> {
    let port = if access.user == "root" { ROOT_PORT } else { USER_PORT };
    let opening = Connection::serving(access, Arc::clone(&server));
    let late = |_| unreachable("no further connection in time");
    let connection = timeout(ATTEMPT_TIMEOUT, opening).await.map_err(late)??;
    let guest = Guest { connection, port };
    let (user, group) = guest.prepare().await?;
    server.set_guest_user(user, group);
    guest.connection.listen(port).await?;
    Ok(Box::new(guest))
}

#[derive(Debug)]
struct Guest {
    connection: Arc<Connection>,
    port: u16,
}

impl Guest {
    /// Runs a script as root and returns its lines.
    async fn run(&self, script: &str) -> Result<Vec<String>, BackendError> {
        let said = Answer::default();
        let command =
            b"user=$(id -u) group=$(id -g); case $user in 0) as= ;; *) as='sudo -n' ;; esac; \
            exec $as sh -s \"$user\" \"$group\"";
        let running = self.connection.exec(command, script.as_bytes(), &said);
        let late = |_| BackendError::GuestTimeout { seconds: TIMEOUT.as_secs() };
        match timeout(TIMEOUT, running).await.map_err(late)?? {
            Exit::Code(0) => Ok(said.lines(OutputKind::Stdout)),
            Exit::Code(_) | Exit::Signal(_) => Err(unreachable(format!(
                "to mount needs root, and `sudo -n` of its login user says: {}",
                said.lines(OutputKind::Stderr).pop().unwrap_or_default()
            ))),
        }
    }

    /// Has the guest free the port; returns its login user.
    async fn prepare(&self) -> Result<(u32, u32), BackendError> {
        let port = self.port;
        let script = format!("user=$1 group=$2 port={port} hex={port:04X}\n{PREPARE}");
        let lines = self.run(&script).await?;
        let failed = lines.iter().find_map(|line| line.strip_prefix("failed: "));
        if let Some(why) = failed {
            return Err(unreachable(why));
        }
        let user = lines.iter().find_map(|line| line.strip_prefix("user "));
        let (user, group) = user.and_then(|ids| ids.split_once(' ')).unwrap_or_default();
        let number =
            |text: &str| text.parse().map_err(|_| unreachable("it does not say who it is"));
        Ok((number(user)?, number(group)?))
    }
}

#[async_trait]
impl FilePort for Guest {
    async fn mount(&self, mounts: &[Mount]) -> Result<Vec<Result<(), String>>, BackendError> {
        let mut script = format!(
            "port={} root_port={ROOT_PORT} user_port={USER_PORT}\nwanted={}\n",
            self.port,
            String::from_utf8_lossy(&quoted(wanted(mounts).as_bytes()))
        );
        script.push_str(MOUNT);
        let lines = self.run(&script).await?;
        let outcome = |line: &String| match line.strip_prefix("no: ") {
            Some(why) => Err(why.to_owned()),
            None => Ok(()),
        };
        let mut outcomes: Vec<_> = lines.iter().take(mounts.len()).map(outcome).collect();
        let silent = || Err("the guest has not said whether it is mounted".to_owned());
        outcomes.resize_with(mounts.len(), silent);
        if lines.len() <= mounts.len() {
            outcomes.fill_with(silent);
        }
        Ok(outcomes)
    }

    async fn closed(&self) {
        self.connection.closed().await;
    }
}

/// Writes the lines that the script reads.
fn wanted(mounts: &[Mount]) -> String {
    mounts.iter().fold("\n".to_owned(), |mut text, mount| {
        let mode = if mount.read_only { "ro" } else { "rw" };
        let target = escaped(&mount.target);
        // A string takes everything.
        let _written = writeln!(text, "{} {target} {mode} {}", mount.path, mount.cache);
        text
    })
}

/// Writes a path as /proc/mounts has it.
fn escaped(path: &str) -> String {
    path.chars().fold(String::new(), |mut text, c| {
        match c {
            ' ' | '\t' | '\n' | '\\' | '#' => {
                let _written = write!(text, "\\{:03o}", u32::from(c));
            }
            _ => text.push(c),
        }
        text
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_the_kernel_writes_them() {
        let mount = |path: &str, target: &str, read_only| Mount {
            name: "src".into(),
            path: path.into(),
            target: target.into(),
            read_only,
            cache: 1,
        };
        let text = wanted(&[mount("/a", "/mnt/a b", false), mount("/c", "/srv\\#", true)]);
        assert_eq!(text, "\n/a /mnt/a\\040b rw 1\n/c /srv\\134\\043 ro 1\n");
        assert_eq!(wanted(&[]), "\n");
    }
}
