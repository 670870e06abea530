//! A small HTTP server on 127.0.0.1 that plays a distribution's mirror: files, directories as
//! pages, ranges with validators, and the faults that a test asks for.
//!
//! Each answer closes its connection. Faults are the point of it: an answer that is cut, that
//! waits in its middle, that fails once, or that leads elsewhere.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

#[derive(Default)]
struct State {
    /// Where the files are that are not in `files`. A pipe there is a file that never comes.
    dir: Option<PathBuf>,
    files: BTreeMap<String, Vec<u8>>,
    redirects: BTreeMap<String, String>,
    /// Paths whose next answer is this status.
    failing: BTreeMap<String, u16>,
    /// Paths whose next answer ends after so many bytes.
    cut: BTreeMap<String, usize>,
    /// Paths whose answers wait after so many bytes.
    held: BTreeMap<String, usize>,
    /// Paths that take no ranges and have no validators.
    plain: BTreeSet<String>,
    /// What was asked for: path and `Range`.
    log: Vec<(String, Option<String>)>,
    open: Vec<TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    over: AtomicBool,
}

/// The server; dropped, it is gone with all its connections.
pub(crate) struct Mirror {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Mirror {
    /// Serves on a port of its own.
    pub(crate) fn start() -> Self {
        Self::start_on(0)
    }

    /// Serves the files of a directory, as they are when they are asked for.
    pub(crate) fn of(dir: PathBuf) -> Self {
        let mirror = Self::start();
        mirror.state().dir = Some(dir);
        mirror
    }

    /// Serves on this port.
    pub(crate) fn start_on(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port of this host");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let served = Arc::clone(&shared);
        let accepting = Mutex::new(Some(std::thread::spawn(move || serve(&listener, &served))));
        Self { address, shared, accepting }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Has a file, or another one in its place.
    pub(crate) fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        self.state().files.insert(path.to_owned(), bytes.as_ref().to_vec());
    }

    pub(crate) fn redirect(&self, path: &str, to: &str) {
        self.state().redirects.insert(path.to_owned(), to.to_owned());
    }

    /// The next answer for this path is a status.
    pub(crate) fn fail_next(&self, path: &str, status: u16) {
        self.state().failing.insert(path.to_owned(), status);
    }

    /// The next answer for this path breaks off.
    pub(crate) fn cut_next(&self, path: &str, after: usize) {
        self.state().cut.insert(path.to_owned(), after);
    }

    /// Answers for this path wait in their middle until [`Self::release`].
    pub(crate) fn hold(&self, path: &str, after: usize) {
        self.state().held.insert(path.to_owned(), after);
    }

    pub(crate) fn release(&self, path: &str) {
        self.state().held.remove(path);
        self.shared.changed.notify_all();
    }

    /// This path takes no ranges.
    pub(crate) fn without_ranges(&self, path: &str) {
        self.state().plain.insert(path.to_owned());
    }

    /// Returns how often a path was asked for.
    pub(crate) fn requests(&self, path: &str) -> usize {
        self.state().log.iter().filter(|(asked, _)| asked == path).count()
    }

    /// Lists the ranges that were asked for.
    pub(crate) fn ranges(&self, path: &str) -> Vec<String> {
        let state = self.state();
        let of = state.log.iter().filter(|(asked, _)| asked == path);
        of.filter_map(|(_, range)| range.clone()).collect()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Mirror {
    /// Closes the port and all connections.
    pub(crate) fn stop(&self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        for stream in self.state().open.drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
        // Wakes the thread that accepts, which closes the port.
        drop(TcpStream::connect(self.address));
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(accepting.map(JoinHandle::join));
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().filter_map(Result::ok) {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        let lock = || shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        lock().open.extend(stream.try_clone());
        let shared = Arc::clone(shared);
        std::thread::spawn(move || drop(answer(&stream, &shared)));
    }
}

/// What is asked for: the path, `Range` and `If-Range`.
struct Request {
    path: String,
    range: Option<String>,
    if_range: Option<String>,
}

impl Request {
    fn read(stream: &TcpStream) -> std::io::Result<Self> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let path = lines.first().and_then(|l| l.split(' ').nth(1)).unwrap_or("/");
        let header = |name: &str| {
            let pairs = lines.iter().filter_map(|l| l.split_once(": "));
            let mut named = pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name));
            named.next().map(|(_, value)| value.to_owned())
        };
        let path = path.trim_start_matches('/').to_owned();
        Ok(Self { path, range: header("range"), if_range: header("if-range") })
    }

    /// Where the answer begins in a file of this tag.
    fn start(&self, etag: &str) -> usize {
        let same = self.if_range.as_deref().is_none_or(|tag| tag == etag);
        let range = self.range.as_deref().filter(|_| same);
        let start = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        start.unwrap_or(0)
    }
}

fn answer(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let asked = Request::read(stream)?;
    let path = &asked.path;
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.log.push((path.clone(), asked.range.clone()));
    if let Some(status) = state.failing.remove(path) {
        return empty(stream, &format!("{status} Failing"), "");
    }
    if let Some(to) = state.redirects.get(path) {
        return empty(stream, "302 Found", &format!("Location: {to}\r\n"));
    }
    let file = state.dir.as_ref().map(|dir| dir.join(path));
    if file.as_ref().is_some_and(|file| is_pipe(file)) {
        while !shared.over.load(Ordering::SeqCst) {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    let read = || std::fs::read(file?).ok();
    let found = state.files.get(path).cloned().or_else(read).or_else(|| index(&state, path));
    let Some(body) = found else {
        return empty(stream, "404 Not Found", "");
    };
    let (plain, cut) = (state.plain.contains(path), state.cut.remove(path));
    drop(state);
    let etag = etag(&body);
    let start = if plain { 0 } else { asked.start(&etag) };
    if start > 0 && start >= body.len() {
        return empty(stream, "416 Range Not Satisfiable", "");
    }
    let rest = &body[start..];
    head(stream, (start, body.len()), (!plain).then_some(&etag))?;
    let rest = cut.map_or(rest, |after| &rest[..after.min(rest.len())]);
    let sent = hold(shared, path, start, rest, stream)?;
    let mut out = stream;
    out.write_all(&rest[sent..])?;
    out.shutdown(Shutdown::Both)
}

fn is_pipe(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.file_type().is_fifo())
}

fn empty(mut out: &TcpStream, status: &str, header: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status}\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

/// Writes the head of an answer that begins at `start` of `total` bytes.
fn head(
    mut out: &TcpStream,
    (start, total): (usize, usize),
    etag: Option<&String>,
) -> std::io::Result<()> {
    let length = total - start;
    match start {
        0 => write!(out, "HTTP/1.1 200 OK\r\n")?,
        _ => {
            let last = total - 1;
            let range = format!("Content-Range: bytes {start}-{last}/{total}");
            write!(out, "HTTP/1.1 206 Partial Content\r\n{range}\r\n")?;
        }
    }
    if let Some(etag) = etag {
        write!(out, "ETag: {etag}\r\n")?;
    }
    write!(out, "Content-Length: {length}\r\nConnection: close\r\n\r\n")
}

/// Sends what comes before the place where answers wait, and waits there.
fn hold(
    shared: &Shared,
    path: &str,
    start: usize,
    rest: &[u8],
    mut out: &TcpStream,
) -> std::io::Result<usize> {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(at) = state.held.get(path).copied() else { return Ok(0) };
    let sent = at.saturating_sub(start).min(rest.len());
    out.write_all(&rest[..sent])?;
    while state.held.contains_key(path) && !shared.over.load(Ordering::SeqCst) {
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if shared.over.load(Ordering::SeqCst) {
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    Ok(sent)
}

fn etag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("\"{:x}\"", hasher.finish())
}

/// Makes the page of a directory, as web servers do.
fn index(state: &State, path: &str) -> Option<Vec<u8>> {
    let dir = if path.is_empty() || path.ends_with('/') { path.to_owned() } else { return None };
    let below = state.files.keys().filter_map(|file| file.strip_prefix(&dir));
    let names: BTreeSet<String> = below
        .map(|rest| rest.split_once('/').map_or(rest.to_owned(), |(first, _)| format!("{first}/")))
        .collect();
    if names.is_empty() {
        return None;
    }
    let links = names.iter().map(|name| format!("<a href=\"{name}\">{name}</a>\n"));
    Some(
        format!("<html><a href=\"../\">../</a>\n{}</html>", links.collect::<String>()).into_bytes(),
    )
}
