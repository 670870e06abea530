//! Personalizing a guest that resumes from a warm image: random numbers, time, name, network
//! address and keys of its own, in that order.
//!
//! It goes over a virtio-serial port to a shell that waits in the captured guest, not over SSH: no
//! key may be exchanged with random numbers that other clones have too. The scripts are
//! `identity/*.sh`; they need only a POSIX shell and root in the image.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::shell::quoted;
use super::{authorized_keys, hostname, keys};
use crate::store::layout::{VmDir, names};
use crate::vm::backend::{
    BackendError, Exit, GuestSession, IdentityPort, LaunchPlan, OutputKind, OutputSink,
};
use crate::vm::spec::net::Mac;

const LISTEN: &str = include_str!("identity/listen.sh");
const PERSONALIZE: &str = include_str!("identity/personalize.sh");
/// Gives back the balloon device that arming has unbound.
const DISMISS: &str = "for device in /sys/bus/virtio/devices/*; do \
    read -r kind <$device/device; [ $kind = 0x0005 ] && \
    echo ${device##*/} >/sys/bus/virtio/drivers/virtio_balloon/bind; done; exit\n";
/// How long arming may take: it waits until a first boot has done its work.
const ARM_TIMEOUT: Duration = Duration::from_secs(330);
/// How long the guest may take for anything else.
const PERSONALIZE_TIMEOUT: Duration = Duration::from_secs(20);
/// How much a guest may print before it gives the answer.
const LONGEST_OUTPUT: u64 = 64 << 10;
const SEED_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct Port {
    client_key: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Port {
    /// Connects to the port of the machine in `dir`. As long as nothing is connected, the guest
    /// sees end of file: so this comes before its vCPUs resume.
    pub(super) async fn connect(client_key: PathBuf, dir: &Path) -> Result<Self, BackendError> {
        let stream = super::socket(dir, names::IDENTITY)
            .await
            .map_err(|e| BackendError::io("the identity port", &e))?;
        Ok(Self { client_key, stream: BufReader::new(stream) })
    }

    /// Sends text and waits for a line of ours that starts with `answer`.
    async fn ask(&mut self, text: &str, answer: &str) -> Result<(), BackendError> {
        let mut last = String::new();
        let exchange = async {
            self.stream.get_mut().write_all(text.as_bytes()).await?;
            self.await_line(answer, &mut last).await
        };
        let answered = timeout(PERSONALIZE_TIMEOUT, exchange).await;
        match answered {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(reason))) => Err(BackendError::PersonalizationFailed { reason }),
            Ok(Err(error)) => Err(BackendError::io("the identity port", &error)),
            Err(_) => {
                let seconds = PERSONALIZE_TIMEOUT.as_secs();
                let said = if last.is_empty() { last } else { format!(" (it said: {last})") };
                let reason = format!("it has not come to {answer:?} within {seconds} s{said}");
                Err(BackendError::PersonalizationFailed { reason })
            }
        }
    }

    /// Returns the reason if the guest reports a failure or closes the port.
    async fn await_line(&mut self, answer: &str, last: &mut String) -> io::Result<Option<String>> {
        let mut lines = (&mut self.stream).take(LONGEST_OUTPUT).lines();
        while let Some(line) = lines.next_line().await? {
            if line == answer {
                return Ok(None);
            }
            if let Some(reason) = line.strip_prefix("aqfs: failed: ") {
                return Ok(Some(reason.to_owned()));
            }
            *last = line;
        }
        Ok(Some(format!("it has closed the port (it said: {last})")))
    }
}

#[async_trait]
impl IdentityPort for Port {
    async fn arm(&mut self, session: &dyn GuestSession) -> Result<(), BackendError> {
        let said = CommandOutput::default();
        let armed = timeout(ARM_TIMEOUT, session.exec(LISTEN.as_bytes(), b"", &said)).await;
        let late = BackendError::GuestTimeout { seconds: ARM_TIMEOUT.as_secs() };
        match armed.map_err(|_| late)?? {
            Exit::Code(0) => {
                // In a subshell: a failure ends it, and the outer shell can then be dismissed.
                let armed = format!("{PERSONALIZE}\n(check) && echo 'aqfs: armed'\n");
                let armed = self.ask(&armed, "aqfs: armed").await;
                if armed.is_err() {
                    self.dismiss().await;
                }
                armed
            }
            Exit::Code(_) | Exit::Signal(_) => {
                Err(BackendError::PersonalizationFailed { reason: said.last_line() })
            }
        }
    }

    async fn personalize(&mut self, plan: &LaunchPlan) -> Result<(), BackendError> {
        let script = script(&self.client_key, plan)?;
        self.ask(&script, "aqfs: time").await?;
        self.ask(&now(), "aqfs: done").await
    }

    async fn dismiss(&mut self) {
        // A guest that is gone needs no dismissal.
        self.stream.get_mut().write_all(DISMISS.as_bytes()).await.ok();
    }
}

/// Composes the script that personalizes the guest for `plan`.
fn script(client_key: &Path, plan: &LaunchPlan) -> Result<String, BackendError> {
    let dir = VmDir(plan.dir.clone());
    let hostname = hostname(plan);
    let key = keys::ensure(&dir.host_key(), hostname)?;
    let failed = |e: io::Error| BackendError::io("the SSH host key", &e);
    let openssh = keys::openssh(&key).map_err(failed)?;
    let mac = plan.spec.mac.unwrap_or_else(|| Mac::of(plan.uuid));
    let further = match plan.spec.ssh_key.is_empty() {
        true => String::new(),
        false => authorized_keys(client_key, &plan.spec.ssh_key)?,
    };
    let variables = [
        ("random", random()),
        ("hostname", hostname.to_owned()),
        ("machine_id", plan.uuid.simple().to_string()),
        ("mac", mac.to_string()),
        ("dropbear_key", octal(&keys::dropbear(&key).map_err(failed)?)),
        ("openssh_key", String::from_utf8_lossy(&openssh).trim_end().to_owned()),
        ("openssh_public", keys::public_line(&key)?.trim_end().to_owned()),
        ("authorized", further.trim_end().to_owned()),
        ("sever", if plan.is_fork() { "1".to_owned() } else { String::new() }),
    ];
    let mut text = String::new();
    for (name, value) in variables {
        text.extend([name, "=", &String::from_utf8_lossy(&quoted(value.as_bytes())), "\n"]);
    }
    // Its steps must not read the rest of the script, but for the time.
    Ok(text + "exec 4<&0\nbecome </dev/null\nexit\n")
}

/// Writes bytes as `printf` reads them: a shell's variable cannot hold a NUL.
fn octal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _written = write!(text, "\\{byte:03o}");
        text
    })
}

fn random() -> String {
    let mut text = String::new();
    while text.len() < 2 * SEED_BYTES {
        text.push_str(&Uuid::new_v4().simple().to_string());
    }
    text
}

/// Returns the time in seconds and hundredths, as a shell can count with them.
fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} {}\n", now.as_secs(), now.subsec_millis() / 10)
}

/// The output of a command, for the last line of an error.
#[derive(Debug, Default)]
pub(super) struct CommandOutput(Mutex<Vec<u8>>);

impl CommandOutput {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }

    pub(super) fn last_line(&self) -> String {
        let said = String::from_utf8_lossy(&self.0.lock()).into_owned();
        let line = said.lines().rev().find(|l| !l.trim().is_empty());
        line.unwrap_or("it printed nothing").to_owned()
    }
}

#[async_trait]
impl OutputSink for CommandOutput {
    async fn accept(&self, _source: OutputKind, bytes: &[u8]) {
        let mut said = self.0.lock();
        if said.len() < 4096 {
            said.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_printf_reads_them() {
        assert_eq!(octal(&[0, 10, 255]), r"\000\012\377");
    }

    #[test]
    fn randomness_differs() {
        let (a, b) = (random(), random());
        assert!(a.len() >= 2 * SEED_BYTES && a != b);
    }
}
