//! `aq wait`: until a VM has a status, as its own files report it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use super::files::{LOOK, Status, Tree, Vm, is_readable};
use super::progress::Progress;
use super::text::line;
use super::{Failure, Near};
use crate::cli::machines::Wait;

pub(super) fn run(tree: &Tree, args: &Wait) -> Result<(), Failure> {
    let vm = tree.vm(&args.vm)?;
    let deadline = args.timeout.map(|s| Instant::now() + Duration::from_secs(s));
    let in_time = || deadline.is_none_or(|d| Instant::now() < d);
    let status = match &args.status {
        Some(wanted) => until(&vm, wanted, in_time)?,
        None => {
            let mut progress = Progress::new();
            vm.awaited("wait", || {
                progress.show(|| format!("{}: waiting", vm.name));
                in_time()
            })?
        }
    };
    line(status.ok_or_else(|| late(&vm))?)
}

fn late(vm: &Vm) -> Failure {
    let status = vm.status().map_or_else(|_| "gone".to_owned(), |s| s.0);
    let sentence = format!("is still {status}");
    Failure::Refused { what: vm.name.clone(), sentence, errno: libc::ETIMEDOUT }
}

/// Waits for a status; `None` when the time is over. It looks after it has begun to listen, so that
/// no change is missed.
fn until(vm: &Vm, wanted: &str, in_time: impl Fn() -> bool) -> Result<Option<String>, Failure> {
    let opened = vm.tree().explained(&*vm.name, File::open(vm.path("events")))?;
    let mut events = BufReader::new(opened);
    let mut progress = Progress::new();
    let mut status = vm.status()?;
    loop {
        if has(&status, wanted) {
            return Ok(Some(status.0));
        }
        if matches!(status.word(), "failed" | "unreachable" | "broken") {
            // A VM that has failed reaches no other status by itself.
            let sentence = status.0;
            return Err(Failure::Refused { what: vm.name.clone(), sentence, errno: 0 });
        }
        while events.buffer().is_empty() && !is_readable(events.get_ref(), LOOK) {
            progress.show(|| format!("{}: {} until {wanted}", vm.name, status.0));
            if !in_time() {
                return Ok(None);
            }
        }
        let mut event = String::new();
        vm.tree().explained(&*vm.name, events.read_line(&mut event))?;
        let words = event.trim_end().split_once(' ').map_or("", |(_, words)| words);
        match words.strip_prefix("status ") {
            Some(line) => status = Status(line.to_owned()),
            None if words == "removed" => {
                return Err(Failure::NoVm(vm.name.clone(), Near::default()));
            }
            None if words.starts_with("- missed") => status = vm.status()?,
            None => {}
        }
    }
}

/// A guest that answers runs, too.
fn has(status: &Status, wanted: &str) -> bool {
    status.word() == wanted || (wanted == "running" && status.word() == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_also_running_and_nothing_else_is_anything_else() {
        let has = |status: &str, wanted: &str| has(&Status(status.to_owned()), wanted);
        assert!(has("ready", "running") && has("failed: x", "failed"));
        assert!(!has("running", "ready") && !has("paused", "running"));
    }
}
