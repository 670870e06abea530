//! Waits until a guest has found a disk that was plugged in: the device is there at once, and its name in `/dev`
//! when the guest's kernel has looked at it. Who writes `size` and then runs `mkfs` in the guest relies on it.
//!
//! Not here: the device (`attach`).

use std::time::Duration;

use tokio::time::timeout;

use crate::vm::Vm;
use crate::vm::backend::{DiscardOutput, Exit, GuestSession};
use crate::vm::state::State;

/// How long a guest may take. The kernel's own hot plug takes some 100 ms, its links in `/dev/disk` some more.
const FOUND_TIMEOUT: Duration = Duration::from_secs(8);

impl Vm {
    /// Waits until the guest has the disk with this serial number, if it is ready: others find it as they boot. The
    /// disk stays plugged in whatever the guest makes of it.
    pub(super) async fn until_guest_has(&self, name: &str, serial: &str) {
        let session = self.0.exec.session().filter(|_| self.state() == State::Ready);
        let Some(session) = session else { return };
        if !is_found(&*session, serial).await {
            self.note_outcome(Err(format!(
                "the guest has not found the disk {name} within {} s; a kernel without PCI hot plug finds it when it \
                 boots next",
                FOUND_TIMEOUT.as_secs()
            )));
        }
    }
}

async fn is_found(session: &dyn GuestSession, serial: &str) -> bool {
    let script = script(serial);
    let looked = session.exec(script.as_bytes(), b"", &DiscardOutput);
    matches!(timeout(FOUND_TIMEOUT, looked).await, Ok(Ok(Exit::Code(0))))
}

/// A serial number has no character that a shell minds. The kernel writes no end of line behind it.
fn script(serial: &str) -> String {
    format!(
        "tries=0
         has() {{
             for file in /sys/block/*/serial; do
                 is=; read -r is <$file; [ \"$is\" = '{serial}' ] && return
             done
             return 1
         }} 2>/dev/null
         until has; do tries=$((tries + 1)); [ $tries = 60 ] && exit 1; sleep 0.1; done
         if command -v udevadm >/dev/null; then udevadm settle --timeout=2; fi
         exit 0"
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_finds_a_serial_number_without_an_end_of_line() {
        let dir = tempfile::tempdir().unwrap();
        for (disk, serial) in [("vda", "other"), ("vdb", "data")] {
            std::fs::create_dir(dir.path().join(disk)).unwrap();
            std::fs::write(dir.path().join(disk).join("serial"), serial).unwrap();
        }
        let here = format!("{}/*/serial", dir.path().display());
        let run = |serial: &str| {
            let script = script(serial).replace("/sys/block/*/serial", &here);
            let script = script.replace("sleep 0.1", ":").replace("udevadm", "no-such-program");
            Command::new("sh").arg("-c").arg(script).status().unwrap().code()
        };
        assert_eq!((run("data"), run("dat")), (Some(0), Some(1)));
    }
}
