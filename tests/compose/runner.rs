//! Doing: steps on a store and mount of their own, the model beside it, looked at after each.
//!
//! Not here: which steps, and in which order (`main`, `shrink`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::checker::{self, Checked, Finding, Guests};
use super::model::Model;
use super::operations::{No, Step};
use super::sources::Sources;
use crate::common::{Mounted, Output, audit};

/// What any step may take; within it each wait has a bound of its own.
const STEP: Duration = Duration::from_secs(300);

/// How often each operation was done and how long that took in all; refusals apart.
pub(crate) type Counts = BTreeMap<&'static str, (u32, u32, Duration)>;

/// A step that went wrong.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// Which one; the number of steps if it is what was left behind in the end.
    pub(crate) at: usize,
    pub(crate) finding: Finding,
}

struct Runner {
    aq: Mounted,
    sources: Sources,
    model: Model,
    guests: Guests,
}

/// Does steps on a fresh store. Those that do not fit where they stand, as others before them were
/// left out, are passed over.
pub(crate) fn run(steps: &[Step], counts: &mut Counts) -> Option<Failure> {
    let mut at = 0;
    let done = quietly(|| {
        let sources = Sources::new();
        let aq = Mounted::with_image_and_distributions(&sources.distributions());
        aq.sh("mkdir $SCRATCH/out").ok();
        if let Ok(firmware) = std::env::var("AQFS_COMPOSE_FIRMWARE") {
            aq.sh(&format!("echo {firmware} > .defaults/firmware")).ok();
        }
        let (model, guests) = (Model::default(), Guests::default());
        let mut runner = Runner { aq, sources, model, guests };
        let mut failure = None;
        for (number, step) in steps.iter().enumerate() {
            at = number;
            if let Err(finding) = runner.step(step, counts) {
                failure = Some(runner.explained(finding));
                break;
            }
        }
        if failure.is_none() {
            at = steps.len();
            failure = runner.audited().err();
        }
        failure
        // Here the mount and its guests are ended, which finds what is left behind.
    });
    let finding = match done {
        Ok(None) => return None,
        Ok(Some(finding)) => finding,
        Err(text) if text.contains("still running after") => Finding::new("hangs", text),
        Err(text) if text.contains("left behind") => Finding::new("left behind", text),
        Err(text) => Finding::new("fault", text),
    };
    Some(Failure { at, finding })
}

/// Turns a panic of the harness, such as that of a script over its bound, into its text.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned())
    })
}

impl Runner {
    fn step(&mut self, step: &Step, counts: &mut Counts) -> Checked {
        let fits = step.fits(&self.model);
        if fits == Err(No::Unfit) {
            return Ok(());
        }
        let begun = Instant::now();
        let count = counts.entry(step.operation.name).or_default();
        let touched = match fits {
            Err(No::Errno(errno)) => {
                count.1 += 1;
                self.refused(step, errno)?;
                false
            }
            _ => {
                count.0 += 1;
                self.done(step)?;
                true
            }
        };
        let checked = self.look(step, touched);
        counts.entry(step.operation.name).or_default().2 += begun.elapsed();
        checked
    }

    fn done(&mut self, step: &Step) -> Checked {
        let said = self.sh(&step.lines(&self.model));
        let kind = match said.code {
            0 => {
                (step.operation.then)(&mut self.model, step);
                return Ok(());
            }
            124 => "hangs",
            _ => "fails",
        };
        Err(Finding::new(&format!("{}: {kind}", step.operation.name), said_in_words(&said)))
    }

    fn refused(&self, step: &Step, errno: i32) -> Checked {
        let said = self.sh(&(step.operation.request)(step));
        let words = io::Error::from_raw_os_error(errno).to_string();
        let words = words.split(" (os error").next().unwrap_or_default();
        if said.code != 0 && said.stderr.contains(words) {
            return Ok(());
        }
        let kind = format!("{}: not refused", step.operation.name);
        Err(Finding::new(&kind, format!("{words} expected: {}", said_in_words(&said))))
    }

    /// Looks at everything that can be seen without a guest, and into the guests of the step.
    fn look(&mut self, step: &Step, touched: bool) -> Checked {
        checker::tree(&self.aq, &self.model)?;
        let all = step.operation.name.contains("mount") || step.operation.name.contains("daemon");
        let about = |name: &String| all || *name == step.vm || *name == step.word;
        for (name, vm) in self.model.vms.iter().filter(|(name, _)| about(name)) {
            checker::disk(&self.aq, name, vm)?;
            if touched {
                self.guests.look(&self.aq, name, vm)?;
                checker::share(&self.aq, name, vm, &self.model)?;
                checker::net(&self.aq, name, vm, &self.model)?;
                checker::data_disk(&self.aq, name, vm)?;
            }
        }
        Ok(())
    }

    /// Looks at the store from outside, as soon as nothing runs on it: every image and file.
    fn audited(&self) -> Checked {
        let mut found = Vec::new();
        if self.model.live() == 0 {
            audit::processes(&self.aq, &mut found);
            audit::images(&self.aq, &mut found);
            audit::disks(&self.aq, audit::Leaks::Tolerated, &mut found);
            audit::files(&self.aq, &mut found);
            audit::variables(&self.aq, &mut found);
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err(Finding::new("audit", found.join("\n"))),
        }
    }

    /// Runs lines as a user in the mount does, until one fails.
    fn sh(&self, lines: &str) -> Output {
        let script = format!(
            "set -e -o pipefail; STORE=$SCRATCH/store OUT=$SCRATCH/out; export {}; cd $AQ_MOUNT\n{lines}",
            self.sources.variables()
        );
        self.aq.cli_within(&script, STEP)
    }

    /// Adds what the mount says of a failure.
    fn explained(&self, finding: Finding) -> Finding {
        let script = "tail -n 2 .error; for vm in */; do
            echo \"$vm $(cat $vm/status): $(cat $vm/error)\"; grep -E '^(warm|pending)' $vm/info
            grep -v '^aq: launch' $vm/log | tail -n 2 | cut -c 1-200; done 2>&1
            for image in .images/*; do echo \"$image $(cat $image/{status,progress} | tr '\\n' ' ')\"; done";
        let said = quietly(|| self.aq.sh_within(script, Duration::from_secs(20)));
        let mut text = finding.text;
        if let Ok(said) = said {
            let _infallible = write!(text, "\n{}", said.stdout.trim_end());
        }
        Finding { text, ..finding }
    }
}

fn said_in_words(said: &Output) -> String {
    format!("status {}: {}{}", said.code, said.stdout, said.stderr).trim_end().to_owned()
}
