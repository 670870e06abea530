//! Looking at a service of a guest, over its SSH connection: a port of its 127.0.0.1 by a forward, a
//! service by a command.
//!
//! Not here: how long that may take, and which names there are (`vm::probe`).

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use russh::ChannelOpenFailure;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::identity::CommandOutput;
use super::shell::quoted;
use super::ssh::Pool;
use crate::vm::backend::{BackendError, ProbeAnswer};
use crate::vm::probe::Probe;

/// Prints `ok WORD`, or why the service `$unit` does not run.
const UNIT: &str = include_str!("probe/unit.sh");
/// How much of an answer is read for its head.
const LONGEST_HEAD: usize = 16 << 10;
/// Headers that an answer may have.
const MOST_HEADERS: usize = 128;

/// Looks once.
///
/// # Errors
/// The connection is lost.
pub(super) async fn look(pool: &Arc<Pool>, probe: &Probe) -> Result<ProbeAnswer, BackendError> {
    match probe {
        Probe::Tcp(port) => {
            let dialled = dial(pool, *port).await?;
            Ok(dialled.map_or_else(ProbeAnswer::No, |_open| ProbeAnswer::Yes(String::new())))
        }
        Probe::Http { port, name } => match dial(pool, *port).await? {
            Ok(mut stream) => Ok(ask(&mut stream, *port, &target(name)).await),
            Err(reason) => Ok(ProbeAnswer::No(reason)),
        },
        Probe::Unit(name) => unit(pool, name).await,
    }
}

/// Connects to a port of the guest's 127.0.0.1, or says why that is not possible.
async fn dial(
    pool: &Arc<Pool>,
    port: u16,
) -> Result<Result<impl AsyncRead + AsyncWrite + Unpin + use<>, String>, BackendError> {
    let lease = pool.lease().await?;
    let opened = lease.connection.forward(port).await?;
    Ok(opened.map(russh::Channel::into_stream).map_err(|failure| reason(&failure)))
}

fn reason(failure: &ChannelOpenFailure) -> String {
    match failure {
        ChannelOpenFailure::ConnectFailed => "refused".to_owned(),
        ChannelOpenFailure::AdministrativelyProhibited => {
            "the guest's SSH server permits no forwarding (AllowTcpForwarding in sshd_config)"
                .into()
        }
        ChannelOpenFailure::UnknownChannelType => {
            "the guest's SSH server knows no forwarding".to_owned()
        }
        ChannelOpenFailure::ResourceShortage => "the guest is short of resources".to_owned(),
        ChannelOpenFailure::Other { reason, .. } => reason.clone(),
    }
}

/// Returns the target of a request for a file's name: `/` and a dot that comes first are escaped in
/// names; what no target may hold is escaped here.
fn target(name: &str) -> String {
    let name = name.replace("%2F", "/").replace("%2f", "/");
    let name = name.replace("%2E", ".").replace("%2e", ".");
    let mut target = String::from("/");
    for byte in name.trim_start_matches('/').bytes() {
        match byte {
            b'#' | ..=b' ' | 0x7f.. => {
                // A string takes everything.
                let _written = write!(target, "%{byte:02X}");
            }
            _ => target.push(char::from(byte)),
        }
    }
    target
}

/// Asks for a page and reads the head of the answer.
async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    port: u16,
    target: &str,
) -> ProbeAnswer {
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: aqfs\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    let answer = async {
        stream.write_all(request.as_bytes()).await?;
        status(stream).await
    };
    match answer.await {
        Ok(Some(code @ 200..400)) => ProbeAnswer::Yes(code.to_string()),
        Ok(Some(code)) => ProbeAnswer::No(format!("HTTP {code}")),
        Ok(None) => ProbeAnswer::No("no HTTP: it closed the connection without a status".into()),
        Err(error) => ProbeAnswer::No(format!("no HTTP: {error}")),
    }
}

/// Reads until the head of an answer is complete and returns its status; `None` if it ends before.
async fn status(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<u16>> {
    let (mut head, mut piece) = (Vec::new(), [0; 4096]);
    while head.len() < LONGEST_HEAD {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&piece[..count]);
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(&head).map_err(io::Error::other)?;
        if parsed.is_complete() {
            return Ok(answer.code);
        }
    }
    Err(io::Error::other(format!("the head of its answer is longer than {LONGEST_HEAD} bytes")))
}

async fn unit(pool: &Arc<Pool>, name: &str) -> Result<ProbeAnswer, BackendError> {
    let command = [b"unit=", &*quoted(name.as_bytes()), b"\n", UNIT.as_bytes()].concat();
    let said = CommandOutput::default();
    pool.lease().await?.connection.exec(&command, b"", &said).await?;
    let line = said.last_line();
    Ok(match line.strip_prefix("ok ") {
        Some(word) => ProbeAnswer::Yes(word.to_owned()),
        None => ProbeAnswer::No(line),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_target() {
        let table = [
            ("health", "/health"),
            ("%2F", "/"),
            ("api%2Fv1%2fhealth?full=1&x=%20", "/api/v1/health?full=1&x=%20"),
            ("%2Fx", "/x"),
            ("%2Ewell-known%2Fx", "/.well-known/x"),
            ("a b#c\r\nX: y", "/a%20b%23c%0D%0AX:%20y"),
            ("é", "/%C3%A9"),
        ];
        for (name, expected) in table {
            assert_eq!(target(name), expected, "{name}");
        }
    }

    async fn answered(said: &[u8]) -> ProbeAnswer {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let said = said.to_vec();
        let server = async move {
            let mut request = [0; 4096];
            let count = far.read(&mut request).await.unwrap();
            far.write_all(&said).await.unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        };
        let (answer, request) = tokio::join!(ask(&mut near, 80, "/x"), server);
        assert!(request.starts_with("GET /x HTTP/1.1\r\nHost: localhost:80\r\n"), "{request}");
        answer
    }

    #[tokio::test]
    async fn the_status_of_an_answer_decides() {
        let no = |reason: &str| ProbeAnswer::No(reason.to_owned());
        assert_eq!(
            answered(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody").await,
            ProbeAnswer::Yes("200".into())
        );
        assert_eq!(answered(b"HTTP/1.0 302 x\r\n\r\n").await, ProbeAnswer::Yes("302".into()));
        assert_eq!(answered(b"HTTP/1.1 503 x\r\n\r\n").await, no("HTTP 503"));
        let cut = no("no HTTP: it closed the connection without a status");
        assert_eq!(answered(b"HTTP/1.1 200 OK\r\n").await, cut);
        assert_eq!(answered(b"").await, cut);
        let (other, long) = (
            answered(b"SSH-2.0-x\r\n").await,
            [b"HTTP/1.1 200 OK\r\nA: ", &[b'x'; 20_000][..]].concat(),
        );
        assert!(
            matches!(&other, ProbeAnswer::No(reason) if reason.starts_with("no HTTP: ")),
            "{other:?}"
        );
        assert!(
            matches!(answered(&long).await, ProbeAnswer::No(reason) if reason.contains("longer"))
        );
    }
}
