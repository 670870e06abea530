//! `.docs`: the pages of `mountpoint-docs/`, which are part of the program.

use std::sync::LazyLock;
use std::time::SystemTime;

use include_dir::{Dir, include_dir};

use crate::tree::descriptor::{Descriptor, no_names};
use crate::tree::host::Host;
use crate::tree::node::{Body, Node};
use crate::tree::number::DirectoryId;

/// The pages.
static PAGES: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/mountpoint-docs");

/// `.docs`
pub(super) static DOCS: Descriptor<Host> = Descriptor {
    id: DirectoryId(1),
    page: None,
    mode: 0o555,
    rows: || &ROWS,
    resolve: |scope, _| Ok(scope.host.clone()),
    path: |_| "/.docs".to_owned(),
    mtime: |_| SystemTime::UNIX_EPOCH,
    names: no_names,
    members: &[],
    is_slow: false,
};

static ROWS: LazyLock<Vec<Node<Host>>> = LazyLock::new(|| {
    let pages = PAGES.files().filter_map(|f| Some((f.path().to_str()?, f.contents())));
    let row = |(name, text)| Node {
        name,
        mode: 0o444,
        mtime: |_: &Host| SystemTime::UNIX_EPOCH,
        doc: "a page of the documentation",
        body: Body::Page(text),
    };
    pages.map(row).collect()
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::manual;

    #[test]
    fn every_row_has_a_page() {
        let is_top = |path: &str| !path.trim_start_matches("VM/").contains('/');
        let rows = manual::rows().into_iter().filter(|row| is_top(&row.path));
        for path in rows.map(|row| row.path).filter(|path| path != ".docs") {
            let page = format!("{}.md", path.trim_start_matches("VM/").trim_start_matches('.'));
            assert!(PAGES.get_file(&page).is_some(), "mountpoint-docs/{page}");
        }
    }
}
