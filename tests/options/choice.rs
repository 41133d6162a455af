//! Which runtime a container gets: that of the pod's configuration, of its options, or the first
//! that is there.

use std::fs;

use super::{create, entry, log_until, tried};
use crate::support::{Code, Host, Spec, arguments, of_preset, skipped, wrapper};

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
