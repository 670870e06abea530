//! The model: VMs as plain values, and what every operation must answer. It shares no code with
//! what it judges.

use std::collections::BTreeMap;

use libc::{EALREADY, EBUSY, EEXIST, EHOSTDOWN, EINVAL, ENODEV, ENOENT, EPERM, ERANGE};
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

/// An operation.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Mkdir(&'static str),
    /// By one of several processes.
    Rmdir(&'static str, u32),
    /// `mv` of the one removed VM of this name out of the trash; of several, none is moved.
    Undo(&'static str),
    /// `mkdir` in `snapshots`.
    Take(&'static str, &'static str),
    /// `rmdir` in `snapshots`, by one of several processes.
    Drop(&'static str, &'static str, u32),
    /// `mv` in `snapshots`.
    RenameSnapshot(&'static str, &'static str, &'static str),
    /// More than a minute in which nothing happens.
    Minute,
    Rename(&'static str, &'static str),
    /// `unlink` or `rmdir` of something in a VM's directory.
    RemovePart(&'static str, &'static str),
    /// One write to `ctl`.
    Ctl(&'static str, &'static [&'static str]),
    Set(&'static str, &'static Value),
    /// A command and its output.
    Exec(&'static str),
    /// An open of the serial line.
    Console(&'static str),
    /// What the machine reports by itself.
    Event(&'static str, Event),
    /// QEMU will not start the next time.
    NextLaunchFails,
    /// The daemon ends and another one takes over.
    Restart,
    /// A name operation whose caller is interrupted at once.
    Interrupted(Box<Self>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    PowersOff,
    Crashes,
    Resets,
}

/// A text for a setting, and what it must read back as.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) key: &'static str,
    pub(super) text: &'static str,
    pub(super) append: bool,
    reads: Result<&'static str, i32>,
}

const fn value(key: &'static str, text: &'static str, reads: Result<&'static str, i32>) -> Value {
    Value { key, text, append: false, reads }
}

static VALUES: &[Value] = &[
    value("cpus", "4\n", Ok("4")),
    value("cpus", "0\n", Err(ERANGE)),
    value("cpus", "many\n", Err(EINVAL)),
    value("memory", "2048M", Ok("2G")),
    value("memory", "default\n", Ok("256M")),
    value("memory", "1K\n", Err(ERANGE)),
    value("disk", "\n", Ok("2G")),
    value("hostname", "web-1\n", Ok("web-1")),
    value("hostname", "-x\n", Err(EINVAL)),
    value("accel", "kvm\n", Ok("kvm")),
    value("accel", "auto\n", Ok("auto")),
    value("image", "other\n", Ok("other")),
    value("image", "tiny\n", Ok("tiny")),
    value("protect", "1\n", Ok("1")),
    value("protect", "0\n", Ok("0")),
    value("protect", "perhaps\n", Err(EINVAL)),
    value("ssh_user", "a b\n", Err(EINVAL)),
    value("qemu_args", "-x\n-y\n", Ok("-x\n-y")),
    value("qemu_args", "default\n", Ok("")),
    Value { key: "qemu_args", text: "-z\n", append: true, reads: Ok("-z") },
];

/// Lines of one write. What takes its time (`stop`, `kill`) is a last line, as the next would meet
/// it half done.
static WRITES: &[&[&str]] = &[
    &["start"],
    &["start"],
    &["start paused"],
    &["stop"],
    &["stop 5"],
    &["kill"],
    &["pause"],
    &["resume"],
    &["reset"],
    &["strat"],
    &["stop 99999999"],
    &["start now"],
    &["# nothing", ""],
    &["start", "pause", "reset", "stop"],
    &["pause", "resume", "pause", "pause", "kill"],
    &["reset", "bogus", "kill"],
    &["suspend"],
    &["suspend"],
    &["pause", "suspend"],
    &["restore s"],
    &["restore suspended"],
    &["start", "restore s", "pause"],
];
const TAGS: &[&str] = &["s", "t", "suspended"];

const NAMES: &[&str] = &["a", "b", "c"];
const BAD_NAMES: &[&str] =
    &["-a", "A", ".git", ".docs", "a_b", "0123456789012345678901234567890123"];
const PARTS: &[&str] = &["status", "config", "ctl", "nothing"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Stopped,
    Failed,
    Ready,
    Paused,
}

impl Life {
    fn is_off(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Vm {
    pub(super) life: Life,
    pub(super) settings: BTreeMap<&'static str, String>,
    /// It has run, and so has a disk.
    pub(super) disk: bool,
    /// Its snapshots, and whether they have memory.
    pub(super) snapshots: BTreeMap<&'static str, bool>,
    /// Those that were dropped and are in the disk, and by which process.
    pub(super) dropped: Vec<(&'static str, bool, u32)>,
    /// The next start resumes what was saved.
    pub(super) suspended: bool,
    /// `error` does not say `ok`.
    pub(super) failed: bool,
}

impl Vm {
    fn new() -> Self {
        let settings = [
            ("image", "tiny"),
            ("cpus", "1"),
            ("memory", "256M"),
            ("disk", "2G"),
            ("hostname", "default"),
            ("accel", "auto"),
            ("ssh_user", "root"),
            ("protect", "0"),
            ("qemu_args", ""),
        ];
        let settings = settings.into_iter().map(|(k, v)| (k, v.to_owned())).collect();
        Self {
            life: Life::Stopped,
            settings,
            disk: false,
            snapshots: BTreeMap::new(),
            dropped: Vec::new(),
            suspended: false,
            failed: false,
        }
    }

    fn take(&mut self, tag: &'static str) -> Result<(), i32> {
        if !self.disk {
            return Err(ENOENT);
        }
        if self.snapshots.contains_key(tag) {
            return Err(EEXIST);
        }
        self.dropped.clear();
        self.snapshots.insert(tag, !self.life.is_off());
        Ok(())
    }

    fn drop_snapshot(&mut self, tag: &'static str, by: u32) {
        if let Some(memory) = self.snapshots.remove(tag)
            && self.life.is_off()
        {
            self.dropped.push((tag, memory, by));
        }
    }

    fn rename_snapshot(&mut self, from: &'static str, to: &'static str) -> Result<(), i32> {
        if !self.life.is_off() {
            return Err(EBUSY);
        }
        if self.snapshots.contains_key(to) {
            return Err(EEXIST);
        }
        self.dropped.clear();
        let memory = self.snapshots.remove(from).ok_or(EINVAL)?;
        self.snapshots.insert(to, memory);
        Ok(())
    }

    fn restore(&mut self, tag: &str) -> Result<(), i32> {
        if !self.disk {
            return Err(ENOENT);
        }
        let memory = *self.snapshots.get(tag).ok_or(ENOENT)?;
        if !self.life.is_off() {
            return if memory { Ok(()) } else { Err(EBUSY) };
        }
        self.dropped.clear();
        self.suspended = false;
        Ok(())
    }

    fn removable(&self) -> Result<(), i32> {
        match self.life {
            _ if self.settings["protect"] == "1" => Err(EPERM),
            Life::Stopped | Life::Failed => Ok(()),
            Life::Ready | Life::Paused => Err(EBUSY),
        }
    }

    fn noting(&mut self, outcome: Result<(), i32>) -> Result<(), i32> {
        self.failed |= outcome.is_err();
        outcome
    }

    fn set(&mut self, value: &Value) -> Result<(), i32> {
        let text = value.reads?.to_owned();
        if value.text.trim().is_empty() {
            return Ok(());
        }
        let old = &self.settings[value.key];
        if value.key == "image" && self.disk && *old != text {
            return Err(EINVAL);
        }
        let text = match value.append && !old.is_empty() {
            true => format!("{old}\n{text}"),
            false => text,
        };
        self.settings.insert(value.key, text);
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) vms: BTreeMap<&'static str, Vm>,
    pub(super) trash: Vec<(&'static str, Vm)>,
    next_launch_fails: bool,
    /// What the last operation must have answered.
    pub(super) outcome: Option<Result<(), i32>>,
}

impl Model {
    fn perform(&mut self, op: &Op) -> Result<(), i32> {
        match op {
            Op::Mkdir(name) => self.mkdir(name),
            Op::Rmdir(name, by) => self.rmdir(name, *by),
            Op::Undo(name) => self.undo(name),
            Op::Take(vm, tag) => {
                let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
                let outcome = vm.take(tag);
                vm.noting(outcome)
            }
            Op::Drop(vm, tag, by) => {
                let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
                let there = vm.snapshots.contains_key(tag);
                vm.drop_snapshot(tag, *by);
                if there { Ok(()) } else { Err(ENOENT) }
            }
            Op::RenameSnapshot(vm, from, to) => {
                let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
                if !vm.snapshots.contains_key(from) {
                    return Err(EINVAL);
                }
                let outcome = vm.rename_snapshot(from, to);
                vm.noting(outcome)
            }
            Op::Minute => {
                let off = self.vms.values_mut().filter(|vm| vm.life.is_off());
                off.for_each(|vm| vm.dropped.clear());
                Ok(())
            }
            Op::Rename(from, to) => self.rename(from, to),
            Op::RemovePart(vm, part) => {
                let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
                if *part == "nothing" {
                    return Err(ENOENT);
                }
                let outcome = vm.removable();
                vm.noting(outcome)
            }
            Op::Ctl(vm, lines) => self.ctl(vm, lines),
            Op::Set(vm, value) => {
                let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
                let outcome = vm.set(value);
                vm.noting(outcome)
            }
            Op::Exec(vm) => self.stream(vm, Err(libc::EHOSTUNREACH)),
            Op::Console(vm) => self.stream(vm, Ok(())),
            Op::Event(vm, event) => {
                self.event(vm, *event);
                Ok(())
            }
            Op::NextLaunchFails => {
                self.next_launch_fails = true;
                Ok(())
            }
            Op::Restart => {
                self.vms.values_mut().for_each(restarted);
                Ok(())
            }
            Op::Interrupted(op) => self.unheard(op),
        }
    }

    /// A failure whose answer is dropped is not reported.
    fn unheard(&mut self, op: &Op) -> Result<(), i32> {
        let before = self.vms.clone();
        let outcome = self.perform(op);
        for (name, vm) in &mut self.vms {
            vm.failed = before.get(name).map_or(vm.failed, |vm| vm.failed);
        }
        outcome
    }

    fn mkdir(&mut self, name: &'static str) -> Result<(), i32> {
        if !NAMES.contains(&name) {
            return Err(EINVAL);
        }
        if self.vms.contains_key(name) {
            return Err(EEXIST);
        }
        self.vms.insert(name, Vm::new());
        Ok(())
    }

    fn rmdir(&mut self, name: &'static str, by: u32) -> Result<(), i32> {
        if name == ".docs" {
            return Err(EPERM);
        }
        let vm = self.vms.get_mut(name).ok_or(ENOENT)?;
        let outcome = vm.removable();
        vm.noting(outcome)?;
        if let Some(mut vm) = self.vms.remove(name).filter(|vm| vm.disk) {
            // What the same process has dropped comes back.
            let (back, left) = vm.dropped.into_iter().partition(|(_, _, who)| *who == by);
            let back: Vec<_> = back;
            vm.snapshots.extend(back.into_iter().map(|(tag, memory, _)| (tag, memory)));
            vm.dropped = left;
            restarted(&mut vm);
            self.trash.push((name, vm));
        }
        Ok(())
    }

    fn undo(&mut self, name: &'static str) -> Result<(), i32> {
        if self.trash.iter().filter(|(removed, _)| *removed == name).count() != 1 {
            return Err(ENOENT);
        }
        if self.vms.contains_key(name) {
            return Err(EEXIST);
        }
        let (back, left) = self.trash.drain(..).partition(|(removed, _)| *removed == name);
        self.trash = left;
        let back: Vec<_> = back;
        self.vms.extend(back);
        Ok(())
    }

    fn rename(&mut self, from: &'static str, to: &'static str) -> Result<(), i32> {
        match (self.vms.contains_key(from), NAMES.contains(&to), self.vms.contains_key(to)) {
            (false, ..) | (_, false, _) => Err(EINVAL),
            _ if from == to => Ok(()),
            (_, _, true) => Err(EEXIST),
            _ => {
                let vm = self.vms.remove(from).ok_or(EINVAL)?;
                self.vms.insert(to, vm);
                Ok(())
            }
        }
    }

    fn ctl(&mut self, vm: &'static str, lines: &[&'static str]) -> Result<(), i32> {
        let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
        let lines: Vec<&str> =
            lines.iter().copied().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        for line in &lines {
            let outcome = verb(vm, line, &mut self.next_launch_fails);
            vm.noting(outcome)?;
        }
        vm.failed &= lines.is_empty();
        Ok(())
    }

    /// Streams need a machine; some need one that is not paused.
    fn stream(&mut self, vm: &'static str, paused: Result<(), i32>) -> Result<(), i32> {
        let vm = self.vms.get_mut(vm).ok_or(ENOENT)?;
        let outcome = match vm.life {
            Life::Ready => Ok(()),
            Life::Paused => paused,
            Life::Stopped | Life::Failed => Err(EHOSTDOWN),
        };
        vm.noting(outcome)
    }

    fn event(&mut self, vm: &'static str, event: Event) {
        let Some(vm) = self.vms.get_mut(vm).filter(|vm| !vm.life.is_off()) else { return };
        match event {
            Event::PowersOff => vm.life = Life::Stopped,
            Event::Crashes => (vm.life, vm.failed) = (Life::Failed, true),
            Event::Resets => {}
        }
    }
}

/// Carries out a verb, by the table of the design.
fn verb(vm: &mut Vm, line: &str, launch_fails: &mut bool) -> Result<(), i32> {
    let off = vm.life.is_off();
    vm.life = match line {
        "start" | "start paused" if !off => return Err(EALREADY),
        "start" | "start paused" => {
            launch(vm, launch_fails)?;
            if line == "start" { Life::Ready } else { Life::Paused }
        }
        "kill" if off && vm.suspended => {
            vm.dropped.clear();
            vm.suspended = false;
            vm.life
        }
        "stop" | "stop 5" | "kill" if off => return Err(EALREADY),
        "stop" | "stop 5" | "kill" => Life::Stopped,
        "pause" | "resume" | "reset" | "suspend" if off => return Err(EHOSTDOWN),
        "suspend" => {
            vm.suspended = true;
            Life::Stopped
        }
        "restore s" | "restore suspended" => {
            vm.restore(line.trim_start_matches("restore "))?;
            vm.life
        }
        "pause" if vm.life == Life::Paused => return Err(EALREADY),
        "resume" if vm.life == Life::Ready => return Err(EALREADY),
        "pause" => Life::Paused,
        "resume" => Life::Ready,
        "reset" => vm.life,
        "stop 99999999" => return Err(ERANGE),
        _ => return Err(EINVAL),
    };
    Ok(())
}

fn launch(vm: &mut Vm, launch_fails: &mut bool) -> Result<(), i32> {
    if vm.settings["image"] != "tiny" {
        return Err(ENOENT);
    }
    vm.dropped.clear();
    if vm.settings["accel"] == "kvm" {
        return Err(ENODEV);
    }
    if std::mem::take(launch_fails) {
        vm.life = Life::Failed;
        return Err(libc::EREMOTEIO);
    }
    vm.disk = true;
    vm.suspended = false;
    Ok(())
}

/// A new daemon has not seen what failed under the last one.
fn restarted(vm: &mut Vm) {
    vm.failed = false;
    if vm.life == Life::Failed {
        vm.life = Life::Stopped;
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Op> {
        let (vm, tag) = (|| select(NAMES), || select(TAGS));
        let any = || prop_oneof![9 => select(NAMES), 1 => select(BAD_NAMES)];
        let naming = prop_oneof![
            3 => any().prop_map(Op::Mkdir),
            2 => (any(), 1..3u32).prop_map(|(vm, by)| Op::Rmdir(vm, by)),
            1 => vm().prop_map(Op::Undo),
            2 => (any(), any()).prop_map(|(from, to)| Op::Rename(from, to)),
        ];
        let naming = naming.boxed();
        prop_oneof![
            6 => naming.clone(),
            1 => naming.prop_map(|op| Op::Interrupted(Box::new(op))),
            1 => (vm(), select(PARTS)).prop_map(|(vm, part)| Op::RemovePart(vm, part)),
            8 => (vm(), select(WRITES)).prop_map(|(vm, lines)| Op::Ctl(vm, lines)),
            4 => (vm(), 0..VALUES.len()).prop_map(|(vm, at)| Op::Set(vm, &VALUES[at])),
            2 => vm().prop_map(Op::Exec),
            1 => vm().prop_map(Op::Console),
            3 => (vm(), select(&[Event::PowersOff, Event::Crashes, Event::Resets][..]))
                .prop_map(|(vm, event)| Op::Event(vm, event)),
            3 => (vm(), tag()).prop_map(|(vm, tag)| Op::Take(vm, tag)),
            3 => (vm(), tag(), 1..3u32).prop_map(|(vm, tag, by)| Op::Drop(vm, tag, by)),
            1 => (vm(), tag(), tag()).prop_map(|(vm, from, to)| Op::RenameSnapshot(vm, from, to)),
            1 => Just(Op::Minute),
            1 => Just(Op::NextLaunchFails),
            1 => Just(Op::Restart),
        ]
        .boxed()
    }

    fn apply(mut model: Self, op: &Op) -> Self {
        let outcome = model.perform(op);
        // Nobody hears the answer of what was interrupted.
        model.outcome = (!matches!(op, Op::Interrupted(_))).then_some(outcome);
        model
    }
}
