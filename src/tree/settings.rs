//! Settings as files: their owner, their text, and what is written to one.
//!
//! Not here: what there are, and what a value may be (`vm::spec`).

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use parking_lot::Mutex;

use super::TreeError;
use crate::registry::Registry;
use crate::vm::spec::{Key, VmSpec};
use crate::vm::{Vm, WriteMode};

/// All settings of one owner.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Their VM; `None`: what new VMs start from.
    pub(super) vm: Option<Vm>,
    pub(super) registry: Arc<Registry>,
}

impl Settings {
    pub(super) fn text(&self, key: &Key) -> String {
        let text = (key.render)(&self.spec());
        if text.is_empty() { text } else { text + "\n" }
    }

    /// Returns what a text is added to.
    pub(super) fn text_before(&self, key: &Key, append: bool) -> Vec<u8> {
        let is_set = append && (key.render)(&self.spec()) != (key.render)(&VmSpec::default());
        if is_set { self.text(key).into_bytes() } else { Vec::new() }
    }

    fn spec(&self) -> VmSpec {
        match &self.vm {
            Some(vm) => VmSpec::clone(&vm.spec()),
            None => self.registry.backends().defaults.spec(),
        }
    }

    /// Returns what assigns to one that is opened.
    pub(super) fn assignment(
        self,
        key: &'static Key,
        append: bool,
    ) -> impl Fn(&str) -> BoxFuture<'static, Result<(), TreeError>> {
        let mode = Mutex::new(if append { WriteMode::Append } else { WriteMode::Replace });
        move |text| {
            // What comes after the first write of `>` belongs to the same list.
            let mode = std::mem::replace(&mut *mode.lock(), WriteMode::Append);
            self.assign(key, self.resolved(key, text), mode)
        }
    }

    fn assign(
        &self,
        key: &'static Key,
        text: String,
        mode: WriteMode,
    ) -> BoxFuture<'static, Result<(), TreeError>> {
        match self.vm.clone() {
            Some(vm) => vm.configure(key, text, mode).err_into().boxed(),
            None => {
                let defaults = Arc::clone(&self.registry.backends().defaults);
                defaults.assign(key, text, mode).err_into().boxed()
            }
        }
    }

    /// Resolves an alias: a VM depends on an image, and keeps it when the alias leads elsewhere. An empty
    /// text clears a time.
    fn resolved(&self, key: &Key, text: &str) -> String {
        match key.when_empty() {
            Some(meant) if text.trim().is_empty() => meant.to_owned(),
            _ if key.name == "image" => self.registry.resolve_alias(text.trim()),
            _ => text.to_owned(),
        }
    }
}
