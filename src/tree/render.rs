//! The texts of values and tables that are longer than a line of the node table.
//!
//! Tables are flat: `key value` a line, never JSON.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::registry::Registry;
use crate::store::layout::VmDir;
use crate::vm::Vm;
use crate::vm::backend::RunFacts;
use crate::vm::live::InForce;
use crate::vm::spec::net::Mac;
use crate::vm::spec::{VmSpec, render_size, span};
use crate::{proc, sys};

pub(super) fn version() -> String {
    format!("aq {} pid {}\n", env!("CARGO_PKG_VERSION"), std::process::id())
}

pub(super) fn host(registry: &Arc<Registry>) -> String {
    let mut table = KeyValueTable::default();
    for (key, value) in registry.backends().hypervisor.facts() {
        table.add(key, &value);
    }
    let backends = registry.backends();
    if let Some(missing) = backends.missing(&backends.defaults.spec()) {
        table.add("missing", &missing.to_string());
    }
    table.add("cpus", &sys::cpus().to_string());
    table.add("memory_total", &proc::host_memory("MemTotal").to_string());
    let memory = registry.backends().memory.supply();
    table.add("memory_available", &memory.available.to_string());
    table.add("memory_promised", &memory.promised.to_string());
    table.add("memory_free", &memory.free().to_string());
    table.add("vms", &registry.len().to_string());
    table.add("store", &registry.layout().root().display().to_string());
    table.0
}

pub(super) fn info(vm: &Vm) -> String {
    let (view, spec) = (vm.view(), vm.spec());
    let mut table = KeyValueTable::default();
    table.add("name", &vm.name());
    table.add("uuid", &vm.uuid().to_string());
    table.add("status", view.state.word());
    table.add("since", &seconds(view.since));
    table.add("created", &seconds(vm.created()));
    if let Some(left) = vm.expires_in() {
        table.add("expires", &format!("in {}", span::render_about(left)));
    }
    if let Some(doing) = &view.doing {
        table.add("doing", doing);
    }
    table.add("image", &spec.image);
    table.add("cpus", &spec.cpus.to_string());
    table.add("memory", &render_size(spec.memory));
    table.add("mac", &spec.mac.unwrap_or_else(|| Mac::of(vm.uuid())).to_string());
    let nets = vm.nets();
    if !nets.is_empty() {
        let nets: Vec<_> = nets.iter().map(|(net, address)| format!("{net} {address}")).collect();
        table.add("nets", &nets.join(", "));
    }
    let disks = vm.disks().summary();
    if !disks.is_empty() {
        table.add("disks", &disks);
    }
    table.add("disk_bytes", &disk_bytes(vm.dir()).to_string());
    let is_set = spec.user_data.is_some() || spec.network_data.is_some() || spec.ignition.is_some();
    if is_set && vm.dir().disk().exists() {
        table.add("first_boot", "done: it reads user_data, network_data and ignition again after `cloud-init clean` in it");
    }
    table.add("suspended", if vm.is_suspended() { "yes" } else { "no" });
    if let Some(left) = vm.suspends_in() {
        table.add("suspends", &format!("in {}", span::render_about(left)));
    }
    if vm.is_asleep() {
        table.add("wakes", "yes");
    }
    if let Some(facts) = &view.facts {
        running(&mut table, facts);
        if let Some(in_force) = &facts.in_force {
            live(&mut table, in_force, &spec);
            for (key, how) in vm.limits(facts, &in_force.spec) {
                table.add(key, &how);
            }
        }
    }
    if let Some(took) = view.ready_after {
        table.add("ready_ms", &took.as_millis().to_string());
    }
    table.add("console_lost", &vm.console().lost().to_string());
    table.0
}

fn running(table: &mut KeyValueTable, facts: &RunFacts) {
    table.add("pid", &facts.pid.to_string());
    table.add("accel", &format!("{}: {}", facts.accel.kind.word(), facts.accel.reason));
    table.add("cpu", &facts.accel.cpu);
    table.add("qemu", &facts.qemu_version);
    table.add("machine", &facts.machine);
    table.add("hardware", &facts.hardware.to_string());
    table.add("ssh_port", &facts.ssh_port.to_string());
    table.add("image_digest", &facts.image_digest);
    table.add("warm", &facts.warm);
    let usage = proc::usage(facts.pid);
    table.add("cpu_ms", &usage.cpu_ms.to_string());
    table.add("rss", &usage.rss.to_string());
}

/// What of the settings is in force, and what waits for the next start.
fn live(table: &mut KeyValueTable, in_force: &InForce, spec: &VmSpec) {
    let ports: Vec<_> = in_force.forwards.iter().map(|b| b.actual().to_string()).collect();
    if !ports.is_empty() {
        table.add("ports", &ports.join(" "));
    }
    let pending = in_force.pending(spec);
    if !pending.is_empty() {
        table.add("pending", &pending.join(" "));
    }
}

/// What the disk, and data disks of the VM's own, take of the host's: only what differs from the image.
pub(super) fn disk_bytes(vm: &VmDir) -> u64 {
    let data = std::fs::read_dir(vm.data_disks()).into_iter().flatten().flatten();
    let files = data.map(|entry| entry.path()).chain([vm.disk()]);
    files.filter_map(|path| Some(std::fs::metadata(path).ok()?.blocks() * 512)).sum()
}

pub(super) fn seconds(time: std::time::SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string()
}

#[derive(Default)]
struct KeyValueTable(String);

impl KeyValueTable {
    fn add(&mut self, key: &str, value: &str) {
        let line = value.lines().next().unwrap_or_default();
        // Writing to a string cannot fail.
        let _infallible = writeln!(self.0, "{key} {line}");
    }
}
