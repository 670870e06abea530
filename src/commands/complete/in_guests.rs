//! What shells offer behind `aq cp VM:/etc/<TAB>`: names of the guest's files.
//!
//! Only of a VM that runs: to look at the files of one that is suspended resumes it.

use std::fs::{self, DirEntry};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{Tree, Wanted};

/// How long a guest may take to list a directory. Nobody waits longer for a key to do something.
const LISTED_TIMEOUT: Duration = Duration::from_secs(1);

/// Lists what begins as `VM:PATH` does.
pub(super) fn paths(tree: &Tree, word: &str) -> Vec<String> {
    let Some((name, path)) = word.split_once(':') else { return Vec::new() };
    let Some(vm) = tree.vm(name).ok().filter(|vm| Wanted::On.fits(vm)) else { return Vec::new() };
    let (dir, begun) = path.rsplit_once('/').map_or(("", path), |(dir, begun)| (dir, begun));
    // A path that begins with a slash has one before it.
    let above = &path[..path.len() - begun.len()];
    let dir = match path.starts_with('/') {
        true => format!("/{dir}"),
        false => {
            format!("{}/{}", home(&vm.read("config/ssh_user").unwrap_or_default()), inside(dir))
        }
    };
    let names = listed(vm.path(&format!("fs{dir}"))).into_iter();
    let wanted =
        names.filter(|n| n.starts_with(begun) && n.starts_with('.') == begun.starts_with('.'));
    wanted.map(|found| format!("{name}:{above}{found}")).collect()
}

/// The home of a user, where distributions have it: to ask the guest takes too long here.
fn home(user: &str) -> String {
    if user == "root" { "/root".to_owned() } else { format!("/home/{user}") }
}

fn inside(dir: &str) -> &str {
    dir.strip_prefix("~/").unwrap_or(if dir == "~" { "" } else { dir })
}

/// Lists a directory, with a slash behind directories.
fn listed(dir: PathBuf) -> Vec<String> {
    let (done, listed) = mpsc::channel();
    let list = move || {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| name(&entry)).collect();
        names.sort();
        // Nobody listens any more when it has taken too long.
        drop(done.send(names));
    };
    thread::spawn(list);
    listed.recv_timeout(LISTED_TIMEOUT).unwrap_or_default()
}

fn name(entry: &DirEntry) -> Option<String> {
    let name = entry.file_name().into_string().ok()?;
    let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
    (!name.contains(char::is_control)).then(|| if is_dir { name + "/" } else { name })
}
