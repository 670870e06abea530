//! What can be done with nets, as rows like those of `operations`. There is one net, which VMs join and leave in
//! any state.

use libc::EBUSY;

use super::model::{Model, Power, Vm};
use super::operations::{No, Operation, PROGRAMS, Step, none, nothing, require, vm};

/// The name of the net.
pub(crate) const NET: &str = "lab";

/// The guest follows a moment later.
fn until(model: &Model, step: &Step, condition: &str) -> String {
    let is_ready = model.vms.get(&step.vm).is_some_and(|vm| vm.power == Power::Ready);
    let script = format!("{PROGRAMS}; until {condition}; do sleep 0.1; done");
    match is_ready {
        true => format!("echo '{script}' > {0}/exec; timeout 60 cat {0}/exec", step.vm),
        false => String::new(),
    }
}

fn set(model: &mut Model, step: &Step, is_member: bool) {
    if let Some(vm) = model.vms.get_mut(&step.vm) {
        vm.is_on_net = is_member;
    }
}

pub(crate) static NETS: &[Operation] = &[
    Operation {
        name: "join a net",
        weight: 16,
        words: none,
        fits: |model, step| require(!vm(model, step)?.is_on_net, No::Unfit),
        request: |step| format!("mkdir -p .nets/{NET} && echo {NET} > {}/config/nets", step.vm),
        wait: |model, step| until(model, step, "grep -q \"^# aqfs: the\" /etc/hosts"),
        then: |model, step| set(model, step, true),
    },
    Operation {
        name: "leave a net",
        weight: 6,
        words: none,
        fits: |model, step| require(vm(model, step)?.is_on_net, No::Unfit),
        request: |step| format!("echo none > {}/config/nets", step.vm),
        wait: |model, step| until(model, step, "! grep -q \"^# aqfs: the\" /etc/hosts"),
        then: |model, step| set(model, step, false),
    },
    Operation {
        name: "remove a net",
        weight: 4,
        words: none,
        fits: |model, _| {
            let is_member = |vm: &Vm| vm.is_on_net;
            require(!model.vms.values().any(is_member), No::Errno(EBUSY))?;
            // One that is brought back would want a net that is gone.
            require(!model.trash.iter().any(|removed| is_member(&removed.vm)), No::Unfit)
        },
        request: |_| format!("[ ! -e .nets/{NET} ] || rmdir .nets/{NET}"),
        wait: nothing,
        then: |_, _| {},
    },
];
