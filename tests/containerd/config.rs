//! Configurations and runtimes that a client chooses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::bed::Bed;
use crate::recorder::Recorder;
use crate::{Case, own};

pub(crate) const CASES: &[Case] = &[
    own("config-path", config_path),
    own("config-annotation", config_annotation),
    own("config-refused", config_refused),
];

/// A directory of the case's own.
fn directory(bed: &Bed<'_>, name: &str) -> PathBuf {
    let dir = bed.daemon.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Writes a configuration; returns the flags that name it.
pub(crate) fn write(file: &Path, text: &str) -> [String; 2] {
    fs::write(file, text).unwrap();
    ["--runtime-config-path".into(), file.display().to_string()]
}

/// `ctr run --runtime-config-path`: the runtime gets the arguments and the environment of its entry
/// exactly as they stand there, at every call.
fn config_path(bed: &Bed<'_>) {
    let dir = directory(bed, "config-path");
    let recorder = Recorder::write(&dir, "recorder", 2);
    let root = dir.join("root");
    let text = format!(
        "default_runtime = \"recorder\"\n\
         [runtimes.recorder]\n\
         path = {:?}\n\
         args = [\"--log-level\", \"a b \\\"c\\\"\"]\n\
         root = {root:?}\n\
         env = {{ BERTH_TEST = \"x  y\" }}\n",
        recorder.program,
    );
    let [flag, file] = write(&dir.join("config.toml"), &text);
    let id = bed.name("a");
    assert_eq!(bed.run(&[&flag, &file], &id, &["sh", "-c", "exit 5"]).status, 5);
    assert_eq!(recorder.commands(&id), ["create", "start", "delete"]);
    for call in recorder.calls(&id) {
        assert_eq!(call.variable, "x  y", "{call:?}");
        assert_eq!(call.args[..3], ["--log-level", "a b \"c\"", "--root"], "{call:?}");
        assert!(call.args[3].starts_with(root.to_str().unwrap()), "{call:?}");
    }
}

/// An annotation chooses among the runtimes of the table, for each container of a pod by itself, or
/// a preset.
fn config_annotation(bed: &Bed<'_>) {
    let dir = directory(bed, "config-annotation");
    let presets = dir.join("presets");
    fs::create_dir_all(&presets).unwrap();
    let [one, two, three] = ["one", "two", "three"].map(|name| Recorder::write(&dir, name, 0));
    let text = format!(
        "preset_dir = {presets:?}\n\
         runtimes.one.path = {:?}\n\
         runtimes.two.path = {:?}\n",
        one.program, two.program,
    );
    let [flag, file] = write(&dir.join("config.toml"), &text);
    let group = format!("io.containerd.runc.v2.group={}", bed.name("pod"));
    let flags = [&flag, &file, "--annotation", &group, "--annotation"];
    let start = |id: &str, annotation: &str| {
        bed.start(&[&flags[..], &[annotation]].concat(), id, &["sleep", "1000"])
    };

    let (a, b) = (bed.name("a"), bed.name("b"));
    let first = start(&a, "io.containerd.berth.runtime=one");
    let second = start(&b, "io.containerd.berth.runtime=two");
    assert_eq!(bed.shim_of(first), bed.shim_of(second), "two shims");
    assert_eq!(bed.exec(&b, "e1", &["sh", "-c", "exit 4"]).status, 4);
    bed.remove(&a);
    bed.remove(&b);
    assert_eq!(one.commands(&a), ["create", "start", "kill", "delete"]);
    assert_eq!(two.commands(&b), ["create", "start", "exec", "kill", "delete"]);
    assert_eq!((one.calls(&b).len(), two.calls(&a).len()), (0, 0));

    fs::write(presets.join("third.toml"), format!("runtime = {:?}\n", three.program)).unwrap();
    let c = bed.name("c");
    let preset = ["--annotation", "io.containerd.berth.config_path=third"];
    bed.run(&[&[&*flag, &*file], &preset[..]].concat(), &c, &["true"]).ok();
    assert_eq!(three.commands(&c), ["create", "start", "delete"]);
}

/// What is wrong is told through the client: file, line, and who chose the file.
fn config_refused(bed: &Bed<'_>) {
    let dir = directory(bed, "config-refused");
    let file = dir.join("config.toml");
    let [flag, path] = write(&file, "");
    let writable = dir.join("writable.toml");
    fs::write(&writable, "").unwrap();
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o666)).unwrap();
    let (writable, missing) = (writable.to_str().unwrap(), dir.join("missing.toml"));
    let chosen = format!("{path}:2 (create option ConfigPath)");
    let runtime = |name: &str| format!("io.containerd.berth.runtime={name}");
    let cases: [(&str, &str, &str, String, &[&str]); 8] = [
        ("unknown key", "\ndeadlin = 3\n", &path, String::new(), &[&chosen, "\"deadline\""]),
        ("wrong type", "\ndeadline = true\n", &path, String::new(), &[&chosen, "deadline"]),
        ("syntax", "\ndeadline = \n", &path, String::new(), &[&chosen]),
        (
            "unknown default",
            "\ndefault_runtime = \"x\"\n",
            &path,
            String::new(),
            &[&chosen, "\"x\""],
        ),
        ("missing file", "", missing.to_str().unwrap(), String::new(), &["missing.toml"]),
        ("writable by others", "", writable, String::new(), &["writable.toml"]),
        (
            "unknown runtime",
            "runtimes.one.path = \"/bin/one\"\n",
            &path,
            runtime("three"),
            &["unknown runtime \"three\" (configured: one"],
        ),
        ("annotation with a path", "", &path, runtime("/bin/sh"), &["io.containerd.berth.runtime"]),
    ];
    for (name, text, path, annotation, expected) in cases {
        fs::write(&file, text).unwrap();
        let id = bed.name("a");
        let mut flags = vec![&*flag, path];
        if !annotation.is_empty() {
            flags.extend(["--annotation", &annotation]);
        }
        let error = bed.run(&flags, &id, &["true"]).refused();
        for part in expected {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
