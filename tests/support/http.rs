//! A client of the management interface, and a reader of what Prometheus would scrape.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Host, SOON, eventually, patient};

/// An answer over HTTP.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    /// Takes an answer apart.
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let (head, body) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends `request` and reads until the connection ends.
pub fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A connection that does not wait for ever.
pub fn connect(socket: &Path) -> UnixStream {
    let stream =
        UnixStream::connect(socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
    stream.set_read_timeout(Some(patient(SOON))).unwrap();
    stream
}

/// Asks with `method` for `path`.
#[track_caller]
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Reply {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: berth\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    Reply::of(&exchange(connect(socket), &request).unwrap())
}

/// Gets `path`.
#[track_caller]
pub fn get(socket: &Path, path: &str) -> Reply {
    ask(socket, "GET", path, "")
}

impl Host {
    /// Where its shims have their management sockets.
    pub fn management_dir(&self) -> PathBuf {
        self.dir().join("berth")
    }

    /// Those that are there, sorted.
    pub fn management_sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.management_dir().join("tests"));
        let mut found: Vec<_> =
            entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        found.sort();
        found
    }

    /// That of pod `id`, which is about to be there.
    #[track_caller]
    pub fn management(&self, id: &str) -> PathBuf {
        let start = format!("{id}@");
        let named = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start))
        };
        // It has its name before it listens.
        let listens = |path: &PathBuf| UnixStream::connect(path).is_ok();
        eventually("the management socket", || {
            self.management_sockets().into_iter().find(|path| named(path) && listens(path))
        })
    }
}

/// The samples of a text, by name with labels, each as it is written.
pub type Samples = HashMap<String, f64>;

type Found<'a> = Vec<(&'a str, f64)>;

/// Reads Prometheus' text format strictly; panics with what breaks its rules.
#[track_caller]
pub fn samples(text: &str) -> Samples {
    let mut metrics: BTreeMap<&str, (&str, Found<'_>)> = BTreeMap::new();
    let mut helped = None;
    let mut current = "";
    let mut samples = Samples::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && !metrics.contains_key(name), "{line}");
            helped = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped.take(), Some(name), "HELP and TYPE belong together: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            metrics.insert(name, (kind, Vec::new()));
            current = name;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let (kind, found) = metrics.get_mut(current).expect(line);
            match *kind {
                "histogram" => assert!(
                    ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|end| name == format!("{current}{end}")),
                    "{line}"
                ),
                _ => assert_eq!(name, current, "{line}"),
            }
            labels(series);
            let value: f64 = value.parse().expect(line);
            found.push((series, value));
            assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    for (name, (kind, found)) in &metrics {
        if *kind == "histogram" {
            histograms(name, found, &samples);
        }
    }
    samples
}

/// Checks that the labels of a series are written as they have to be.
#[track_caller]
fn labels(series: &str) {
    let Some((_, rest)) = series.split_once('{') else { return };
    let mut rest = rest.strip_suffix('}').expect(series);
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").expect(series);
        assert!(label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{series}");
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            assert!(!escaped || matches!(c, '"' | '\\' | 'n'), "{series}");
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = &value[end.expect(series) + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// Checks that buckets grow, and that the last has all.
#[track_caller]
fn histograms(name: &str, found: &[(&str, f64)], samples: &Samples) {
    let mut last = 0.0;
    for (series, value) in found {
        let Some(bucket) = series.strip_prefix(&format!("{name}_bucket")) else {
            last = 0.0;
            continue;
        };
        assert!(*value >= last, "not cumulative: {series}");
        last = *value;
        if let Some((own, _)) = bucket.split_once(",le=\"+Inf\"") {
            assert_eq!(samples.get(&format!("{name}_count{own}}}")), Some(value), "{series}");
            assert!(samples.contains_key(&format!("{name}_sum{own}}}")), "{series}");
        }
    }
}

/// How long an answer may take that others must not delay.
pub const AT_ONCE: Duration = Duration::from_millis(100);
