//! A group by systemd: a transient scope for a QEMU, delegated to us. The daemon stays where it is.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::place::Hierarchy;
use crate::vm::spec::CpuLimit;
use crate::{proc, programs};

/// How long systemd may take for one request: it takes some 20 ms.
const TIMEOUT: Duration = Duration::from_secs(5);
/// systemd answers before it has moved the process; that comes a few milliseconds later, without an event.
const RETRY: Duration = Duration::from_millis(2);
const SERVICE: [&str; 4] = [
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
];
const BUSCTL: &str = "busctl";
const SYSTEMCTL: &str = "systemctl";

/// A systemd that makes scopes for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// The system's own, for root.
    System,
    /// The user's.
    User,
}

impl Manager {
    /// Finds it.
    pub fn find() -> Option<Self> {
        let is_there =
            Path::new("/run/systemd/system").is_dir() && programs::find(BUSCTL).is_some();
        match (is_there, rustix::process::geteuid().is_root()) {
            (false, _) => None,
            (true, true) => Some(Self::System),
            (true, false) => {
                let bus = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?).join("bus");
                bus.exists().then_some(Self::User)
            }
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::System => "--system",
            Self::User => "--user",
        }
    }

    /// Has a QEMU moved into a scope of its own, in a slice for all VMs of the mount, and returns the scope's group.
    ///
    /// # Errors
    /// What systemd says.
    pub async fn make_scope(self, mount: &str, vm: Uuid, pid: u32) -> Result<PathBuf, String> {
        let (scope, slice) = (format!("aqfs-{vm}.scope"), slice(mount));
        let (description, pid_text) = (format!("QEMU of the VM {vm}"), pid.to_string());
        let properties: [&[&str]; 5] = [
            &["Delegate", "b", "true"],
            &["Description", "s", &description],
            &["CollectMode", "s", "inactive-or-failed"],
            &["Slice", "s", &slice],
            &["PIDs", "au", "1", &pid_text],
        ];
        let mut arguments = vec![self.option(), "--quiet", "call"];
        arguments.extend(SERVICE);
        arguments.extend(["ssa(sv)a(sa(sv))", &scope, "replace", "5"]);
        arguments.extend(properties.into_iter().flatten());
        arguments.push("0");
        run(BUSCTL, &arguments).await?;
        timeout(TIMEOUT, moved(pid, &scope))
            .await
            .map_err(|_| format!("systemd has not moved QEMU, pid {pid}, into {scope}"))
    }

    /// Takes the slice of a mount away, once no scope is in it.
    ///
    /// # Errors
    /// What systemd says.
    pub async fn stop_slice(self, mount: &str) -> Result<(), String> {
        run(SYSTEMCTL, &[self.option(), "stop", &slice(mount)]).await
    }

    /// Sets what all VMs of a mount get of the host's processors.
    ///
    /// # Errors
    /// What systemd says.
    pub async fn set_total(self, mount: &str, limit: Option<CpuLimit>) -> Result<(), String> {
        // systemd counts in percent of a processor.
        let quota = limit.map_or_else(String::new, |limit| {
            format!("{}.{}%", limit.thousandths() / 10, limit.thousandths() % 10)
        });
        let (slice, quota) = (slice(mount), format!("CPUQuota={quota}"));
        run(SYSTEMCTL, &[self.option(), "set-property", "--runtime", &slice, &quota]).await
    }
}

/// A dash would have systemd make a slice above it too.
fn slice(mount: &str) -> String {
    format!("{}.slice", mount.replace('-', "_"))
}

async fn moved(pid: u32, scope: &str) -> PathBuf {
    loop {
        let dir = Hierarchy::here().and_then(|h| h.dir_of(&proc::cgroups_of(pid)));
        match dir {
            Some(dir) if dir.ends_with(scope) => return dir,
            Some(_) | None => sleep(RETRY).await,
        }
    }
}

async fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let said = timeout(TIMEOUT, command.output()).await;
    match said {
        Ok(Ok(said)) if said.status.success() => Ok(()),
        Ok(Ok(said)) => {
            let line = programs::last_line(&said.stderr).unwrap_or_default();
            Err(format!("{program} ended with {}: {line}", said.status))
        }
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!("{program} did not answer within {} s", TIMEOUT.as_secs())),
    }
}
