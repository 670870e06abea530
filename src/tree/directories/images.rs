//! `.images`: what VMs are made from, and second names for it. Users make both.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};

use super::{aliases, line};
use crate::registry::Registry;
use crate::registry::aliases::Alias;
use crate::tree::control::Commands;
use crate::tree::descriptor::Descriptor;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Body, Kind, Node, VerbOutcome};
use crate::tree::number::{Named, NodeId, Numbers};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::verbs::IMAGE_VERBS;
use crate::tree::{Answer, TreeError};
use crate::vm::backend::ImageInfo;
use crate::vm::caller::Caller;
use crate::vm::notice::Notice;
use crate::vm::spec::is_object_name;
use crate::vm::stream::Stream;

/// `.images`
pub(super) static IMAGES: Descriptor<Arc<Registry>> = Descriptor {
    page: Some(".images/"),
    names: |scope, registry| {
        let (registry, numbers) = (Arc::clone(registry), scope.numbers.clone());
        Box::new(ImageNames { registry, numbers })
    },
    members: &[&IMAGE, &aliases::ALIAS],
    ..Descriptor::new(2, Scope::host, |_| "/.images".to_owned(), |registry| registry.changed())
};

/// `.images/NAME`
static IMAGE: Descriptor<ImageOwner> = Descriptor {
    page: Some(".images/NAME/"),
    rows: || ROWS,
    ..Descriptor::new(
        3,
        ImageOwner::resolve,
        |i| format!("/.images/{}", i.info.name),
        ImageOwner::mtime,
    )
};

static ROWS: &[Node<ImageOwner>] = &[
    Node::value("config", "the settings that it carries to its VMs, `key value` a line", |i| {
        i.info.settings.table()
    }),
    Node::control("ctl", "verbs, one a line: pull warm cold refresh cancel", ImageOwner::carry_out),
    Node::value("digest", "sha256 over its contents; empty until it is ready", |i| {
        line(&i.info.digest)
    }),
    Node::link(
        "disk",
        "leads to its disk, a file that needs no other, once it is ready",
        |i, _| Some(i.disk()),
    ),
    Node::value("inputs", "what it was made of, and how that was verified", |i| {
        i.info.inputs.iter().map(|input| line(input)).collect()
    }),
    Node::value("kind", "what sort of source it has", |i| line(&i.info.kind)),
    Node::value("parent", "the image that the VM it was made from used; empty for others", |i| {
        line(&i.info.parent)
    }),
    Node::value("progress", "what is being done, in one line", |i| line(&i.info.progress)),
    Node::value(
        "recipe",
        "of tiny: the number of the recipe that it was made by, and of the present one if that is another",
        |i| line(&i.recipe()),
    ),
    Node::value("refs", "how many VMs use it", |i| {
        line(&i.registry.users_of(&i.info.name).len().to_string())
    }),
    Node::value("size", "bytes on disk", |i| line(&i.info.size.to_string())),
    Node::new(
        "source",
        0o600,
        "what it is made from: builtin:tiny, builtin:blank, DISTRIBUTION[:RELEASE], a disk's path, URL#sha256=…, VM or VM@SNAPSHOT",
        Body::WritableValue(ImageOwner::source, ImageOwner::set_source),
    ),
    Node::value("status", "one word: absent fetching building ready failed", |i| {
        line(&i.info.status.to_string())
    }),
    Node::stream(
        "wait",
        0o444,
        "blocks while it is being made or warmed, then the status",
        |i, _| Ok(i.open_wait()),
    ),
    Node::value(
        "warm",
        "whether new VMs resume from a machine captured in it: `no`, `yes: …`, `warming: …`, `failed: …`",
        |i| line(&i.info.warm.to_string()),
    ),
];

#[derive(Clone)]
struct ImageOwner {
    registry: Arc<Registry>,
    info: ImageInfo,
}

impl ImageOwner {
    fn resolve(scope: &Scope, number: u64) -> Result<Self, TreeError> {
        let registry = Arc::clone(&scope.registry);
        let named = scope.numbers.named(number).ok_or(TreeError::NotFound)?;
        let info = registry.backends().images.info(&named.name).ok_or(TreeError::NotFound)?;
        Ok(Self { registry, info })
    }

    fn mtime(&self) -> SystemTime {
        self.info.changed
    }

    /// Returns nothing, rather than an empty line, where there is none: as for a list setting.
    fn source(&self) -> String {
        if self.info.source.is_empty() { String::new() } else { line(&self.info.source) }
    }

    fn recipe(&self) -> String {
        match self.info.recipe {
            Some(recipe) if recipe.made_by != recipe.present => {
                format!("{recipe}; `echo refresh > ctl` makes the image again")
            }
            Some(recipe) => recipe.to_string(),
            None => String::new(),
        }
    }

    fn set_source(&self, text: &str) -> BoxFuture<'static, Result<(), TreeError>> {
        let registry = Arc::clone(&self.registry);
        registry.set_image_source(self.info.name.clone(), text.to_owned()).err_into().boxed()
    }

    /// A link that cannot be read is an error for every `ls -l`. So there is one to nothing before there
    /// is a disk.
    fn disk(&self) -> PathBuf {
        let image = self.registry.backends().images.boot(&self.info.name);
        image.map_or_else(|| "not-ready".into(), |image| image.disk)
    }

    fn open_wait(&self) -> Arc<dyn Stream> {
        Arc::new(Notice::image(&self.registry.backends().images, &self.info.name))
    }

    fn carry_out(_: &Scope, owner: &Self, text: &str) -> BoxFuture<'static, VerbOutcome> {
        let commands = Commands::parse(IMAGE_VERBS, text);
        let (registry, name) = (Arc::clone(&owner.registry), owner.info.name.clone());
        commands.carry_out(|good| registry.command_image_all(name, good))
    }
}

impl NodeOwner for ImageOwner {
    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(self.registry.admit_image_removal(&self.info.name)?)
    }
}

fn named(image: &str) -> Named {
    Named { within: IMAGES.id, object: 0, name: image.to_owned() }
}

struct ImageNames {
    registry: Arc<Registry>,
    numbers: Numbers,
}

impl ImageNames {
    fn id(&self, name: &str) -> NodeId {
        IMAGE.node(self.numbers.number(named(name)))
    }

    fn alias(&self, name: &str) -> Option<NodeId> {
        self.registry.aliases().get(name).map(|alias| aliases::id(alias.id))
    }
}

impl Names for ImageNames {
    fn is_stable(&self) -> bool {
        false
    }

    fn find(&self, name: &str) -> Option<NodeId> {
        if self.registry.backends().images.info(name).is_some() {
            return Some(self.id(name));
        }
        self.alias(name)
    }

    fn is_possible(&self, name: &str) -> bool {
        is_object_name(name)
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        if !is_object_name(name) {
            return Answer::Now(Err(TreeError::BadName(name.to_owned())));
        }
        let id = self.id(name);
        let made = Arc::clone(&self.registry).create_image(name.to_owned());
        Answer::later(made.map_ok(move |()| id))
    }

    fn link(&self, name: &str, target: &str) -> Answer<NodeId> {
        if !is_object_name(name) {
            return Answer::Now(Err(TreeError::BadName(name.to_owned())));
        }
        let made = Arc::clone(&self.registry).link_image(name.to_owned(), target.to_owned());
        Answer::later(made.map_ok(aliases::id))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.alias(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        if !is_object_name(to) {
            return Answer::Now(Err(TreeError::BadName(to.to_owned())));
        }
        Answer::later(Arc::clone(&self.registry).rename_alias(from.to_owned(), to.to_owned()))
    }

    fn unlink(&self, name: &str) -> Option<Answer<()>> {
        self.alias(name)?;
        Some(Answer::later(Arc::clone(&self.registry).unlink_image(name.to_owned())))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        if self.alias(name).is_some() {
            return Answer::Now(Err(TreeError::NotADirectory));
        }
        Answer::later(Arc::clone(&self.registry).remove_image(name.to_owned()))
    }

    fn count(&self) -> usize {
        self.registry.backends().images.list().len()
    }

    fn entries(&self) -> Vec<Entry> {
        let alias = |(name, alias): (String, Alias)| {
            let id = aliases::id(alias.id);
            Entry { name, id, kind: Kind::Link }
        };
        let image = |image: ImageInfo| Entry::directory(self.id(&image.name), image.name);
        let images = self.registry.backends().images.list().into_iter().map(image);
        images.chain(self.registry.aliases().list().into_iter().map(alias)).collect()
    }
}
