//! Making the disk of a machine that runs larger.
//!
//! Where the disk ends, QEMU keeps the memory of the snapshot that it has loaded last. A disk that grows
//! over it would show the guest, and images made of it, what was in that memory. So it is overwritten
//! with zeros while the processors are stopped, and they never see it.

use std::io;
use std::ops::Range;
use std::path::Path;

use serde_json::json;

use super::RunningQemu;
use crate::disk::vmstate;
use crate::qemu::cmdline::{DISK_BACKEND, DISK_NODE};
use crate::qemu::connect::{self, VcpuStatus};
use crate::qemu::qmp::refused;
use crate::qemu::vm_disk;
use crate::store::operation::{self, Operation};
use crate::vm::backend::Result;
use crate::vm::driver::off_thread;

/// How much is overwritten at a time. QEMU answers when that is done, which frees clusters one by one.
const PIECE: u64 = 256 << 20;
/// The monitor's command that uses the disk.
const QEMU_IO: &str = "qemu-io";

impl RunningQemu {
    pub(super) async fn resize_disk(&self, bytes: u64) -> Result<()> {
        // What QEMU has not written yet may be that there is nothing any more.
        self.qemu_io("flush").await.ok();
        let memory = self.data(move |disk| vmstate::overgrown_by(disk, bytes)).await?;
        if memory.is_empty() {
            return self.block_resize(bytes).await;
        }
        match connect::status(&self.parts.qmp).await? {
            VcpuStatus::Runs => self.grow_paused(memory, bytes).await,
            VcpuStatus::Paused | VcpuStatus::DiskFull => self.grow_over(memory, bytes).await,
        }
    }

    async fn block_resize(&self, bytes: u64) -> Result<()> {
        let arguments = json!({"node-name": DISK_NODE, "size": bytes});
        self.ask_with("block_resize", arguments).await.map(drop)
    }

    /// Stops the processors meanwhile. The note has a later daemon resume them if this one is killed.
    async fn grow_paused(&self, memory: Range<u64>, bytes: u64) -> Result<()> {
        let dir = self.parts.dir.clone();
        let begin = move || operation::begin(&dir, Operation::PausedByDaemon);
        off_thread(begin, "the note of a pause").await?;
        let grown = match self.ask("stop").await {
            Ok(_) => self.grow_over(memory, bytes).await,
            Err(error) => Err(error),
        };
        let resumed = self.ask("cont").await.map(drop);
        let dir = self.parts.dir.clone();
        let end = move || operation::end(&dir, &Operation::PausedByDaemon);
        off_thread(end, "the note of a pause").await?;
        grown.and(resumed)
    }

    /// A disk that cannot be overwritten there gets its old size back.
    async fn grow_over(&self, memory: Range<u64>, bytes: u64) -> Result<()> {
        let old = vm_disk::virtual_size(&self.parts.dir)?;
        self.block_resize(bytes).await?;
        let overwritten = self.overwrite(memory).await;
        if let (Err(_), Some(old)) = (&overwritten, old) {
            self.block_resize(old).await?;
        }
        overwritten
    }

    /// `qemu-io` prints on QEMU's own output whether a write went well; the disk tells us.
    async fn overwrite(&self, memory: Range<u64>) -> Result<()> {
        let mut at = memory.start;
        while at < memory.end {
            let length = PIECE.min(memory.end - at);
            self.qemu_io(&format!("write -q -z -u {at} {length}")).await?;
            at += length;
        }
        self.qemu_io("flush").await?;
        let left = self.data(move |disk| vmstate::data_within(disk, &memory)).await?;
        match left.is_empty() {
            true => Ok(()),
            false => {
                Err(refused(QEMU_IO, "QEMU cannot overwrite the old memory where the disk ends"))
            }
        }
    }

    async fn data(
        &self,
        look: impl FnOnce(&Path) -> io::Result<Range<u64>> + Send + 'static,
    ) -> Result<Range<u64>> {
        let disk = self.parts.dir.disk();
        off_thread(move || look(&disk), "the disk").await
    }

    /// Has QEMU use the disk on the device's behalf: it lets nobody else write to it.
    async fn qemu_io(&self, command: &str) -> Result<()> {
        let said = self.monitor(&format!("{QEMU_IO} -d {DISK_BACKEND} \"{command}\"")).await?;
        match said.trim() {
            "" => Ok(()),
            text => Err(refused(QEMU_IO, text)),
        }
    }
}
