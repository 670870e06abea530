//! A guest's addresses on nets, and the names of their members in its `/etc/hosts`.
//!
//! Not here: which, and when (`vm::nets`); the devices (`qemu`).

use std::fmt::Write as _;
use std::time::Duration;

use super::connection::Connection;
use super::served_port;
use super::shell::quoted;
use crate::vm::backend::{BackendError, GuestNic, NicOutcome, NicPlace};

const SET: &str = include_str!("nets/set.sh");
/// How often the script looks for a device that is not there yet.
const INTERVAL: Duration = Duration::from_millis(200);

/// Has the guest have these addresses and names, and none on the idle devices.
pub(super) async fn set(
    connection: &Connection,
    (nics, idle): (&[GuestNic], &[NicPlace]),
    hosts: &str,
    wait: Duration,
) -> Result<Vec<NicOutcome>, BackendError> {
    let lines = served_port::run_as_root(connection, &script((nics, idle), hosts, wait)).await?;
    let mut outcomes: Vec<_> = lines.iter().take(nics.len()).map(|line| outcome(line)).collect();
    let silent = || NicOutcome::Failed("the guest has not said whether it has it".to_owned());
    outcomes.resize_with(nics.len(), silent);
    match lines.get(nics.len()).map(String::as_str) {
        Some("done") => Ok(outcomes),
        Some(why) => Err(BackendError::fact("the guest's /etc/hosts", why, libc::EREMOTEIO)),
        None => Ok(vec![silent(); nics.len()]),
    }
}

fn outcome(line: &str) -> NicOutcome {
    match line {
        "ok" => NicOutcome::Set,
        "none" => NicOutcome::Unseen,
        why => NicOutcome::Failed(why.strip_prefix("failed: ").unwrap_or(why).to_owned()),
    }
}

fn script((nics, idle): (&[GuestNic], &[NicPlace]), hosts: &str, wait: Duration) -> String {
    let nics = nics.iter().fold(String::new(), |mut text, nic| {
        let GuestNic { place, mac, address, prefix } = nic;
        // A string takes everything.
        let _written = writeln!(text, "{} {mac} {address}/{prefix}", place.port());
        text
    });
    let idle: Vec<String> = idle.iter().map(|place| place.port().to_string()).collect();
    let tries = (wait.as_millis() / INTERVAL.as_millis()).to_string();
    let variables =
        [("nics", nics), ("idle", idle.join(" ")), ("hosts", hosts.to_owned()), ("tries", tries)];
    let mut text = String::new();
    for (name, value) in variables {
        text.extend([name, "=", &String::from_utf8_lossy(&quoted(value.as_bytes())), "\n"]);
    }
    text + SET
}
