//! Limits that the host's kernel holds: processor time and memory of a QEMU, by a control group (cgroup v2) of its own.
//!
//! - [`group`]: one group. [`place`]: where groups can be made. [`scope`]: those of systemd. [`watch`]: what is told of
//!   memory.
//!
//! Where there is no group, `nice` makes a QEMU yield. A limit that nothing holds does not prevent a start: `info` says so.
//! Not here: what the disks may transfer (`machine::throttle`).

pub mod group;
pub mod place;
pub mod scope;
pub mod watch;

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::Mutex;
use rustix::process::{Pid, getpriority_process, setpriority_pgrp};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use self::group::Group;
use self::place::Place;
use self::scope::Manager;
use crate::vm::backend::RunFacts;
use crate::vm::driver::off_thread;
use crate::vm::spec::{CpuLimit, HostLimits, VmSpec, render_size};

/// How much a QEMU yields whose processor time nothing else limits.
const NICE: i32 = 10;
const MOST_NICE: i32 = 19;

/// The groups of a mount's VMs.
#[derive(Debug)]
pub struct Groups {
    /// Their own name among those of other mounts.
    name: String,
    state: Mutex<GroupsState>,
    /// One group is made or taken away at a time: a slice is stopped only while nothing comes into it.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct GroupsState {
    /// What all together get of the host's processors.
    total: Option<CpuLimit>,
    /// The machines that run.
    members: BTreeMap<Uuid, Member>,
}

/// A QEMU that runs.
#[derive(Clone, Debug)]
struct Member {
    pid: u32,
    limits: HostLimits,
    /// Its group, or why it has none; `None`: it needs none.
    group: Option<Result<Group, String>>,
}

impl Groups {
    /// Names the groups of the store at `root`. Nothing is made yet.
    pub fn new(root: &Path) -> Self {
        let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
        let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { name: format!("aqfs-{digits}"), state: Mutex::default(), turn: Default::default() }
    }

    /// Puts a QEMU that starts into a group, if it is to have one: what it has of memory by then is not counted. Its
    /// processor time counts only later: it would be slow to start.
    pub async fn enter(&self, vm: Uuid, pid: u32, limits: &HostLimits) {
        let memory = HostLimits { cpu: None, ..*limits };
        self.hold_as((vm, pid), limits, &memory).await;
    }

    /// Holds a VM's QEMU to its limits: when it has started, and when they change.
    pub async fn hold(&self, vm: Uuid, pid: u32, limits: &HostLimits) {
        self.hold_as((vm, pid), limits, limits).await;
    }

    /// Holds a QEMU to `now`; it has a group if it is to be held to `limits`.
    async fn hold_as(&self, (vm, pid): (Uuid, u32), limits: &HostLimits, now: &HostLimits) {
        let _turn = self.turn.lock().await;
        let total = self.state.lock().total;
        let there = Group::of(pid, vm);
        let is_wanted = there.is_some() || *limits != HostLimits::default() || total.is_some();
        let group = match is_wanted {
            true => Some(self.try_to_hold((vm, pid), now, there, total).await),
            false => None,
        };
        if let Some(Err(reason)) = &group {
            tracing::warn!(%vm, reason, "the limits of the VM are not held");
        }
        if !matches!(&group, Some(Ok(group)) if group.holds_cpu()) {
            yield_if(limits.cpu.is_some(), pid);
        }
        self.state.lock().members.insert(vm, Member { pid, limits: *limits, group });
    }

    async fn try_to_hold(
        &self,
        (vm, pid): (Uuid, u32),
        limits: &HostLimits,
        there: Option<Group>,
        total: Option<CpuLimit>,
    ) -> Result<Group, String> {
        let group = match there {
            Some(group) => group,
            None => self.make(vm, pid, total).await?,
        };
        let limits = *limits;
        blocking("a control group", move || {
            group.set(&limits)?;
            group.take_in(pid)?;
            Ok(group)
        })
        .await
    }

    async fn make(&self, vm: Uuid, pid: u32, total: Option<CpuLimit>) -> Result<Group, String> {
        let name = self.name.clone();
        match place::find()? {
            Place::Delegated(base) => {
                blocking("a control group", move || {
                    let group = place::make(&base, &name, vm)?;
                    Group(base.join(name)).set_cpu(total)?;
                    Ok(group)
                })
                .await
            }
            Place::Systemd(manager) => {
                let scope = manager.make_scope(&name, vm, pid).await?;
                if total.is_some() {
                    manager.set_total(&name, total).await?;
                }
                blocking("the control group of a scope", move || {
                    let group = place::make_in(&scope, vm)?;
                    group.take_in(pid)?;
                    place::enable(&scope)?;
                    Ok(group)
                })
                .await
            }
        }
    }

    /// Returns the limits of a machine that runs.
    pub fn limits_of(&self, vm: Uuid) -> HostLimits {
        self.state.lock().members.get(&vm).map(|member| member.limits).unwrap_or_default()
    }

    /// Takes the group of a QEMU that has ended away.
    pub async fn remove(&self, vm: Uuid) {
        let _turn = self.turn.lock().await;
        let member = self.state.lock().members.remove(&vm);
        let Some(Some(Ok(group))) = member.map(|member| member.group) else { return };
        let name = self.name.clone();
        let clear = move || {
            // systemd may have taken it away already.
            drop(std::fs::remove_dir(&group.0));
            let above = group.0.parent().unwrap_or(&group.0);
            match (above.ends_with(&name), above.parent()) {
                (true, Some(base)) => place::clear(base, &name).map(|()| false),
                (false, slice) => Ok(slice.is_some_and(|slice| place::groups_in(slice).is_empty())),
                (true, None) => Ok(false),
            }
        };
        let done = match blocking("control groups", clear).await {
            Ok(true) => self.stop_slice().await,
            Ok(false) => Ok(()),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = done {
            tracing::warn!(reason, "a control group stays");
        }
    }

    async fn stop_slice(&self) -> Result<(), String> {
        match Manager::find() {
            Some(manager) => manager.stop_slice(&self.name).await,
            None => Ok(()),
        }
    }

    /// Sets what all VMs together get of the host's processors, also those that run.
    pub async fn set_total(&self, limit: Option<CpuLimit>) {
        let members = {
            let mut state = self.state.lock();
            state.total = limit;
            state.members.clone()
        };
        if let Err(reason) = self.put_total(limit).await {
            tracing::warn!(reason, "the limit of all VMs is not held");
        }
        for (vm, member) in members {
            self.hold(vm, member.pid, &member.limits).await;
        }
    }

    async fn put_total(&self, limit: Option<CpuLimit>) -> Result<(), String> {
        let Ok(place) = place::find() else { return Ok(()) };
        match place {
            Place::Systemd(manager) => manager.set_total(&self.name, limit).await,
            Place::Delegated(base) => {
                let group = Group(base.join(&self.name));
                blocking("the control group of all VMs", move || group.set_cpu(limit)).await
            }
        }
    }

    /// Says what holds each limit of a machine that runs, or why nothing does.
    pub fn describe(&self, facts: &RunFacts, spec: &VmSpec) -> Vec<(&'static str, String)> {
        let group = Group::of(facts.pid, facts.uuid);
        let reason = || self.reason(facts.uuid);
        let mut lines = Vec::new();
        if let Some(limit) = spec.cpu_limit {
            let how = match &group {
                Some(group) if group.holds_cpu() => "by cgroup".to_owned(),
                Some(_) | None => {
                    format!("by nice alone, when others want the processors: {}", reason())
                }
            };
            lines.push(("cpu_limit", format!("{limit}, {how}")));
        }
        for (key, size) in [("memory_high", spec.memory_high), ("memory_max", spec.memory_max)] {
            let Some(size) = size else { continue };
            let how = match &group {
                Some(group) if group.holds_memory() => format!("by cgroup{}", taken(group)),
                Some(_) | None => format!("not held: {}", reason()),
            };
            lines.push((key, format!("{}, {how}", render_size(size))));
        }
        lines
    }

    fn reason(&self, vm: Uuid) -> String {
        let state = self.state.lock();
        match state.members.get(&vm).and_then(|member| member.group.clone()) {
            Some(Err(reason)) => reason,
            Some(Ok(_)) | None => UNDELEGATED.to_owned(),
        }
    }
}

const UNDELEGATED: &str = "systemd does not delegate this controller to its users; \
    `systemctl edit user@.service` with Delegate=cpu memory pids";

fn taken(group: &Group) -> String {
    let (now, peak) = group.memory();
    let mebi = |bytes: u64| bytes >> 20;
    let peak = peak.map_or_else(String::new, |peak| format!(", at most {}M", mebi(peak)));
    format!(": {}M taken{peak}", mebi(now))
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    off_thread(work, what).await.map_err(|error| error.to_string())
}

/// A user who is not root cannot take it back before the next start.
fn yield_if(yields: bool, pid: u32) {
    let own = getpriority_process(None).unwrap_or_default();
    let nice = if yields { (own + NICE).min(MOST_NICE) } else { own };
    // Its session is a group of processes too, and that has all its threads.
    let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(Err(error)) = group.map(|group| setpriority_pgrp(Some(group), nice)) {
        tracing::debug!(pid, %error, "cannot be made to yield");
    }
}
