//! A VM's `config`, and `.defaults`: a row for each setting.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use crate::tree::TreeError;
use crate::tree::descriptor::{Descriptor, no_names};
use crate::tree::node::{Body, Node};
use crate::tree::number::DirectoryId;
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::settings::Settings;
use crate::vm::Vm;
use crate::vm::spec::{KEYS, Key};

/// `VM/config`
pub(super) static CONFIG: Descriptor<Settings> = Descriptor {
    id: DirectoryId(5),
    page: Some("VM/config/"),
    mode: 0o700,
    rows: || &ROWS,
    resolve: |scope, id| settings(scope, Some(scope.vm(id)?)),
    path: |settings| {
        let vm = settings.vm.as_ref().map(Vm::name).unwrap_or_default();
        format!("/{vm}/config")
    },
    mtime: Settings::made,
    names: no_names,
    members: &[],
    is_slow: false,
};

/// `.defaults`
pub(super) static DEFAULTS: Descriptor<Settings> = Descriptor {
    id: DirectoryId(8),
    page: None,
    mode: 0o700,
    rows: || &ROWS,
    resolve: |scope, _| settings(scope, None),
    path: |_| "/.defaults".to_owned(),
    mtime: Settings::made,
    names: no_names,
    members: &[],
    is_slow: false,
};

static ROWS: LazyLock<Vec<Node<Settings>>> = LazyLock::new(|| {
    let row = |key: &'static Key| Node {
        name: key.name,
        mode: 0o600,
        mtime: Settings::written,
        doc: key.doc,
        body: Body::Setting(key),
    };
    KEYS.iter().map(row).collect()
});

fn settings(scope: &Scope, vm: Option<Vm>) -> Result<Settings, TreeError> {
    Ok(Settings { vm, registry: Arc::clone(&scope.host.registry) })
}

impl Settings {
    /// Returns when the directory was made: no name in it comes or goes.
    fn made(&self) -> SystemTime {
        self.vm.as_ref().map_or_else(|| self.registry.changed(), Vm::created)
    }

    /// Returns when a setting was last written.
    fn written(&self) -> SystemTime {
        let defaults = || self.registry.backends().defaults.changed();
        self.vm.as_ref().map_or_else(defaults, Vm::configured)
    }
}

impl NodeOwner for Settings {
    fn vm(&self) -> Option<&Vm> {
        self.vm.as_ref()
    }

    fn settings(&self) -> Option<&Settings> {
        Some(self)
    }
}
