//! The Grafana dashboard asks for what a shim tells, and for all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::http::{Samples, get, samples};
use crate::support::{Host, Spec, binary, skipped};

const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/grafana/berth.json");
/// What stands in a query in place of what the dashboard's user chooses.
const VARIABLES: [&str; 3] = ["namespace", "sandbox", "__rate_interval"];
/// A label of Prometheus' own, in histograms.
const BUCKET: &str = "le";

/// The labels of each metric, by the name of its samples.
fn exported(samples: &Samples) -> BTreeMap<String, BTreeSet<String>> {
    let mut metrics = BTreeMap::<String, BTreeSet<String>>::new();
    for series in samples.keys() {
        let (name, labels) = series.split_once('{').expect(series);
        // None of the values that a shim has here has a quote or a comma.
        let labels = labels.trim_end_matches('}').split(',');
        let names = labels.map(|label| label.split_once('=').expect(series).0.to_owned());
        metrics.entry(name.to_owned()).or_default().extend(names);
    }
    metrics
}

/// The family of a sample.
fn family(name: &str) -> &str {
    let ends = ["_bucket", "_sum", "_count"];
    ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// Every query of the dashboard, with where it stands.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().unwrap();
        targets.iter().map(|target| (text(&panel["title"]), text(&target["expr"])))
    });
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter(|one| one["type"] == "query");
    let variables = variables.map(|one| (text(&one["name"]), text(&one["query"]["query"])));
    targets.chain(variables).collect()
}

/// The words of a query that are no text, each with what follows it.
fn words(query: &str) -> Vec<(&str, &str)> {
    let mut words = Vec::new();
    let (mut quoted, mut start) = (false, None);
    for (at, letter) in query.char_indices().chain([(query.len(), ' ')]) {
        let is_word = !quoted && (letter.is_ascii_alphanumeric() || letter == '_');
        match start {
            None if is_word => start = Some(at),
            Some(from) if !is_word => {
                words.push((&query[from..at], &query[at..]));
                start = None;
            }
            _ => {}
        }
        quoted ^= letter == '"';
    }
    words
}

#[test]
fn the_dashboard_shows_what_shims_tell_and_all_of_it() {
    if skipped("the dashboard") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.state("c", "").unwrap();
    shim.exec_run("c", "e", "exec sleep 1000").unwrap();
    drop(host.management("c"));
    let file = host.dir().join("berth.prom");
    let mut command = Command::new(binary());
    command.args(["metrics", "-textfile"]).arg(&file);
    let status = command.env("BERTH_RUN_DIR", host.management_dir()).status().unwrap();
    assert!(status.success());
    let exported = exported(&samples(&fs::read_to_string(&file).unwrap()));

    let dashboard: Value = serde_json::from_slice(&fs::read(DASHBOARD).unwrap()).unwrap();
    let mut shown = BTreeSet::new();
    for (title, query) in queries(&dashboard) {
        let words = words(&query);
        let names: Vec<_> = words.iter().filter(|(word, _)| word.starts_with("berth_")).collect();
        assert!(!names.is_empty(), "{title}: {query}");
        let mut labels = BTreeSet::from([BUCKET]);
        for (name, _) in &names {
            let of = exported.get(*name);
            labels.extend(
                of.unwrap_or_else(|| panic!("{title}: no {name}: {query}"))
                    .iter()
                    .map(|one| &**one),
            );
            shown.insert(family(name).to_owned());
        }
        // What a selector compares, and what a sum is by, are labels that it has.
        for (word, rest) in &words {
            let compared =
                ["=~", "!=", "="].iter().any(|sign| rest.starts_with(&format!("{sign}\"")));
            assert!(!compared || labels.contains(word), "{title}: no label {word}: {query}");
        }
        for by in query.split("by (").skip(1) {
            for label in by.split(')').next().unwrap().split(", ") {
                assert!(labels.contains(label), "{title}: no label {label}: {query}");
            }
        }
        for variable in query.split('$').skip(1) {
            let known = VARIABLES.iter().any(|name| variable.starts_with(name));
            assert!(known, "{title}: ${variable}");
        }
    }
    let told: BTreeSet<_> = exported.keys().map(|name| family(name).to_owned()).collect();
    assert_eq!(told, shown, "what a shim tells and what the dashboard shows");
    shim.end();
}

/// Asks Debian's `promtool` (package `prometheus`), where it is there.
#[track_caller]
fn promtool(args: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Ok(mut promtool) = command.spawn() {
        drop(promtool.stdin.take().unwrap().write_all(input.as_bytes()));
        let output = promtool.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn promtool_finds_no_fault_with_metrics_and_queries() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let dashboard: Value = serde_json::from_slice(&fs::read(DASHBOARD).unwrap()).unwrap();
    let queries = queries(&dashboard).into_iter().enumerate();
    let queries = queries.filter(|(_, (_, query))| !query.starts_with("label_values"));
    let rules: Vec<_> = queries
        .map(|(number, (_, query))| {
            let query = query.replace("$__rate_interval", "1m");
            json!({"record": format!("query:{number}"), "expr": query})
        })
        .collect();
    let file = host.dir().join("rules.json");
    fs::write(&file, json!({"groups": [{"name": "berth", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");

    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let text = get(&host.management("c"), "/metrics").body;
    samples(&text);
    promtool(&["check", "metrics"], &text);
    shim.end();
}
