//! `ps`, `logs` and `metrics`: all shims of a host, also those that do not answer.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::http::{Reply, exchange, samples};
use crate::support::{Host, Shim, Spec, binary, eventually, patient, skipped, timed};

fn berth(host: &Host, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env("BERTH_RUN_DIR", host.management_dir());
    command
}

#[track_caller]
fn output(host: &Host, args: &[&str]) -> String {
    let output = berth(host, args).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(host: &Host, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = berth(host, args).output().unwrap();
    assert!(!status.success() && stdout.is_empty(), "{args:?}: {stderr:?}");
    String::from_utf8(stderr).unwrap()
}

/// Three pods: one runs, one has two containers, one is stopped and answers nothing.
fn pods(host: &Host) -> [Shim<'_>; 3] {
    let shims = ["one", "two", "three"].map(|id| {
        let shim = host.start(id, Spec::idle());
        shim.run(id);
        drop(host.management(id));
        shim
    });
    host.prepare("extra", Spec::sh("exit 1").of_pod("two"));
    shims[1].run("extra");
    shims[1].wait("extra", "").unwrap();
    shims[2].signal(Signal::SIGSTOP);
    shims
}

fn end([one, two, three]: [Shim<'_>; 3]) {
    three.signal(Signal::SIGCONT);
    assert_eq!(two.reap("extra", ""), 1);
    [one, two, three].into_iter().for_each(Shim::end);
}

/// A process that is killed at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn metrics_of_all_shims_are_one_scrape() {
    if skipped("metrics of a host") {
        return;
    }
    let host = Host::new();
    assert_eq!(output(&host, &["ps", "-json"]), "[]\n", "a host without a pod");
    let shims = pods(&host);
    let dead = host.management_dir().join("tests/dead@00000000.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());

    let file = host.dir().join("berth.prom");
    fs::write(&file, "old").unwrap();
    let path = file.to_str().unwrap();
    let (said, took) = timed(|| output(&host, &["metrics", "--textfile", path]));
    assert_eq!(said, "");
    assert!(took < patient(Duration::from_secs(3)), "{took:?}");
    check(&fs::read_to_string(&file).unwrap());
    let beside: Vec<_> = fs::read_dir(host.dir()).unwrap().flatten().collect();
    assert!(!beside.iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".new")));

    let mut command = berth(&host, &["metrics", "--listen", "127.0.0.1:0"]);
    let mut server = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.trim().strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics"));
    let ask = |request: &str| {
        Reply::of(&exchange(TcpStream::connect(address.unwrap()).unwrap(), request).unwrap())
    };
    let reply = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(reply.status == 200 && reply.head.contains("version=0.0.4"), "{}", reply.head);
    check(&reply.body);
    assert_eq!(ask("GET /logs HTTP/1.1\r\n\r\n").status, 404);
    assert_eq!(ask("PUT /metrics HTTP/1.1\r\n\r\n").status, 405);
    drop(server);

    let nowhere = refused(&host, &["metrics", "-textfile", "/nowhere/berth.prom"]);
    assert!(nowhere.contains("cannot write /nowhere/berth.prom"), "{nowhere}");
    fs::remove_file(dead).unwrap();
    end(shims);
}

#[track_caller]
fn check(text: &str) {
    let samples = samples(text);
    // Its own socket's name tells a pod from one of another containerd.
    let of = |name: &str, id: &str, labels: &str| {
        let start = format!("{name}{{namespace=\"tests\",sandbox=\"{id}\",socket=\"");
        let own = |series: &str| {
            let rest = series.strip_prefix(&start)?.strip_suffix('}')?;
            let (socket, rest) = rest.split_once('"')?;
            (socket.len() == 8 && rest == labels).then_some(())
        };
        samples.iter().find(|(series, _)| own(series).is_some()).map(|(_, value)| *value)
    };
    assert!(!text.contains("\nprocess_"), "these names are node_exporter's own");
    for (id, up) in [("one", 1.0), ("two", 1.0), ("three", 0.0), ("dead", 0.0)] {
        assert_eq!(of("berth_up", id, ""), Some(up), "{id}: {text}");
        assert_eq!(of("berth_process_start_time_seconds", id, "").is_some(), up == 1.0, "{id}");
    }
    assert_eq!(of("berth_containers", "two", ",state=\"stopped\""), Some(1.0), "{text}");
    assert!(of("berth_scrape_seconds", "three", "") >= Some(1.0), "{text}");
}

#[test]
fn ps_shows_every_pod_and_logs_what_its_shim_said() {
    if skipped("ps of a host") {
        return;
    }
    let host = Host::new();
    let shims = pods(&host);
    let (table, took) = timed(|| output(&host, &["ps"]));
    assert!(took < patient(Duration::from_secs(3)), "{took:?}");
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    let head =
        ["NAMESPACE", "POD", "SHIM", "MEMORY", "UPTIME", "CONTAINER", "STATE", "PID", "EXECS"];
    assert_eq!(rows[0], head);
    let row = |container: &str| {
        let found = rows.iter().find(|row| row[5] == container);
        found.unwrap_or_else(|| panic!("{container} is not in {table}")).clone()
    };
    let pids = shims.each_ref().map(|shim| shim.pid().to_string());
    assert_eq!((row("one")[1], row("one")[2], row("one")[6]), ("one", &*pids[0], "running"));
    assert_eq!((row("extra")[1], row("extra")[2], row("extra")[6]), ("two", &*pids[1], "stopped"));
    assert!(row("one")[3].ends_with("KiB") || row("one")[3].ends_with("MiB"), "{table}");
    let silent = rows.iter().find(|row| row[1] == "three").unwrap();
    assert_eq!((silent[2], silent[6]), (&*pids[2], "no"), "it does not answer: {table}");
    assert!(!table.contains('\x1b'), "{table}");

    let json: serde_json::Value = serde_json::from_str(&output(&host, &["ps", "--json"])).unwrap();
    let ids: Vec<_> = json.as_array().unwrap().iter().map(|pod| pod["id"].clone()).collect();
    assert_eq!(ids, ["one", "three", "two"]);
    assert_eq!(json[1]["shim"]["error"], "no answer within 1 s");
    assert!(json[0]["shim"]["private_dirty"].as_u64() > Some(0), "{json}");
    assert_eq!(json[2]["containers"][0]["id"], "extra");

    let name = host.management("one").with_extension("");
    let name = format!("tests/{}", name.file_name().unwrap().to_str().unwrap());
    for id in ["one", "on", "tests/one", &name] {
        let logs = output(&host, &["logs", id]);
        assert!(logs.starts_with("time=") && logs.contains(" id=one\n"), "{id}: {logs}");
    }
    let of_container = output(&host, &["logs", "extra"]);
    assert!(of_container.contains("event: Exited"), "{of_container}");
    let cases = [
        ("nothing", "\"nothing\" not found"),
        ("t", "\"t\" is not one pod: tests/three@"),
        ("tests/", "tests/two@"),
        ("three", "no answer"),
    ];
    for (id, part) in cases {
        let said = refused(&host, &["logs", id]);
        assert!(said.contains(part), "{id}: {said}");
    }
    end(shims);
    eventually("an empty table", || (output(&host, &["ps"]).lines().count() == 1).then_some(()));
}

/// Its socket's name is a digest then, which tells nobody whose it is.
#[test]
fn a_pod_with_a_name_too_long_for_a_path_is_called_by_it_all_the_same() {
    if skipped("ps of a host") {
        return;
    }
    let host = Host::new();
    let id = "l".repeat(76);
    let shim = host.start(&id, Spec::idle());
    shim.run(&id);
    let pod = eventually("the pod", || {
        let pods: serde_json::Value =
            serde_json::from_str(&output(&host, &["ps", "-json"])).ok()?;
        pods.get(0).filter(|pod| pod["containers"].is_array()).cloned()
    });
    let socket = pod["socket"].as_str().unwrap();
    let digest = socket.rsplit('/').next().unwrap();
    assert!(digest.len() == 69 && !host.management_dir().join("tests").exists(), "{pod}");
    assert_eq!((&pod["namespace"], &pod["id"]), (&"tests".into(), &id.as_str().into()));
    let file = host.dir().join("berth.prom");
    output(&host, &["metrics", "-textfile", file.to_str().unwrap()]);
    let text = fs::read_to_string(file).unwrap();
    let up =
        format!("berth_up{{namespace=\"tests\",sandbox=\"{id}\",socket=\"{}\"}} 1\n", &digest[..8]);
    assert!(text.contains(&up), "{text}");
    assert!(output(&host, &["logs", &format!("tests/{id}")]).starts_with("time="));
    shim.end();
}
