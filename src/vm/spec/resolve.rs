//! Which value of a setting holds: the VM's own, else its image's, else what `.defaults` had when
//! the VM was made, else the built-in one. [`VmSettings::resolve`] is the only place that decides
//! it.
//!
//! Pure: what an image carries, and whether a VM has a disk, is for others to know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::container::ContainerProcess;
use super::keys::{Carried, Wanted};
use super::net::Forward;
use super::{Edit, KEYS, Key, SpecError, VmSpec};
use crate::vm::WriteMode;

/// The settings that belong to a VM alone and that its forks have too. What a guest may reach is among them:
/// a copy of one that is closed in must not be free. So is the time after which it is removed, which begins
/// anew: a copy of one that ends must not stay for ever.
const FORKED: [&str; 14] = [
    "image",
    "ports",
    "hardware",
    "ssh_key",
    "overcommit",
    "net",
    "allow",
    "nets",
    "expire",
    "idle",
    "cpu_limit",
    "io_limit",
    "memory_high",
    "memory_max",
];

/// A VM's settings by where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSettings {
    /// The user's values for the keys in `own`, for the others those of `.defaults`.
    pub(in crate::vm) values: VmSpec,
    /// The keys that the user has set.
    pub(in crate::vm) own: BTreeSet<String>,
}

impl VmSettings {
    /// A new VM's: the user has set nothing.
    pub fn new(defaults: VmSpec) -> Self {
        Self { values: defaults, own: BTreeSet::new() }
    }

    /// Settings that no image changes: those of a VM whose definition does not say what its user
    /// has set.
    pub fn fixed(values: VmSpec) -> Self {
        let built_in = VmSpec::default();
        let fixed = |key: &&Key| {
            key.carried != Carried::Never || (key.render)(&values) != (key.render)(&built_in)
        };
        let own = KEYS.iter().filter(fixed).map(|key| key.name.to_owned()).collect();
        Self { values, own }
    }

    /// Returns the settings of a fork. What an image would carry it has from the parent's machine; of what
    /// belongs to the VM alone it has what is in the guest's memory, and the parent's forwards with ports of
    /// its own.
    #[must_use]
    pub fn of_fork(parent: &Self, defaults: &VmSpec) -> Self {
        let (mut values, mut own) = (defaults.clone(), BTreeSet::new());
        for key in KEYS.iter().filter(|key| FORKED.contains(&key.name)) {
            (key.reset)(&mut values, &parent.values);
            own.extend(parent.is_own(key.name).then(|| key.name.to_owned()));
        }
        for forward in std::mem::take(&mut values.ports) {
            let forward = Forward { host: 0, ..forward };
            if !values.ports.contains(&forward) {
                values.ports.push(forward);
            }
        }
        Self { values, own }
    }

    /// Returns when the VM is removed if its time begins now.
    pub fn expiry_from(&self, now: SystemTime) -> Option<SystemTime> {
        now.checked_add(self.values.expire?)
    }

    /// Returns the settings of a VM that is not removed by itself.
    #[must_use]
    pub fn without_expiry(mut self) -> Self {
        self.values.expire = None;
        self.own.remove("expire");
        self
    }

    /// Returns the image, which no image carries.
    pub fn image(&self) -> &str {
        &self.values.image
    }

    /// Says whether the user has set this key.
    pub fn is_own(&self, key: &str) -> bool {
        self.own.contains(key)
    }

    /// Returns the values that hold for a VM of an image that carries these settings.
    pub fn resolve(&self, image: &ImageSettings) -> VmSpec {
        let mut spec = self.values.clone();
        for (key, text) in image.of_keys().filter(|(key, _)| !self.is_own(key.name)) {
            put(key, text, &mut spec);
        }
        spec
    }

    /// Returns the settings after a change. A list is added to as it holds now; `default` removes
    /// the VM's own value.
    pub fn edited(
        &self,
        edit: &Edit,
        image: &ImageSettings,
        defaults: &VmSpec,
    ) -> Result<Self, SpecError> {
        let Some(key) = Key::named(edit.key()) else { return Ok(self.clone()) };
        let mut next = self.clone();
        match edit.wanted() {
            Wanted::Nothing => {}
            Wanted::Default => {
                next.own.remove(key.name);
                (key.reset)(&mut next.values, defaults);
            }
            Wanted::Value => {
                let changed = edit.done_to(&self.resolve(image), defaults)?;
                next.own.insert(key.name.to_owned());
                (key.reset)(&mut next.values, &changed);
            }
        }
        Ok(next)
    }
}

/// The settings that an image carries to its VMs: names of keys and their values, as `config/`
/// prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct ImageSettings(Arc<BTreeMap<String, String>>);

impl From<BTreeMap<String, String>> for ImageSettings {
    fn from(map: BTreeMap<String, String>) -> Self {
        Self(Arc::new(map))
    }
}

impl From<ImageSettings> for BTreeMap<String, String> {
    fn from(settings: ImageSettings) -> Self {
        Arc::unwrap_or_clone(settings.0)
    }
}

impl ImageSettings {
    /// What an image made from the disk of a VM with these settings carries.
    pub fn of_disk(spec: &VmSpec) -> Self {
        Self::of(spec, |key| key.carried == Carried::Always)
    }

    /// What a warm image carries, captured from a machine with these settings.
    pub fn of_machine(spec: &VmSpec) -> Self {
        Self::of(spec, |key| key.carried != Carried::Never)
    }

    /// What a container image carries: what it runs, and the size of a disk that is larger than
    /// the default.
    pub fn of_container(process: &ContainerProcess, disk: Option<u64>) -> Self {
        let defaults = VmSpec::default();
        let container = Some(process.clone());
        let spec = VmSpec { container, disk: disk.unwrap_or(defaults.disk), ..defaults };
        Self::of(&spec, |key| key.name == "container" || (key.name == "disk" && disk.is_some()))
    }

    /// What is known of a warm image that an earlier version has made.
    pub fn of_shape(cpus: u32, memory: u64, disk: u64) -> Self {
        let spec = VmSpec { cpus, memory, disk, ..VmSpec::default() };
        Self::of(&spec, |key| ["cpus", "memory", "disk"].contains(&key.name))
    }

    fn of(spec: &VmSpec, carried: impl Fn(&Key) -> bool) -> Self {
        // An image's disk may end within a mebibyte; a setting does not, and may be smaller.
        let spec = VmSpec { disk: spec.disk >> 20 << 20, ..spec.clone() };
        let keys = KEYS.iter().filter(|key| carried(key));
        let values = keys.map(|key| (key.name.to_owned(), (key.render)(&spec)));
        Self(Arc::new(values.collect()))
    }

    /// Returns what of it an image without a template carries.
    #[must_use]
    pub fn without_machine(&self) -> Self {
        let keys = self.of_keys().filter(|(key, _)| key.carried == Carried::Always);
        Self(Arc::new(keys.map(|(key, text)| (key.name.to_owned(), text.to_owned())).collect()))
    }

    /// Returns the value of a setting, if it carries one.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Prints them as a table, `key value` a line, a line for each element of a list.
    pub fn table(&self) -> String {
        let lines = |(key, text): (&String, &String)| {
            text.lines().map(|line| format!("{key} {line}\n")).collect::<String>()
        };
        self.0.iter().map(lines).collect()
    }

    /// Lists what is carried; what a VM has for itself alone never comes from an image, whatever
    /// the image's file says.
    fn of_keys(&self) -> impl Iterator<Item = (&'static Key, &str)> {
        self.0.iter().filter_map(|(name, text)| {
            let key = Key::named(name).filter(|key| key.carried != Carried::Never)?;
            Some((key, text.as_str()))
        })
    }
}

/// A value that is not understood counts as not carried.
fn put(key: &Key, text: &str, spec: &mut VmSpec) {
    let built_in = VmSpec::default();
    let mut changed = spec.clone();
    (key.reset)(&mut changed, &built_in);
    if key.assign(&mut changed, text, WriteMode::Replace, &built_in).is_ok() {
        *spec = changed;
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
