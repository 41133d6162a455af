//! The command line: what a person and containerd see of each command.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use containerd_shim_protos::shim::oci;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-berth-v1");

fn run(args: &[&str], path: impl AsRef<OsStr>, input: &[u8]) -> Output {
    let mut child = Command::new(SHIM)
        .args(args)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn runtime(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn people_get_version_help_and_a_clear_refusal() {
    let cases: [(&str, &[&str], &str); 6] = [
        ("version", &["-v"], concat!("berth ", env!("CARGO_PKG_VERSION"))),
        ("version, long", &["--version"], concat!("berth ", env!("CARGO_PKG_VERSION"))),
        ("help", &["-help"], "usage: "),
        ("help, short", &["-h"], "usage: "),
        ("of a command", &["ps", "--help"], "usage: containerd-shim-berth-v1 ps [-json]\n"),
        ("the manual page", &["man"], ".TH CONTAINERD-SHIM-BERTH-V1 1 "),
    ];
    for (name, args, expected) in cases {
        let output = run(args, "", b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{name}");
        assert!(text(&output.stdout).starts_with(expected), "{name}");
    }
    let cases: [(&str, &[&str], &str); 7] = [
        ("no command", &[], "containerd runs this program"),
        ("unknown command", &["stop"], "unknown command \"stop\""),
        ("mistyped command", &["lgos", "x"], "\"logs\" was meant?"),
        ("mistyped flag", &["ps", "-jsn"], "-json was meant?; usage: ps [-json]; see ps -help"),
        ("no id", &["start"], "container id"),
        ("no namespace", &["-id", "x", "start"], "namespace"),
        ("hostile id", &["-id", "../x", "-namespace", "n", "start"], "../x"),
    ];
    for (name, args, expected) in cases {
        let output = run(args, "", b"");
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
        let line = text(&output.stderr);
        assert!(line.starts_with("berth: ") && line.contains(expected), "{name}: {line}");
        assert_eq!(line.lines().count(), 1, "{name}: {line}");
    }
}

#[test]
fn a_descriptor_3_that_does_not_listen_is_no_daemons_socket() {
    let (socket, _other) = UnixStream::pair().unwrap();
    let script = format!("exec {SHIM} -namespace n -id x 3<&0");
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(std::os::fd::OwnedFd::from(socket))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("not a listening socket"));
}

/// `runtimeoptions.v1.Options` with one field.
fn generic(field: u8, value: &str) -> Any {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 128, "one byte of length");
    let value = [&[field << 3 | 2, length], value.as_bytes()].concat();
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
}

/// The same with a configuration file, as containerd 1.4 sends it.
fn old(path: &str) -> Any {
    Any { type_url: "cri.runtimeoptions.v1.Options".into(), ..generic(2, path) }
}

#[test]
fn info_tells_the_version_and_what_the_runtime_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    runtime(&first, "crun", "exit 1");
    runtime(&second, "runc", "echo '{\"from\": \"runc\"}'");
    runtime(&second, "mine", "echo '{\"from\": \"mine\"}'");
    let both = format!("{}:{}", first.display(), second.display());
    let mine = |name: &str| {
        let options = oci::Options { binary_name: name.into(), ..oci::Options::default() };
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        }
    };
    let path = second.join("mine").display().to_string();
    let none = Any::default();
    let file = dir.path().join("berth.toml");
    fs::write(&file, format!("default_runtime = \"x\"\n[runtimes.x]\npath = {path:?}\n")).unwrap();
    let cases = [
        ("file", both.clone(), generic(2, file.to_str().unwrap()), "{\"from\": \"mine\"}\n"),
        ("old type", both.clone(), old(file.to_str().unwrap()), "{\"from\": \"mine\"}\n"),
        ("table", both.clone(), generic(3, "BinaryName = 'mine'"), "{\"from\": \"mine\"}\n"),
        ("empty generic options", both.clone(), generic(2, ""), "{\"from\": \"runc\"}\n"),
        ("runc before crun", both.clone(), none.clone(), "{\"from\": \"runc\"}\n"),
        ("crun without features", first.display().to_string(), none.clone(), ""),
        ("no runtime at all", String::new(), none, ""),
        ("by name", both.clone(), mine("mine"), "{\"from\": \"mine\"}\n"),
        ("by path", String::new(), mine(&path), "{\"from\": \"mine\"}\n"),
    ];
    for (name, path, options, expected) in cases {
        let output = run(&["-info"], &path, &options.write_to_bytes().unwrap());
        assert!(output.status.success() && output.stderr.is_empty(), "{name}");
        let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!(info.name, "io.containerd.berth.v1", "{name}");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"), "{name}");
        assert_eq!(info.options.clone().unwrap_or_default(), options, "{name}");
        assert_eq!(text(&info.features.value), expected, "{name}");
        let url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
        assert_eq!(info.features.type_url == url, !expected.is_empty(), "{name}");
    }
    let refused = [
        ("missing runtime", mine("no-runc"), "\"no-runc\""),
        ("unknown options", Any { type_url: "x.Y".into(), ..Any::default() }, "\"x.Y\""),
    ];
    for (name, options, expected) in refused {
        let output = run(&["-info"], &both, &options.write_to_bytes().unwrap());
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
        assert!(text(&output.stderr).contains(expected), "{name}");
    }
}

#[test]
fn info_tells_what_the_installed_runtimes_can_do() {
    let system = std::env::var("PATH").unwrap();
    let usable = |name: &str| Command::new(name).arg("features").output().unwrap();
    for name in ["runc", "crun"] {
        let options = oci::Options { binary_name: name.into(), ..oci::Options::default() };
        let options = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let output = run(&["-info"], &system, &options.write_to_bytes().unwrap());
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
        // Old versions of crun have no such command.
        let features = usable(name);
        let expected = if features.status.success() { features.stdout } else { Vec::new() };
        assert_eq!(text(&info.features.value), text(&expected), "{name}");
        let known = text(&expected).contains("ociVersionMin");
        assert!(known || name == "crun", "{name}: {}", text(&expected));
    }
}

#[test]
fn config_shows_what_counts_and_checks_files() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
    fs::write(&good, "deadline = 3\n[runtimes.x]\npath = \"/no/such\"\n").unwrap();
    fs::write(&bad, "rumtime = \"x\"\ndeadline = 0\n").unwrap();
    fs::create_dir(dir.path().join("good.toml.d")).unwrap();
    fs::write(dir.path().join("good.toml.d/1.toml"), "[deadline]\ncreate = 4\n").unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let annotation = "io.containerd.berth.runtime=x";
    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("plain", &["config", "show", "--config", good], &["\ndefault = 3.0\n", "create = 4.0\n"]),
        (
            "origin",
            &["config", "show", "--origin", "--config", good],
            &[
                "good.toml:1 (create option ConfigPath)\n",
                "good.toml.d/1.toml:2 (drop-in)\n",
                "# default\n",
            ],
        ),
        (
            "annotation",
            &["config", "show", "--origin", "--config", good, "--annotation", annotation],
            &["default_runtime = \"x\"", "# annotation io.containerd.berth.runtime\n"],
        ),
        ("check", &["config", "check", good], &["good.toml", "1.toml: no fault found\n"]),
        ("of this host", &["config", "show"], &["preset_dir = "]),
    ];
    for (name, args, parts) in cases {
        let output = run(args, "", b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        for part in parts {
            assert!(text(&output.stdout).contains(part), "{name}: {}", text(&output.stdout));
        }
    }
    let unknown = "io.containerd.berth.runtime=y";
    let refused: [(&str, &[&str], &[&str]); 6] = [
        ("faults", &["config", "check", bad], &["bad.toml:1 ", "bad.toml:2 "]),
        ("fault in use", &["config", "show", "--config", bad], &["bad.toml:1 "]),
        ("missing", &["config", "check", "/no/such"], &["/no/such"]),
        (
            "unknown runtime",
            &["config", "show", "--config", good, "--annotation", unknown],
            &["unknown runtime \"y\" (configured: x;"],
        ),
        ("unknown flag", &["config", "show", "--orign"], &["unknown flag -orign"]),
        ("no file", &["config", "check"], &["config check FILE"]),
    ];
    for (name, args, parts) in refused {
        let output = run(args, "", b"");
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
        for part in parts {
            assert!(text(&output.stderr).contains(part), "{name}: {}", text(&output.stderr));
        }
    }
}
