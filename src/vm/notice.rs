//! The two files that say one line when the time has come: `ready` and `wait`.

use parking_lot::Mutex;

use super::state::{Refusal, State};
use super::stream::{Listener, Readiness, Stream};
use super::{Vm, VmError};

/// What a notice waits for: `None` is "not yet".
type Condition = fn(&Vm) -> Option<Result<String, VmError>>;

/// A stream that gives one line when its condition holds, then ends.
#[derive(Debug)]
pub struct Notice {
    vm: Vm,
    condition: Condition,
    line: Mutex<Line>,
}

#[derive(Debug)]
enum Line {
    Awaited,
    Rest(Vec<u8>),
}

impl Notice {
    /// Returns the `ready` file: its line comes when an SSH exec has worked.
    ///
    /// # Errors
    /// [`Refusal::Off`] if the VM is off, so that a script does not wait for nothing.
    pub fn ready(vm: &Vm) -> Result<Self, VmError> {
        vm.expect_on("ready")?;
        Ok(Self::new(vm, ready_line))
    }

    /// Returns the `wait` file: its line is the status once no transition runs.
    pub fn wait(vm: &Vm) -> Self {
        Self::new(vm, settled_line)
    }

    fn new(vm: &Vm, condition: Condition) -> Self {
        Self { vm: vm.clone(), condition, line: Mutex::new(Line::Awaited) }
    }
}

impl Stream for Notice {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut line = self.line.lock();
        if let Line::Awaited = *line {
            match (self.condition)(&self.vm)? {
                Ok(text) => *line = Line::Rest(format!("{text}\n").into_bytes()),
                Err(error) => return Some(Err(error)),
            }
        }
        let Line::Rest(rest) = &mut *line else {
            return None;
        };
        let taken = rest.len().min(max);
        Some(Ok(rest.drain(..taken).collect()))
    }

    fn try_write(&self, _data: &[u8]) -> Option<Result<usize, VmError>> {
        None
    }

    fn readiness(&self) -> Readiness {
        let (due, hung_up) = match &*self.line.lock() {
            Line::Awaited => ((self.condition)(&self.vm).is_some(), false),
            Line::Rest(rest) => (true, rest.is_empty()),
        };
        Readiness { readable: due, writable: false, hung_up }
    }

    fn listen(&self) -> Listener {
        self.vm.listen()
    }
}

fn ready_line(vm: &Vm) -> Option<Result<String, VmError>> {
    let view = vm.view();
    match &view.state {
        State::Ready => {
            let took = view.ready_after.unwrap_or_default().as_millis();
            Some(Ok(format!("ready {took}ms")))
        }
        state if state.is_off() => {
            Some(Err(Refusal::Off { verb: "ready", state: state.word() }.into()))
        }
        _ => None,
    }
}

fn settled_line(vm: &Vm) -> Option<Result<String, VmError>> {
    let state = vm.state();
    (!state.is_transition()).then(|| Ok(state.to_string()))
}
