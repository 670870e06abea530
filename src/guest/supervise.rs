//! Commands with live input, signals, a terminal and an end that is certain.
//!
//! SSH servers differ in what they do with a `signal` request: dropbear signals the shell alone,
//! OpenSSH refuses it for root. So a command is wrapped in a few lines of shell that give it a
//! process group of its own and announce the group's number, and a signal is one `kill` on another
//! connection: its own may be blocked by output that is not read. `env` requests are refused
//! by both, so variables and directory are lines of shell as well.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use russh::client::Msg;
use russh::{ChannelReadHalf, ChannelWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::connection::{GO, GUARD, HANG_UP, OFFERS, broken, follow, mute, untaken};
use super::shell::quoted;
use super::ssh::{Lease, Pool};
use crate::vm::backend::{
    BackendError, DiscardOutput, ExecOptions, Exit, JobControl, JobIo, OutputKind, OutputSink,
    WindowSize,
};

/// Longest command line: dropbear refuses more than 9000 bytes.
const LONGEST: usize = 8 << 10;
/// Starts the line with the number of the process group. Text does not start with it.
const MARK: u8 = 0x1e;
/// The longest number of a process, with the carriage return of a terminal.
const LONGEST_NUMBER: usize = 11;
/// Says the number, and undoes what [`wrap`] has used.
const ANNOUNCE: &[u8] = b"unset b g; printf '\\036%d\\n' $$\n";
/// What a user types on a terminal to end the input.
const END_OF_TRANSMISSION: u8 = 4;
/// The `TERM` of our terminals.
const TERMINAL: &str = "xterm";

pub(super) async fn run(
    pool: &Arc<Pool>,
    command: &[u8],
    options: &ExecOptions,
    io: &dyn JobIo,
) -> Result<Exit, BackendError> {
    let wrapped = Wrapped::new(command, options)?;
    let lease = pool.lease().await?;
    for _ in 0..OFFERS {
        let mut group = Group::on(&lease, pool).await?;
        let end = group.run(&wrapped, options, io).await;
        if end.is_ok() {
            group.channel = None;
        }
        match end? {
            Some(exit) => return Ok(exit),
            None if options.terminal.is_some() => return Err(mute()),
            None => {}
        }
    }
    Err(untaken())
}

#[derive(Debug, PartialEq, Eq)]
struct Wrapped {
    line: Vec<u8>,
    /// A text too long for the line: the first bytes of the command's input.
    text: Vec<u8>,
}

impl Wrapped {
    fn new(command: &[u8], options: &ExecOptions) -> Result<Self, BackendError> {
        let text = prepared(command, options);
        let line = wrap(&[ANNOUNCE, &*text].concat());
        if line.len() <= LONGEST {
            return Ok(Self { line, text: Vec::new() });
        }
        // A terminal echoes it, and accepts at most 4 KiB a line.
        if options.terminal.is_some() {
            return Err(BackendError::TooLong { limit: LONGEST });
        }
        let read = format!("dd bs={} count=1 iflag=fullblock 2>/dev/null", text.len());
        let line = wrap(&[ANNOUNCE, format!("eval \"$({read})\"").as_bytes()].concat());
        Ok(Self { line, text })
    }
}

pub(super) fn prepared(command: &[u8], options: &ExecOptions) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(cwd) = &options.cwd {
        // `cd -` would be something else.
        let here = if cwd.starts_with('/') { "" } else { "./" };
        text.extend([b"cd ", &*quoted(format!("{here}{cwd}").as_bytes()), b" || exit\n"].concat());
    }
    for (name, value) in &options.env {
        let value = quoted(value.as_bytes());
        text.extend([b"export ", name.as_bytes(), b"=", &*value, b"\n"].concat());
    }
    text.extend(command);
    text
}

/// Has a shell run `body` as the leader of a process group: OpenSSH, and any server with a
/// terminal, makes it one; dropbear does not.
fn wrap(body: &[u8]) -> Vec<u8> {
    let rest = b"; read -r _ _ _ _ g _ </proc/self/stat; [ \"$g\" = $$ ] || \
        ! command -v setsid >/dev/null || exec setsid sh -c \"$b\"; eval \"$b\"";
    [b"b=", &*quoted(body), rest].concat()
}

/// A command's processes; dropped before they have ended, it kills them.
struct Group {
    pool: Arc<Pool>,
    announcement: Arc<Announcement>,
    channel: Option<(ChannelReadHalf, ChannelWriteHalf<Msg>)>,
    runtime: Handle,
}

impl Group {
    async fn on(lease: &Lease, pool: &Arc<Pool>) -> Result<Self, BackendError> {
        Ok(Self {
            pool: Arc::clone(pool),
            announcement: Arc::default(),
            channel: Some(lease.connection.channel().await?.split()),
            runtime: lease.connection.runtime().clone(),
        })
    }

    /// Returns `None` if the guest has not accepted the command. Then it has read no input either.
    async fn run(
        &mut self,
        wrapped: &Wrapped,
        options: &ExecOptions,
        io: &dyn JobIo,
    ) -> Result<Option<Exit>, BackendError> {
        let Some((incoming, outgoing)) = &mut self.channel else {
            return Err(broken("no channel"));
        };
        if let Some(WindowSize { columns, rows }) = options.terminal {
            let size = (u32::from(columns), u32::from(rows));
            let asked = outgoing.request_pty(false, TERMINAL, size.0, size.1, 0, 0, &[]);
            asked.await.map_err(broken)?;
        }
        // A terminal would echo the line that the guard waits for.
        let (guard, go) = match options.terminal {
            Some(_) => (&b""[..], &b""[..]),
            None => (GUARD, GO),
        };
        outgoing.exec(true, [guard, &wrapped.line].concat()).await.map_err(broken)?;
        let taken = Notify::new();
        let announcement = &*self.announcement;
        let filter = Filter { announcement, output: io };
        let feeding = async {
            taken.notified().await;
            outgoing.data_bytes(go.to_vec()).await.ok()?;
            announcement.group().await;
            feed(outgoing, &wrapped.text, options.terminal, io).await
        };
        let controlling = async {
            let group = announcement.group().await;
            loop {
                carry_out(&self.pool, outgoing, group, io.control().await).await;
            }
        };
        let serving = async { tokio::join!(feeding, controlling) };
        tokio::select! {
            end = follow(incoming, &filter, &taken) => end,
            _never = serving => Err(broken("no more input")),
        }
    }
}

/// Sends the command's input. An error is not reported: `follow` hears the end of the command.
async fn feed(
    outgoing: &ChannelWriteHalf<Msg>,
    text: &[u8],
    terminal: Option<WindowSize>,
    io: &dyn JobIo,
) -> Option<()> {
    outgoing.data_bytes(text.to_vec()).await.ok()?;
    while let Some(bytes) = io.input().await {
        outgoing.data_bytes(bytes).await.ok()?;
    }
    match terminal {
        Some(_) => outgoing.data_bytes(vec![END_OF_TRANSMISSION]).await.ok(),
        None => outgoing.eof().await.ok(),
    }
}

async fn carry_out(
    pool: &Arc<Pool>,
    outgoing: &ChannelWriteHalf<Msg>,
    group: u32,
    control: JobControl,
) {
    match control {
        JobControl::Resize(WindowSize { columns, rows }) => {
            // `follow` reports a connection that is lost.
            drop(outgoing.window_change(u32::from(columns), u32::from(rows), 0, 0).await);
        }
        JobControl::Signal(signal) => kill(pool, group, &signal).await,
    }
}

/// Signals a process group, or the process alone where no group could be made.
async fn kill(pool: &Arc<Pool>, group: u32, signal: &str) {
    let command = format!("kill -{signal} -{group} 2>/dev/null || kill -{signal} {group}");
    let Ok(lease) = pool.lease().await else { return };
    if let Err(error) = lease.connection.exec(command.as_bytes(), b"", &DiscardOutput).await {
        tracing::warn!(%error, signal, "a signal may not have arrived");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some((mut incoming, outgoing)) = self.channel.take() else { return };
        let (pool, announcement) = (Arc::clone(&self.pool), Arc::clone(&self.announcement));
        self.runtime.spawn(timeout(HANG_UP, async move {
            let filter = Filter { announcement: &announcement, output: &DiscardOutput };
            let taken = Notify::new();
            // Ends a command that waits for its go.
            outgoing.eof().await?;
            tokio::select! {
                biased;
                group = announcement.group() => {
                    // Its connection may be blocked until this end stops listening.
                    drop(incoming);
                    kill(&pool, group, "KILL").await;
                }
                _end = follow(&mut incoming, &filter, &taken) => {}
            }
            outgoing.close().await
        }));
    }
}

/// Finds the number of a command's process group in the command's output.
#[derive(Debug, Default)]
struct Announcement {
    /// The number's digits so far; `None` before their mark. What follows a mark and is no
    /// number is output: otherwise a guest could make the daemon keep more than [`LONGEST_NUMBER`].
    digits: Mutex<Option<Vec<u8>>>,
    group: watch::Sender<Option<u32>>,
}

impl Announcement {
    async fn group(&self) -> u32 {
        let mut group = self.group.subscribe();
        let number = group.wait_for(Option::is_some).await.ok().and_then(|group| *group);
        match number {
            Some(group) => group,
            None => std::future::pending().await,
        }
    }

    /// Takes our line out of the output and returns the rest. The start-up files of a shell may
    /// print something first.
    fn strip<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let is_known = self.group.borrow().is_some();
        let mut digits = self.digits.lock();
        if is_known || (digits.is_none() && !bytes.contains(&MARK)) {
            return Cow::Borrowed(bytes);
        }
        let mut output = Vec::with_capacity(bytes.len());
        for (at, &byte) in bytes.iter().enumerate() {
            if let Some(group) = take(&mut digits, byte, &mut output) {
                self.group.send_replace(Some(group));
                output.extend_from_slice(&bytes[at + 1..]);
                break;
            }
        }
        Cow::Owned(output)
    }
}

/// Takes one byte: to the number, or to the output; returns the number once it is whole.
fn take(digits: &mut Option<Vec<u8>>, byte: u8, output: &mut Vec<u8>) -> Option<u32> {
    match digits {
        Some(number)
            if number.len() < LONGEST_NUMBER && (byte.is_ascii_digit() || byte == b'\r') =>
        {
            number.push(byte);
            return None;
        }
        Some(number) if byte == b'\n' => {
            let group = str::from_utf8(number).ok().and_then(|n| n.trim_end().parse().ok());
            if group.is_some() {
                *digits = None;
                return group;
            }
        }
        Some(_) | None => {}
    }
    // What was kept, if anything, was not ours.
    if let Some(number) = digits.take() {
        output.push(MARK);
        output.extend(number);
    }
    match byte {
        MARK => *digits = Some(Vec::new()),
        other => output.push(other),
    }
    None
}

/// Output without our line.
struct Filter<'a, O: ?Sized> {
    announcement: &'a Announcement,
    output: &'a O,
}

#[async_trait]
impl<O: OutputSink + ?Sized> OutputSink for Filter<'_, O> {
    async fn accept(&self, source: OutputKind, bytes: &[u8]) {
        let rest = match source {
            OutputKind::Stdout => self.announcement.strip(bytes),
            OutputKind::Stderr => Cow::Borrowed(bytes),
        };
        if !rest.is_empty() {
            self.output.accept(source, &rest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_line_is_taken_out_wherever_it_is_cut() {
        let said = b"motd\n\x1e4711\r\nout\x1e1\n";
        for cut in 0..said.len() {
            let announcement = Announcement::default();
            let mut got = Vec::new();
            for piece in [&said[..cut], &said[cut..]] {
                got.extend_from_slice(&announcement.strip(piece));
            }
            assert_eq!(got, b"motd\nout\x1e1\n", "cut at {cut}");
            assert_eq!(*announcement.group.borrow(), Some(4711));
        }
    }

    #[test]
    fn what_follows_a_mark_and_is_no_number_is_output_and_nothing_of_it_is_kept() {
        let announcement = Announcement::default();
        let (mut got, flood) = (Vec::new(), [b'7'; 4096]);
        for piece in [&b"\x1e"[..], &flood, &flood, b"\x1e\x1e12x\n\x1e\n\x1e4711\nout"] {
            got.extend_from_slice(&announcement.strip(piece));
            let kept = announcement.digits.lock().as_ref().map_or(0, Vec::len);
            assert!(kept <= LONGEST_NUMBER, "{kept} bytes are kept");
        }
        let wanted = [b"\x1e", &flood[..], &flood, b"\x1e\x1e12x\n\x1e\nout"].concat();
        assert!(got == wanted);
        assert_eq!(*announcement.group.borrow(), Some(4711));
    }

    #[test]
    fn a_long_text_goes_through_the_input() {
        let short = Wrapped::new(b"true", &ExecOptions::default()).unwrap();
        assert!(short.text.is_empty() && short.line.starts_with(b"b=\"unset b g; printf"));
        let long = Wrapped::new(&[b'x'; LONGEST], &ExecOptions::default()).unwrap();
        assert!(long.text.len() == LONGEST && long.line.len() < 400);
        let size = WindowSize { columns: 80, rows: 24 };
        let on_terminal = ExecOptions { terminal: Some(size), ..ExecOptions::default() };
        let refused = Wrapped::new(&[b'x'; LONGEST], &on_terminal);
        assert!(matches!(refused, Err(BackendError::TooLong { .. })));
    }

    #[test]
    fn directories_and_variables_are_quoted() {
        let options = ExecOptions {
            env: vec![("K".into(), "a'b $c".into())],
            cwd: Some("-it's".into()),
            terminal: None,
        };
        let text = String::from_utf8(prepared(b"pwd", &options)).unwrap();
        assert_eq!(text, "cd \"./-it's\" || exit\nexport K=\"a'b \"'$c'\npwd");
    }
}
