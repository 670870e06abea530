//! What can be done with shares: a directory of the host in a guest, as rows like those of `operations`. A VM
//! has one share at the most; each is a directory of its own beside the store, with a file that both sides
//! write.

use libc::{EEXIST, ENOENT};

use super::model::{Model, Power};
use super::operations::{No, Operation, PROGRAMS, Step, none, nothing, require, vm};

/// The directory with a number.
fn source(number: &str) -> String {
    format!("$STORE.shared/{number}")
}

fn next_source(model: &Model, _: &str) -> Vec<String> {
    let last = model.shared.last_key_value();
    vec![last.map_or(0, |(number, _)| number + 1).to_string()]
}

/// The share of the step's VM and a new mark: `SHARE MARK`.
fn share_and_mark(model: &Model, name: &str) -> Vec<String> {
    let share = model.vms.get(name).and_then(|vm| vm.share);
    share.map(|share| format!("{share} {}", model.mark + 1)).into_iter().collect()
}

fn write(model: &mut Model, step: &Step) {
    let mut numbers = step.word.split(' ').filter_map(|number| number.parse::<u32>().ok());
    let (Some(share), Some(mark)) = (numbers.next(), numbers.next()) else { return };
    model.mark = model.mark.max(mark);
    model.shared.insert(share, mark);
}

fn file_and_mark(step: &Step) -> (String, &str) {
    let (share, mark) = step.word.split_once(' ').unwrap_or_default();
    (format!("{}/mark", source(share)), mark)
}

fn is_ready(model: &Model, step: &Step) -> bool {
    model.vms.get(&step.vm).is_some_and(|vm| vm.power == Power::Ready)
}

/// The guest follows a moment later.
fn until_shared(model: &Model, step: &Step) -> String {
    let script = format!("until grep -q ^mounted {}/shares/s/status; do sleep 0.1; done", step.vm);
    if is_ready(model, step) { format!("timeout 60 bash -c '{script}'") } else { String::new() }
}

/// No file says when the guest has it no more.
fn until_unshared(model: &Model, step: &Step) -> String {
    let script = "while grep -q \" nfs \" /proc/mounts; do sleep 0.1; done";
    match is_ready(model, step) {
        true => format!("echo '{PROGRAMS}; {script}' > {0}/exec; timeout 60 cat {0}/exec", step.vm),
        false => String::new(),
    }
}

pub(crate) static SHARES: &[Operation] = &[
    Operation {
        name: "share",
        weight: 20,
        words: next_source,
        fits: |model, step| require(vm(model, step)?.share.is_none(), No::Errno(EEXIST)),
        request: |step| {
            let dir = source(&step.word);
            format!(
                "mkdir {0}/shares/s && mkdir -p {dir} && echo 0 > {dir}/mark && echo {dir} > {0}/shares/s/source",
                step.vm
            )
        },
        wait: until_shared,
        then: |model, step| {
            let Ok(number) = step.word.parse() else { return };
            model.shared.insert(number, 0);
            if let Some(vm) = model.vms.get_mut(&step.vm) {
                vm.share = Some(number);
            }
        },
    },
    Operation {
        name: "unshare",
        weight: 5,
        words: none,
        fits: |model, step| require(vm(model, step)?.share.is_some(), No::Errno(ENOENT)),
        request: |step| format!("rmdir {}/shares/s", step.vm),
        wait: until_unshared,
        then: |model, step| {
            if let Some(vm) = model.vms.get_mut(&step.vm) {
                vm.share = None;
            }
        },
    },
    Operation {
        name: "write to the share in the guest",
        weight: 40,
        words: share_and_mark,
        fits: |model, step| {
            require(vm(model, step)?.power == Power::Ready && !step.word.is_empty(), No::Unfit)
        },
        request: |step| {
            let (_, mark) = file_and_mark(step);
            let text = format!("{PROGRAMS}; echo {mark} > /mnt/s/mark");
            format!("echo '{text}' > {0}/exec && cat {0}/exec", step.vm)
        },
        wait: nothing,
        then: write,
    },
    Operation {
        name: "write to the share on the host",
        weight: 16,
        words: share_and_mark,
        fits: |_, step| require(!step.word.is_empty(), No::Unfit),
        request: |step| {
            let (file, mark) = file_and_mark(step);
            format!("echo {mark} > {file}")
        },
        wait: nothing,
        then: write,
    },
];
