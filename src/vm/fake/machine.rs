//! Machines that a test plays.

use super::*;

#[derive(Debug)]
pub(super) struct FakeMachine {
    pub(super) facts: RunFacts,
    pub(super) dir: PathBuf,
    pub(super) script: Arc<Script>,
    pub(super) paused: AtomicBool,
    pub(super) events: Mutex<mpsc::Sender<MachineEvent>>,
    pub(super) nics: Mutex<Vec<NicPlace>>,
    pub(super) disks: Mutex<Vec<DiskPlace>>,
}

/// Makes the machine of a plan.
pub(super) fn launched(script: &Arc<Script>, plan: LaunchPlan) -> Launched {
    let (to, events) = mpsc::channel(16);
    *script.events.lock() = Some(to.clone());
    let bound = plan.spec.ports.iter().map(|f| Bound { forward: *f, port: f.host }).collect();
    let facts = RunFacts {
        pid: 1,
        pid_start: 1,
        uuid: plan.uuid,
        since: SystemTime::now(),
        accel: plan.accel,
        qemu_version: "0".into(),
        machine: "fake".into(),
        hardware: plan.hardware,
        ssh_port: 22,
        image_digest: plan.image.digest,
        announces: false,
        in_force: Some(InForce::at_start(&plan.spec, bound)),
        warm: plan.cold.map_or("no".into(), |reason| format!("no: {reason}")),
        shape: None,
    };
    let machine = Arc::new(FakeMachine {
        facts,
        dir: plan.dir,
        script: Arc::clone(script),
        paused: AtomicBool::new(plan.paused),
        events: Mutex::new(to),
        nics: Mutex::new(plan.nics),
        disks: Mutex::new(plan.disks.iter().map(|disk| disk.place).collect()),
    });
    script.machines.lock().insert(plan.uuid, Arc::clone(&machine));
    Launched { machine, events, paused: plan.paused, clock_is_behind: false }
}

impl FakeMachine {
    async fn call(&self, name: &'static str, event: Option<MachineEvent>) {
        self.script.calls.lock().push(name);
        if let Some(event) = event {
            self.report(event).await;
        }
    }

    fn changed(&self, what: String) {
        self.script.changes.lock().push(what);
    }

    pub(super) async fn report(&self, event: MachineEvent) {
        if matches!(event, MachineEvent::Exited(_)) {
            self.script.machines.lock().remove(&self.facts.uuid);
        }
        let events = self.events.lock().clone();
        events.send(event).await.unwrap();
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn facts(&self) -> &RunFacts {
        &self.facts
    }

    async fn has_run(&self) -> Result<bool, BackendError> {
        Ok(true)
    }

    async fn pause(&self) -> Result<(), BackendError> {
        self.paused.store(true, Ordering::Relaxed);
        self.call("pause", None).await;
        Ok(())
    }

    async fn resume(&self) -> Result<(), BackendError> {
        self.paused.store(false, Ordering::Relaxed);
        self.call("resume", None).await;
        Ok(())
    }

    async fn recover(&self) -> Result<(), BackendError> {
        self.paused.store(false, Ordering::Relaxed);
        self.call("recover", None).await;
        Ok(())
    }

    async fn reset(&self) -> Result<(), BackendError> {
        self.call("reset", None).await;
        Ok(())
    }

    async fn power_down(&self) -> Result<(), BackendError> {
        let deaf = *self.script.stubborn.lock();
        self.call("power_down", (!deaf).then(clean_exit)).await;
        Ok(())
    }

    async fn set_memory(&self, bytes: u64) -> Result<(), BackendError> {
        let slow = *self.script.slow_change.lock();
        tokio::time::sleep(slow).await;
        self.changed(format!("memory {bytes}"));
        self.script.change_error.lock().take().map_or(Ok(()), Err)
    }

    async fn add_processors(&self, count: u32) -> Result<(), BackendError> {
        self.changed(format!("cpus {count}"));
        self.script.change_error.lock().take().map_or(Ok(()), Err)
    }

    async fn grow_disk(&self, bytes: u64) -> Result<(), BackendError> {
        self.changed(format!("disk {bytes}"));
        *self.script.disk.lock() = Some(bytes);
        Ok(())
    }

    async fn limit_host(&self, limits: &HostLimits) {
        let cpu = CpuLimit::render_or_none(limits.cpu);
        self.changed(format!("cpu_limit {cpu}"));
    }

    async fn limit_io(&self, limit: Option<IoLimit>) -> Result<(), BackendError> {
        self.changed(format!("io_limit {}", IoLimit::render_or_none(limit)));
        Ok(())
    }

    async fn change_disc(&self, disc: Option<&Path>) -> Result<(), BackendError> {
        self.changed(format!("disc {disc:?}"));
        Ok(())
    }

    async fn add_forward(&self, forward: &Forward) -> Result<u16, BackendError> {
        if self.script.taken.lock().contains(&forward.host) {
            return Err(BackendError::PortTaken { port: forward.to_string() });
        }
        self.changed(format!("+{forward}"));
        Ok(if forward.host == 0 { 40000 } else { forward.host })
    }

    async fn remove_forward(&self, bound: &Forward) -> Result<(), BackendError> {
        self.changed(format!("-{bound}"));
        Ok(())
    }

    async fn nics(&self) -> Result<Vec<NicPlace>, BackendError> {
        Ok(self.nics.lock().clone())
    }

    async fn plug_nic(&self, place: NicPlace, mac: Mac) -> Result<(), BackendError> {
        self.changed(format!("nic {} {mac}", place.0));
        self.nics.lock().push(place);
        Ok(())
    }

    async fn unplug_nic(&self, place: NicPlace) -> Result<(), BackendError> {
        self.changed(format!("no nic {}", place.0));
        self.nics.lock().retain(|there| *there != place);
        Ok(())
    }

    async fn connect_nic(&self, place: NicPlace, sockets: &Path) -> Result<(), BackendError> {
        self.changed(format!("nic {} {}", place.0, sockets.display()));
        Ok(())
    }

    async fn disconnect_nic(&self, place: NicPlace) -> Result<(), BackendError> {
        self.changed(format!("nic {} off", place.0));
        Ok(())
    }

    async fn data_disks(&self) -> Result<Vec<DiskPlace>, BackendError> {
        Ok(self.disks.lock().clone())
    }

    async fn plug_disk(&self, disk: &DataDisk) -> Result<(), BackendError> {
        self.changed(format!("data disk {} {}", disk.place.number, disk.serial));
        self.script.change_error.lock().take().map_or(Ok(()), Err)?;
        self.disks.lock().push(disk.place);
        Ok(())
    }

    async fn unplug_disk(&self, place: DiskPlace) -> Result<(), BackendError> {
        self.changed(format!("no data disk {}", place.number));
        self.script.change_error.lock().take().map_or(Ok(()), Err)?;
        self.disks.lock().retain(|there| *there != place);
        Ok(())
    }

    async fn grow_data_disk(&self, number: u32, bytes: u64) -> Result<(), BackendError> {
        self.changed(format!("data disk {number} {bytes}"));
        Ok(())
    }

    async fn press_keys(&self, chords: &[Vec<String>]) -> Result<(), BackendError> {
        self.changed(format!("keys {chords:?}"));
        Ok(())
    }

    async fn keep(&self, _in_force: &InForce) -> Result<(), BackendError> {
        Ok(())
    }

    async fn snapshot(&self, op: &SnapshotOp) -> Result<(), BackendError> {
        self.call("snapshot", None).await;
        let slow = *self.script.slow.lock();
        tokio::time::sleep(slow).await;
        if let Some(error) = self.script.snapshot_error.lock().take() {
            return Err(error);
        }
        snapshots::perform(&self.dir, op, 1);
        Ok(())
    }

    async fn capture(
        &self,
        _plan: &LaunchPlan,
        (_purpose, to): (Purpose, &Path),
        _snapshot: &str,
        guest: BoxFuture<'_, Result<(), BackendError>>,
    ) -> Result<SavedMachine, BackendError> {
        guest.await?;
        self.call("capture", None).await;
        self.script.capture_error.lock().take().map_or(Ok(()), Err)?;
        let (pause, saved) = (Duration::from_millis(10), Saved::in_dir(to));
        Ok(SavedMachine { pause, saved, disk: SavedDisk::Snapshot })
    }

    async fn load_template(&self, _template: &Template) -> Result<(), BackendError> {
        self.call("load_template", None).await;
        self.script.load_error.lock().take().map_or(Ok(()), Err)
    }

    async fn kill(&self) -> Result<(), BackendError> {
        self.call("kill", Some(clean_exit())).await;
        Ok(())
    }

    fn monitor(&self, _access: StreamAccess) -> Arc<dyn Stream> {
        Arc::new(Silence(Bell::default()))
    }
}

/// A machine that does not answer.
#[derive(Debug)]
pub(super) struct Silent(pub(super) Arc<Script>, pub(super) Uuid);

#[async_trait]
impl SilentMachine for Silent {
    async fn kill(&self) -> Result<(), BackendError> {
        self.0.calls.lock().push("kill, silent");
        self.0.forget(self.1);
        Ok(())
    }
}
