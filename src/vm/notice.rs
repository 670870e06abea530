//! The files that say one line when the time has come: `ready` and `wait` of a VM, `wait` of an
//! image and of a job.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::backend::{ImageStatus, Images};
use super::state::{State, policy};
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
    /// What is still to be read of the line; `None` before it has come.
    line: Mutex<Option<Vec<u8>>>,
}

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notice").field("line", &self.line).finish_non_exhaustive()
    }
}

impl Notice {
    /// Returns the `ready` file: its line comes when an SSH exec has worked.
    ///
    /// # Errors
    /// `Refusal::Off` if the VM is off, so that a script does not wait for nothing.
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
        let (listener, images, name) = (images.listen(), Arc::clone(images), name.to_owned());
        Self::when(listener, move || settled_image(&*images, &name))
    }

    /// Returns one whose condition may change when the listener hears something.
    pub(super) fn when(
        listener: Listener,
        condition: impl Fn() -> Option<Result<String, VmError>> + Send + Sync + 'static,
    ) -> Self {
        Self { condition: Box::new(condition), listener, line: Mutex::default() }
    }

    fn new(vm: &Vm, condition: fn(&Vm) -> Option<Result<String, VmError>>) -> Self {
        let (listener, vm) = (vm.listen(), vm.clone());
        Self::when(listener, move || condition(&vm))
    }
}

impl Stream for Notice {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut line = self.line.lock();
        if line.is_none() {
            match (self.condition)()? {
                Ok(text) => *line = Some(format!("{text}\n").into_bytes()),
                Err(error) => return Some(Err(error)),
            }
        }
        let rest = line.as_mut()?;
        let taken = rest.len().min(max);
        Some(Ok(rest.drain(..taken).collect()))
    }

    fn readiness(&self) -> Readiness {
        let line = self.line.lock();
        let readable = line.is_some() || (self.condition)().is_some();
        Readiness { readable, writable: false, hung_up: line.as_ref().is_some_and(Vec::is_empty) }
    }

    fn listen(&self) -> Listener {
        self.listener.clone()
    }
}

fn ready_line(vm: &Vm) -> Option<Result<String, VmError>> {
    let view = vm.view();
    if view.state == State::Ready {
        let took = view.ready_after.unwrap_or_default().as_millis();
        return Some(Ok(format!("ready {took}ms")));
    }
    policy::use_of_machine("ready").admit(&view.state).err().map(|refusal| Err(refusal.into()))
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
