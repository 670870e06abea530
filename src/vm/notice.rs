//! The files that say one line when the time has come: `ready` and `wait` of a VM, `wait` of an
//! image.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::backend::{ImageStatus, Images};
use super::state::{Refusal, State};
use super::stream::{Listener, Readiness, Stream};
use super::template::WarmStatus;
use super::{Vm, VmError};

/// What a notice waits for: `None` is "not yet".
type Condition = Box<dyn Fn() -> Option<Result<String, VmError>> + Send + Sync>;

/// A stream that gives one line when its condition holds, then ends.
pub struct Notice {
    condition: Condition,
    /// Rings when the condition may have changed.
    listener: Listener,
    line: Mutex<Line>,
}

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notice").field("line", &self.line).finish_non_exhaustive()
    }
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

    /// Returns the `wait` file of an image: its line is the status once nothing is being made.
    pub fn image(images: &Arc<dyn Images>, name: &str) -> Self {
        let (own, name) = (Arc::clone(images), name.to_owned());
        let condition = move || settled_image(&*own, &name);
        Self {
            listener: images.listen(),
            condition: Box::new(condition),
            line: Mutex::new(Line::Awaited),
        }
    }

    fn new(vm: &Vm, condition: fn(&Vm) -> Option<Result<String, VmError>>) -> Self {
        let own = vm.clone();
        Self {
            listener: vm.listen(),
            condition: Box::new(move || condition(&own)),
            line: Mutex::new(Line::Awaited),
        }
    }
}

impl Stream for Notice {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut line = self.line.lock();
        if let Line::Awaited = *line {
            match (self.condition)()? {
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
            Line::Awaited => ((self.condition)().is_some(), false),
            Line::Rest(rest) => (true, rest.is_empty()),
        };
        Readiness { readable: due, writable: false, hung_up }
    }

    fn listen(&self) -> Listener {
        self.listener.clone()
    }
}

fn ready_line(vm: &Vm) -> Option<Result<String, VmError>> {
    let view = vm.view();
    match &view.state {
        State::Ready => {
            let took = view.ready_after.unwrap_or_default().as_millis();
            Some(Ok(format!("ready {took}ms")))
        }
        state @ (State::Stopped | State::Failed(_) | State::Broken(_)) => {
            Some(Err(Refusal::Off { verb: "ready", state: state.to_string() }.into()))
        }
        State::Unreachable(reason) => {
            let refusal = Refusal::Unreachable { verb: "ready", reason: reason.clone() };
            Some(Err(refusal.into()))
        }
        State::Starting | State::Running | State::Paused | State::Saving | State::Stopping => None,
    }
}

fn settled_line(vm: &Vm) -> Option<Result<String, VmError>> {
    let state = vm.state();
    (!state.is_transition()).then(|| Ok(state.to_string()))
}

fn settled_image(images: &dyn Images, name: &str) -> Option<Result<String, VmError>> {
    let Some(info) = images.info(name) else { return Some(Ok("removed".to_owned())) };
    match info.status {
        ImageStatus::Fetching | ImageStatus::Building => None,
        _ if matches!(info.warm, WarmStatus::Warming(_)) => None,
        ImageStatus::Ready if matches!(info.warm, WarmStatus::Failed(_)) => {
            Some(Ok(format!("ready, warm {}", info.warm)))
        }
        status @ (ImageStatus::Absent | ImageStatus::Ready | ImageStatus::Failed(_)) => {
            Some(Ok(status.to_string()))
        }
    }
}
