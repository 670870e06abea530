//! YAML as far as settings are checked and seeds are put together: a tree of plain text.
//!
//! Aliases are not followed, so that a small text cannot become a large tree. Values are not
//! interpreted: which words are numbers or truth depends on who reads them.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScanError, Span};

/// How deep a text may be nested. Configurations of guests have five levels or so.
const DEEPEST: usize = 64;

/// A node of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Yaml {
    /// A word or a text; for an alias nothing.
    Scalar(String),
    /// A list.
    List(Vec<Self>),
    /// Keys and values, in their order.
    Map(Vec<(Self, Self)>),
}

/// Where a text is not YAML, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The parser's words.
    pub reason: String,
}

impl Yaml {
    /// Reads a text and returns its first document; `None` if that is empty.
    ///
    /// # Errors
    /// Any of its documents is not YAML.
    pub fn parse(text: &str) -> Result<Option<Self>, YamlError> {
        let mut events = Parser::new_from_str(text);
        let mut first = None;
        while let Some(event) = events.next() {
            let (event, span) = event.map_err(|e| YamlError::of(&e))?;
            if let Some(node) = node((event, span), &mut events, 0)? {
                first.get_or_insert(node);
            }
        }
        Ok(first.filter(|node| *node != Self::Scalar(String::new())))
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        let is_it = |name: &Self| matches!(name, Self::Scalar(name) if name == key);
        entries.iter().find(|(name, _)| is_it(name)).map(|(_, value)| value)
    }

    /// Returns the text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar(text) => Some(text),
            Self::List(_) | Self::Map(_) => None,
        }
    }
}

impl YamlError {
    fn of(error: &ScanError) -> Self {
        Self { line: error.marker().line(), reason: error.info().to_owned() }
    }
}

/// Reads the node that begins with an event; `None` for an event that begins none.
fn node<'t>(
    (event, span): (Event<'t>, Span),
    events: &mut impl Iterator<Item = Result<(Event<'t>, Span), ScanError>>,
    depth: usize,
) -> Result<Option<Yaml>, YamlError> {
    if depth > DEEPEST {
        let reason = format!("it is nested deeper than {DEEPEST} levels");
        return Err(YamlError { line: span.start.line(), reason });
    }
    Ok(match event {
        Event::Scalar(text, ..) => Some(Yaml::Scalar(Cow::into_owned(text))),
        Event::Alias(_) => Some(Yaml::Scalar(String::new())),
        Event::SequenceStart(..) => Some(Yaml::List(children(events, depth)?)),
        Event::MappingStart(..) => {
            let mut nodes = children(events, depth)?.into_iter();
            let pair = || Some((nodes.next()?, nodes.next()?));
            Some(Yaml::Map(std::iter::from_fn(pair).collect()))
        }
        Event::Nothing
        | Event::StreamStart
        | Event::StreamEnd
        | Event::DocumentStart(_)
        | Event::DocumentEnd
        | Event::SequenceEnd
        | Event::MappingEnd => None,
    })
}

fn children<'t>(
    events: &mut impl Iterator<Item = Result<(Event<'t>, Span), ScanError>>,
    depth: usize,
) -> Result<Vec<Yaml>, YamlError> {
    let mut nodes = Vec::new();
    while let Some(event) = events.next() {
        let event = event.map_err(|e| YamlError::of(&e))?;
        match node(event, events, depth + 1)? {
            Some(child) => nodes.push(child),
            None => break,
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_a_tree() {
        let text = "#cloud-config\na: {b: [1, '2']}\nc: |\n  x\n  y\nd: &n yes\ne: *n\n";
        let yaml = Yaml::parse(text).unwrap().unwrap();
        let list = yaml.get("a").and_then(|a| a.get("b")).unwrap();
        let scalar = |text: &str| Yaml::Scalar(text.to_owned());
        assert_eq!(list, &Yaml::List(vec![scalar("1"), scalar("2")]));
        assert_eq!(yaml.get("c").unwrap().text(), Some("x\ny\n"));
        assert_eq!(yaml.get("e").unwrap().text(), Some(""));
        assert_eq!((yaml.get("x"), Yaml::parse("#cloud-config\n").unwrap()), (None, None));
    }

    #[test]
    fn an_error_has_its_line() {
        let error = Yaml::parse("#cloud-config\na: 1\n b: [2\n").unwrap_err();
        assert!((3..=4).contains(&error.line), "{error:?}");
        // Neither deep nesting nor aliases of aliases take the stack or memory.
        let deep = Yaml::parse(&"[".repeat(60_000)).unwrap_err();
        assert!(deep.reason.contains("nested") || deep.reason.contains("recursion"), "{deep:?}");
        let mut laughs = String::from("a0: &a0 [x, x]\n");
        for level in 1..200 {
            let below = level - 1;
            laughs.push_str(&format!("a{level}: &a{level} [*a{below}, *a{below}]\n"));
        }
        Yaml::parse(&laughs).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}:,\"'#&*!|> \\n\\ta-c-]{0,60}") {
            let _any = Yaml::parse(&text);
        }
    }
}
