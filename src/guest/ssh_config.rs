//! A configuration for OpenSSH's programs, so that `ssh`, `scp`, `rsync` and whatever is built on
//! them get into a guest without a question, and into no other machine.
//!
//! Text only, besides the file with the host key. Our own connection is in `ssh`.

use std::fmt::Write;
use std::path::Path;

use uuid::Uuid;

use super::keys;
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, ClientHost};

/// What does not depend on the guest: our key alone, the known host key alone, no questions.
const FIXED: &[(&str, &str)] = &[
    ("IdentitiesOnly", "yes"),
    ("IdentityAgent", "none"),
    ("ForwardAgent", "no"),
    ("PreferredAuthentications", "publickey"),
    ("StrictHostKeyChecking", "yes"),
    ("GlobalKnownHostsFile", "/dev/null"),
    ("UpdateHostKeys", "no"),
    ("CheckHostIP", "no"),
    ("BatchMode", "yes"),
    ("LogLevel", "ERROR"),
];

/// Writes the file that pins the guest's host key. The key is known by the VM's identity, as its
/// port changes with every start and its name with every `mv`. Every start writes it anew.
///
/// # Errors
/// The host key cannot be read, or the file not be written.
pub fn write_known_hosts(dir: &VmDir, uuid: Uuid) -> Result<(), BackendError> {
    let key = keys::public(&dir.host_key())?;
    let failed = |e: std::io::Error| BackendError::io("the guest's known_hosts", &e);
    let key = key.to_openssh().map_err(|e| failed(std::io::Error::other(e)))?;
    file::replace_unsynced(&dir.known_hosts(), format!("{uuid} {key}\n").as_bytes()).map_err(failed)
}

/// Renders the configuration. For a guest that cannot be reached it is one with which `ssh` says
/// why and ends.
pub fn render(client_key: &Path, host: &ClientHost) -> String {
    let known_hosts = VmDir(host.dir.clone()).known_hosts();
    let mut text = format!("Host {}\n", host.name);
    let mut add = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "    {key} {value}");
    };
    add("HostName", "127.0.0.1");
    match (&host.port, &host.command) {
        (Ok(_), Some(command)) => add("ProxyCommand", &shell_line(command)),
        (Ok(port), None) => add("Port", &port.to_string()),
        (Err(reason), _) => add("ProxyCommand", &refusal(&host.name, reason)),
    }
    add("HostKeyAlias", &host.uuid.to_string());
    add("UserKnownHostsFile", &quoted(&known_hosts));
    add("User", &host.user);
    add("IdentityFile", &quoted(client_key));
    FIXED.iter().for_each(|(key, value)| add(key, value));
    text
}

/// A command in place of a connection: it says why there is none. The shell around it keeps the
/// connection open until that is said: without, `ssh` may end first.
fn refusal(name: &str, reason: &str) -> String {
    let plain = |c: &char| c.is_alphanumeric() || " ;:,.>-/".contains(*c);
    let sentence: String = format!("{name} {reason}").chars().filter(plain).collect();
    format!("sh -c 'echo \"{sentence}\" >&2'")
}

/// A command as OpenSSH reads it: a line for the shell, in which `%` begins a token.
fn shell_line(command: &[String]) -> String {
    let word = |word: &String| format!("'{}'", word.replace('\'', "'\\''")).replace('%', "%%");
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// A path as OpenSSH reads it: in quotes, and `%` begins a token.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(port: Result<u16, String>) -> ClientHost {
        let (name, user) = ("vm1".to_owned(), "root".to_owned());
        let dir = "/a store/100%".into();
        ClientHost { name, uuid: Uuid::nil(), dir, user, port, command: None }
    }

    #[test]
    fn a_guest_that_may_be_off_is_connected_to_by_a_command() {
        let words = ["/usr/bin/aq", "connect", "/a mount/100%/it's"].map(str::to_owned).to_vec();
        let text = render(Path::new("/id"), &ClientHost { command: Some(words), ..host(Ok(1)) });
        let command = r"    ProxyCommand '/usr/bin/aq' 'connect' '/a mount/100%%/it'\''s'";
        assert!(text.lines().any(|line| line == command) && !text.contains("Port 1"), "{text}");
    }

    #[test]
    fn paths_are_quoted_and_the_key_is_known_by_the_identity() {
        let text = render(Path::new("/a store/id"), &host(Ok(40022)));
        for line in [
            "Host vm1",
            "    Port 40022",
            "    IdentityFile \"/a store/id\"",
            "    UserKnownHostsFile \"/a store/100%%/known_hosts\"",
            "    HostKeyAlias 00000000-0000-0000-0000-000000000000",
            "    StrictHostKeyChecking yes",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn a_guest_that_is_off_has_a_sentence_for_a_port() {
        let text = render(Path::new("/id"), &host(Err("is stopped; `don't $x`".to_owned())));
        let command = r#"    ProxyCommand sh -c 'echo "vm1 is stopped; dont x" >&2'"#;
        assert!(text.lines().any(|line| line == command), "{text}");
        assert!(!text.contains("Port"), "{text}");
    }
}
