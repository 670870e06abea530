//! Which VMs are to be removed because they have ended: `config/autoremove` (`doc/adr/0030-removal-at-the-end.md`).
//!
//! Not here: removing them (`fuse::touch`), which is done through the mount, so that the kernel knows of it.

use super::Registry;
use crate::vm::Vm;
use crate::vm::state::State;

impl Registry {
    /// Lists the VMs that ended under an earlier daemon, or while there was none, and are to be removed.
    pub fn over_before(&self) -> Vec<String> {
        let over = self.list().into_iter().filter(|(_, vm)| vm.state().is_off() && may_go(vm));
        over.map(|(name, _)| name).collect()
    }

    /// Says whether the VM of a name has ended and is to be removed. One that has failed stays until the
    /// next mount, so that its `error` and `log` can be read.
    pub fn is_over(&self, name: &str) -> bool {
        self.get(name).is_some_and(|vm| vm.state() == State::Stopped && may_go(&vm))
    }
}

/// Says whether a VM has run and is nothing to come back to.
fn may_go(vm: &Vm) -> bool {
    vm.spec().autoremove && vm.dir().disk().exists() && !vm.is_suspended()
}
