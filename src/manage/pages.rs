//! What there is to ask, and the answers.

use std::time::Duration;

use log::LevelFilter;
use serde::Serialize;

use super::Management;
use super::exposition::{Exposition, Kind, OPEN_METRICS, PROMETHEUS};
use super::http::{JSON, Method, Request, Response, TEXT};
use super::process::{self, Figures};
use crate::container::View;
use crate::events::Recent;
use crate::ids::Pid;
use crate::log::Timestamp;
use crate::meters::{Meters, Unkillable};
use crate::sys::child;

/// How long a runtime command may run before it is worth a line, although its time is not over.
const SLOW: Duration = Duration::from_secs(5);
/// How long a killed one may take to go.
const GRACE: Duration = Duration::from_secs(2);
/// How long containerd may take no event before that is worth a line.
const STALLED: Duration = Duration::from_secs(30);
/// The states of a container, of which each has its count.
const STATES: [&str; 6] = ["creating", "created", "running", "pausing", "paused", "stopped"];

type Page = fn(&Management, &Request) -> Response;

/// Every path with what answers it.
const PAGES: [(&str, Page); 9] = [
    ("/config", config),
    ("/containers", containers),
    ("/debug/tasks", tasks),
    ("/events", events),
    ("/healthz", health),
    ("/log-level", log_level),
    ("/logs", logs),
    ("/metrics", metrics),
    ("/", index),
];

/// Answers one request.
pub(super) fn answer(management: &Management, request: &Request) -> Response {
    let Some((path, page)) = PAGES.iter().find(|(path, _)| *path == request.path) else {
        return Response::text(404, format!("no such path; these there are:\n{}", list()));
    };
    let writes = *path == "/log-level";
    match request.method {
        Method::Get | Method::Head => page(management, request),
        Method::Put | Method::Post if writes => set_log_level(&request.body),
        _ => Response {
            allow: Some(if writes { "GET, HEAD, POST, PUT" } else { "GET, HEAD" }),
            ..Response::text(405, "this path has no such method\n")
        },
    }
}

fn list() -> String {
    PAGES.iter().map(|(path, _)| format!("{path}\n")).collect()
}

fn index(_: &Management, _: &Request) -> Response {
    Response::text(200, list())
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            Response::new(200, JSON, bytes)
        }
        Err(error) => Response::text(500, format!("{error}\n")),
    }
}

/// `ok`, or what hangs although it should have ended; and what takes long.
fn health(management: &Management, _: &Request) -> Response {
    let containers = &management.containers;
    let meters = containers.reaper.meters();
    let (mut hangs, mut notes) = (Vec::new(), Vec::new());
    for Unkillable { what, pid, .. } in meters.unkillable(still_runs) {
        hangs.push(format!("{what} (pid {pid}) was killed and does not end"));
    }
    for command in meters.running() {
        let (id, runs) = (command.id.as_str(), command.since.elapsed());
        let (took, limit) = (runs.as_secs(), command.limit.as_secs());
        let line =
            format!("runtime command {} of {id} runs for {took} s of {limit} s", command.name);
        if runs > command.limit + GRACE {
            hangs.push(line);
        } else if runs > SLOW {
            notes.push(line);
        }
    }
    let stalled = containers.events.stalled();
    if stalled > STALLED {
        let (waiting, seconds) = (containers.events.waiting(), stalled.as_secs());
        notes.push(format!("containerd has taken none of {waiting} events for {seconds} s"));
    }
    if containers.takes_new().is_err() {
        notes.push("the shim is ending".into());
    }
    let (status, word) = if hangs.is_empty() { (200, "ok") } else { (503, "stuck") };
    let lines = hangs.into_iter().chain(notes).map(|line| line + "\n");
    Response::text(status, format!("{word}\n{}", lines.collect::<String>()))
}

/// Whether a process is still the one that was noted: its pid may be a stranger's by now.
fn still_runs(noted: &Unkillable) -> bool {
    child::start_time(noted.pid) == Some(noted.started) && child::runs(noted.pid)
}

fn containers(management: &Management, _: &Request) -> Response {
    json(&management.containers.view(management.began.elapsed()))
}

fn tasks(management: &Management, _: &Request) -> Response {
    let lines = management.containers.describe();
    Response::text(200, lines.into_iter().map(|line| line + "\n").collect::<String>())
}

fn events(management: &Management, _: &Request) -> Response {
    let journal = &management.containers.events;
    let recent = journal.recent();
    let events = recent.iter().map(Told::of).collect();
    json(&Tale { waiting: journal.waiting(), events })
}

/// The answer to `/events`.
#[derive(Serialize)]
struct Tale<'a> {
    waiting: usize,
    events: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    time: String,
    event: &'static str,
    container: &'a str,
    exec: Option<&'a str>,
    pid: Option<i32>,
    exit_status: Option<u32>,
}

impl<'a> Told<'a> {
    fn of(event: &'a Recent) -> Self {
        Self {
            time: Timestamp(event.at).to_string(),
            event: event.what,
            container: &event.id,
            exec: event.exec.as_deref(),
            pid: event.pid.map(Pid::get),
            exit_status: event.status,
        }
    }
}

/// Of the first container, whose configuration the pod has.
fn config(management: &Management, _: &Request) -> Response {
    let none = "# No container has come yet, and the first one brings the configuration.\n";
    let seen = management.containers.seen_config();
    Response::text(200, seen.unwrap_or_else(|| none.to_owned()))
}

fn logs(_: &Management, _: &Request) -> Response {
    Response::new(200, TEXT, crate::log::recent())
}

fn log_level(_: &Management, _: &Request) -> Response {
    Response::text(200, format!("{}\n", log::max_level().as_str().to_ascii_lowercase()))
}

fn set_log_level(body: &[u8]) -> Response {
    let word = String::from_utf8_lossy(body);
    let Ok(level) = word.trim().parse::<LevelFilter>() else {
        return Response::text(400, "a level is off, error, warn, info, debug or trace\n");
    };
    let before = log::max_level();
    log::set_max_level(level.max(LevelFilter::Info)); // so that the change is seen in any case
    log::info!("log level: {before} -> {level}");
    log::set_max_level(level);
    Response::text(200, format!("{}\n", level.as_str().to_ascii_lowercase()))
}

fn metrics(management: &Management, request: &Request) -> Response {
    let mut text = Exposition::new(request.open_metrics);
    let containers = &management.containers;
    text.metric("berth_build_info", Kind::Gauge, "The shim's version; always 1.");
    text.sample("berth_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    work(&mut text, management);
    pod(&mut text, management);
    output(&mut text, containers.reaper.meters());
    own(&mut text, management);
    let kind = if request.open_metrics { OPEN_METRICS } else { PROMETHEUS };
    Response::new(200, kind, text.finish())
}

/// Requests, runtime commands and events.
fn work(text: &mut Exposition, management: &Management) {
    let containers = &management.containers;
    let (meters, counts) = (containers.reaper.meters(), containers.events.counts());
    text.histograms(
        "berth_rpc_duration_seconds",
        "Requests of containerd that were answered, by method and status.",
        ["method", "code"],
        &meters.calls.all(),
    );
    let answering = management.in_flight.answering();
    text.single("berth_rpcs", Kind::Gauge, "Requests that are being answered.", answering);
    text.histograms(
        "berth_runtime_command_duration_seconds",
        "Commands of the OCI runtime that have ended, by what came of them.",
        ["command", "result"],
        &meters.commands.all(),
    );
    let running = meters.running().len();
    text.single("berth_runtime_commands", Kind::Gauge, "Commands that run.", running);
    let events = [
        ("berth_events_queued_total", "Events that happened.", &counts.queued),
        ("berth_events_delivered_total", "Events that containerd took.", &counts.delivered),
        ("berth_events_dropped_total", "Events that were dropped or refused.", &counts.dropped),
    ];
    for (name, help, count) in events {
        text.single(name, Kind::Counter, help, count.get());
    }
    let (sent, lost) = containers.reaper.tracer().counts();
    text.single("berth_spans_sent_total", Kind::Counter, "Spans that a collector took.", sent);
    let help = "Spans that no collector took, or that there was no room for.";
    text.single("berth_spans_lost_total", Kind::Counter, help, lost);
    let waiting = containers.events.waiting();
    text.single("berth_events_waiting", Kind::Gauge, "Events that wait for containerd.", waiting);
}

fn pod(text: &mut Exposition, management: &Management) {
    let all = management.containers.view(Duration::ZERO).containers;
    text.metric("berth_containers", Kind::Gauge, "Containers by state.");
    for state in STATES {
        let count = all.iter().filter(|one| one.state == state).count();
        text.sample("berth_containers", &[("state", state)], count);
    }
    let execs = all.iter().flat_map(|one: &View| &one.execs);
    let living = execs.filter(|exec| exec.pid.is_some() && exec.exit_status.is_none()).count();
    text.single("berth_execs", Kind::Gauge, "Exec processes that live.", living);
    if let Some(sizing) = management.containers.sizing() {
        let help = "Whole CPUs that the pod may use; 0: no limit.";
        text.single("berth_sandbox_cpus", Kind::Gauge, help, sizing.cpus);
        let help = "Bytes of memory that the pod may use; 0: no limit.";
        let bytes = sizing.memory_mib.saturating_mul(1 << 20);
        text.single("berth_sandbox_memory_bytes", Kind::Gauge, help, bytes);
    }
}

fn output(text: &mut Exposition, meters: &Meters) {
    let help = "Processes killed for lack of memory, by whose limit was hit.";
    text.metric("berth_oom_kills_total", Kind::Counter, help);
    for (limit, count) in ["own", "likely own", "around"].into_iter().zip(&meters.oom_kills) {
        text.sample("berth_oom_kills_total", &[("limit", limit)], count.get());
    }
    let help = "Output that went through berth; loggers and handed FIFOs take theirs without it.";
    text.single("berth_output_bytes_total", Kind::Counter, help, meters.output_bytes.get());
    let help = "Output that was dropped because nobody took it.";
    text.single(
        "berth_output_dropped_bytes_total",
        Kind::Counter,
        help,
        meters.dropped_bytes.get(),
    );
    let help = "Loggers that were started again.";
    text.single("berth_logger_restarts_total", Kind::Counter, help, meters.logger_restarts.get());
}

/// The shim as a process: what Prometheus' clients call `process_…`, which in a text file would be taken for
/// node_exporter's own.
fn own(text: &mut Exposition, management: &Management) {
    let figures = Figures::read("self");
    let (open, most) = process::descriptors();
    let began = management.began_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let cpu = process::cpu_time().as_secs_f64();
    text.single("berth_process_cpu_seconds_total", Kind::Counter, "CPU time of the shim.", cpu);
    text.single("berth_process_open_fds", Kind::Gauge, "Its descriptors.", open);
    text.single("berth_process_max_fds", Kind::Gauge, "How many it may have.", most);
    let memory = [
        ("berth_process_virtual_memory_bytes", "Its address space.", figures.virtual_memory),
        ("berth_process_resident_memory_bytes", "Its memory, shared parts too.", figures.resident),
        ("berth_process_private_dirty_bytes", "Memory that it alone has.", figures.private_dirty),
        ("berth_process_threads", "Its threads.", figures.threads),
    ];
    for (name, help, value) in memory {
        if let Some(value) = value {
            text.single(name, Kind::Gauge, help, value);
        }
    }
    let help = "When it began, in seconds since 1970.";
    text.single("berth_process_start_time_seconds", Kind::Gauge, help, began.as_secs_f64());
}
