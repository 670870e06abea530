//! The state machine without a runtime: where each input leads from each phase, and that nobody who
//! asks is left without an answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;

use super::super::effect::{Effect, Step};
use super::super::task::{Configured, Report};
use super::super::verb::MachineVerb;
use super::*;
use crate::vm::Action;
use crate::vm::backend::*;
use crate::vm::fake::{self, Script};
use crate::vm::spec::Edit;
use crate::vm::state::Command;
use crate::vm::template::Purpose;

/// Says whether whoever waits for an answer was left without one.
type Forgotten = Box<dyn FnMut() -> bool>;

/// What the inputs of a test are made of.
struct Inputs {
    script: Arc<Script>,
    asked: Vec<Forgotten>,
}

impl Inputs {
    fn new() -> Self {
        Self { script: Arc::default(), asked: Vec::new() }
    }

    fn answer(&mut self) -> Answer {
        let (answer, mut heard) = oneshot::channel();
        let mut is_answered = false;
        self.asked.push(Box::new(move || {
            let heard = heard.try_recv();
            is_answered |= heard.is_ok();
            !is_answered && matches!(heard, Err(TryRecvError::Closed))
        }));
        answer
    }

    fn launched(&self, paused: bool) -> Launched {
        fake::launched(&self.script, LaunchPlan { paused, ..fake::plan() })
    }

    /// Makes an input by its name in the table.
    fn named(&mut self, name: &str, phase: &Phase) -> Input {
        if let Some(command) = command(name) {
            return self.request(Action::Command(command));
        }
        if let Some(action) = action(name) {
            return self.request(action);
        }
        if let Some(event) = event(name) {
            return Input::Event(event);
        }
        let start = self.report_of_start(name);
        Input::Report(start.unwrap_or_else(|| self.report_of_machine(name, phase)))
    }

    fn request(&mut self, action: Action) -> Input {
        Input::Request(Request { action, answer: self.answer() }, None)
    }

    fn report_of_start(&mut self, name: &str) -> Option<Report> {
        Some(match name {
            "planned" => Report::Planned(Ok(Box::new(fake::plan()))),
            "not planned" => Report::Planned(Err(failure())),
            "launched" => Report::Launched(Ok(self.launched(false))),
            "launched paused" => {
                Report::Launched(Ok(Launched { clock_is_behind: true, ..self.launched(true) }))
            }
            "not launched" => Report::Launched(Err(failure())),
            "start overdue" => Report::AnswerOverdue,
            "found none" => Report::Found(Adoption::NeverRan),
            "found running" => Report::Found(Adoption::Running(self.launched(false))),
            "found ended" => Report::Found(Adoption::Ended("x".into())),
            "found unclear" => Report::Found(Adoption::Unclear("x".into())),
            "silent" => Report::Silent(Ok(fake::silent(&self.script)), self.answer()),
            "not silent" => Report::Silent(Err(failure()), self.answer()),
            "silent ended" => Report::SilentEnded(Ok(())),
            "silent not ended" => Report::SilentEnded(Err(failure())),
            "retired" => Report::Retired { is_gone: true },
            "not retired" => Report::Retired { is_gone: false },
            _ => return None,
        })
    }

    fn report_of_machine(&mut self, name: &str, phase: &Phase) -> Report {
        let other = self.launched(false).machine;
        let machine =
            phase.machine().map_or_else(|| Arc::clone(&other), |m| Arc::clone(&m.machine));
        let done = |machine, verb, answer| Report::MachineVerb(machine, verb, Ok(()), answer);
        match name {
            "connected" => Report::Connected(fake::session(&self.script), Duration::ZERO),
            "clock set" => Report::ClockSet,
            "lost" => Report::Lost,
            "note" => Report::Note("x".into()),
            "pause done" => done(machine, MachineVerb::Pause, self.answer()),
            "resume done" => done(machine, MachineVerb::Resume, self.answer()),
            "reset done" => done(machine, MachineVerb::Reset, self.answer()),
            "pause of another done" => done(other, MachineVerb::Pause, self.answer()),
            "configured" => {
                let (machine, answer) = (Some(machine), self.answer());
                let change = Configured { machine, in_force: None, done: Ok(()), answer };
                Report::Configured(Box::new(change))
            }
            "snapshot done" => Report::SnapshotDone(Ok(())),
            "snapshot failed" => Report::SnapshotDone(Err(failure())),
            "snapshot died" => Report::SnapshotDone(Err(died().error())),
            "snapshot overdue" => Report::AnswerOverdue,
            "unpinned" => Report::Unpinned,
            "capture ended" => Report::CaptureEnded(machine),
            "capture of another ended" => Report::CaptureEnded(other),
            "stop overdue" => Report::StopOverdue,
            "killed" => Report::Killed(Ok(())),
            "not killed" => Report::Killed(Err(failure())),
            unknown => panic!("{unknown}"),
        }
    }
}

fn action(name: &str) -> Option<Action> {
    Some(match name {
        "pin" => Action::Pin(tag(), oneshot::channel().1),
        "capture" => Action::Capture(Purpose::Template, PathBuf::new(), oneshot::channel().0),
        "retire" => Action::Retire(None, oneshot::channel().1),
        _ => return None,
    })
}

fn command(name: &str) -> Option<Command> {
    Some(match name {
        "start" => Command::Start { paused: false },
        "stop" => Command::Stop { seconds: 1 },
        "kill" => Command::Kill,
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "reset" => Command::Reset,
        "key" => Command::PressKeys { chords: Vec::new() },
        "port" => Command::Configure(Edit::AddPort("1:1".parse().unwrap())),
        "suspend" => Command::Suspend,
        "take" => SnapshotOp::Take(tag()).into(),
        "restore" => SnapshotOp::Restore(tag()).into(),
        "rename" => SnapshotOp::Rename { from: tag(), to: tag() }.into(),
        "drop" => SnapshotOp::Drop(tag()).into(),
        "configure" => Command::Configure(Edit::Disk(1)),
        "remove" => Command::Remove,
        _ => return None,
    })
}

fn event(name: &str) -> Option<MachineEvent> {
    Some(match name {
        "STOP" => MachineEvent::Paused,
        "RESUME" => MachineEvent::Resumed,
        "RESET" => MachineEvent::Reset,
        "announced" => MachineEvent::Announced,
        "SHUTDOWN" => MachineEvent::ShutDown { by_guest: true },
        "disk full" => MachineEvent::DiskFull,
        "exited" => fake::clean_exit(),
        "died" => MachineEvent::Exited(died()),
        _ => return None,
    })
}

fn tag() -> String {
    "a".to_owned()
}

fn failure() -> BackendError {
    BackendError::NoSpace { what: "the test".into() }
}

fn died() -> ExitReport {
    let (status, stderr) = ("signal KILL".into(), String::new());
    ExitReport { clean: false, status, stderr, unusable: None }
}

/// A phase, and what it reacts to.
struct Machine {
    phase: Phase,
    inputs: Inputs,
    now: Instant,
    /// Effects that hold somebody's answer.
    under_way: Vec<Effect>,
}

impl Machine {
    fn at(path: &[&str]) -> Self {
        let (inputs, now) = (Inputs::new(), Instant::now());
        let mut machine = Self { phase: Phase::default(), inputs, now, under_way: Vec::new() };
        path.iter().for_each(|name| drop(machine.take(name)));
        machine
    }

    /// Takes a step, a second after the last one; returns the names of its effects.
    fn take(&mut self, name: &str) -> Vec<String> {
        let input = self.inputs.named(name, &self.phase);
        self.now += Duration::from_secs(1);
        let (phase, step) = mem::take(&mut self.phase).step(input, self.now);
        self.phase = phase;
        let Step { first, then, .. } = step;
        let effects: Vec<Effect> = first.into_iter().chain(then).collect();
        let names = effects.iter().map(|e| word(&format!("{e:?}"))).collect();
        effects.into_iter().for_each(|effect| self.perform(effect));
        names
    }

    fn perform(&mut self, effect: Effect) {
        if let Effect::Answer(answer, result) | Effect::EndChange(answer, result) = effect {
            drop(answer.send(result));
        } else {
            self.under_way.push(effect);
        }
    }

    fn leaves_nobody_waiting(&mut self) -> bool {
        !self.inputs.asked.iter_mut().any(|is_forgotten| is_forgotten())
    }
}

/// Returns the name of a variant as `Debug` prints it.
fn word(debug: &str) -> String {
    debug.chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// Phases, each by a letter and the inputs that lead to it.
const PHASES: &[(char, &[&str])] = &[
    ('o', &[]),
    ('f', &["found ended"]),
    ('d', &["take"]),
    ('i', &["pin"]),
    ('m', &["retire"]),
    ('p', &["start"]),
    ('l', &["start", "planned"]),
    ('c', &["start", "planned", "kill"]),
    ('r', &["start", "planned", "launched"]),
    ('R', &["start", "planned", "launched", "connected", "clock set"]),
    ('P', &["start", "planned", "launched", "STOP"]),
    ('S', &["start", "planned", "launched", "take"]),
    ('Z', &["start", "planned", "launched", "suspend"]),
    ('C', &["start", "planned", "launched", "connected", "clock set", "capture"]),
    ('T', &["start", "planned", "launched", "stop"]),
    ('K', &["start", "planned", "launched", "take", "kill"]),
    ('u', &["found unclear"]),
    ('e', &["found unclear", "silent"]),
];

/// Returns the letter of a phase.
fn letter(phase: &Phase) -> char {
    match phase {
        Phase::Off(Rest::Stopped) => 'o',
        Phase::Off(Rest::Failed(_)) => 'f',
        Phase::Off(Rest::Broken(_)) => 'b',
        Phase::UsingDisk(_, DiskUse::Snapshot(_)) => 'd',
        Phase::UsingDisk(_, DiskUse::Image(_)) => 'i',
        Phase::Removing(_) => 'm',
        Phase::Removed(_) => 'x',
        Phase::Starting(start) => match start.stage {
            StartStage::Planning { .. } => 'p',
            StartStage::Launching => 'l',
            StartStage::CalledOff => 'c',
        },
        Phase::Running(machine, activity) => match activity {
            Activity::Idle if machine.state() == State::Paused => 'P',
            Activity::Idle if machine.state() == State::Ready => 'R',
            Activity::Idle => 'r',
            Activity::Snapshot(job) => {
                if job.ends_machine {
                    'Z'
                } else {
                    'S'
                }
            }
            Activity::Capture => 'C',
            Activity::Stopping { unfinished: None, .. } => 'T',
            Activity::Stopping { unfinished: Some(_), .. } => 'K',
        },
        Phase::Unreachable { .. } => 'u',
        Phase::EndingSilent { .. } => 'e',
    }
}

#[test]
fn the_path_to_each_phase_leads_there() {
    for (expected, path) in PHASES {
        assert_eq!(letter(&Machine::at(path).phase), *expected, "{path:?}");
    }
}

/// The whole machine: where each input leads from each phase; `.` leaves it as it is.
const TABLE: &str = "
phase                       ofdimplcrRPSZCTKue
start                       pp................
stop                        .....oc.TTT.......
kill                        .....oc.TTTKKT....
pause                       ..................
resume                      ..................
reset                       ..................
key                         ..................
port                        ..................
suspend                     ........ZZZ.......
take                        dd......SSS.......
restore                     dd......SSS.......
drop                        dd......SSS.......
rename                      dd......SSS.......
remove                      xx................
configure                   ..................
pin                         ii................
capture                     .........C........
retire                      mm................
STOP                        ........PP........
RESUME                      ..........r.......
RESET                       .........r........
announced                   ..................
SHUTDOWN                    ........TTTKKT....
disk full                   ........PP........
exited                      ........oooooooo..
died                        ........ffffffoo..
planned                     .....l............
not planned                 .....o............
launched                    .....rrT..........
launched paused             .....PPT..........
not launched                .....ofo..........
start overdue               ..................
found none                  ................o.
found running               rr..............r.
found ended                 f...............f.
found unclear               uu................
silent                      .....oc.TTTKKT..e.
not silent                  .....oc.TTTKKT....
silent ended                .................o
silent not ended            .................u
connected                   ..................
clock set                   ..................
lost                        .........r........
note                        ..................
pause done                  ........PP........
resume done                 ..........r.......
reset done                  .........r........
pause of another done       ..................
configured                  ..................
snapshot done               ..o........rT..T..
snapshot failed             ..o........rr..T..
snapshot died               ..o...............
snapshot overdue            ..................
unpinned                    ...o..............
capture ended               .............R....
capture of another ended    ..................
stop overdue                .....oc.TTTKKT....
killed                      ..................
not killed                  ..................
retired                     ....x.............
not retired                 ....o.............
";

#[test]
fn every_input_leads_from_every_phase_where_the_table_says() {
    let mut rows = String::from("\n");
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let name = line[..28].trim();
        let cells: String = match name {
            "phase" => PHASES.iter().map(|(letter, _)| *letter).collect(),
            input => PHASES.iter().map(|(from, path)| next(*from, path, input)).collect(),
        };
        rows += &format!("{name:28}{cells}\n");
    }
    assert_eq!(rows, TABLE, "{rows}");
}

/// A life from its start to its end, with what the driver does at each input.
#[test]
fn a_life_has_these_effects() {
    let life = [
        ("start", "Plan Remind"),
        ("planned", "Launch"),
        ("start overdue", "Answer"),
        ("launched", "Attach ReserveForRunning Connect"),
        ("connected", "SetClock"),
        ("clock set", ""),
        ("pause", "SendVerb"),
        ("pause done", "Answer"),
        ("lost", ""),
        ("resume done", "Connect Answer"),
        ("disk full", "Note Failed"),
        ("RESUME", ""),
        ("take", "List Snapshot Remind"),
        ("snapshot overdue", "Answer"),
        ("snapshot failed", "List Failed"),
        ("RESET", "Emit Connect"),
        ("stop", "ShutDown Answer"),
        ("announced", "Connect PressPowerButton"),
        ("stop overdue", "Note Kill"),
        ("exited", "Note EndPause Detach"),
    ];
    let mut machine = Machine::at(&[]);
    for (input, effects) in life {
        assert_eq!(machine.take(input).join(" "), effects, "{input}");
    }
}

fn next(from: char, path: &[&str], input: &str) -> char {
    let mut machine = Machine::at(path);
    machine.take(input);
    assert!(machine.leaves_nobody_waiting(), "{input} in {from}");
    let to = letter(&machine.phase);
    if to == from { '.' } else { to }
}

/// Returns the names of all inputs.
fn inputs() -> Vec<&'static str> {
    TABLE.lines().filter(|line| !line.is_empty()).skip(1).map(|line| line[..28].trim()).collect()
}

proptest! {
    #[test]
    fn no_series_of_inputs_panics_or_leaves_anybody_without_an_answer(
        series in prop::collection::vec(prop::sample::select(inputs()), 0..60),
    ) {
        let mut machine = Machine::at(&[]);
        for input in &series {
            machine.take(input);
            prop_assert!(machine.leaves_nobody_waiting(), "{input}");
        }
    }
}
