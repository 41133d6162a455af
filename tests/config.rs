//! Where a container's OCI runtime and its settings come from.

use std::fs;
use std::path::Path;

use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::support::{Code, Host, Script, Spec, skipped};

/// `runtimeoptions.v1.Options` as CRI and Docker send them: fields 2, a path, and 3, a text.
fn generic(path: &str, body: &str) -> Any {
    let field = |number: u8, text: &str| {
        let length = u8::try_from(text.len()).expect("one byte of length");
        assert!(length < 128, "one byte of length");
        [&[number << 3 | 2, length], text.as_bytes()].concat()
    };
    let value = [field(2, path), field(3, body)].concat();
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
}

#[test]
fn the_runtime_is_the_one_that_the_nearest_source_names() {
    if skipped("runtimeoptions.v1.Options") {
        return;
    }
    // The file of the environment names a runtime that fails, to be overruled.
    let host = Host::scripted();
    let script = host.runtime();
    let host = host.configured("runtime = \"/no/such/runtime\"\n");
    let file = host.dir().join("other.toml");
    fs::write(&file, format!("runtime = {script:?}\n")).unwrap();
    let body = format!("runtime = {script:?}\n");
    let file = file.to_str().unwrap();
    let cases = [
        ("file", Some(generic(file, "")), true),
        ("text", Some(generic("", &body)), true),
        ("empty", Some(generic("", "")), false),
        ("none", None, false),
    ];
    for (name, options, found) in cases {
        let shim = host.start(name, Spec::sh("exit 3"));
        let before = host.script().calls().len();
        let mut request = shim.request(name);
        request.options = options.into();
        let created = shim.create(&request);
        if found {
            created.unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
            shim.start(name, "").unwrap();
            assert_eq!(shim.reap(name, ""), 3, "{name}");
        } else {
            let refusal = created.unwrap_err();
            assert!(refusal.message.contains("\"/no/such/runtime\""), "{name}: {refusal:?}");
            assert!(refusal.message.contains("BERTH_CONF_FILE"), "{name}: {refusal:?}");
        }
        assert_eq!(host.script().calls().len() > before, found, "{name}");
        shim.stop();
    }
    let shim = host.start("c", Spec::sh("exit 3"));
    let unknown = Any { type_url: "example.v1.Options".into(), ..Any::default() };
    for (name, options, part) in [
        ("options of another type", unknown, "example.v1.Options"),
        (
            "an unknown key",
            generic("", "rumtime = \"x\""),
            "the create options:1 (create option ConfigBody): rumtime: unknown key",
        ),
        (
            "a missing file",
            generic("/no/such/file", ""),
            "/no/such/file (create option ConfigPath)",
        ),
    ] {
        let mut request = shim.request("c");
        request.options = Some(options).into();
        let refusal = shim.create(&request).unwrap_err();
        assert!(refusal.message.contains(part), "{name}: {refusal:?}");
        assert_ne!(refusal.code, Code::OK, "{name}");
        assert!(host.mounts().is_empty(), "{name}");
    }
    shim.stop();
    // Without the option Root the runtime's own is used, which keeps a directory per namespace.
    drop(fs::remove_dir("/run/containerd/runc/tests"));
}

#[test]
fn a_systemd_cgroup_is_known_by_its_path() {
    if skipped("systemd cgroups without the option") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    let config = host.bundle("c").join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    host.script().set("create", "fail on purpose");
    for (path, systemd) in [("/berth-test/c", false), ("system.slice:berth-test:c", true)] {
        let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        spec["linux"]["cgroupsPath"] = json!(path);
        fs::write(&config, spec.to_string()).unwrap();
        shim.create_plain("c").unwrap_err();
        let arguments = Script::arguments(&host.script().last("create"));
        let expected = systemd && Path::new("/run/systemd/system").is_dir();
        assert_eq!(arguments.contains(&"--systemd-cgroup".to_owned()), expected, "{path}");
    }
    shim.stop();
}
