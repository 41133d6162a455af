//! TOML texts as trees that remember where each value stands. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A text with configuration and the reason why it counts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Its path, or words for what is not a file.
    pub(crate) name: String,
    /// What chose it.
    pub(crate) via: Via,
}

/// What makes a source count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// The container's annotation chose it among the presets.
    Annotation,
    /// The create option `config_path` names it.
    ConfigPath,
    /// It is the create option `config_body`.
    ConfigBody,
    /// The environment names it.
    Environment,
    /// It lies where the host's file is looked for.
    Default,
    /// It lies in the directory of drop-ins of another file.
    DropIn,
    /// It was named on the command line.
    CommandLine,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation io.containerd.berth.config_path",
            Self::ConfigPath => "create option ConfigPath",
            Self::ConfigBody => "create option ConfigBody",
            Self::Environment => "environment variable BERTH_CONF_FILE",
            Self::Default => "default file",
            Self::DropIn => "drop-in",
            Self::CommandLine => "command line",
        })
    }
}

/// Where a key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    source: Rc<Source>,
    /// The first line is 1; 0 stands for the text as a whole.
    line: usize,
}

/// `FILE:LINE (what chose it)`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, line } = self;
        match line {
            0 => write!(f, "{} ({})", source.name, source.via),
            line => write!(f, "{}:{line} ({})", source.name, source.via),
        }
    }
}

/// A table's keys in their alphabetical order.
pub(super) type Table = BTreeMap<String, Node>;

/// What a key stands for.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The key as it is written.
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Table(Table),
    /// Anything else, to be read as the type that the key has.
    Leaf(toml::Value),
}

/// Nobody reads more faults than these.
pub(super) const MOST_FAULTS: usize = 1000;

/// Reads one text.
///
/// # Errors
/// A sentence for each fault, with file and line.
pub(super) fn parse(text: &[u8], source: &Rc<Source>) -> Result<Table, Vec<String>> {
    let lines = Lines::of(text, source);
    let text = std::str::from_utf8(text)
        .map_err(|error| vec![format!("{}: not UTF-8", lines.place(error.valid_up_to()))])?;
    let (table, mut errors) = DeTable::parse_recoverable(text);
    // What stands behind a fault may have been misread.
    if errors.is_empty() {
        let table = table_of(table.into_inner(), &lines, &mut errors);
        if errors.is_empty() {
            return Ok(table);
        }
    }
    let say = |error: &toml::de::Error| {
        let place = error.span().map_or_else(|| lines.whole(), |span| lines.place(span.start));
        format!("{place}: {}", legible(error.message()))
    };
    Err(errors.iter().take(MOST_FAULTS).map(say).collect())
}

/// A text for people, on one line and of a bearable length; it may be quoted from anywhere.
pub(super) fn legible(text: &str) -> String {
    const LONGEST: usize = 300;
    let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut legible: String = text.chars().take(LONGEST).map(clean).collect();
    if legible.len() < text.len() {
        legible.push('…');
    }
    legible
}

/// Where the lines of a text begin.
struct Lines<'a> {
    source: &'a Rc<Source>,
    ends: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &[u8], source: &'a Rc<Source>) -> Self {
        let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        Self { source, ends: ends.map(|(at, _)| at).collect() }
    }

    /// The line that the byte at `offset` is in.
    fn place(&self, offset: usize) -> Place {
        let line = 1 + self.ends.partition_point(|end| *end < offset);
        Place { source: self.source.clone(), line }
    }

    fn whole(&self) -> Place {
        Place { source: self.source.clone(), line: 0 }
    }
}

fn table_of(table: DeTable<'_>, lines: &Lines<'_>, errors: &mut Vec<toml::de::Error>) -> Table {
    let mut nodes = Table::new();
    for (key, value) in table {
        let place = lines.place(key.span().start);
        let span = value.span();
        let value = match value.into_inner() {
            DeValue::Table(table) => Value::Table(table_of(table, lines, errors)),
            leaf => {
                let leaf = Spanned::new(span, leaf);
                match toml::Value::deserialize(leaf.into_deserializer()) {
                    Ok(leaf) => Value::Leaf(leaf),
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                }
            }
        };
        let name = key.into_inner().into_owned();
        nodes.insert(name.clone(), Node { name, place, value });
    }
    nodes
}

/// Puts the keys of `over` in the place of those of `table`; tables merge key by key.
pub(super) fn merge(table: &mut Table, over: Table) {
    for (key, node) in over {
        let Node { name, place, value } = node;
        match (table.get_mut(&key).map(|node| &mut node.value), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(table.insert(key, Node { name, place, value })),
        }
    }
}
