//! What the word at the cursor may become; the scripts of completions.rs show it.

use std::ffi::{OsStr, OsString};

use super::split;
use super::word::{self, Flag, Found, Kind, Need, Value, Word};
use super::words::{FLAGS, HELP};

/// What is looked up for a value; see [`Kind`].
type Look<'a> = &'a dyn Fn(Kind) -> Offers;

/// What may stand in the place of the last of `typed`, the arguments up to the cursor: `files`, `directories`
/// or `words` on the first line, then each word with its meaning behind a tab. `look` knows what there
/// is on this host.
pub(crate) fn text(typed: &[OsString], look: Look<'_>) -> String {
    let empty = OsString::new();
    let (current, before) = typed.split_last().unwrap_or((&empty, &[]));
    let current = current.to_string_lossy();
    let (what, offers) = match place(before) {
        Place::Nowhere => ("words", Vec::new()),
        Place::Value(value) => values(value, "", &current, look),
        Place::Command => match inside(FLAGS, &current) {
            Some((value, head)) => values(value, head, &current, look),
            None if current.starts_with('-') => ("words", flags(FLAGS, &[], Need::Any, &current)),
            None => ("words", commands("")),
        },
        Place::Second(group) => ("words", commands(group)),
        Place::Behind(state) => state.offers(&current, look),
    };
    let mut text = format!("{what}\n");
    for (word, says) in offers {
        // No line of ours has other letters, but a name of a file may.
        if word.starts_with(&*current) && !word.contains(char::is_control) {
            text += &format!("{word}\t{says}\n");
        }
    }
    text
}

/// Words and what they mean.
pub(crate) type Offers = Vec<(String, String)>;

/// Where the cursor is.
enum Place {
    Command,
    /// Behind the first word of commands that have two.
    Second(&'static str),
    Behind(State),
    /// Behind a flag, which takes it.
    Value(Value),
    /// Behind something that is wrong.
    Nowhere,
}

/// What stands behind a command so far.
struct State {
    word: &'static Word,
    given: Vec<&'static str>,
    operand: bool,
}

fn place(before: &[OsString]) -> Place {
    let mut rest = before.iter();
    let first = loop {
        let Some(arg) = rest.next() else { return Place::Command };
        let Some((name, value)) = split(arg) else { break arg };
        let takes = word::flag(FLAGS, name).and_then(|flag| flag.value);
        if let (Some(takes), None) = (takes, value) {
            if rest.next().is_none() {
                return Place::Value(takes);
            }
        }
    };
    let mut second = None;
    let found = word::find(first.as_encoded_bytes(), || {
        second = rest.next();
        second.map(|second| second.as_encoded_bytes())
    });
    match found {
        Found::Word(word) => State { word, given: Vec::new(), operand: false }.follow(rest),
        Found::Group(group) if second.is_none() => Place::Second(group),
        Found::Group(_) | Found::Nothing => Place::Nowhere,
    }
}

impl State {
    fn follow<'a>(mut self, mut rest: impl Iterator<Item = &'a OsString>) -> Place {
        while let Some(arg) = rest.next() {
            let Some((name, value)) = split(arg) else {
                self.operand = true;
                continue;
            };
            let Some(flag) = word::flag(self.word.flags, name) else { continue };
            self.given.push(flag.name);
            if let (Some(takes), None) = (flag.value, value) {
                if rest.next().is_none() {
                    return Place::Value(takes);
                }
            }
        }
        Place::Behind(self)
    }

    fn offers(&self, current: &str, look: Look<'_>) -> (&'static str, Offers) {
        if let Some((value, head)) = inside(self.word.flags, current) {
            return values(value, head, current, look);
        }
        match self.word.operand.filter(|_| !self.operand) {
            Some(value) if !current.starts_with('-') => values(value, "", current, look),
            _ => ("words", flags(self.word.flags, &self.given, self.word.need, current)),
        }
    }
}

/// Within `-flag=value`, the kind of value and what stands before it.
fn inside<'a>(flags: &'static [Flag], current: &'a str) -> Option<(Value, &'a str)> {
    let (name, _) = split(OsStr::new(current)).filter(|(_, value)| value.is_some())?;
    let value = word::flag(flags, name)?.value?;
    Some((value, &current[..=current.find('=')?]))
}

fn commands(group: &str) -> Offers {
    let offers = word::about(group).map(|word| match word.name.split_once(' ') {
        Some((_, second)) if !group.is_empty() => (second.to_owned(), word.summary.to_owned()),
        Some((first, _)) => (first.to_owned(), format!("see {first} -help")),
        None => (word.name.to_owned(), word.summary.to_owned()),
    });
    let mut offers: Offers = offers.collect();
    offers.dedup();
    offers
}

/// The flags that may still be given, with as many dashes as are there.
fn flags(flags: &'static [Flag], given: &[&str], need: Need, current: &str) -> Offers {
    let dashes = if current.starts_with("--") { "--" } else { "-" };
    let full = need == Need::One && !given.is_empty();
    let free = |flag: &&Flag| flag.many || !full && !given.contains(&flag.name);
    let mut offers: Offers = flags.iter().filter(free).map(|flag| named(dashes, flag)).collect();
    if given.is_empty() && current.starts_with('-') && word::flag(flags, HELP).is_none() {
        offers.push((format!("{dashes}{HELP}"), "all about this command".into()));
    }
    offers
}

fn named(dashes: &str, flag: &Flag) -> (String, String) {
    (format!("{dashes}{}", flag.name), flag.help.to_owned())
}

/// What a value may be, each behind `head`.
fn values(value: Value, head: &str, current: &str, look: Look<'_>) -> (&'static str, Offers) {
    let offers = match value.kind {
        Kind::File => return ("files", Vec::new()),
        Kind::Directory => return ("directories", Vec::new()),
        Kind::Text => Vec::new(),
        Kind::Word(words) => {
            words.iter().map(|(word, says)| ((*word).to_owned(), (*says).to_owned())).collect()
        }
        Kind::Id | Kind::Annotation => look(value.kind),
    };
    let mut offers: Offers =
        offers.into_iter().map(|(word, says)| (format!("{head}{word}"), says)).collect();
    if value.kind == Kind::Annotation {
        // First the key, then what it may be.
        let typed = current.len();
        for (word, says) in &mut offers {
            let end = word.get(typed.max(head.len())..).and_then(|rest| rest.find('='));
            if let Some(end) = end {
                word.truncate(typed.max(head.len()) + end + 1);
                says.clear();
            }
        }
        offers.sort();
        offers.dedup();
    }
    ("words", offers)
}
