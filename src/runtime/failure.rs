//! A command that failed: what the runtime says of it, and what that means. The only place where a
//! runtime's text is matched.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use crate::error::Error;
use crate::ids::ContainerId;

/// What is read of a log, from its end, where the reason is; a runtime that fills its log cannot fill our
/// memory.
const LOG_LIMIT: u64 = 1024 * 1024;
/// What is told of a runtime's words, in bytes: their beginning and their end.
const TOLD: usize = 4096;

/// One record of the runtime's log, written with `--log-format json`.
#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The runtime's own words: the last error in its log, else what it printed; no more of them than a
/// person reads, and nothing that a terminal would obey.
pub(super) fn message(log: &Path, output: &str) -> String {
    let logged = end_of(log).ok().and_then(|log| last_error(BufReader::new(log)));
    // It logs to its standard error where the bundle takes no file.
    let logged = logged.or_else(|| last_error(output.as_bytes()));
    let words = readable(logged.as_deref().unwrap_or(output));
    if words.is_empty() { "it gave no reason".into() } else { words }
}

fn end_of(log: &Path) -> io::Result<impl Read> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT)))?;
    Ok(file.take(LOG_LIMIT))
}

fn readable(words: &str) -> String {
    let is_text = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    let words: String = words.chars().filter(is_text).collect();
    let words = words.trim();
    if words.len() <= TOLD {
        return words.to_owned();
    }
    let (mut head, mut tail) = (TOLD / 2, words.len() - TOLD / 2);
    while !words.is_char_boundary(head) {
        head -= 1;
    }
    while !words.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} […] {}", &words[..head], &words[tail..])
}

fn last_error(log: impl BufRead) -> Option<String> {
    log.split(b'\n')
        .map_while(Result::ok)
        .flat_map(|line| records(&line))
        .filter(|record| matches!(record.level.as_str(), "error" | "fatal" | "panic"))
        .map(|record| record.msg.trim().to_owned())
        .filter(|message| !message.is_empty())
        .last()
}

/// The records of a line up to the first that is none; runsc puts all its records on one.
fn records(line: &[u8]) -> Vec<Record> {
    serde_json::Deserializer::from_slice(line).into_iter().map_while(Result::ok).collect()
}

/// Turns a failed command into what containerd's clients act on.
pub(super) fn error(
    runtime: String,
    command: &'static str,
    status: u32,
    message: String,
    id: Option<&ContainerId>,
) -> Error {
    if let Some(id) = id.filter(|_| command == "kill" && is_finished(&message)) {
        return Error::Finished { id: id.to_string() };
    }
    let status = match status.checked_sub(128) {
        Some(signal @ 1..=64) => format!("signal {signal}"),
        _ => format!("exit status {status}"),
    };
    Error::Runtime { runtime, command, status, message }
}

/// Whether a runtime says that there is nothing (left) to signal: runc 1.0 to 1.4, crun 1.x, youki,
/// runsc.
fn is_finished(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "process already finished",
        "container not running",
        "no such process",
        "container is not running",
        "cannot be killed because it is",
        "sandbox is not running",
    ]
    .iter()
    .any(|text| message.contains(text))
        || is_unknown(&message)
}

/// Whether a runtime says that it has no such command: crun and youki without CRIU, runc built
/// without it.
pub(super) fn has_no_command(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "unknown command",
        "unrecognized subcommand",
        "no help topic",
        "not supported",
        "not implemented",
    ]
    .iter()
    .any(|text| message.contains(text))
}

/// Whether a runtime found no criu program: runc.
pub(super) fn lacks_criu(message: &str) -> bool {
    message.contains("\"criu\": executable file not found")
}

fn is_unknown(message: &str) -> bool {
    message.contains("does not exist") || message.contains("no such container")
}

/// Whether a runtime that was to delete a container says that it knows no such container.
pub(crate) fn is_deleted(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    // crun names the directory or file of its state.
    let crun = message.starts_with("cannot open directory")
        || (message.starts_with("error opening file") && message.contains("/status`"));
    is_unknown(&message) || (crun && message.contains("no such file or directory"))
}

/// A log and an output as `data` has them, and what they are taken for.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = last_error(data).unwrap_or_else(|| String::from_utf8_lossy(data).into());
    let id = ContainerId::new("id").ok();
    for (command, status) in [("kill", 1), ("create", 137)] {
        let _ = error("runc".into(), command, status, text.clone(), id.as_ref()).to_string();
    }
    let _ = is_deleted(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_counts() {
        let cases = [
            (
                "runc",
                "{\"level\":\"error\",\"msg\":\"runc create failed: x\",\"time\":\"t\"}\n",
                Some("runc create failed: x"),
            ),
            (
                "warnings and two errors",
                "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n{\"level\":\"warning\",\"msg\":\"c\"}\n",
                Some("b"),
            ),
            (
                "crun",
                "{\"msg\": \"cannot open `x`: No such file or directory\", \"level\": \"error\", \"time\": \"2026\"}",
                Some("cannot open `x`: No such file or directory"),
            ),
            (
                "runsc",
                "{\"msg\":\"a\",\"level\":\"error\",\"time\":\"t\"}{\"msg\":\"b\",\"level\":\"error\",\"time\":\"t\"}",
                Some("b"),
            ),
            ("garbage", "\u{0}\u{1}garbage\n{\"level\":\"er", None),
            ("only information", "{\"level\":\"info\",\"msg\":\"a\"}\n", None),
            ("empty", "", None),
        ];
        for (name, log, expected) in cases {
            assert_eq!(last_error(log.as_bytes()).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn words_are_readable_and_not_too_many() {
        let long = format!("{}äö{}", "a".repeat(TOLD), "z".repeat(TOLD));
        let cut = format!("{} […] {}", "a".repeat(TOLD / 2), "z".repeat(TOLD / 2));
        let wide = "ä".repeat(TOLD);
        let narrower = format!("{0} […] {0}", "ä".repeat(TOLD / 4));
        let shifted = format!("x{wide}");
        let cases = [
            ("plain", "runc create failed: x", "runc create failed: x"),
            ("two lines", " panic: x\n\tgoroutine 1\r\n", "panic: x\n\tgoroutine 1"),
            ("colours and a bell", "\u{1b}[31mred\u{7}", "[31mred"),
            ("zeros", "\0\0\0", ""),
            ("long", &long, &cut),
            ("of two bytes each", &wide, &narrower),
        ];
        for (name, words, expected) in cases {
            assert_eq!(readable(words), expected, "{name}");
        }
        assert!(readable(&shifted).len() <= TOLD + " […] ".len());
    }

    #[test]
    fn the_end_of_a_full_log_counts() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let warning = "{\"level\":\"warning\",\"msg\":\"w\"}\n";
        let text = warning.repeat(LOG_LIMIT as usize / 20) + "{\"level\":\"error\",\"msg\":\"e\"}";
        io::Write::write_all(&mut log, text.as_bytes()).unwrap();
        assert_eq!(message(log.path(), "output"), "e");
        assert_eq!(message(Path::new("/no/log"), "output"), "output");
        assert_eq!(message(Path::new("/no/log"), ""), "it gave no reason");
    }

    #[test]
    fn a_kill_that_comes_too_late_is_told_from_one_that_fails() {
        let id = ContainerId::new("c").unwrap();
        let cases = [
            ("runc 1.1", "container not running", true),
            ("go", "os: process already finished", true),
            ("crun", "kill container: No such process", true),
            ("gone", "container does not exist", true),
            ("runsc", "sandbox is not running", true),
            (
                "crun, gone",
                "error opening file `/run/crun/c/status`: No such file or directory",
                false,
            ),
            ("other", "invalid signal", false),
        ];
        for (name, message, finished) in cases {
            let error = error("r".into(), "kill", 1, message.into(), Some(&id));
            assert_eq!(matches!(error, Error::Finished { .. }), finished, "{name}");
        }
    }

    #[test]
    fn a_status_beyond_the_signals_is_an_exit_status() {
        let cases = [
            (1, "exit status 1"),
            (128, "exit status 128"),
            (137, "signal 9"),
            (192, "signal 64"),
            (193, "exit status 193"),
            (255, "exit status 255"),
        ];
        for (status, expected) in cases {
            let error = error("r".into(), "exec", status, "words".into(), None);
            assert!(error.to_string().contains(&format!("({expected})")), "{status}: {error}");
        }
    }

    #[test]
    fn nothing_to_delete_is_told_from_a_failure() {
        let cases = [
            ("runc", "container does not exist", true),
            ("crun 1.8", "cannot open directory '/run/x/c': No such file or directory", true),
            ("crun", "error opening file `/run/x/c/status`: No such file or directory", true),
            ("runsc", "loading container \"c\": file does not exist", true),
            ("crun, denied", "cannot open directory '/run/x/c': Permission denied", false),
            ("another file", "error opening file `/etc/x`: No such file or directory", false),
            ("runs", "cannot delete container c that is not stopped: running", false),
        ];
        for (name, message, deleted) in cases {
            assert_eq!(is_deleted(message), deleted, "{name}");
        }
    }
}
