//! The switches of nets that VMs run on: one for each net with a member that runs.
//!
//! Not here: what a switch is (`vm::backend::Switch`), who needs one.

use std::path::PathBuf;
use std::sync::Arc;

use super::Nets;
use crate::vm::backend::{BackendError, Switch};

#[derive(Debug)]
pub(super) struct RunningSwitch {
    /// No other switch has it as long as the daemon runs.
    number: u64,
    switch: Arc<dyn Switch>,
}

/// A switch as machines are connected to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SwitchPort {
    pub(super) number: u64,
    pub(super) sockets: PathBuf,
}

impl Nets {
    /// Returns the switch of a net; starts it if need be.
    pub(super) async fn switch(&self, net: &str) -> Result<SwitchPort, BackendError> {
        let _turn = self.0.switching.lock().await;
        if let Some(there) = self.port(net) {
            return Ok(there);
        }
        let dir = self.0.dir(net);
        // One that an earlier daemon has started has members on it.
        let switch = match self.0.switches.adopt(&dir).await {
            Some(switch) => switch,
            None => self.0.switches.start(&dir).await?,
        };
        Ok(self.watch(net, switch))
    }

    fn port(&self, net: &str) -> Option<SwitchPort> {
        let state = self.0.state.lock();
        state.running.get(net).map(RunningSwitch::port)
    }

    /// Finds the switches that an earlier daemon has started.
    pub(super) async fn adopt_switches(&self) {
        let _turn = self.0.switching.lock().await;
        for net in self.names() {
            if self.port(&net).is_none()
                && let Some(switch) = self.0.switches.adopt(&self.0.dir(&net)).await
            {
                self.watch(&net, switch);
            }
        }
    }

    /// Notes a switch that runs, and its end.
    fn watch(&self, net: &str, switch: Arc<dyn Switch>) -> SwitchPort {
        let (nets, name, watched) = (self.clone(), net.to_owned(), Arc::clone(&switch));
        let port = {
            let mut state = self.0.state.lock();
            state.next_switch += 1;
            let running = RunningSwitch { number: state.next_switch, switch };
            let port = running.port();
            state.running.insert(name.clone(), running);
            port
        };
        let number = port.number;
        tokio::spawn(async move {
            let how = watched.ended().await;
            nets.lost(&name, number, &how);
        });
        port
    }

    /// A switch has ended. Those that need one start another.
    fn lost(&self, net: &str, number: u64, how: &str) {
        let mut state = self.0.state.lock();
        if state.running.get(net).is_some_and(|running| running.number == number) {
            state.running.remove(net);
            drop(state);
            tracing::warn!(net, how, "the switch of a net has ended");
            self.0.tell();
        }
    }

    /// Ends the switches of nets that nobody who runs is a member of.
    pub(super) async fn end_idle_switches(&self) {
        let idle: Vec<String> = {
            let state = self.0.state.lock();
            state.running.keys().filter(|net| !state.is_used(net)).cloned().collect()
        };
        for net in idle {
            self.end_switch(&net).await;
        }
    }

    /// Ends the switch of a net, unless it is needed again.
    pub(super) async fn end_switch(&self, net: &str) {
        let _turn = self.0.switching.lock().await;
        let running = {
            let mut state = self.0.state.lock();
            if state.is_used(net) {
                return;
            }
            state.running.remove(net)
        };
        if let Some(running) = running {
            running.switch.end().await;
        }
    }
}

impl RunningSwitch {
    fn port(&self) -> SwitchPort {
        SwitchPort { number: self.number, sockets: self.switch.sockets().to_owned() }
    }
}
