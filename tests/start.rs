//! `start`: the answer, the daemon it leaves, and what it does not leave when it fails.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::proto::{Code, MessageHeader, Response, Status};

use crate::support::eventually;

mod host;

use host::{GRPC, Host, SHIM, environment, extension, run, runc_options, settled, status, words};

#[test]
fn the_daemon_inherits_the_socket_and_what_it_was_told() {
    let host = Host::new();
    let params = BootstrapParams {
        log_level: LogLevel::LOG_LEVEL_TRACE.into(),
        extensions: vec![extension(runc_options(""))],
        ..host.params("x")
    };
    // A leaked descriptor, a blocked and an ignored signal: the daemon must have none of them.
    let leaked = fs::File::open("/dev/zero").unwrap();
    let raw = leaked.as_raw_fd();
    let mut command = Command::new("/bin/sh");
    let script =
        format!("trap '' HUP USR1; exec {SHIM} \"$@\" 9</proc/{}/fd/{raw}", std::process::id());
    command.args(["-c", &script, SHIM]).args(host.command("x").get_args());
    command
        .current_dir(host.dir.path().join("x"))
        .env("MINE", "kept")
        .env_remove("BERTH_LOG_LEVEL");
    let output = run(command, &params.write_to_bytes().unwrap());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    let pid = settled(host.only_daemon());
    let mut expected = vec![SHIM];
    expected.extend(["-namespace", "ns", "-id", "x", "-address", GRPC]);
    expected.extend(["-publish-binary", "/bin/true", "-debug"]);
    assert_eq!(words(pid), expected);
    let environment = environment(pid);
    let cases = [
        ("MINE", "kept"),
        ("NAMESPACE", "ns"),
        ("GRPC_ADDRESS", GRPC),
        ("TTRPC_ADDRESS", "/run/berth-test/events"),
        ("BERTH_LOG_LEVEL", "TRACE"),
    ];
    for (key, value) in cases {
        assert_eq!(environment.get(key).map(String::as_str), Some(value), "{key}");
    }
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd"), fs::canonicalize(host.dir.path().join("x")).unwrap());
    for fd in 0..3 {
        assert_eq!(link(&format!("fd/{fd}")), Path::new("/dev/null"));
    }
    assert!(link("fd/3").to_string_lossy().starts_with("socket:["));
    let opened = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let opened = opened.map(|entry| fs::read_link(entry.path()).unwrap());
    assert!(!opened.into_iter().any(|path| path == Path::new("/dev/zero")));
    // The four that the daemon reads from a descriptor, and none that `start` inherited.
    let blocked = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1];
    let blocked = blocked.iter().fold(0_u64, |set, signal| set | (1 << (signal - 1)));
    eventually("the daemon to take its signals", || {
        (status(pid, "SigBlk") == format!("{blocked:016x}")).then_some(())
    });
    let ignored = u64::from_str_radix(&status(pid, "SigIgn"), 16).unwrap();
    // Rust's own runtime ignores SIGPIPE; libc keeps 32 and 33 for itself, whoever ignored them.
    let theirs = (1 << (libc::SIGPIPE - 1)) | (3 << 31);
    assert_eq!(ignored & !theirs, 0, "{ignored:x}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let numbers: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!((numbers[2], numbers[3]), (&*pid.to_string(), &*pid.to_string()), "group, session");
}

#[test]
fn the_answer_is_in_the_callers_dialect_and_stderr_is_silent() {
    let host = Host::new();
    let address = host.started(&host.params("x"));
    assert!(address.starts_with(&format!("unix://{}/", host.sockets().display())));
    let path = Path::new(address.strip_prefix("unix://").unwrap());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path), mode(&host.sockets())), (0o600, 0o700));
    assert_eq!(fs::read_to_string(host.dir.path().join("x/address")).unwrap(), address);
    assert!(!host.dir.path().join("x/.address").exists());

    // The old dialect has no socket directory, so this one is shared with the machine.
    // As bytes this could as well be bootstrap parameters of another identity: all is UTF-8.
    let generic = Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value: b"\x0a\x03x.Y".into(),
        ..Any::default()
    };
    let cases = [
        ("nothing", vec![]),
        ("options", runc_options("").write_to_bytes().unwrap()),
        ("cri-options", generic.write_to_bytes().unwrap()),
    ];
    for (name, input) in cases {
        let id = format!("berth-test-{}-{name}", std::process::id());
        host.bundle(&id, "");
        let output = run(host.command(&id), &input);
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        let address = String::from_utf8(output.stdout).unwrap();
        let path = address.strip_prefix("unix:///run/containerd/s/").unwrap();
        assert!(path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        fs::remove_file(address.strip_prefix("unix://").unwrap()).unwrap();
        assert_eq!(fs::read_to_string(host.dir.path().join(&id).join("address")).unwrap(), address);
    }
}

#[test]
fn the_oom_score_is_one_above_the_callers() {
    let cases = [("own", None), ("raised", Some(500)), ("highest", Some(1000))];
    for (name, score) in cases {
        let host = Host::new();
        // The shell is what containerd would be; it must outlive `start` to be its parent.
        let set =
            score.map_or(String::new(), |score| format!("echo {score} >/proc/self/oom_score_adj;"));
        let mut command = Command::new("/bin/sh");
        let script = format!(
            "{} cat /proc/self/oom_score_adj >&2; {SHIM} \"$@\"; exit $?",
            set.replace("self", "$$")
        );
        command.args(["-c", &script, SHIM]).args(host.command("x").get_args());
        command.current_dir(host.dir.path().join("x"));
        let output = run(command, &host.params("x").write_to_bytes().unwrap());
        assert!(output.status.success(), "{name}: {output:?}");
        let parent: i32 = String::from_utf8(output.stderr).unwrap().trim().parse().unwrap();
        let daemon = fs::read_to_string(format!("/proc/{}/oom_score_adj", host.only_daemon()));
        assert_eq!(daemon.unwrap().trim(), (parent + 1).min(1000).to_string(), "{name}");
    }
}

#[test]
fn containers_of_a_group_share_a_daemon_and_others_do_not() {
    let host = Host::new();
    for id in ["a", "b"] {
        host.bundle(id, "pod");
    }
    host.bundle("pod", "pod");
    let addresses = ["pod", "a", "b"].map(|id| host.started(&host.params(id)));
    assert!(addresses.iter().all(|address| *address == addresses[0]));
    assert_eq!(host.daemons().len(), 1);
    for id in ["pod", "a", "b"] {
        let written = fs::read_to_string(host.dir.path().join(id).join("address")).unwrap();
        assert_eq!(written, addresses[0]);
    }
    assert_ne!(host.started(&host.params("x")), addresses[0]);
    assert_eq!(host.daemons().len(), 2);
}

#[test]
fn twenty_starts_at_once_end_with_one_daemon_and_one_address() {
    for round in 0..5 {
        let host = Host::new();
        if round % 2 == 1 {
            host.started(&host.params("x"));
            host.kill_daemons(); // they all find a dead socket first
        }
        let mut starts = Vec::new();
        for number in 0..20 {
            let id = format!("c{number}");
            host.bundle(&id, "x");
            let mut command = host.command(&id);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            starts.push((command.spawn().unwrap(), host.params(&id).write_to_bytes().unwrap()));
        }
        let mut addresses = Vec::new();
        for (mut start, input) in starts {
            start.stdin.take().unwrap().write_all(&input).unwrap();
            let output = start.wait_with_output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            addresses.push(BootstrapResult::parse_from_bytes(&output.stdout).unwrap().address);
        }
        addresses.dedup();
        assert_eq!((addresses.len(), host.daemons().len(), host.socket_files()), (1, 1, 1));
    }
}

#[test]
fn a_dead_socket_is_replaced() {
    let host = Host::new();
    let first = host.started(&host.params("x"));
    host.kill_daemons();
    assert_eq!(host.socket_files(), 1);
    assert_eq!(host.started(&host.params("x")), first);
    host.only_daemon();
    UnixStream::connect(first.strip_prefix("unix://").unwrap()).unwrap();
}

/// The status for a request, or none to hang up.
type StatusOf = fn(&[u8]) -> Option<Code>;

/// Prepares a `start` that fails: its command and stdin.
type Prepare = fn(&Host) -> (Command, Vec<u8>);

/// Answers every call on `listener` with the status for its service; hangs up where that is none.
fn answer(listener: UnixListener, status_of: StatusOf) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut header = [0; 10];
            while stream.read_exact(&mut header).is_ok() {
                let header = MessageHeader::from(header);
                let mut request = vec![0; header.length as usize];
                stream.read_exact(&mut request).unwrap();
                let Some(code) = status_of(&request) else { break };
                let status = Status { code: code.into(), ..Status::default() };
                let response = Response { status: Some(status).into(), ..Response::default() };
                let response = response.write_to_bytes().unwrap();
                let length = response.len() as u32;
                let header = MessageHeader::new_response(header.stream_id, length);
                stream.write_all(&[Vec::from(header), response].concat()).unwrap();
            }
        }
    });
}

#[test]
fn a_living_shim_is_asked_for_its_version_first() {
    fn asks_v3(request: &[u8]) -> bool {
        request.windows(7).any(|part| part == b"task.v3")
    }
    let cases: [(&str, StatusOf, Result<i32, &str>); 4] = [
        ("new", |_| Some(Code::OK), Ok(3)),
        ("does not know us", |_| Some(Code::NOT_FOUND), Ok(3)),
        ("old", |r| Some(if asks_v3(r) { Code::UNIMPLEMENTED } else { Code::NOT_FOUND }), Ok(2)),
        ("hangs up", |_| None, Err("did not end within 2 s")),
    ];
    for (name, status_of, expected) in cases {
        let host = Host::new();
        let address = host.started(&host.params("x"));
        host.kill_daemons();
        let path = address.strip_prefix("unix://").unwrap();
        fs::remove_file(path).unwrap();
        answer(UnixListener::bind(path).unwrap(), status_of);
        let output = host.start(&host.params("x"));
        match expected {
            Ok(version) => {
                let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
                assert_eq!((result.version, result.address), (version, address), "{name}");
            }
            Err(part) => {
                assert_eq!(output.status.code(), Some(1), "{name}");
                assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{name}");
            }
        }
        assert_eq!(host.daemons(), Vec::<i32>::new(), "{name}");
    }
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let unknown = Any { type_url: "x.Y".into(), ..Any::default() };
    let foreign = BootstrapParams { instance_id: "other".into(), ..BootstrapParams::default() };
    let cases: [(&str, Prepare, &str); 6] = [
        (
            "shim cgroup",
            |host| {
                let params = BootstrapParams {
                    extensions: vec![extension(runc_options("/berth-test/no-such-cgroup"))],
                    ..host.params("x")
                };
                (host.command("x"), params.write_to_bytes().unwrap())
            },
            "cgroup",
        ),
        (
            "socket directory too long",
            |host| {
                let params =
                    BootstrapParams { socket_dir: Some("/d".repeat(30)), ..host.params("x") };
                (host.command("x"), params.write_to_bytes().unwrap())
            },
            "socket directory",
        ),
        (
            "broken config.json",
            |host| {
                fs::write(host.dir.path().join("x/config.json"), "{").unwrap();
                (host.command("x"), host.params("x").write_to_bytes().unwrap())
            },
            "config.json",
        ),
        (
            "address cannot be written",
            |host| {
                fs::create_dir(host.dir.path().join("x/.address")).unwrap();
                (host.command("x"), host.params("x").write_to_bytes().unwrap())
            },
            "/x/address: Is a directory",
        ),
        (
            "nobody reads the answer",
            |host| {
                let inner = host.command("x");
                let mut command = Command::new("/bin/sh");
                let script = format!("exec {SHIM} \"$@\" >/dev/full");
                command.args(["-c", &script, SHIM]).args(inner.get_args());
                command.current_dir(host.dir.path().join("x"));
                (command, host.params("x").write_to_bytes().unwrap())
            },
            "cannot answer",
        ),
        ("input is not ours", |host| (host.command("x"), b"\xff".to_vec()), "stdin"),
    ];
    for (name, prepare, expected) in cases {
        let host = Host::new();
        let (command, input) = prepare(&host);
        let output = run(command, &input);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with("berth: ") && line.contains(expected), "{name}: {line}");
        assert_eq!((host.daemons(), host.socket_files()), (vec![], 0), "{name}");
        assert!(!host.dir.path().join("x/address").exists(), "{name}");
    }
    for input in [unknown.write_to_bytes().unwrap(), foreign.write_to_bytes().unwrap()] {
        let host = Host::new();
        let output = run(host.command("x"), &input);
        assert_eq!((output.status.code(), host.daemons()), (Some(1), vec![]));
    }
}

#[test]
fn a_start_without_a_spec_is_on_its_own() {
    let host = Host::new();
    fs::remove_file(host.dir.path().join("x/config.json")).unwrap();
    let address = host.started(&host.params("x"));
    host.kill_daemons();
    fs::write(host.dir.path().join("x/config.json"), "").unwrap();
    assert_eq!(host.started(&host.params("x")), address);
}

#[test]
fn the_daemon_joins_the_shim_cgroup() {
    let v1 = Path::new("/sys/fs/cgroup/pids");
    let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
    let name = format!("berth-test-{}", std::process::id());
    fs::create_dir(root.join(&name)).unwrap();
    let host = Host::new();
    let params = BootstrapParams {
        extensions: vec![extension(runc_options(&format!("/{name}")))],
        ..host.params("x")
    };
    host.started(&params);
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", host.only_daemon())).unwrap();
    host.kill_daemons();
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::remove_dir(root.join(&name)).is_err() {
        assert!(Instant::now() < deadline, "the cgroup is still busy");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(cgroups.lines().any(|line| line.ends_with(&format!(":/{name}"))), "{cgroups}");
}

#[test]
fn core_scheduling_is_on_or_the_reason_is_said() {
    let host = Host::new();
    let mut command = host.command("x");
    command.env("SCHED_CORE", "1");
    let output = run(command, &host.params("x").write_to_bytes().unwrap());
    match output.status.code() {
        Some(0) => drop(host.only_daemon()),
        _ => {
            assert!(String::from_utf8_lossy(&output.stderr).contains("SCHED_CORE"), "{output:?}");
            assert_eq!((host.daemons(), host.socket_files()), (vec![], 0));
        }
    }
}
