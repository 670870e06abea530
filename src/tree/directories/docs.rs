//! `.docs`: the pages of `mountpoint-docs/`, which are part of the program.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use include_dir::{Dir, include_dir};

use crate::registry::Registry;
use crate::tree::descriptor::Descriptor;
use crate::tree::node::Node;
use crate::tree::scope::Scope;

static PAGES: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/mountpoint-docs");

/// `.docs`
pub(super) static DOCS: Descriptor<Arc<Registry>> = Descriptor {
    mode: 0o555,
    rows: || &ROWS,
    ..Descriptor::new(1, Scope::host, |_| "/.docs".to_owned(), |_| SystemTime::UNIX_EPOCH)
};

static ROWS: LazyLock<Vec<Node<Arc<Registry>>>> = LazyLock::new(|| {
    let pages = PAGES.files().filter_map(|f| Some((f.path().to_str()?, f.contents())));
    pages.map(|(name, text)| Node::page(name, "a page of the documentation", text)).collect()
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
