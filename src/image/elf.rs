//! Reads what programs, libraries and kernel modules say about themselves.

use std::collections::BTreeSet;

use object::elf::{DT_NEEDED, PT_NOTE};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection};

use super::file_tree::FileTree;
use super::source::{BuildError, Result};

/// The type of Xen's note that holds the entry point for PVH.
const XEN_PHYS32_ENTRY: object::elf::NoteType = object::elf::NoteType(18);

fn parse<'a>(what: &str, bytes: &'a [u8]) -> Result<ElfFile64<'a, Endianness>> {
    ElfFile64::parse(bytes).map_err(|e| BuildError::malformed(what, e))
}

/// Returns the libraries that a program or library names, and its interpreter's path.
pub(super) fn needed(what: &str, bytes: &[u8]) -> Result<(Vec<String>, Option<String>)> {
    let elf = parse(what, bytes)?;
    let damaged = |e: object::Error| BuildError::malformed(what, e);
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let endian = elf.endian();
    let table = elf.elf_section_table().dynamic_table(endian, bytes);
    let table = table.map_err(damaged)?;
    let mut names = Vec::new();
    for entry in table.iter().filter(|d| d.tag == DT_NEEDED) {
        names.push(text(table.string(entry).map_err(damaged)?));
    }
    let interpreter =
        elf.elf_program_headers().iter().find_map(|h| h.interpreter(endian, bytes).ok().flatten());
    Ok((names, interpreter.map(text)))
}

/// Says whether a kernel can be entered as PVH: uncompressed, and without firmware's help.
pub(super) fn is_pvh(bytes: &[u8]) -> bool {
    let Ok(elf) = ElfFile64::<Endianness>::parse(bytes) else {
        return false;
    };
    let endian = elf.endian();
    let headers = elf.elf_program_headers().iter();
    headers
        .filter(|h| h.p_type(endian) == PT_NOTE)
        .filter_map(|h| h.notes(endian, bytes).ok().flatten())
        .any(|mut notes| {
            std::iter::from_fn(|| notes.next().ok().flatten())
                .any(|n| n.name() == b"Xen" && n.n_type(endian) == XEN_PHYS32_ENTRY)
        })
}

/// Returns the modules that a kernel module needs, with `_` for `-` as the kernel has it.
pub(super) fn module_depends(what: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let elf = parse(what, bytes)?;
    let damaged = |e: object::Error| BuildError::malformed(what, e);
    let Some(section) = elf.section_by_name(".modinfo") else {
        return Ok(Vec::new());
    };
    let info = section.data().map_err(damaged)?;
    let depends = info.split(|b| *b == 0).find_map(|field| field.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.unwrap_or_default()).replace('-', "_");
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// Copies the programs `roots` from `packages` to `into` (pairs of source and target), with every
/// library that they need, directly or not, and their interpreter.
pub(super) fn copy_closure(
    packages: &FileTree,
    roots: &[(&str, &str)],
    into: &mut FileTree,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut queue = Vec::new();
    for (from, to) in roots {
        let bytes = packages.read(from).ok_or_else(|| absent(from))?;
        into.file(to, 0o755, bytes.clone());
        queue.push(((*from).to_owned(), bytes));
    }
    while let Some((path, bytes)) = queue.pop() {
        let (names, interpreter) = needed(&path, &bytes)?;
        let names = names.iter().map(|n| find_library(packages, n));
        let interpreter = interpreter.map(|i| find_exact(packages, &i));
        for library in names.chain(interpreter) {
            let library = library?;
            if seen.insert(library.clone()) {
                let bytes = packages.read(&library).ok_or_else(|| absent(&library))?;
                into.file(&in_usr(&library), 0o755, bytes.clone());
                queue.push((library, bytes));
            }
        }
    }
    Ok(())
}

fn absent(path: &str) -> BuildError {
    BuildError::Unavailable {
        what: format!("no package fetched holds {path}"),
        remedy: "this distribution arranges its packages in a way not known yet; \
                 name an image of your own in config/image",
    }
}

fn find_library(packages: &FileTree, name: &str) -> Result<String> {
    packages
        .iter()
        .map(|(path, _)| path)
        .find(|path| {
            let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
            file == name && (dir.starts_with("lib") || dir.starts_with("usr/lib"))
        })
        .map(str::to_owned)
        .ok_or_else(|| absent(name))
}

/// Finds an absolute path in packages made before or after `/lib` was merged into `/usr/lib`.
fn find_exact(packages: &FileTree, path: &str) -> Result<String> {
    let plain = path.trim_start_matches('/');
    [plain.to_owned(), in_usr(plain)]
        .into_iter()
        .find(|p| packages.contains(p))
        .ok_or_else(|| absent(path))
}

/// Returns where a path is after the merge.
fn in_usr(path: &str) -> String {
    if path.starts_with("usr/") { path.to_owned() } else { format!("usr/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shared library that every machine that runs these tests has: the test itself.
    fn ourselves() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_program_names_its_libraries_and_its_interpreter() {
        let (names, interpreter) = needed("self", &ourselves()).unwrap();
        assert!(names.iter().any(|n| n.starts_with("libc.so")), "{names:?}");
        assert!(interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn a_closure_with_a_gap_names_what_is_not_there() {
        let mut packages = FileTree::default();
        packages.file("usr/bin/self", 0o755, ourselves());
        let mut root = FileTree::default();
        let error = copy_closure(&packages, &[("usr/bin/self", "usr/bin/self")], &mut root);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no package fetched holds"), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_not_pvh_and_no_module() {
        assert!(!is_pvh(&ourselves()));
        assert!(!is_pvh(b"not ELF"));
        assert_eq!(module_depends("self", &ourselves()).unwrap().len(), 0);
        assert!(module_depends("text", b"not ELF").is_err());
    }

    #[test]
    fn paths_are_found_before_and_after_the_merge_of_usr() {
        let mut packages = FileTree::default();
        packages.file("usr/lib64/ld.so", 0o755, *b"x");
        packages.file("lib/triplet/libz.so.1", 0o644, *b"x");
        assert_eq!(find_exact(&packages, "/lib64/ld.so").unwrap(), "usr/lib64/ld.so");
        let library = find_library(&packages, "libz.so.1").unwrap();
        assert_eq!(in_usr(&library), "usr/lib/triplet/libz.so.1");
    }
}
