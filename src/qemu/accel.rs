//! Which accelerator runs guests: hints, then a proof, then a verdict for this boot of the host.
//!
//! A `/dev/kvm` that opens proves nothing: there are hosts whose KVM takes minutes to the first
//! line of an ordinary kernel, or on which `-cpu host` aborts QEMU. So a kernel has to boot. No
//! machine is special here.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::install::{Installation, PROGRAM};
use super::process::{boot_id, strip_program};
use crate::store::file;
use crate::store::layout::Layout;
use crate::sys;
use crate::vm::backend::{Accel, AccelKind, BackendError, BootImage, Images};
use crate::vm::spec::{AccelChoice, VmSpec, render_accel};

/// How long a kernel may take to its first line. On hardware it takes some 0.3 s, nested in
/// another hypervisor perhaps 1 s; a KVM that needs longer is slower than TCG, which takes 2.5 s
/// on a slow machine.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long a QEMU that failed may take to vanish.
const END_BOUND: Duration = Duration::from_secs(1);
/// What a kernel's first line holds. Without `earlyprintk` it appears when the console does: by
/// then memory, interrupts and clocks have been set up, so much has worked.
const MARKER: &[u8] = b"Linux version";
/// The most output looked at: the firmware says little before the kernel.
const OUTPUT_LIMIT: usize = 64 << 10;
/// Processors to try under KVM, best first: what the host has; the same without the register that
/// makes QEMU abort where the host's KVM does not know it; a plain one that every host can be.
const LADDER: &[&str] = &["host", "host,-arch-capabilities", "qemu64"];
/// The processor under TCG: all that QEMU can translate. It boots as fast as a plain one, and its
/// RDRAND seeds the guest's random numbers at 0.1 s of its boot; `qemu64` leaves them unseeded
/// beyond the first shell, so that an SSH server would wait.
const TCG_CPU: &str = "max";

/// What `/dev/kvm` is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Device {
    /// It opens.
    Opens,
    /// It does not, for this reason.
    Unusable(String),
}

/// What can be seen without running anything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hints {
    device: Device,
    /// The processor says that it can virtualize, or does not say.
    virtualizes: bool,
}

/// Whether KVM runs a Linux guest here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It does, with this processor.
    Works {
        /// QEMU's `-cpu`.
        cpu: String,
    },
    /// It does not.
    Fails {
        /// Why.
        reason: String,
    },
}

/// What to do about a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Use(Accel),
    Refuse(String),
    Prove,
}

/// Decides as far as hints go. Who insists on KVM gets the proof even when the processor shows no
/// sign of it: some hypervisors hide the sign.
fn by_hints(choice: AccelChoice, hints: &Hints) -> Step {
    match (choice, &hints.device) {
        (AccelChoice::Tcg, _) => Step::Use(tcg("asked for in config/accel")),
        (AccelChoice::Auto, Device::Unusable(reason)) => Step::Use(tcg(reason)),
        (AccelChoice::Kvm, Device::Unusable(reason)) => Step::Refuse(reason.clone()),
        (AccelChoice::Auto, Device::Opens) if !hints.virtualizes => {
            Step::Use(tcg("the host's processor shows neither vmx nor svm"))
        }
        (AccelChoice::Auto | AccelChoice::Kvm, Device::Opens) => Step::Prove,
    }
}

/// Decides after the proof.
fn by_verdict(choice: AccelChoice, verdict: Verdict) -> Step {
    match verdict {
        Verdict::Works { cpu } => Step::Use(Accel {
            kind: AccelKind::Kvm,
            cpu,
            reason: "a Linux kernel has booted under KVM here".to_owned(),
        }),
        Verdict::Fails { reason } if choice == AccelChoice::Kvm => Step::Refuse(reason),
        Verdict::Fails { reason } => Step::Use(tcg(&reason)),
    }
}

fn tcg(reason: &str) -> Accel {
    Accel {
        kind: AccelKind::Tcg,
        cpu: TCG_CPU.to_owned(),
        reason: reason.to_owned(),
    }
}

fn look() -> Hints {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    // Unreadable is as good as silent: the proof decides.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Hints {
        device: opened.map_or_else(|e| Device::Unusable(why_closed(&e)), |_| Device::Opens),
        virtualizes: virtualizes(&cpuinfo),
    }
}

fn why_closed(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "no permission for /dev/kvm: join its group with `sudo usermod -aG kvm $USER` and log \
             in again"
                .to_owned()
        }
        _ => format!("/dev/kvm does not open: {error}"),
    }
}

/// On x86 the processor's flags tell; where there are no flags there is no hint.
fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags"));
    flags.is_none_or(|l| l.split_ascii_whitespace().any(|f| f == "vmx" || f == "svm"))
}

/// What a verdict depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Circumstances {
    boot_id: String,
    qemu_version: String,
    kernel: String,
}

/// A verdict as it is kept on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    circumstances: Circumstances,
    verdict: Verdict,
}

/// Chooses accelerators; proves KVM once for all who ask.
#[derive(Debug)]
pub struct Chooser {
    layout: Layout,
    images: Arc<dyn Images>,
    verdict: OnceCell<Verdict>,
}

impl Chooser {
    /// Makes one that takes its kernel from `images` and keeps its verdict under `layout`.
    pub fn new(layout: Layout, images: Arc<dyn Images>) -> Self {
        let verdict = OnceCell::new();
        Self {
            layout,
            images,
            verdict,
        }
    }

    /// Picks an accelerator.
    ///
    /// # Errors
    /// `NoAccelerator` when KVM is demanded and does not work.
    pub async fn choose(
        &self,
        choice: AccelChoice,
        qemu: &Installation,
    ) -> Result<Accel, BackendError> {
        let step = match by_hints(choice, &look()) {
            Step::Prove => by_verdict(choice, self.verdict(qemu).await),
            step => step,
        };
        match step {
            Step::Use(accel) => Ok(accel),
            Step::Refuse(reason) => Err(refusal(choice, reason)),
            Step::Prove => Err(refusal(choice, "nothing has been proven".to_owned())),
        }
    }

    /// Returns the verdict. A proof that could not be tried is no verdict to keep.
    async fn verdict(&self, qemu: &Installation) -> Verdict {
        let proven = self.verdict.get_or_try_init(|| self.recall_or_prove(qemu));
        match proven.await {
            Ok(verdict) => verdict.clone(),
            Err(error) => Verdict::Fails {
                reason: format!("KVM could not be tried: {error}"),
            },
        }
    }

    async fn recall_or_prove(&self, qemu: &Installation) -> Result<Verdict, BackendError> {
        let image = self.images.ensure(&VmSpec::default().image).await?;
        let circumstances = circumstances(&image, qemu)?;
        let path = self.layout.accel_verdict();
        if let Ok(kept) = file::read_json::<Kept>(&path)
            && kept.circumstances == circumstances
        {
            return Ok(kept.verdict);
        }
        let kernel = image.kernel.ok_or_else(|| BackendError::ImageFailed {
            name: image.name,
            reason: "it has no kernel of its own to try".to_owned(),
        })?;
        let verdict = prove(&kernel).await;
        tracing::info!(?verdict, "KVM was put to the proof");
        let kept = Kept {
            circumstances,
            verdict,
        };
        if let Err(error) = keep(&self.layout, &kept) {
            // The next daemon will have to prove it again, no more.
            tracing::warn!(path = %path.display(), %error, "cannot keep the verdict on KVM");
        }
        Ok(kept.verdict)
    }
}

fn refusal(choice: AccelChoice, reason: String) -> BackendError {
    BackendError::NoAccelerator {
        wanted: render_accel(choice).to_owned(),
        reason,
    }
}

fn circumstances(image: &BootImage, qemu: &Installation) -> Result<Circumstances, BackendError> {
    Ok(Circumstances {
        boot_id: boot_id().map_err(|e| BackendError::io("the host's boot id", &e))?,
        qemu_version: qemu.version.clone(),
        kernel: image.digest.clone(),
    })
}

fn keep(layout: &Layout, kept: &Kept) -> io::Result<()> {
    file::private_dir(&layout.cache())?;
    file::replace_json(&layout.accel_verdict(), kept)
}

/// How a try went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Try {
    /// The kernel printed its first line.
    Booted,
    /// Nothing came before the deadline.
    Silent,
    /// QEMU ended, with this last line.
    Died(String),
}

/// Boots the kernel under KVM. Another processor model is tried where QEMU died of one; it does
/// not make a slow KVM fast.
async fn prove(kernel: &Path) -> Verdict {
    let mut reason = String::new();
    for cpu in LADDER {
        match boot("kvm", cpu, kernel, DEADLINE).await {
            Try::Booted => {
                return Verdict::Works {
                    cpu: (*cpu).to_owned(),
                };
            }
            Try::Silent => {
                let seconds = DEADLINE.as_secs();
                reason = format!("under KVM a Linux kernel printed nothing within {seconds} s");
                break;
            }
            Try::Died(line) => reason = format!("KVM does not work with -cpu {cpu}: {line}"),
        }
    }
    Verdict::Fails { reason }
}

pub(super) async fn boot(accel: &str, cpu: &str, kernel: &Path, deadline: Duration) -> Try {
    let mut child = match command(accel, cpu, kernel).spawn() {
        Ok(child) => child,
        Err(error) => return Try::Died(error.to_string()),
    };
    let booted = match child.stdout.take() {
        Some(output) => timeout(deadline, finds_marker(output)).await,
        None => Ok(false),
    };
    let end = match booted {
        Ok(true) => Try::Booted,
        Err(_) => Try::Silent,
        Ok(false) => Try::Died(last_line(&mut child).await),
    };
    // One that does not go is killed again and reaped by the runtime when it is dropped.
    timeout(END_BOUND, child.kill()).await.ok();
    end
}

fn command(accel: &str, cpu: &str, kernel: &Path) -> Command {
    let mut command = std::process::Command::new(PROGRAM);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-machine",
            "q35,usb=off,vmport=off,smbus=off,sata=off",
            "-m",
            "128M",
        ])
        .args(["-accel", accel, "-cpu", cpu, "-serial", "stdio"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
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
        // What has been read by the deadline is what there is to tell.
        timeout(END_BOUND, stderr.read_to_end(&mut text)).await.ok();
    }
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|l| !l.trim().is_empty());
    strip_program(line.unwrap_or("QEMU gave no reason")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(device: Device, virtualizes: bool) -> Hints {
        Hints {
            device,
            virtualizes,
        }
    }

    #[test]
    fn hints_decide_what_they_can() {
        let closed = || Device::Unusable("there is no /dev/kvm".into());
        let none = "the host's processor shows neither vmx nor svm";
        let table = [
            (
                AccelChoice::Tcg,
                hints(Device::Opens, true),
                Step::Use(tcg("asked for in config/accel")),
            ),
            (
                AccelChoice::Auto,
                hints(closed(), true),
                Step::Use(tcg("there is no /dev/kvm")),
            ),
            (
                AccelChoice::Kvm,
                hints(closed(), true),
                Step::Refuse("there is no /dev/kvm".into()),
            ),
            (
                AccelChoice::Auto,
                hints(Device::Opens, false),
                Step::Use(tcg(none)),
            ),
            (AccelChoice::Kvm, hints(Device::Opens, false), Step::Prove),
            (AccelChoice::Auto, hints(Device::Opens, true), Step::Prove),
            (AccelChoice::Kvm, hints(Device::Opens, true), Step::Prove),
        ];
        for (choice, hints, expected) in table {
            assert_eq!(by_hints(choice, &hints), expected, "{choice:?} {hints:?}");
        }
    }

    #[test]
    fn a_failed_proof_is_a_reason_for_tcg_and_a_refusal_of_kvm() {
        let fails = || Verdict::Fails {
            reason: "slow".into(),
        };
        assert_eq!(
            by_verdict(AccelChoice::Auto, fails()),
            Step::Use(tcg("slow"))
        );
        assert_eq!(
            by_verdict(AccelChoice::Kvm, fails()),
            Step::Refuse("slow".into())
        );
        let works = Verdict::Works { cpu: "host".into() };
        let Step::Use(accel) = by_verdict(AccelChoice::Auto, works) else {
            panic!("KVM works and is not used");
        };
        assert_eq!((accel.kind, accel.cpu.as_str()), (AccelKind::Kvm, "host"));
    }

    #[test]
    fn processor_flags_are_a_hint_only_where_there_are_any() {
        let table = [
            ("processor : 0\nflags\t\t: fpu vmx sse\n", true),
            ("flags : fpu svm\n", true),
            ("flags : fpu vmx_like\n", false),
            ("Features : fp asimd\n", true),
            ("", true),
        ];
        for (cpuinfo, expected) in table {
            assert_eq!(virtualizes(cpuinfo), expected, "{cpuinfo:?}");
        }
    }

    #[test]
    fn a_device_that_is_there_but_not_ours_names_the_group() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(why_closed(&denied).contains("usermod -aG kvm"));
    }

    #[tokio::test]
    async fn the_marker_is_found_across_reads_and_missed_at_the_end() {
        assert!(finds_marker(pieces(["SeaBIOS\r\n[0.0] Linux ver", "sion 6.1"])).await);
        assert!(!finds_marker(pieces(["SeaBIOS\r\n", "no disk"])).await);
    }

    fn pieces(texts: [&'static str; 2]) -> impl AsyncRead + Unpin {
        let [first, second] = texts.map(io::Cursor::new);
        AsyncReadExt::chain(first, second)
    }
}
