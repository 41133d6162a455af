//! The management interface: what a shim tells of itself over HTTP, and what that costs nobody.

mod clients;
mod dashboard;
mod node;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, ShutdownSandboxRequest, StartSandboxRequest,
};
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::sandbox::pod::{self, Field};
use crate::support::http::{ask, connect, exchange, get, samples};
use crate::support::{Code, Host, Script, Shim, Spec, Stdin, eventually, skipped};

const PATHS: [&str; 9] = [
    "/",
    "/config",
    "/containers",
    "/debug/tasks",
    "/events",
    "/healthz",
    "/log-level",
    "/logs",
    "/metrics",
];

#[test]
fn every_path_has_its_answer() {
    if skipped("the management interface") {
        return;
    }
    let runtime = "path = \"/bin/true\"\nenv = { SECRET = \"s3cret\" }";
    let host = Host::new().configured(&format!("[runtimes.env]\n{runtime}"));
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    // What Create saw counts, and the bundle's spec and the files are read no more.
    host.configure("[management]\nenabled = false");
    let exec = shim.exec_run("c", "e", "exec sleep 1000").unwrap();
    let socket = host.management("c");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    assert_eq!(mode(&host.management_dir()), 0o700);
    let plain = "text/plain; charset=utf-8";
    let cases = [
        ("/", plain, "/metrics\n".to_owned()),
        ("/config", plain, "enabled = true                           # default".into()),
        ("/config", plain, "SECRET = \"(not shown)\"".into()),
        ("/config", plain, "\n[runtimes.env]\npath = \"/bin/true\" ".into()),
        ("/config", plain, format!("\nBinaryName = \"{}\"", host.runtime())),
        ("/containers", "application/json", format!("\"pid\":{pid},")),
        ("/containers", "application/json", format!("\"pid\":{exec},")),
        ("/debug/tasks", plain, format!("container c: pid {pid}, running")),
        ("/events", "application/json", "\"event\":\"exec-started\"".into()),
        ("/healthz", plain, "ok\n".into()),
        ("/log-level", plain, "debug\n".into()),
        ("/logs", plain, "level=info msg=\"configuration: ".into()),
        (
            "/metrics",
            "text/plain; version=0.0.4",
            "\nberth_containers{state=\"running\"} 1\n".into(),
        ),
    ];
    for (path, kind, part) in cases {
        let reply = get(&socket, path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert!(reply.head.contains(&format!("\r\nContent-Type: {kind}")), "{path}: {reply:?}");
        assert!(reply.body.contains(&part), "{path}: {part:?} is not in {}", reply.body);
        let length = format!("\r\nContent-Length: {}\r\n", reply.body.len());
        assert!(reply.head.contains(&length), "{path}: {}", reply.head);
    }
    assert!(!get(&socket, "/config").body.contains("s3cret"));
    for path in PATHS {
        let reply = ask(&socket, "HEAD", path, "");
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "HEAD {path}");
        let reply = ask(&socket, "DELETE", path, "");
        assert!(
            reply.status == 405 && reply.head.contains("\r\nAllow: GET, HEAD"),
            "{path}: {reply:?}"
        );
    }
    let reply = get(&socket, "/metric");
    assert!(reply.status == 404 && PATHS.iter().all(|path| reply.body.contains(path)), "{reply:?}");
    shim.end();
}

#[test]
fn containers_and_events_are_told_from_create_to_exit() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    host.prepare("c", Spec::sh("exit 7").of_pod("pod"));
    shim.create_plain("c").unwrap();
    let socket = host.management("pod");
    let of = |id: &str| {
        let pod = get(&socket, "/containers").json();
        assert_eq!((&pod["id"], &pod["namespace"]), (&json!("pod"), &json!("tests")));
        assert_eq!(pod["pid"], json!(shim.pid()));
        let all = pod["containers"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["id"] == json!(id))
    };
    let created = of("c").unwrap();
    assert_eq!((&created["state"], &created["started"]), (&json!("created"), &json!(null)));
    assert!(created["created"].as_str().unwrap().starts_with("20"));
    assert_eq!(created["bundle"], json!(host.bundle("c")));
    shim.start("c", "").unwrap();
    shim.wait("c", "").unwrap();
    let ended = of("c").unwrap();
    assert_eq!((&ended["state"], &ended["exit_status"]), (&json!("stopped"), &json!(7)));
    assert_eq!(
        (created["pid"].is_u64(), &ended["pid"]),
        (true, &json!(null)),
        "it may be another's"
    );
    let time = |key: &str| ended[key].as_str().unwrap().to_owned();
    assert!(time("created") <= time("started") && time("started") <= time("exited"), "{ended}");
    assert_eq!(shim.reap("c", ""), 7);
    assert!(of("c").is_none());
    let events = get(&socket, "/events").json();
    let told: Vec<_> = events["events"].as_array().unwrap().iter().collect();
    let told = told.iter().filter(|one| one["container"] == json!("c"));
    let told: Vec<_> = told.map(|one| (one["event"].clone(), one["exit_status"].clone())).collect();
    let none = json!(null);
    let expected =
        [("create", &none), ("start", &none), ("exit", &json!(7)), ("delete", &json!(7))];
    assert_eq!(told, expected.map(|(what, status)| (json!(what), status.clone())));
    shim.end();
}

#[test]
fn metrics_count_what_has_happened() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::scripted();
    let limits = json!({"cpu": {"quota": 150_000, "period": 100_000}});
    let spec = Spec::sh("echo 12345; exec sleep 1000").set("/linux/resources", limits);
    let shim = host.start("c", spec);
    let mut request = shim.request("c");
    let output = host.dir().join("output");
    request.stdout = format!("file://{}", output.display());
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    eventually("output", || {
        std::fs::read(&output).is_ok_and(|text| text == b"12345\n").then_some(())
    });
    for _ in 0..3 {
        shim.state("c", "").unwrap();
    }
    assert_eq!(shim.state("x", "").unwrap_err().code, Code::NOT_FOUND);
    host.script().set("pause", "fail no");
    shim.pause("c").unwrap_err();
    assert!(shim.raw("containerd.task.v3.Task", "Nonsense", Vec::new()).is_err());
    let socket = host.management("c");
    std::fs::remove_file(host.bundle("c").join("config.json")).unwrap();
    let samples = eventually("all events to be delivered", || {
        let samples = samples(&get(&socket, "/metrics").body);
        (samples["berth_events_waiting"] == 0.0).then_some(samples)
    });
    let count = |name: &str, labels: &str| samples.get(&format!("{name}{{{labels}}}")).copied();
    let calls = |method: &str, code: &str| {
        count("berth_rpc_duration_seconds_count", &format!("method=\"{method}\",code=\"{code}\""))
    };
    let commands = |command: &str, result: &str| {
        let labels = format!("command=\"{command}\",result=\"{result}\"");
        count("berth_runtime_command_duration_seconds_count", &labels)
    };
    let cases = [
        ("State", calls("State", "OK"), 3.0),
        ("State of nothing", calls("State", "NOT_FOUND"), 1.0),
        ("Create", calls("Create", "OK"), 1.0),
        ("Pause", calls("Pause", "UNKNOWN"), 1.0),
        ("another method", calls("other", "UNIMPLEMENTED"), 1.0),
        ("create", commands("create", "ok"), 1.0),
        ("pause", commands("pause", "failed"), 1.0),
        ("output", samples.get("berth_output_bytes_total").copied(), 6.0),
        ("CPUs", samples.get("berth_sandbox_cpus").copied(), 2.0),
        ("threads", samples.get("berth_process_threads").copied().map(f64::signum), 1.0),
        ("CPU", samples.get("berth_process_cpu_seconds_total").copied().map(f64::signum), 1.0),
        ("running", count("berth_containers", "state=\"running\""), 1.0),
    ];
    for (name, found, expected) in cases {
        assert_eq!(found, Some(expected), "{name}: {samples:#?}");
    }
    let [queued, delivered] =
        ["queued", "delivered"].map(|what| samples[&format!("berth_events_{what}_total")]);
    assert!(queued >= 2.0 && queued == delivered, "{samples:#?}");
    let accept =
        "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let open = exchange(connect(&socket), accept).unwrap();
    assert!(
        open.contains("openmetrics-text; version=1.0.0") && open.ends_with("\n# EOF\n"),
        "{open}"
    );
    shim.end();
}

#[test]
fn kills_for_lack_of_memory_are_counted() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    let memory = json!({"limit": 24 << 20, "swap": 24 << 20});
    let hog = Spec::sh("exec tail /dev/zero").of_pod("pod");
    host.prepare("c", hog.set("/linux/resources/memory", memory));
    shim.run("c");
    shim.wait("c", "").unwrap();
    let socket = host.management("pod");
    let pod = get(&socket, "/containers").json();
    assert!(pod["containers"][0]["oom_kills"].as_u64() >= Some(1), "{pod}");
    let samples = samples(&get(&socket, "/metrics").body);
    let of = |limit: &str| samples[&format!("berth_oom_kills_total{{limit=\"{limit}\"}}")];
    assert!(of("own") + of("likely own") >= 1.0 && of("around") == 0.0, "{samples:#?}");
    shim.reap("c", "");
    shim.end();
}

#[test]
fn the_log_level_changes_at_once() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let socket = host.management("c");
    let cases = [
        ("PUT", "warn\n", 200, "warn"),
        ("POST", "trace", 200, "trace"),
        ("PUT", "loud", 400, "trace"),
    ];
    for (method, level, status, then) in cases {
        assert_eq!(ask(&socket, method, "/log-level", level).status, status, "{level}");
        assert_eq!(get(&socket, "/log-level").body, format!("{then}\n"));
    }
    shim.log().wait_for("log level: WARN -> TRACE");
    ask(&socket, "PUT", "/log-level", "error");
    let before = get(&socket, "/logs").body;
    assert!(
        before.ends_with("\" id=c\n") && before.contains("log level: TRACE -> ERROR"),
        "{before}"
    );
    shim.exec_run("c", "e", "exit 1").unwrap();
    assert_eq!(shim.reap("c", "e"), 1);
    assert_eq!(get(&socket, "/logs").body, before);
    ask(&socket, "PUT", "/log-level", "debug");
    for _ in 0..200 {
        shim.state("c", "").unwrap();
    }
    let logs = get(&socket, "/logs").body;
    assert!(logs.len() <= 16 << 10 && logs.starts_with("time=") && logs.ends_with('\n'), "{logs}");
    shim.end();
}

#[test]
fn health_says_which_runtime_command_takes_long() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let socket = host.management("c");
    host.script().set("pause", "hang");
    std::thread::scope(|scope| {
        let task = shim.task().within(Duration::from_secs(8));
        scope.spawn(move || task.pause("c").unwrap_err());
        let line = eventually("a note of the command", || {
            let reply = get(&socket, "/healthz");
            assert_eq!(reply.status, 200, "its time is not over: {reply:?}");
            reply.body.lines().nth(1).map(str::to_owned)
        });
        assert!(line.starts_with("runtime command pause of c runs for "), "{line}");
        assert_eq!(samples(&get(&socket, "/metrics").body)["berth_runtime_commands"], 1.0);
    });
    eventually("its end", || (get(&socket, "/healthz").body == "ok\n").then_some(()));
    let calls = Script::calls(host.script());
    assert!(calls.contains(&"pause".to_owned()));
    host.script().clear("pause");
    shim.end();
}

/// Only v1's freezer keeps a process from dying; elsewhere such a one waits for a disk.
#[test]
fn health_names_a_runtime_command_that_cannot_be_killed() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if skipped("the management interface") || !freezer.exists() {
        return;
    }
    let host = Host::scripted().configured("[deadline]\npause = 0.5");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let socket = host.management("c");
    let frozen = freezer.join(format!("berth-test-{}/frozen", host.tag()));
    std::fs::create_dir_all(&frozen).unwrap();
    std::fs::write(frozen.join("freezer.state"), "FROZEN").unwrap();
    host.script().set("pause", "hang");
    std::thread::scope(|scope| {
        let task = shim.task();
        let paused = scope.spawn(move || task.pause("c").unwrap_err());
        let hangs = eventually("the runtime's command", || {
            let all = host.processes();
            all.into_iter().find(|process| process.line.contains("runtime.sh "))
        });
        std::fs::write(frozen.join("cgroup.procs"), hangs.pid.to_string()).unwrap();
        assert_eq!(paused.join().unwrap().code, Code::DEADLINE_EXCEEDED);
        let reply = get(&socket, "/healthz");
        let line = format!("`runtime.sh pause` (pid {}) was killed and does not end\n", hangs.pid);
        assert_eq!((reply.status, reply.body), (503, format!("stuck\n{line}")));
        assert!(shim.state("c", "").is_ok());
    });
    std::fs::write(frozen.join("freezer.state"), "THAWED").unwrap();
    eventually("its end", || (get(&socket, "/healthz").body == "ok\n").then_some(()));
    eventually("an empty cgroup", || std::fs::remove_dir(&frozen).ok());
    host.script().clear("pause");
    shim.end();
}

/// How many descriptors a shim has; connections of the past may still be closing.
fn count(shim: &Shim<'_>) -> usize {
    let path = format!("/proc/{}/fd", shim.pid());
    let counts = (0..20).map(|_| std::fs::read_dir(&path).unwrap().count());
    counts.min().unwrap()
}

#[test]
fn a_pod_without_a_first_container_or_with_the_key_off_has_no_socket() {
    if skipped("the management interface") {
        return;
    }
    let counts = ["enabled = false", "enabled = true"].map(|text| {
        let host = Host::new().configured(&format!("[management]\n{text}"));
        let shim = host.start("c", Spec::idle());
        assert!(host.management_sockets().is_empty(), "before the first container");
        shim.run("c");
        if text.ends_with("false") {
            shim.log().wait_for("the management interface is switched off");
            assert!(host.management_sockets().is_empty());
        } else {
            drop(host.management("c"));
        }
        let count = eventually("no other descriptors", || {
            Some(count(&shim)).filter(|count| *count <= shim.descriptors().len() + 1)
        });
        shim.end();
        count
    });
    assert_eq!(counts[1], counts[0] + 1, "it costs one descriptor");
    assert!(counts[1] <= 14, "with containerd's connection, the events' and the log: {counts:?}");
}

/// Nobody waits for it: it may come while the sandbox that is no container has none.
#[test]
fn a_sandbox_that_is_no_container_has_a_socket_too() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    host.prepare_sandbox("pod");
    let shim = host.attach("pod", &Stdin::Nothing);
    let call = |method: &str, request: &dyn protobuf::MessageDyn| {
        let service = "containerd.runtime.sandbox.v1.Sandbox";
        shim.raw(service, method, request.write_to_bytes_dyn().unwrap()).unwrap()
    };
    let (sandbox_id, bundle_path) = ("pod".to_owned(), host.bundle("pod").display().to_string());
    // On the host's network, with a limit of CPU time and memory.
    let limits = [(1, 100_000), (2, 250_000), (4, 512 << 20)];
    let limits = limits.map(|(number, value)| Field::Number(number, value)).into();
    let network = Field::Message(1, vec![Field::Number(1, pod::NODE)]);
    let linux = vec![Field::Message(2, vec![network]), Field::Message(5, limits)];
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: pod::encode(&[Field::Message(8, linux)]),
        ..Any::default()
    };
    let options = Some(options).into();
    call(
        "CreateSandbox",
        &CreateSandboxRequest { sandbox_id, bundle_path, options, ..Default::default() },
    );
    assert!(host.management_sockets().is_empty());
    let sandbox_id = "pod".to_owned();
    call("StartSandbox", &StartSandboxRequest { sandbox_id, ..Default::default() });
    let socket = host.management("pod");
    let pod = get(&socket, "/containers").json();
    assert_eq!((&pod["sandbox"], &pod["containers"]), (&json!("ready"), &json!([])));
    let config = get(&socket, "/config").body;
    assert!(config.contains("No container has come yet"), "{config}");
    let samples = samples(&get(&socket, "/metrics").body);
    let size = (samples["berth_sandbox_cpus"], samples["berth_sandbox_memory_bytes"]);
    assert_eq!(size, (3.0, 536_870_912.0));
    let sandbox_id = "pod".to_owned();
    call("ShutdownSandbox", &ShutdownSandboxRequest { sandbox_id, ..Default::default() });
    shim.wait_gone();
    assert!(host.management_sockets().is_empty());
}

#[test]
fn the_socket_goes_with_the_daemon() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let socket = host.management("c");
    // Another shim's start, and delete of one of several containers, leave it alone.
    shim.remove("c");
    assert!(socket.exists());
    // The directory of a namespace goes with the last socket in it.
    let other = host.start("other", Spec::idle());
    other.run("other");
    let others = host.management("other");
    shim.stop();
    assert!(!socket.exists() && others.exists());
    other.end();
    assert!(!others.parent().unwrap().exists() && host.management_dir().exists());

    // After a crash it is dead, until `delete` removes it.
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    assert_eq!(host.management("c"), socket);
    shim.crash();
    assert!(socket.exists());
    host.delete("c");
    assert!(!socket.parent().unwrap().exists());
    drop(shim); // and with it the reader of its log

    // A daemon that finds a dead one in its place replaces it.
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    assert_eq!(get(&host.management("c"), "/healthz").body, "ok\n");
    shim.end();

    // One that lives is not replaced, and its pod has none.
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let living = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.log().wait_for("no management interface");
    shim.end();
    assert!(socket.exists());
    drop(living);
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
}
