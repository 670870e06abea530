//! Changing a machine while it runs: disc, ports, keys.
//!
//! QEMU has no QMP command for forwards; its monitor answers in prose, of which only silence means
//! success.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use serde_json::{Value, json};

use super::RunningQemu;
use crate::qemu::cmdline::{self, DISC_NODES, DRIVE_ID, NET_ID};
use crate::qemu::connect;
use crate::qemu::qmp::refused;
use crate::vm::backend::{BackendError, Result};
use crate::vm::driver::off_thread;
use crate::vm::spec::net::{Forward, Protocol};

impl RunningQemu {
    /// The new disc is opened before the old one is taken out: one that cannot be read changes
    /// nothing.
    pub(super) async fn exchange_disc(&self, disc: Option<&Path>) -> Result<()> {
        let old = self.disc().await?;
        let new = DISC_NODES.into_iter().find(|n| old.as_deref() != Some(n)).unwrap_or_default();
        if let Some(path) = disc {
            let file = path.to_owned();
            let check = move || Ok(cmdline::check_file("cdrom", Some(&file)));
            off_thread(check, "the disc").await??;
            self.ask_with("blockdev-add", cmdline::disc(path, new)?).await?;
        }
        let drive = json!({"id": DRIVE_ID});
        self.ask_with("blockdev-open-tray", json!({"id": DRIVE_ID, "force": true})).await?;
        self.ask_with("blockdev-remove-medium", drive.clone()).await?;
        if let Some(old) = old {
            self.ask_with("blockdev-del", json!({"node-name": old})).await?;
        }
        if disc.is_some() {
            let arguments = json!({"id": DRIVE_ID, "node-name": new});
            self.ask_with("blockdev-insert-medium", arguments).await?;
        }
        self.ask_with("blockdev-close-tray", drive).await.map(drop)
    }

    /// Returns the node of the disc in the drive.
    async fn disc(&self) -> Result<Option<String>> {
        let all = self.ask("query-block").await?;
        let drive = all.as_array().and_then(|all| all.iter().find(|b| b["qdev"] == DRIVE_ID));
        let node = drive.and_then(|d| d["inserted"]["node-name"].as_str());
        Ok(node.map(str::to_owned))
    }

    pub(super) async fn open_port(&self, forward: &Forward) -> Result<u16> {
        let before = if forward.host == 0 { self.forwards().await? } else { Vec::new() };
        let said =
            self.monitor(&format!("hostfwd_add {NET_ID} {}", cmdline::rule(forward))).await?;
        if !said.trim().is_empty() {
            return Err(port_refused(forward));
        }
        if forward.host != 0 {
            return Ok(forward.host);
        }
        let after = self.forwards().await?;
        let new = after.into_iter().find(|f| f.guest == forward.guest && !before.contains(f));
        let missing = || refused("hostfwd_add", format!("{forward} is not among its forwards"));
        new.map(|f| f.host).ok_or_else(missing)
    }

    pub(super) async fn close_port(&self, bound: &Forward) -> Result<()> {
        let Forward { protocol, address, host, .. } = bound;
        let place = format!("{}:{address}:{host}", protocol.word());
        let said = self.monitor(&format!("hostfwd_remove {NET_ID} {place}")).await?;
        let gone = said.contains("removed") || said.contains("not found");
        gone.then_some(()).ok_or_else(|| refused("hostfwd_remove", said.trim()))
    }

    async fn forwards(&self) -> Result<Vec<Forward>> {
        Ok(connect::parse_forwards(&self.monitor(connect::FORWARDS).await?))
    }

    pub(super) async fn monitor(&self, line: &str) -> Result<String> {
        let said = self.ask_with("human-monitor-command", json!({"command-line": line})).await?;
        Ok(said.as_str().unwrap_or_default().to_owned())
    }

    /// The keyboard needs no device: every PC has one on its own controller.
    pub(super) async fn type_keys(&self, chords: &[Vec<String>]) -> Result<()> {
        for chord in chords {
            let key = |name: &String| json!({"type": "qcode", "data": name});
            let keys: Vec<Value> = chord.iter().map(key).collect();
            match self.ask_with("send-key", json!({"keys": keys})).await {
                Err(BackendError::QmpRefused { text, command }) => {
                    let unknown = chord.iter().find(|k| text.contains(&format!("'{k}'"))).cloned();
                    let unknown = unknown.map(|key| BackendError::UnknownKey { key });
                    return Err(unknown.unwrap_or(BackendError::QmpRefused { text, command }));
                }
                other => other?,
            };
        }
        Ok(())
    }
}

/// Finds out why QEMU could not open a port, which it does not say: the same is tried here.
pub fn port_refused(forward: &Forward) -> BackendError {
    let at = (forward.address, forward.host);
    let tried = match forward.protocol {
        Protocol::Tcp => TcpListener::bind(at).map(drop),
        Protocol::Udp => UdpSocket::bind(at).map(drop),
    };
    match tried {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            BackendError::io(format!("host port {forward}"), &error)
        }
        // It may have become free since.
        _ => BackendError::PortTaken { port: forward.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_cannot_be_opened_has_its_own_reason() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = taken.local_addr().unwrap().port();
        let forward = Forward { host, .."1:1".parse().unwrap() };
        let error = port_refused(&forward);
        assert!(matches!(error, BackendError::PortTaken { .. }), "{error}");
        // No host has an address that is reserved for documentation.
        let elsewhere = "tcp:203.0.113.1:0:1".parse().unwrap();
        let error = port_refused(&elsewhere);
        assert!(matches!(error, BackendError::Io { errno: libc::EADDRNOTAVAIL, .. }), "{error}");
    }
}
