//! A side of a copy: a path on the host, or `VM:PATH` in a guest, whose files are found through `VM/fs`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use shlex::bytes::Quoter;

use super::super::files::{Tree, Vm};
use super::super::job::{End, Job, copy_out};
use super::super::ssh;
use super::super::{Failure, local};
use super::dir::{self, Dir, Opened, printable, refused};

/// The longest path that Linux has.
const LONGEST_PATH: usize = 4096;
const ASK_FOR_TARGETS: &[u8] = br#"; do readlink "$p"; printf '\0'; done"#;

/// What the user has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Place {
    Host(PathBuf),
    Guest { vm: String, path: PathBuf },
}

impl Place {
    pub(in crate::commands) fn of(word: &OsStr) -> Result<Self, Failure> {
        let Some((vm, path)) = ssh::remote(word) else { return Ok(Self::Host(word.into())) };
        if vm.is_empty() {
            let word = printable(word.as_bytes());
            return Err(Failure::Usage(format!("'{word}' names no VM before the colon")));
        }
        Ok(Self::Guest { vm, path: path.into() })
    }

    pub(in crate::commands) fn path(&self) -> &Path {
        match self {
            Self::Host(path) | Self::Guest { path, .. } => path,
        }
    }

    /// Says whether the user means a directory, by a slash at the end.
    pub(in crate::commands) fn is_marked(&self) -> bool {
        self.path().as_os_str().as_bytes().ends_with(b"/")
    }
}

/// A guest's files.
#[derive(Debug)]
pub(in crate::commands) struct Guest {
    pub(in crate::commands) vm: Vm,
    pub(in crate::commands) root: Dir,
    home: OnceLock<PathBuf>,
}

impl Guest {
    /// Waits for a guest that boots, and looks whether it lets its files be seen.
    pub(in crate::commands) fn reach(tree: &Tree, name: &str) -> Result<Self, Failure> {
        let vm = tree.vm(name)?;
        ssh::wait_for_ssh(&vm)?;
        let shown = format!("{name}:");
        let root = Dir::open(&vm.path("fs"), shown.clone()).and_then(|root| {
            root.look(OsStr::new("root"))?;
            Ok(root)
        });
        match root {
            Ok(root) => Ok(Self { vm, root, home: OnceLock::new() }),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let sentence = vm.read("error")?;
                Err(Failure::Refused { what: shown, sentence, errno: libc::EOPNOTSUPP })
            }
            Err(error) => Err(refused(shown)(error)),
        }
    }

    /// Returns what a path of the user's means: a relative one is below the login user's home. A slash or
    /// a dot at its end stays.
    fn absolute(&self, path: &Path) -> Result<PathBuf, Failure> {
        let path = path.as_os_str().as_bytes();
        let path = match path {
            b"~" => b"",
            path => path.strip_prefix(b"~/").unwrap_or(path),
        };
        if path.starts_with(b"/") {
            return Ok(OsStr::from_bytes(path).into());
        }
        let home = self.home()?.as_os_str().as_bytes();
        Ok(OsString::from_vec([home, b"/", path].concat()).into())
    }

    /// Returns the login user's home, which the guest says.
    pub(in crate::commands) fn home(&self) -> Result<&Path, Failure> {
        if self.home.get().is_none() {
            let _first = self.home.set(self.ask_for_home()?);
        }
        Ok(self.home.get().map_or(Path::new("/"), PathBuf::as_path))
    }

    fn ask_for_home(&self) -> Result<PathBuf, Failure> {
        let said = self.said(br#"printf %s "$HOME""#, LONGEST_PATH)?;
        let path = PathBuf::from(OsString::from_vec(said));
        if path.is_absolute() && !path.as_os_str().as_bytes().contains(&0) {
            return Ok(path);
        }
        let sentence = "the guest does not say where its user's home is; an absolute path works";
        Err(self.failed(sentence))
    }

    /// Returns where links of a directory lead, in the guest's own words: `fs` shows an absolute one as
    /// a relative one. Empty for those that the guest does not say; the caller has what `fs` shows.
    pub(in crate::commands) fn targets(&self, dir: &Path, names: &[&OsStr]) -> Vec<Vec<u8>> {
        let dir = dir.as_os_str().as_bytes();
        let paths = names.iter().map(|name| [dir, b"/", name.as_bytes()].concat());
        let paths: Vec<Vec<u8>> = paths.collect();
        let quoted = Quoter::new().allow_nul(true).join(paths.iter().map(Vec::as_slice));
        let text = [b"for p in ", &*quoted.unwrap_or_default(), ASK_FOR_TARGETS].concat();
        let said = self.said(&text, names.len() * (LONGEST_PATH + 2)).unwrap_or_default();
        let target = |line: &[u8]| line.strip_suffix(b"\n").unwrap_or_default().to_vec();
        // One for each, and nothing after the last.
        let said = said.strip_suffix(b"\0").unwrap_or_default();
        let targets: Vec<Vec<u8>> = said.split(|b| *b == 0).map(target).collect();
        if targets.len() == names.len() { targets } else { Vec::new() }
    }

    /// Returns what a command in the guest prints, as long as it is not more than `most` bytes.
    pub(in crate::commands) fn said(
        &self,
        command: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, Failure> {
        let job = Job::new(&self.vm)?;
        drop(job.stdin()?);
        job.run(command)?;
        let mut said = Vec::new();
        let copied =
            copy_out(job.output("stdout")?, |bytes| match said.len() + bytes.len() <= most {
                true => {
                    said.extend_from_slice(bytes);
                    Ok(())
                }
                false => Err(io::ErrorKind::InvalidData.into()),
            });
        copied.map_err(local(self.vm.name.clone()))?;
        match job.end()? {
            End::Code(0) => Ok(said),
            End::Code(_) => Err(self.failed("the guest's shell has failed")),
            End::Lost(reason) => Err(self.failed(&reason)),
        }
    }

    fn failed(&self, sentence: &str) -> Failure {
        Failure::Refused { what: self.vm.name.clone(), sentence: sentence.to_owned(), errno: 0 }
    }
}

/// A side that is reached: paths can be opened.
#[derive(Debug)]
pub(in crate::commands) struct Side<'a> {
    pub(in crate::commands) guest: Option<&'a Guest>,
    /// What the user has written behind the colon.
    said: PathBuf,
    /// Where it is: in the guest from its root, on the host as the user says.
    pub(in crate::commands) path: PathBuf,
}

impl<'a> Side<'a> {
    pub(in crate::commands) fn host(path: &Path) -> Self {
        Self { guest: None, said: path.to_owned(), path: path.to_owned() }
    }

    pub(in crate::commands) fn guest(guest: &'a Guest, path: &Path) -> Result<Self, Failure> {
        Ok(Self { guest: Some(guest), said: path.to_owned(), path: guest.absolute(path)? })
    }

    /// What messages call it: as the user does.
    pub(in crate::commands) fn shown(&self) -> String {
        self.shown_as(self.said.as_os_str().as_bytes())
    }

    fn shown_as(&self, path: &[u8]) -> String {
        let vm = self.guest.map_or_else(String::new, |guest| format!("{}:", guest.vm.name));
        format!("{vm}{}", printable(path))
    }

    /// Opens it as a directory; links are followed.
    pub(in crate::commands) fn dir(&self) -> io::Result<Dir> {
        self.open(&self.path, self.shown())
    }

    fn open(&self, path: &Path, shown: String) -> io::Result<Dir> {
        match self.guest {
            Some(guest) => guest.root.open_below(path, shown),
            None => Dir::open(path, shown),
        }
    }

    /// Opens it, whatever it is; links are followed.
    pub(in crate::commands) fn opened(&self) -> io::Result<Opened> {
        match self.guest {
            Some(guest) => guest.root.opened_below(&self.path, self.shown()),
            None => dir::opened_on_host(&self.path, self.shown()),
        }
    }

    /// Its last name, unless that is `.`, `..`, `~` or nothing.
    pub(in crate::commands) fn name(&self) -> Option<&OsStr> {
        let (directory, name) = split(self.said.as_os_str().as_bytes());
        let is_home = self.guest.is_some() && directory.is_empty() && name == Some(b"~");
        name.filter(|_| !is_home).map(OsStr::from_bytes)
    }

    /// Opens the directory that it is in.
    pub(in crate::commands) fn parent(&self) -> io::Result<Dir> {
        let parent = split(self.path.as_os_str().as_bytes()).0;
        let shown = self.shown_as(split(self.said.as_os_str().as_bytes()).0);
        self.open(Path::new(OsStr::from_bytes(parent)), shown)
    }
}

/// Splits a path into its directory, with the slash, and its last name.
fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
    let begin = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    match &path[begin..end] {
        b"" | b"." | b".." => (path, None),
        name => (&path[..begin], Some(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_the_first_slash_names_a_vm() {
        let place = |word: &str| Place::of(OsStr::new(word)).unwrap();
        let guest = |vm: &str, path: &str| Place::Guest { vm: vm.into(), path: path.into() };
        assert_eq!(place("vm1:/etc/hosts"), guest("vm1", "/etc/hosts"));
        assert_eq!(place("vm1:"), guest("vm1", ""));
        assert_eq!(place("./a:b"), Place::Host("./a:b".into()));
        assert!(Place::of(OsStr::new(":/x")).is_err());
        assert!(place("vm1:dir/").is_marked() && !place("vm1:dir").is_marked());
    }

    #[test]
    fn the_last_name_of_a_path_is_one_that_can_be_given() {
        let table: [(&str, &str, Option<&str>); 9] = [
            ("a", "", Some("a")),
            ("/a/b//", "/a/", Some("b")),
            ("/", "/", None),
            ("", "", None),
            (".", ".", None),
            ("a/..", "a/..", None),
            ("a/./", "a/./", None),
            ("./a", "./", Some("a")),
            ("~", "", Some("~")),
        ];
        for (path, directory, name) in table {
            let wanted = (directory.as_bytes(), name.map(str::as_bytes));
            assert_eq!(split(path.as_bytes()), wanted, "{path}");
        }
        assert_eq!(Side::host(Path::new("~")).name(), Some(OsStr::new("~")));
    }
}
