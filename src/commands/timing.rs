//! How long the phases of a start took, for `AQ_TIMING=1`: as the VM's `events` report it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Failure;
use super::files::Vm;
use super::text::note;

/// The statuses that end a phase, and what that is called.
const PHASES: &[(&str, &str)] = &[("running", "qemu_launch"), ("ready", "wait_ssh")];

pub(super) struct Timing {
    name: String,
    ends: JoinHandle<Vec<(String, Duration)>>,
}

impl Timing {
    /// Begins to watch a VM that is about to be started.
    pub(super) fn begin(vm: &Vm) -> Result<Self, Failure> {
        let events = vm.tree().explained(&*vm.name, File::open(vm.path("events")))?;
        let began = Instant::now();
        let ends = thread::spawn(move || watch(events, began));
        Ok(Self { name: vm.name.clone(), ends })
    }

    /// Prints how long it took until the guest answered, which it has by now.
    pub(super) fn end(self) {
        let ends = self.ends.join().unwrap_or_default();
        note(format!("{}: {}", self.name, phases(&ends)));
    }
}

/// Notes when statuses came, until there is nothing more to wait for.
fn watch(events: File, began: Instant) -> Vec<(String, Duration)> {
    let mut ends = Vec::new();
    for line in BufReader::new(events).lines().map_while(Result::ok) {
        let Some((_, status)) = line.split_once(" status ") else { continue };
        ends.push((status.to_owned(), began.elapsed()));
        if !matches!(status, "starting" | "running") {
            break;
        }
    }
    ends
}

fn phases(ends: &[(String, Duration)]) -> String {
    let total = ends.last().map_or(Duration::ZERO, |(_, at)| *at);
    let (mut text, mut since) = (String::new(), Duration::ZERO);
    for (status, phase) in PHASES {
        if let Some((_, at)) = ends.iter().find(|(s, _)| s == status) {
            text.push_str(&format!("{phase} {} ms, ", at.saturating_sub(since).as_millis()));
            since = *at;
        }
    }
    format!("{text}total {} ms", total.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_lasts_from_the_end_of_the_one_before_it() {
        let at = |status: &str, ms| (status.to_owned(), Duration::from_millis(ms));
        let ends = [at("starting", 1), at("running", 300), at("ready", 2000)];
        assert_eq!(phases(&ends), "qemu_launch 300 ms, wait_ssh 1700 ms, total 2000 ms");
        assert_eq!(phases(&ends[..1]), "total 1 ms");
    }
}
