//! `.metrics`: figures in Prometheus' text format, with base units and `_total` for counters.

use std::fmt::Write;
use std::sync::Arc;

use super::render::disk_bytes;
use crate::proc;
use crate::registry::Registry;
use crate::vm::Vm;
use crate::vm::state::State;

/// A figure: what `# HELP` and `# TYPE` say of it, and its value for each VM that has one.
struct Metric {
    name: &'static str,
    help: &'static str,
    value: fn(&Vm) -> Option<f64>,
}

/// The figures of each VM: one row a figure.
const METRICS: &[Metric] = &[
    Metric {
        name: "aqfs_vm_up",
        help: "Whether QEMU runs the VM.",
        value: |vm| Some(f64::from(u8::from(vm.view().facts.is_some()))),
    },
    Metric {
        name: "aqfs_vm_ready",
        help: "Whether commands can be run in the guest.",
        value: |vm| Some(f64::from(u8::from(vm.state() == State::Ready))),
    },
    Metric {
        name: "aqfs_vm_cpu_seconds_total",
        help: "Processor time of the VM's QEMU since its start.",
        value: |vm| usage(vm).map(|u| real(u.cpu_ms) / 1000.0),
    },
    Metric {
        name: "aqfs_vm_resident_bytes",
        help: "Resident memory of the VM's QEMU.",
        value: |vm| usage(vm).map(|u| real(u.rss)),
    },
    Metric {
        name: "aqfs_vm_memory_bytes",
        help: "Memory that the guest is given.",
        value: |vm| Some(real(vm.spec().memory)),
    },
    Metric {
        name: "aqfs_vm_disk_bytes",
        help: "What the VM's disk takes of the host's.",
        value: |vm| Some(real(disk_bytes(vm.dir()))),
    },
    Metric {
        name: "aqfs_vm_ready_seconds",
        help: "Time from the start to the first command that worked.",
        value: |vm| vm.view().ready_after.map(|d| d.as_secs_f64()),
    },
    Metric {
        name: "aqfs_vm_console_lost_bytes_total",
        help: "Bytes of the serial line that slow readers have lost.",
        value: |vm| Some(real(vm.console().lost())),
    },
];

pub(super) fn print(registry: &Arc<Registry>) -> String {
    let mut text = String::new();
    let vms = registry.list();
    states(&mut text, &vms);
    for metric in METRICS {
        head(&mut text, metric.name, metric.help);
        for (name, vm) in &vms {
            if let Some(value) = (metric.value)(vm) {
                sample(&mut text, metric.name, &format!("vm=\"{name}\""), value);
            }
        }
    }
    let own = proc::usage(std::process::id());
    daemon(&mut text, "aqfs_daemon_cpu_seconds_total", real(own.cpu_ms) / 1000.0);
    daemon(&mut text, "aqfs_daemon_resident_bytes", real(own.rss));
    text
}

/// How many VMs are in each state; every state has its line, so that a graph has no gaps.
fn states(text: &mut String, vms: &[(String, Vm)]) {
    head(text, "aqfs_vms", "Virtual machines by state.");
    for word in State::WORDS {
        let count = vms.iter().filter(|(_, vm)| vm.state().word() == word).count();
        sample(text, "aqfs_vms", &format!("state=\"{word}\""), real(count as u64));
    }
}

fn daemon(text: &mut String, name: &str, value: f64) {
    head(text, name, "The daemon itself.");
    sample(text, name, "", value);
}

// Writing to a string cannot fail.
fn head(text: &mut String, name: &str, help: &str) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let _infallible = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &str, value: f64) {
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _infallible = writeln!(text, "{name}{labels} {value}");
}

fn usage(vm: &Vm) -> Option<proc::Usage> {
    vm.view().facts.map(|facts| proc::usage(facts.pid))
}

#[allow(clippy::cast_precision_loss)]
fn real(number: u64) -> f64 {
    // Exact up to 2^53, which is more than any of these figures.
    number as f64
}
