//! Operations on disks: snapshots, images, templates, sizes; and settings.

use std::iter;

use libc::{EBUSY, EEXIST, EHOSTDOWN, EHOSTUNREACH, EINVAL, ENOENT};

use super::model::{Content, IMAGES, Memory, Model, Power, ROOM, TAGS, VMS, Vm};
use super::operations::{
    Fits, No, Operation, Step, none, nothing, require, running, until_done, until_ready, vm,
};

fn tags(_: &Model, _: &str) -> Vec<String> {
    TAGS.iter().map(|&tag| tag.to_owned()).collect()
}

/// Prefers those that are there.
fn taken_tags(model: &Model, name: &str) -> Vec<String> {
    let there = model.vms.get(name).into_iter().flat_map(|vm| vm.snapshots.keys().cloned());
    let there: Vec<String> = there.collect();
    if there.is_empty() { tags(model, name) } else { there }
}

/// A new name and one that is there, or an image and a snapshot: `OLD NEW`.
fn pairs(model: &Model, name: &str, with: &[&str]) -> Vec<String> {
    let there = taken_tags(model, name);
    there.iter().flat_map(|tag| with.iter().map(move |other| format!("{tag} {other}"))).collect()
}

pub(crate) fn pair(step: &Step) -> (&str, &str) {
    step.word.split_once(' ').unwrap_or((&step.word, ""))
}

pub(crate) fn images(_: &Model, _: &str) -> Vec<String> {
    IMAGES.iter().map(|&image| image.to_owned()).collect()
}

pub(crate) fn every_image(_: &Model, _: &str) -> Vec<String> {
    IMAGES.iter().copied().chain(iter::once("tiny")).map(str::to_owned).collect()
}

/// A VM with a disk that snapshots can be taken of, and dropped from.
pub(crate) fn has_disk(vm: &Vm) -> Fits {
    require(vm.disk.is_some(), No::Errno(ENOENT))?;
    let thrown = vm.running.as_ref().is_some_and(|running| running.thrown.is_some());
    require(!thrown, No::Errno(EINVAL))
}

fn can_restore(model: &Model, step: &Step) -> Fits {
    let vm = vm(model, step)?;
    has_disk(vm)?;
    let saved = vm.snapshots.get(&step.word).ok_or(No::Errno(ENOENT))?;
    match (&vm.running, &saved.memory) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(No::Errno(EBUSY)),
        (Some(running), Some((_, shape))) => require(running.shape == *shape, No::Errno(EBUSY)),
    }
}

fn restore(model: &mut Model, step: &Step) {
    let Some(vm) = model.vms.get_mut(&step.vm) else { return };
    if let Some(saved) = vm.snapshots.get(&step.word).cloned() {
        vm.restore(&saved);
    }
}

/// Waits for the end, and for the guest, whose clock is set after a long pause.
pub(crate) fn until_back(model: &Model, step: &Step) -> String {
    let ready = model.vms.get(&step.vm).is_some_and(|vm| vm.power == Power::Ready);
    let done = until_done(model, step);
    if ready { format!("{done}\n{}", until_ready(model, step)) } else { done }
}

fn take(model: &mut Model, step: &Step) {
    let Some(vm) = model.vms.get_mut(&step.vm) else { return };
    if let Some(saved) = vm.save() {
        vm.snapshots.insert(step.word.clone(), saved);
    }
}

fn suspend(model: &mut Model, step: &Step) {
    let Some(vm) = model.vms.get_mut(&step.vm) else { return };
    vm.suspended = vm.save();
    model.end(&step.vm, Power::Off);
}

pub(crate) fn is_new(model: &Model, image: &str) -> Fits {
    require(!model.images.contains_key(image), No::Unfit)
}

fn can_publish(model: &Model, step: &Step) -> Fits {
    is_new(model, &step.word)?;
    let vm = vm(model, step)?;
    require(vm.disk.is_some(), No::Errno(ENOENT))?;
    require(vm.power != Power::Running, No::Errno(EBUSY))?;
    has_disk(vm)?;
    // The memory of a guest with a data disk makes no image.
    require(vm.power.is_off() || vm.data.is_none(), No::Unfit)?;
    require(vm.power != Power::Paused, No::Errno(EHOSTUNREACH))
}

fn publish(model: &mut Model, step: &Step) {
    let (tag, image) = match step.word.split_once(' ') {
        Some((tag, image)) => (Some(tag), image),
        None => (None, step.word.as_str()),
    };
    if let Some(vm) = model.vms.get(&step.vm).cloned() {
        model.publish(image, &vm, tag.and_then(|tag| vm.snapshots.get(tag)));
    }
}

fn make_image(image: &str, source: &str) -> String {
    format!(
        "mkdir .images/{image}; echo {source} > .images/{image}/source || ! rmdir .images/{image}"
    )
}

fn until_made(image: &str, vm: &str) -> String {
    format!(
        "timeout 120 cat .images/{image}/wait > /dev/null; grep -q ready .images/{image}/status\n\
         timeout 60 cat {vm}/wait > /dev/null"
    )
}

/// An image that is there, and whose VMs answer.
pub(crate) fn has_guest(model: &Model, image: &str) -> Fits {
    let image = model.images.get(image).ok_or(No::Unfit)?;
    require(image.disk.content == Content::Guest, No::Unfit)
}

pub(crate) fn until_warm(image: &str) -> String {
    format!("timeout 240 cat .images/{image}/wait > /dev/null; grep -q ^yes .images/{image}/warm")
}

pub(crate) fn warm(model: &mut Model, image: &str) {
    if let Some(image) = model.images.get_mut(image) {
        let memory = Memory { mark: 0, hostname: String::new() };
        let size = image.disk.at_least(image.disk_setting).size;
        image.template = Some((memory, image.gives(), size));
    }
}

/// `KEY VALUE`.
fn settings(_: &Model, _: &str) -> Vec<String> {
    let all = ["memory 128M", "memory 192M", "memory 256M", "cpus 1", "cpus 2", "cpus default"];
    let more = ["memory default", "hostname h", "hostname default", "protect 1", "protect 0"];
    let more = more.iter().chain(&["ephemeral 1", "ephemeral 0", "ephemeral 0"]);
    let wrong = ["memory 1K", "hostname -x", "cpus many"];
    all.iter().chain(more).chain(&wrong).map(|&word| word.to_owned()).collect()
}

fn can_set(model: &Model, step: &Step) -> Fits {
    vm(model, step)?;
    match step.word.as_str() {
        "memory 1K" => Err(No::Errno(libc::ERANGE)),
        "hostname -x" | "cpus many" => Err(No::Errno(EINVAL)),
        _ => Ok(()),
    }
}

fn write_setting(step: &Step) -> String {
    let (key, value) = pair(step);
    format!("echo '{value}' > {}/config/{key}", step.vm)
}

fn set(model: &mut Model, step: &Step) {
    let Some(vm) = model.vms.get_mut(&step.vm) else { return };
    let (key, value) = pair(step);
    let number = value.trim_end_matches('M').parse().ok();
    match key {
        "memory" => vm.set.memory = number,
        "cpus" => {
            vm.set.cpus = number;
            grow(model, &step.vm);
        }
        "hostname" => vm.set.hostname = (value != "default").then(|| value.to_owned()),
        "protect" => vm.set.protect = value == "1",
        "ephemeral" => vm.set.ephemeral = value == "1",
        "user_data" => vm.set.user_data = value != "none",
        other => unreachable!("{other} is no setting of the table"),
    }
}

/// A guest that answers gets more processors at once.
fn grow(model: &mut Model, name: &str) {
    let wanted = model.shape(&model.vms[name]).cpus;
    let Some(vm) = model.vms.get_mut(name).filter(|vm| vm.power == Power::Ready) else { return };
    if let Some(running) = &mut vm.running {
        running.shape.cpus = running.shape.cpus.max(wanted);
    }
}

fn can_resize(model: &Model, step: &Step) -> Fits {
    let vm = vm(model, step)?;
    let size =
        vm.disk.map_or(0, |disk| disk.size).max(vm.running.as_ref().and(vm.set.disk).unwrap_or(0));
    let thrown = vm.running.as_ref().is_some_and(|running| running.thrown.is_some());
    require(!thrown, No::Unfit)?;
    let wanted: u32 = step.word.parse().map_err(|_| No::Unfit)?;
    require(wanted >= size, No::Errno(EINVAL))
}

fn resize(model: &mut Model, step: &Step) {
    let Some(vm) = model.vms.get_mut(&step.vm) else { return };
    vm.set.disk = step.word.parse().ok();
    if let (Some(disk), Some(_)) = (&mut vm.disk, &vm.running) {
        disk.size = vm.set.disk.unwrap_or(disk.size);
    }
}

fn can_fork(model: &Model, step: &Step) -> Fits {
    let vm = vm(model, step)?;
    require(!model.vms.contains_key(&step.word), No::Errno(EEXIST))?;
    match vm.power {
        Power::Off | Power::Failed => return Err(No::Errno(EHOSTDOWN)),
        Power::Running => return Err(No::Errno(EBUSY)),
        Power::Paused => return Err(No::Errno(EHOSTUNREACH)),
        Power::Ready => {}
    }
    has_disk(vm)?;
    require(model.live() < ROOM, No::Unfit)
}

pub(crate) static DISKS: &[Operation] = &[
    Operation {
        name: "fork",
        weight: 16,
        words: |_, _| VMS.iter().map(|&name| name.to_owned()).collect(),
        fits: can_fork,
        request: |step| format!("echo fork {} > {}/ctl", step.word, step.vm),
        wait: |_, step| {
            format!("timeout 120 cat {}/ready {}/ready > /dev/null", step.word, step.vm)
        },
        then: |model, step| model.fork(&step.vm, &step.word),
    },
    Operation {
        name: "suspend",
        weight: 12,
        words: none,
        fits: |model, step| {
            let vm = vm(model, step)?;
            running(vm)?;
            has_disk(vm)
        },
        request: |step| format!("echo suspend > {}/ctl", step.vm),
        wait: until_done,
        then: suspend,
    },
    Operation {
        name: "idle",
        weight: 4,
        words: none,
        fits: |model, step| {
            let vm = vm(model, step)?;
            require(vm.power == Power::Ready, No::Unfit)?;
            has_disk(vm).map_err(|_| No::Unfit)
        },
        request: |step| format!("echo 1s > {}/config/idle", step.vm),
        wait: |_, step| {
            format!(
                "timeout 120 bash -c 'until grep -q \"^wakes yes\" {0}/info; do sleep 0.1; done'\n\
                 echo never > {0}/config/idle",
                step.vm
            )
        },
        then: suspend,
    },
    Operation {
        name: "snapshot",
        weight: 10,
        words: tags,
        fits: |model, step| {
            let vm = vm(model, step)?;
            has_disk(vm)?;
            require(!vm.snapshots.contains_key(&step.word), No::Errno(EEXIST))
        },
        request: |step| format!("mkdir {}/snapshots/{}", step.vm, step.word),
        wait: until_back,
        then: take,
    },
    Operation {
        name: "restore",
        weight: 20,
        words: taken_tags,
        fits: can_restore,
        request: |step| format!("echo restore {} > {}/ctl", step.word, step.vm),
        wait: until_back,
        then: restore,
    },
    Operation {
        name: "drop of a snapshot",
        weight: 4,
        words: taken_tags,
        fits: |model, step| {
            let vm = vm(model, step)?;
            has_disk(vm)?;
            require(vm.snapshots.contains_key(&step.word), No::Errno(ENOENT))
        },
        request: |step| format!("rmdir {}/snapshots/{}", step.vm, step.word),
        wait: until_back,
        then: |model, step| {
            let Some(vm) = model.vms.get_mut(&step.vm) else { return };
            vm.snapshots.remove(&step.word);
            if vm.running.is_none() {
                vm.marked.insert(step.word.clone());
            }
        },
    },
    Operation {
        name: "rename of a snapshot",
        weight: 12,
        words: |model, name| pairs(model, name, TAGS),
        fits: |model, step| {
            let (vm, (from, to)) = (vm(model, step)?, pair(step));
            require(from != to && vm.disk.is_some(), No::Unfit)?;
            require(vm.snapshots.contains_key(from), No::Errno(ENOENT))?;
            require(vm.running.is_none(), No::Errno(EBUSY))?;
            require(!vm.snapshots.contains_key(to), No::Errno(EEXIST))
        },
        request: |step| {
            let (from, to) = pair(step);
            format!("mv -T {0}/snapshots/{from} {0}/snapshots/{to}", step.vm)
        },
        wait: until_done,
        then: |model, step| {
            let Some(vm) = model.vms.get_mut(&step.vm) else { return };
            let (from, to) = pair(step);
            if let Some(saved) = vm.snapshots.remove(from) {
                vm.snapshots.insert(to.to_owned(), saved);
            }
        },
    },
    Operation {
        name: "image of a VM",
        weight: 8,
        words: images,
        fits: can_publish,
        request: |step| make_image(&step.word, &step.vm),
        wait: |model, step| {
            format!("{}\n{}", until_made(&step.word, &step.vm), until_back(model, step))
        },
        then: publish,
    },
    Operation {
        name: "image of a snapshot",
        weight: 12,
        words: |model, name| pairs(model, name, IMAGES),
        fits: |model, step| {
            let (vm, (tag, image)) = (vm(model, step)?, pair(step));
            is_new(model, image)?;
            require(vm.disk.is_some() && vm.snapshots.contains_key(tag), No::Unfit)?;
            require(vm.running.is_none(), No::Errno(EBUSY))
        },
        request: |step| {
            let (tag, image) = pair(step);
            make_image(image, &format!("{}@{tag}", step.vm))
        },
        wait: |_, step| until_made(pair(step).1, &step.vm),
        then: publish,
    },
    Operation {
        name: "warm",
        weight: 2,
        words: every_image,
        fits: |model, step| has_guest(model, &step.word),
        request: |step| format!("echo warm > .images/{}/ctl", step.word),
        wait: |_, step| until_warm(&step.word),
        then: |model, step| warm(model, &step.word),
    },
    Operation {
        name: "cold",
        weight: 1,
        words: every_image,
        fits: |model, step| {
            let image = model.images.get(&step.word).ok_or(No::Unfit)?;
            require(image.template.is_some(), No::Unfit)
        },
        request: |step| format!("echo cold > .images/{}/ctl", step.word),
        wait: nothing,
        then: |model, step| {
            if let Some(image) = model.images.get_mut(&step.word) {
                image.template = None;
            }
        },
    },
    Operation {
        name: "removal of an image",
        weight: 3,
        words: images,
        fits: |model, step| {
            require(model.images.contains_key(&step.word), No::Unfit)?;
            require(!model.is_used(&step.word), No::Errno(EBUSY))
        },
        request: |step| format!("rmdir .images/{}", step.word),
        wait: nothing,
        then: |model, step| drop(model.images.remove(&step.word)),
    },
    Operation {
        name: "setting",
        weight: 6,
        words: settings,
        fits: can_set,
        request: write_setting,
        wait: nothing,
        then: set,
    },
    Operation {
        name: "limit",
        weight: 6,
        words: |_, _| {
            ["io_limit 40M 4000iops", "io_limit none", "cpu_limit 1.5", "cpu_limit none"]
                .iter()
                .chain(&["memory_high 1G", "memory_max 2G", "memory_max none", "io_limit fast"])
                .map(|&word| word.to_owned())
                .collect()
        },
        fits: |model, step| {
            vm(model, step)?;
            require(step.word != "io_limit fast", No::Errno(EINVAL))
        },
        request: write_setting,
        wait: nothing,
        // It holds the machine, and changes nothing that is looked into.
        then: |_, _| (),
    },
    Operation {
        name: "user data",
        weight: 8,
        words: |_, _| {
            ["user_data #cloud-config", "user_data none", "user_data [no"]
                .map(str::to_owned)
                .to_vec()
        },
        fits: |model, step| {
            vm(model, step)?;
            require(step.word != "user_data [no", No::Errno(EINVAL))
        },
        request: write_setting,
        wait: nothing,
        then: set,
    },
    Operation {
        name: "resize",
        weight: 2,
        words: |_, _| ["2", "3", "4"].map(str::to_owned).to_vec(),
        fits: can_resize,
        request: |step| format!("echo resize {}G > {}/ctl", step.word, step.vm),
        wait: nothing,
        then: resize,
    },
];

#[cfg(test)]
mod tests {
    use super::super::all_operations;
    use super::*;

    fn step(name: &str, vm: &str, word: &str) -> Step {
        let mut rows = all_operations();
        let operation = rows.find(|o| o.name == name).unwrap();
        Step { operation, vm: vm.to_owned(), word: word.to_owned() }
    }

    fn done(model: &mut Model, steps: &[(&str, &str, &str)]) {
        for (name, vm, word) in steps {
            let step = step(name, vm, word);
            assert_eq!(step.fits(model), Ok(()), "{name} {vm} {word}");
            (step.operation.then)(model, &step);
        }
    }

    #[test]
    fn a_restore_brings_both_back_and_refuses_what_cannot_be() {
        let mut model = Model::default();
        done(&mut model, &[("new", "a", "tiny"), ("start", "a", ""), ("write", "a", "7")]);
        done(&mut model, &[("snapshot", "a", "s"), ("write", "a", "8"), ("restore", "a", "s")]);
        let vm = &model.vms["a"];
        assert_eq!((vm.disk.unwrap().mark, vm.running.clone().unwrap().memory.mark), (7, 7));
        done(&mut model, &[("stop", "a", ""), ("snapshot", "a", "t"), ("setting", "a", "cpus 2")]);
        done(&mut model, &[("start", "a", "")]);
        for tag in ["s", "t"] {
            assert_eq!(step("restore", "a", tag).fits(&model), Err(No::Errno(EBUSY)), "{tag}");
        }
        assert_eq!(step("restore", "a", "u").fits(&model), Err(No::Errno(ENOENT)));
    }

    #[test]
    fn what_a_suspend_saved_is_gone_after_the_start_or_a_restore() {
        let mut model = Model::default();
        done(&mut model, &[("new", "a", "tiny"), ("start", "a", ""), ("snapshot", "a", "s")]);
        done(&mut model, &[("write", "a", "7"), ("suspend", "a", ""), ("start", "a", "")]);
        assert_eq!(model.vms["a"].running.clone().unwrap().memory.mark, 7);
        done(&mut model, &[("suspend", "a", ""), ("restore", "a", "s"), ("start", "a", "")]);
        assert_eq!(model.vms["a"].running.clone().unwrap().memory.mark, 0);
    }

    #[test]
    fn every_line_names_what_it_is_about() {
        let model = Model::default();
        for operation in all_operations() {
            let step = Step { operation, vm: "a".to_owned(), word: "s 4".to_owned() };
            assert!(!step.lines(&model).is_empty() && operation.weight > 0, "{operation:?}");
        }
    }
}
