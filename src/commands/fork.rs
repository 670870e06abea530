//! `aq fork`: running copies of a VM that runs, all of them or none.

use std::time::Duration;

use super::Failure;
use super::files::{Tree, Vm};
use super::power::until_ready;
use super::progress::Progress;
use super::text::{each, line};
use crate::cli::machines::Fork;

/// How often other names are made up when another program has taken one of them meanwhile.
const TRIES: usize = 5;

pub(super) fn run(tree: &Tree, args: &Fork) -> Result<(), Failure> {
    let parent = tree.vm(&args.vm)?;
    let names = if args.names.is_empty() {
        fork_any(tree, &parent, args.count.unwrap_or(1))?
    } else {
        fork(&parent, args.names.clone())?
    };
    let timeout = Duration::from_secs(args.timeout);
    each(&names, |name| {
        until_ready(&tree.vm(name)?, timeout, Progress::new())?;
        line(name)
    })
}

/// Forks under names that nobody has.
fn fork_any(tree: &Tree, parent: &Vm, count: u32) -> Result<Vec<String>, Failure> {
    for _ in 1..TRIES {
        match fork(parent, free_names(tree, &parent.name, count)?) {
            Err(failure) if failure.errno() == libc::EEXIST => {}
            done => return done,
        }
    }
    fork(parent, free_names(tree, &parent.name, count)?)
}

fn free_names(tree: &Tree, prefix: &str, count: u32) -> Result<Vec<String>, Failure> {
    let taken = tree.names("")?;
    let names = (0u32..).map(|n| format!("{prefix}-{n}")).filter(|name| !taken.contains(name));
    Ok(names.take(count as usize).collect())
}

pub(super) fn fork(parent: &Vm, names: Vec<String>) -> Result<Vec<String>, Failure> {
    parent.order(&format!("fork {}", names.join(" ")))?;
    Ok(names)
}
