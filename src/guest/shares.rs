//! Host directories in the guest: a port of the guest's 127.0.0.1 that leads to the daemon's file server, by a
//! reverse forward on an SSH connection of its own, and the mounts of it.
//!
//! Not here: which directories, and when (`vm::shares`); the server (`nfs`).

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;

use super::connection::SshAccess;
use super::served_port::ServedPort;
use super::shell::quoted;
use crate::vm::backend::{BackendError, FilePort, FileServer, Mount};

const MOUNT: &str = include_str!("shares/mount.sh");
/// The port, which is the same in every guest: an NFS client comes back to the one that it knows, also from a
/// snapshot. Where the login user is root it is one that nobody else in the guest can listen on.
const ROOT_PORT: u16 = 649;
const USER_PORT: u16 = 20_649;

/// Opens the port, and has the server serve what comes from there.
pub(super) async fn open(
    access: &SshAccess,
    server: Arc<dyn FileServer>,
) -> Result<Box<dyn FilePort>, BackendError> {
    let port = if access.user == "root" { ROOT_PORT } else { USER_PORT };
    let (served, (user, group)) =
        ServedPort::prepared(access, port, Arc::clone(&server) as _).await?;
    server.set_guest_user(user, group);
    served.listen().await?;
    Ok(Box::new(Shares(served)))
}

#[derive(Debug)]
struct Shares(ServedPort);

#[async_trait]
impl FilePort for Shares {
    async fn mount(&self, mounts: &[Mount]) -> Result<Vec<Result<(), String>>, BackendError> {
        let mut script = format!(
            "port={} root_port={ROOT_PORT} user_port={USER_PORT}\nwanted={}\n",
            self.0.port,
            String::from_utf8_lossy(&quoted(wanted(mounts).as_bytes()))
        );
        script.push_str(MOUNT);
        let lines = self.0.run(&script).await?;
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

    async fn look_again(&self, paths: &[String]) -> Result<(), BackendError> {
        self.0.run(&looks(paths)).await.map(drop)
    }

    async fn closed(&self) {
        self.0.closed().await;
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

/// Opens files: the kernel asks for the attributes of what is opened, and what is open already has them too.
fn looks(paths: &[String]) -> String {
    paths.iter().fold(String::new(), |mut script, path| {
        let _written =
            writeln!(script, "true <{}", String::from_utf8_lossy(&quoted(path.as_bytes())));
        script
    }) + "exit 0\n"
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

    #[test]
    fn a_path_is_no_part_of_the_script() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let paths = ["absent", "'; touch made; #", "$(touch made)"].map(path);
        let mut sh = std::process::Command::new("sh");
        let done = sh.current_dir(&dir).arg("-c").arg(looks(&paths)).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(done.stderr.split(|byte| *byte == b'\n').count(), 4, "it tries each");
    }
}
