//! `aq rm`: a VM is ended and removed. It can be taken back out of `.trash` for a day.

use super::Failure;
use super::files::{Tree, Vm};
use super::power;
use super::progress::Progress;
use super::text::{each, note};
use crate::cli::machines::Rm;

pub(super) fn run(tree: &Tree, args: &Rm) -> Result<(), Failure> {
    each(&args.vms, |name| {
        let vm = tree.vm(name)?;
        end(&vm, if args.force { "kill" } else { "stop" })?;
        if args.erase {
            erase(&vm)?;
        } else {
            tree.rmdir(name)?;
        }
        note(format!("Removed {name}"));
        Ok(())
    })
}

fn end(vm: &Vm, verb: &str) -> Result<(), Failure> {
    // A VM that cannot be removed must not be ended.
    if vm.read("config/protect").is_ok_and(|text| text == "1") {
        let sentence =
            format!("is protected; `echo 0 > {}` first", vm.path("config/protect").display());
        return Err(Failure::Refused { what: vm.name.clone(), sentence, errno: libc::EPERM });
    }
    power::end(vm, verb)?;
    power::until_off(vm, Progress::new())
}

/// Removes a VM that is off, for good.
pub(super) fn erase(vm: &Vm) -> Result<(), Failure> {
    let tree = vm.tree();
    let earlier = removed(tree, &vm.name)?;
    tree.rmdir(&vm.name)?;
    let mut now = removed(tree, &vm.name)?.into_iter().filter(|name| !earlier.contains(name));
    now.try_for_each(|name| tree.rmdir(&format!(".trash/{name}")))
}

/// Lists what `.trash` has of VMs of this name.
fn removed(tree: &Tree, name: &str) -> Result<Vec<String>, Failure> {
    let is_of = |kept: &String| kept.rsplit_once('@').is_some_and(|(of, _)| of == name);
    Ok(tree.names(".trash")?.into_iter().filter(is_of).collect())
}
