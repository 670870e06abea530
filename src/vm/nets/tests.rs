//! Nets over fakes.

use super::super::driver::tests::{START, Scratch, set, until, vm_in};
use super::*;
use crate::vm::fake::{Script, backends};
use crate::vm::state::State;

/// Two VMs of a store with a net.
async fn two() -> (Scratch, Arc<Script>, [Vm; 2], Nets) {
    let (dir, script) = (Scratch(tempfile::tempdir().unwrap()), Arc::<Script>::default());
    let mut backends = backends(&script);
    let switches = Arc::new(crate::vm::fake::switch::FakeSwitches);
    backends.nets = Nets::open(&Layout::new(dir.0.path()), switches, &FailureLog::default());
    let nets = backends.nets.clone();
    nets.clone().make("lab".into()).await.unwrap();
    let one = vm_in(&backends, dir.0.path(), Uuid::from_u128(1)).await;
    let two = vm_in(&backends, dir.0.path(), Uuid::from_u128(2)).await;
    one.renamed("one".into());
    two.renamed("two".into());
    (dir, script, [one, two], nets)
}

#[tokio::test]
async fn a_net_is_apart_from_the_hosts_networks_and_stays_while_it_has_members() {
    let (_dir, _script, [one, _two], nets) = two().await;
    assert_eq!(nets.get("lab").unwrap().subnet.to_string(), "10.77.1.0/24");
    let exists = nets.clone().make("lab".into()).await.unwrap_err();
    assert!(matches!(exists, VmError::Net(NetError::Exists(_))), "{exists}");
    nets.clone().set_subnet("lab".into(), "192.168.9.0/29\n".into()).await.unwrap();
    set(&one, "nets", "lab").await.unwrap();
    assert_eq!(nets.get("lab").unwrap().hosts(), "192.168.9.1 one one.lab\n");
    let text = nets.clone().remove("lab".into()).await.unwrap_err().to_string();
    assert_eq!(text, "net lab has members: one; `echo none > VM/config/nets` has one leave");
    let late = nets.clone().set_subnet("lab".into(), "10.9.0.0/24".into()).await.unwrap_err();
    assert!(matches!(late, VmError::Net(NetError::HasMembers { .. })), "{late}");
    set(&one, "nets", "none").await.unwrap();
    nets.clone().remove("lab".into()).await.unwrap();
    assert!(nets.names().is_empty());
}

#[tokio::test]
async fn an_unknown_net_is_refused_and_changes_nothing() {
    let (_dir, _script, [one, _two], nets) = two().await;
    set(&one, "nets", "lab").await.unwrap();
    let error = set(&one, "nets", "lab nowhere").await.unwrap_err();
    assert!(matches!(error, VmError::Net(NetError::Absent(_))), "{error}");
    assert_eq!(one.spec().nets, ["lab"]);
    assert_eq!(nets.get("lab").unwrap().members.len(), 1);
    assert!(nets.wanted(one.uuid()).missing.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_guest_has_its_address_and_the_names_of_the_others_as_they_come_and_go() {
    let (_dir, script, [one, two], nets) = two().await;
    set(&one, "nets", "lab").await.unwrap();
    for vm in [&one, &two] {
        vm.perform(START).await.unwrap();
        until(vm, &State::Ready).await;
    }
    let said = || std::mem::take(&mut *script.changes.lock());
    let first = said();
    assert_eq!(first[0], "nic 0 off");
    assert_eq!(first[1], "guest [\"10.77.1.1/24\"] idle 0 10.77.1.1 one one.lab\n");
    assert!(first[2].starts_with("nic 0 /") && first[2].ends_with("/nets/lab/s"), "{first:?}");
    // A machine that runs gets a device.
    set(&two, "nets", "lab").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let joined = said();
    assert!(joined.contains(&"nic 0 52:54:0a:4d:01:02".to_owned()), "{joined:?}");
    let both = "10.77.1.1 one one.lab\n10.77.1.2 two two.lab\n";
    assert_eq!(joined.iter().filter(|line| line.ends_with(both)).count(), 2, "{joined:?}");
    two.renamed("three".into());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(said().iter().filter(|line| line.contains("three three.lab")).count(), 2);
    set(&two, "nets", "none").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let left = said();
    assert!(left.contains(&"guest [] idle 1 ".to_owned()), "{left:?}");
    assert!(left.iter().any(|line| line.ends_with("idle 0 10.77.1.1 one one.lab\n")), "{left:?}");
    nets.forget(one.uuid()).await.unwrap();
    assert!(nets.get("lab").unwrap().members.is_empty());
}
