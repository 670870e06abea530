//! Which VMs are to be removed because their time is over: `config/expire` (`doc/adr/0039-lifetime.md`).
//!
//! Not here: removing them (`fuse::touch`), which is done through the mount, so that the kernel knows of it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::Registry;
use crate::vm::events::Event;
use crate::vm::state::{Command, Refusal};
use crate::vm::{Vm, VmError, VmId};

/// How long before its end a VM's readers of events hear of it, at the most; of a short time it is a tenth.
const NOTICE: Duration = Duration::from_secs(60);
/// When a removal that was refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How long nothing is looked at, at the most: the host may sleep, and its clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// How long the end of a machine is waited for.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What has been said and tried of the VMs that have a time.
#[derive(Debug, Default)]
pub struct Expiries(HashMap<VmId, Expiry>);

#[derive(Clone, Copy, Debug)]
struct Expiry {
    at: SystemTime,
    is_announced: bool,
    /// When its removal was tried last.
    tried: Option<SystemTime>,
}

/// What is due of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// To say that it is removed after so long.
    Announcement(Duration),
    Removal,
    /// Nothing for so long.
    Nothing(Duration),
}

impl Expiry {
    fn new(at: SystemTime) -> Self {
        Self { at, is_announced: false, tried: None }
    }

    fn due(&self, now: SystemTime, span: Duration, configured: SystemTime) -> Due {
        let Ok(left) = self.at.duration_since(now) else {
            return self.retry(now, configured);
        };
        let notice = (span / 10).min(NOTICE);
        match left {
            Duration::ZERO => self.retry(now, configured),
            _ if self.is_announced => Due::Nothing(left),
            _ if left <= notice => Due::Announcement(left),
            _ => Due::Nothing(left - notice),
        }
    }

    /// A setting that was written since may be what was in the way.
    fn retry(&self, now: SystemTime, configured: SystemTime) -> Due {
        let Some(tried) = self.tried.filter(|tried| configured <= *tried) else {
            return Due::Removal;
        };
        match now.duration_since(tried) {
            Ok(since) if since < RETRY_INTERVAL => Due::Nothing(RETRY_INTERVAL - since),
            Ok(_) | Err(_) => Due::Removal,
        }
    }
}

impl Registry {
    /// Emits what is due to be said, and lists the VMs to remove now; and for how long nothing else is
    /// due, if any VM has a time.
    pub fn due(&self, known: &mut Expiries) -> (Vec<Vm>, Option<Duration>) {
        let (now, mut over, mut next) = (SystemTime::now(), Vec::new(), None);
        let with_time: Vec<(Vm, SystemTime)> = {
            let vms = self.vms.read();
            vms.by_id.values().filter_map(|vm| Some((vm.clone(), vm.expires()?))).collect()
        };
        known.0.retain(|id, _| with_time.iter().any(|(vm, _)| vm.id() == *id));
        for (vm, at) in with_time {
            let expiry = known.0.entry(vm.id()).or_insert_with(|| Expiry::new(at));
            if expiry.at != at {
                *expiry = Expiry::new(at);
            }
            let idle = look(&vm, expiry, now, &mut over).min(LONGEST_SLEEP);
            next = Some(next.map_or(idle, |next: Duration| next.min(idle)));
        }
        (over, next)
    }

    /// Ends a VM whose time is over, and returns its name if it can be removed then. What refuses says so
    /// in its `error`.
    pub async fn end_expired(vm: Vm) -> Option<String> {
        vm.emit(&Event::Expired);
        let ended = end(&vm).await;
        if let Err(error) = ended {
            vm.note_outcome(Err::<(), _>(error));
            return None;
        }
        Some(vm.name())
    }
}

/// Does what is due of one VM, and returns for how long nothing else is.
fn look(vm: &Vm, expiry: &mut Expiry, now: SystemTime, over: &mut Vec<Vm>) -> Duration {
    let span = vm.spec().expire.unwrap_or_default();
    match expiry.due(now, span, vm.configured()) {
        Due::Announcement(left) => {
            expiry.is_announced = true;
            vm.emit(&Event::Expires(Some(left)));
            left
        }
        Due::Removal => {
            expiry.tried = Some(now);
            over.push(vm.clone());
            RETRY_INTERVAL
        }
        Due::Nothing(time) => time,
    }
}

/// Ends its machine as `kill` does. One that is protected runs on.
async fn end(vm: &Vm) -> Result<(), VmError> {
    if vm.spec().protect {
        return Err(Refusal::Protected.into());
    }
    let mut listener = vm.listen();
    if !vm.state().is_off() {
        vm.perform(Command::Kill).await?;
    }
    let off = async {
        while !vm.state().is_off() {
            listener.rung().await;
        }
    };
    // `rmdir` says what it is busy with.
    let _late = timeout(END_TIMEOUT, off).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_announced_once_and_then_removed() {
        let mut expiry = Expiry::new(at(3600));
        let due = |expiry: &Expiry, now| expiry.due(at(now), HOUR, at(0));
        assert_eq!(due(&expiry, 0), Due::Nothing(HOUR - NOTICE));
        assert_eq!(due(&expiry, 3550), Due::Announcement(Duration::from_secs(50)));
        expiry.is_announced = true;
        assert_eq!(due(&expiry, 3550), Due::Nothing(Duration::from_secs(50)));
        assert_eq!(due(&expiry, 3600), Due::Removal);
        // Also if nobody was there to announce it.
        assert_eq!(due(&Expiry::new(at(3600)), 9000), Due::Removal);
        // A tenth of a short time.
        let short = Expiry::new(at(5)).due(at(0), Duration::from_secs(5), at(0));
        assert_eq!(short, Due::Nothing(Duration::from_millis(4500)));
    }

    #[test]
    fn a_removal_that_is_refused_is_tried_again_later_or_when_a_setting_changes() {
        let expiry = Expiry { tried: Some(at(100)), ..Expiry::new(at(100)) };
        assert_eq!(expiry.due(at(110), HOUR, at(0)), Due::Nothing(Duration::from_secs(50)));
        assert_eq!(expiry.due(at(160), HOUR, at(0)), Due::Removal);
        assert_eq!(expiry.due(at(110), HOUR, at(105)), Due::Removal);
        // The clock was set back.
        assert_eq!(expiry.due(at(100), HOUR, at(0)), Due::Nothing(RETRY_INTERVAL));
    }
}
