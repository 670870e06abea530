//! `aq export`: a disk in one file that needs no other. Of a VM it makes an image first, so that nothing
//! changes the disk, and removes it afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use super::files::Tree;
use super::progress::Progress;
use super::snapshot::until_ready;
use super::text::note;
use super::{Failure, local, signals};
use crate::cli::images::{Export, ExportFormat};
use crate::disk::{DiskFormat, Layer, img};

/// How the images begin that are made for an export.
const PREFIX: &str = "export-";

pub(super) fn run(tree: &Tree, args: &Export) -> Result<(), Failure> {
    let work = Work::new(tree, args)?;
    let (sender, receiver) = mpsc::channel();
    signals::forward(sender.clone(), Event::Signal)?;
    let at_work = work.clone();
    thread::spawn(move || sender.send(Event::Done(at_work.carry_out())));
    let end = match receiver.recv() {
        Ok(Event::Done(done)) => done,
        Ok(Event::Signal(signal)) => Err(Failure::Reported(signals::exit_code(signal))),
        Err(_) => Err(Failure::Reported(1)),
    };
    work.clear_away();
    end
}

enum Event {
    Done(Result<(), Failure>),
    Signal(i32),
}

#[derive(Clone)]
struct Work {
    tree: Tree,
    source: Source,
    to: PathBuf,
    /// The file until it is whole.
    partial: PathBuf,
    format: ExportFormat,
}

#[derive(Clone)]
enum Source {
    Image(String),
    Vm {
        /// What is written to `source`.
        origin: String,
        /// The image that is made for it.
        image: String,
    },
}

impl Work {
    fn new(tree: &Tree, args: &Export) -> Result<Self, Failure> {
        let (source, to) = (Source::of(tree, &args.what)?, args.file.clone());
        let directory = std::io::ErrorKind::IsADirectory;
        if to.is_dir() {
            return Err(Failure::Local(to.display().to_string(), directory.into()));
        }
        let Some(name) = to.file_name() else {
            return Err(Failure::Usage(format!("{} is not the name of a file", to.display())));
        };
        let partial = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        // A name with a colon would be a protocol of qemu-img's.
        let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty());
        let partial = dir.unwrap_or(Path::new(".")).join(partial);
        Ok(Self { tree: tree.clone(), source, to, partial, format: args.format })
    }

    fn carry_out(&self) -> Result<(), Failure> {
        let disk = self.source.disk(&self.tree)?;
        let failed = |sentence: String| Failure::Refused {
            what: self.to.display().to_string(),
            sentence,
            errno: 0,
        };
        let mut progress = Progress::new();
        let show = |percent: &str| progress.show(|| format!("writing {percent} %"));
        let written = img::export(&disk, (&self.partial, self.format.word()), show);
        written.map_err(|error| failed(error.to_string()))?;
        self.publish().map_err(local(self.to.display().to_string()))?;
        note(format!("Exported: {} ({})", self.to.display(), self.format.word()));
        Ok(())
    }

    /// The file has its name when all of it is on the disk.
    fn publish(&self) -> std::io::Result<()> {
        File::open(&self.partial)?.sync_all()?;
        fs::rename(&self.partial, &self.to)?;
        let dir = self.to.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn clear_away(&self) {
        drop(fs::remove_file(&self.partial));
        let Source::Vm { image, .. } = &self.source else { return };
        let dir = format!(".images/{image}");
        if self.tree.path(&dir).exists() && self.tree.rmdir(&dir).is_err() {
            note(format!("{dir} is still being made; `rmdir` it later"));
        }
    }
}

impl Source {
    /// An image, a VM, or VM@SNAPSHOT; of the first two with one name neither is taken for the other.
    fn of(tree: &Tree, what: &str) -> Result<Self, Failure> {
        if let Some(image) = what.strip_prefix(".images/") {
            return Ok(Self::Image(tree.image(image)?));
        }
        let name = what.split('@').next().unwrap_or_default();
        let image = format!("{PREFIX}{}", std::process::id());
        let vm = tree.vm(name).map(|_| Self::Vm { origin: what.to_owned(), image });
        let image = tree.image(what).map(Self::Image);
        match (vm, image) {
            (Ok(_), Ok(_)) => Err(Failure::Usage(format!(
                "'{what}' is a VM and an image: `.images/{what}` is the image, and a VM can be renamed"
            ))),
            (Ok(vm), Err(_)) => Ok(vm),
            (Err(_), Ok(image)) => Ok(image),
            (Err(_), Err(error)) => Err(error),
        }
    }

    /// Returns the disk, which nobody changes.
    fn disk(&self, tree: &Tree) -> Result<Layer, Failure> {
        let image = match self {
            Self::Image(image) => image,
            Self::Vm { origin, image } => {
                let dir = format!(".images/{image}");
                tree.mkdir(&dir)?;
                let made = tree.write(&format!("{dir}/source"), origin);
                made.and_then(|()| until_ready(tree, image))
                    .map_err(|failure| failure.about(format!("export '{origin}'")))?;
                image
            }
        };
        let status = tree.read(&format!(".images/{image}/status"))?;
        if status != "ready" {
            let sentence = format!("is {status}; `echo pull > .images/{image}/ctl` makes it");
            return Err(Failure::Refused { what: format!("image '{image}'"), sentence, errno: 0 });
        }
        let path = fs::read_link(tree.path(".images").join(image).join("disk"));
        let path = path.map_err(local(format!("image '{image}'")))?;
        let is_raw = path.extension().is_some_and(|ending| ending == "raw");
        let format = if is_raw { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        Ok(Layer { path, format })
    }
}
