//! `aq new`: VMs with their settings, all of them or none.

use std::convert;
use std::sync::mpsc;

use super::environment::{self, Override};
use super::files::{Tree, Vm};
use super::text::{line, note};
use super::volume::Volume;
use super::{Failure, names, signals};
use crate::cli::machines::New;

/// How often a made-up name is made up again when it is taken.
const TRIES: usize = 20;

pub(super) fn run(tree: &Tree, args: &New) -> Result<(), Failure> {
    if args.skip_fast_boot {
        note("aq: --skip-fast-boot means nothing here: each image boots as it needs to");
    }
    let given = given(tree, args)?;
    let made = make(tree, args, &given)?;
    note(if made.len() == 1 { "Created:".to_owned() } else { format!("Created {}:", made.len()) });
    made.iter().try_for_each(|vm| line(&vm.name))
}

pub(super) struct Given {
    /// Files of `config/` and their values.
    pub(super) settings: Vec<(&'static str, String)>,
    /// What the environment asks for, beside what they then have: of their image, or of
    /// `.defaults`.
    pub(super) overrides: Vec<Override>,
    /// Directories of this host that the guest is to have.
    pub(super) volumes: Vec<Volume>,
}

fn given(tree: &Tree, args: &New) -> Result<Given, Failure> {
    let image = args.image.as_deref().map(|name| tree.image(name)).transpose()?;
    let ports = args.ports.iter().map(|p| forward(p)).collect::<Vec<_>>().join("\n");
    let given = [
        ("image", image),
        ("disk", args.size.clone()),
        ("memory", args.memory.clone()),
        ("cpus", args.cpus.map(|n| n.to_string())),
        ("ports", Some(ports).filter(|p| !p.is_empty())),
    ];
    let settings = given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    Ok(Given { settings, overrides: environment::overrides()?, volumes: volumes(&args.volumes)? })
}

pub(super) fn volumes(given: &[String]) -> Result<Vec<Volume>, Failure> {
    given.iter().map(|text| Volume::parse(text)).collect()
}

/// A number alone is the port on both sides.
pub(super) fn forward(text: &str) -> String {
    if text.parse::<u16>().is_ok() { format!("{text}:{text}") } else { text.to_owned() }
}

/// Makes them all; after a failure or a signal none of them is there.
fn make(tree: &Tree, args: &New, given: &Given) -> Result<Vec<Vm>, Failure> {
    let (sender, receiver) = mpsc::channel();
    signals::forward(sender, convert::identity)?;
    let mut made = Vec::new();
    for name in wanted(args) {
        let vm = match name {
            Some(name) => create(tree, &name, given),
            None => create_any(tree, given),
        };
        let done = vm.map(|vm| made.push(vm)).and_then(|()| match receiver.try_recv() {
            Ok(signal) => Err(Failure::Reported(signals::exit_code(signal))),
            Err(_) => Ok(()),
        });
        if let Err(failure) = done {
            // They have never run: nothing is kept of them.
            made.iter().for_each(|vm: &Vm| drop(tree.rmdir(&vm.name)));
            return Err(failure);
        }
    }
    Ok(made)
}

fn wanted(args: &New) -> Vec<Option<String>> {
    if args.count == 1 {
        return vec![args.name.clone()];
    }
    let prefix = args.name.clone().unwrap_or_else(|| format!("shard-{}", std::process::id()));
    (0..args.count).map(|n| Some(format!("{prefix}-{n}"))).collect()
}

pub(super) fn create_any(tree: &Tree, given: &Given) -> Result<Vm, Failure> {
    for _ in 1..TRIES {
        match create(tree, &names::random(), given) {
            Err(Failure::Exists(_)) => {}
            done => return done,
        }
    }
    create(tree, &names::random(), given)
}

/// Makes a VM with settings. One whose settings are refused is not left behind.
pub(super) fn create(tree: &Tree, name: &str, given: &Given) -> Result<Vm, Failure> {
    names::expect_one(name)?;
    tree.mkdir(name).map_err(|failure| match failure.errno() {
        libc::EEXIST => Failure::Exists(name.to_owned()),
        _ => failure,
    })?;
    let vm = tree.vm(name)?;
    if let Err(failure) = set(&vm, given) {
        drop(tree.rmdir(name));
        return Err(failure.about(name.to_owned()));
    }
    Ok(vm)
}

fn set(vm: &Vm, given: &Given) -> Result<(), Failure> {
    let write = |(key, value): &(&str, String)| vm.write(&format!("config/{key}"), value);
    given.settings.iter().try_for_each(write)?;
    given.volumes.iter().try_for_each(|volume| volume.make(vm))?;
    let now = |key: &str| vm.read(&format!("config/{key}"));
    environment::settings(&given.overrides, now)?.iter().try_for_each(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_is_both_ports() {
        assert_eq!(forward("8080"), "8080:8080");
        assert_eq!(forward("8080:80"), "8080:80");
        assert_eq!(forward("udp:5353:53"), "udp:5353:53");
    }
}
