//! `.images`: what VMs are made from, and second names for it. Users make both.

use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{aliases, line};
use crate::registry::Registry;
use crate::registry::aliases::Alias;
use crate::tree::control::Commands;
use crate::tree::descriptor::{Descriptor, no_names};
use crate::tree::host::Host;
use crate::tree::names::{Entry, Names};
use crate::tree::node::{Body, Kind, Node, VerbOutcome};
use crate::tree::number::{DirectoryId, Named, NodeId, Numbers};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::verbs::IMAGE_VERBS;
use crate::tree::{Answer, TreeError};
use crate::vm::Vm;
use crate::vm::backend::ImageInfo;
use crate::vm::caller::Caller;
use crate::vm::notice::Notice;
use crate::vm::spec::is_object_name;
use crate::vm::stream::Stream;

/// `.images`
pub(super) static IMAGES: Descriptor<Host> = Descriptor {
    id: DirectoryId(2),
    page: Some(".images/"),
    mode: 0o700,
    rows: || &[],
    resolve: |scope, _| Ok(scope.host.clone()),
    path: |_| "/.images".to_owned(),
    mtime: Host::mtime,
    names: |scope, host| {
        let (registry, numbers) = (Arc::clone(&host.registry), scope.numbers.clone());
        Box::new(ImageNames { registry, numbers })
    },
    members: &[&IMAGE, &aliases::ALIAS],
    is_slow: false,
};

/// `.images/NAME`
static IMAGE: Descriptor<ImageOwner> = Descriptor {
    id: DirectoryId(3),
    page: Some(".images/NAME/"),
    mode: 0o700,
    rows: || ROWS,
    resolve: ImageOwner::resolve,
    path: |i| format!("/.images/{}", i.info.name),
    mtime: ImageOwner::mtime,
    names: no_names,
    members: &[],
    is_slow: false,
};

static ROWS: &[Node<ImageOwner>] = &[
    Node {
        name: "config",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "the settings that it carries to its VMs, `key value` a line",
        body: Body::Value(|i| i.info.settings.table()),
    },
    Node {
        name: "ctl",
        mode: 0o600,
        mtime: ImageOwner::mtime,
        doc: "verbs, one a line: pull warm cold refresh",
        body: Body::Control(ImageOwner::carry_out),
    },
    Node {
        name: "digest",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "sha256 over its contents; empty until it is ready",
        body: Body::Value(|i| line(&i.info.digest)),
    },
    Node {
        name: "kind",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "what sort of source it has",
        body: Body::Value(|i| line(&i.info.kind)),
    },
    Node {
        name: "parent",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "the image that the VM it was made from used; empty for others",
        body: Body::Value(|i| line(&i.info.parent)),
    },
    Node {
        name: "progress",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "what is being done, in one line",
        body: Body::Value(|i| line(&i.info.progress)),
    },
    Node {
        name: "recipe",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "of tiny: the number of the recipe that it was made by, and of the present one if that is another",
        body: Body::Value(|i| line(&i.recipe())),
    },
    Node {
        name: "refs",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "how many VMs use it",
        body: Body::Value(|i| line(&i.registry.users_of(&i.info.name).len().to_string())),
    },
    Node {
        name: "size",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "bytes on disk",
        body: Body::Value(|i| line(&i.info.size.to_string())),
    },
    Node {
        name: "source",
        mode: 0o600,
        mtime: ImageOwner::mtime,
        doc: "what it is made from: builtin:tiny, a disk's path, VM or VM@SNAPSHOT",
        body: Body::WritableValue(ImageOwner::source, ImageOwner::set_source),
    },
    Node {
        name: "status",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "one word: absent fetching building ready failed",
        body: Body::Value(|i| line(&i.info.status.to_string())),
    },
    Node {
        name: "wait",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "blocks while it is being made or warmed, then the status",
        body: Body::Stream(|i, _| Ok(i.open_wait())),
    },
    Node {
        name: "warm",
        mode: 0o444,
        mtime: ImageOwner::mtime,
        doc: "whether new VMs resume from a machine captured in it: `no`, `yes: …`, `warming: …`, `failed: …`",
        body: Body::Value(|i| line(&i.info.warm.to_string())),
    },
];

/// An image as its rows see it.
#[derive(Clone)]
struct ImageOwner {
    registry: Arc<Registry>,
    info: ImageInfo,
}

impl ImageOwner {
    fn resolve(scope: &Scope, number: u64) -> Result<Self, TreeError> {
        let registry = Arc::clone(&scope.host.registry);
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
        let done = registry.set_image_source(self.info.name.clone(), text.to_owned());
        done.map(|done| done.map_err(TreeError::from)).boxed()
    }

    fn open_wait(&self) -> Arc<dyn Stream> {
        Arc::new(Notice::image(&self.registry.backends().images, &self.info.name))
    }

    fn carry_out(&self, text: &str) -> BoxFuture<'static, VerbOutcome> {
        let commands = Commands::parse(IMAGE_VERBS, text);
        let (registry, name) = (Arc::clone(&self.registry), self.info.name.clone());
        commands.carry_out(|good| registry.command_image_all(name, good))
    }
}

impl NodeOwner for ImageOwner {
    fn vm(&self) -> Option<&Vm> {
        None
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(self.registry.admit_image_removal(&self.info.name)?)
    }
}

fn named(image: &str) -> Named {
    Named { within: IMAGES.id, object: 0, name: image.to_owned() }
}

/// Images, in `.images`.
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
        Answer::later(made.map(move |made| made.map(|()| id).map_err(TreeError::from)))
    }

    fn link(&self, name: &str, target: &str) -> Answer<NodeId> {
        if !is_object_name(name) {
            return Answer::Now(Err(TreeError::BadName(name.to_owned())));
        }
        let made = Arc::clone(&self.registry).link_image(name.to_owned(), target.to_owned());
        Answer::later(made.map(|made| made.map(aliases::id).map_err(TreeError::from)))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.alias(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        if !is_object_name(to) {
            return Answer::Now(Err(TreeError::BadName(to.to_owned())));
        }
        let done = Arc::clone(&self.registry).rename_alias(from.to_owned(), to.to_owned());
        Answer::later(done.map(|done| done.map_err(TreeError::from)))
    }

    fn unlink(&self, name: &str) -> Option<Answer<()>> {
        self.alias(name)?;
        let removed = Arc::clone(&self.registry).unlink_image(name.to_owned());
        Some(Answer::later(removed.map(|done| done.map_err(TreeError::from))))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        if self.alias(name).is_some() {
            return Answer::Now(Err(TreeError::NotADirectory));
        }
        let removed = Arc::clone(&self.registry).remove_image(name.to_owned());
        Answer::later(removed.map(|done| done.map_err(TreeError::from)))
    }

    fn count(&self) -> usize {
        self.registry.backends().images.list().len()
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |name: String| {
            let id = self.id(&name);
            Entry { name, id, kind: Kind::Directory }
        };
        let alias = |(name, alias): (String, Alias)| Entry {
            name,
            id: aliases::id(alias.id),
            kind: Kind::Link,
        };
        let images = self.registry.backends().images.list().into_iter().map(|i| entry(i.name));
        images.chain(self.registry.aliases().list().into_iter().map(alias)).collect()
    }
}
