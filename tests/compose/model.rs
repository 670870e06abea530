//! The model: what each VM's disk and memory hold, as plain values. It shares no code with what it
//! judges.
//!
//! A mark is a number that a step writes into the guest: to its disk, to a tmpfs, and into the
//! arguments of a process. Not here: which steps there are (`operations`), and looking (`checker`).

use std::collections::{BTreeMap, BTreeSet};

/// The names that VMs, images and snapshots are given: few, so that steps meet.
pub(crate) const VMS: &[&str] = &["a", "b", "c", "d", "e"];
pub(crate) const IMAGES: &[&str] = &["i", "j", "k"];
pub(crate) const TAGS: &[&str] = &["s", "t", "suspended"];
/// How many QEMUs run at most.
pub(crate) const ROOM: usize = 3;

/// The default settings of `tiny`, in GiB and MiB.
const DISK: u32 = 2;
const MEMORY: u32 = 256;
const CPUS: u32 = 1;
/// What the row of the distribution says.
const DISTRIBUTION_MEMORY: u32 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    /// Off, and its QEMU was killed.
    Failed,
    /// QEMU runs a disk that has no guest of ours, which nothing answers for.
    Running,
    Ready,
    Paused,
}

impl Power {
    /// The first word of `status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Off => "stopped",
            Self::Failed => "failed",
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Paused => "paused",
        }
    }

    pub(crate) fn is_off(self) -> bool {
        matches!(self, Self::Off | Self::Failed)
    }
}

/// A disk: its mark, 0 for none, and its size in GiB; what it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) mark: u32,
    pub(crate) size: u32,
    /// Of its image's source, 0 for one without.
    pub(crate) version: u32,
    pub(crate) content: Content,
}

impl Disk {
    pub(crate) fn at_least(self, size: Option<u32>) -> Self {
        Self { size: self.size.max(size.unwrap_or(0)), ..self }
    }
}

/// What is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The file system of a guest that answers.
    Guest,
    /// Nothing that boots.
    Bytes,
}

/// What an image is made of, if it is no VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It comes with aqfs.
    Tiny,
    /// An image in a registry, always of the same version.
    Registry,
    /// A container image in a file.
    Archive,
    /// An archive of a root file system.
    RootFs,
    /// A distribution's disk on the mirror, without a guest.
    Distribution,
    /// An empty disk.
    Blank,
}

impl Source {
    /// Those that an image can be given.
    pub(crate) const ALL: [Self; 5] =
        [Self::Registry, Self::Archive, Self::RootFs, Self::Distribution, Self::Blank];

    /// What is written to `source`.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Tiny => "builtin:tiny",
            Self::Registry => "oci:127.0.0.1:$REGISTRY/x",
            Self::Archive => "oci-archive:$SOURCES/archive.tar",
            Self::RootFs => "$SOURCES/root.tar",
            Self::Distribution => "mine",
            Self::Blank => "builtin:blank",
        }
    }
}

/// A guest's memory: its mark, 0 for none, and the host name that the guest knows; none if it has not
/// booted yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) mark: u32,
    pub(crate) hostname: String,
}

/// What a saved memory fits only if it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) cpus: u32,
    /// In MiB.
    pub(crate) memory: u32,
}

/// A point in a VM's past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) disk: Disk,
    pub(crate) memory: Option<(Memory, Shape)>,
    /// The mark on the data disk, if there was one.
    pub(crate) data: Option<u32>,
}

/// What a QEMU runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) memory: Memory,
    pub(crate) shape: Shape,
    /// The host name that its guest is given when it boots.
    pub(crate) seed: String,
    /// It was resumed from a template.
    pub(crate) warm: bool,
    /// What its disk is again when it ends, if it runs ephemeral.
    pub(crate) thrown: Option<Disk>,
}

/// The settings that were written; `None` for those that were not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) cpus: Option<u32>,
    pub(crate) memory: Option<u32>,
    pub(crate) disk: Option<u32>,
    pub(crate) hostname: Option<String>,
    pub(crate) protect: bool,
    pub(crate) user_data: bool,
    pub(crate) ephemeral: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Vm {
    /// Stays when the VM is renamed, removed and brought back.
    pub(crate) id: u32,
    pub(crate) power: Power,
    pub(crate) image: String,
    pub(crate) set: Settings,
    /// What its image gave it at the first start, where it has no setting of its own.
    pub(crate) given: Option<Shape>,
    /// What its image gave it as `disk` then.
    pub(crate) given_disk: Option<u32>,
    /// There is none before the first start.
    pub(crate) disk: Option<Disk>,
    /// While QEMU runs.
    pub(crate) running: Option<Running>,
    pub(crate) suspended: Option<Saved>,
    pub(crate) snapshots: BTreeMap<String, Saved>,
    /// Those that were dropped while it was off: hidden, and perhaps still in the disk.
    pub(crate) marked: BTreeSet<String>,
    /// The directory of the host that its guest has.
    pub(crate) share: Option<u32>,
    /// It is a member of the net, and its forks are.
    pub(crate) is_on_net: bool,
    /// The mark on its data disk, if it has one.
    pub(crate) data: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// `None` for one that was made of a VM.
    pub(crate) source: Option<Source>,
    pub(crate) disk: Disk,
    /// The setting `disk` of the VM that it was made from, which may have been larger already.
    pub(crate) disk_setting: Option<u32>,
    /// Where there is no template, what VMs made from it are like unless they say otherwise.
    pub(crate) shape: Shape,
    /// The template that VMs made from it resume, its disk's size included.
    pub(crate) template: Option<(Memory, Shape, u32)>,
}

/// A removed VM.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    pub(crate) name: String,
    pub(crate) vm: Vm,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) vms: BTreeMap<String, Vm>,
    /// Oldest first.
    pub(crate) trash: Vec<Removed>,
    pub(crate) images: BTreeMap<String, Image>,
    /// The version that the sources have.
    pub(crate) released: u32,
    next_id: u32,
    /// The newest mark.
    pub(crate) mark: u32,
    /// The marks in the directories of the host that guests have, or had.
    pub(crate) shared: BTreeMap<u32, u32>,
}

impl Default for Model {
    fn default() -> Self {
        let shape = Shape { cpus: CPUS, memory: MEMORY };
        let disk = Disk { mark: 0, size: DISK, version: 0, content: Content::Guest };
        let source = Some(Source::Tiny);
        let tiny = Image { source, disk, disk_setting: None, shape, template: None };
        let images = BTreeMap::from([("tiny".to_owned(), tiny)]);
        let (vms, trash) = (BTreeMap::new(), Vec::new());
        Self { vms, trash, images, released: 1, next_id: 1, mark: 0, shared: BTreeMap::new() }
    }
}

impl Model {
    pub(crate) fn create(&mut self, name: &str, image: &str) {
        let vm = Vm {
            id: self.next_id,
            power: Power::Off,
            image: image.to_owned(),
            set: Settings::default(),
            given: None,
            given_disk: None,
            disk: None,
            running: None,
            suspended: None,
            snapshots: BTreeMap::new(),
            marked: BTreeSet::new(),
            share: None,
            is_on_net: false,
            data: None,
        };
        self.next_id += 1;
        self.vms.insert(name.to_owned(), vm);
    }

    pub(crate) fn live(&self) -> usize {
        self.vms.values().filter(|vm| !vm.power.is_off()).count()
    }

    /// Says whether a VM, removed ones included, is made from an image.
    pub(crate) fn is_used(&self, image: &str) -> bool {
        let removed = self.trash.iter().map(|removed| &removed.vm);
        self.vms.values().chain(removed).any(|vm| vm.image == image)
    }

    /// Returns what a VM is started with: its own settings, else its image's, which it keeps from its
    /// first start on.
    pub(crate) fn shape(&self, vm: &Vm) -> Shape {
        let given = vm.given.or_else(|| self.images.get(&vm.image).map(Image::gives));
        let given = given.unwrap_or(Shape { cpus: CPUS, memory: MEMORY });
        Shape {
            cpus: vm.set.cpus.unwrap_or(given.cpus),
            memory: vm.set.memory.unwrap_or(given.memory),
        }
    }

    /// Starts a VM: it resumes what was suspended or its image's template, or boots.
    pub(crate) fn start(&mut self, name: &str, power: Power) {
        let vm = &self.vms[name];
        let shape = self.shape(vm);
        let hostname = vm.set.hostname.clone().unwrap_or_else(|| name.to_owned());
        let fits = |disk: u32| vm.disk.is_none() && power == Power::Ready && self.fits(vm, disk);
        let image = &self.images[&vm.image];
        let gives = image.gives();
        let given_disk = if vm.given.is_some() { vm.given_disk } else { image.disk_setting };
        let setting = vm.set.disk.or(given_disk);
        let fresh = image.disk.at_least(setting);
        let (disk, mark, warm) = match (&vm.suspended, &image.template) {
            (Some(saved), _) => (saved.disk, None, false),
            (None, Some((memory, ..))) if fits(fresh.size) => (fresh, Some(memory.mark), true),
            _ => (vm.disk.unwrap_or(fresh), Some(0), false),
        };
        let Some(vm) = self.vms.get_mut(name) else { return };
        let thrown = vm.set.ephemeral.then_some(disk);
        let disk = disk.at_least(setting);
        let power = match (power, disk.content) {
            (Power::Ready, Content::Bytes) => Power::Running,
            (power, _) => power,
        };
        let suspended = vm.suspended.take().and_then(|saved| Some(saved.memory?.0));
        let booted = Memory { mark: mark.unwrap_or(0), hostname: hostname.clone() };
        let memory = suspended.unwrap_or(match power {
            Power::Paused => Memory::default(),
            Power::Ready | Power::Running | Power::Off | Power::Failed => booted,
        });
        vm.disk = Some(disk);
        vm.given = vm.given.or(Some(gives));
        vm.given_disk = given_disk;
        vm.marked.clear();
        vm.running = Some(Running { memory, shape, seed: hostname, warm, thrown });
        vm.set_power(power);
    }

    /// Says whether a VM whose disk is of a size would resume its image's template.
    fn fits(&self, vm: &Vm, size: u32) -> bool {
        let template = self.images.get(&vm.image).and_then(|image| image.template.as_ref());
        template.is_some_and(|(_, shape, disk)| (*shape, *disk) == (self.shape(vm), size))
    }

    /// Makes a running copy of a VM: what it has in force is given to the copy, and is no setting of its own.
    pub(crate) fn fork(&mut self, name: &str, copy: &str) {
        let Some(parent) = self.vms.get(name).cloned() else { return };
        let Some((running, disk)) = parent.running.zip(parent.disk) else { return };
        self.create(copy, &parent.image);
        let Some(vm) = self.vms.get_mut(copy) else { return };
        let memory = Memory { mark: running.memory.mark, hostname: copy.to_owned() };
        let seed = copy.to_owned();
        (vm.given, vm.given_disk) = (Some(running.shape), Some(disk.size));
        vm.disk = Some(disk);
        vm.is_on_net = parent.is_on_net;
        vm.data = parent.data;
        vm.running = Some(Running { memory, shape: running.shape, seed, warm: true, thrown: None });
        vm.set_power(Power::Ready);
    }

    /// The guest of a VM boots anew: what its memory held is gone.
    pub(crate) fn reboot(&mut self, name: &str) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        if let Some(running) = &mut vm.running {
            running.memory = Memory { mark: 0, hostname: running.seed.clone() };
        }
    }

    /// QEMU has ended.
    pub(crate) fn end(&mut self, name: &str, power: Power) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        if vm.running.is_none() {
            vm.suspended = None;
        }
        if let Some(before) = vm.running.take().and_then(|running| running.thrown) {
            vm.disk = Some(before);
        }
        vm.power = power;
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let Some(vm) = self.vms.remove(name) else { return };
        if vm.disk.is_some() || vm.data.is_some() {
            self.trash.push(Removed { name: name.to_owned(), vm });
        }
    }

    /// Takes the VM that was removed last under a name out of the trash.
    pub(crate) fn take_removed(&mut self, name: &str) -> Option<Vm> {
        let at = self.trash.iter().rposition(|removed| removed.name == name)?;
        Some(self.trash.remove(at).vm)
    }

    /// Makes an image of a source.
    pub(crate) fn pull(&mut self, image: &str, source: Source) {
        let (content, memory) = match source {
            Source::Distribution => (Content::Bytes, DISTRIBUTION_MEMORY),
            Source::Blank => (Content::Bytes, MEMORY),
            Source::Tiny | Source::Registry | Source::Archive | Source::RootFs => {
                (Content::Guest, MEMORY)
            }
        };
        let disk = Disk { mark: 0, size: DISK, version: self.version(source), content };
        let shape = Shape { cpus: CPUS, memory };
        let made = Image { source: Some(source), disk, disk_setting: None, shape, template: None };
        self.images.insert(image.to_owned(), made);
    }

    fn version(&self, source: Source) -> u32 {
        match source {
            Source::Tiny | Source::Blank => 0,
            Source::Registry => 1,
            Source::Archive | Source::RootFs | Source::Distribution => self.released,
        }
    }

    /// Makes an image again, of what its source has now.
    pub(crate) fn refresh(&mut self, name: &str) {
        let Some(source) = self.images.get(name).and_then(|image| image.source) else { return };
        let version = self.version(source);
        let Some(image) = self.images.get_mut(name) else { return };
        if image.disk.version != version {
            (image.disk.version, image.template) = (version, None);
        }
    }

    /// Says what is, or will be, on a VM's disk.
    pub(crate) fn content(&self, name: &str) -> Content {
        let vm = self.vms.get(name);
        let image = vm.and_then(|vm| self.images.get(&vm.image));
        let disk = vm.and_then(|vm| vm.disk).or(image.map(|image| image.disk));
        disk.map_or(Content::Guest, |disk| disk.content)
    }

    /// Makes an image of what a VM holds, or held at a snapshot.
    pub(crate) fn publish(&mut self, image: &str, vm: &Vm, saved: Option<&Saved>) {
        let Some(disk) = saved.map(|saved| saved.disk).or(vm.disk) else { return };
        let shape = self.shape(vm);
        let running = vm.running.as_ref().filter(|_| saved.is_none());
        let template = running.map(|r| (r.memory.clone(), r.shape, disk.size));
        let disk_setting = vm.set.disk.or(vm.given_disk);
        let made = Image { source: None, disk, disk_setting, shape, template };
        self.images.insert(image.to_owned(), made);
    }
}

impl Image {
    /// Returns what a VM made from it is started with if it says nothing else.
    pub(crate) fn gives(&self) -> Shape {
        self.template.as_ref().map_or(self.shape, |(_, shape, _)| *shape)
    }
}

impl Vm {
    pub(crate) fn save(&self) -> Option<Saved> {
        let running = self.running.as_ref();
        let memory = running.map(|running| (running.memory.clone(), running.shape));
        Some(Saved { disk: self.disk?, memory, data: self.data })
    }

    pub(crate) fn restore(&mut self, saved: &Saved) {
        let setting = self.running.as_ref().and(self.set.disk.or(self.given_disk));
        self.disk = Some(saved.disk.at_least(setting));
        self.suspended = None;
        // One that was made later stays as it is.
        self.data = self.data.and(saved.data).or(self.data);
        if let (Some(running), Some((memory, _))) = (&mut self.running, &saved.memory) {
            running.memory = memory.clone();
        }
        self.set_power(self.power);
    }

    /// A guest that has not booted yet, does when its processors run.
    pub(crate) fn set_power(&mut self, power: Power) {
        self.power = power;
        if let (Power::Ready, Some(running)) = (power, &mut self.running)
            && running.memory.hostname.is_empty()
        {
            running.memory.hostname.clone_from(&running.seed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(model: &mut Model, name: &str, mark: u32) {
        let vm = model.vms.get_mut(name).unwrap();
        vm.disk.as_mut().unwrap().mark = mark;
        vm.running.as_mut().unwrap().memory.mark = mark;
    }

    #[test]
    fn a_disk_outlives_the_machine_and_a_memory_does_not() {
        let mut model = Model::default();
        model.create("a", "tiny");
        model.start("a", Power::Ready);
        marked(&mut model, "a", 7);
        model.end("a", Power::Off);
        model.start("a", Power::Ready);
        let vm = &model.vms["a"];
        assert_eq!((vm.disk.unwrap().mark, vm.running.as_ref().unwrap().memory.mark), (7, 0));
    }

    #[test]
    fn a_clone_has_the_memory_of_what_it_was_made_from_if_it_fits() {
        let mut model = Model::default();
        model.create("a", "tiny");
        model.vms.get_mut("a").unwrap().set.memory = Some(128);
        model.start("a", Power::Ready);
        marked(&mut model, "a", 7);
        let vm = model.vms["a"].clone();
        model.publish("i", &vm, None);
        for (name, memory, mark) in [("b", None, 7), ("c", Some(192), 0), ("d", Some(128), 7)] {
            model.create(name, "i");
            model.vms.get_mut(name).unwrap().set.memory = memory;
            model.start(name, Power::Ready);
            let running = model.vms[name].running.clone().unwrap();
            assert_eq!((running.memory.mark, running.warm), (mark, mark == 7));
        }
    }

    #[test]
    fn what_is_removed_comes_back_whole_and_the_newest_first() {
        let mut model = Model::default();
        for mark in [1, 2] {
            model.create("a", "tiny");
            model.start("a", Power::Ready);
            marked(&mut model, "a", mark);
            model.end("a", Power::Off);
            model.remove("a");
        }
        let back = model.take_removed("a").unwrap();
        assert_eq!(back.disk.unwrap().mark, 2);
        assert!(model.is_used("tiny") && model.take_removed("b").is_none());
    }
}
