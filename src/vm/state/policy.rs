//! Which requests each state admits: a pure function of one table, which has a row for each command and a
//! verdict for each state, so that neither a new command nor a new state is admitted by accident.

use super::{Asked, Command, Refusal, State};
use crate::vm::backend::SnapshotOp::{Drop, Rename, Restore, Take};
use crate::vm::template::Purpose;

/// What a state says to a request: it admits it, or refuses it so.
type Verdict = Option<fn(Asked) -> Refusal>;

const Y: Verdict = None;
const A: Verdict = Some(Refusal::Already);
const B: Verdict = Some(Refusal::Busy);
const I: Verdict = Some(Refusal::InUse);
const M: Verdict = Some(Refusal::MustStop);
const N: Verdict = Some(Refusal::NotReady);
const O: Verdict = Some(Refusal::Off);
const P: Verdict = Some(Refusal::Paused);
const R: Verdict = Some(Refusal::Unreachable);
const U: Verdict = Some(Refusal::Occupied);
const X: Verdict = Some(Refusal::Broken);

/// When a request is admitted.
pub(in crate::vm) struct Rule {
    /// Its verb, for error sentences.
    verb: &'static str,
    /// It waits until a change of settings is over: it would otherwise meet a machine that is being
    /// changed. What ends or pauses a machine never waits for it.
    waits: bool,
    /// What each state says to it.
    verdicts: [Verdict; State::WORDS.len()],
}

/// What makes an image of a VM that is off.
pub(in crate::vm) const PIN: Rule = waiting("source", [Y, M, M, M, M, M, M, Y, U, X]);
/// What makes an image of a VM that runs.
const CAPTURE: Rule = waiting("source", [N, N, N, Y, P, N, N, N, R, N]);
/// What makes forks of it.
const FORK: Rule = waiting("fork", [O, N, N, Y, P, B, B, O, R, X]);

/// Says when a machine is captured for this.
pub(in crate::vm) const fn capture(purpose: Purpose) -> &'static Rule {
    match purpose {
        Purpose::Template => &CAPTURE,
        Purpose::Fork => &FORK,
    }
}

const fn at_once(verb: &'static str, verdicts: [Verdict; State::WORDS.len()]) -> Rule {
    Rule { verb, waits: false, verdicts }
}

const fn waiting(verb: &'static str, verdicts: [Verdict; State::WORDS.len()]) -> Rule {
    Rule { verb, waits: true, verdicts }
}

/// Says when what uses a machine in the name of `verb` is admitted, once the machine is there.
pub(in crate::vm) const fn use_of_machine(verb: &'static str) -> Rule {
    at_once(verb, [O, Y, Y, Y, Y, Y, Y, O, R, O])
}

impl Command {
    /// Returns its row. The columns are: stopped, starting, running, ready, paused, saving,
    /// stopping, failed, unreachable, broken.
    fn rule(&self) -> Rule {
        match self {
            Self::Start { .. } => waiting("start", [Y, A, A, A, A, B, B, Y, U, X]),
            Self::Stop { .. } => at_once("stop", [A, Y, Y, Y, Y, B, A, A, U, X]),
            Self::Kill => at_once("kill", [A, Y, Y, Y, Y, Y, Y, A, Y, X]),
            Self::Pause => at_once("pause", [O, B, Y, Y, A, B, B, O, U, X]),
            Self::Resume => at_once("resume", [O, B, A, A, Y, B, B, O, U, X]),
            Self::Reset => at_once("reset", [O, B, Y, Y, Y, B, B, O, U, X]),
            Self::PressKeys { .. } => at_once("key", [O, B, Y, Y, Y, B, B, O, U, X]),
            Self::Suspend => waiting("suspend", [O, B, Y, Y, Y, B, B, O, U, X]),
            Self::Configure(edit) => waiting(edit.verb(), [Y, Y, Y, Y, Y, Y, Y, Y, Y, X]),
            Self::Snapshot(Take(_), _) => waiting("mkdir", [Y, B, Y, Y, Y, B, B, Y, U, X]),
            Self::Snapshot(Restore(_), _) => waiting("restore", [Y, B, Y, Y, Y, B, B, Y, U, X]),
            Self::Snapshot(Drop(_), _) => waiting("rmdir", [Y, B, Y, Y, Y, B, B, Y, U, X]),
            // QEMU keeps the names in memory, and would write the old one back.
            Self::Snapshot(Rename { .. }, _) => waiting("mv", [Y, B, M, M, M, B, B, Y, U, X]),
            Self::Remove => waiting("rmdir", [Y, I, I, I, I, I, I, Y, U, Y]),
        }
    }

    /// Returns the verb, as `ctl` or a name operation has it.
    pub fn verb(&self) -> &'static str {
        self.rule().verb
    }

    pub(crate) fn waits(&self) -> bool {
        self.rule().waits
    }
}

/// Decides whether a command fits the state. `protected` is the setting of that name.
pub fn admit(state: &State, command: &Command, protected: bool) -> Result<(), Refusal> {
    match protected && *command == Command::Remove {
        true => Err(Refusal::Protected),
        false => command.rule().admit(state),
    }
}

impl Rule {
    /// Returns the verb in whose name it is asked.
    pub(in crate::vm) const fn verb(&self) -> &'static str {
        self.verb
    }

    pub(in crate::vm) fn admit(&self, state: &State) -> Result<(), Refusal> {
        let asked = Asked { verb: self.verb, state: state.to_string() };
        self.verdicts[state.index()].map_or(Ok(()), |refusal| Err(refusal(asked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::backend::SnapshotOp;
    use crate::vm::spec::Edit;

    fn states() -> Vec<State> {
        let reason = || "x".to_owned();
        vec![
            State::Stopped,
            State::Starting,
            State::Running,
            State::Ready,
            State::Paused,
            State::Saving,
            State::Stopping,
            State::Failed(reason()),
            State::Unreachable(reason()),
            State::Broken(reason()),
        ]
    }

    /// One letter a state: `+` admitted, `a`lready, `o`ff, `b`usy, `i`n use, `m`ust stop, `u`nreachable, `x` broken.
    fn row(command: &Command, protected: bool) -> String {
        let letter = |s: &State| match admit(s, command, protected) {
            Ok(()) => '+',
            Err(Refusal::Already { .. }) => 'a',
            Err(Refusal::Off { .. }) => 'o',
            Err(Refusal::Busy { .. }) => 'b',
            Err(
                Refusal::Paused { .. }
                | Refusal::HasDisk { .. }
                | Refusal::TooMany { .. }
                | Refusal::Unreachable { .. }
                | Refusal::NoSnapshot { .. }
                | Refusal::SnapshotExists { .. }
                | Refusal::NotReady { .. }
                | Refusal::NoMemory { .. }
                | Refusal::NumberOfAnother { .. }
                | Refusal::NoDisk,
            )
            | Err(Refusal::Ephemeral | Refusal::SuspendedEphemeral) => '?',
            Err(Refusal::InUse { .. } | Refusal::Pinned { .. }) => 'i',
            Err(Refusal::MustStop { .. }) => 'm',
            Err(Refusal::Protected) => 'p',
            Err(Refusal::Occupied { .. }) => 'u',
            Err(Refusal::Broken { .. }) => 'x',
        };
        states().iter().map(letter).collect()
    }

    #[test]
    fn the_whole_policy() {
        let forward = "8080:80".parse().unwrap();
        // columns: stopped starting running ready paused saving stopping failed unreachable broken
        let table = [
            (Command::Start { paused: false }, "+aaaabb+ux"),
            (Command::Stop { seconds: 30 }, "a++++baaux"),
            (Command::Kill, "a++++++a+x"),
            (Command::Pause, "ob++abboux"),
            (Command::Resume, "obaa+bboux"),
            (Command::Reset, "ob+++bboux"),
            (Command::Configure(Edit::Disk(1 << 30)), "+++++++++x"),
            (Command::Configure(Edit::AddPort(forward)), "+++++++++x"),
            (Command::Configure(Edit::RemovePort(forward)), "+++++++++x"),
            (Command::PressKeys { chords: vec![vec!["a".into()]] }, "ob+++bboux"),
            (Command::Suspend, "ob+++bboux"),
            (SnapshotOp::Take("a".into()).into(), "+b+++bb+ux"),
            (SnapshotOp::Restore("a".into()).into(), "+b+++bb+ux"),
            (SnapshotOp::Drop("a".into()).into(), "+b+++bb+ux"),
            (SnapshotOp::Rename { from: "a".into(), to: "b".into() }.into(), "+bmmmbb+ux"),
            (Command::Remove, "+iiiiii+u+"),
        ];
        for (command, expected) in table {
            assert_eq!(row(&command, false), expected, "{command:?}");
        }
        let refused = |state| capture(Purpose::Fork).admit(&state).err().map(|r| format!("{r:?}"));
        let word =
            |r: Option<String>| r.map_or('+', |r| r.to_lowercase().chars().next().unwrap_or('?'));
        let row_of_fork: String = states().into_iter().map(|state| word(refused(state))).collect();
        assert_eq!(row_of_fork, "onn+pbboub");
        assert_eq!(row(&Command::Remove, true), "p".repeat(states().len()));
    }

    #[test]
    fn every_state_has_its_word() {
        let words: Vec<_> = states().iter().map(State::word).collect();
        assert_eq!(words, State::WORDS);
    }
}
