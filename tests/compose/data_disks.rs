//! What can be done with data disks, as rows like those of `operations`. A VM has one at the most, with a mark at
//! its beginning.

use libc::EEXIST;

use super::model::{Model, Power};
use super::operations::{No, Operation, PROGRAMS, none, nothing, require, vm};

/// Defines a function of the guest's shell that names the device.
pub(crate) const DEVICE: &str = "dev() { for b in /sys/block/vd*; do [ \"$(cat $b/serial)\" != d ] || echo /dev/${b##*/}; done; }";

fn next_mark(model: &Model, _: &str) -> Vec<String> {
    vec![(model.mark + 1).to_string()]
}

pub(crate) static DATA_DISKS: &[Operation] = &[
    Operation {
        name: "data disk",
        weight: 20,
        words: none,
        fits: |model, step| require(vm(model, step)?.data.is_none(), No::Errno(EEXIST)),
        request: |step| format!("mkdir {0}/disks/d && echo 16M > {0}/disks/d/size", step.vm),
        wait: nothing,
        then: |model, step| {
            if let Some(vm) = model.vms.get_mut(&step.vm) {
                vm.data = Some(0);
            }
        },
    },
    Operation {
        name: "write to the data disk",
        weight: 30,
        words: next_mark,
        fits: |model, step| {
            let vm = vm(model, step)?;
            require(vm.power == Power::Ready && vm.data.is_some(), No::Unfit)
        },
        request: |step| {
            let write = format!("printf %-16s {} | dd of=$(dev) conv=fsync", step.word);
            let until = "until [ -n \"$(dev)\" ]; do sleep 0.1; done";
            format!(
                "cat > {0}/exec <<'END'\n{PROGRAMS}\n{DEVICE}; {until}; {write} 2> /dev/null\nEND\ntimeout 60 cat {0}/exec",
                step.vm
            )
        },
        wait: nothing,
        then: |model, step| {
            let Ok(mark) = step.word.parse() else { return };
            model.mark = model.mark.max(mark);
            if let Some(vm) = model.vms.get_mut(&step.vm) {
                vm.data = Some(mark);
            }
        },
    },
];
