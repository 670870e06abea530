//! Telling a guest that goes on from a warm image who it is: random numbers, time, name, network
//! address and keys of its own, in that order.
//!
//! It goes over a virtio-serial port to a shell that waits in the frozen guest, not over SSH: no
//! key may be exchanged with random numbers that other clones have too. The scripts are
//! `identity/*.sh`; they ask nothing of an image but a POSIX shell and root.

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

use super::{authorized_keys, keys};
use crate::store::layout::{VmDir, names};
use crate::vm::backend::{
    BackendError, Exit, GuestSession, IdentityPort, LaunchPlan, OutputSink, Source,
};
use crate::vm::spec::net::Mac;

const LISTEN: &str = include_str!("identity/listen.sh");
const PERSONALIZE: &str = include_str!("identity/personalize.sh");
/// What arming has taken away is given back.
const DISMISS: &str = "for device in /sys/bus/virtio/devices/*; do \
    read -r kind <$device/device; [ $kind = 0x0005 ] && \
    echo ${device##*/} >/sys/bus/virtio/drivers/virtio_balloon/bind; done; exit\n";
/// How long arming may take: a first boot's own work is waited for.
const ARM_TIMEOUT: Duration = Duration::from_secs(330);
/// How long the guest may take for anything else.
const BOUND: Duration = Duration::from_secs(20);
/// What a guest may say.
const SAID: u64 = 64 << 10;
/// Bytes of randomness that a guest is given.
const RANDOM: usize = 64;

/// A line to the shell that waits.
#[derive(Debug)]
pub(super) struct Port {
    client_key: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Port {
    /// Connects to the port of the machine in `dir`. As long as nobody is connected, the guest sees
    /// end of file: so this comes before a frozen guest goes on.
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
        let answered = timeout(BOUND, exchange).await;
        match answered {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(reason))) => Err(BackendError::PersonalizationFailed { reason }),
            Ok(Err(error)) => Err(BackendError::io("the identity port", &error)),
            Err(_) => {
                let seconds = BOUND.as_secs();
                let said = if last.is_empty() { last } else { format!(" (it said: {last})") };
                let reason = format!("it has not come to {answer:?} within {seconds} s{said}");
                Err(BackendError::PersonalizationFailed { reason })
            }
        }
    }

    /// Returns the reason if it is another line than hoped for.
    async fn await_line(&mut self, answer: &str, last: &mut String) -> io::Result<Option<String>> {
        let mut lines = (&mut self.stream).take(SAID).lines();
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
        let said = Said::default();
        let armed = timeout(ARM_TIMEOUT, session.exec(LISTEN.as_bytes(), b"", &said)).await;
        let late = BackendError::GuestTimeout { seconds: ARM_TIMEOUT.as_secs() };
        match armed.map_err(|_| late)?? {
            Exit::Code(0) => {
                // In a shell of its own, as a failure ends the shell and this one is dismissed.
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

    async fn tell(&mut self, plan: &LaunchPlan) -> Result<(), BackendError> {
        let script = script(&self.client_key, plan)?;
        self.ask(&script, "aqfs: time").await?;
        self.ask(&now(), "aqfs: done").await
    }

    async fn dismiss(&mut self) {
        // A guest that is gone does not wait either.
        self.stream.get_mut().write_all(DISMISS.as_bytes()).await.ok();
    }
}

/// Composes what makes the guest the machine of `plan`.
fn script(client_key: &Path, plan: &LaunchPlan) -> Result<String, BackendError> {
    let dir = VmDir(plan.dir.clone());
    let hostname = plan.spec.hostname.as_ref().unwrap_or(&plan.name);
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
        ("hostname", hostname.clone()),
        ("machine_id", plan.uuid.simple().to_string()),
        ("mac", mac.to_string()),
        ("dropbear_key", octal(&keys::dropbear(&key).map_err(failed)?)),
        ("openssh_key", String::from_utf8_lossy(&openssh).trim_end().to_owned()),
        ("openssh_public", keys::public_line(&key)?.trim_end().to_owned()),
        ("authorized", further.trim_end().to_owned()),
    ];
    let mut text = String::new();
    for (name, value) in variables {
        text.extend([name, "=", &quoted(&value), "\n"]);
    }
    // Its steps must not read what the shell is told, but for the time.
    Ok(text + "exec 4<&0\nbecome </dev/null\nexit\n")
}

/// Quotes for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Writes bytes as `printf` reads them: a shell's variable cannot hold a NUL.
fn octal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _written = write!(text, "\\{byte:03o}");
        text
    })
}

/// Returns randomness in letters.
fn random() -> String {
    let mut text = String::new();
    while text.len() < 2 * RANDOM {
        text.push_str(&Uuid::new_v4().simple().to_string());
    }
    text
}

/// Returns the time in seconds and hundredths, as a shell can count with them.
fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} {}\n", now.as_secs(), now.subsec_millis() / 10)
}

/// What a command has said.
#[derive(Debug, Default)]
struct Said(Mutex<Vec<u8>>);

impl Said {
    fn last_line(&self) -> String {
        let said = String::from_utf8_lossy(&self.0.lock()).into_owned();
        let line = said.lines().rev().find(|l| !l.trim().is_empty());
        line.unwrap_or("it did not say why").to_owned()
    }
}

#[async_trait]
impl OutputSink for Said {
    async fn accept(&self, _source: Source, bytes: &[u8]) {
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
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn randomness_differs() {
        let (a, b) = (random(), random());
        assert!(a.len() >= 2 * RANDOM && a != b);
    }
}
