//! `ps`: the pods of a host, their shims and their containers.

use std::io::IsTerminal;

use serde_json::json;

use super::{Answer, Found, ask_all, pod, with_loop};
use crate::cli::PsFormat;
use crate::container::{Pod, View};
use crate::error::{Error, Result};
use crate::manage::{APART, Figures};
use crate::size::Size;

/// What the table says.
const HEAD: [&str; 9] =
    ["NAMESPACE", "POD", "SHIM", "MEMORY", "UPTIME", "CONTAINER", "STATE", "PID", "EXECS"];
/// The column with the state.
const STATE: usize = 6;
/// Digits of an id that are enough for a person, as `crictl` and `docker` have it.
const SHORT: usize = 13;

/// A pod's shim, and what it says.
struct Row {
    answer: Answer,
    figures: Figures,
    pod: Result<Pod, String>,
    /// Another containerd has one with the same namespace and id.
    has_twin: bool,
}

/// All pods of this host, as a table (coloured on a terminal) or as JSON.
///
/// # Errors
/// [`Error::Io`] for one who may not see the sockets.
pub(crate) fn ps(format: PsFormat) -> Result<String> {
    let mut rows: Vec<_> = with_loop(ask_all("/containers"))?.into_iter().map(Row::new).collect();
    tell_apart(&mut rows);
    match format {
        PsFormat::Json => {
            let rows: Vec<_> = rows.iter().map(Row::json).collect();
            let text = serde_json::to_string_pretty(&rows);
            let text = text.map_err(|error| Error::Sys { action: "encode", source: error.into() });
            Ok(text? + "\n")
        }
        PsFormat::Table => {
            let lines = rows.iter().flat_map(Row::lines).collect::<Vec<_>>();
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            Ok(table(&lines, std::io::stdout().is_terminal() && !plain))
        }
    }
}

/// Finds the pods that have the same names.
fn tell_apart(rows: &mut [Row]) {
    let name = |row: &Row| (row.answer.found.namespace.clone(), row.answer.found.group.clone());
    let names: Vec<_> = rows.iter().map(name).collect();
    for row in rows {
        let own = name(row);
        row.has_twin = names.iter().filter(|other| **other == own).count() > 1;
    }
}

impl Row {
    fn new(answer: Answer) -> Self {
        let figures = answer.pid.map(|pid| Figures::read(&pid.to_string())).unwrap_or_default();
        Self { pod: pod(&answer), answer, figures, has_twin: false }
    }

    fn json(&self) -> serde_json::Value {
        let Found { namespace, group, path, .. } = &self.answer.found;
        let pod = self.pod.as_ref().ok();
        json!({
            "namespace": namespace,
            "id": group,
            "socket": path,
            "shim": {
                "pid": self.answer.pid,
                "version": pod.map(|pod| &pod.version),
                "uptime": pod.map(|pod| pod.uptime),
                "resident": self.figures.resident,
                "private_dirty": self.figures.private_dirty,
                "error": self.pod.as_ref().err(),
            },
            "sandbox": pod.and_then(|pod| pod.sandbox.as_ref()),
            "containers": pod.map(|pod| &pod.containers),
        })
    }

    /// A line for each container, or one for a pod without.
    fn lines(&self) -> Vec<[String; HEAD.len()]> {
        let dash = || "-".to_owned();
        let found = &self.answer.found;
        let memory = self.figures.private_dirty.map_or_else(dash, |bytes| Size(bytes).to_string());
        let uptime = self.pod.as_ref().map_or_else(|_| dash(), |pod| age(pod.uptime));
        let shim = self.answer.pid.map_or_else(dash, |pid| pid.to_string());
        let line = |container: String, state: String, pid: Option<i32>, execs: usize| {
            let pid = pid.map_or_else(dash, |pid| pid.to_string());
            let (mut namespace, mut pod) = (found.namespace.clone(), short(&found.group));
            if namespace.is_empty() {
                namespace = dash();
            }
            if self.has_twin && !found.apart.is_empty() {
                pod = format!("{pod}{APART}{}", found.apart);
            }
            let (memory, uptime, shim) = (memory.clone(), uptime.clone(), shim.clone());
            [namespace, pod, shim, memory, uptime, container, state, pid, execs.to_string()]
        };
        match &self.pod {
            Err(why) => vec![line(dash(), one_line(why), None, 0)],
            Ok(pod) if pod.containers.is_empty() => {
                let state = pod.sandbox.clone().unwrap_or_else(|| "empty".into());
                vec![line(dash(), state, None, 0)]
            }
            Ok(pod) => {
                let all = pod.containers.iter();
                all.map(|one| line(short(&one.id), one_line(&one.state), pid(one), execs(one)))
                    .collect()
            }
        }
    }
}

/// The init process's pid while it lives: later it may be another's.
fn pid(one: &View) -> Option<i32> {
    one.pid.filter(|_| one.exit_status.is_none())
}

/// How many exec processes live; those of a container that has ended have ended before it.
fn execs(one: &View) -> usize {
    let living = one.execs.iter().filter(|exec| exec.exit_status.is_none());
    if one.exit_status.is_some() { 0 } else { living.count() }
}

/// A text that may have come from anybody, fit for a cell of a table.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("; ");
    text.replace(|letter: char| letter.is_control(), "?")
}

/// An id that is a digest, cut to what tells it from others.
fn short(id: &str) -> String {
    let digest = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digest { id[..SHORT].to_owned() } else { id.to_owned() }
}

/// A time in the two largest units that it has.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// Columns as wide as they must be; states in colour if it is wanted.
fn table(lines: &[[String; HEAD.len()]], colour: bool) -> String {
    let head = HEAD.map(str::to_owned);
    let all = || [&head].into_iter().chain(lines);
    let widths: [usize; HEAD.len()] = std::array::from_fn(|column| {
        all().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for (number, line) in all().enumerate() {
        let mut row = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let padded = format!("{cell:<width$}  ");
            row += &match colour && number > 0 && column == STATE {
                true => format!("\x1b[{}m{cell}\x1b[0m{}", paint(cell), &padded[cell.len()..]),
                false => padded,
            };
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

/// The colour of a state.
fn paint(state: &str) -> &'static str {
    match state {
        "running" | "ready" => "32",
        "stopped" | "ended" | "empty" => "2",
        "creating" | "created" | "paused" | "pausing" => "33",
        _ => "31",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_table_is_aligned_and_coloured_only_on_a_terminal() {
        let line = |pod: &str, state: &str| {
            ["ns", pod, "1", "2KiB", "1s", "c", state, "3", "0"].map(str::to_owned)
        };
        let lines = [line("a-long-name", "running"), line("b", "no answer within 1 s")];
        let plain = table(&lines, false);
        let rows: Vec<_> = plain.lines().collect();
        let at = rows[0].find("STATE").unwrap();
        assert!(rows[1][at..].starts_with("running ") && rows[2][at..].starts_with("no answer"));
        assert!(!plain.contains('\x1b') && rows.iter().all(|row| !row.ends_with(' ')));
        let coloured = table(&lines, true);
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m  ") && coloured.contains("\x1b[31mno a"));
        let codes = ["\x1b[32m", "\x1b[31m", "\x1b[0m"];
        let bare = codes.iter().fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(bare, plain);
    }

    #[test]
    fn a_row_tells_nothing_that_is_over_and_stays_a_row() {
        let row = |apart: &str, pod: Result<&str, &str>| {
            let (namespace, group) = ("ns".to_owned(), "pod".to_owned());
            let found = Found { namespace, group, apart: apart.into(), path: "/s".into() };
            let body = pod.map(|text| text.as_bytes().to_vec()).map_err(str::to_owned);
            Row::new(Answer { found, pid: None, took: Duration::ZERO, body })
        };
        let exec = |exit| format!(r#"{{"id":"e","pid":8,"exit_status":{exit}}}"#);
        let execs = format!("[{},{}]", exec("null"), exec("3"));
        let container = |exit| {
            format!(
                r#"{{"containers":[{{"id":"c","state":"s\u001b","pid":7,"exit_status":{exit},"execs":{execs}}}]}}"#
            )
        };
        let cases = [
            ("running", "", Ok(container("null")), ["pod", "c", "s?", "7", "1"]),
            ("stopped", "1234", Ok(container("0")), ["pod@1234", "c", "s?", "-", "0"]),
            (
                "silent",
                "",
                Err("status 500: a\n\n  b\tc\n"),
                ["pod", "-", "status 500: a; b?c", "-", "0"],
            ),
        ];
        let mut rows: Vec<_> = cases
            .iter()
            .map(|(_, apart, pod, _)| row(apart, pod.as_deref().map_err(|why| *why)))
            .collect();
        tell_apart(&mut rows);
        for ((name, _, _, expected), row) in cases.iter().zip(&rows) {
            let line = &row.lines()[0];
            let found = [1, 5, 6, 7, 8].map(|column| line[column].as_str());
            assert_eq!(found, *expected, "{name}");
        }
        tell_apart(&mut rows[1..2]);
        assert_eq!(rows[1].lines()[0][1], "pod", "it has no twin");
    }

    #[test]
    fn ages_and_digests_are_short() {
        let cases = [(59, "59s"), (61, "1m1s"), (7300, "2h1m"), (86_400 * 3 + 7200, "3d2h")];
        for (seconds, expected) in cases {
            assert_eq!(age(seconds), expected);
        }
        assert_eq!(short(&"0a".repeat(32)), "0a0a0a0a0a0a0");
        assert_eq!(short("a-name"), "a-name");
    }
}
