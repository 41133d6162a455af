//! What the definition of the command line consists of, and how it is looked up.

use super::words::{Verb, WORDS};

/// A command: one word, or two where the first has several.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) verb: Verb,
    pub(super) name: &'static str,
    pub(super) caller: Caller,
    /// What has to follow, once.
    pub(super) operand: Option<Value>,
    pub(super) flags: &'static [Flag],
    /// How many of the flags have to be there.
    pub(super) need: Need,
    /// In a line.
    pub(super) summary: &'static str,
    /// All there is to say; a paragraph each.
    pub(super) about: &'static [&'static str],
    pub(super) examples: &'static [Example],
}

/// Whose a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// containerd's: flags stand before the command, and those that are not known are passed over.
    Containerd,
    /// An administrator's: flags stand behind the command, and what is not known is an error.
    People,
    /// berth's own; no user's business.
    Berth,
}

/// How many flags a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Any,
    /// Exactly one of them.
    One,
}

/// A flag, with one dash or two.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// Another name.
    pub(super) short: Option<&'static str>,
    /// `None` for a switch.
    pub(super) value: Option<Value>,
    /// May be there several times.
    pub(super) many: bool,
    pub(super) help: &'static str,
}

impl Flag {
    pub(super) const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, short: None, value: None, many: false, help }
    }

    pub(super) const fn with(name: &'static str, value: Value, help: &'static str) -> Self {
        Self { name, short: None, value: Some(value), many: false, help }
    }

    pub(super) const fn or(mut self, short: &'static str) -> Self {
        self.short = Some(short);
        self
    }

    pub(super) const fn many(mut self) -> Self {
        self.many = true;
        self
    }
}

/// What stands behind a flag or a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    /// As it is called in a synopsis.
    pub(super) shown: &'static str,
    pub(super) kind: Kind,
}

/// What a value can be, for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    File,
    Directory,
    /// Of a pod or container that runs.
    Id,
    /// `KEY=VALUE`
    Annotation,
    /// One of these words.
    Word(&'static [Named]),
}

/// A command line without the program's name, and what it is good for.
#[derive(Debug)]
pub(super) struct Example {
    pub(super) line: &'static str,
    pub(super) says: &'static str,
}

/// Something with a name: a variable, a file, an exit status.
pub(crate) type Named = (&'static str, &'static str);

/// The command that these words begin with, and how many words its name has.
pub(super) fn find<'a>(first: &[u8], second: impl FnOnce() -> Option<&'a [u8]>) -> Found {
    if let Some(word) = WORDS.iter().find(|word| word.name.as_bytes() == first) {
        return Found::Word(word);
    }
    let Some(group) = WORDS.iter().find_map(|word| group(word, first)) else {
        return Found::Nothing;
    };
    let second = second().unwrap_or_default();
    let mut words = WORDS.iter().filter(|word| self::group(word, first).is_some());
    match words.find(|word| word.name.as_bytes()[group.len() + 1..] == *second) {
        Some(word) => Found::Word(word),
        None => Found::Group(group),
    }
}

/// What a word names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    Word(&'static Word),
    /// The first of two words, without a second one that fits.
    Group(&'static str),
    Nothing,
}

/// The first word of a command that has two, if it is `first`.
fn group(word: &Word, first: &[u8]) -> Option<&'static str> {
    word.name.split_once(' ').map(|(group, _)| group).filter(|group| group.as_bytes() == first)
}

/// Whether a command begins with this word.
pub(super) fn begins(word: &[u8]) -> bool {
    WORDS.iter().any(|one| one.name.as_bytes() == word || group(one, word).is_some())
}

/// The flag that has this name.
pub(super) fn flag(flags: &'static [Flag], name: &str) -> Option<&'static Flag> {
    flags.iter().find(|flag| flag.name == name || flag.short == Some(name))
}

/// The commands whose name begins with `topic`'s words; those of people and containerd.
pub(super) fn about(topic: &str) -> impl Iterator<Item = &'static Word> {
    let topic = topic.to_owned();
    let shown = WORDS.iter().filter(|word| word.caller != Caller::Berth);
    shown.filter(move |word| {
        let rest = word.name.strip_prefix(&*topic);
        rest.is_some_and(|rest| topic.is_empty() || rest.is_empty() || rest.starts_with(' '))
    })
}

/// `config show [-origin] [-config FILE] [-annotation KEY=VALUE]...`
pub(super) fn usage(word: &Word) -> String {
    let mut parts = Vec::from([word.name.to_owned()]);
    let flags: Vec<_> = word.flags.iter().map(synopsis).collect();
    match word.need {
        Need::One => parts.push(flags.join(" | ")),
        Need::Any => parts.extend(
            word.flags
                .iter()
                .zip(flags)
                .map(|(flag, shown)| format!("[{shown}]{}", if flag.many { "..." } else { "" })),
        ),
    }
    parts.extend(word.operand.map(|value| value.shown.to_owned()));
    parts.join(" ")
}

/// `-config FILE`
pub(super) fn synopsis(flag: &Flag) -> String {
    let value = flag.value.map(|value| format!(" {}", value.shown)).unwrap_or_default();
    format!("-{}{value}", flag.name)
}
