//! `doctor`: what was left behind is found and mended, what is in use is not touched, and what hangs
//! holds nothing up.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde_json::Value;

use crate::support::{Host, Shim, Spec, Stdin, binary, patient, skipped, timed};

/// A host whose directory is laid out as containerd's state directory.
fn host() -> Host {
    let host = Host::new();
    symlink("task", host.dir().join("io.containerd.runtime.v2.task")).unwrap();
    symlink("root", host.dir().join("runc")).unwrap();
    fs::create_dir_all(host.dir().join("task/tests")).unwrap();
    host
}

/// A shim with its socket in the host's own directory, and its container, which runs.
fn run<'h>(host: &'h Host, id: &str) -> Shim<'h> {
    host.prepare(id, Spec::idle());
    let shim = host.attach(id, &Stdin::Bootstrap);
    shim.run(id);
    drop(host.management(id));
    shim
}

fn doctor(host: &Host, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("doctor").arg("-state").arg(host.dir()).args(args);
    command.env("BERTH_RUN_DIR", host.management_dir()).env_remove("NO_COLOR");
    command
}

/// Exit code and report.
#[track_caller]
fn report(command: &mut Command) -> (i32, Value) {
    let Output { status, stdout, stderr } = command.arg("-json").output().unwrap();
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    let value: Value = serde_json::from_slice(&stdout).unwrap();
    let code = status.code().unwrap();
    assert_eq!(value["healthy"], code == 0, "{value:#}");
    (code, value)
}

/// The one finding that begins so.
#[track_caller]
fn finding<'v>(report: &'v Value, what: &str) -> &'v Value {
    let all = report["findings"].as_array().unwrap().iter();
    let found: Vec<_> = all.filter(|it| it["what"].as_str().unwrap().starts_with(what)).collect();
    assert_eq!(found.len(), 1, "{what:?} in {report:#}");
    found[0]
}

fn left_behind(report: &Value) -> Vec<&str> {
    let all = report["findings"].as_array().unwrap().iter();
    let own = all.filter(|it| it["topic"] == "leftovers");
    own.map(|it| it["what"].as_str().unwrap()).collect()
}

/// Makes a file or directory look as if it had been there for long.
fn age(path: &Path) {
    let long_ago = TimeSpec::new(1_000_000_000, 0);
    utimensat(nix::fcntl::AT_FDCWD, path, &long_ago, &long_ago, UtimensatFlags::NoFollowSymlink)
        .unwrap();
}

/// Removes a bundle as nobody should.
fn remove_bundle(host: &Host, id: &str) {
    let bundle = host.bundle(id);
    for place in host.mounts().iter().rev().filter(|place| place.starts_with(&bundle)) {
        umount2(place, MntFlags::MNT_DETACH).unwrap();
    }
    fs::remove_dir_all(bundle).unwrap();
}

/// A socket that nobody listens on (any more).
fn dead_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    age(path);
}

#[test]
fn what_was_left_behind_is_found_and_mended() {
    if skipped("doctor") {
        return;
    }
    let host = host();
    let (code, first) = report(&mut doctor(&host, &[]));
    assert_eq!((code, left_behind(&first)), (0, vec!["nothing"]), "{first:#}");

    let living = run(&host, "living");
    run(&host, "orphan").crash();
    let leaked = run(&host, "leaked");
    remove_bundle(&host, "leaked");
    let lost = run(&host, "lost");
    lost.crash();
    remove_bundle(&host, "lost");
    age(Path::new(lost.address().trim_start_matches("unix://")));
    dead_socket(&host.management_dir().join("tests/dead.sock"));
    dead_socket(&host.dir().join("s/dead"));
    let rootfs = host.bundle("mounted").join("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    mount(Some("t"), &rootfs, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    age(&host.bundle("mounted"));

    let (code, sick) = report(&mut doctor(&host, &[]));
    assert_eq!(code, 1, "{sick:#}");
    let expected = [
        ("orphaned container tests/orphan: its program runs on", "task/tests/orphan", "delete"),
        ("leaked shim of tests/leaked", "task/tests/leaked", "doctor -fix"),
        (
            "orphaned container lost without shim and bundle",
            "runc/tests/lost",
            "delete --force lost",
        ),
        ("stale mount of tests/mounted", "task/tests/mounted/rootfs", "umount"),
    ];
    for (what, place, command) in expected {
        let found = finding(&sick, what);
        assert!(found["where"].as_str().unwrap().ends_with(place), "{found:#}");
        assert!(found["mend"]["command"].as_str().unwrap().contains(command), "{found:#}");
        assert_eq!(found["mend"]["safe"], true, "{found:#}");
        assert_eq!(found["level"], "warn", "{found:#}");
    }
    let text = sick.to_string();
    for socket in ["tests/dead.sock", "s/dead", "tests/orphan.sock", "tests/lost.sock"] {
        let name = socket.replace(".sock", "");
        assert!(text.contains(&name), "{socket}: {sick:#}");
    }
    assert!(!text.contains("living"), "{sick:#}");
    assert!(leaked.alive() && host.mounts().contains(&rootfs), "a look changes nothing");

    let (code, mended) = report(&mut doctor(&host, &["-fix"]));
    let done = mended["done"].as_array().unwrap();
    assert!(done.len() >= 6 && done.iter().all(|deed| deed["error"].is_null()), "{mended:#}");
    assert_eq!((code, left_behind(&mended)), (0, vec!["nothing"]), "{mended:#}");
    let (code, healthy) = report(&mut doctor(&host, &["-fix"]));
    assert_eq!((code, healthy["done"].as_array().unwrap().len()), (0, 0), "{healthy:#}");
    assert!(!leaked.alive() && !host.dir().join("s/dead").exists());
    assert!(!host.bundle("orphan").exists() && host.states().len() == 1, "{:?}", host.states());
    living.end();
}

#[test]
fn what_another_shim_may_have_is_left_alone_while_containerd_is_down() {
    if skipped("doctor") {
        return;
    }
    let host = host();
    let listener = |name: &str| UnixListener::bind(host.dir().join("s").join(name)).unwrap();
    let address = |name: &str| format!("unix://{}", host.dir().join("s").join(name).display());
    fs::create_dir_all(host.dir().join("s")).unwrap();
    let file = host.dir().join("s/notes");
    fs::write(&file, "").unwrap();
    age(&file);
    // Each container of a pod has its bundle; the shim works in the first. containerd 1 and 2 have it written down.
    let listeners = [listener("one"), listener("two")];
    let bundles = ["one", "two", "pods", ".removed"].map(|id| host.bundle(id));
    for bundle in &bundles {
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        mount(Some("t"), &bundle.join("rootfs"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .unwrap();
    }
    fs::write(bundles[0].join("address"), address("one")).unwrap();
    let two = format!("{{\"version\":3,\"address\":{:?},\"protocol\":\"ttrpc\"}}", address("two"));
    fs::write(bundles[1].join("bootstrap.json"), two).unwrap();
    bundles.iter().for_each(|bundle| age(bundle));
    let shim = host.dir().join("containerd-shim-other-v1");
    fs::copy("/bin/sleep", &shim).unwrap();
    let pod = host.bundle("pod");
    fs::create_dir_all(&pod).unwrap();
    let mut shim = Command::new(shim).arg("1000").current_dir(&pod).spawn().unwrap();

    let (code, told) = report(&mut doctor(&host, &["-fix"]));
    let mounted = |bundle: &Path| host.mounts().contains(&bundle.join("rootfs"));
    let untouched = bundles.iter().all(|bundle| mounted(bundle)) && file.exists();
    shim.kill().unwrap();
    shim.wait().unwrap();
    drop(listeners);
    assert_eq!((code, left_behind(&told)), (0, vec!["nothing"]), "{told:#}");
    assert!(untouched, "{told:#}");

    age(&host.dir().join("s/one"));
    age(&host.dir().join("s/two"));
    let (_, sick) = report(&mut doctor(&host, &["-fix"]));
    assert_eq!(left_behind(&sick), ["nothing"], "{sick:#}");
    assert!(sick["done"].as_array().unwrap().len() >= 3, "{sick:#}");
    assert_eq!([0, 1, 2, 3].map(|one| mounted(&bundles[one])), [false, false, false, true]);
    assert!(file.exists());
    umount2(&bundles[3].join("rootfs"), MntFlags::MNT_DETACH).unwrap();
}

/// Plays containerd: each call is answered with the message that `answer` gives for the request.
fn containerd(path: &Path, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let mut length = 0;
            while !request[..length].windows(8).any(|part| part == b"trailers") {
                length += stream.read(&mut request[length..]).unwrap();
            }
            let message = answer(&String::from_utf8_lossy(&request[..length]));
            let size = u8::try_from(message.len()).unwrap();
            let data = [&[0, 0, size + 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, size], &*message].concat();
            let end = [0, 0, 0, 1, 5, 0, 0, 0, 1]; // HEADERS, END_STREAM | END_HEADERS
            drop(stream.write_all(&[&[0, 0, 0, 4, 0, 0, 0, 0, 0], &*data, &end].concat()));
            drop(stream.read(&mut request));
        }
    });
}

/// A field that has `content`.
fn field(content: &[u8]) -> Vec<u8> {
    [&[10, u8::try_from(content.len()).unwrap()], content].concat()
}

#[test]
fn what_containerd_lists_or_does_not_tell_of_is_left_alone() {
    if skipped("doctor") {
        return;
    }
    let host = host();
    run(&host, "mine").crash();
    let leaked = run(&host, "leaked");
    remove_bundle(&host, "leaked");
    let pids = host.processes().len();

    let listing = host.dir().join("listing");
    containerd(&listing, |request| match request {
        _ if request.contains("Version") => field(b"v9.8.7"),
        _ if request.contains("Tasks/List") => {
            [field(&field(b"mine")), field(&field(b"leaked"))].concat()
        }
        _ => Vec::new(),
    });
    let mute = host.dir().join("mute");
    let _mute = UnixListener::bind(&mute).unwrap();
    let cases = [
        (&listing, "containerd 9.8.7 runs", "containerd lists it"),
        (&mute, "containerd is mute", "does not tell"),
    ];
    for (address, what, why) in cases {
        let address = address.to_str().unwrap();
        let ((code, told), took) =
            timed(|| report(&mut doctor(&host, &["-fix", "-address", address])));
        assert_eq!(code, 1, "{told:#}");
        assert!(took < patient(Duration::from_secs(20)), "{took:?}");
        finding(&told, what);
        for what in ["orphaned container tests/mine", "leaked shim of tests/leaked"] {
            let found = finding(&told, what);
            assert!(found["why"].as_str().unwrap().contains(why), "{found:#}");
            assert_eq!(found["mend"]["safe"], false, "{found:#}");
        }
        assert_eq!(host.processes().len(), pids, "{why}");
        assert!(leaked.alive() && host.bundle("mine").exists(), "{why}");
    }
    let (code, mended) = report(&mut doctor(&host, &["-fix"]));
    assert_eq!(code, 0, "{mended:#}");
}

#[test]
fn what_hangs_is_told_and_holds_nothing_up() {
    if skipped("doctor") {
        return;
    }
    let host = host();
    let shim = run(&host, "stopped");
    shim.signal(Signal::SIGSTOP);
    let config = host.dir().join("berth.toml");
    let runtime = host.dir().join("hangs");
    fs::write(&runtime, "#!/bin/sh\nsleep 4321\n").unwrap();
    fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = format!("default_runtime = \"slow\"\n[runtimes.slow]\npath = {runtime:?}\n");
    fs::write(&config, text).unwrap();
    let ((code, told), took) =
        timed(|| report(doctor(&host, &["-fix"]).env("BERTH_CONF_FILE", &config)));
    assert_eq!(code, 1);
    assert!(took < patient(Duration::from_secs(20)), "{took:?}");
    let hung = finding(&told, "shim of tests/stopped hangs");
    assert_eq!(hung["why"], "no answer within 1 s", "{hung:#}");
    let slow = finding(&told, "slow, the default: `--version`: no answer");
    assert_eq!(slow["level"], "fault", "{slow:#}");
    finding(&told, config.to_str().unwrap());
    assert_eq!(left_behind(&told).len(), 1, "{told:#}");
    shim.signal(Signal::SIGCONT);
    shim.end();

    fs::write(&config, "runtme = \"x\"\n").unwrap();
    let (code, told) = report(doctor(&host, &[]).env("BERTH_CONF_FILE", &config));
    let refused = finding(&told, "the configuration is refused");
    assert_eq!((code, &refused["level"]), (1, &Value::from("fault")));
    let command = refused["mend"]["command"].as_str().unwrap();
    assert!(
        command.contains("config check /") && refused["why"].as_str().unwrap().contains("runtme")
    );
}

#[test]
fn a_terminal_gets_colours_and_nothing_else_does() {
    if skipped("doctor") {
        return;
    }
    let host = host();
    let plain = doctor(&host, &[]).output().unwrap();
    let plain = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.starts_with("host\n  ") && plain.ends_with("\nhealthy\n"), "{plain}");
    assert!(!plain.contains('\x1b'), "{plain}");
    for (no_color, coloured) in [("", true), ("1", false)] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let master: fs::File = pty.master.into();
        let slave: OwnedFd = pty.slave;
        let mut command = doctor(&host, &[]);
        let status = command.env("NO_COLOR", no_color).stdout(Stdio::from(slave)).spawn().unwrap();
        drop(command); // with the last other descriptor of the terminal
        let mut text = Vec::new();
        drop((&master).read_to_end(&mut text)); // EIO at its end
        assert!(status.wait_with_output().unwrap().status.success());
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.contains("\x1b[32mok   \x1b[0m"), coloured, "{no_color:?}: {text}");
        assert!(text.contains("left behind") && text.contains("healthy"), "{text}");
    }
}
