//! `warm` of an image: a VM that is in no list boots from it, is captured, and is removed.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::timeout;
use uuid::Uuid;

use super::images::as_backend_error;
use super::{Registry, Result};
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, Lifetime};
use crate::vm::definition::Definition;
use crate::vm::driver::{self, NewVm};
use crate::vm::spec::{VmSettings, VmSpec, is_vm_name};
use crate::vm::state::{Command, State};
use crate::vm::template::{Capture, Captured, ProgressFn, Purpose};
use crate::vm::{Backends, Vm, VmId};

/// How long a guest may take to boot: a cloud image sets itself up the first time.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long its QEMU may take to end: `kill` is given up sooner.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// The VM's directory in that of the template, while there is one.
const VM: &str = "vm";

impl Registry {
    /// Has a machine captured in an image, in the background.
    ///
    /// # Errors
    /// `NoImage`, `ImageBusy` while the image is being made or warmed.
    pub(super) async fn warm_image(self: Arc<Self>, image: String) -> Result<()> {
        // A clone must look as new VMs do, so this is one.
        let backends = Backends { events: Arc::default(), ..self.backends().clone() };
        // It replaces the present template, whose settings are not those of the new one.
        let carried = backends.images.settings_of_disk(&image);
        let spec = VmSettings::new(as_new_vms(backends.defaults.spec(), &image)).resolve(&carried);
        let settings = VmSettings::fixed(spec);
        let definition = Definition::new(Uuid::new_v4(), SystemTime::now(), settings);
        let (id, runtime) = (self.fresh_id(), Handle::current());
        let machine = Arc::new(WarmupVm { id, definition, backends, runtime });
        self.with_images(move |images| images.warm(&image, machine)).await
    }
}

/// Returns the settings of new VMs that describe the machine. Those of the VM are left out: its ports may be
/// in use, and it is removed in the end.
fn as_new_vms(defaults: VmSpec, image: &str) -> VmSpec {
    VmSpec {
        image: image.to_owned(),
        ports: Vec::new(),
        ephemeral: false,
        protect: false,
        autostart: false,
        autoremove: false,
        expire: None,
        idle: None,
        ..defaults
    }
}

/// A VM that is in no list.
#[derive(Debug)]
struct WarmupVm {
    id: VmId,
    definition: Definition,
    backends: Backends,
    /// Runs the VM's tasks: `capture` may be called on a thread without a runtime.
    runtime: Handle,
}

#[async_trait]
impl Capture for WarmupVm {
    async fn capture(
        &self,
        to: &Path,
        progress: &ProgressFn<'_>,
    ) -> Result<Captured, BackendError> {
        let dir = VmDir(to.join(VM));
        file::private_dir(&dir.0).map_err(BackendError::at("the VM to capture"))?;
        progress("booting");
        let spawned = driver::spawn(self.new_vm(dir), self.backends.clone());
        let vm = on(&self.runtime, async { Ok(spawned.await) }).await?;
        let booted = on(&self.runtime, booted(vm.clone())).await;
        progress("capturing");
        let captured = match booted {
            Ok(()) => vm.capture(Purpose::Template, to.to_owned()).await.map_err(as_backend_error),
            Err(error) => Err(error),
        };
        on(&self.runtime, ended(vm)).await?;
        captured
    }
}

impl WarmupVm {
    fn new_vm(&self, dir: VmDir) -> NewVm {
        let image = self.definition.settings.image();
        let name = if is_vm_name(image) { image } else { "warm" }.to_owned();
        let definition = self.definition.clone();
        let (id, uuid, lifetime) = (self.id, definition.uuid, Lifetime::Ours);
        NewVm { id, uuid, dir, name, definition: Ok(definition), lifetime }
    }
}

/// Runs work on the runtime that runs VMs.
async fn on<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, BackendError>> + Send + 'static,
) -> Result<T, BackendError> {
    let done = runtime.spawn(work).await;
    done.unwrap_or_else(|e| Err(BackendError::io("the VM to capture", &io::Error::other(e))))
}

/// Boots a VM and waits for its guest.
async fn booted(vm: Vm) -> Result<(), BackendError> {
    let mut listener = vm.listen();
    vm.perform(Command::Start { paused: false }).await.map_err(as_backend_error)?;
    let answers = async {
        while vm.state() != State::Ready {
            if vm.state().is_off() {
                let why = vm.failure().unwrap_or_else(|| vm.state().to_string());
                let reason = format!("its VM: {why}");
                return Err(BackendError::PersonalizationFailed { reason });
            }
            listener.rung().await;
        }
        Ok(())
    };
    let late = BackendError::GuestTimeout { seconds: BOOT_TIMEOUT.as_secs() };
    timeout(BOOT_TIMEOUT, answers).await.map_err(|_| late)?
}

/// Ends a VM for good; its directory is the caller's.
async fn ended(vm: Vm) -> Result<(), BackendError> {
    let mut listener = vm.listen();
    if !vm.state().is_off() {
        vm.perform(Command::Kill).await.map_err(as_backend_error)?;
    }
    let off = async {
        while !vm.state().is_off() {
            listener.rung().await;
        }
    };
    let reason = "its VM cannot be ended".to_owned();
    timeout(END_TIMEOUT, off).await.map_err(|_| BackendError::PersonalizationFailed { reason })?;
    vm.perform(Command::Remove).await.map_err(as_backend_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_concern_a_vm_alone_are_left_out() {
        let defaults = VmSpec {
            memory: 512 << 20,
            ports: vec!["8080:80".parse().unwrap()],
            ephemeral: true,
            protect: true,
            ..VmSpec::default()
        };
        let spec = as_new_vms(defaults, "web");
        assert_eq!(spec, VmSpec { image: "web".into(), memory: 512 << 20, ..VmSpec::default() });
    }
}
