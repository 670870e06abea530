//! What a running machine has of its settings, and changing that while it runs.
//!
//! Which of them wait for the next start follows from here: [`InForce::pending`]. How QEMU is
//! changed is the part of [`Machine`].

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::backend::{BackendError, DiscardOutput, GuestSession, Machine};
use super::spec::net::Forward;
use super::spec::{KEYS, Key, Takes, VmSpec};

/// A forward as it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The forward as the settings have it.
    pub forward: Forward,
    /// The host's port: another one than in the settings only if they leave it to the kernel.
    pub port: u16,
}

impl Bound {
    /// Returns the forward with the port that is really bound.
    pub fn actual(&self) -> Forward {
        Forward { host: self.port, ..self.forward }
    }
}

/// What a running machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The settings that it was started with, as far as they were not changed since.
    pub spec: VmSpec,
    /// The memory that it was started with, in bytes: the balloon cannot give it more.
    pub memory: u64,
    /// The processors that it can have.
    #[serde(default)]
    pub most_cpus: u32,
    /// It has a CD-ROM drive.
    pub drive: bool,
    /// The guest gives memory back when asked; one that was loaded from a template must not.
    #[serde(default = "yes")]
    pub balloon: bool,
    /// The ports that lead into it, in the order of the settings.
    pub forwards: Vec<Bound>,
}

/// Records of earlier versions know of no other.
fn yes() -> bool {
    true
}

impl InForce {
    /// Describes a machine just started.
    pub fn at_start(spec: &VmSpec, forwards: Vec<Bound>) -> Self {
        let (memory, drive) = (spec.memory, spec.cdrom.is_some());
        Self { spec: spec.clone(), memory, most_cpus: spec.cpus, drive, balloon: true, forwards }
    }

    /// Names the settings that differ from what runs and wait for the next start.
    pub fn pending(&self, wanted: &VmSpec) -> Vec<&'static str> {
        let differs = |render: fn(&VmSpec) -> String| render(&self.spec) != render(wanted);
        let at_start = |k: &Key| k.takes == Takes::AtStart || (k.name == "memory" && !self.balloon);
        let waits = KEYS.iter().filter(|k| at_start(k) && differs(k.render));
        waits.map(|k| k.name).collect()
    }

    /// Changes the machine as far as it can be changed while it runs, from settings `old` to
    /// `new`, and returns what it has then.
    ///
    /// # Errors
    /// What the machine answered; it is then as it was.
    pub async fn follow(
        &self,
        machine: &dyn Machine,
        old: &VmSpec,
        new: &VmSpec,
    ) -> Result<Self, BackendError> {
        let mut now = self.clone();
        // The settings change one at a time, so that nothing is done before what fails.
        let memory = new.memory.min(self.memory);
        if self.balloon && new.memory != old.memory && memory != now.spec.memory {
            machine.set_memory(memory).await?;
            now.spec.memory = memory;
        }
        let cpus = now.spec.cpus + 1..=self.most_cpus;
        if new.cpus != old.cpus && cpus.contains(&new.cpus) {
            machine.add_processors(new.cpus).await?;
            now.spec.cpus = new.cpus;
        }
        if new.disk != old.disk && new.disk > now.spec.disk {
            machine.grow_disk(new.disk).await?;
            now.spec.disk = new.disk;
        }
        if new.cdrom != old.cdrom && self.drive {
            machine.change_disc(new.cdrom.as_deref()).await?;
            now.spec.cdrom.clone_from(&new.cdrom);
        }
        if new.host_limits() != old.host_limits() {
            machine.limit_host(&new.host_limits()).await;
            now.spec.set_host_limits(new.host_limits());
        }
        if new.io_limit != old.io_limit && new.io_limit != now.spec.io_limit {
            machine.limit_io(new.io_limit).await?;
            now.spec.io_limit = new.io_limit;
        }
        if new.ports != old.ports {
            now.forwards = exchange(machine, &self.forwards, &new.ports).await?;
            now.spec.ports.clone_from(&new.ports);
        }
        Ok(now)
    }
}

/// Removes the forwards that are not wanted and adds those that are missing: all, or none.
async fn exchange(
    machine: &dyn Machine,
    now: &[Bound],
    wanted: &[Forward],
) -> Result<Vec<Bound>, BackendError> {
    let (mut removed, mut bound) = (Vec::new(), Vec::new());
    for gone in now.iter().filter(|b| !wanted.contains(&b.forward)) {
        if let Err(error) = machine.remove_forward(&gone.actual()).await {
            take_back(machine, &[], &removed).await;
            return Err(error);
        }
        removed.push(*gone);
    }
    for forward in wanted {
        let port = match now.iter().find(|b| b.forward == *forward) {
            Some(there) => Ok(there.port),
            None => machine.add_forward(forward).await,
        };
        match port {
            Ok(port) => bound.push(Bound { forward: *forward, port }),
            Err(error) => {
                bound.retain(|b| !now.contains(b));
                take_back(machine, &bound, &removed).await;
                return Err(error);
            }
        }
    }
    Ok(bound)
}

async fn take_back(machine: &dyn Machine, added: &[Bound], removed: &[Bound]) {
    for bound in added {
        if let Err(error) = machine.remove_forward(&bound.actual()).await {
            tracing::warn!(forward = %bound.actual(), %error, "cannot be removed again");
        }
    }
    for bound in removed {
        if let Err(error) = machine.add_forward(&bound.actual()).await {
            tracing::warn!(forward = %bound.actual(), %error, "cannot be put back");
        }
    }
}

/// How long a guest may take to use the processors that were added.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Has the guest use its processors: most kernels leave that to a program. One that does not is left as it
/// is, and uses them when it boots next.
pub(super) async fn bring_online(session: &dyn GuestSession, count: u32) {
    let script = format!(
        "at=/sys/devices/system/cpu tries=0
         until [ -e $at/cpu{}/online ] || [ $tries = 50 ]; do tries=$((tries + 1)); sleep 0.1; done
         for cpu in $at/cpu*/online; do
             read -r is <$cpu
             [ $is = 1 ] || echo 1 >$cpu || echo 1 | sudo -n tee $cpu
         done",
        count.saturating_sub(1)
    );
    let done = session.exec(script.as_bytes(), b"", &DiscardOutput);
    if timeout(ONLINE_TIMEOUT, done).await.is_err() {
        tracing::warn!(count, "the guest has not taken its new processors into use");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_and_needs_a_start_is_pending() {
        let spec = VmSpec::default();
        let in_force = InForce::at_start(&spec, Vec::new());
        assert_eq!(in_force.pending(&spec), Vec::<&str>::new());
        let wanted = VmSpec { cpus: 4, protect: true, memory: 1 << 30, ..spec };
        assert_eq!(in_force.pending(&wanted), ["cpus", "memory"]);
    }
}
