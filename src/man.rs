//! The manual pages: aq(1) and one for each command from the clap structs and the table of
//! variables, aqfs(5) from the node tables. What they say is said there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::commands::environment::VARIABLES;
use crate::tree::manual::{self, Row, VerbUsage};

const EXIT: &[(&str, &str)] = &[
    ("0", "it is done"),
    ("1", "it is not; the reason is on standard error"),
    ("2", "the command line is wrong"),
    ("others", "aq exec and aq fanout: the status of the command in the guest"),
];

/// Writes all pages into `man1` and `man5` of a directory, which are made if need be.
///
/// # Errors
/// Whatever making or writing files answers.
pub fn write(dir: &Path) -> io::Result<()> {
    let (commands, files) = (dir.join("man1"), dir.join("man5"));
    [&commands, &files].into_iter().try_for_each(fs::create_dir_all)?;
    clap_mangen::generate_to(Cli::command(), &commands)?;
    let mut page = Vec::new();
    Man::new(Cli::command()).render(&mut page)?;
    page.extend(more().to_roff().into_bytes());
    File::create(commands.join("aq.1"))?.write_all(&page)?;
    File::create(files.join("aqfs.5"))?.write_all(aqfs().render().as_bytes())
}

fn more() -> Roff {
    let mut roff = Roff::new();
    for (title, has_effect) in [("ENVIRONMENT", true), ("VARIABLES WITHOUT EFFECT", false)] {
        let variables = VARIABLES.iter().filter(|v| v.has_effect() == has_effect);
        entries(&mut roff, title, variables.map(|v| (v.name, v.doc)));
    }
    entries(&mut roff, "EXIT STATUS", EXIT.iter().copied());
    roff.control("SH", ["SEE ALSO"]).text([
        bold("aqfs"),
        roman("(5), "),
        bold("ssh"),
        roman("(1)"),
    ]);
    roff
}

fn aqfs() -> Roff {
    let mut roff = Roff::new();
    let version = format!("aq {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["aqfs", "5", "", &version, "File Formats"]);
    roff.control("SH", ["NAME"]).text([roman("aqfs - virtual machines as directories")]);
    roff.control("SH", ["DESCRIPTION"]).text([
        roman("Every directory at the root of a tree that "),
        bold("aq mount"),
        roman(
            " has mounted is a virtual machine: mkdir makes one, rmdir removes it, mv renames it. \
             VM, NAME and TAG below stand for names that users give. A request that fails gives an \
             errno to the caller and a sentence to the file error.",
        ),
    ]);
    let dir_of = |row: &Row| row.path.rsplit_once('/').map(|(dir, _)| dir.to_owned());
    for rows in manual::rows().chunk_by(|a, b| dir_of(a) == dir_of(b)) {
        let title = dir_of(&rows[0]).map_or("AT THE ROOT".to_owned(), |dir| format!("IN {dir}/"));
        roff.control("SH", [title.as_str()]);
        for row in rows {
            let name = row.path.rsplit('/').next().unwrap_or_default();
            roff.control("TP", []);
            roff.text([bold(name), roman(format!("  {} {:04o}", row.kind, row.mode))]);
            roff.text([roman(row.doc)]);
        }
    }
    verbs(&mut roff, "VERBS OF VM/ctl", &manual::vm_verbs());
    verbs(&mut roff, "VERBS OF .images/NAME/ctl", &manual::image_verbs());
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("aq"), roman("(1); a page for each file is in .docs at the root of the tree")]);
    roff
}

fn verbs(roff: &mut Roff, title: &str, usages: &[VerbUsage]) {
    entries(roff, title, usages.iter().map(|u| (u.usage.as_str(), u.doc)));
}

fn entries<'a>(roff: &mut Roff, title: &str, entries: impl Iterator<Item = (&'a str, &'a str)>) {
    roff.control("SH", [title]);
    for (term, meaning) in entries {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(meaning)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_every_file_has_its_place() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let page = read(&format!("man1/aq-{}.1", command.get_name()));
            assert!(page.contains(".SH NAME"), "{}", command.get_name());
        }
        let root = read("man1/aq.1");
        assert!(VARIABLES.iter().all(|v| root.contains(v.name)));
        assert!(root.contains("EXIT STATUS") && root.contains("aqfs"));
        let tree = read("man5/aqfs.5");
        for row in manual::rows() {
            let name = row.path.rsplit('/').next().unwrap().replace('-', "\\-");
            assert!(tree.contains(&name), "{name}");
        }
    }
}
