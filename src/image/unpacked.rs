//! Unpacking of disks: what is compressed, and Vagrant's boxes. What comes out has to fit into the free
//! space, holes included: a small file can unpack to any size.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use ruzstd::decoding::StreamingDecoder;

use super::disk_format::Compression;
use super::source::{BuildError, Progress, Result};
use crate::store::file::open_regular;
use crate::vm::backend::BackendError;
use crate::vm::spec::render_size;

/// How much is written at once; as much that is zeros becomes a hole.
const PIECE: usize = 64 << 10;
/// What a box holds as a disk, of those that libvirt and VirtualBox start.
const DISKS: [&str; 2] = [".img", ".vmdk"];
/// What a box has before its disk: a few short texts. Names may be long, and are read into memory.
const BEFORE_DISK: u64 = 64 << 20;
/// The memory that undoing xz may take, in KiB: what its strongest presets need.
pub(super) const XZ_MEMORY: u32 = 260 << 10;
/// How often progress is reported, in pieces.
const REPORT: u64 = 256;

/// Unpacks `from` into the new file `to`. `what` names it in errors.
pub(super) fn unpack(what: &str, from: &Path, to: &Path, progress: &Progress) -> Result<()> {
    let (reader, position) = open(from)?;
    let mut reader = decoder(reader).map_err(|e| damaged(what, &e))?;
    let report = Report { progress, position: &position, word: "unpacking" };
    write_out(what, &mut reader, to, &report)
}

/// Unpacks the disk in the box `from` into the new file `to`, and returns its name there.
pub(super) fn unbox(what: &str, from: &Path, to: &Path, progress: &Progress) -> Result<String> {
    let (reader, position) = open(from)?;
    let bad = |e: &io::Error| damaged(what, e);
    let left = Cell::new(BEFORE_DISK);
    let unpacked = Bounded { from: decoder(reader).map_err(|e| bad(&e))?, left: &left };
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries().map_err(|e| bad(&e))? {
        let mut entry = entry.map_err(|e| bad(&e))?;
        let name = entry.path().map_err(|e| bad(&e))?.to_string_lossy().into_owned();
        let is_disk = DISKS.iter().any(|ending| name.ends_with(ending));
        let kind = entry.header().entry_type();
        // `tar -S`, by which boxes are usually made, writes no holes.
        if is_disk && (kind.is_file() || kind.is_gnu_sparse()) {
            let report = Report { progress, position: &position, word: "unpacking the box" };
            // The disk is bounded by the free space.
            left.set(u64::MAX);
            let size = entry.size();
            write_out(what, &mut entry, to, &report)?;
            return expect_whole(what, to, size).map(|()| name);
        }
    }
    Err(BuildError::malformed(
        what,
        "has no box.img and no .vmdk, as boxes for libvirt and VirtualBox do",
    ))
}

/// Fails for a disk that is shorter than the box says: the tar reader takes a cut file for its end.
fn expect_whole(what: &str, disk: &Path, size: u64) -> Result<()> {
    let there = std::fs::metadata(disk).map_err(BuildError::at(disk))?.len();
    if there == size {
        return Ok(());
    }
    Err(BuildError::malformed(
        what,
        format!("is cut: it holds {there} of the {size} bytes of its disk"),
    ))
}

/// Fails when more is read than is left.
struct Bounded<'a, R> {
    from: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("too much comes before its disk"))?);
        Ok(read)
    }
}

fn damaged(what: &str, error: &io::Error) -> BuildError {
    BuildError::malformed(what, format!("cannot be unpacked: {error}"))
}

/// Undoes the compression that a stream begins with, if it has any.
fn decoder<'a>(mut from: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::of(from.fill_buf()?) {
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Some(Compression::Xz) => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(from, true, XZ_MEMORY))
        }
        Some(Compression::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        Some(Compression::Zstd) => Box::new(ZstdFrames::Between(Some(from))),
        None => Box::new(from),
    })
}

/// A zstd file may have several frames one after the other.
enum ZstdFrames<R: BufRead> {
    Between(Option<R>),
    Within(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            *self = match self {
                Self::Between(from) => {
                    let Some(mut from) = from.take() else { return Ok(0) };
                    if from.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let frame = StreamingDecoder::new(from).map_err(io::Error::other)?;
                    Self::Within(Box::new(frame))
                }
                Self::Within(frame) => match frame.read(buffer)? {
                    0 if !buffer.is_empty() => {
                        let ended = std::mem::replace(self, Self::Between(None));
                        let Self::Within(frame) = ended else { return Ok(0) };
                        Self::Between(Some(frame.into_inner()))
                    }
                    read => return Ok(read),
                },
            };
        }
    }
}

/// How far a file has been read.
struct Position {
    file: File,
    length: u64,
}

impl Position {
    fn percent(&self) -> u64 {
        let at = (&self.file).stream_position().unwrap_or(0);
        at.saturating_mul(100) / self.length.max(1)
    }
}

fn open(from: &Path) -> Result<(BufReader<File>, Position)> {
    let failed = BuildError::at(from);
    let file = open_regular(from).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let position = Position { file: file.try_clone().map_err(failed)?, length };
    Ok((BufReader::with_capacity(PIECE, file), position))
}

struct Report<'a> {
    progress: &'a Progress,
    position: &'a Position,
    word: &'static str,
}

fn write_out(what: &str, from: &mut impl Read, to: &Path, report: &Report<'_>) -> Result<()> {
    let failed = BuildError::at(to);
    let mut out = File::options().write(true).create_new(true).open(to).map_err(failed)?;
    let free =
        rustix::fs::fstatvfs(&out).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let (mut piece, mut length) = (Vec::with_capacity(PIECE), 0_u64);
    for number in 0_u64.. {
        piece.clear();
        let read = from.take(PIECE as u64).read_to_end(&mut piece);
        if read.map_err(|e| damaged(what, &e))? == 0 {
            break;
        }
        report.progress.cancel().check()?;
        length += piece.len() as u64;
        if length > free {
            let size = render_size(free >> 20 << 20);
            return Err(BackendError::NoSpace {
                what: format!("{what}, which unpacks to more than {size}"),
            }
            .into());
        }
        put(&mut out, &piece).map_err(failed)?;
        if number.is_multiple_of(REPORT) {
            report.progress.building(format!("{} {} %", report.word, report.position.percent()));
        }
    }
    out.set_len(length).map_err(failed)
}

fn put(out: &mut File, piece: &[u8]) -> io::Result<()> {
    match piece.iter().all(|byte| *byte == 0) {
        true => out.seek(SeekFrom::Current(i64::try_from(piece.len()).unwrap_or(0))).map(drop),
        false => out.write_all(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn filtered(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut command = Command::new(program);
        let mut child =
            command.arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    fn unpacked(packed: &[u8]) -> Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, packed).unwrap();
        unpack("x", &from, &to, &Progress::new(|_, _| ()))?;
        Ok(std::fs::read(&to).unwrap())
    }

    #[test]
    fn each_compression_is_undone_also_in_several_parts() {
        let bytes = [vec![7; 70_000], vec![0; 200_000], vec![9; 5]].concat();
        let zstd = ruzstd::encoding::compress_to_vec(
            &bytes[..],
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        let packed =
            [filtered("gzip", &bytes), filtered("xz", &bytes), filtered("bzip2", &bytes), zstd];
        for packed in packed {
            assert!(unpacked(&packed).unwrap() == bytes);
            assert!(unpacked(&[&packed[..], &packed].concat()).unwrap() == bytes.repeat(2));
            let error = unpacked(&packed[..packed.len() / 2]).unwrap_err().to_string();
            assert!(error.contains("cannot be unpacked"), "{error}");
        }
    }

    #[test]
    fn a_box_has_a_disk_or_is_refused() {
        let boxed = |name: &str| {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("x.box"), dir.path().join("to"));
            let mut builder = tar::Builder::new(Vec::new());
            for (name, text) in [("metadata.json", "{}"), (name, "disk")] {
                let mut header = tar::Header::new_gnu();
                header.set_size(text.len() as u64);
                header.set_mode(0o644);
                builder.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
            std::fs::write(&from, filtered("gzip", &builder.into_inner().unwrap())).unwrap();
            let name = unbox("x.box", &from, &to, &Progress::new(|_, _| ()))?;
            Ok::<_, BuildError>((name, std::fs::read_to_string(to).unwrap()))
        };
        assert_eq!(boxed("./box.img").unwrap(), ("box.img".to_owned(), "disk".to_owned()));
        assert!(boxed("README").unwrap_err().to_string().contains("has no box.img"));
    }

    #[test]
    fn a_box_whose_disk_has_holes_is_unpacked_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let disk = File::create(path("box.img")).unwrap();
        rustix::io::pwrite(&disk, b"disk", 1 << 20).unwrap();
        disk.set_len(8 << 20).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-cSf", "x.box", "box.img"]).current_dir(dir.path());
        assert!(tar.status().unwrap().success());
        assert!(std::fs::metadata(path("x.box")).unwrap().len() < 1 << 20);
        unbox("x.box", &path("x.box"), &path("to"), &Progress::new(|_, _| ())).unwrap();
        assert!(std::fs::read(path("to")).unwrap() == std::fs::read(path("box.img")).unwrap());
    }

    fn entry(header: &mut tar::Header, name: &str, size: u64) -> [u8; 512] {
        header.set_path(name).unwrap();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        *header.as_bytes()
    }

    fn error_of(content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("x.box"), dir.path().join("to"));
        std::fs::write(&from, content).unwrap();
        unbox("x.box", &from, &to, &Progress::new(|_, _| ())).unwrap_err().to_string()
    }

    #[test]
    fn a_box_that_is_cut_is_refused() {
        let header = entry(&mut tar::Header::new_gnu(), "box.img", 1 << 20);
        let error = error_of(&[&header[..], &[7; 4096]].concat());
        assert!(error.contains("cut") || error.contains("cannot be unpacked"), "{error}");
    }

    #[test]
    fn a_name_of_gigabytes_fills_no_memory() {
        let mut long = tar::Header::new_gnu();
        long.set_entry_type(tar::EntryType::GNULongName);
        let header = entry(&mut long, "././@LongLink", 1 << 30);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&header).unwrap();
        let zeros = vec![b'a'; 1 << 20];
        (0..65).for_each(|_| packed.write_all(&zeros).unwrap());
        let error = error_of(&packed.finish().unwrap());
        assert!(error.contains("too much comes before its disk"), "{error}");
    }
}
