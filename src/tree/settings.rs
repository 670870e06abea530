//! Settings as files: their owner, their text, and what is written to one.
//!
//! Not here: what there are, and what a value may be (`vm::spec`).

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::control::{noted, text_of};
use super::value::OpenValue;
use super::{Answer, TreeError};
use crate::registry::Registry;
use crate::vm::spec::{Key, VmSpec};
use crate::vm::{Vm, VmError, WriteMode};

/// All settings of one owner.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Their VM; `None`: what new VMs start from.
    pub(super) vm: Option<Vm>,
    /// Knows the second names of images.
    pub(super) registry: Arc<Registry>,
}

/// An open setting.
#[derive(Debug)]
pub struct OpenSetting {
    of: Settings,
    key: &'static Key,
    pub(super) value: OpenValue,
    mode: Mutex<WriteMode>,
}

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
    pub(super) fn open(self, key: &'static Key, value: OpenValue, append: bool) -> OpenSetting {
        let mode = Mutex::new(if append { WriteMode::Append } else { WriteMode::Replace });
        OpenSetting { of: self, key, value, mode }
    }

    fn assign(
        &self,
        key: &'static Key,
        text: &str,
        mode: WriteMode,
    ) -> BoxFuture<'static, Result<(), VmError>> {
        let text = self.resolved(key, text);
        match self.vm.clone() {
            Some(vm) => Box::pin(vm.configure(key, text, mode)),
            None => {
                Box::pin(Arc::clone(&self.registry.backends().defaults).assign(key, text, mode))
            }
        }
    }

    /// Resolves an alias: a VM depends on an image, and keeps it when the alias leads elsewhere.
    fn resolved(&self, key: &Key, text: &str) -> String {
        match key.name {
            "image" => self.registry.resolve_alias(text.trim()),
            _ => text.to_owned(),
        }
    }
}

impl OpenSetting {
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
