//! From texts to values and faults.

use std::rc::Rc;
use std::time::Duration;

use crate::config::document::Source;
use crate::config::section::Report;
use crate::config::*;

/// Reads a text as file `test.toml`, or as `config_body`.
fn read(text: &str, via: Via) -> Result<Config, Vec<String>> {
    let source = Rc::new(Source { name: "test.toml".into(), via });
    let table = document::parse(text.as_bytes(), &source)?;
    let table = if via == Via::ConfigBody { body::normalize(table)? } else { table };
    let table = entry::expand(table)?;
    let mut report = Report::default();
    let config = Config::read(table, Some(via), &mut report);
    if report.faults.is_empty() { Ok(config) } else { Err(report.faults) }
}

pub(super) fn file(text: &str) -> Result<Config, Vec<String>> {
    read(text, Via::Default)
}

pub(super) fn program(name: &str, place: &str) -> DefaultRuntime {
    DefaultRuntime::Program { name: name.into(), place: place.into() }
}

fn named(name: &str, place: &str) -> DefaultRuntime {
    DefaultRuntime::Named { name: name.into(), place: place.into() }
}

#[test]
fn every_fault_is_named_with_its_line_and_what_to_do() {
    let cases = [
        (
            "unknown key",
            "\nrumtime = \"runc\"",
            &[
                "test.toml:2 (default file): rumtime: unknown key; the nearest known key is \"runtime\"",
            ][..],
        ),
        (
            "unknown key of an entry",
            "[runtimes.x]\npath = \"/x\"\narg = []",
            &[":3 (default file): runtimes.x.arg: unknown key; the nearest known key is \"args\""],
        ),
        ("all at once", "runtime = 1\ndeadline = 0\nx = 1", &[":1 ", ":2 ", ":3 "]),
        ("syntax", "runtime = ", &[":1 "]),
        ("syntax twice", "runtime = \n\ndeadline = ", &[":1 ", ":3 "]),
        ("key twice", "deadline = 1\ndeadline = 2", &[":2 "]),
        ("long number", "deadline = 99999999999999999999999999", &[":1 "]),
        (
            "wrong type",
            "allow_annotations = \"no\"",
            &["allow_annotations: invalid type: string \"no\", expected a boolean"],
        ),
        ("tri-state", "fuse_overlayfs = \"on\"", &["must be true, false or \"auto\""]),
        ("zero deadline", "deadline = 0.0", &["must be from 0.001 to 3600"]),
        ("negative deadline", "deadline = -1.0", &["must be from 0.001 to 3600"]),
        ("nan", "deadline = nan", &["must be from 0.001 to 3600"]),
        ("unknown command", "[deadline]\ncreat = 1", &["nearest known key is \"create\""]),
        (
            "entry without program",
            "[runtimes.x]",
            &["runtimes.x.path: either path or candidates must be configured"],
        ),
        (
            "entry with two",
            "[runtimes.x]\npath = \"/x\"\ncandidates = [\"y\"]",
            &["path and candidates cannot be configured for the same runtime"],
        ),
        ("no candidate", "[runtimes.x]\ncandidates = []", &["names no program", "either path"]),
        (
            "relative path",
            "[runtimes.x]\npath = \"bin/x\"",
            &["must be an absolute path", "either"],
        ),
        ("no program", "[runtimes.x]\npath = \"\"", &["\"\" is no program", "either path"]),
        ("auto as a path", "[runtimes.x]\npath = \"auto\"", &["\"auto\" is no program", "either"]),
        ("directory", "[runtimes.x]\npath = \"/bin/\"", &["is a directory", "either path"]),
        (
            "secret",
            "[runtimes.x]\npath = \"/x\"\nenv = { TOKEN = 12345 }",
            &["runtimes.x.env.TOKEN: must be a string"],
        ),
        ("control characters", "\"\\u001b[31m\\n\" = 1", &["\\u001b[31m\\n\": unknown key"]),
        (
            "Kata's name beside ours",
            "[runtimes.x]\npath = \"/x\"\nguest_empty_dir = true\n\
          disable_guest_empty_dir = false",
            &["is there beside guest_empty_dir"],
        ),
        ("relative root", "[runtimes.x]\npath = \"/x\"\nroot = \"x\"", &["absolute path"]),
        ("NUL", "[runtimes.x]\npath = \"/x\"\nargs = [\"\\u0000\"]", &["NUL"]),
        (
            "environment",
            "[runtimes.x]\npath = \"/x\"\nenv = { \"A=B\" = \"\" }",
            &["runtimes.x.env.A=B: \"A=B\" cannot be set in an environment"],
        ),
        (
            "block_rootfs",
            "[runtimes.x]\npath = \"/x\"\nblock_rootfs = \"no\"",
            &["`mount` or `pass`"],
        ),
        ("no table", "runtimes = 1", &["runtimes: integer in place of a table"]),
        ("no table in it", "[runtimes]\nx = \"/x\"", &["runtimes.x: string in place of a table"]),
        ("reserved", "[runtimes.runc]\npath = \"/x\"", &["runtime name \"runc\" is reserved"]),
        ("reserved word", "[runtimes.auto]\npath = \"/x\"", &["runtime name \"auto\" is reserved"]),
        ("slash", "[runtimes.\"a/b\"]\npath = \"/x\"", &["must not be empty nor have a slash"]),
        (
            "missing default",
            "default_runtime = \"y\"\n[runtimes.x]\npath = \"/x\"",
            &[
                "default runtime \"y\" does not exist (configured: x, runc, crun, youki, buildkit-runc)",
            ],
        ),
        ("TLS", "[tracing]\nendpoint = \"https://x\"", &["tracing.endpoint: https needs TLS"]),
        ("no URL", "[tracing]\nendpoint = \"x:4318\"", &["must be http://HOST:PORT"]),
        ("sampler", "[tracing]\nsampler = \"some\"", &["unknown variant `some`"]),
        ("ratio", "[tracing]\nratio = 1.5", &["tracing.ratio: must be between 0 and 1"]),
        ("header", "[tracing.headers]\n\"a b\" = \"c\"", &["no name of an HTTP header"]),
        ("two defaults", "default_runtime = \"runc\"\nruntime = \"crun\"", &["together with"]),
        (
            "entry as program",
            "runtime = \"x\"\n[runtimes.x]\npath = \"/x\"",
            &["\"x\" is in the table: set default_runtime to it"],
        ),
        ("runc's name in a file", "BinaryName = \"runc\"", &["BinaryName: unknown key"]),
    ];
    for (name, text, parts) in cases {
        let faults = file(text).expect_err(name);
        assert_eq!(faults.len(), parts.len(), "{name}: {faults:?}");
        for (fault, part) in faults.iter().zip(parts) {
            assert!(fault.contains(part) && !fault.contains('\n'), "{name}: {fault}");
            assert!(fault.starts_with("test.toml:"), "{name}: {fault}");
        }
    }
}

#[test]
fn every_key_has_its_effect() {
    let text = r#"
        default_runtime = "gvisor"
        allow_annotations = false
        preset_dir = "/p"
        fuse_overlayfs = true
        [deadline]
        default = 20
        create = 1.5
        [runtimes.gvisor]
        path = "/usr/bin/runsc"
        args = ["--log-level", "a b \"c\""]
        root = "/run/runsc"
        systemd_cgroup = true
        no_pivot_root = true
        no_new_keyring = true
        criu_path = "/c"
        rootless = false
        block_rootfs = "pass"
        nydus_rootfs = "pass"
        disable_guest_empty_dir = false
        sizing = true
        inner_pids = true
        env = { A = "b c" }
        [runtimes.gvisor.deadline]
        kill = 2
        [runtimes.gvisor.annotations]
        "run.oci.handler" = "wasm"
        [runtimes.any]
        candidates = ["a", "/b"]
        deadline = 3
    "#;
    let config = file(text).unwrap();
    let gvisor = &config.runtimes["gvisor"];
    let expected = Entry {
        place: Some("test.toml:9 (default file)".into()),
        candidates: vec!["/usr/bin/runsc".into()],
        args: vec!["--log-level".into(), "a b \"c\"".into()],
        root: Some("/run/runsc".into()),
        systemd_cgroup: Choice::On,
        no_pivot_root: true,
        no_new_keyring: true,
        criu_path: "/c".into(),
        rootless: Choice::Off,
        deadlines: gvisor.deadlines.clone(),
        guest: Guest {
            block_rootfs: BlockRootfs::Pass,
            nydus_rootfs: NydusRootfs::Pass,
            empty_dir: true,
            sizing: true,
            annotations: [("run.oci.handler".into(), "wasm".into())].into(),
        },
        inner_pids: true,
        env: [("A".into(), "b c".into())].into(),
    };
    assert_eq!(gvisor, &expected);
    let seconds = |deadlines: &Deadlines, command| deadlines.of(command).as_secs_f64();
    let gvisor = ["create", "kill", "start"].map(|command| seconds(&gvisor.deadlines, command));
    assert_eq!(gvisor, [1.5, 2.0, 20.0]);
    let any = &config.runtimes["any"];
    assert_eq!(any.candidates, ["a", "/b"]);
    assert_eq!(["create", "kill"].map(|command| seconds(&any.deadlines, command)), [1.5, 3.0]);
    assert_eq!(["create", "kill"].map(|command| seconds(&config.deadlines, command)), [1.5, 20.0]);
    assert_eq!(config.runtime, named("gvisor", "test.toml:2 (default file)"));
    let shut = "allow_annotations = false in test.toml:3 (default file)";
    assert_eq!(config.gate, Gate::new(Some(shut), Some("/p".into())));
    assert_eq!(config.fuse_overlayfs, Choice::On);
    let plain = file("runtime = \"crun\"").unwrap();
    assert_eq!(plain.runtime, program("crun", "test.toml:1 (default file)"));
    for automatic in ["", "runtime = \"auto\"", "default_runtime = \"auto\"", "runtime = \"\""] {
        assert_eq!(file(automatic).unwrap(), Config::default(), "{automatic}");
    }
}

#[test]
fn a_table_of_options_is_a_configuration_in_camel_case() {
    let text = r#"
        TypeUrl = "runtimeoptions.v1.Options"
        ConfigPath = ""
        DefaultRuntime = "Mine"
        BinaryName = "crun"
        SystemdCgroup = true
        Root = "/r"
        IoUid = 7
        [Deadline]
        Create = 4
        [Runtimes.Mine]
        Path = "/x"
        NoPivotRoot = true
        Env = { PATH = "/bin", FooBar = "x" }
    "#;
    let config = read(text, Via::ConfigBody).unwrap();
    assert_eq!(config.runtime, named("Mine", "test.toml:4 (create option ConfigBody)"));
    let mine = &config.runtimes["Mine"];
    assert!(mine.no_pivot_root);
    assert_eq!(mine.env.keys().collect::<Vec<_>>(), ["FooBar", "PATH"]);
    assert_eq!(mine.deadlines.of("create"), Duration::from_secs(4));
    let options = RuntimeOptions {
        binary_name: "crun".into(),
        systemd_cgroup: true,
        root: "/r".into(),
        io_uid: 7,
        ..RuntimeOptions::default()
    };
    assert_eq!(config.options, options);
    assert_eq!(read("runtime = \"auto\"", Via::ConfigBody).unwrap(), Config::default());
    let cases = [
        ("both forms", "Deadline = 1\ndeadline = 1", "is there twice"),
        ("unknown", "DefaultRumtime = \"x\"", "the nearest known key is \"default_runtime\""),
        ("wrong type", "SystemdCgroup = \"true\"", "SystemdCgroup: invalid type"),
    ];
    for (name, text, part) in cases {
        let faults = read(text, Via::ConfigBody).expect_err(name);
        assert!(faults[0].contains(part), "{name}: {faults:?}");
    }
}

/// The keys of every table with their values; the one runtime of it is called `gvisor`.
fn settings(text: &str) -> Vec<section::Setting> {
    let source = Rc::new(Source { name: "berth.toml".into(), via: Via::Default });
    let table = document::parse(text.as_bytes(), &source).unwrap();
    let table = entry::expand(table).unwrap();
    let mut report = Report { settings: Some(Vec::new()), ..Report::default() };
    Config::read(table, Some(Via::Default), &mut report);
    assert_eq!(report.faults, [""; 0]);
    report.settings.unwrap()
}

#[test]
fn the_documented_file_names_every_key_with_its_default() {
    let text = include_str!("../../../config/berth.toml");
    let gate = Gate::new(None, Some("/etc/berth/presets".into()));
    assert_eq!(file(text).unwrap(), Config { gate, ..Config::default() }, "as it stands");
    let example = |line: &str| {
        let body = line.strip_prefix('#').filter(|body| !body.is_empty() && !body.starts_with(' '));
        body.unwrap_or(line).to_owned()
    };
    // Some keys stand in the place of others.
    let documented = text.lines().map(example).collect::<Vec<_>>().join("\n");
    let documented = settings(&documented.replace("runtime = \"auto\"\n", ""));
    let plain = settings("[runtimes.gvisor]\npath = \"/x\"");
    for key in plain {
        if ["runtime", "candidates"].contains(&key.key.as_str()) {
            let line = format!("{} = ", key.key);
            assert!(text.lines().any(|it| it.trim_start_matches("# ").starts_with(&line)));
            continue;
        }
        let same = |it: &&section::Setting| it.table == key.table && it.key == key.key;
        let written = documented.iter().find(same).unwrap();
        assert!(written.place.is_some(), "{}.{} is not documented", key.table, key.key);
        if key.value.is_some() && key.key != "path" {
            assert_eq!(written.value, key.value, "{}.{}", key.table, key.key);
        }
    }
}

/// The event loop does nothing else meanwhile.
#[test]
fn hostile_texts_are_refused_in_no_time() {
    let many = |line: &dyn Fn(usize) -> String| {
        let lines = (0..).map(line);
        lines
            .scan(0, |size, line| {
                (*size < 1 << 20).then(|| {
                    *size += line.len();
                    line
                })
            })
            .collect()
    };
    let cases: [(&str, String); 9] = [
        ("keys", many(&|n| format!("k{n} = 1\n"))),
        ("tables", many(&|n| format!("[a{n}]\n"))),
        ("runtimes", many(&|n| format!("[runtimes.r{n}]\n"))),
        ("syntax", many(&|_| "= \n".into())),
        ("long key", format!("{} = 1", "k".repeat(1 << 20))),
        ("long keys", many(&|n| format!("{}{n} = 1\n", "k".repeat(500)))),
        ("long value", format!("deadline = \"{}\"", "v".repeat(1 << 20))),
        ("arrays", format!("x = {}", "[".repeat(1 << 20))),
        ("dotted", format!("{}a = 1", "a.".repeat(1 << 19))),
    ];
    for (name, text) in cases {
        let begin = std::time::Instant::now();
        let faults = file(&text).expect_err(name);
        let text = crate::error::Error::Config(faults).to_string();
        assert!(text.len() < 10_000, "{name}: {} bytes", text.len());
        // Some hundred times what it takes, for machines that are busy.
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}: {:?}", begin.elapsed());
        eprintln!("{name}: {:?}", begin.elapsed());
    }
}
