//! `aq start`, `aq stop`: verbs, and waiting for their results.

use std::time::{Duration, Instant};

use super::Failure;
use super::environment::{self, Override};
use super::files::{Status, Tree, Vm, fact};
use super::progress::Progress;
use super::text::{each, note};
use super::timing::Timing;
use crate::cli::machines::{Start, Stop};

pub(super) fn start(tree: &Tree, args: &Start) -> Result<(), Failure> {
    let (timeout, overrides) = (Duration::from_secs(args.timeout), environment::overrides()?);
    // All begin before the first is waited for.
    let mut begun = Vec::new();
    let launched = each(&args.vms, |name| {
        let vm = tree.vm(name)?;
        adjust(&vm, &overrides)?;
        let timing = environment::wants_timing().then(|| Timing::begin(&vm)).transpose()?;
        launch(&vm)?;
        begun.push((vm, timing));
        Ok(())
    });
    let answered = each(begun, |(vm, timing)| {
        until_ready(&vm, timeout, Progress::new())?;
        note(format!("Started {}", vm.name));
        report_why_it_booted(&vm);
        timing.into_iter().for_each(Timing::end);
        Ok(())
    });
    launched.and(answered)
}

/// Reports, to a caller that waits, the setting that prevents a warm start.
fn report_why_it_booted(vm: &Vm) {
    let facts = vm.facts().unwrap_or_default();
    if let Some(reason) = fact(&facts, "warm").strip_prefix("no: ") {
        note(format!("{} booted although its image is warm: {reason}", vm.name));
    }
}

/// Applies the environment's settings to a VM that is about to be started.
fn adjust(vm: &Vm, overrides: &[Override]) -> Result<(), Failure> {
    let now = |key: &str| vm.read(&format!("config/{key}"));
    if !vm.status()?.is_off() {
        return Ok(());
    }
    for (key, value) in environment::settings(overrides, now)? {
        if now(key)? != value {
            vm.write(&format!("config/{key}"), &value)?;
        }
    }
    Ok(())
}

pub(super) fn launch(vm: &Vm) -> Result<(), Failure> {
    vm.order("start").map_err(|failure| match failure.errno() {
        libc::EALREADY => Failure::Running(vm.name.clone()),
        _ => failure,
    })
}

/// Waits until the guest answers, for `timeout` at the most once its QEMU runs.
pub(super) fn until_ready(vm: &Vm, timeout: Duration, progress: Progress) -> Result<(), Failure> {
    until_ready_while(vm, timeout, progress, || true)
}

/// The same, as long as `wants_more` says so.
pub(super) fn until_ready_while(
    vm: &Vm,
    timeout: Duration,
    mut progress: Progress,
    mut wants_more: impl FnMut() -> bool,
) -> Result<(), Failure> {
    let mut runs = None::<Instant>;
    let answer = vm.awaited("ready", || {
        let (word, doing) = doing(vm);
        progress.show(|| format!("{}: {doing}", vm.name));
        if word != "starting" {
            runs.get_or_insert_with(Instant::now);
        }
        wants_more() && word != "paused" && runs.is_none_or(|since| since.elapsed() < timeout)
    });
    drop(progress);
    match answer {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(silent(vm, timeout)),
        Err(failure) => Err(why_off(vm).unwrap_or(failure)),
    }
}

fn doing(vm: &Vm) -> (String, String) {
    let facts = vm.facts().unwrap_or_default();
    let (word, doing) = (fact(&facts, "status").to_owned(), fact(&facts, "doing"));
    let image = doing.strip_prefix("image ");
    let progress = image.map(|i| vm.tree().read_or_nothing(&format!(".images/{i}/progress")));
    let doing = match progress.filter(|p| !p.is_empty()) {
        Some(progress) => format!("{doing}: {progress}"),
        None if word == "running" => "booting".to_owned(),
        None => format!("{word} {doing}"),
    };
    (word, doing)
}

fn why_off(vm: &Vm) -> Option<Failure> {
    let status = vm.status().ok().filter(|s| s.is_off())?;
    let log = format!("`aq logs {0}` and `aq logs --qemu {0}` have more", vm.name);
    let sentence = format!("{}; {log}", status.0);
    Some(Failure::Refused { what: vm.name.clone(), sentence, errno: 0 })
}

/// Says why the wait ends, with the last line of the guest's console.
fn silent(vm: &Vm, timeout: Duration) -> Failure {
    let status = vm.status().map(|s| s.0).unwrap_or_default();
    let sentence = if status == "paused" {
        "is paused; `echo resume > ctl` continues it".to_owned()
    } else {
        let log = vm.tree().read_or_nothing(&format!("{}/console.log", vm.name));
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("nothing");
        let seconds = timeout.as_secs();
        format!(
            "runs, but its guest has not answered over SSH within {seconds} s (its last line: \
             {:?}); `aq logs {}` has the rest",
            last.trim(),
            vm.name
        )
    };
    Failure::Refused { what: vm.name.clone(), sentence, errno: libc::ETIMEDOUT }
}

pub(super) fn stop(tree: &Tree, args: &Stop) -> Result<(), Failure> {
    let verb = if args.force { "kill".to_owned() } else { format!("stop {}", args.timeout) };
    let mut begun = Vec::new();
    let ordered = each(&args.vms, |name| {
        let vm = tree.vm(name)?;
        end(&vm, &verb)?;
        begun.push(vm);
        Ok(())
    });
    ordered.and(each(&begun, |vm| until_off(vm, Progress::new())))
}

/// Writes `stop` or `kill`. One that is off already, or on the way, is fine.
pub(super) fn end(vm: &Vm, verb: &str) -> Result<(), Failure> {
    if vm.status()?.is_off() {
        return Ok(());
    }
    let mut done = vm.order(verb);
    // It is being saved, which ends by itself.
    if done.as_ref().is_err_and(|failure| failure.errno() == libc::EBUSY) {
        settled(vm, "saving", Progress::new())?;
        done = vm.order(verb);
    }
    match done {
        Err(failure) if failure.errno() == libc::EALREADY => Ok(()),
        done => done,
    }
}

/// Waits until it is off, which `stop` brings about within its timeout.
pub(super) fn until_off(vm: &Vm, progress: Progress) -> Result<(), Failure> {
    let status = settled(vm, "stopping", progress)?;
    if status.is_off() {
        return Ok(());
    }
    let sentence = format!("is {} again; another command has started it", status.0);
    Err(Failure::Refused { what: vm.name.clone(), sentence, errno: 0 })
}

/// Waits until nothing is under way and returns the status.
fn settled(vm: &Vm, doing: &str, mut progress: Progress) -> Result<Status, Failure> {
    let line = vm.awaited("wait", || {
        progress.show(|| format!("{}: {doing}", vm.name));
        true
    });
    Ok(Status(line?.unwrap_or_default()))
}
