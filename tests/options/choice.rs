//! Which runtime a container gets: that of the pod's configuration, of its options, or the first
//! that is there.

use std::fs;

use super::{create, entry, found, log_until, tried};
use crate::support::{
    Code, Host, Spec, arguments, generic, of_preset, of_runtime, skipped, wrapper,
};

#[test]
fn the_runtime_auto_is_the_first_of_four_that_is_there() {
    if skipped("the runtime \"auto\"") {
        return;
    }
    let host = Host::scripted();
    let programs = host.dir().join("bin");
    fs::create_dir(&programs).unwrap();
    let path = programs.to_str().unwrap();
    let host = host.with_env("PATH", path).configured("runtime = \"auto\"\n");
    host.script().set("create", "fail on purpose");
    host.script().set("delete", "nopid");
    // On the shim's PATH is nothing that the script could use.
    let script = format!("/usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin {}", host.runtime());
    let names = ["runc", "crun", "youki", "buildkit-runc"];
    let programs = names.map(|name| wrapper(&programs, name, 0, &script));
    let shim = host.start("c", Spec::idle());
    for (taken, program) in programs.iter().enumerate() {
        let before = shim.log().len();
        tried(&host, &shim, "c", None, program);
        let called = programs.each_ref().map(|program| !arguments(program).is_empty());
        let expected = [0, 1, 2, 3].map(|at| at <= taken); // those before were called before
        assert_eq!(called, expected, "{program}");
        let log = log_until(&shim, before, &format!("level=info msg=\"runtime {program}\""));
        let refused = |name: &&str| {
            let line = format!("level=debug msg=\"runtime \\\"{name}\\\" is not taken: ");
            log.lines().any(|it| it.contains(&line) && it.contains("on PATH\""))
        };
        let refused: Vec<_> = names.into_iter().filter(refused).collect();
        assert_eq!(refused, names[..taken], "{program}: {log}");
        fs::remove_file(program).unwrap();
    }
    let refusal = create(&shim, "c", None).unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains(&names.join(" or ")), "{refusal:?}");
    shim.stop();
}

#[test]
fn a_failed_first_create_does_not_decide_for_the_pod() {
    if skipped("configuration files") {
        return;
    }
    let host = Host::scripted();
    let presets = host.dir().join("presets");
    fs::create_dir(&presets).unwrap();
    let good = format!("default_runtime = \"x\"\n{}", entry(&host, "x", ""));
    let host = host.configured("");
    let missing = "runtime = '/no/such/runtime'";
    let broken = "default_runtime = 'x'\nrumtimes = 1";
    for (id, preset, text, part) in [
        ("missing", false, missing, "/no/such/runtime"),
        ("broken", false, broken, "rumtimes: unknown key"),
        ("missing-in-preset", true, missing, "/no/such/runtime"),
        ("broken-preset", true, broken, "rumtimes: unknown key"),
        ("no-preset", true, "", "preset"),
        ("failing", false, &good, "on purpose"),
    ] {
        let file = match preset {
            true => presets.join("p.toml"),
            false => host.dir().join("berth.toml"),
        };
        host.configure(&format!("preset_dir = {presets:?}\n"));
        let spec = Spec::sh("exit 3").of_pod(id);
        let shim = host.start(id, if preset { of_preset(spec, "p") } else { spec });
        match text {
            "" => fs::remove_file(&file).unwrap(),
            text => fs::write(&file, text).unwrap(),
        }
        host.script().set("create", "fail on purpose");
        let refusal = create(&shim, id, None).unwrap_err();
        assert!(refusal.message.contains(part), "{id}: {refusal:?}");
        host.script().reset();
        fs::write(&file, &good).unwrap();
        create(&shim, id, None).unwrap_or_else(|refusal| panic!("{id}: {refusal:?}"));
        shim.start(id, "").unwrap();
        assert_eq!(shim.reap(id, ""), 3, "{id}");
        shim.stop();
    }
}

#[test]
fn switched_off_annotations_are_refused_in_every_container_of_a_pod() {
    if skipped("annotations") {
        return;
    }
    let host = Host::scripted();
    let text = format!(
        "allow_annotations = false\ndefault_runtime = \"x\"\n{}{}",
        entry(&host, "x", ""),
        entry(&host, "y", "")
    );
    let host = host.configured(&text);
    let spec = || Spec::idle().of_pod("first");
    let shim = host.start("first", spec());
    create(&shim, "first", None).unwrap();
    for (id, spec, refused) in [
        ("preset", of_preset(spec(), "p"), true),
        ("runtime", of_runtime(spec(), "y"), true),
        ("neither", spec(), false),
    ] {
        host.prepare(id, spec);
        let calls = host.script().calls().len();
        let created = create(&shim, id, None);
        assert_eq!(created.is_err(), refused, "{id}: {created:?}");
        let Err(refusal) = created else { continue };
        assert_eq!(refusal.code, Code::PERMISSION_DENIED, "{id}: {refusal:?}");
        assert!(refusal.message.contains("allow_annotations = false"), "{id}: {refusal:?}");
        assert_eq!(host.script().calls().len(), calls, "{id}");
        shim.log().wait_for("pod \\\"first\\\": annotation io.containerd.berth.");
    }
    for id in ["neither", "first"] {
        shim.remove(id);
    }
    shim.stop();
}

#[test]
fn a_table_of_runc_s_names_alone_is_applied_on_top_of_the_host_s_file() {
    if skipped("tables of options") {
        return;
    }
    let host = Host::scripted();
    let script = host.runtime();
    let programs = ["one", "two", "three"].map(|name| wrapper(host.dir(), name, 0, &script));
    let [one, two, three] = &programs;
    let host = host.configured(&format!(
        "default_runtime = \"one\"\n[runtimes.one]\npath = {one:?}\n\
         [runtimes.two]\npath = {two:?}\nno_new_keyring = true\n"
    ));
    host.script().set("create", "fail on purpose");
    host.script().set("delete", "nopid");
    let own = format!("DefaultRuntime = \"x\"\n[runtimes.x]\npath = {three:?}\n");
    let both = ["--no-pivot", "--no-new-keyring"];
    let shim = host.start("c", Spec::idle());
    for (case, body, program, expected) in [
        ("a runtime's name", "SystemdCgroup = false\nBinaryName = 'two'", two, &both[1..]),
        ("a value", "NoPivotRoot = true", one, &both[..1]),
        ("name and value", "NoPivotRoot = true\nBinaryName = 'two'", two, &both),
        ("containerd's own keys", "TypeUrl = 'x'\nConfigPath = ''", one, &[]),
        ("a key of berth's", &own, three, &[]),
        ("both kinds", &format!("NoPivotRoot = true\n{own}"), three, &both[..1]),
    ] {
        for program in &programs {
            drop(fs::remove_file(format!("{program}.args")));
        }
        let arguments_of_create = tried(&host, &shim, "c", Some(generic("", body)), case);
        for other in &programs {
            assert_eq!(!arguments(other).is_empty(), other == program, "{case}: {other}");
        }
        assert_eq!(found(&arguments_of_create, &both), *expected, "{case}");
    }
    // The host's table counts no more where a key of berth's own is.
    let body = "BinaryName = 'two'\nAllowAnnotations = true";
    let refusal = create(&shim, "c", Some(generic("", body))).unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains("\"two\""), "{refusal:?}");
    shim.stop();
}
