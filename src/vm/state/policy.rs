//! Which requests each state admits: a pure function of one table, which has a row for each command and a
//! letter for each state, so that neither a new command nor a new state is admitted by accident.

use super::{Asked, Command, Refusal, State};
use crate::vm::backend::SnapshotOp;

/// When a request is admitted.
pub(in crate::vm) struct Rule {
    /// Its verb, for error sentences.
    verb: &'static str,
    /// It waits until a change of settings is over: it would otherwise meet a machine that is being
    /// changed. What ends or pauses a machine never waits for it.
    waits: bool,
    /// A letter for each state, as [`Rule::admit`] reads it.
    letters: &'static [u8; State::WORDS.len()],
}

/// What makes an image of a VM that is off.
pub(in crate::vm) const PIN: Rule = waiting("source", b"+mmmmmm+ux");
/// What makes an image of a VM that runs.
pub(in crate::vm) const CAPTURE: Rule = waiting("source", b"nnn+pnnnrn");

const fn at_once(verb: &'static str, letters: &'static [u8; State::WORDS.len()]) -> Rule {
    Rule { verb, waits: false, letters }
}

const fn waiting(verb: &'static str, letters: &'static [u8; State::WORDS.len()]) -> Rule {
    Rule { verb, waits: true, letters }
}

/// Says when what uses a machine in the name of `verb` is admitted, once the machine is there.
pub(in crate::vm) const fn use_of_machine(verb: &'static str) -> Rule {
    at_once(verb, b"o++++++oro")
}

impl Command {
    /// Returns its row. The letters stand for: stopped, starting, running, ready, paused, saving,
    /// stopping, failed, unreachable, broken.
    fn rule(&self) -> Rule {
        match self {
            Self::Start { .. } => waiting("start", b"+aaaabb+ux"),
            Self::Stop { .. } => at_once("stop", b"a++++baaux"),
            Self::Kill => at_once("kill", b"a++++++a+x"),
            Self::Pause => at_once("pause", b"ob++abboux"),
            Self::Resume => at_once("resume", b"obaa+bboux"),
            Self::Reset => at_once("reset", b"ob+++bboux"),
            Self::PressKeys { .. } => at_once("key", b"ob+++bboux"),
            Self::Suspend => waiting("suspend", b"ob+++bboux"),
            Self::Configure(edit) => waiting(edit.verb(), b"+++++++++x"),
            Self::Snapshot(SnapshotOp::Take(_), _) => waiting("mkdir", b"+b+++bb+ux"),
            Self::Snapshot(SnapshotOp::Restore(_), _) => waiting("restore", b"+b+++bb+ux"),
            Self::Snapshot(SnapshotOp::Drop(_), _) => waiting("rmdir", b"+b+++bb+ux"),
            // QEMU keeps the names in memory, and would write the old one back.
            Self::Snapshot(SnapshotOp::Rename { .. }, _) => waiting("mv", b"+bmmmbb+ux"),
            Self::Remove => waiting("rmdir", b"+iiiiii+u+"),
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
    /// Reads the state's letter.
    pub(in crate::vm) fn admit(&self, state: &State) -> Result<(), Refusal> {
        let asked = Asked { verb: self.verb, state: state.to_string() };
        Err(match self.letters[state.index()] {
            b'+' => return Ok(()),
            b'a' => Refusal::Already(asked),
            b'o' => Refusal::Off(asked),
            b'b' => Refusal::Busy(asked),
            b'i' => Refusal::InUse(asked),
            b'm' => Refusal::MustStop(asked),
            b'n' => Refusal::NotReady(Asked { state: state.word().to_owned(), ..asked }),
            b'p' => Refusal::Paused(asked),
            b'r' => Refusal::Unreachable(asked),
            b'u' => Refusal::Occupied(asked),
            _ => Refusal::Broken(asked),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(row(&Command::Remove, true), "p".repeat(states().len()));
    }

    #[test]
    fn every_state_has_its_word() {
        let words: Vec<_> = states().iter().map(State::word).collect();
        assert_eq!(words, State::WORDS);
    }
}
