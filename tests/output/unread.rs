//! Output that nobody reads for a while, or ever.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::flow::{Flow, Pace, Taker};
use super::{Kind, OUTPUT, Process, host, idle, name};
use crate::support::http::{get, samples};
use crate::support::{Code, Reader, Shim, Streams, eventually, skipped, timed};

const MIB: u64 = 1 << 20;

/// More than a FIFO holds.
const MUCH: u64 = 10 * MIB;

fn flow() -> Flow {
    Flow::programs(MUCH)
}

/// A name as the log quotes it.
fn quoted(name: &str) -> String {
    format!(r#"\"{name}\""#)
}

#[test]
fn a_file_keeps_what_nobody_reads() {
    if skipped("io.spill") {
        return;
    }
    let host = host("[io]\nspill = \"64MiB\"\n");
    let shim = idle(&host);
    for kind in Kind::ALL {
        let name = name(kind, 0);
        let streams = host.unread_streams(&name, OUTPUT);
        let process = Process::start(&shim, kind, &name, flow().script(), &streams);
        assert_eq!(process.wait(), 0, "{name}: it ends though nobody reads");
        Taker::start(&streams.stdout, &flow(), Pace::Coming).finish(&name);
        let files = host.files(&process.id);
        process.reap();
        assert!(!files.iter().any(|file| file.contains("spill")), "{name}: {files:?}");
        assert_eq!(deleted_files(&shim), 0, "{name}");
    }
    shim.end();
}

/// Files without a name that the daemon has open.
fn deleted_files(shim: &Shim<'_>) -> usize {
    shim.descriptors().iter().filter(|name| name.contains("(deleted)")).count()
}

#[test]
fn a_process_waits_until_its_output_is_read() {
    for (way, config) in [("handed over", ""), ("relay", "[io]\nhandover = false\n")] {
        let host = host(config);
        let shim = idle(&host);
        for kind in Kind::ALL {
            let what = format!("{way}, {kind:?}");
            let name = name(kind, 0);
            let streams = host.unread_streams(&name, OUTPUT);
            let process = Process::start(&shim, kind, &name, flow().script(), &streams);
            sleep(Duration::from_millis(300));
            let quick = shim.within(Duration::from_millis(200)).wait(&process.id, &process.exec);
            assert!(quick.is_err(), "{what}: nothing has room for all of it");
            let taker = Taker::start(&streams.stdout, &flow(), Pace::Fast);
            assert_eq!(process.wait(), 0, "{what}");
            taker.finish(&what);
            process.reap();
        }
        shim.end();
    }
}

#[test]
fn the_oldest_output_is_dropped_where_that_is_wanted() {
    if skipped("io.on_full") {
        return;
    }
    let host = host("[io]\nbuffer = \"256KiB\"\nspill = \"1MiB\"\non_full = \"drop-oldest\"\n");
    let shim = idle(&host);
    let script = format!("busybox seq 1 {}", 1_200_000);
    let (mut taken, mut lost) = (0, 0);
    for kind in Kind::ALL {
        let name = name(kind, 0);
        let streams = host.unread_streams(&name, OUTPUT);
        let process = Process::start(&shim, kind, &name, &script, &streams);
        assert_eq!(process.wait(), 0, "{name}: it ends though nobody reads");
        shim.log().wait_for(&format!("nobody takes stdout of {}", quoted(&name)));
        shim.signal(Signal::SIGUSR1);
        shim.log().wait_for("bytes dropped");

        let text = Reader::open(&streams.stdout).finish();
        process.reap();
        let whole = text.lines().filter_map(|line| line.parse::<u64>().ok()).collect::<Vec<_>>();
        let steps = whole.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        assert!((1..=2).contains(&steps), "{name}: {steps} gaps"); // a torn line may look like a number
        assert!(whole.first() == Some(&1) && whole.last() == Some(&1_200_000), "{name}");
        assert!(text.len() as u64 > MIB, "{name}: {} bytes", text.len());
        let written: usize = (1..=1_200_000).map(|number: u64| number.to_string().len() + 1).sum();
        let dropped =
            format!("{} bytes of stdout of {} were dropped", written - text.len(), quoted(&name));
        shim.log().wait_for(&dropped);
        (taken, lost) = (taken + text.len(), lost + written - text.len());
    }
    let metrics = samples(&get(&host.management("c"), "/metrics").body);
    let counted = ["berth_output_bytes_total", "berth_output_dropped_bytes_total"];
    assert_eq!(counted.map(|name| metrics[name]), [taken, lost].map(|bytes| bytes as f64));
    shim.end();
}

/// Fills both outputs of a container whose process then ends, with a client that has `out` open and
/// does not read it, or without.
#[test]
fn delete_of_what_nobody_reads_has_its_limit() {
    if skipped("Delete names who does not read") {
        return;
    }
    let host = host("[io]\nspill = \"64MiB\"\n");
    let shim = idle(&host);
    let start = |name: &str, streams: &Streams| {
        let process = Process::start(&shim, Kind::Init, name, flow().script(), streams);
        assert_eq!(process.wait(), 0);
        process
    };
    let (away, stuck) = (host.unread_streams("a", OUTPUT), host.streams("b", OUTPUT));
    stuck.out().hold(true);
    let (first, second) = (start("a", &away), start("b", &stuck));
    std::thread::scope(|scope| {
        let delete = |process: &Process<'_, '_>| {
            let (task, id) = (shim.task(), process.id.clone());
            scope.spawn(move || timed(|| task.delete(&id, "")))
        };
        let (first, second) = (delete(&first), delete(&second));
        let limits = Duration::from_secs(8)..Duration::from_secs(13);
        let (answer, took) = first.join().unwrap();
        assert!(limits.contains(&took), "nobody: {took:?}");
        answer.unwrap();
        let (answer, took) = second.join().unwrap();
        assert!(limits.contains(&took), "a client that does not read: {took:?}");
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
        let expected = format!("pid {} ", std::process::id());
        assert!(refusal.message.contains(&expected), "{refusal:?}");
        assert!(refusal.message.contains("does not read stdout"), "{refusal:?}");
    });
    shim.log()
        .wait_for(&format!("nobody has stdout of {} open: the rest of it is lost", quoted("a")));
    assert_eq!(shim.state("a", "").unwrap_err().code, Code::NOT_FOUND);
    second.reap(); // it gave up its output, and takes a second Delete
    eventually("the files are closed", || (deleted_files(&shim) == 0).then_some(()));
    shim.end();
}
