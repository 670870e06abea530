//! Probes KVM by booting a Linux kernel under it.
//!
//! Not here: when that is done, and what follows from the result (`accel`).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::process::strip_program;
use crate::arch::Arch;
use crate::{programs, sys};

/// How long a kernel may take to its first line: some 0.3 s are to be expected on hardware, perhaps
/// 1 s nested in another hypervisor. A KVM that needs longer gains little over TCG, which was
/// measured to take 2.4 s on two slow processors.
const BOOT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a QEMU that failed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// What a kernel's first line holds. Without `earlyprintk` it appears when the console does: by
/// then memory, interrupts and clocks have been set up, so much has worked.
const MARKER: &[u8] = b"Linux version";
/// The most output looked at: the firmware says little before the kernel.
const OUTPUT_LIMIT: usize = 64 << 10;
/// Whether KVM runs a Linux guest here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProbeResult {
    /// It does, with this `-cpu`.
    Works {
        cpu: String,
    },
    Fails {
        reason: String,
    },
}

/// What came of an attempt to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BootAttempt {
    /// The kernel printed its first line.
    Booted,
    /// The kernel printed nothing in time.
    Silent,
    /// QEMU ended, with this last line.
    Died(String),
}

/// Boots `kernel` under KVM. Another processor model is tried where QEMU died of one; it does
/// not make a slow KVM fast.
pub(super) async fn probe(kernel: &Path) -> ProbeResult {
    let mut reason = String::new();
    for cpu in Arch::HOST.platform().kvm_cpus {
        match boot("kvm", cpu, kernel, BOOT_TIMEOUT).await {
            BootAttempt::Booted => return ProbeResult::Works { cpu: (*cpu).to_owned() },
            BootAttempt::Silent => {
                let seconds = BOOT_TIMEOUT.as_secs();
                reason = format!("under KVM a Linux kernel printed nothing within {seconds} s");
                break;
            }
            BootAttempt::Died(line) => {
                reason = format!("KVM does not work with -cpu {cpu}: {line}");
            }
        }
    }
    ProbeResult::Fails { reason }
}

/// Boots `kernel` as far as its first line.
pub(super) async fn boot(accel: &str, cpu: &str, kernel: &Path, deadline: Duration) -> BootAttempt {
    let mut child = match command(accel, cpu, kernel).spawn() {
        Ok(child) => child,
        Err(error) => return BootAttempt::Died(error.to_string()),
    };
    let booted = match child.stdout.take() {
        Some(output) => timeout(deadline, finds_marker(output)).await,
        None => Ok(false),
    };
    let end = match booted {
        Ok(true) => BootAttempt::Booted,
        Err(_) => BootAttempt::Silent,
        Ok(false) => BootAttempt::Died(last_line(&mut child).await),
    };
    // One that does not go is killed again and reaped by the runtime when it is dropped.
    timeout(END_TIMEOUT, child.kill()).await.ok();
    end
}

fn command(accel: &str, cpu: &str, kernel: &Path) -> Command {
    let platform = Arch::HOST.platform();
    let mut command = std::process::Command::new(platform.emulator.name);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "128M"])
        .args(["-machine", &format!("{},{}", platform.machine, platform.machine_options)])
        .args(["-accel", accel, "-cpu", cpu, "-serial", "stdio"])
        .args(["-append", &format!("console={} panic=-1", platform.console), "-kernel"])
        .arg(kernel);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // An abort is one of the outcomes to be expected: it need not leave a core file.
    sys::keeping_secrets(&mut command);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    command
}

/// Reads until the kernel's first line; false if the output ends without it.
async fn finds_marker(mut output: impl AsyncRead + Unpin) -> bool {
    let mut seen = Vec::new();
    while seen.len() < OUTPUT_LIMIT {
        match output.read_buf(&mut seen).await {
            Ok(0) | Err(_) => return false,
            Ok(_) if seen.windows(MARKER.len()).any(|w| w == MARKER) => return true,
            Ok(_) => {}
        }
    }
    false
}

async fn last_line(child: &mut Child) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(OUTPUT_LIMIT as u64);
        // What has been read by then is reported.
        timeout(END_TIMEOUT, stderr.read_to_end(&mut text)).await.ok();
    }
    let line = programs::last_line(&text);
    strip_program(line.as_deref().unwrap_or("QEMU gave no reason")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_marker_is_found_across_reads_and_missed_at_the_end() {
        assert!(finds_marker(pieces(["SeaBIOS\r\n[0.0] Linux ver", "sion 6.1"])).await);
        assert!(!finds_marker(pieces(["SeaBIOS\r\n", "no disk"])).await);
    }

    fn pieces(texts: [&'static str; 2]) -> impl AsyncRead + Unpin {
        let [first, second] = texts.map(std::io::Cursor::new);
        AsyncReadExt::chain(first, second)
    }
}
