//! What a later daemon makes of a QEMU that an earlier one has started.

use super::*;

/// Launches in a runtime of its own, which ends with all its tasks and connections, as a daemon
/// does.
fn launched_by_another_daemon(vm: &Vm) -> u32 {
    let daemon = Runtime::new().unwrap();
    let launched = daemon.block_on(vm.launch());
    launched.machine.facts().pid
}

fn run<T>(future: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(future)
}

#[test]
fn a_later_daemon_adopts_what_runs_and_its_events() {
    let vm = Vm::paused();
    let pid = launched_by_another_daemon(&vm);
    run(async {
        let Adoption::Running(launched) = vm.adopt().await else {
            panic!("not adopted");
        };
        let Launched { machine, mut events, paused, .. } = launched;
        assert!(paused);
        assert_eq!(machine.facts(), &record_of(&vm).facts);
        assert_eq!(machine.facts().pid, pid);
        machine.resume().await.unwrap();
        assert_eq!(next(&mut events).await, MachineEvent::Resumed);
        machine.kill().await.unwrap();
        assert!(end(&mut events).await.clean);
    });
}

#[test]
fn a_lost_or_damaged_record_is_made_again() {
    let vm = Vm::paused();
    launched_by_another_daemon(&vm);
    let before = record_of(&vm).facts;
    for damage in [None, Some("{\"pid\": 1")] {
        match damage {
            None => fs::remove_file(vm.dir.run()).unwrap(),
            Some(text) => fs::write(vm.dir.run(), text).unwrap(),
        }
        let adoption = run(vm.adopt());
        assert!(matches!(adoption, Adoption::Running(_)), "{adoption:?}");
        let after = record_of(&vm).facts;
        let of = |f: &crate::vm::backend::RunFacts| {
            (f.pid, f.pid_start, f.ssh_port, f.machine.clone(), f.accel.kind, f.accel.cpu.clone())
        };
        assert_eq!(of(&after), of(&before));
        let apart = after.since.duration_since(before.since).unwrap_or_else(|e| e.duration());
        assert!(apart < Duration::from_secs(5), "{apart:?}");
    }
}

#[test]
fn what_does_not_agree_is_left_alone() {
    let vm = Vm::paused();
    let pid = launched_by_another_daemon(&vm);
    let truth = record_of(&vm);
    let other = run(vm.qemu().adopt(vm.dir.0.clone(), Uuid::new_v4()));
    assert!(matches!(other, Adoption::Unclear(_)), "{other:?}");
    let mut lie = truth.clone();
    lie.facts.pid_start += 1;
    for lie in [lie, RunRecord { boot_id: "another".into(), ..truth.clone() }] {
        file::replace_json(&vm.dir.run(), &lie).unwrap();
        let adoption = run(vm.adopt());
        assert!(matches!(adoption, Adoption::Unclear(_)), "{adoption:?}");
    }
    file::replace_json(&vm.dir.run(), &truth).unwrap();
    fs::rename(vm.dir.0.join("qmp"), vm.dir.0.join("elsewhere")).unwrap();
    let adoption = run(vm.adopt());
    assert!(matches!(adoption, Adoption::Unclear(_)), "{adoption:?}");
    let error = run(vm.qemu().launch(vm.plan.clone())).unwrap_err();
    assert!(matches!(error, BackendError::Io { errno: libc::EBUSY, .. }), "{error}");
    assert_eq!(vm.processes(), [pid]);
    assert_eq!(record_of(&vm), truth);
}

#[tokio::test]
async fn a_qemu_with_another_client_is_unclear_after_the_timeout() {
    let vm = Vm::paused();
    let launched = vm.launch().await;
    let adoption = vm.adopt().await;
    assert!(matches!(adoption, Adoption::Unclear(_)), "{adoption:?}");
    launched.machine.kill().await.unwrap();
}

#[test]
fn an_end_while_nobody_watched_and_a_restart_of_the_host_are_told_apart() {
    let vm = Vm::paused();
    launched_by_another_daemon(&vm);
    run(async {
        let process = Process::of(vm.processes()[0]).unwrap();
        process.signal(Signal::KILL).unwrap();
        process.ended().await;
        let Adoption::Ended(reason) = vm.adopt().await else {
            panic!("a dead QEMU was adopted");
        };
        assert!(reason.contains("no daemon watched"), "{reason}");
        let earlier = RunRecord { boot_id: "another".into(), ..record_of(&vm) };
        file::replace_json(&vm.dir.run(), &earlier).unwrap();
        let Adoption::Ended(reason) = vm.adopt().await else {
            panic!("a dead QEMU was adopted");
        };
        assert_eq!(reason, "the host was restarted");
    });
}

#[test]
fn only_what_is_surely_the_vms_is_ended_without_an_answer() {
    let vm = Vm::paused();
    let pid = launched_by_another_daemon(&vm);
    let truth = record_of(&vm);
    let silent = |uuid| run(vm.qemu().silent(vm.dir.0.clone(), uuid)).map(drop).unwrap_err();
    let mut later = truth.clone();
    later.facts.pid_start += 1;
    let mut other = truth.clone();
    (other.facts.pid, other.facts.pid_start) = (std::process::id(), 0);
    other.facts.pid_start = crate::qemu::process::start_time(std::process::id()).unwrap();
    for lie in [later, other, RunRecord { boot_id: "another".into(), ..truth.clone() }] {
        file::replace_json(&vm.dir.run(), &lie).unwrap();
        let text = silent(vm.plan.uuid).to_string();
        assert!(text.contains(&format!("pid {} is not surely", lie.facts.pid)), "{text}");
    }
    fs::write(vm.dir.run(), "{").unwrap();
    let text = silent(vm.plan.uuid).to_string();
    assert!(text.contains("run.json is damaged") && text.contains("pgrep -af"), "{text}");
    assert_eq!(vm.processes(), [pid]);
    file::replace_json(&vm.dir.run(), &truth).unwrap();
    run(async {
        let process = Process::of(pid).unwrap();
        process.signal(Signal::STOP).unwrap();
        let silent = vm.qemu().silent(vm.dir.0.clone(), vm.plan.uuid).await.unwrap();
        silent.kill().await.unwrap();
        process.ended().await;
    });
    assert!(vm.processes().is_empty() && !vm.dir.run().exists());
}

#[tokio::test]
async fn a_machine_that_is_given_up_can_be_adopted_again() {
    let vm = Vm::paused();
    drop(vm.launch().await);
    for _ in 0..2 {
        let adoption = vm.adopt().await;
        assert!(matches!(adoption, Adoption::Running(_)), "{adoption:?}");
    }
}
