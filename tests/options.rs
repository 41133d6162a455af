//! What options and the configuration file say reaches the runtime, each value by each of its ways.

mod choice;

use std::fs;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::shim::oci::Options;
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::support::{
    Answer, Code, Host, Script, Shim, Spec, eventually, generic, of_runtime, skipped, timed,
};

/// Creates container `id` with these options and no others.
fn create(shim: &Shim<'_>, id: &str, options: Option<Any>) -> Answer<u32> {
    let mut request = shim.request(id);
    request.options = options.into();
    shim.create(&request)
}

/// The arguments of a `create` that the scripted runtime fails on purpose.
#[track_caller]
fn tried(host: &Host, shim: &Shim<'_>, id: &str, options: Option<Any>, case: &str) -> Vec<String> {
    let refusal = create(shim, id, options).unwrap_err();
    assert!(refusal.message.contains("on purpose"), "{case}: {refusal:?}");
    Script::arguments(&host.script().last("create"))
}

/// Which of `words`, each one or more arguments, are among the arguments.
fn found<'a>(arguments: &[String], words: &[&'a str]) -> Vec<&'a str> {
    let line = format!(" {} ", arguments.join(" "));
    words.iter().copied().filter(|word| line.contains(&format!(" {word} "))).collect()
}

/// An entry of the table with the scripted runtime, and `more` of its keys.
fn entry(host: &Host, name: &str, more: &str) -> String {
    let (path, root) = (host.runtime(), host.root());
    format!("[runtimes.{name}]\npath = {path:?}\nroot = {root:?}\n{more}\n")
}

/// Whether runtimes can leave cgroups to systemd.
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A single value: what it is for the runtime, and how each way writes it.
struct Value {
    argument: &'static str,
    option: fn(&mut Options),
    body: &'static str,
    entry: &'static str,
}

const VALUES: [Value; 4] = [
    Value {
        argument: "--root /x/tests",
        option: |options| options.root = "/x".into(),
        body: "Root = '/x'",
        entry: "root = '/x'",
    },
    Value {
        argument: "--no-pivot",
        option: |options| options.no_pivot_root = true,
        body: "NoPivotRoot = true",
        entry: "no_pivot_root = true",
    },
    Value {
        argument: "--no-new-keyring",
        option: |options| options.no_new_keyring = true,
        body: "NoNewKeyring = true",
        entry: "no_new_keyring = true",
    },
    Value {
        argument: "--systemd-cgroup",
        option: |options| options.systemd_cgroup = true,
        body: "SystemdCgroup = true",
        entry: "systemd_cgroup = true",
    },
];

#[test]
fn each_single_value_reaches_the_runtime_by_each_of_its_ways() {
    if skipped("values of tables of options and of entries") {
        return;
    }
    let host = Host::scripted().configured("");
    host.script().set("create", "fail on purpose");
    host.script().set("delete", "nopid");
    let script = host.runtime();
    let shim = host.start("c", Spec::idle());
    let all = VALUES.map(|value| value.argument);
    let head = format!("default_runtime = \"x\"\n[runtimes.x]\npath = {script:?}\n");
    let body = format!("BinaryName = {script:?}\n");
    for Value { argument, option, body: value, entry } in VALUES {
        for (way, more, options, expected) in [
            ("no way", "", None, vec![]),
            ("runc options", "", Some(shim.options(option)), vec![argument]),
            ("a table", "", Some(generic("", &format!("{body}{value}"))), vec![argument]),
            ("the entry", entry, None, vec![argument]),
        ] {
            let case = format!("{argument} by {way}");
            host.configure(&format!("{head}{more}\n"));
            if more == "systemd_cgroup = true" && !systemd_runs() {
                let refusal = create(&shim, "c", options).unwrap_err();
                assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{case}: {refusal:?}");
                assert!(refusal.message.contains("systemd does not run"), "{case}: {refusal:?}");
                continue;
            }
            let arguments = tried(&host, &shim, "c", options, &case);
            assert_eq!(found(&arguments, &all), expected, "{case}: {arguments:?}");
        }
    }
    shim.stop();
}

#[test]
fn an_entry_decides_about_systemd_unless_an_option_does() {
    if skipped("systemd cgroups by the entry") {
        return;
    }
    let host = Host::scripted().configured("");
    host.script().set("create", "fail on purpose");
    host.script().set("delete", "fail there is nothing");
    let shim = host.start("c", Spec::idle());
    let runs = systemd_runs();
    let systemd = |options: &mut Options| options.systemd_cgroup = true;
    // Where systemd does not run, the warning tells "auto" from false.
    for (case, choice, options, path, expected, warned) in [
        ("false, systemd's path", "false", None, "system.slice:berth-test:c", false, false),
        ("auto, systemd's path", "'auto'", None, "system.slice:berth-test:c", runs, !runs),
        ("auto, a plain path", "'auto'", None, "/berth-test/c", false, false),
        ("an option", "false", Some(shim.options(systemd)), "/berth-test/c", true, false),
    ] {
        let more = format!("systemd_cgroup = {choice}");
        host.configure(&format!("default_runtime = \"x\"\n{}", entry(&host, "x", &more)));
        host.prepare("c", Spec::idle().set("/linux/cgroupsPath", json!(path)));
        let before = shim.log().len();
        let arguments = tried(&host, &shim, "c", options, case);
        assert_eq!(!found(&arguments, &["--systemd-cgroup"]).is_empty(), expected, "{case}");
        let log = log_until(&shim, before, "undoing the failed create");
        assert_eq!(log.contains("cgroupsPath is systemd's"), warned, "{case}: {log}");
    }
    shim.stop();
}

/// What the daemon logs from byte `before` on, up to a line with `last` and maybe more.
#[track_caller]
fn log_until(shim: &Shim<'_>, before: usize, last: &str) -> String {
    eventually(last, || {
        let log = shim.log().text().split_off(before);
        log.rsplit_once('\n').filter(|(lines, _)| lines.contains(last))?;
        Some(log)
    })
}

#[test]
fn options_override_the_file_s_values_for_their_own_container_alone() {
    if skipped("values of entries") {
        return;
    }
    let host = Host::scripted();
    let script = host.runtime();
    let host = host.configured(&format!(
        "default_runtime = \"x\"\n[runtimes.x]\npath = {script:?}\nroot = '/file'\n"
    ));
    let spec = Spec::idle().of_pod("a");
    let shim = host.start("a", spec.clone());
    ["b", "c"].iter().for_each(|id| host.prepare(id, spec.clone()));
    let own = format!("--root {}", host.root().join("tests").display());
    let all = [&own, "--root /file/tests", "--root /c/tests", "--no-pivot", "--no-new-keyring"];
    let first = shim.options(|options| options.no_new_keyring = true);
    create(&shim, "a", Some(first)).unwrap();
    let arguments = Script::arguments(&host.script().last("create"));
    assert_eq!(found(&arguments, &all), [&own, "--no-new-keyring"], "a");
    host.script().set("create", "fail on purpose");
    host.script().set("delete", "nopid");
    let others = shim.options(|options| {
        options.root = "/c".into();
        options.no_pivot_root = true;
    });
    for (id, options, expected) in [
        ("b", None, &["--root /file/tests"][..]),
        ("c", Some(others), &["--root /c/tests", "--no-pivot"]),
        ("b", None, &["--root /file/tests"]),
    ] {
        let arguments = tried(&host, &shim, id, options, id);
        assert_eq!(found(&arguments, &all), expected, "{id}");
    }
    host.script().reset();
    shim.kill("a", "", 9).unwrap();
    shim.reap("a", "");
    for command in ["kill", "delete"] {
        let arguments = Script::arguments(&host.script().last(command));
        assert_eq!(found(&arguments, &all), [&own], "{command}");
    }
    shim.stop();
}

#[test]
fn options_are_read_by_their_type_and_never_by_guessing() {
    if skipped("refused types of options") {
        return;
    }
    let host = Host::scripted();
    let root = host.root();
    let text = format!("default_runtime = \"x\"\n{}", entry(&host, "x", ""));
    let host = host.configured(&text);
    let file = host.dir().join("other.toml");
    fs::write(&file, &text).unwrap();
    host.configure("runtime = '/no/such/runtime'");
    let generic = generic(file.to_str().unwrap(), "").value;
    let runc = Options { root: root.to_str().unwrap().into(), ..Options::default() };
    let runc = protobuf::Message::write_to_bytes(&runc).unwrap();
    let shim = host.start("c", Spec::sh("exit 3"));
    for (case, url, value) in [
        ("an unknown type", "example.v1.Options", &[][..]),
        ("an unknown type, a known value", "example.v1.Options", &generic),
        ("an unknown type with a known end", "x/containerd.runc.v1.Options", &runc),
        ("a value without type", "", &runc),
        ("a value that is cut short", "containerd.runc.v1.Options", b"\x3a\x05ab"),
        ("a value that is not UTF-8", "containerd.runc.v1.Options", b"\x3a\x01\xff"),
        ("a group", "runtimeoptions.v1.Options", b"\x0b"),
        ("cut short under the old name", "cri.runtimeoptions.v1.Options", b"\x12\x7f/"),
    ] {
        let options = Any { type_url: url.into(), value: value.into(), ..Any::default() };
        let refusal = create(&shim, "c", Some(options)).unwrap_err();
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{case}: {refusal:?}");
        assert!(refusal.message.contains(&format!("{url:?}")), "{case}: {refusal:?}");
        assert!(host.script().calls().is_empty(), "{case}");
        assert!(host.mounts().is_empty(), "{case}");
    }
    for url in ["cri.runtimeoptions.v1.Options", "type.googleapis.com/runtimeoptions.v1.Options"] {
        let options = Any { type_url: url.into(), value: generic.clone(), ..Any::default() };
        create(&shim, "c", Some(options)).unwrap_or_else(|refusal| panic!("{url}: {refusal:?}"));
        shim.start("c", "").unwrap();
        assert_eq!(shim.reap("c", ""), 3, "{url}");
    }
    shim.stop();
}

#[test]
fn each_entry_has_its_own_deadlines() {
    if skipped("deadlines of entries") {
        return;
    }
    let host = Host::scripted();
    let text = [("hasty", "deadline.create = 0.3"), ("rash", "deadline.kill = 0.3"), ("calm", "")]
        .map(|(name, more)| entry(&host, name, more));
    let host = host.configured(&format!("default_runtime = \"calm\"\n{}", text.concat()));
    let spec = Spec::idle().of_pod("calm");
    let shim = host.start("calm", spec.clone());
    for id in ["hasty", "rash"] {
        host.prepare(id, of_runtime(spec.clone(), id));
    }
    let (own, others) = (Duration::from_millis(300), Duration::from_secs(20));
    let make = |id: &str| create(&shim, id, None).map(drop);
    let kill = |id: &str| shim.kill(id, "", 9);
    type Action<'a> = &'a dyn Fn(&str) -> Answer<()>;
    let cases: [(&str, Action<'_>, &str, &str, bool); 6] = [
        ("create", &make, "calm", "slow 0.6", true),
        ("create", &make, "hasty", "hang", false),
        ("create", &make, "rash", "slow 0.6", true),
        ("kill", &kill, "calm", "slow 0.6", true),
        ("kill", &kill, "rash", "hang", false),
        ("kill", &kill, "rash", "", true),
    ];
    for (command, action, id, mood, done) in cases {
        let case = format!("{command} of {id}, {mood}");
        host.script().set(command, mood);
        let (answer, took) = timed(|| action(id));
        assert_eq!(answer.is_ok(), done, "{case}: {answer:?}");
        assert!((mood.is_empty() || took >= own) && took < others, "{case}: {took:?}");
        if let Err(refusal) = answer {
            assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{case}: {refusal:?}");
            assert!(refusal.message.contains(&format!("sh {command}")), "{case}: {refusal:?}");
        }
    }
    for id in ["calm", "rash"] {
        assert_eq!(shim.reap(id, ""), 137, "{id}");
    }
    assert!(shim.state("hasty", "").is_err());
    shim.stop();
}
