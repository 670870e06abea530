//! Where a guest's symbolic links lead on the host: to a file of the same guest, whatever they say.
//!
//! The host's kernel follows a link by itself, and `/etc/passwd` would be the host's. So an absolute
//! target is made relative to the guest's root, and one that climbs above it ends there.

/// Returns the target of the link at an absolute path. A relative one that climbs only at its begin,
/// and not above the root, stays to the byte. Others lose their `..`, as what precedes one may be a
/// link itself, from which the kernel would climb elsewhere.
pub(super) fn confined(link: &[u8], target: &[u8]) -> Vec<u8> {
    let directory: Vec<&[u8]> = parts(link).collect();
    let depth = directory.len().saturating_sub(1);
    if !target.starts_with(b"/") && is_confined(depth, target) {
        return target.to_vec();
    }
    let mut path: Vec<&[u8]> = Vec::new();
    let mut climbed = if target.starts_with(b"/") { depth } else { 0 };
    for part in parts(target) {
        match part {
            b".." if path.pop().is_some() => {}
            b".." => climbed = (climbed + 1).min(depth),
            part => path.push(part),
        }
    }
    let climbs = std::iter::repeat_n(&b".."[..], climbed);
    let confined = climbs.chain(path).collect::<Vec<_>>().join(&b'/');
    if confined.is_empty() { b".".to_vec() } else { confined }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

fn is_confined(depth: usize, target: &[u8]) -> bool {
    let climbs = parts(target).take_while(|part| *part == b"..").count();
    let later = parts(target).skip(climbs).any(|part| part == b"..");
    climbs <= depth && !later
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_outside() {
        let table = [
            ("/bin", "usr/bin", "usr/bin"),
            ("/etc/mtab", "/proc/mounts", "../proc/mounts"),
            ("/etc/mtab", "../proc/self/mounts", "../proc/self/mounts"),
            ("/a", "/", "."),
            ("/a", "/b", "b"),
            ("/a/b", "/", ".."),
            ("/a", "../../etc/passwd", "etc/passwd"),
            ("/p/q/l", "../../../../etc", "../../etc"),
            ("/p/q/l", "d/../../..", "../.."),
            ("/p/q/l", "d/../e", "e"),
            ("/p/l", "/x/../../y", "../y"),
            ("/l", "./a//b", "./a//b"),
        ];
        for (link, target, expected) in table {
            let got = confined(link.as_bytes(), target.as_bytes());
            assert_eq!(String::from_utf8(got).unwrap(), expected, "{link} -> {target}");
        }
    }
}
