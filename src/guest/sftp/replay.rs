//! A whole conversation with a server whose replies are given: what the fuzz target runs.
//!
//! Not here: what a reply may be (`wire`).

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Builder;

use super::wire::{self, kind};
use super::{Existing, FileAnswer, FileChange, GuestFiles, OpenFile, Sftp};

/// What is asked for in one read, and of one directory.
const WANTED: u32 = 10;
const MOST_NAMES: usize = 1000;
/// What a stream holds.
const BUFFER: usize = 64 << 10;

/// Asks a server for all that there is to ask. Each of its replies is a kind, a length of two bytes and so
/// many bytes, and is to the request before it; after a kind of 0 it is to none. It ends with the bytes.
///
/// # Errors
/// What was believed that no server may say.
pub fn replay(replies: &[u8]) -> Result<(), &'static str> {
    let Ok(runtime) = Builder::new_current_thread().enable_time().build() else { return Ok(()) };
    runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let (asked, _served) = tokio::join!(ask(ours), serve(theirs, replies));
        asked
    })
}

async fn ask(stream: DuplexStream) -> Result<(), &'static str> {
    let Ok(sftp) = Sftp::begin(stream, (), (0, 0)).await else { return Ok(()) };
    if sftp.list(b"/", MOST_NAMES).await.is_ok_and(|names| {
        names.len() > MOST_NAMES || !names.iter().all(|entry| wire::is_name(&entry.name))
    }) {
        return Err("a name that leads elsewhere, or too many");
    }
    if sftp.target(b"/l").await.is_ok_and(|target| target.is_empty() || target.contains(&0)) {
        return Err("a link that leads to no path");
    }
    if sftp.attr(b"/f").await.is_ok_and(|attr| attr.size > i64::MAX.unsigned_abs()) {
        return Err("a size that the kernel does not take");
    }
    let how = OpenFile { read: true, write: true, ..OpenFile::default() };
    if let Ok(file) = sftp.open(b"/f", &how).await {
        if file.read(0, WANTED).await.is_ok_and(|bytes| bytes.len() > WANTED as usize) {
            return Err("more bytes than were asked for");
        }
        let change = FileChange { size: Some(1), ..FileChange::default() };
        drop((file.write(0, b"x").await, file.sync().await, file.change(&change).await));
    }
    drop(sftp.space(b"/").await);
    let answers: [FileAnswer<()>; 3] = [
        sftp.rename(b"/a", b"/b", Existing::Replace),
        sftp.make_link(b"/a", b"/b"),
        sftp.remove(b"/a"),
    ];
    drop(futures::future::join_all(answers).await);
    Ok(())
}

async fn serve(mut stream: DuplexStream, mut replies: &[u8]) -> std::io::Result<()> {
    while let Some((&[kind, high, low], rest)) = replies.split_first_chunk() {
        let length = stream.read_u32().await?;
        let mut request = vec![0; length as usize];
        stream.read_exact(&mut request).await?;
        let count = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (bytes, rest) = rest.split_at(count);
        let number = match request.first() {
            Some(&kind::INIT) | None => &[][..],
            Some(_) if kind == 0 => &[0xff; 4],
            Some(_) => request.get(1..5).unwrap_or_default(),
        };
        let reply = [&[kind], number, bytes].concat();
        stream.write_u32(u32::try_from(reply.len()).unwrap_or(u32::MAX)).await?;
        stream.write_all(&reply).await?;
        replies = rest;
    }
    Ok(())
}
