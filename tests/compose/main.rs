//! Every feature after every other: random sequences of all that the tree can do, on real guests,
//! against a plain model of what each VM's disk and memory hold, and of its identity.
//!
//! A sequence has a store and a mount of its own, and follows from its seed. One that fails is
//! shrunk to few steps and printed as shell lines that can be pasted. `make compose SECONDS=3600
//! SEED=7` runs for an hour from another seed; `AQFS_COMPOSE_STEPS` is how long a sequence is.
//!
//! The rows of `operations`, `disks`, `data_disks`, `sources`, `shares` and `nets` are what can be done, `model` is what it changes, `runner`
//! does it and `checker` looks. Kills in the *middle* of an operation are `torture`'s.
#![allow(clippy::print_stdout, reason = "reports each sequence as it ends")]

mod checker;
#[path = "../common/mod.rs"]
mod common;
mod data_disks;
mod disks;
mod known;
mod model;
mod nets;
mod operations;
mod runner;
mod shares;
mod shrink;
mod sources;

use std::time::{Duration, Instant};

use checker::Finding;
use data_disks::DATA_DISKS;
use disks::DISKS;
use fastrand::Rng;
use model::{IMAGES, Model, VMS};
use nets::NETS;
use operations::{No, Operation, POWER, Step};
use runner::{Counts, Failure};
use shares::SHARES;
use sources::{RELEASE, SOURCES};

/// What is spent where nothing else is said: CI's part.
const TIME: u64 = 120;
/// How many steps a sequence has, and those that look at everything in its end.
const STEPS: u64 = 30;
/// What shrinking one failure may take.
const SHRINKING: u64 = 300;
/// One in so many steps that would be refused is tried.
const REFUSALS: usize = 6;

#[test]
fn every_feature_after_every_other() {
    let time = Duration::from_secs(number("AQFS_COMPOSE_SECONDS").unwrap_or(TIME));
    let seed = number("AQFS_COMPOSE_SEED").unwrap_or(1);
    let begun = Instant::now();
    let (mut counts, mut sequences) = (Counts::new(), 0);
    let (mut findings, mut seen_once) = (0, 0);
    while begun.elapsed() < time {
        let seed = seed * 1_000_000 + sequences;
        sequences += 1;
        println!("sequence {seed}, after {:?}", begun.elapsed());
        let steps = sequence(&mut Rng::with_seed(seed));
        if let Some(failure) = runner::run(&steps, &mut counts) {
            match again(&steps, failure) {
                Some((steps, finding)) => {
                    println!("{}", report_of(seed, &steps, &finding));
                    findings += 1;
                }
                None => seen_once += 1,
            }
        }
    }
    report(sequences, &counts);
    println!("{findings} findings, and {seen_once} seen once and not again by the same steps");
    assert_eq!(findings, 0, "findings, reported above");
}

/// Lists every row.
pub(crate) fn all_operations() -> impl Iterator<Item = &'static Operation> {
    POWER.iter().chain(DISKS).chain(SOURCES).chain(SHARES).chain(NETS).chain(DATA_DISKS)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Chooses steps, each of which fits after those before it; in the end all VMs are looked into.
fn sequence(random: &mut Rng) -> Vec<Step> {
    let rows: Vec<Weighted> = all_operations().map(|row| (weight(row), row)).collect();
    let (mut model, mut steps) = (Model::default(), Vec::new());
    let length = number("AQFS_COMPOSE_STEPS").unwrap_or(STEPS);
    while (steps.len() as u64) < length {
        let Some(step) = choose(random, &rows, &model) else { continue };
        if known::is_left_out(&model, &step) {
            continue;
        }
        match step.fits(&model) {
            Ok(()) => (step.operation.then)(&mut model, &step),
            Err(No::Errno(_)) if random.usize(..REFUSALS) == 0 => {}
            Err(_) => continue,
        }
        steps.push(step);
    }
    ending(&mut model, &mut steps);
    steps
}

/// `AQFS_COMPOSE_MORE=share` has what is named so come more often.
fn weight(row: &Operation) -> usize {
    let more = std::env::var("AQFS_COMPOSE_MORE").is_ok_and(|part| row.name.contains(&part));
    if more { row.weight * 4 } else { row.weight }
}

/// How often an operation comes, compared with the others.
type Weighted = (usize, &'static Operation);

fn choose(random: &mut Rng, rows: &[Weighted], model: &Model) -> Option<Step> {
    let all: usize = rows.iter().map(|(weight, _)| weight).sum();
    let mut at = random.usize(..all);
    let (_, operation) = *rows.iter().find(|(weight, _)| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    })?;
    // Half of the time one that is there, so that sequences are about few VMs and go deep.
    let there: Vec<&str> = model.vms.keys().map(String::as_str).collect();
    let vm = random.choice(there).filter(|_| random.bool()).or_else(|| random.choice(VMS).copied());
    let vm = vm?.to_owned();
    let word = random.choice((operation.words)(model, &vm))?;
    Some(Step { operation, vm, word })
}

/// Brings back what was removed, and starts whatever is off, to look into it.
fn ending(model: &mut Model, steps: &mut Vec<Step>) {
    let row = |name| POWER.iter().find(|row| row.name == name);
    let mut add = |model: &mut Model, name, vm: &str, word: &str| {
        let Some(operation) = row(name) else { return };
        let step = Step { operation, vm: vm.to_owned(), word: word.to_owned() };
        if step.fits(model) == Ok(()) {
            (step.operation.then)(model, &step);
            steps.push(step);
        }
    };
    for vm in VMS {
        if model.vms.get(*vm).is_some_and(|vm| vm.running.is_some()) {
            add(model, "kill", vm, "");
        }
        if let Some(removed) = model.trash.last().map(|removed| removed.name.clone()) {
            add(model, "undo", vm, &removed);
        }
        add(model, "start", vm, "");
        add(model, "kill", vm, "");
    }
}

/// Does the same once more, and shrinks it if it fails again. What does not, as a bound that was too
/// tight on a busy machine, is reported, and is no finding.
fn again(steps: &[Step], failure: Failure) -> Option<(Vec<Step>, Finding)> {
    let kind = failure.finding.kind;
    println!("seen after {} steps: {kind}\n# {}", failure.at + 1, failure.finding.text);
    let limit = number("AQFS_COMPOSE_SHRINKING").unwrap_or(SHRINKING);
    let (begun, limit) = (Instant::now(), Duration::from_secs(limit));
    let mut finding = None;
    let mut fails = |steps: &[Step]| {
        let again = runner::run(steps, &mut Counts::new());
        let again = again.map(|failure| failure.finding).filter(|again| again.kind == kind);
        let is_again = again.is_some();
        finding = again.or(finding.take());
        is_again
    };
    let steps = &steps[..steps.len().min(failure.at + 1)];
    let guesses = [accepted(&related(steps)), related(steps), steps.to_vec()];
    let few = guesses.iter().find(|guess| fails(guess))?;
    let few = shrink::shrink(few, || begun.elapsed() < limit, fails);
    finding.map(|finding| (few, finding))
}

/// Says how to see a failure.
fn report_of(seed: u64, steps: &[Step], finding: &Finding) -> String {
    let (kind, text) = (&finding.kind, finding.text.replace('\n', "\n# "));
    let before = format!("cat > $SOURCES/release <<'END'\n{RELEASE}END\n{BEFORE}");
    format!(
        "FOUND by sequence {seed}: {kind}\n{VARIABLES}\n{before}\n{}\n# {text}\n",
        pasted(steps)
    )
}

/// Of steps, those that have to do with the last one, as their names have it. Whatever is refused
/// and whatever happens to the daemon is left out.
fn related(steps: &[Step]) -> Vec<Step> {
    let words = |step: &Step| -> Vec<String> {
        let mut words = vec![step.vm.clone()];
        words.extend(
            step.word
                .split(' ')
                .filter(|w| VMS.contains(w) || IMAGES.contains(w))
                .map(str::to_owned),
        );
        words
    };
    let Some(last) = steps.last() else { return Vec::new() };
    let mut names = words(last);
    let mut related = vec![last.clone()];
    for step in steps.iter().rev().skip(1) {
        let about_all =
            step.operation.name.contains("mount") || step.operation.name.contains("daemon");
        let theirs = words(step);
        if !about_all && theirs.iter().any(|word| names.contains(word)) {
            names.extend(theirs);
            related.push(step.clone());
        }
    }
    related.reverse();
    related
}

/// Of steps, those that are not refused, and the last.
fn accepted(steps: &[Step]) -> Vec<Step> {
    let mut model = Model::default();
    let mut accepted = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let fits = step.fits(&model) == Ok(());
        if fits {
            (step.operation.then)(&mut model, step);
        }
        if fits || at + 1 == steps.len() {
            accepted.push(step.clone());
        }
    }
    accepted
}

const VARIABLES: &str =
    "export AQ_MOUNT=$(mktemp -d) STORE=$(mktemp -d) SOURCES=$(mktemp -d) OUT=$(mktemp -d)";
/// A registry with an image `x`, and a row of images.toml for `mine`, have to be there for the lines that
/// name them.
const BEFORE: &str = "bash -e $SOURCES/release 1; export MIRROR=8000
python3 -m http.server -b 127.0.0.1 -d $SOURCES/www $MIRROR &
aq mount $AQ_MOUNT --store $STORE; cd $AQ_MOUNT";

/// Returns steps as a user types them.
fn pasted(steps: &[Step]) -> String {
    let mut model = Model::default();
    let mut lines = Vec::new();
    for step in steps {
        match step.fits(&model) {
            Ok(()) => {
                lines.push(step.lines(&model));
                (step.operation.then)(&mut model, step);
            }
            Err(No::Errno(_)) => {
                lines.push(format!("{}   # refused", (step.operation.request)(step)));
            }
            Err(No::Unfit) => {}
        }
    }
    lines.join("\n")
}

fn report(sequences: u64, counts: &Counts) {
    println!("{sequences} sequences");
    let (mut done, mut refused) = (0, 0);
    for (name, (times, refusals, took)) in counts {
        println!("{times:6} {refusals:6} refused  {:6.1} s  {name}", took.as_secs_f64());
        (done, refused) = (done + times, refused + refusals);
    }
    println!("{done:6} {refused:6} refused  in all");
}

#[test]
fn a_sequence_follows_from_its_seed_and_does_much() {
    let lines = |seed| pasted(&sequence(&mut Rng::with_seed(seed)));
    assert_eq!(lines(7), lines(7));
    assert_ne!(lines(7), lines(8));
    let all: Vec<Step> = (0..300).flat_map(|seed| sequence(&mut Rng::with_seed(seed))).collect();
    for operation in all_operations() {
        let times = all.iter().filter(|step| step.operation.name == operation.name).count();
        assert!(times >= 5, "{} comes {times} times", operation.name);
    }
}
