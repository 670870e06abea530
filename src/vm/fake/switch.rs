//! Switches that a test plays.

use std::net::Ipv4Addr;

use super::*;

#[derive(Debug)]
pub(crate) struct FakeSwitches;

#[derive(Debug)]
struct FakeSwitch {
    sockets: PathBuf,
    end: tokio::sync::Notify,
}

#[async_trait]
impl Switches for FakeSwitches {
    async fn start(&self, dir: &Path) -> Result<Arc<dyn Switch>, BackendError> {
        Ok(Arc::new(FakeSwitch { sockets: dir.join("s"), end: tokio::sync::Notify::new() }))
    }

    async fn adopt(&self, _dir: &Path) -> Option<Arc<dyn Switch>> {
        None
    }

    fn host_networks(&self) -> Vec<(Ipv4Addr, u8)> {
        vec![(Ipv4Addr::new(10, 77, 0, 0), 24)]
    }
}

#[async_trait]
impl Switch for FakeSwitch {
    fn sockets(&self) -> &Path {
        &self.sockets
    }

    async fn ended(&self) -> String {
        self.end.notified().await;
        "exit 0".to_owned()
    }

    async fn end(&self) {
        self.end.notify_one();
    }
}
