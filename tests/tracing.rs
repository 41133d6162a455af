//! Spans: what a collector gets of a container's life, whose trace they are in, and what a collector that does not
//! work costs.

mod collector;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{ConnectRequest, StateRequest};
use containerd_shim_protos::sandbox_api::{CreateSandboxRequest, ShutdownSandboxRequest};
use nix::sys::signal::Signal;
use protobuf::Message;

use self::collector::{Collector, Mood, attributes};
use crate::support::http::{get, samples};
use crate::support::otlp::Span;
use crate::support::{Api, Host, Shim, Spec, Stdin, Task, eventually, patient, skipped, timed};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TASK: &str = "containerd.task.v3.Task";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
/// What an RPC takes at most that a collector must not delay; those that hang do so for ten seconds.
const UNDELAYED: Duration = Duration::from_secs(3);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn end(span: &Span) -> u64 {
    span.end_time_unix_nano
}

#[test]
fn a_containers_life_is_a_tree() {
    if skipped("tracing") {
        return;
    }
    let collector = Collector::new(Mood::Takes);
    let host = Host::scripted()
        .with_env(ENDPOINT, &collector.url())
        .with_env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret")
        .with_env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        .with_env("OTEL_SERVICE_NAME", "containerd");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(shim.reap("c", "e"), 3);
    shim.state("other", "").unwrap_err();
    host.script().set("pause", "fail no way");
    shim.pause("c").unwrap_err();
    let config = get(&host.management("c"), "/config").body;
    assert!(config.contains("# environment variable OTEL_EXPORTER_OTLP_ENDPOINT"), "{config}");
    let log = shim.log().text();
    assert!(log.contains("spans are sent to 127.0.0.1:"), "{log}");
    assert!(!log.contains("s3cret") && !config.contains("s3cret"));
    assert!(config.contains("service_name = \"berth\" "), "not containerd's: {config}");
    let pid = shim.pid();
    shim.end();

    let spans = collector.all();
    let root = spans.one("sandbox");
    assert!(root.parent_span_id.is_empty() && root.trace_id.len() == 16, "{root:?}");
    assert!(spans.0.iter().all(|span| span.trace_id == root.trace_id));
    assert!(spans.0.iter().all(|span| span.start_time_unix_nano >= root.start_time_unix_nano));
    let tree = [
        (format!("{TASK}/Create"), "sandbox"),
        ("mount".into(), "containerd.task.v3.Task/Create"),
        ("runtime.sh create".into(), "containerd.task.v3.Task/Create"),
        (format!("{TASK}/Exec"), "sandbox"),
        ("runtime.sh start".into(), "containerd.task.v3.Task/Start"),
        ("runtime.sh exec".into(), "containerd.task.v3.Task/Start"),
        ("runtime.sh pause".into(), "containerd.task.v3.Task/Pause"),
        (format!("{TASK}/Kill"), "sandbox"),
        ("runtime.sh kill".into(), "containerd.task.v3.Task/Kill"),
        ("runtime.sh delete".into(), "containerd.task.v3.Task/Delete"),
        ("unmount".into(), "containerd.task.v3.Task/Delete"),
    ];
    for (name, parent) in tree {
        let span = spans.one(&name);
        assert_eq!(spans.parent_name(span), Some(parent), "{:?}", spans.names());
        let above = spans.0.iter().find(|above| above.span_id == span.parent_span_id).unwrap();
        assert!(above.start_time_unix_nano <= span.start_time_unix_nano, "{name}");
        assert!(end(span) >= span.start_time_unix_nano && end(above) >= end(span), "{name}");
    }
    let details = |span: &Span| {
        let about = attributes(&span.attributes);
        let of = |key: &str| about.get(key).cloned().unwrap_or_default();
        let keys = ["container.id", "containerd.exec_id", "rpc.method", "rpc.ttrpc.status_code"];
        (span.kind, keys.map(of).join(" "), span.status.as_ref().map(|status| status.code))
    };
    let [first, second] = spans.named(&format!("{TASK}/Start"))[..] else { panic!() };
    assert_eq!(details(first), (2, "c  Start 0".into(), None));
    assert_eq!(details(second), (2, "c e Start 0".into(), None));
    assert_eq!(details(spans.one(&format!("{TASK}/State"))), (2, "other  State 5".into(), None));
    let error = |method: &str| {
        let span = spans.one(&format!("{TASK}/{method}"));
        attributes(&span.attributes).get("error.type").cloned()
    };
    let pause = error("Pause").expect("a runtime's failure is one");
    assert_eq!((pause.as_str(), error("State")), ("UNKNOWN", None), "a caller's mistake");
    let pause = spans.one("runtime.sh pause");
    assert_eq!(attributes(&pause.attributes)["process.exit.code"], "1");
    let status = pause.status.as_ref().unwrap();
    assert!(status.code == 2 && status.message.contains("no way"), "{status:?}");
    let create = attributes(&spans.one("runtime.sh create").attributes);
    assert_eq!(create["process.executable.path"], host.script().path());
    assert_eq!((&*create["process.exit.code"], &*create["container.id"]), ("0", "c"));
    assert_eq!(attributes(&spans.one("mount").attributes)["berth.mount.type"], "bind");

    collector.exports(|exports| {
        let export = exports.last().unwrap();
        assert!(export.head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{}", export.head);
        assert!(export.head.contains("\r\nContent-Type: application/x-protobuf\r\n"));
        assert!(export.head.contains("\r\nauthorization: Bearer s3cret"), "{}", export.head);
        let resource = export.request.resource_spans[0].resource.as_ref().unwrap();
        let resource = attributes(&resource.attributes);
        let expected = [
            ("service.name", "berth".to_owned()),
            ("deployment.environment", "test".into()),
            ("containerd.namespace", "tests".into()),
            ("containerd.sandbox_id", "c".into()),
            ("process.pid", pid.to_string()),
            ("host.name", nix::unistd::gethostname().unwrap().into_string().unwrap()),
            ("service.version", env!("CARGO_PKG_VERSION").into()),
        ];
        assert_eq!(resource["service.instance.id"].len(), 36);
        for (key, value) in expected {
            assert_eq!(resource.get(key), Some(&value), "{key}");
        }
    });
}

#[test]
fn the_callers_trace_is_continued() {
    if skipped("tracing") {
        return;
    }
    let collector = Collector::new(Mood::Takes);
    let text = format!("endpoint = \"{}\"\nheaders = {{ x-key = \"s3cret\" }}", collector.url());
    let host = Host::new().configured(&format!("[tracing]\n{text}"));
    host.prepare("c", Spec::idle());
    let _log = host.log("c");
    let task = Task::connect(&host.launch("c", &Stdin::Nothing), Api::V3).unwrap();
    let parent = |trace: &str, flags: &str| format!("00-{trace}-{SPAN}-{flags}");
    let other = TRACE.replace('0', "1");
    let (own, second) = (parent(TRACE, "01"), parent(&other, "01"));
    let create = host.request("c").write_to_bytes().unwrap();
    let metadata = [
        ("containerd-namespace-ttrpc", "tests"),
        ("tracestate", "rojo=1"),
        ("traceparent", own.as_str()),
        ("traceparent", second.as_str()),
    ];
    task.raw_with(&metadata, TASK, "Create", create).unwrap();
    let config = get(&host.management("c"), "/config").body;
    assert!(config.contains("x-key = \"(not shown)\"") && !config.contains("s3cret"), "{config}");
    let state = StateRequest { id: "c".into(), ..Default::default() }.write_to_bytes().unwrap();
    let unsampled = parent(&other, "00");
    let long = "0".repeat(1 << 20);
    for (method, parent) in [
        ("State", second.as_str()),
        ("Pids", unsampled.as_str()),
        ("Stats", "00-junk"),
        ("Connect", &long),
    ] {
        task.raw_with(&[("traceparent", parent)], TASK, method, state.clone()).unwrap();
    }
    task.kill_all("c", libc::SIGKILL).unwrap();
    task.wait("c", "").unwrap();
    task.delete("c", "").unwrap();
    drop(task.shutdown("c"));

    let spans = collector.all();
    collector.exports(|exports| assert!(exports[0].head.contains("\r\nx-key: s3cret")));
    let create = spans.one(&format!("{TASK}/Create"));
    let root = spans.one("sandbox");
    for span in [create, root] {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), SPAN.into()));
        assert_eq!((span.trace_state.as_str(), span.flags), ("rojo=1", 0x301), "{}", span.name);
    }
    let mount = spans.one("mount");
    assert_eq!(mount.parent_span_id, create.span_id);
    assert_eq!((hex(&mount.trace_id), mount.flags), (TRACE.into(), 0x101));
    let state = spans.one(&format!("{TASK}/State"));
    assert_eq!((hex(&state.trace_id), hex(&state.parent_span_id)), (other, SPAN.into()));
    assert_eq!(state.links[0].span_id, root.span_id, "a way to the sandbox");
    assert!(spans.named(&format!("{TASK}/Pids")).is_empty(), "the caller does not record it");
    for method in ["Stats", "Connect", "Delete"] {
        let span = spans.one(&format!("{TASK}/{method}"));
        assert_eq!(span.parent_span_id, root.span_id, "{method}");
        assert!(span.links.is_empty());
    }
}

#[test]
fn a_sandbox_without_containers_is_traced_too() {
    if skipped("tracing") {
        return;
    }
    let collector = Collector::new(Mood::Takes);
    let host = Host::new().with_env(ENDPOINT, &collector.url());
    host.prepare_sandbox("pod");
    let shim = host.attach("pod", &Stdin::Bootstrap);
    let call = |method: &str, request: &dyn protobuf::MessageDyn| {
        let service = "containerd.runtime.sandbox.v1.Sandbox";
        shim.raw(service, method, request.write_to_bytes_dyn().unwrap()).unwrap()
    };
    let (sandbox_id, bundle_path) = ("pod".to_owned(), host.bundle("pod").display().to_string());
    let create = CreateSandboxRequest { sandbox_id, bundle_path, ..Default::default() };
    call("CreateSandbox", &create);
    let sandbox_id = "pod".to_owned();
    call("ShutdownSandbox", &ShutdownSandboxRequest { sandbox_id, ..Default::default() });
    shim.wait_gone();
    let spans = collector.all();
    let create = spans.one("containerd.runtime.sandbox.v1.Sandbox/CreateSandbox");
    assert_eq!(spans.parent_name(create), Some("sandbox"));
    assert_eq!(attributes(&create.attributes)["containerd.sandbox_id"], "pod");
}

#[test]
fn nobody_is_called_unless_it_is_asked_for() {
    if skipped("tracing") {
        return;
    }
    let collector = Collector::new(Mood::Takes);
    let url = collector.url();
    let tls = url.replace("http:", "https:");
    type Env<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, &str, Env<'_>, &str); 8] = [
        ("by default", "", &[], ""),
        ("in the configuration", "[tracing]\nendpoint = \"\"", &[(ENDPOINT, &url)], ""),
        ("by the environment", "", &[(ENDPOINT, &url), ("OTEL_SDK_DISABLED", "true")], ""),
        ("no exporter", "", &[(ENDPOINT, &url), ("OTEL_TRACES_EXPORTER", "none")], ""),
        ("no trace", "", &[(ENDPOINT, &url), ("OTEL_TRACES_SAMPLER", "always_off")], ""),
        (
            "another protocol",
            "",
            &[(ENDPOINT, &url), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            "no spans are sent: OTEL_EXPORTER_OTLP_PROTOCOL = \\\"grpc\\\"",
        ),
        (
            "TLS",
            "",
            &[(ENDPOINT, &tls)],
            "no spans are sent: OTEL_EXPORTER_OTLP_ENDPOINT https needs TLS",
        ),
        (
            "a bad header",
            "",
            &[(ENDPOINT, &url), ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret")],
            "OTEL_EXPORTER_OTLP_HEADERS is no list",
        ),
    ];
    for (name, config, env, line) in cases {
        let host = Host::new().configured(config);
        let host = env.iter().fold(host, |host, (name, value)| host.with_env(name, value));
        let shim = host.start("c", Spec::idle());
        shim.run("c");
        if !line.is_empty() {
            shim.log().wait_for(line);
        }
        assert!(!shim.log().text().contains("s3cret"), "{name}");
        shim.end();
        assert_eq!(collector.connections(), 0, "{name}");
    }
}

/// So many requests that some spans are sent, and that others find no room.
fn ask_often(shim: &Shim<'_>, name: &str) {
    for _ in 0..2500 {
        let (answer, took) = timed(|| shim.state("c", ""));
        assert!(answer.is_ok() && took < patient(UNDELAYED), "{name}: State took {took:?}");
    }
}

#[test]
fn a_collector_that_does_not_work_costs_nothing_but_spans() {
    if skipped("tracing") {
        return;
    }
    let moods = [
        (None, "Connection refused"),
        (Some(Mood::Mute), "more than 262144 bytes of them wait"),
        (Some(Mood::Slow), "more than 262144 bytes of them wait"),
        (Some(Mood::Talks), "no answer in HTTP"),
        (Some(Mood::Closes), ""),
        (Some(Mood::Refuses), "HTTP status 503"),
        (Some(Mood::Garbage), ""),
    ];
    std::thread::scope(|scope| {
        for (mood, why) in moods {
            scope.spawn(move || costs_nothing(mood, why));
        }
    });
}

fn costs_nothing(mood: Option<Mood>, why: &str) {
    let collector = mood.map(Collector::new);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = collector.as_ref().map_or(format!("http://{nobody}"), Collector::url);
    let host = Host::new().with_env(ENDPOINT, &url).with_env("BERTH_LOG_LEVEL", "info");
    let shim = host.start("c", Spec::idle());
    let name = format!("{mood:?}");
    let (_, took) = timed(|| shim.run("c"));
    assert!(took < patient(Duration::from_secs(10)), "{name}: {took:?}");
    ask_often(&shim, &name);
    let lost = || samples(&get(&host.management("c"), "/metrics").body)["berth_spans_lost_total"];
    eventually("spans that are lost", || (lost() > 0.0).then_some(()));
    shim.log()
        .wait_for(&format!("spans are lost: {}", if mood.is_some() { "" } else { "127.0.0.1" }));
    shim.log().wait_for(why);
    let said = shim.log().text().matches("spans are lost").count();
    assert_eq!(said, 1, "{name}: said once");
    shim.remove("c");
    let began = Instant::now();
    drop(shim.shutdown("c"));
    shim.wait_gone();
    // A second for the collector, and what the end takes without one.
    let took = began.elapsed();
    assert!(took < patient(Duration::from_secs(3)), "{name}: the end took {took:?}");
}

#[test]
fn spans_are_sent_again_when_the_collector_is_back() {
    if skipped("tracing") {
        return;
    }
    let collector = Collector::new(Mood::Refuses);
    let host = Host::new().with_env(ENDPOINT, &collector.url());
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    ask_often(&shim, "refuses");
    shim.log().wait_for("spans are lost: 127.0.0.1");
    collector.change(Mood::Takes);
    ask_often(&shim, "takes");
    shim.log().wait_for("spans are sent again");
    shim.remove("c");
    // The same at an end that nobody asked for by ttrpc; a Wait that was cut off is told of.
    let waiting = shim.reconnect();
    shim.create_plain("c").unwrap();
    let hung_up = std::thread::spawn(move || waiting.wait("c", ""));
    let connect = ConnectRequest { id: "c".into(), ..Default::default() };
    shim.raw(TASK, "Connect", connect.write_to_bytes().unwrap()).unwrap();
    shim.remove("c");
    hung_up.join().unwrap().unwrap();
    shim.signal(Signal::SIGTERM);
    shim.wait_gone();
    let spans = collector.all();
    assert!(!spans.named(&format!("{TASK}/Wait")).is_empty());
}
