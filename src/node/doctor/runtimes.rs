//! Which configuration wins, and the OCI runtimes that it names or that are there.

use std::borrow::Cow;
use std::env;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Level::{Fault, Note, Ok, Warn};
use super::Topic::{Configuration, Runtimes};
use super::{Finding, look};
use crate::config::{self, BUILT_IN, Config, DefaultRuntime, Entry, Environment, Request};
use crate::error::Error;
use crate::info;
use crate::runtime::table::{Chosen, look_up};
use crate::wire::options::RuntimeOptions;

/// The configuration of this process's environment, and the runtimes.
pub(super) fn look() -> Vec<Finding> {
    let environment = Environment::read();
    let mut findings = vec![winner(&environment)];
    let own = environment.clone();
    // What cannot be loaded was told; the runtimes of the defaults are there all the same.
    let config = look::bounded(move || load(&own)).and_then(Result::ok).unwrap_or_default();
    findings.extend(runtimes(&config));
    findings
}

fn load(environment: &Environment) -> Result<Config, Error> {
    config::load(Request { annotation: None, options: &RuntimeOptions::default(), environment })
}

/// What a configuration comes to that containers get which ask for none.
pub(super) fn winner(environment: &Environment) -> Finding {
    let file = environment.named.as_ref().unwrap_or(&environment.default).clone();
    let own = environment.clone();
    match look::bounded(move || load(&own)) {
        Some(Result::Ok(config)) => {
            let why = match &config.runtime {
                DefaultRuntime::Auto => {
                    format!("its runtime is the first of {}", BUILT_IN.join(", "))
                }
                DefaultRuntime::Program { name, place } | DefaultRuntime::Named { name, place } => {
                    format!("its runtime is {name:?}, from {place}")
                }
            };
            let missing = if config.origin == Config::default().origin {
                format!(": there is no {}", file.display())
            } else {
                String::new()
            };
            Finding::new(Configuration, Ok, format!("{}{missing}", config.origin)).why(why)
        }
        Some(Err(error)) => Finding::new(Configuration, Fault, "the configuration is refused")
            .at(file.display())
            .why(error.to_string())
            .command(format!(
                "containerd-shim-berth-v1 config check {}",
                super::mend::quoted(&file)
            )),
        None => Finding::new(Configuration, Fault, "the configuration's file system hangs")
            .at(file.display()),
    }
}

/// Every runtime of the table, the one that containers get, and those that need no entry.
fn runtimes(config: &Config) -> Vec<Finding> {
    let mut asked: Vec<(String, Entry, bool)> = Vec::new();
    for (name, entry) in &config.runtimes {
        let default =
            matches!(&config.runtime, DefaultRuntime::Named { name: it, .. } if it == name);
        asked.push((name.clone(), entry.clone(), default));
    }
    let plain = |name: &str| Entry::plain(name, &config.deadlines);
    match &config.runtime {
        DefaultRuntime::Named { name, .. } | DefaultRuntime::Program { name, .. } => {
            if !config.runtimes.contains_key(name) {
                asked.push((name.clone(), plain(name), true));
            }
        }
        DefaultRuntime::Auto => {
            let candidates = BUILT_IN.map(str::to_owned).to_vec();
            asked.push(("auto".into(), Entry { candidates, ..plain("auto") }, true));
        }
    }
    let looking: Vec<_> = asked
        .into_iter()
        .map(|(name, entry, default)| {
            let own = (name.clone(), entry.clone());
            (name, entry, default, look::begin(move || runtime(&own.0, own.1, default)))
        })
        .collect();
    let mut findings: Vec<Finding> = looking
        .into_iter()
        .map(|(name, entry, default, looking)| {
            looking.end(3 * look::LIMIT).unwrap_or_else(|| {
                let level = if default { Fault } else { Warn };
                Finding::new(Runtimes, level, format!("{name}: looking for it hangs"))
                    .at(entry.candidates.join(", "))
            })
        })
        .collect();
    findings.extend(others(&findings));
    findings
}

/// Built-in ones that were not told of.
fn others(told: &[Finding]) -> Vec<Finding> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found: Vec<_> = BUILT_IN
        .iter()
        .filter_map(|name| {
            let path = path.clone();
            look::bounded(move || look_up(name, &path)).and_then(Result::ok)
        })
        .filter(|path| !told.iter().any(|it| it.place == Some(path.display().to_string())))
        .collect();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    found
        .into_iter()
        .map(|path| program(&name(&path), path, Entry::plain("", &Default::default()), false))
        .collect()
}

/// One runtime: is it there, does it answer, what can it do.
fn runtime(name: &str, entry: Entry, default: bool) -> Finding {
    let path = env::var_os("PATH").unwrap_or_default();
    let level = if default { Fault } else { Warn };
    let mut reasons = Vec::new();
    for candidate in &entry.candidates {
        match look_up(candidate, &path) {
            Result::Ok(found) => return program(name, found, entry, default),
            Err(why) => reasons.push(format!("{candidate}: {why}")),
        }
    }
    let place = entry.place.clone();
    let finding = Finding::new(Runtimes, level, format!("{name}: there is no such runtime"));
    let finding = finding.why(reasons.join(", ")).command("apt install runc   # or crun");
    match place {
        Some(place) => finding.at(place),
        None => finding,
    }
}

fn program(name: &str, path: PathBuf, entry: Entry, default: bool) -> Finding {
    let place = path.display().to_string();
    let version = look::first_line(&path, &["--version"]);
    let chosen = Chosen { entry: Cow::Owned(entry), path };
    let features = info::features(&chosen, look::LIMIT);
    let features = features.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let words = if default { ", the default" } else { "" };
    match version {
        Result::Ok(version) => {
            let what = format!("{name}{words}: {version}");
            match features {
                Some(features) => {
                    Finding::new(Runtimes, Ok, what).at(place).why(abilities(&features))
                }
                None => Finding::new(Runtimes, Note, what)
                    .at(place)
                    .why("it has no `features`: containerd is not told what it can do"),
            }
        }
        Err(why) => {
            let level = if default { Fault } else { Warn };
            Finding::new(Runtimes, level, format!("{name}{words}: `--version`: {why}")).at(place)
        }
    }
}

/// The parts of `runtime features` that explain why containers fail.
fn abilities(features: &Value) -> String {
    let text =
        |pointer: &str| features.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
    let mut words = vec![format!("OCI {} to {}", text("/ociVersionMin"), text("/ociVersionMax"))];
    for (word, pointer) in [
        ("cgroup v1", "/linux/cgroup/v1"),
        ("cgroup v2", "/linux/cgroup/v2"),
        ("systemd", "/linux/cgroup/systemd"),
        ("seccomp", "/linux/seccomp/enabled"),
        ("idmapped mounts", "/linux/mountExtensions/idmap/enabled"),
    ] {
        if features.pointer(pointer).and_then(Value::as_bool) == Some(true) {
            words.push(word.to_owned());
        }
    }
    if let Some(version) =
        features.pointer("/annotations/org.opencontainers.runc.checkpoint.enabled")
    {
        if version == "true" {
            words.push("checkpoints".into());
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    #[test]
    fn runtimes_are_asked_in_bounded_time() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = |name: &str, script: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let full = "case $1 in --version) echo full 1.0;; features) echo '{\"ociVersionMin\":\"1.0.0\",\
                    \"ociVersionMax\":\"1.2.0\",\"linux\":{\"cgroup\":{\"v2\":true}}}';; esac";
        let cases = [
            ("full", runtime("full", full), Ok, "OCI 1.0.0 to 1.2.0, cgroup v2"),
            ("old", runtime("old", "[ $1 = --version ] && echo old 0.1"), Note, "old 0.1"),
            ("hangs", runtime("hangs", "sleep 60"), Fault, "no answer within"),
            ("fails", runtime("fails", "exit 3"), Fault, "it failed"),
            ("missing", "/no/such/runtime".into(), Fault, "not found"),
        ];
        let began = Instant::now();
        for (name, path, level, part) in cases {
            let finding = super::runtime(name, Entry::plain(&path, &Default::default()), true);
            let text = format!("{} {:?}", finding.what, finding.why);
            assert_eq!(finding.level, level, "{name}: {text}");
            assert!(text.contains(part), "{name}: {text}");
        }
        assert!(began.elapsed().as_secs() < 30);
    }
}
