//! Rows and verbs as the documentation shows them: for `mountpoint-docs/README.md` and the manual
//! page.

use super::descriptor::KINDS;
use super::verbs::{IMAGE_VERBS, VM_VERBS, Verb};

/// A file, as the documentation shows it.
pub(crate) struct Row {
    /// Its path in the mount, with `VM`, `NAME` and `TAG` for what users name.
    pub(crate) path: String,
    pub(crate) mode: u16,
    /// `value`, `setting`, `control`, `stream`, `link` or `directory`.
    pub(crate) kind: &'static str,
    pub(crate) doc: &'static str,
}

pub(crate) struct VerbUsage {
    pub(crate) usage: String,
    pub(crate) doc: &'static str,
}

pub(crate) fn rows() -> Vec<Row> {
    KINDS.iter().flat_map(|kind| kind.manual()).collect()
}

pub(crate) fn vm_verbs() -> Vec<VerbUsage> {
    usages(VM_VERBS)
}

pub(crate) fn image_verbs() -> Vec<VerbUsage> {
    usages(IMAGE_VERBS)
}

fn usages<C>(verbs: &'static [Verb<C>]) -> Vec<VerbUsage> {
    let usage_of = |v: &'static Verb<C>| {
        let usage = format!("{} {}", v.name, v.usage).trim_end().to_owned();
        VerbUsage { usage, doc: v.doc }
    };
    verbs.iter().map(usage_of).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Returns the rows as a table in Markdown.
    fn markdown() -> String {
        let mut text = "| file | mode | kind | |\n|---|---|---|---|\n".to_owned();
        for Row { path, mode, kind, doc } in rows() {
            let doc = doc.replace('|', "\\|");
            // Writing to a string cannot fail.
            let _infallible = writeln!(text, "| `{path}` | {mode:04o} | {kind} | {doc} |");
        }
        text
    }

    #[test]
    fn every_row_has_a_doc_and_a_mode_that_fits_its_kind() {
        for Row { path, mode, kind, doc } in rows() {
            assert!(!doc.is_empty() && !doc.ends_with('.'), "{path}: doc");
            let mode_fits = match kind {
                "value" => mode == 0o444,
                "setting" | "control" => mode == 0o600,
                "stream" => [0o600, 0o444, 0o400, 0o200].contains(&mode),
                "link" => mode == 0o777,
                "directory" => mode & 0o500 == 0o500,
                other => panic!("{path}: {other}"),
            };
            assert!(mode_fits, "{path}: mode {mode:o}");
        }
    }

    #[test]
    fn the_rows_of_each_directory_are_in_order() {
        // Settings are in the order in which they are explained.
        let rows = rows().into_iter().map(|row| row.path).filter(|p| !p.starts_with("VM/config/"));
        let rows: Vec<String> = rows.collect();
        let dir = |path: &str| path.rsplit_once('/').map(|(dir, _)| dir.to_owned());
        for pair in rows.windows(2).filter(|pair| dir(&pair[0]) == dir(&pair[1])) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
    }

    #[test]
    fn ctl_lists_its_verbs() {
        let doc = |path: &str| rows().into_iter().find(|row| row.path == path).unwrap().doc;
        let words = |usages: Vec<VerbUsage>| {
            let word = |u: &VerbUsage| u.usage.split(' ').next().unwrap().to_owned();
            usages.iter().map(word).collect::<Vec<_>>().join(" ")
        };
        assert!(doc("VM/ctl").ends_with(&words(vm_verbs())));
        assert!(doc(".images/NAME/ctl").ends_with(&words(image_verbs())));
    }

    #[test]
    fn the_manual_has_the_table_that_the_rows_make() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/mountpoint-docs/README.md");
        let page = include_str!("../../mountpoint-docs/README.md");
        let (before, rest) = page.split_once("<!-- files").unwrap();
        let (comment, rest) = rest.split_once("-->\n").unwrap();
        let (table, after) = rest.split_once("<!-- /files -->").unwrap();
        let wanted = markdown();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let text = format!("{before}<!-- files{comment}-->\n{wanted}<!-- /files -->{after}");
            std::fs::write(path, text).unwrap();
        } else {
            assert_eq!(table, wanted, "UPDATE_DOCS=1 cargo test --lib the_manual writes it");
        }
    }
}
