//! One SSH connection to a guest: handshake, login, commands.
//!
//! Not here: how many connections there are (`ssh`).

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpStream as StdTcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, ChannelOpenHandle, Msg, Session};
use russh::keys::{
    Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate,
};
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Preferred, Sig,
};
use russh::{compression, kex};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::vm::backend::{BackendError, Exit, OutputKind, OutputSink, PortServer};

/// Until the server's first byte: QEMU's user networking accepts before the guest listens and
/// repeats a lost SYN only seconds later, so a new attempt is through sooner than an old one.
const BANNER: Duration = Duration::from_millis(1200);
/// A guest that does not answer three of these in a row is unreachable.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Bytes that the guest may send ahead on one channel.
const WINDOW: u32 = 2 << 20;
/// Messages of up to 32 KiB that wait for a slow reader: 1 MiB at the most.
const QUEUE: usize = 32;
/// How long closing a command's channel may take.
pub(super) const HANG_UP: Duration = Duration::from_secs(2);
/// Channels that a command is offered on, one after the other.
pub(super) const OFFERS: usize = 8;
/// Makes a command wait for a line of input, which follows when the guest has taken the command.
///
/// When a process of a connection ends, dropbear (2022.83) looks at all channels of that connection
/// and closes those without a process: also one that waits for its command. It then runs such a
/// command all the same, without an answer and without a reader. So a command may do nothing before
/// the guest has answered for it; the line travels while the shell starts.
pub(super) const GUARD: &[u8] = b"read -r _ || exit; ";
/// The line that [`GUARD`] waits for.
pub(super) const GO: &[u8] = b"\n";
/// RFC 4254: the number of stderr among the extended data.
const STDERR: u32 = 1;

#[derive(Clone)]
pub(super) struct SshAccess {
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) client_key: Arc<PrivateKey>,
    pub(super) host_key: PublicKey,
}

impl fmt::Debug for SshAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@127.0.0.1:{}", self.user, self.port)
    }
}

pub(super) struct Connection {
    handle: client::Handle<Verifier>,
    life: watch::Receiver<()>,
    runtime: Handle,
    _cable: Cable,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.is_closed();
        f.debug_struct("Connection").field("closed", &closed).finish_non_exhaustive()
    }
}

pub(super) fn unreachable(reason: impl Into<String>) -> BackendError {
    BackendError::Unreachable { reason: reason.into() }
}

pub(super) fn broken(error: impl fmt::Display) -> BackendError {
    unreachable(format!("connection lost: {error}"))
}

impl Connection {
    /// Connects and logs in. The caller bounds the whole; the part before SSH is bounded here.
    pub(super) async fn open(access: &SshAccess) -> Result<Arc<Self>, BackendError> {
        Self::connect(access, None).await
    }

    /// Does the same; what comes from ports of the guest goes to a server.
    pub(super) async fn serving(
        access: &SshAccess,
        server: Arc<dyn PortServer>,
    ) -> Result<Arc<Self>, BackendError> {
        Self::connect(access, Some(server)).await
    }

    async fn connect(
        access: &SshAccess,
        server: Option<Arc<dyn PortServer>>,
    ) -> Result<Arc<Self>, BackendError> {
        let socket = dial(access.port).await?;
        let cable = Cable::of(&socket).map_err(broken)?;
        let (alive, life) = watch::channel(());
        let verifier = Verifier { host_key: access.host_key.clone(), server, _alive: alive };
        let connecting = client::connect_stream(config(), socket, verifier);
        let mut handle = connecting.await?;
        log_in(&mut handle, access).await?;
        Ok(Arc::new(Self { handle, life, runtime: Handle::current(), _cable: cable }))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.life.has_changed().is_err()
    }

    pub(super) async fn closed(&self) {
        let mut life = self.life.clone();
        while life.changed().await.is_ok() {}
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) async fn channel(&self) -> Result<Channel<Msg>, BackendError> {
        self.handle.channel_open_session().await.map_err(broken)
    }

    /// Opens a channel to a port of the guest's 127.0.0.1, or says why there is none.
    pub(super) async fn forward(
        &self,
        port: u16,
    ) -> Result<Result<Channel<Msg>, ChannelOpenFailure>, BackendError> {
        let from = Ipv4Addr::LOCALHOST.to_string();
        let port = u32::from(port);
        match self.handle.channel_open_direct_tcpip(from.clone(), port, from, 0).await {
            Ok(channel) => Ok(Ok(channel)),
            Err(russh::Error::ChannelOpenFailure(failure)) => Ok(Err(failure)),
            Err(error) => Err(broken(error)),
        }
    }

    /// Has the guest listen on a port of its 127.0.0.1, for the server of this connection.
    pub(super) async fn listen(&self, port: u16) -> Result<(), BackendError> {
        let address = Ipv4Addr::LOCALHOST.to_string();
        match self.handle.tcpip_forward(address, u32::from(port)).await {
            Ok(_) => Ok(()),
            Err(russh::Error::RequestDenied) => Err(BackendError::fact(
                "the guest's SSH server does not listen for us",
                format!(
                    "port {port}; it must permit forwarding (AllowTcpForwarding, PermitListen and \
                     DisableForwarding in sshd_config)"
                ),
                libc::EPERM,
            )),
            Err(error) => Err(broken(error)),
        }
    }

    pub(super) async fn exec(
        &self,
        command: &[u8],
        stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Exit, BackendError> {
        for _ in 0..OFFERS {
            if let Some(exit) = self.offer(command, stdin, output).await? {
                return Ok(exit);
            }
        }
        Err(untaken())
    }

    /// Runs a command unless its channel is closed before the guest has taken it; see [`follow`].
    async fn offer(
        &self,
        command: &[u8],
        stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Option<Exit>, BackendError> {
        let channel = self.channel().await?;
        let (mut incoming, outgoing) = channel.split();
        let mut running =
            Running { outgoing: Arc::new(outgoing), over: false, runtime: self.runtime.clone() };
        let taken = Notify::new();
        let end = tokio::select! {
            end = follow(&mut incoming, output, &taken) => end,
            never = feed(&running.outgoing, command, stdin, &taken) => match never? {},
        };
        running.over = end.is_ok();
        end
    }
}

/// Sends the command and, once it is taken, its input, then waits for ever: [`follow`] reports
/// how it ends, and what the guest refuses.
async fn feed(
    outgoing: &ChannelWriteHalf<Msg>,
    command: &[u8],
    stdin: &[u8],
    taken: &Notify,
) -> Result<Infallible, BackendError> {
    outgoing.exec(true, [GUARD, command].concat()).await.map_err(broken)?;
    taken.notified().await;
    outgoing.data_bytes([GO, stdin].concat()).await.map_err(broken)?;
    outgoing.eof().await.map_err(broken)?;
    std::future::pending().await
}

/// What to say of a guest that takes a command on none of its channels.
pub(super) fn untaken() -> BackendError {
    unreachable(format!("it closed {OFFERS} channels in a row before they had a command"))
}

/// What to say of a command that may have run.
pub(super) fn mute() -> BackendError {
    unreachable("it ended a command without a status")
}

/// Hands on what the command says until it has ended and all of its output is here.
///
/// `None` when the guest has closed the channel without an answer to the request: a command under
/// [`GUARD`] has not run then. Every other end without a status is an error, as it may have run.
pub(super) async fn follow(
    incoming: &mut ChannelReadHalf,
    output: &dyn OutputSink,
    taken: &Notify,
) -> Result<Option<Exit>, BackendError> {
    let (mut exit, mut eof, mut answered) = (None, false, false);
    while exit.is_none() || !eof {
        match incoming.wait().await {
            Some(ChannelMsg::Success) => {
                answered = true;
                taken.notify_one();
            }
            Some(ChannelMsg::Data { data }) => output.accept(OutputKind::Stdout, &data).await,
            Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => {
                output.accept(OutputKind::Stderr, &data).await;
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => exit = Some(Exit::Code(exit_status)),
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                exit = Some(Exit::Signal(name(signal_name)));
            }
            Some(ChannelMsg::Failure) => return Err(unreachable("it refused to run a command")),
            Some(ChannelMsg::Eof) => eof = true,
            Some(ChannelMsg::Close) if exit.is_none() && answered => return Err(mute()),
            Some(ChannelMsg::Close) => break,
            Some(_) => {}
            None => return Err(unreachable("connection lost while a command ran")),
        }
    }
    Ok(exit)
}

fn name(signal: Sig) -> String {
    // The other variants are called as their signals are.
    if let Sig::Custom(name) = signal { name } else { format!("{signal:?}") }
}

/// Connects, and waits for the server's first byte.
async fn dial(port: u16) -> Result<TcpStream, BackendError> {
    let greeted = async {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        socket.set_nodelay(true)?;
        match socket.peek(&mut [0]).await? {
            0 => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(socket),
        }
    };
    match timeout(BANNER, greeted).await {
        Ok(socket) => socket.map_err(|e: io::Error| unreachable(format!("port {port}: {e}"))),
        Err(_) => Err(unreachable(format!(
            "no SSH server has answered on port {port} within {} ms",
            BANNER.as_millis()
        ))),
    }
}

fn config() -> Arc<client::Config> {
    Arc::new(client::Config {
        window_size: WINDOW,
        channel_buffer_size: QUEUE,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 2,
        inactivity_timeout: None,
        nodelay: true,
        preferred: Preferred {
            // Nothing leaves this host: the cheapest exchange will do, and the guest's key is
            // known to be of one kind.
            kex: Cow::Borrowed(&[
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    })
}

async fn log_in(
    handle: &mut client::Handle<Verifier>,
    access: &SshAccess,
) -> Result<(), BackendError> {
    let key = PrivateKeyWithHashAlg::new(Arc::clone(&access.client_key), None);
    let answer = handle.authenticate_publickey(&access.user, key).await;
    if answer.map_err(broken)?.success() {
        return Ok(());
    }
    Err(BackendError::KeyRefused { user: access.user.clone() })
}

/// Accepts the one host key that was made for this guest.
struct Verifier {
    host_key: PublicKey,
    /// Takes the connections from ports of the guest.
    server: Option<Arc<dyn PortServer>>,
    /// Dropped with the connection's task.
    _alive: watch::Sender<()>,
}

impl client::Handler for Verifier {
    type Error = BackendError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, BackendError> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            return Err(BackendError::WrongHostKey);
        };
        match key.key_data() == self.host_key.key_data() {
            true => Ok(true),
            false => Err(BackendError::WrongHostKey),
        }
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _from_address: &str,
        from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), BackendError> {
        // Dropped, the reply is a refusal.
        if let Some(server) = &self.server {
            reply.accept().await;
            Arc::clone(server).accept(Box::new(channel.into_stream()), from_port);
        }
        Ok(())
    }
}

impl From<russh::Error> for BackendError {
    fn from(error: russh::Error) -> Self {
        unreachable(format!("SSH: {error}"))
    }
}

/// A second handle of the socket. Dropping it shuts the socket down, which ends the connection's
/// task wherever it waits: an abandoned attempt leaves no task behind.
struct Cable(StdTcpStream);

impl Cable {
    fn of(socket: &TcpStream) -> io::Result<Self> {
        Ok(Self(socket.as_fd().try_clone_to_owned()?.into()))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // It may be closed already, which is as good.
        drop(self.0.shutdown(Shutdown::Both));
    }
}

/// A command's channel; dropped before the command is over, it hangs up. OpenSSH passes no signals
/// on to commands of root: there the closed channel ends the command at its next output.
struct Running {
    outgoing: Arc<ChannelWriteHalf<Msg>>,
    over: bool,
    runtime: Handle,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let outgoing = Arc::clone(&self.outgoing);
        self.runtime.spawn(timeout(HANG_UP, async move {
            outgoing.signal(Sig::HUP).await?;
            outgoing.close().await
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::keys;

    #[tokio::test]
    async fn only_the_host_key_of_this_guest_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let key =
            |name: &str| keys::ensure(&dir.path().join(name), name).unwrap().public_key().clone();
        let (own, other) = (key("own"), key("other"));
        let mut verifier =
            Verifier { host_key: own.clone(), server: None, _alive: watch::Sender::new(()) };
        let [own, other] =
            [own, other].map(|key| PublicKeyOrCertificate::PublicKey { key, hash_alg: None });
        assert!(client::Handler::check_server_key(&mut verifier, &own).await.unwrap());
        let refused = client::Handler::check_server_key(&mut verifier, &other).await;
        assert!(matches!(refused, Err(BackendError::WrongHostKey)));
    }
}
