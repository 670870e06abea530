//! Which commands each state admits: a pure function, decided command by command, so that neither a
//! new command nor a new state is admitted by accident.

use super::{Command, Refusal, State};

/// Decides whether a command fits the state. `protected` is the setting of that name.
///
/// # Errors
/// A [`Refusal`], which changes nothing.
pub fn admit(state: &State, command: &Command, protected: bool) -> Result<(), Refusal> {
    let asked = Asked { verb: command.verb(), state };
    match command {
        Command::Start { .. } => asked.start(),
        Command::Stop { .. } => asked.stop(),
        Command::Kill => asked.kill(),
        Command::Pause => asked.pause(),
        Command::Resume => asked.resume(),
        Command::Reset | Command::PressKeys { .. } | Command::Suspend => asked.running(),
        Command::Resize { .. } | Command::AddPort(_) | Command::RemovePort(_) => asked.setting(),
        Command::Take(_) | Command::Restore(_) | Command::Drop(_) => asked.snapshot(),
        Command::RenameSnapshot { .. } => asked.rename_snapshot(),
        Command::Remove => asked.removal(protected),
    }
}

/// A command's verb, and the state that it meets.
struct Asked<'a> {
    verb: &'static str,
    state: &'a State,
}

impl Asked<'_> {
    fn start(&self) -> Result<(), Refusal> {
        match self.state {
            State::Stopped | State::Failed(_) => Ok(()),
            State::Saving | State::Stopping => self.busy(),
            State::Starting | State::Running | State::Ready | State::Paused => self.already(),
            State::Unreachable(reason) => self.occupied(reason),
            State::Broken(reason) => self.broken(reason),
        }
    }

    fn stop(&self) -> Result<(), Refusal> {
        match self.state {
            State::Starting | State::Running | State::Ready | State::Paused => Ok(()),
            State::Saving => self.busy(),
            State::Stopped | State::Failed(_) | State::Stopping => self.already(),
            State::Unreachable(reason) => self.occupied(reason),
            State::Broken(reason) => self.broken(reason),
        }
    }

    fn kill(&self) -> Result<(), Refusal> {
        match self.state {
            State::Starting
            | State::Running
            | State::Ready
            | State::Paused
            | State::Saving
            | State::Stopping
            | State::Unreachable(_) => Ok(()),
            State::Stopped | State::Failed(_) => self.already(),
            State::Broken(reason) => self.broken(reason),
        }
    }

    fn pause(&self) -> Result<(), Refusal> {
        match self.state {
            State::Paused => self.already(),
            State::Running
            | State::Ready
            | State::Stopped
            | State::Starting
            | State::Saving
            | State::Stopping
            | State::Failed(_)
            | State::Unreachable(_)
            | State::Broken(_) => self.running(),
        }
    }

    fn resume(&self) -> Result<(), Refusal> {
        match self.state {
            State::Running | State::Ready => self.already(),
            State::Paused
            | State::Stopped
            | State::Starting
            | State::Saving
            | State::Stopping
            | State::Failed(_)
            | State::Unreachable(_)
            | State::Broken(_) => self.running(),
        }
    }

    /// What needs a machine that is up.
    fn running(&self) -> Result<(), Refusal> {
        match self.state {
            State::Running | State::Ready | State::Paused => Ok(()),
            State::Starting | State::Saving | State::Stopping => self.busy(),
            State::Stopped | State::Failed(_) => self.off(),
            State::Unreachable(reason) => self.occupied(reason),
            State::Broken(reason) => self.broken(reason),
        }
    }

    /// Settings can be written at any time.
    fn setting(&self) -> Result<(), Refusal> {
        match self.state {
            State::Stopped
            | State::Starting
            | State::Running
            | State::Ready
            | State::Paused
            | State::Saving
            | State::Stopping
            | State::Failed(_)
            | State::Unreachable(_) => Ok(()),
            State::Broken(reason) => self.broken(reason),
        }
    }

    /// With QEMU or without it: only not in the middle of something else.
    fn snapshot(&self) -> Result<(), Refusal> {
        match self.state {
            State::Stopped | State::Failed(_) | State::Running | State::Ready | State::Paused => {
                Ok(())
            }
            State::Starting | State::Saving | State::Stopping => self.busy(),
            State::Unreachable(reason) => self.occupied(reason),
            State::Broken(reason) => self.broken(reason),
        }
    }

    /// QEMU keeps the names in memory, and would write the old one back.
    fn rename_snapshot(&self) -> Result<(), Refusal> {
        match self.state {
            State::Stopped | State::Failed(_) => Ok(()),
            State::Running | State::Ready | State::Paused => {
                Err(Refusal::MustStop { verb: self.verb, state: self.state.word() })
            }
            State::Starting | State::Saving | State::Stopping => self.busy(),
            State::Unreachable(reason) => self.occupied(reason),
            State::Broken(reason) => self.broken(reason),
        }
    }

    fn removal(&self, protected: bool) -> Result<(), Refusal> {
        if protected {
            return Err(Refusal::Protected);
        }
        match self.state {
            State::Stopped | State::Failed(_) | State::Broken(_) => Ok(()),
            State::Starting
            | State::Running
            | State::Ready
            | State::Paused
            | State::Saving
            | State::Stopping => Err(Refusal::InUse { state: self.state.word() }),
            State::Unreachable(reason) => self.occupied(reason),
        }
    }

    fn already(&self) -> Result<(), Refusal> {
        Err(Refusal::Already { verb: self.verb, state: self.state.to_string() })
    }

    fn off(&self) -> Result<(), Refusal> {
        Err(Refusal::Off { verb: self.verb, state: self.state.to_string() })
    }

    fn busy(&self) -> Result<(), Refusal> {
        Err(Refusal::Busy { verb: self.verb, state: self.state.word() })
    }

    fn occupied(&self, reason: &str) -> Result<(), Refusal> {
        Err(Refusal::Occupied { verb: self.verb, reason: reason.to_owned() })
    }

    fn broken(&self, reason: &str) -> Result<(), Refusal> {
        Err(Refusal::Broken { verb: self.verb, reason: reason.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (Command::Resize { bytes: 1 << 30 }, "+++++++++x"),
            (Command::AddPort(forward), "+++++++++x"),
            (Command::RemovePort(forward), "+++++++++x"),
            (Command::PressKeys { chords: vec![vec!["a".into()]] }, "ob+++bboux"),
            (Command::Suspend, "ob+++bboux"),
            (Command::Take("a".into()), "+b+++bb+ux"),
            (Command::Restore("a".into()), "+b+++bb+ux"),
            (Command::Drop("a".into()), "+b+++bb+ux"),
            (Command::RenameSnapshot { from: "a".into(), to: "b".into() }, "+bmmmbb+ux"),
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
