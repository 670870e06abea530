//! A VM's `config`, and `.defaults`: a row for each setting.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use crate::tree::TreeError;
use crate::tree::descriptor::Descriptor;
use crate::tree::node::Node;
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::settings::Settings;
use crate::vm::Vm;
use crate::vm::spec::KEYS;

/// `VM/config`
pub(super) static CONFIG: Descriptor<Settings> = Descriptor {
    page: Some("VM/config/"),
    rows: || &ROWS,
    ..Descriptor::new(
        5,
        |scope, id| settings(scope, Some(scope.vm(id)?)),
        |settings| {
            let vm = settings.vm.as_ref().map(Vm::name).unwrap_or_default();
            format!("/{vm}/config")
        },
        Settings::made,
    )
};

/// `.defaults`
pub(super) static DEFAULTS: Descriptor<Settings> = Descriptor {
    rows: || &ROWS,
    ..Descriptor::new(
        8,
        |scope, _| settings(scope, None),
        |_| "/.defaults".to_owned(),
        Settings::made,
    )
};

static ROWS: LazyLock<Vec<Node<Settings>>> = LazyLock::new(|| {
    KEYS.iter().map(|key| Node::setting(key).follows(Settings::written)).collect()
});

fn settings(scope: &Scope, vm: Option<Vm>) -> Result<Settings, TreeError> {
    Ok(Settings { vm, registry: Arc::clone(&scope.registry) })
}

impl Settings {
    /// Returns when the directory was made: no name in it comes or goes.
    fn made(&self) -> SystemTime {
        self.vm.as_ref().map_or_else(|| self.registry.changed(), Vm::created)
    }

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
