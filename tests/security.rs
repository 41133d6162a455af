//! What nobody may get at: descriptors, sockets, environment, secrets, and what hostile names do.

mod descriptors;
mod names;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{Code, Host, Reader, Spec, bind, mkfifo, skipped};

/// Lists the descriptors of a shell, as [`beyond_standard`] reads them.
const LIST: &str = "for fd in /proc/$$/fd/*; do echo \"${fd##*/} $(readlink $fd)\"; done";

/// The lines of a list of descriptors that are neither standard streams nor the shell's own: its script,
/// and copies of the streams that it puts aside.
fn beyond_standard(list: &str) -> Vec<&str> {
    let entries = || list.lines().filter_map(|line| line.split_once(' '));
    let standard = |number: &str| ["0", "1", "2"].contains(&number);
    let streams: Vec<_> = entries().filter(|(number, _)| standard(number)).collect();
    let own = |number: &str, file: &str| {
        let copy = number.len() > 1 && streams.iter().any(|(_, stream)| *stream == file);
        standard(number) || copy || file.is_empty() || file.ends_with("/runtime.sh")
    };
    let is_own = |line: &&str| line.split_once(' ').is_none_or(|(number, file)| own(number, file));
    list.lines().filter(|line| !is_own(line)).collect()
}

#[test]
fn containers_and_runtimes_get_three_descriptors() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::sh(&format!("{LIST}; sleep 1000")));
    let output = |name: &str| {
        let path = host.dir().join(name);
        let uri = mkfifo(&path);
        (uri, Reader::open(path))
    };
    let (stdout, init) = output("init");
    let mut request = shim.request("c");
    request.stdout = stdout;
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    init.wait_for("2 ");
    // Beside connections, a second container and a logger's descriptors there are more to leak.
    let _more: Vec<_> = (0..8).map(|_| shim.reconnect()).collect();
    let (stdout, exec) = output("exec");
    let mut request = shim.exec_request("c", "e", LIST);
    request.stdout = stdout;
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    assert_eq!(shim.reap("c", "e"), 0);
    let (init, exec) = (init.text(), exec.finish());
    for (whose, list) in [("init", init.as_str()), ("exec", &exec)] {
        assert!(list.contains("0 /dev/null"), "{whose}: {list:?}");
        let pipes = beyond_standard(list).into_iter().filter(|line| !line.contains(" pipe:"));
        assert_eq!(pipes.collect::<Vec<_>>(), [""; 0], "{whose}");
    }
    shim.remove("c");
    for command in ["create", "start", "exec", "kill", "delete"] {
        let list = host.script().descriptors(command);
        assert!(list.contains("2 "), "{command}: {list:?}");
        assert_eq!(beyond_standard(&list), [""; 0], "{command}");
    }
    shim.stop();
}

#[test]
fn a_runtime_s_environment_and_umask_are_set() {
    let hidden = [
        ("NOTIFY_SOCKET", "/run/notify"),
        ("LISTEN_FDS", "1"),
        ("LISTEN_PID", "7"),
        ("INVOCATION_ID", "x"),
        ("SCHED_CORE", ""),
    ];
    for umask in ["000", "077"] {
        let mut host = Host::scripted().with_env("TO_THE_RUNTIME", "yes");
        for (name, value) in hidden {
            host = host.with_env(name, value);
        }
        host.prepare("c", Spec::idle());
        let _log = host.log("c");
        // As a containerd with that umask would.
        let start = host.command("c", "start");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("umask {umask}; exec 7</etc/passwd; exec \"$@\""), "sh"]);
        shell.arg(start.get_program()).args(start.get_args());
        shell.current_dir(host.bundle("c"));
        for (name, value) in start.get_envs() {
            shell.env(name, value.unwrap());
        }
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let socket = String::from_utf8(output.stdout).unwrap();
        let shim = host.attach("c", &crate::support::Stdin::Nothing);
        assert_eq!(shim.address(), socket.trim(), "the daemon that was started so");
        shim.run("c");
        assert!(!shim.descriptors().contains(&"/etc/passwd".to_owned()), "what containerd leaked");
        for command in ["create", "start"] {
            let told = host.script().last(command);
            let has = |name: &str| told.iter().any(|line| line.starts_with(&format!("{name}=")));
            assert!(has("TO_THE_RUNTIME") && has("PATH"), "{command}: {told:?}");
            if !skipped("what was meant for containerd does not reach the runtime") {
                let all = hidden.map(|(name, _)| name);
                let own = ["TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION"];
                let leaked: Vec<_> = all.iter().chain(&own).filter(|name| has(name)).collect();
                assert_eq!(leaked, [&""; 0], "{command}");
                assert!(told.contains(&"umask=0022".to_owned()), "{command}: {told:?}");
            }
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let socket = Path::new(shim.address().trim_start_matches("unix://"));
        assert_eq!(mode(socket), 0o600, "umask {umask}");
        assert_eq!(mode(socket.parent().unwrap()) & 0o022, 0, "umask {umask}");
        for name in host.files("c").iter().filter(|name| name.starts_with("berth")) {
            assert_eq!(mode(&host.bundle("c").join(name)), 0o600, "umask {umask}: {name}");
        }
        shim.end();
    }
}

#[test]
fn hostile_names_are_refused_where_they_enter() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.sink.wait_for("start c");
    let (before, events) = (host.files("c"), host.sink.of("c"));
    let long = "a".repeat(300);
    let names = ["", "../x", "/etc", "a b", "a/b", "a\0b", "ä", "a\nb", ".", "-x", &long];
    for name in names {
        let mut request = shim.request("c");
        request.id = name.into();
        let refusal = shim.create(&request).unwrap_err();
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "create {name:?}: {refusal:?}");
        let refusal = shim.exec(&shim.exec_request("c", name, "true")).unwrap_err();
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "exec {name:?}: {refusal:?}");
        assert!(refusal.message.len() < 1000, "{refusal:?}");
        // Whoever asks for what cannot be there hears that it is not.
        let refusal = shim.state(name, "").unwrap_err();
        let codes = [Code::NOT_FOUND, Code::INVALID_ARGUMENT];
        assert!(codes.contains(&refusal.code), "state {name:?}: {refusal:?}");
        let refusal = shim.kill(name, "", 9).unwrap_err();
        assert!(codes.contains(&refusal.code), "kill {name:?}: {refusal:?}");
    }
    for bundle in
        ["", "relative", "/nonexistent/bundle", "a\0b", &format!("/{}", "x/".repeat(5000))]
    {
        let mut request = shim.request("d");
        request.bundle = bundle.into();
        let refusal = shim.create(&request).unwrap_err();
        assert!(refusal.code != Code::OK && refusal.message.len() < 12_000, "{refusal:?}");
    }
    assert_eq!((host.files("c"), host.sink.of("c")), (before, events), "something has changed");
    shim.end();
}

#[test]
fn no_link_in_a_rootfs_leads_out_of_it() {
    let host = Host::new();
    let outside = host.dir().join("outside");
    fs::create_dir_all(outside.join("in")).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.remove("c");
    // What a container could leave where berth mounts, were it not below a mount; and a layer with links.
    let rootfs = host.bundle("c").join("rootfs");
    fs::remove_dir(&rootfs).unwrap();
    symlink(&outside, &rootfs).unwrap();
    let mut request = shim.request("c");
    request.rootfs = vec![bind(outside.join("in").to_str().unwrap(), &["rbind", "ro"])];
    let refused = shim.create(&request);
    assert!(refused.is_err(), "mounted through a link");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    fs::remove_file(&rootfs).unwrap();
    fs::create_dir(&rootfs).unwrap();
    shim.stop();
}

#[test]
fn secrets_in_an_environment_stay_out_of_the_log() {
    const SECRET: &str = "hunter2-correct-horse";
    let host = Host::scripted().with_env("DAEMONS", &format!("{SECRET}-daemon"));
    let host = host.with_env("BERTH_LOG_LEVEL", "trace");
    let (script, root) = (host.runtime(), host.root());
    let host = host.configured(&format!(
        "default_runtime = \"own\"\n[runtimes.own]\npath = {script:?}\nroot = {root:?}\n\
         [runtimes.own.env]\nCONFIGURED = \"{SECRET}-configured\"\n"
    ));
    let env = json!(["PATH=/bin", format!("PASSWORD={SECRET}")]);
    let shim = host.start("c", Spec::idle().set("/process/env", env.clone()));
    host.script().set("create", "fail on purpose");
    let mut request = shim.request("c");
    request.options = None.into();
    shim.create(&request).unwrap_err();
    if !skipped("the configuration's environment") {
        let told = host.script().last("create");
        for name in ["DAEMONS", "CONFIGURED"] {
            let is_there = told.iter().any(|line| line.starts_with(&format!("{name}={SECRET}")));
            assert!(is_there, "{name} does not reach the runtime: {told:?}");
        }
    }
    host.script().clear("create");
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["true", SECRET], "cwd": "/", "env": env,
    });
    for (round, mood) in ["fail on purpose", ""].into_iter().enumerate() {
        let id = format!("e{round}");
        host.script().set("exec", mood);
        shim.exec(&shim.exec_process("c", &id, process.clone())).unwrap();
        let started = shim.start("c", &id);
        assert_eq!(started.is_ok(), mood.is_empty(), "{started:?}");
        if started.is_ok() {
            shim.wait("c", &id).unwrap();
        }
        shim.delete("c", &id).unwrap();
    }
    // A description that cannot be read is quoted nowhere either.
    let mut broken = shim.exec_request("c", "e9", "true");
    broken.spec.as_mut().unwrap().value = format!("{{\"env\": [\"{SECRET}\"], ").into();
    let refusal = shim.exec(&broken).unwrap_err();
    assert!(!refusal.message.contains(SECRET), "{refusal:?}");
    shim.signal(nix::sys::signal::Signal::SIGUSR1);
    shim.log().wait_for("on purpose");
    shim.remove("c");
    let text = shim.log().text();
    assert!(!text.contains(SECRET), "{text}");
    let files = host.files("c");
    assert!(!files.iter().any(|name| name.contains("process")), "{files:?}");
    shim.stop();
}

#[test]
fn sockets_and_directories_are_closed_to_others() {
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let shim = host.attach("c", &crate::support::Stdin::Bootstrap);
    let socket = Path::new(shim.address().trim_start_matches("unix://")).to_owned();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    if !skipped("the bootstrap message names the directory") {
        assert_eq!(socket.parent().unwrap(), host.dir().join("s"), "as it was asked for");
        assert_eq!(mode(socket.parent().unwrap()), 0o700, "made by berth");
    }
    let refused = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "test", "-e"])
        .arg(&socket)
        .status();
    assert!(!refused.unwrap().success(), "another uid sees the socket");
    shim.run("c");
    shim.end();
}

#[test]
fn a_container_gains_rights_as_its_spec_says() {
    // The daemon's own `no_new_privs` would be every container's, and end setuid programs in them.
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let of = |pid: &dyn std::fmt::Display| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("NoNewPrivs:\t"));
        line.unwrap().to_owned()
    };
    assert_eq!(of(&shim.pid()), "0", "the daemon");
    for (no_new_privileges, expected) in [(false, "0"), (true, "1")] {
        let spec = Spec::idle().set("/process/noNewPrivileges", json!(no_new_privileges));
        host.prepare("c", spec);
        let pid = shim.run("c");
        assert_eq!(of(&pid), expected, "noNewPrivileges: {no_new_privileges}");
        shim.remove("c");
    }
    shim.stop();
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for lint in ["unsafe_code = \"deny\"", "undocumented_unsafe_blocks = \"deny\""] {
        assert!(manifest.contains(lint), "{lint}");
    }
    let mut dirs = vec![root.join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.extend((path != root.join("src/sys")).then_some(path));
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let found: Vec<_> = code.filter(|line| line.contains("unsafe")).collect();
            // The one exception, for the module itself.
            let sys = "#[expect(unsafe_code, reason = ";
            let right =
                found.iter().all(|line| line.starts_with(sys) && path.ends_with("src/lib.rs"));
            assert!(right && found.len() <= 1, "{}: {found:?}", path.display());
        }
    }
}

/// Every `.rs` file below `dir`, as one text.
fn sources(dir: &Path) -> String {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: std::path::PathBuf| match path.is_dir() {
        true => sources(&path),
        false if path.extension().is_some_and(|end| end == "rs") => {
            fs::read_to_string(path).unwrap()
        }
        false => String::new(),
    };
    entries.map(text).collect()
}

#[test]
fn what_the_security_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("packaging/SECURITY.md")).unwrap();
    let all = sources(&root.join("src")) + &sources(&root.join("tests"));
    let quoted = page.split('`').skip(1).step_by(2);
    let tests: Vec<_> = quoted.filter(|name| name.matches('_').count() > 2).collect();
    assert!(tests.len() > 15, "{tests:?}");
    for name in tests {
        assert!(all.contains(&format!("fn {name}()")), "there is no test {name}");
    }
}
