//! What `-help` prints.

use std::fmt::Write;

use super::word::{self, Caller, Flag, Word};
use super::words;

/// Columns of a line.
const WIDTH: usize = 100;
/// Where texts begin.
const INDENT: usize = 12;

/// About the program, or the commands whose name begins with `topic`.
pub(crate) fn text(topic: Option<&str>) -> String {
    topic.map_or_else(program, |topic| {
        word::about(topic).map(command).collect::<Vec<_>>().join("\n")
    })
}

fn program() -> String {
    let all: Vec<_> = word::about("").collect();
    let names: Vec<_> =
        all.iter().map(|word| word.name.split(' ').next().unwrap_or_default()).collect();
    let mut names = names;
    names.dedup();
    let mut text = format!("usage: {} [flags] [{}]\n\n", words::PROGRAM, names.join(" | "));
    let mut paragraphs = words::ABOUT.iter();
    for paragraph in paragraphs.by_ref().take(1) {
        paragraph_to(&mut text, 0, paragraph);
    }
    let _ = writeln!(text, "  {}", words::FIRST_USE); // a String takes all
    for paragraph in paragraphs {
        paragraph_to(&mut text, 0, paragraph);
    }
    for (title, caller) in
        [("commands", Caller::People), ("containerd's commands", Caller::Containerd)]
    {
        let _ = writeln!(text, "\n{title}");
        for word in all.iter().filter(|word| word.caller == caller) {
            item(&mut text, &word::usage(word), word.summary);
        }
    }
    text += "\nflags\n";
    words::FLAGS.iter().for_each(|flag| flag_to(&mut text, flag));
    text += "\nenvironment\n";
    words::VARIABLES.iter().for_each(|(name, help)| item(&mut text, name, help));
    text
}

fn command(word: &'static Word) -> String {
    let before = if word.caller == Caller::Containerd { "[flags] " } else { "" };
    let mut text = format!("usage: {} {before}{}\n\n", words::PROGRAM, word::usage(word));
    paragraph_to(&mut text, 0, word.summary);
    for paragraph in word.about {
        text.push('\n');
        paragraph_to(&mut text, 0, paragraph);
    }
    if !word.flags.is_empty() {
        text += "\nflags\n";
        word.flags.iter().for_each(|flag| flag_to(&mut text, flag));
    }
    if !word.examples.is_empty() {
        text += "\nexamples\n";
        for example in word.examples {
            item(&mut text, &format!("{} {}", words::PROGRAM, example.line), example.says);
        }
    }
    text
}

fn flag_to(text: &mut String, flag: &Flag) {
    let short = flag.short.map(|short| format!("-{short}, ")).unwrap_or_default();
    item(text, &format!("{short}{}", word::synopsis(flag)), flag.help);
}

/// A name, and what there is to say of it: beside it where it is short.
fn item(text: &mut String, name: &str, says: &str) {
    let start = text.len();
    let _ = write!(text, "  {name}");
    if text.len() - start + 2 > INDENT {
        text.push('\n');
    } else {
        let _ = write!(text, "{:1$}", "", INDENT - (text.len() - start));
        let mut below = String::new();
        paragraph_to(&mut below, INDENT, says);
        *text += below.trim_start();
        return;
    }
    paragraph_to(text, INDENT, says);
}

/// Lines of whole words, as long as may be, each after `indent` blanks.
fn paragraph_to(text: &mut String, indent: usize, paragraph: &str) {
    let mut room = 0;
    for (number, word) in paragraph.split_whitespace().enumerate() {
        if number > 0 && word.len() < room {
            text.push(' ');
            room -= 1;
        } else {
            if number > 0 {
                text.push('\n');
            }
            let _ = write!(text, "{:indent$}", "");
            room = WIDTH - indent;
        }
        *text += word;
        room = room.saturating_sub(word.len());
    }
    text.push('\n');
}
