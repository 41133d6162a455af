//! Descriptors of everything else that berth starts: with terminals, hooks, helpers, a late `delete`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use containerd_shim_protos::api::Mount;
use serde_json::json;

use super::beyond_standard;
use crate::support::{Host, Script, Shim, Spec, Stdin, skipped};

/// Lists the descriptors of a shell without one of its own.
const LIST: &str = "ls -l /proc/$$/fd";

/// `NUMBER FILE` lines out of what [`LIST`] prints.
fn lines(list: &str) -> String {
    let entry = |line: &str| {
        let (start, file) = line.split_once(" -> ")?;
        Some(format!("{} {}\n", start.rsplit(' ').next()?, file.trim_end()))
    };
    list.lines().filter_map(entry).collect()
}

/// Says where 0, 1 and 2 lead, and what there is beyond.
fn of_a_terminal(list: &str) {
    let list = lines(list);
    for number in ["0", "1", "2"] {
        let line = list.lines().find_map(|line| line.strip_prefix(&format!("{number} ")));
        assert!(line.is_some_and(|file| file.starts_with("/dev/pts/")), "{number}: {list:?}");
    }
    // A shell that speaks to a terminal keeps one for itself.
    let own = |line: &&str| !line.contains("/dev/pts/") && !line.contains("/dev/tty");
    let more: Vec<_> = beyond_standard(&list).into_iter().filter(own).collect();
    assert_eq!(more, [""; 0], "{list}");
}

#[test]
fn processes_with_terminals_get_nothing_else() {
    let host = Host::scripted();
    let script = format!("{LIST}; echo end; exec sleep 1000");
    let shim = host.start("c", Spec::sh(&script).terminal());
    let streams = host.streams("init", [true, true, false]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    request.terminal = true;
    shim.create(&request).unwrap();
    let _more: Vec<_> = (0..4).map(|_| shim.reconnect()).collect();
    shim.start("c", "").unwrap();
    streams.out().wait_for("end");
    of_a_terminal(&streams.out().text());
    let streams = host.streams("exec", [true, true, false]);
    let mut request = shim.exec_request("c", "e", &format!("{LIST}; echo end"));
    streams.to_exec(&mut request);
    request.terminal = true;
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    streams.out().wait_for("end");
    of_a_terminal(&streams.out().text());
    shim.reap("c", "e");
    shim.remove("c");
    for command in ["create", "exec"] {
        let list = host.script().descriptors(command);
        assert_eq!(beyond_standard(&list), [""; 0], "{command}");
    }
    shim.stop();
}

#[test]
fn hooks_helpers_and_a_late_delete_get_three_descriptors() {
    if skipped("mount helpers") {
        return;
    }
    let host = Host::scripted();
    let (helped, hooked) = (host.dir().join("helped"), host.dir().join("hooked"));
    let program = |name: &str, list: &str, end: &str| {
        let path = host.dir().join("bin").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n({LIST} >{list})\n{end}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let hook = program("hook", hooked.to_str().unwrap(), "exit 0");
    program("mount.fuse3", helped.to_str().unwrap(), "echo on purpose >&2; exit 1");
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", host.dir().join("bin").display());
    let host = host.with_env("PATH", &path);
    let hooks = json!({"poststop": [{"path": hook}], "createRuntime": [{"path": hook}]});
    host.prepare("c", Spec::idle().set("/hooks", hooks));
    let shim = host.attach("c", &Stdin::Nothing);
    let _more: Vec<_> = (0..4).map(|_| shim.reconnect()).collect();

    let mut request = shim.request("c");
    let (type_, source) = ("fuse3.x".into(), "source".into());
    request.rootfs = vec![Mount { type_, source, ..Mount::default() }];
    let refusal = shim.create(&request).unwrap_err();
    assert!(refusal.message.contains("on purpose"), "{refusal:?}");
    let of = |file: &std::path::Path| fs::read_to_string(file).unwrap();
    // The list is the script's own 1; a shell reads its script as 10, or 255.
    let helper = |list: &str| {
        let list = lines(list);
        assert!(list.contains("2 "), "{list:?}");
        let own = |line: &&str| !line.ends_with("/mount.fuse3") && !line.ends_with("/hook");
        beyond_standard(&list).into_iter().filter(own).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(helper(&of(&helped)), [""; 0], "mount helper");

    shim.run("c");
    assert_eq!(helper(&of(&hooked)), [""; 0], "hook at create");
    fs::remove_file(&hooked).unwrap();
    let logged = shim.log().text();
    assert!(!logged.contains("panicked"), "{logged}");
    shim.crash();
    deleted_late(&host, &shim);
    assert_eq!(helper(&of(&hooked)), [""; 0], "hook at delete");
}

/// The runtime that `delete` runs without a daemon has what the daemon's have, and its environment.
fn deleted_late(host: &Host, shim: &Shim<'_>) {
    let delete = host.command("c", "delete");
    let mut shell = Command::new("/bin/sh");
    // As a containerd would that has such a umask and leaks a descriptor.
    shell.args(["-c", "umask 077; exec 7</etc/passwd; exec \"$@\"", "sh"]);
    shell.arg(delete.get_program()).args(delete.get_args()).current_dir(host.bundle("c"));
    shell.envs(delete.get_envs().map(|(name, value)| (name, value.unwrap())));
    let output = shell.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let list = host.script().descriptors("delete");
    assert!(list.contains("2 "), "{list}");
    assert_eq!(beyond_standard(&list), [""; 0]);
    let told = host.script().last("delete");
    assert!(Script::arguments(&told).contains(&"c".to_owned()), "{told:?}");
    assert!(told.contains(&"umask=0022".to_owned()), "{told:?}");
    let leaked = ["TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION"];
    let leaked = leaked.map(|name| format!("{name}="));
    let leaked: Vec<_> =
        told.iter().filter(|line| leaked.iter().any(|name| line.starts_with(name))).collect();
    assert_eq!(leaked, [""; 0]);
    assert!(!shim.alive());
}
