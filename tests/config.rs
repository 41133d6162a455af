//! Where a container's OCI runtime and its settings come from.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use containerd_shim_protos::api::Mount;
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::support::{
    Code, Host, Script, Spec, Stdin, arguments, eventually, generic, image, of_preset, of_runtime,
    skipped, wrapper,
};

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

#[test]
fn containers_of_a_pod_have_the_runtimes_of_the_table_that_they_name() {
    if skipped("named runtimes") {
        return;
    }
    let host = Host::scripted();
    let script = host.runtime();
    let first = wrapper(host.dir(), "first", 3, &script);
    let second = wrapper(host.dir(), "second", 0, &script);
    let root = host.root();
    let host = host.configured(&format!(
        "default_runtime = \"one\"\n\
         [runtimes.one]\npath = {first:?}\nroot = {root:?}\n\
         args = [\"--log-level\", 'a b \"c\"', \"\"]\nenv = {{ MARK = \"of one\" }}\n\
         annotations = {{ \"org.example/mark\" = \"yes\", old = \"new\" }}\n\
         [runtimes.two]\npath = {second:?}\nroot = {root:?}\nno_pivot_root = true\n"
    ));
    let spec = Spec::idle().of_pod("a").set("/annotations/old", json!("old"));
    let shim = host.start("a", spec.clone());
    host.prepare("b", of_runtime(spec, "two"));
    host.attach("b", &Stdin::Nothing);
    for id in ["a", "b"] {
        let mut request = shim.request(id);
        request.options = None.into();
        shim.create(&request).unwrap();
        shim.start(id, "").unwrap();
    }
    let before = ["--log-level", "a b \"c\"", "", "--root"];
    let marked = |id: &str| {
        let text = fs::read_to_string(host.bundle(id).join("config.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        let annotation = |name: &str| spec["annotations"][name].as_str().map(str::to_owned);
        (annotation("org.example/mark"), annotation("old"))
    };
    assert_eq!(marked("a"), (Some("yes".into()), Some("new".into())));
    assert_eq!(marked("b"), (None, Some("old".into())));
    // What the containers were made with counts, whatever becomes of the file.
    fs::write(host.dir().join("berth.toml"), "broken").unwrap();
    shim.exec_run("a", "e", "exit 4").unwrap();
    assert_eq!(arguments(&first)[..4], before);
    assert_eq!(shim.reap("a", "e"), 4);
    for (id, wrapper, before, mark) in
        [("a", &first, &before[..], "of one\n"), ("b", &second, &["--root"], "\n")]
    {
        shim.kill(id, "", 15).unwrap();
        assert_eq!(shim.reap(id, ""), 143, "{id}");
        assert_eq!(arguments(wrapper)[..before.len()], *before, "{id}");
        assert!(arguments(wrapper).contains(&"delete".to_owned()), "{id}");
        assert_eq!(fs::read_to_string(format!("{wrapper}.mark")).unwrap(), mark, "{id}");
    }
    shim.stop();
}

#[test]
fn delete_uses_the_runtime_that_the_container_was_made_with() {
    if skipped("named runtimes") {
        return;
    }
    let host = Host::scripted();
    let wrapper = wrapper(host.dir(), "wrapper", 1, &host.runtime());
    let root = host.root();
    let host = host.configured(&format!(
        "default_runtime = \"x\"\n\
         [runtimes.x]\npath = {wrapper:?}\nroot = {root:?}\nargs = [\"--own\"]\n"
    ));
    let shim = host.start("c", Spec::idle());
    let mut request = shim.request("c");
    request.options = None.into();
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    fs::remove_file(host.dir().join("berth.toml")).unwrap();
    shim.crash();
    host.delete("c");
    let arguments = arguments(&wrapper);
    assert_eq!(arguments[..2], ["--own", "--root"]);
    assert!(arguments.contains(&"delete".to_owned()), "{arguments:?}");
}

#[test]
fn the_first_container_decides_for_the_pod() {
    if skipped("presets") {
        return;
    }
    let host = Host::scripted();
    let (script, root, presets) = (host.runtime(), host.root(), host.dir().join("presets"));
    let wrappers = ["host", "first", "second"].map(|name| wrapper(host.dir(), name, 0, &script));
    let text = |wrapper: &String| {
        format!("default_runtime = \"x\"\n[runtimes.x]\npath = {wrapper:?}\nroot = {root:?}\n")
    };
    fs::create_dir(&presets).unwrap();
    for (name, wrapper) in [("first", &wrappers[1]), ("second", &wrappers[2])] {
        fs::write(presets.join(name).with_extension("toml"), text(wrapper)).unwrap();
    }
    let host = host.configured(&format!("preset_dir = {presets:?}\n{}", text(&wrappers[0])));
    let spec = Spec::idle().of_pod("a");
    let shim = host.start("a", of_preset(spec.clone(), "first"));
    host.prepare("b", of_preset(spec.clone(), "second"));
    host.prepare("c", spec);
    for id in ["a", "b", "c"] {
        let mut request = shim.request(id);
        request.options = None.into();
        shim.create(&request).unwrap();
        let called = wrappers.each_ref().map(|it| arguments(it).contains(&id.to_owned()));
        assert_eq!(called, [false, true, false], "{id}");
        shim.kill(id, "", 9).unwrap();
        shim.reap(id, "");
    }
    shim.stop();
}

#[test]
fn a_refused_annotation_is_logged_with_its_pod() {
    if skipped("annotations") {
        return;
    }
    let host = Host::scripted();
    let presets = host.dir().join("presets");
    fs::create_dir(&presets).unwrap();
    let host = host.configured(&format!("preset_dir = {presets:?}\n"));
    let shut = Host::scripted().configured("allow_annotations = false\n");
    let pod = |id: &str| Spec::idle().of_pod(id);
    type Case<'a> = (&'a str, &'a Host, Spec, Code, &'a str);
    let cases: [Case<'_>; 5] = [
        (
            "a",
            &host,
            of_preset(pod("a"), "/etc/shadow"),
            Code::PERMISSION_DENIED,
            "it is not in the preset directory",
        ),
        ("b", &host, of_preset(pod("b"), "../berth.toml"), Code::PERMISSION_DENIED, "leads out of"),
        ("c", &host, of_runtime(pod("c"), "/bin/sh"), Code::PERMISSION_DENIED, "never a program"),
        (
            "d",
            &shut,
            of_preset(pod("d"), "x"),
            Code::PERMISSION_DENIED,
            "annotations are switched off: allow",
        ),
        (
            "e",
            &shut,
            of_runtime(pod("e"), "x"),
            Code::PERMISSION_DENIED,
            "annotations are switched off: allow",
        ),
    ];
    for (id, host, spec, code, part) in cases {
        let shim = host.start(id, spec);
        let refusal = shim.create_plain(id).unwrap_err();
        assert_eq!(refusal.code, code, "{id}: {refusal:?}");
        assert!(refusal.message.contains(part), "{id}: {refusal:?}");
        assert!(host.script().calls().is_empty(), "{id}");
        let line = format!("pod \\\"{id}\\\": annotation io.containerd.berth.");
        eventually("the refusal in the log", || shim.log().text().contains(&line).then_some(()));
        shim.stop();
    }
}

#[test]
fn a_block_device_is_handed_to_the_runtime_that_takes_it() {
    if skipped("block_rootfs") {
        return;
    }
    let host = Host::scripted();
    // It mounts what the spec's annotations name, as a runtime with its own kernel would.
    let path = host.dir().join("guest");
    let script = host.runtime();
    let text = format!(
        "#!/bin/sh\n\
         field() {{ sed -n \"s/.*\\\"io.containerd.berth.rootfs.$1\\\":\\\"\\([^\\\"]*\\)\\\".*/\\1/p\" config.json; }}\n\
         case \" $* \" in\n\
         *' create '*) mount -t $(field type) -o $(field options) $(field source) rootfs || exit ;;\n\
         *' delete '*) umount rootfs ;;\n\
         esac\nexec {script} \"$@\"\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let root = host.root();
    let host = host.configured(&format!(
        "[runtimes.guest]\npath = {path:?}\nroot = {root:?}\nblock_rootfs = \"pass\"\n\
         [runtimes.plain]\npath = {script:?}\nroot = {root:?}\n"
    ));
    for (name, make) in [("ext4", EXT4), ("erofs", EROFS)] {
        let disk = host.dir().join(name);
        let script = format!("{make} && losetup --find --show --read-only \"$0\"");
        let made = Command::new("sh").args(["-c", &script]).arg(&disk).arg(image()).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{name}: {made:?}");
        let device = String::from_utf8(made.stdout).unwrap().lines().last().unwrap().to_owned();
        let _device = LoopDevice(device.clone());
        for (id, runtime) in [(format!("g-{name}"), "guest"), (format!("p-{name}"), "plain")] {
            let shim = host.start(&id, of_runtime(Spec::sh("exit 7"), runtime));
            let mut request = shim.request(&id);
            request.options = None.into();
            request.rootfs = vec![Mount {
                type_: name.into(),
                source: device.clone(),
                options: vec!["ro".into(), "noatime".into()],
                ..Mount::default()
            }];
            shim.create(&request).unwrap_or_else(|refusal| panic!("{id}: {refusal:?}"));
            let config = fs::read_to_string(host.bundle(&id).join("config.json")).unwrap();
            let told = config.contains(&format!("rootfs.source\":\"{device}\""));
            assert_eq!(told, runtime == "guest", "{id}: {config}");
            shim.start(&id, "").unwrap();
            assert_eq!(shim.reap(&id, ""), 7, "{id}");
            shim.stop();
            assert!(host.mounts().is_empty(), "{id}");
        }
    }
}

/// Freed when dropped.
struct LoopDevice(String);

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let freed = Command::new("losetup").args(["--detach", &self.0]).status().unwrap();
        assert!(freed.success() || std::thread::panicking(), "{}", self.0);
    }
}

/// Makes an image of the directory `$1` in the file `$0`.
const EXT4: &str = "mke2fs -q -t ext4 -d \"$1\" \"$0\" 16M";
/// As [`EXT4`].
const EROFS: &str = "mkfs.erofs --quiet \"$0\" \"$1\" >/dev/null";

#[test]
fn rootless_is_refused_outside_of_a_user_namespace() {
    let initial = fs::read_to_string("/proc/self/uid_map").unwrap();
    if skipped("rootless") || !initial.split_whitespace().eq(["0", "0", "4294967295"]) {
        return;
    }
    let host = Host::scripted();
    let script = host.runtime();
    let host = host.configured(&format!(
        "default_runtime = \"x\"\n[runtimes.x]\npath = {script:?}\nrootless = true\n"
    ));
    let shim = host.start("c", Spec::idle());
    let refusal = shim.create_plain("c").unwrap_err();
    assert!(refusal.message.contains("RootlessKit"), "{refusal:?}");
    shim.stop();
}
