//! The manual page, in the macros of man(7), which groff and mandoc both read.

use std::fmt::Write;

use super::word::{self, Caller, Flag, Named, Word};
use super::words;

/// Columns of a source line; mandoc complains of more than 80.
const WIDTH: usize = 76;

/// What `man` prints.
pub(crate) fn page() -> String {
    let title = words::PROGRAM.to_uppercase();
    let (date, version) = (words::DATE, env!("CARGO_PKG_VERSION"));
    let mut page = Page(format!(".TH {title} 1 {date} \"berth {version}\" \"containerd shims\"\n"));
    page.section("NAME");
    page.line(&format!("{} \\- {}", plain(words::PROGRAM), plain(words::SUMMARY)));
    page.section("SYNOPSIS");
    page.synopses();
    page.section("DESCRIPTION");
    page.description();
    page.section("COMMANDS");
    word::about("").for_each(|word| page.command(word));
    page.section("OPTIONS");
    words::FLAGS.iter().for_each(|flag| page.flag(flag));
    page.list("ENVIRONMENT", words::VARIABLES);
    page.list("FILES", words::FILES);
    page.list("EXIT STATUS", words::EXITS);
    page.section("EXAMPLES");
    for example in word::about("").flat_map(|word| word.examples) {
        let line = format!("{} {}", words::PROGRAM, example.line);
        page.item(&bold(&line), &[example.says]);
    }
    page.section("SEE ALSO");
    page.see_also();
    page.0
}

/// A page as far as it is written.
struct Page(String);

impl Page {
    /// One line of source, which must be no request where it begins with what could be one.
    fn line(&mut self, line: &str) {
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        let _ = writeln!(self.0, "{guard}{line}"); // a String takes all
    }

    fn request(&mut self, request: &str) {
        let _ = writeln!(self.0, "{request}");
    }

    fn section(&mut self, title: &str) {
        self.request(&format!(".SH {title}"));
    }

    /// Every command with what belongs to it; none is broken between flag and value.
    fn synopses(&mut self) {
        for (number, word) in word::about("").enumerate() {
            if number > 0 {
                self.request(".br");
            }
            let before = if word.caller == Caller::Containerd { "[flags] " } else { "" };
            let usage = format!("{before}{}", word::usage(word));
            self.line(&format!("{} {}", bold(words::PROGRAM), marked(&usage)));
        }
    }

    fn description(&mut self) {
        for (number, paragraph) in words::ABOUT.iter().enumerate() {
            if number > 0 {
                self.request(".PP");
            }
            self.prose(paragraph);
            if number == 0 {
                [".PP", ".in +4n", ".nf"].iter().for_each(|one| self.request(one));
                self.line(&bold(words::FIRST_USE));
                [".fi", ".in"].iter().for_each(|one| self.request(one));
            }
        }
    }

    fn command(&mut self, word: &Word) {
        let summary = format!("{}.", capital(word.summary));
        let texts: Vec<&str> = [&*summary].into_iter().chain(word.about.iter().copied()).collect();
        self.item(&marked(&word::usage(word)), &texts);
        if !word.flags.is_empty() {
            self.request(".RS");
            word.flags.iter().for_each(|flag| self.flag(flag));
            self.request(".RE");
        }
    }

    fn flag(&mut self, flag: &Flag) {
        let short = flag.short.map(|short| format!("{}, ", bold(&format!("-{short}"))));
        let name = short.unwrap_or_default() + &marked(&word::synopsis(flag));
        self.item(&name, &[&format!("{}.", capital(flag.help))]);
    }

    fn list(&mut self, title: &str, all: &[Named]) {
        self.section(title);
        for (name, says) in all {
            self.item(&bold(name), &[&format!("{}.", capital(says))]);
        }
    }

    /// A name, and below it what there is to say.
    fn item(&mut self, name: &str, paragraphs: &[&str]) {
        self.request(".TP");
        self.line(name);
        for (number, paragraph) in paragraphs.iter().enumerate() {
            if number > 0 {
                self.request(".IP");
            }
            self.prose(paragraph);
        }
    }

    fn see_also(&mut self) {
        let last = words::SEE_ALSO.len() - 1;
        for (number, (name, section)) in words::SEE_ALSO.iter().enumerate() {
            let comma = if number < last { "," } else { "" };
            self.line(&format!("{}({section}){comma}", bold(name)));
        }
        self.request(".PP");
        self.prose(words::ELSEWHERE);
    }

    /// Whole words, each sentence on lines of its own.
    fn prose(&mut self, text: &str) {
        let mut line = String::new();
        for word in quoted(text).split_whitespace() {
            if !line.is_empty() {
                if line.len() + word.len() > WIDTH || line.ends_with(['.', ':']) {
                    self.line(&std::mem::take(&mut line));
                } else {
                    line.push(' ');
                }
            }
            line += word;
        }
        self.line(&line);
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().filter(|first| *first != '`');
    first.map_or_else(
        || text.to_owned(),
        |first| format!("{}{}", first.to_ascii_uppercase(), letters.as_str()),
    )
}

/// Prose, in which what is in backquotes is bold.
fn quoted(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.map(|(number, part)| if number % 2 == 1 { bold(part) } else { prose(part) }).collect()
}

/// Letters of prose: a dash may be a hyphen.
fn prose(text: &str) -> String {
    plain(text).replace("\\-", "-")
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", plain(text))
}

/// Letters that are to be seen, and copied, as they are.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        match letter {
            '\\' => shown += "\\e",
            '-' => shown += "\\-",
            '\'' => shown += "\\(aq",
            '^' => shown += "\\(ha",
            '~' => shown += "\\(ti",
            '`' => shown += "\\(ga",
            letter => shown.push(letter),
        }
    }
    shown
}

/// A synopsis: what is typed as it stands is bold, what stands for something is italic.
fn marked(usage: &str) -> String {
    let mut text = String::new();
    for part in usage.split_inclusive(|letter: char| " []|".contains(letter)) {
        let (word, end) = part.split_at(part.trim_end_matches([' ', '[', ']', '|']).len());
        let variable = word.chars().any(|letter| letter.is_ascii_uppercase());
        text += &match (word.trim_matches('.').is_empty(), variable) {
            (true, _) => plain(word),
            (false, true) => format!("\\fI{}\\fR", plain(word)),
            (false, false) => bold(word),
        };
        text += end;
    }
    text
}
