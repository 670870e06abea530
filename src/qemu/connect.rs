//! Reaching QEMU's QMP socket in a VM's directory, and asking what a launch and an adoption both
//! need to know.

use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags, open};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use uuid::Uuid;

use super::cmdline::READY_ID;
use super::qmp::{Qmp, QmpError};
use crate::store::layout::{VmDir, names};

/// Connects to the QMP socket, which does not say yet that anybody answers.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if there is no QEMU.
pub async fn qmp_socket(dir: &VmDir) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(&dir.0, flags, Mode::empty())?;
    UnixStream::connect(VmDir::socket(directory.as_raw_fd(), names::QMP)).await
}

/// Says whether a failure to connect means that nobody is there.
pub fn means_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// Returns the host port that leads to the guest's SSH server.
///
/// # Errors
/// QMP's own, or `Refused` if there is no such forward.
pub async fn ssh_port(qmp: &Qmp) -> Result<u16, QmpError> {
    let command = "human-monitor-command";
    let answer = qmp.execute(command, json!({"command-line": "info usernet"})).await?;
    let text = answer.as_str().unwrap_or_default();
    forwarded_port(text).ok_or_else(|| QmpError::Refused {
        command: "info usernet".to_owned(),
        text: format!("no forward to port 22 in {:?}", text.trim()),
    })
}

/// Finds the host port of the forward to the guest's port 22 in what `info usernet` prints.
fn forwarded_port(text: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["TCP[HOST_FORWARD]", _, _, port, _, "22", ..] => port.parse().ok(),
            _ => None,
        }
    })
}

/// Returns the machine's UUID.
///
/// # Errors
/// QMP's own.
pub async fn uuid(qmp: &Qmp) -> Result<Option<Uuid>, QmpError> {
    let answer = qmp.execute("query-uuid", json!({})).await?;
    Ok(answer["UUID"].as_str().and_then(|u| u.parse().ok()))
}

/// What the processors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// They run.
    Runs,
    /// They are stopped.
    Paused,
    /// They are stopped because the host's disk is full.
    DiskFull,
}

/// Returns what the processors do.
///
/// # Errors
/// QMP's own.
pub async fn status(qmp: &Qmp) -> Result<Status, QmpError> {
    let answer = qmp.execute("query-status", json!({})).await?;
    Ok(match answer["status"].as_str() {
        _ if answer["running"] == true => Status::Runs,
        // Of all errors only a lack of space stops our machines.
        Some("io-error") => Status::DiskFull,
        _ => Status::Paused,
    })
}

/// Says whether the guest holds its ready port open.
///
/// # Errors
/// QMP's own.
pub async fn has_announced(qmp: &Qmp) -> Result<bool, QmpError> {
    let answer = qmp.execute("query-chardev", json!({})).await?;
    let open = |c: &Value| c["label"] == READY_ID && c["frontend-open"] == true;
    Ok(answer.as_array().is_some_and(|all| all.iter().any(open)))
}

/// Says whether KVM runs the guest.
///
/// # Errors
/// QMP's own.
pub async fn uses_kvm(qmp: &Qmp) -> Result<bool, QmpError> {
    let answer = qmp.execute("query-kvm", json!({})).await?;
    Ok(answer["enabled"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_that_of_the_forward_to_ssh() {
        let text = "Hub -1 (net):\r\n  \
            Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
            TCP[ESTABLISHED]   14       127.0.0.1 40001       10.0.2.15    22     0     0\r\n  \
            TCP[HOST_FORWARD]  11       127.0.0.1  8080       10.0.2.15    80     0     0\r\n  \
            TCP[HOST_FORWARD]  12       127.0.0.1 44759       10.0.2.15    22     0     0\r\n";
        assert_eq!(forwarded_port(text), Some(44759));
        assert_eq!(forwarded_port(""), None);
        assert_eq!(forwarded_port("TCP[HOST_FORWARD] 1 2"), None);
    }
}
