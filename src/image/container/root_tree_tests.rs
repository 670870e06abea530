use super::*;

fn tree(dir: &Path) -> RootTree {
    let mut tree = RootTree::new(dir.to_owned(), Limits { entries: 100, bytes: 1 << 20 });
    tree.next_layer();
    tree
}

fn file(tree: &mut RootTree, path: &str, content: &str) {
    tree.file(path.as_bytes(), Metadata::default(), &mut content.as_bytes()).unwrap();
}

/// Lists all paths below the root, with contents of files.
fn paths(tree: &RootTree) -> Vec<String> {
    let mut found = Vec::new();
    let mut queue = vec![(ROOT, String::new())];
    while let Some((inode, path)) = queue.pop() {
        if let Body::Directory(entries) = &tree.inode(inode).body {
            queue.extend(
                entries.iter().map(|(name, e)| (e.inode, format!("{path}/{}", text(name)))),
            );
        }
        if let Body::File(content, _) = tree.inode(inode).body {
            let content = std::fs::read_to_string(tree.content(content)).unwrap();
            found.push(format!("{path}={content}"));
        }
    }
    found.sort();
    found
}

#[test]
fn paths_that_lead_out_are_refused_and_links_lead_within_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = tree(dir.path());
    for bad in ["../x", "a/../../x", "/../x", "a/.."] {
        let refused = tree.file(bad.as_bytes(), Metadata::default(), &mut &b"x"[..]);
        assert!(matches!(refused, Err(EntryError::Escapes(_))), "{bad}");
        let refused = tree.hard_link(b"l", bad.as_bytes());
        assert!(matches!(refused, Err(EntryError::Escapes(_))), "{bad}");
    }
    for (link, target) in [("up", "../../../etc"), ("abs", "/etc"), ("loop", "loop"), ("d/e", "..")]
    {
        let body = Body::Symlink(target.as_bytes().to_vec());
        tree.special(link.as_bytes(), Metadata::default(), body).unwrap();
    }
    file(&mut tree, "up/1", "a");
    file(&mut tree, "/abs/2", "b");
    file(&mut tree, "d/e/3", "c");
    assert_eq!(paths(&tree), ["/3=c", "/etc/1=a", "/etc/2=b"]);
    let refused = tree.file(b"loop/x", Metadata::default(), &mut &b""[..]);
    assert!(matches!(refused, Err(EntryError::Loop(_))));
    let refused = tree.file(b"etc/1/x", Metadata::default(), &mut &b""[..]);
    assert!(matches!(refused, Err(EntryError::ThroughFile(_))));
    let refused = tree.hard_link(b"l", b"nowhere");
    assert!(matches!(refused, Err(EntryError::NoTarget(..))));
    assert_eq!(
        std::fs::read_dir(dir.path().parent().unwrap())
            .unwrap()
            .filter(|e| { e.as_ref().unwrap().file_name() == "x" })
            .count(),
        0
    );
}

#[test]
fn whiteouts_remove_what_lower_layers_have_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = tree(dir.path());
    for path in ["a/1", "a/b/2", "c/3", "c/d/4", "e"] {
        file(&mut tree, path, "old");
    }
    tree.next_layer();
    file(&mut tree, "a/b/new", "new");
    tree.opaque(b"a/").unwrap();
    file(&mut tree, "a/5", "new");
    tree.whiteout(b"c/3").unwrap();
    file(&mut tree, "e", "new");
    tree.whiteout(b"e").unwrap();
    tree.whiteout(b"absent").unwrap();
    assert_eq!(paths(&tree), ["/a/5=new", "/a/b/new=new", "/c/d/4=old", "/e=new"]);
}

#[test]
fn a_directory_keeps_its_names_and_a_file_replaces_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = tree(dir.path());
    file(&mut tree, "a/1", "x");
    tree.hard_link(b"a/2", b"a/1").unwrap();
    tree.next_layer();
    let metadata = Metadata { mode: 0o700, uid: 5, ..Metadata::default() };
    tree.directory(b"./a/", metadata.clone()).unwrap();
    assert_eq!(paths(&tree), ["/a/1=x", "/a/2=x"]);
    assert_eq!(tree.inode(tree.lookup(ROOT, b"a").unwrap()).metadata, metadata);
    file(&mut tree, "a", "file");
    assert_eq!(paths(&tree), ["/a=file"]);
}

#[test]
fn there_is_a_limit_to_what_layers_unpack_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = tree(dir.path());
    assert!(matches!(tree.count(2 << 20), Err(EntryError::TooLarge(_))));
    let counted = (0..100).try_for_each(|_| tree.count(0));
    assert!(matches!(counted, Err(EntryError::TooLarge(_) | EntryError::TooMany(_))));
}

#[test]
fn directories_that_no_layer_names_are_counted_and_their_depth_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut wide = tree(dir.path());
    let refused = wide.file("d/".repeat(150).as_bytes(), Metadata::default(), &mut &b""[..]);
    assert!(matches!(refused, Err(EntryError::TooMany(100))), "{refused:?}");
    let limits = Limits { entries: 10_000, bytes: 1 << 20 };
    let mut deep = RootTree::new(dir.path().to_owned(), limits);
    deep.directory("d/".repeat(400).as_bytes(), Metadata::default()).unwrap();
    let target = Body::Symlink("d/".repeat(400).into_bytes());
    deep.special(b"s", Metadata::default(), target).unwrap();
    let further = ["s/", &"e/".repeat(200)].concat();
    let refused = deep.directory(further.as_bytes(), Metadata::default());
    assert!(matches!(refused, Err(EntryError::Loop(_))), "{refused:?}");
}
