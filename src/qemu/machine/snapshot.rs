//! Snapshots of a machine that runs: which of its files take part, and what is noted with its memory.
//!
//! Not here: QEMU's jobs (`live_snapshot`), files that no machine has open (`companions`).

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::{MachineParts, RunningQemu};
use crate::qemu::cmdline::NVRAM_NODE;
use crate::qemu::{companions, live_snapshot, migration_stream, nvram, snapshot_shapes};
use crate::vm::backend::{BackendError, Result, SnapshotOp};

/// A file beside the disk that the machine has open.
struct OpenFile {
    node: String,
    path: PathBuf,
}

impl RunningQemu {
    pub(super) async fn carry_out(&self, op: &SnapshotOp) -> Result<()> {
        let (MachineParts { qmp, dir, .. }, facts) = (&self.parts, &self.parts.facts_now());
        let mut ignores_shared = false;
        if let SnapshotOp::Restore(tag) = op {
            self.parts.may_leak.store(true, Ordering::Relaxed);
            snapshot_shapes::check(dir, tag, facts)?;
            self.plug_nics_of(tag).await?;
            ignores_shared = migration_stream::ignores_shared(&dir.disk(), tag);
        }
        let open = self.open_files().await?;
        if let SnapshotOp::Take(tag) = op {
            self.forget(tag, &open).await?;
        }
        let beside = taking_part(op, &open);
        match (live_snapshot::run(qmp, op, (ignores_shared, &beside)).await, op) {
            (Ok(()), SnapshotOp::Take(tag)) => {
                let places = (self.list_nics().await?, self.list_disks().await?);
                snapshot_shapes::note(dir, tag, facts, places).await;
                Ok(())
            }
            (Ok(()), SnapshotOp::Drop(tag)) => {
                Ok(companions::drop_in(&self.closed_files(&open), tag).await?)
            }
            (Ok(()), _) => Ok(()),
            (Err(error @ BackendError::HalfRestored { .. }), _) => {
                Err(self.end_as_unusable(error).await)
            }
            (Err(error), _) => Err(live_snapshot::cause_of(error, dir)),
        }
    }

    async fn open_files(&self) -> Result<Vec<OpenFile>> {
        let dir = &self.parts.dir;
        let nvram = nvram::is_in(&self.parts.facts)
            .then(|| OpenFile { node: NVRAM_NODE.to_owned(), path: dir.nvram() });
        let data = self.own_disks().await?.into_iter();
        let data = data.map(|(node, number)| OpenFile { node, path: dir.data_disk(number) });
        Ok(nvram.into_iter().chain(data).collect())
    }

    /// Lists the files beside the disk that the machine has not.
    fn closed_files(&self, open: &[OpenFile]) -> Vec<PathBuf> {
        let is_open = |path: &PathBuf| open.iter().any(|file| file.path == *path);
        companions::all(&self.parts.dir).into_iter().filter(|path| !is_open(path)).collect()
    }

    /// Drops what other files have of a snapshot that is about to be taken: the two would not belong together.
    async fn forget(&self, tag: &str, open: &[OpenFile]) -> Result<()> {
        companions::drop_in(&self.closed_files(open), tag).await?;
        for file in open.iter().filter(|file| companions::has(&file.path, tag)) {
            live_snapshot::drop_in(&self.parts.qmp, &file.node, tag).await?;
        }
        Ok(())
    }
}

/// Names the nodes that take part beside that of the disk.
fn taking_part(op: &SnapshotOp, open: &[OpenFile]) -> Vec<String> {
    let takes_part = |file: &&OpenFile| match op {
        SnapshotOp::Take(_) => true,
        SnapshotOp::Restore(tag) | SnapshotOp::Drop(tag) => companions::has(&file.path, tag),
        SnapshotOp::Rename { .. } => false,
    };
    open.iter().filter(takes_part).map(|file| file.node.clone()).collect()
}
