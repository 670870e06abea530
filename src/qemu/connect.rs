//! Connects to the QMP socket in a VM's directory, and asks what a launch and an adoption both need
//! to know.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags, open};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use uuid::Uuid;

use super::cmdline::READY_ID;
use super::qmp::{Qmp, refused};
use crate::store::layout::{VmDir, names};
use crate::vm::backend::Result;
use crate::vm::live::Bound;
use crate::vm::spec::net::{Forward, Protocol};

/// Connects to the QMP socket. Whether QEMU answers shows in its greeting.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if there is no QEMU.
pub async fn qmp_socket(dir: &VmDir) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(&dir.0, flags, Mode::empty())?;
    UnixStream::connect(VmDir::socket(directory.as_raw_fd(), names::QMP)).await
}

/// Says whether a failure to connect means that no QEMU listens.
pub fn means_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// The monitor's command that lists forwards.
pub const FORWARDS: &str = "info usernet";

/// The ports of the host that lead into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The one of the guest's SSH server.
    pub ssh: u16,
    /// Those of the settings, in their order.
    pub bound: Vec<Bound>,
}

/// Returns the ports as they are bound; `wanted` are those of the settings.
///
/// # Errors
/// QMP's own, or `QmpRefused` if none leads to the SSH server.
pub async fn ports(qmp: &Qmp, wanted: &[Forward]) -> Result<Ports> {
    let command = "human-monitor-command";
    let answer = qmp.execute(command, json!({"command-line": FORWARDS})).await?;
    let text = answer.as_str().unwrap_or_default();
    let missing = || refused(FORWARDS, format!("no forward to port 22 in {:?}", text.trim()));
    separate_ssh(parse_forwards(text), wanted).ok_or_else(missing)
}

/// Finds our own forward to the guest's port 22 among those of the settings, which may lead there
/// too, and the ports that the kernel picked.
fn separate_ssh(mut all: Vec<Forward>, wanted: &[Forward]) -> Option<Ports> {
    all.retain(|f| !wanted.contains(f));
    let is_ssh =
        |f: &Forward| (f.protocol, f.address, f.guest) == (Protocol::Tcp, Ipv4Addr::LOCALHOST, 22);
    let ssh = all.remove(all.iter().position(is_ssh)?).host;
    let mut port = |forward: &Forward| {
        let picked = |f: &Forward| Forward { host: 0, ..*f } == *forward;
        all.iter().position(picked).map_or(forward.host, |at| all.remove(at).host)
    };
    let bound = wanted.iter().map(|f| Bound { forward: *f, port: port(f) }).collect();
    Some(Ports { ssh, bound })
}

/// Reads the forwards in what the monitor prints.
pub fn parse_forwards(text: &str) -> Vec<Forward> {
    text.lines().filter_map(parse_forward).collect()
}

fn parse_forward(line: &str) -> Option<Forward> {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let [kind, _, address, host, _, guest, ..] = words[..] else {
        return None;
    };
    let protocol = match kind {
        "TCP[HOST_FORWARD]" => Protocol::Tcp,
        "UDP[HOST_FORWARD]" => Protocol::Udp,
        _ => return None,
    };
    let address = if address == "*" { Ipv4Addr::UNSPECIFIED } else { address.parse().ok()? };
    Some(Forward { protocol, address, host: host.parse().ok()?, guest: guest.parse().ok()? })
}

/// Returns the machine's UUID.
pub async fn uuid(qmp: &Qmp) -> Result<Option<Uuid>> {
    let answer = qmp.execute("query-uuid", json!({})).await?;
    Ok(answer["UUID"].as_str().and_then(|u| u.parse().ok()))
}

/// What the processors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuStatus {
    /// They run.
    Runs,
    /// They are stopped.
    Paused,
    /// They are stopped because the host's disk is full.
    DiskFull,
}

/// Returns what the processors do.
pub async fn status(qmp: &Qmp) -> Result<VcpuStatus> {
    let answer = qmp.execute("query-status", json!({})).await?;
    Ok(match answer["status"].as_str() {
        _ if answer["running"] == true => VcpuStatus::Runs,
        // Of all errors only a lack of space stops our machines.
        Some("io-error") => VcpuStatus::DiskFull,
        _ => VcpuStatus::Paused,
    })
}

/// Says whether the guest holds its ready port open.
pub async fn has_announced(qmp: &Qmp) -> Result<bool> {
    let answer = qmp.execute("query-chardev", json!({})).await?;
    let open = |c: &Value| c["label"] == READY_ID && c["frontend-open"] == true;
    Ok(answer.as_array().is_some_and(|all| all.iter().any(open)))
}

/// Says whether KVM runs the guest.
pub async fn uses_kvm(qmp: &Qmp) -> Result<bool> {
    let answer = qmp.execute("query-kvm", json!({})).await?;
    Ok(answer["enabled"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwards_are_told_apart() {
        let text = "Hub -1 (net):\r\n  \
            Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
            TCP[ESTABLISHED]   14       127.0.0.1 40001       10.0.2.15    22     0     0\r\n  \
            TCP[HOST_FORWARD]  11       127.0.0.1  2222       10.0.2.15    22     0     0\r\n  \
            TCP[HOST_FORWARD]  12               *  2223       10.0.2.15    22     0     0\r\n  \
            TCP[HOST_FORWARD]  13       127.0.0.1 44759       10.0.2.15    22     0     0\r\n  \
            TCP[HOST_FORWARD]  14       127.0.0.1 40123       10.0.2.15    80     0     0\r\n  \
            UDP[HOST_FORWARD]  15       127.0.0.1    53       10.0.2.15    53     0     0\r\n  \
            UDP[53 sec]        15       127.0.0.1    53       10.0.2.15    53     0     0\r\n";
        let wanted = ["0:80", "2222:22", "0.0.0.0:2223:22", "udp:53:53"];
        let wanted = wanted.map(|f| f.parse::<Forward>().unwrap());
        let all = parse_forwards(text);
        assert_eq!(all.len(), 5);
        let ports = separate_ssh(all, &wanted).unwrap();
        assert_eq!(ports.ssh, 44759);
        let bound: Vec<_> = ports.bound.iter().map(|b| b.port).collect();
        assert_eq!(bound, [40123, 2222, 2223, 53]);
        assert_eq!(separate_ssh(parse_forwards(""), &[]), None);
        assert_eq!(parse_forwards("TCP[HOST_FORWARD] 1 2"), []);
    }
}
