//! A session with a guest: commands, each with its output under flow control.
//!
//! russh gives a channel its window back when bytes *arrive*, not when they are read, and passes
//! them on through a bounded queue on which the loop of the whole connection waits: a channel whose
//! reader stalls delays all others of its connection, keepalives included (Eugeny/russh#730). So a
//! running command has a [`Connection`] to itself as long as there are few. Then the queue bounds
//! the memory, and a stall closes the SSH and TCP windows of that one command.
//!
//! Not here: the protocol (`connection`), when to connect and how often to try (the driver).

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, SshAccess, unreachable};
use super::{keys, nets, probe, sftp, shares, supervise, web};
use crate::store::layout::VmDir;
use crate::vm::backend::{
    BackendError, DiscardOutput, ExecOptions, Exit, FilePort, FileServer, GuestAddress, GuestFiles,
    GuestNic, GuestSession, JobIo, NicOutcome, NicPlace, NoFiles, OpenPort, OutputSink, PortServer,
    ProbeAnswer,
};
use crate::vm::probe::Probe;

/// Timeout of one attempt to connect, log in and run `true`.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at the most; beyond them commands share.
const MOST: usize = 16;
/// How long a connection beyond the first stays open without a command.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A guest that we are logged in to.
#[derive(Debug)]
pub struct SshSession {
    first: Arc<Connection>,
    pool: Arc<Pool>,
    /// Variables that every command finds.
    environment: Mutex<Vec<(String, String)>>,
}

/// Connects, logs in and runs `true`: one attempt.
///
/// # Errors
/// [`BackendError::WrongHostKey`], [`BackendError::KeyRefused`], or
/// [`BackendError::Unreachable`] for what may be different the next time.
pub async fn connect(client_key: &Path, at: &GuestAddress) -> Result<SshSession, BackendError> {
    let access = SshAccess {
        port: at.port,
        user: at.user.clone(),
        client_key: Arc::new(keys::ensure(client_key, "aqfs")?),
        host_key: keys::public(&VmDir(at.dir.clone()).host_key())?,
    };
    let late = |_| unreachable(format!("not logged in within {} s", ATTEMPT_TIMEOUT.as_secs()));
    let first = timeout(ATTEMPT_TIMEOUT, prove(&access)).await.map_err(late)??;
    let pool = Arc::new(Pool::new(access, Arc::clone(&first)));
    Ok(SshSession { first, pool, environment: Mutex::default() })
}

async fn prove(access: &SshAccess) -> Result<Arc<Connection>, BackendError> {
    let connection = Connection::open(access).await?;
    match connection.exec(b"true", b"", &DiscardOutput).await? {
        Exit::Code(0) => Ok(connection),
        exit @ (Exit::Code(_) | Exit::Signal(_)) => {
            Err(unreachable(format!("`true` ended with {exit:?}")))
        }
    }
}

#[async_trait]
impl GuestSession for SshSession {
    async fn exec(
        &self,
        command: &[u8],
        stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Exit, BackendError> {
        let command = supervise::prepared(command, &self.options(&ExecOptions::default()));
        self.pool.lease().await?.connection.exec(&command, stdin, output).await
    }

    async fn run(
        &self,
        command: &[u8],
        options: &ExecOptions,
        io: &dyn JobIo,
    ) -> Result<Exit, BackendError> {
        supervise::run(&self.pool, command, &self.options(options), io).await
    }

    async fn probe(&self, probe: &Probe) -> Result<ProbeAnswer, BackendError> {
        probe::look(&self.pool, probe).await
    }

    async fn files(&self) -> Result<Arc<dyn GuestFiles>, NoFiles> {
        Ok(Arc::new(sftp::open(&self.pool).await?))
    }

    async fn serve_files(
        &self,
        server: Arc<dyn FileServer>,
    ) -> Result<Box<dyn FilePort>, BackendError> {
        shares::open(&self.pool.access, server).await
    }

    fn set_environment(&self, variables: Vec<(String, String)>) {
        *self.environment.lock() = variables;
    }

    async fn serve_web(
        &self,
        proxy: Arc<dyn PortServer>,
    ) -> Result<Box<dyn OpenPort>, BackendError> {
        web::open(&self.pool.access, proxy).await
    }

    async fn set_nets(
        &self,
        nics: &[GuestNic],
        idle: &[NicPlace],
        hosts: &str,
        wait: Duration,
    ) -> Result<Vec<NicOutcome>, BackendError> {
        let lease = self.pool.lease().await?;
        nets::set(&lease.connection, (nics, idle), hosts, wait).await
    }

    async fn closed(&self) {
        self.first.closed().await;
    }
}

impl SshSession {
    /// Puts what every command finds before what this one is given.
    fn options(&self, own: &ExecOptions) -> ExecOptions {
        let mut env = self.environment.lock().clone();
        env.extend(own.env.iter().cloned());
        ExecOptions { env, ..own.clone() }
    }
}

/// The connections of one session, the first one first: it is as old as the session.
#[derive(Debug)]
pub(super) struct Pool {
    access: SshAccess,
    slots: Mutex<Vec<Slot>>,
    /// Held while one connects: servers limit connections without a login (dropbear: five an
    /// address).
    connect_lock: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Slot {
    connection: Arc<Connection>,
    users: usize,
    /// Commands that it has been leased to: an unchanged number means that it was idle in between.
    leases: u64,
}

impl Pool {
    fn new(access: SshAccess, first: Arc<Connection>) -> Self {
        let slots = Mutex::new(vec![Slot::new(first)]);
        Self { access, slots, connect_lock: tokio::sync::Mutex::default() }
    }

    /// Takes an idle connection, opens one more, or shares the least busy one.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, BackendError> {
        if let Some(lease) = self.take(1) {
            return Ok(lease);
        }
        let _turn = self.connect_lock.lock().await;
        if let Some(lease) = self.take(1) {
            return Ok(lease);
        }
        if (1..MOST).contains(&self.slots.lock().len()) {
            match timeout(ATTEMPT_TIMEOUT, Connection::open(&self.access)).await {
                Ok(Ok(connection)) => self.slots.lock().push(Slot::new(connection)),
                Ok(Err(error)) => tracing::warn!(%error, "no further connection to the guest"),
                Err(_) => tracing::warn!("no further connection to the guest in time"),
            }
        }
        self.take(usize::MAX).ok_or_else(|| unreachable("connection lost"))
    }

    /// Opens a connection that is not of the pool.
    pub(super) async fn connect_for_files(&self) -> Result<Arc<Connection>, BackendError> {
        let _turn = self.connect_lock.lock().await;
        let opened = timeout(ATTEMPT_TIMEOUT, Connection::open(&self.access)).await;
        opened.map_err(|_| unreachable("no further connection in time"))?
    }

    /// Takes the least busy connection if fewer than `limit` commands run on it.
    fn take(self: &Arc<Self>, limit: usize) -> Option<Lease> {
        let mut slots = self.slots.lock();
        slots.retain(|slot| !slot.connection.is_closed());
        let slot = slots.iter_mut().min_by_key(|slot| slot.users)?;
        if slot.users >= limit {
            return None;
        }
        slot.users += 1;
        slot.leases += 1;
        Some(Lease { pool: Arc::clone(self), connection: Arc::clone(&slot.connection) })
    }

    /// Ends a lease. Closes a connection beyond the first that is then idle for [`IDLE_TIMEOUT`].
    fn give_back(self: &Arc<Self>, connection: &Arc<Connection>) {
        let mut slots = self.slots.lock();
        let is_it = |slot: &Slot| Arc::ptr_eq(&slot.connection, connection);
        let Some(place) = slots.iter().position(is_it) else {
            return;
        };
        slots[place].users -= 1;
        if place > 0 && slots[place].users == 0 {
            let (leases, weak) = (slots[place].leases, Arc::downgrade(connection));
            let idle = retire(Arc::downgrade(self), leases, weak);
            connection.runtime().spawn(idle);
        }
    }
}

/// Closes a connection unless it has been leased again meanwhile.
async fn retire(pool: Weak<Pool>, leases: u64, connection: Weak<Connection>) {
    sleep(IDLE_TIMEOUT).await;
    let is_it = |slot: &Slot| connection.ptr_eq(&Arc::downgrade(&slot.connection));
    if let Some(pool) = pool.upgrade() {
        pool.slots.lock().retain(|slot| slot.leases != leases || !is_it(slot));
    }
}

impl Slot {
    fn new(connection: Arc<Connection>) -> Self {
        Self { connection, users: 0, leases: 0 }
    }
}

/// A running command's place on a connection.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(&self.connection);
    }
}
