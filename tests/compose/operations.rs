//! What can be done, a row an operation: when it fits, the shell lines that do it, and what is
//! different afterwards. VMs' power and names are here; disks and images in `disks`.
//!
//! The lines are what a user types in the mount; `$STORE` is its store.

use libc::{EALREADY, EBUSY, EEXIST, EHOSTDOWN, EINVAL, EPERM};

use super::model::{Content, IMAGES, Model, Power, ROOM, Running, VMS, Vm};

/// Why a step is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// It is tried, and refused with this errno; nothing changes.
    Errno(i32),
    /// It says nothing, or the model does not know: it is not tried.
    Unfit,
}

pub(crate) type Fits = Result<(), No>;

/// An operation on a VM, or on an image.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// How often it comes, compared with the others.
    pub(crate) weight: usize,
    /// What else it takes: a tag, an image, a setting. One of these is chosen.
    pub(crate) words: fn(&Model, &str) -> Vec<String>,
    pub(crate) fits: fn(&Model, &Step) -> Fits,
    /// The line that is accepted or refused.
    pub(crate) request: fn(&Step) -> String,
    /// What returns when it is done.
    pub(crate) wait: fn(&Model, &Step) -> String,
    /// Carries it out in the model.
    pub(crate) then: fn(&mut Model, &Step),
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// An operation with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) operation: &'static Operation,
    pub(crate) vm: String,
    pub(crate) word: String,
}

impl Step {
    pub(crate) fn fits(&self, model: &Model) -> Fits {
        (self.operation.fits)(model, self)
    }

    /// Returns the whole of it as shell lines.
    pub(crate) fn lines(&self, model: &Model) -> String {
        let (request, wait) = ((self.operation.request)(self), (self.operation.wait)(model, self));
        if wait.is_empty() { request } else { format!("{request}\n{wait}") }
    }
}

pub(crate) fn vm<'a>(model: &'a Model, step: &Step) -> Result<&'a Vm, No> {
    model.vms.get(&step.vm).ok_or(No::Unfit)
}

/// Refuses unless `holds`.
pub(crate) fn require(holds: bool, no: No) -> Fits {
    if holds { Ok(()) } else { Err(no) }
}

pub(crate) fn running(vm: &Vm) -> Result<&Running, No> {
    vm.running.as_ref().ok_or(No::Errno(EHOSTDOWN))
}

fn is_ready(model: &Model, step: &Step) -> Fits {
    require(vm(model, step)?.power == Power::Ready, No::Unfit)
}

fn runs_for(model: &Model, step: &Step, errno: i32) -> Fits {
    require(!vm(model, step)?.power.is_off(), No::Errno(errno))
}

/// Says whether a VM can be started, and would not be refused for a reason of its image's.
fn can_start(model: &Model, step: &Step) -> Fits {
    let vm = vm(model, step)?;
    require(vm.power.is_off(), No::Errno(EALREADY))?;
    require(vm.suspended.is_none() || !vm.set.ephemeral, No::Errno(EINVAL))?;
    let is_read = model.content(&step.vm) == Content::Bytes;
    require(is_read || !vm.set.user_data, No::Errno(EINVAL))?;
    let saved = vm.suspended.as_ref().and_then(|saved| saved.memory.as_ref());
    require(saved.is_none_or(|(_, shape)| *shape == model.shape(vm)), No::Unfit)?;
    require(model.live() < ROOM && model.images.contains_key(&vm.image), No::Unfit)
}

pub(crate) fn none(_: &Model, _: &str) -> Vec<String> {
    vec![String::new()]
}

pub(crate) fn nothing(_: &Model, _: &Step) -> String {
    String::new()
}

fn names(_: &Model, _: &str) -> Vec<String> {
    VMS.iter().map(|&name| name.to_owned()).collect()
}

pub(crate) fn removed(model: &Model, _: &str) -> Vec<String> {
    model.trash.iter().map(|removed| removed.name.clone()).collect()
}

fn images(model: &Model, _: &str) -> Vec<String> {
    let there = IMAGES.iter().filter(|&&image| model.images.contains_key(image));
    let there = there.flat_map(|&image| [image.to_owned(), image.to_owned()]);
    there.chain(["tiny".to_owned()]).collect()
}

/// Waits for a guest.
pub(crate) fn until_ready(model: &Model, step: &Step) -> String {
    match model.content(&step.vm) {
        Content::Guest => ready(&step.vm),
        Content::Bytes => until_status(step, "running"),
    }
}

fn ready(vm: &str) -> String {
    format!("timeout 120 cat {vm}/ready > /dev/null")
}

/// Waits for the end of a transition.
pub(crate) fn until_done(_: &Model, step: &Step) -> String {
    format!("timeout 60 cat {}/wait > /dev/null", step.vm)
}

fn ctl(step: &Step, verb: &str) -> String {
    format!("echo {verb} > {}/ctl", step.vm)
}

pub(crate) fn until_status(step: &Step, word: &str) -> String {
    format!("timeout 60 bash -c 'until grep -q ^{word} {}/status; do sleep 0.1; done'", step.vm)
}

/// Waits for all guests that a new daemon has found.
fn until_all_ready(model: &Model, _: &Step) -> String {
    let live = model.vms.iter().filter(|(_, vm)| vm.power == Power::Ready);
    live.map(|(name, _)| ready(name)).collect::<Vec<_>>().join("\n")
}

fn set_power(model: &mut Model, name: &str, power: Power) {
    if let Some(vm) = model.vms.get_mut(name) {
        vm.set_power(power);
    }
}

/// Where a container's guest has programs, whatever is in its image.
pub(crate) const PROGRAMS: &str = "PATH=$PATH:/dev/aqfs/bin";

/// What a mark is written with: to the disk, to a tmpfs, and as a process that runs.
pub(crate) const WRITE: &str = "cd /root; echo MARK > mark; yes MARK | head -c 300000 > data; \
     cp mark data /dev/shm; [ ! -e /dev/shm/pid ] || kill $(cat /dev/shm/pid); \
     sleep $((1000000 + MARK)) > /dev/null 2>&1 & echo $! > /dev/shm/pid; sync";

/// The same through `fs`, but for the process.
const WRITE_BY_FS: &str =
    "echo MARK > VM/fs/root/mark && { yes MARK || true; } | head -c 300000 > VM/fs/root/data &&
    cp VM/fs/root/mark VM/fs/root/data VM/fs/dev/shm/ && sync VM/fs/root/mark VM/fs/root/data";
const PROCESS: &str = "[ ! -e /dev/shm/pid ] || kill $(cat /dev/shm/pid); \
     sleep $((1000000 + MARK)) > /dev/null 2>&1 & echo $! > /dev/shm/pid; sync";

fn write(model: &mut Model, step: &Step) {
    let Ok(mark) = step.word.parse() else { return };
    model.mark = model.mark.max(mark);
    let Some(vm) = model.vms.get_mut(&step.vm) else { return };
    if let (Some(disk), Some(running)) = (&mut vm.disk, &mut vm.running) {
        (disk.mark, running.memory.mark) = (mark, mark);
    }
}

/// A step that is dropped from a sequence leaves the marks of the others as they were.
fn next_mark(model: &Model, _: &str) -> Vec<String> {
    vec![(model.mark + 1).to_string()]
}

fn removable(model: &Model, step: &Step) -> Fits {
    let vm = vm(model, step)?;
    require(!vm.set.protect, No::Errno(EPERM))?;
    require(vm.power.is_off(), No::Errno(EBUSY))
}

fn newest(step: &Step) -> String {
    format!(".trash/{}@*", step.word)
}

fn undo(model: &mut Model, step: &Step) {
    if let Some(vm) = model.take_removed(&step.word) {
        model.vms.insert(step.vm.clone(), vm);
    }
}

pub(crate) static POWER: &[Operation] = &[
    Operation {
        name: "new",
        weight: 4,
        words: images,
        fits: |model, step| require(!model.vms.contains_key(&step.vm), No::Errno(EEXIST)),
        request: |step| match step.word.as_str() {
            "tiny" => format!("mkdir {}", step.vm),
            image => format!("mkdir {0} && echo {image} > {0}/config/image", step.vm),
        },
        wait: nothing,
        then: |model, step| model.create(&step.vm, &step.word),
    },
    Operation {
        name: "start",
        weight: 24,
        words: none,
        fits: can_start,
        request: |step| ctl(step, "start"),
        wait: until_ready,
        then: |model, step| model.start(&step.vm, Power::Ready),
    },
    Operation {
        name: "start paused",
        weight: 3,
        words: none,
        fits: can_start,
        request: |step| ctl(step, "start paused"),
        wait: until_done,
        then: |model, step| model.start(&step.vm, Power::Paused),
    },
    Operation {
        name: "write",
        weight: 40,
        words: next_mark,
        fits: is_ready,
        request: |step| {
            let text = WRITE.replace("MARK", &step.word);
            format!("echo '{PROGRAMS}; {text}' > {0}/exec && cat {0}/exec", step.vm)
        },
        wait: nothing,
        then: write,
    },
    Operation {
        name: "write by fs",
        weight: 14,
        words: next_mark,
        fits: is_ready,
        request: |step| {
            let (files, process) = (WRITE_BY_FS.replace("VM", &step.vm), PROCESS);
            let process =
                format!("echo '{PROGRAMS}; {process}' > {0}/exec && cat {0}/exec", step.vm);
            format!("{files} && {process}").replace("MARK", &step.word)
        },
        wait: nothing,
        then: write,
    },
    Operation {
        name: "stop",
        weight: 6,
        words: none,
        fits: |model, step| {
            runs_for(model, step, EALREADY)?;
            // Nothing in it would hear of it, which takes half a minute to see.
            require(model.content(&step.vm) == Content::Guest, No::Unfit)
        },
        request: |step| ctl(step, "stop"),
        wait: until_done,
        then: |model, step| model.end(&step.vm, Power::Off),
    },
    Operation {
        name: "kill",
        weight: 3,
        words: none,
        fits: |model, step| match vm(model, step)? {
            // It gives up what is suspended.
            vm if vm.power == Power::Off && vm.suspended.is_some() => Ok(()),
            _ => runs_for(model, step, EALREADY),
        },
        request: |step| ctl(step, "kill"),
        wait: until_done,
        then: |model, step| model.end(&step.vm, Power::Off),
    },
    Operation {
        name: "poweroff in the guest",
        weight: 2,
        words: none,
        fits: is_ready,
        request: |step| format!("echo '{PROGRAMS}; poweroff' > {}/exec", step.vm),
        wait: |_, step| until_status(step, "stopped"),
        then: |model, step| model.end(&step.vm, Power::Off),
    },
    Operation {
        name: "killed QEMU",
        weight: 2,
        words: none,
        fits: |model, step| running(vm(model, step)?).map(drop).map_err(|_| No::Unfit),
        request: |step| format!("kill -KILL $(sed -n 's/^pid //p' {}/info)", step.vm),
        wait: |_, step| until_status(step, "failed"),
        then: |model, step| model.end(&step.vm, Power::Failed),
    },
    Operation {
        name: "pause",
        weight: 10,
        words: |_, _| ["0", "4"].map(str::to_owned).to_vec(),
        fits: |model, step| match vm(model, step)?.power {
            Power::Ready | Power::Running => Ok(()),
            Power::Paused => Err(No::Errno(EALREADY)),
            Power::Off | Power::Failed => Err(No::Errno(EHOSTDOWN)),
        },
        request: |step| ctl(step, "pause"),
        wait: |_, step| match step.word.as_str() {
            "0" => String::new(),
            seconds => format!("sleep {seconds}"),
        },
        then: |model, step| set_power(model, &step.vm, Power::Paused),
    },
    Operation {
        name: "resume",
        weight: 24,
        words: none,
        fits: |model, step| match vm(model, step)?.power {
            Power::Paused => Ok(()),
            Power::Ready | Power::Running => Err(No::Errno(EALREADY)),
            Power::Off | Power::Failed => Err(No::Errno(EHOSTDOWN)),
        },
        request: |step| ctl(step, "resume"),
        wait: until_ready,
        then: |model, step| {
            let power = match model.content(&step.vm) {
                Content::Guest => Power::Ready,
                Content::Bytes => Power::Running,
            };
            set_power(model, &step.vm, power);
        },
    },
    Operation {
        name: "reset",
        weight: 3,
        words: none,
        fits: |model, step| {
            runs_for(model, step, EHOSTDOWN)?;
            is_ready(model, step)
        },
        request: |step| ctl(step, "reset"),
        wait: until_ready,
        then: |model, step| model.reboot(&step.vm),
    },
    Operation {
        name: "rename",
        weight: 3,
        words: names,
        fits: |model, step| {
            vm(model, step)?;
            require(step.vm != step.word, No::Unfit)?;
            require(!model.vms.contains_key(&step.word), No::Errno(EEXIST))
        },
        request: |step| format!("mv -T {} {}", step.vm, step.word),
        wait: nothing,
        then: |model, step| {
            if let Some(vm) = model.vms.remove(&step.vm) {
                model.vms.insert(step.word.clone(), vm);
            }
        },
    },
    Operation {
        name: "rm -r",
        weight: 6,
        words: none,
        fits: removable,
        request: |step| format!("rm -r {}", step.vm),
        wait: nothing,
        then: |model, step| model.remove(&step.vm),
    },
    Operation {
        name: "expire",
        weight: 3,
        words: none,
        fits: |model, step| require(!vm(model, step)?.set.protect, No::Unfit),
        request: |step| format!("echo 1s > {}/config/expire", step.vm),
        wait: |_, step| {
            format!("timeout 60 bash -c 'while [ -e {} ]; do sleep 0.1; done'", step.vm)
        },
        then: |model, step| {
            if model.vms.get(&step.vm).is_some_and(|vm| !vm.power.is_off()) {
                model.end(&step.vm, Power::Off);
            }
            model.remove(&step.vm);
        },
    },
    Operation {
        name: "rmdir",
        weight: 2,
        words: none,
        fits: removable,
        request: |step| format!("rmdir {}", step.vm),
        wait: nothing,
        then: |model, step| model.remove(&step.vm),
    },
    Operation {
        name: "undo",
        weight: 16,
        words: removed,
        fits: |model, step| {
            require(model.trash.iter().any(|r| r.name == step.word), No::Unfit)?;
            require(!model.vms.contains_key(&step.vm), No::Errno(EEXIST))
        },
        request: |step| format!("mv -T $(ls -d {} | tail -n 1) {}", newest(step), step.vm),
        wait: nothing,
        then: undo,
    },
    Operation {
        name: "erase",
        weight: 6,
        words: removed,
        fits: |model, step| {
            let newest = model.trash.iter().any(|r| r.name == step.word);
            require(newest, No::Unfit)
        },
        request: |step| format!("rmdir $(ls -d {} | tail -n 1)", newest(step)),
        wait: nothing,
        then: |model, step| drop(model.take_removed(&step.word)),
    },
    Operation {
        name: "killed daemon",
        weight: 1,
        words: none,
        fits: |model, _| require(model.live() > 0, No::Unfit),
        request: |_| {
            "cd /; kill -KILL $(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' $STORE/lock); \
             aq mount $AQ_MOUNT --store $STORE && cd $AQ_MOUNT"
                .to_owned()
        },
        wait: until_all_ready,
        then: |_, _| {},
    },
    Operation {
        name: "umount and mount",
        weight: 1,
        words: none,
        fits: |model, _| require(model.live() > 0, No::Unfit),
        request: |_| {
            "cd /; aq umount $AQ_MOUNT && aq mount $AQ_MOUNT --store $STORE && cd $AQ_MOUNT"
                .to_owned()
        },
        wait: until_all_ready,
        then: |_, _| {},
    },
];
