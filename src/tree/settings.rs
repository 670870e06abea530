//! Settings as files: whose they are, their text, and what is written to one.
//!
//! Not here: what there are, and what a value may be (`vm::spec`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use parking_lot::Mutex;

use super::handle::{Value, noted, text_of};
use super::node::Subject;
use super::{Answer, TreeError};
use crate::registry::Registry;
use crate::vm::spec::{Key, VmSpec};
use crate::vm::{Vm, VmError, WriteMode};

/// All settings of one owner.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose they are; `None`: what new VMs start from.
    pub vm: Option<Vm>,
    /// Knows the second names of images.
    pub registry: Arc<Registry>,
}

/// An open setting.
#[derive(Debug)]
pub struct Setting {
    of: Settings,
    key: &'static Key,
    pub(super) value: Value,
    mode: Mutex<WriteMode>,
}

/// A setting being written.
type Assignment = Pin<Box<dyn Future<Output = Result<(), VmError>> + Send>>;

impl Settings {
    /// Prints one.
    pub(super) fn text(&self, key: &Key) -> Vec<u8> {
        let text = (key.render)(&self.spec());
        if text.is_empty() { Vec::new() } else { format!("{text}\n").into_bytes() }
    }

    fn spec(&self) -> VmSpec {
        match &self.vm {
            Some(vm) => VmSpec::clone(&vm.spec()),
            None => self.registry.backends().defaults.spec(),
        }
    }

    /// Opens one.
    pub(super) fn open(self, key: &'static Key, value: Value, append: bool) -> Setting {
        let mode = Mutex::new(if append { WriteMode::Append } else { WriteMode::Replace });
        Setting { of: self, key, value, mode }
    }

    fn assign(&self, key: &'static Key, text: &str, mode: WriteMode) -> Assignment {
        let text = self.meant(key, text);
        match self.vm.clone() {
            Some(vm) => Box::pin(vm.configure(key, text, mode)),
            None => {
                Box::pin(Arc::clone(&self.registry.backends().defaults).assign(key, text, mode))
            }
        }
    }

    /// A VM depends on an image, not on the alias by which somebody has called it.
    fn meant(&self, key: &Key, text: &str) -> String {
        match key.name {
            "image" => self.registry.resolve_alias(text.trim()),
            _ => text.to_owned(),
        }
    }
}

impl Subject for Settings {
    fn changed(&self, name: &str) -> SystemTime {
        match (&self.vm, name) {
            // No name in this directory comes or goes.
            (Some(vm), ".") => vm.created(),
            (Some(vm), _) => vm.configured(),
            (None, ".") => self.registry.changed(),
            (None, _) => self.registry.backends().defaults.changed(),
        }
    }

    fn vm(&self) -> Option<&Vm> {
        self.vm.as_ref()
    }

    fn settings(&self) -> Option<&Settings> {
        Some(self)
    }
}

impl Setting {
    pub(super) fn write(&self, data: &[u8]) -> Answer<usize> {
        let vm = self.of.vm.clone();
        let text = match text_of(data) {
            Ok(text) => text,
            Err(error) => return Answer::Now(noted(vm.as_ref(), Err(error))),
        };
        // What comes after the first write of `>` belongs to the same list.
        let mode = std::mem::replace(&mut *self.mode.lock(), WriteMode::Append);
        let length = data.len();
        let done = self.of.assign(self.key, text, mode);
        Answer::later(done.map(move |result| {
            noted(vm.as_ref(), result.map(|()| length).map_err(TreeError::from))
        }))
    }
}
