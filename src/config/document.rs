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
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Table(Table),
    /// Anything else, to be read as the type that the key has.
    Leaf(toml::Value),
}

/// Reads one text.
///
/// # Errors
/// A sentence for each fault, with file and line.
pub(super) fn parse(text: &[u8], source: &Rc<Source>) -> Result<Table, Vec<String>> {
    let place = |line| Place { source: source.clone(), line };
    let text = std::str::from_utf8(text)
        .map_err(|error| vec![format!("{}: not UTF-8", place(line(text, error.valid_up_to())))])?;
    let place_of = |offset| place(line(text.as_bytes(), offset));
    let say = |error: &toml::de::Error| {
        let place = error.span().map_or_else(|| place(0), |span| place_of(span.start));
        format!("{place}: {}", error.message().replace('\n', ", "))
    };
    let (table, mut errors) = DeTable::parse_recoverable(text);
    // What stands behind a fault may have been misread.
    if errors.is_empty() {
        let table = table_of(table.into_inner(), &place_of, &mut errors);
        if errors.is_empty() {
            return Ok(table);
        }
    }
    Err(errors.iter().map(say).collect())
}

/// The line that the byte at `offset` is in.
fn line(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn table_of(
    table: DeTable<'_>,
    place_of: &dyn Fn(usize) -> Place,
    errors: &mut Vec<toml::de::Error>,
) -> Table {
    let mut nodes = Table::new();
    for (key, value) in table {
        let place = place_of(key.span().start);
        let span = value.span();
        let value = match value.into_inner() {
            DeValue::Table(table) => Value::Table(table_of(table, place_of, errors)),
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
        nodes.insert(key.into_inner().into_owned(), Node { place, value });
    }
    nodes
}

/// Puts the keys of `over` in the place of those of `table`; tables merge key by key.
pub(super) fn merge(table: &mut Table, over: Table) {
    for (key, node) in over {
        match (table.get_mut(&key).map(|node| &mut node.value), node.value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(table.insert(key, Node { place: node.place, value })),
        }
    }
}
