//! Defects that are known and not mended yet: what would show them is left out, so that others are
//! found. `AQFS_COMPOSE_ALL=1` leaves nothing out. A row goes when its defect is mended.

use super::model::{Model, Shape};
use super::operations::Step;

/// What the defect is, and the steps that show it.
type Known = (&'static str, fn(&Model, &Step) -> bool);

const KNOWN: &[Known] = &[
    ("the memory of a clone that is saved cannot be loaded in another QEMU", |model, step| {
        let running = model.vms.get(&step.vm).and_then(|vm| vm.running.as_ref());
        matches!(step.operation.name, "suspend" | "snapshot") && running.is_some_and(|r| r.warm)
    }),
    ("`rm -r` that is undone has lost the snapshots, and what was suspended", |model, step| {
        let vm = model.vms.get(&step.vm);
        let has = vm.is_some_and(|vm| !vm.snapshots.is_empty() || vm.suspended.is_some());
        step.operation.name == "rm -r" && has
    }),
    ("the clock of a guest that was paused is behind", |_, step| {
        step.operation.name == "pause" && step.word != "0"
    }),
    ("a VM has not its image's memory and processors", |model, step| {
        let vm = model.vms.get(&step.vm);
        let other = vm.is_some_and(|vm| {
            let shape = vm.running.as_ref().map_or_else(|| model.shape(vm), |r| r.shape);
            shape != Shape { cpus: 1, memory: 256 } || vm.disk.is_some_and(|disk| disk.size != 2)
        });
        step.operation.name.starts_with("image of") && other
    }),
];

/// Says whether a step is left out.
pub(crate) fn is_left_out(model: &Model, step: &Step) -> bool {
    std::env::var_os("AQFS_COMPOSE_ALL").is_none() && KNOWN.iter().any(|(_, is)| is(model, step))
}
