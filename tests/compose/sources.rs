//! Operations on what images are made of: sources that are pulled, made again and cancelled; containers
//! that `aq run` runs; disks that are exported.
//!
//! The test's own data is one script, [`RELEASE`]: it puts a version of each source into `$SOURCES`, whose
//! directory `www` is the mirror. Not here: images of VMs (`disks`).

use std::fs;
use std::sync::OnceLock;

use libc::{EEXIST, EINVAL};
use serde_json::json;

use super::checker::beginning;
use super::disks::{
    every_image, has_disk, has_guest, images, is_new, pair, until_back, until_warm, warm,
};
use super::model::{Content, Disk, Model, Power, ROOM, Source};
use super::operations::{No, Operation, PROGRAMS, Step, none, nothing, require, vm};
use crate::common::mirror::Mirror;
use crate::common::registry::{Registry, layer};

/// `release N` makes version N of each source.
pub(crate) const RELEASE: &str = r#"cd "${0%/*}"; umask 022; mkdir -p root/etc root/root root/tmp www/mine
echo $1 >root/etc/version; : >root/etc/machine-id
tar -C root --owner=0 --group=0 --numeric-owner -cf root.tar .
arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
echo '{"architecture":"'$arch'","os":"linux","config":{"Env":["A=1"]}}' >config.json
echo '[{"Config":"config.json","Layers":["root.tar"]}]' >manifest.json
tar -cf archive.tar manifest.json config.json root.tar
echo version $1 >www/mine/disk.raw; truncate -s 1M www/mine/disk.raw
cd www/mine; sha256sum disk.raw >SHA256SUMS
"#;

/// The row of a distribution on the mirror.
const ROW: &str = r#"list = false
[[distribution]]
name = "mine"
mirror = "MIRROR"
directory = "mine"
newest = { version = "1" }
checksums = "SHA256SUMS"
disk = { x86_64 = "disk.raw", aarch64 = "disk.raw" }
memory = "128M"
"#;

/// The sources of one sequence.
pub(crate) struct Sources {
    dir: tempfile::TempDir,
    mirror: Mirror,
}

impl Sources {
    /// Makes the first version of each.
    pub(crate) fn new() -> Self {
        let dir = crate::common::scratch();
        fs::write(dir.path().join("release"), RELEASE).expect("a script");
        let mirror = Mirror::of(dir.path().join("www"));
        let sources = Self { dir, mirror };
        let made = std::process::Command::new("bash")
            .args(["-e".as_ref(), sources.dir.path().join("release").as_os_str(), "1".as_ref()])
            .status();
        assert!(made.expect("bash").success(), "the sources are made");
        sources
    }

    /// Returns the user's `images.toml`.
    pub(crate) fn distributions(&self) -> String {
        ROW.replace("MIRROR", self.mirror.url("").trim_end_matches('/'))
    }

    /// Returns the variables that the lines name.
    pub(crate) fn variables(&self) -> String {
        let (dir, mirror) = (self.dir.path().display(), self.mirror.port());
        format!("SOURCES={dir} MIRROR={mirror} REGISTRY={}", registry().port)
    }
}

/// A registry with one image, for all sequences.
fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let registry = Registry::start();
        let files: &[(&str, u32, &[u8])] = &[
            ("etc/", 0o755, b""),
            ("etc/version", 0o644, b"1\n"),
            ("etc/machine-id", 0o444, b""),
            ("root/", 0o700, b""),
        ];
        registry.image("x", &json!({"Env": ["A=1"]}), vec![layer(files)]);
        registry
    })
}

/// `IMAGE SOURCE`.
fn images_of_sources(model: &Model, vm: &str) -> Vec<String> {
    let names = images(model, vm);
    let with = |name: &String| Source::ALL.map(|source| format!("{name} {}", source.text()));
    names.iter().flat_map(with).collect()
}

fn source_of(step: &Step) -> Option<Source> {
    Source::ALL.into_iter().find(|source| source.text() == pair(step).1)
}

fn made(image: &str) -> String {
    format!(
        "timeout 120 cat .images/{image}/wait > /dev/null; grep -q ^ready .images/{image}/status"
    )
}

/// Waits until a VM or an image says that something was cancelled.
fn cancel(image: &str) -> String {
    format!(
        "timeout 60 bash -c 'until grep -q fetching .images/{image}/status; do sleep 0.1; done'
         echo cancel > .images/{image}/ctl; timeout 60 cat .images/{image}/wait > /dev/null"
    )
}

/// Prints the mark and the version of the disk that it runs on.
fn look() -> String {
    format!("{PROGRAMS}; echo $(cat /root/mark || echo 0) $(cat /etc/version || echo 0)")
}

/// `IMAGE SHELL`.
fn images_and_shells(model: &Model, name: &str) -> Vec<String> {
    let shell = |image: &String| match model.images.get(image) {
        Some(there) if there.disk.version > 0 => format!("{image} /dev/aqfs/bin/sh"),
        _ => format!("{image} sh"),
    };
    every_image(model, name).iter().map(shell).collect()
}

/// Looks at the beginning of an exported disk.
fn exported(disk: Disk) -> String {
    match disk.content {
        Content::Bytes => {
            format!(
                "[ \"$(head -c 512 $OUT/disk | tr -d '\\0')\" = '{}' ]",
                beginning(disk.version)
            )
        }
        // A guest that ran has a journal.
        Content::Guest => format!(
            "PATH=$PATH:/usr/sbin; e2fsck -fy $OUT/disk > /dev/null 2>&1 || [ $? -le 1 ]
             [ \"$(debugfs -R 'cat /root/mark' $OUT/disk 2> /dev/null)\" = '{}' ]",
            if disk.mark == 0 { String::new() } else { disk.mark.to_string() }
        ),
    }
}

pub(crate) static SOURCES: &[Operation] = &[
    Operation {
        name: "release of the sources",
        weight: 4,
        words: |model, _| vec![(model.released + 1).to_string()],
        fits: |_, _| Ok(()),
        request: |step| format!("bash -e $SOURCES/release {}", step.word),
        wait: nothing,
        then: |model, step| {
            model.released = step.word.parse().unwrap_or(model.released).max(model.released);
        },
    },
    Operation {
        name: "pull",
        weight: 16,
        words: images_of_sources,
        fits: |model, step| {
            let (image, _) = pair(step);
            require(!model.images.contains_key(image), No::Errno(EEXIST))
        },
        request: |step| {
            let (image, source) = pair(step);
            format!("mkdir .images/{image} && echo {source} > .images/{image}/source")
        },
        wait: |_, step| {
            let image = pair(step).0;
            format!("echo pull > .images/{image}/ctl\n{}", made(image))
        },
        then: |model, step| {
            let Some(source) = source_of(step) else { return };
            model.pull(pair(step).0, source);
        },
    },
    Operation {
        name: "refresh",
        weight: 12,
        words: images,
        fits: |model, step| {
            let image = model.images.get(&step.word).ok_or(No::Unfit)?;
            let source = image.source.ok_or(No::Errno(EINVAL))?;
            require(source != Source::Blank, No::Errno(EINVAL))
        },
        request: |step| format!("echo refresh > .images/{}/ctl", step.word),
        wait: |_, step| {
            format!("{}\n! grep failed .images/{}/progress", made(&step.word), step.word)
        },
        then: |model, step| model.refresh(&step.word),
    },
    Operation {
        name: "cancelled pull",
        weight: 2,
        words: images,
        fits: |model, step| is_new(model, &step.word),
        request: |step| {
            let (image, sum) = (&step.word, "0".repeat(64));
            format!(
                "mkfifo $SOURCES/www/never; mkdir .images/{image}
                 echo \"http://127.0.0.1:$MIRROR/never#sha256={sum}\" > .images/{image}/source
                 echo pull > .images/{image}/ctl"
            )
        },
        wait: |_, step| {
            let image = &step.word;
            format!(
                "{}\nrm $SOURCES/www/never; grep -q '^failed.*cancelled' .images/{image}/status
                 rmdir .images/{image}",
                cancel(image)
            )
        },
        then: |_, _| {},
    },
    Operation {
        name: "cancelled refresh",
        weight: 6,
        words: images,
        fits: |model, step| {
            let source = model.images.get(&step.word).and_then(|image| image.source);
            require(source == Some(Source::Distribution), No::Unfit)
        },
        request: |step| {
            format!(
                "cd $SOURCES/www/mine; mv SHA256SUMS kept; mkfifo SHA256SUMS; cd $AQ_MOUNT
                 echo refresh > .images/{}/ctl",
                step.word
            )
        },
        wait: |_, step| {
            let image = &step.word;
            format!(
                "{}\nmv $SOURCES/www/mine/kept $SOURCES/www/mine/SHA256SUMS
                 grep -q ^ready .images/{image}/status; grep -q cancelled .images/{image}/progress",
                cancel(image)
            )
        },
        then: |_, _| {},
    },
    Operation {
        name: "aq run",
        weight: 8,
        words: images_and_shells,
        fits: |model, step| {
            has_guest(model, pair(step).0)?;
            require(model.live() < ROOM, No::Unfit)
        },
        request: |step| {
            let (image, shell) = pair(step);
            format!("aq run --rm {image} {shell} -c '{}' > $OUT/said 2> $OUT/errors", look())
        },
        wait: |model, step| {
            let image = pair(step).0;
            let disk = model.images.get(image).map(|image| (image.disk.mark, image.disk.version));
            let (mark, version) = disk.unwrap_or_default();
            // The daemon warms it meanwhile.
            format!("diff $OUT/said <(echo {mark} {version}) >&2\n{}", until_warm(image))
        },
        then: |model, step| {
            let image = pair(step).0;
            if model.images.get(image).is_some_and(|image| image.template.is_none()) {
                warm(model, image);
            }
        },
    },
    Operation {
        name: "export of a VM",
        weight: 5,
        words: none,
        fits: |model, step| {
            let vm = vm(model, step)?;
            has_disk(vm).map_err(|_| No::Unfit)?;
            let is_free = vm.power == Power::Ready && vm.data.is_none();
            require(vm.power.is_off() || is_free, No::Unfit)
        },
        request: |step| format!("aq export {} $OUT/disk --format raw 2> $OUT/errors", step.vm),
        wait: |model, step| {
            let disk = model.vms.get(&step.vm).and_then(|vm| vm.disk);
            let look = disk.map_or(String::new(), exported);
            format!("{look}\nrm $OUT/disk\n{}", until_back(model, step))
        },
        then: |_, _| {},
    },
    Operation {
        name: "export of an image",
        weight: 4,
        words: every_image,
        fits: |model, step| require(model.images.contains_key(&step.word), No::Unfit),
        request: |step| format!("aq export {} $OUT/disk --format raw 2> $OUT/errors", step.word),
        wait: |model, step| {
            let disk = model.images.get(&step.word).map(|image| image.disk);
            format!("{}\nrm $OUT/disk", disk.map_or(String::new(), exported))
        },
        then: |_, _| {},
    },
];
