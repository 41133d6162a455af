//! Standard input: all of it, its end, and nobody waits for a process that does not take it.

use std::thread::sleep;
use std::time::Duration;

use super::flow::{Flow, Pace, Taker, large};
use super::{GATE, INPUT, Kind, Process, close_gate, host, idle, name, open_gate};
use crate::support::{Spec, skipped, timed};

/// More than all pipes on the way hold together.
const MUCH: u64 = 10 << 20;

#[test]
fn what_a_client_writes_reaches_the_process_and_comes_back() {
    let host = host("");
    let shim = idle(&host);
    let flow = Flow::programs(large());
    for kind in Kind::ALL {
        let name = name(kind, 0);
        let streams = host.unread_streams(&name, INPUT);
        let taker = Taker::start(&streams.stdout, &flow, Pace::Fast);
        let process = Process::start(&shim, kind, &name, "cat", &streams);
        flow.feed(&streams.stdin).finish(&name);
        process.close_stdin();
        taker.finish(&name);
        assert_eq!(process.reap(), 0, "{name}");
    }
    shim.end();
}

#[test]
fn a_writer_waits_for_those_who_do_not_take() {
    let slow = "until [ -e /tmp/open ]; do dd bs=65536 count=1; sleep 0.01; done 2>/dev/null; cat";
    let cases = [
        ("not read at first", format!("{GATE} cat"), true),
        ("read slowly", slow.into(), true),
        ("nobody reads what comes back", "cat".into(), false),
    ];
    let host = host("");
    let shim = idle(&host);
    let flow = Flow::programs(MUCH);
    for kind in Kind::ALL {
        for (number, (case, script, is_read)) in cases.iter().enumerate() {
            let (what, name) = (format!("{kind:?}, {case}"), name(kind, number));
            let streams = host.unread_streams(&name, INPUT);
            let early = is_read.then(|| Taker::start(&streams.stdout, &flow, Pace::Fast));
            let process = Process::start(&shim, kind, &name, script, &streams);
            let feeder = flow.feed(&streams.stdin);
            let taken = if number == 1 { feeder.at_least(1) } else { feeder.stuck_at() };
            assert!(taken < MUCH / 2, "{what}: {taken} bytes are nowhere");
            open_gate(&host);
            let taker = early.unwrap_or_else(|| Taker::start(&streams.stdout, &flow, Pace::Slow));
            feeder.finish(&what);
            process.close_stdin();
            taker.finish(&what);
            assert_eq!(process.reap(), 0, "{what}");
            close_gate(&host);
        }
    }
    shim.end();
}

/// When CloseIO comes, twice each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    BeforeStart,
    WhileBytesMove,
    WhileBytesWait,
    AfterAll,
}

#[test]
fn input_ends_once_and_behind_all_bytes() {
    let cases = [
        (Close::BeforeStart, 0),
        (Close::BeforeStart, MUCH),
        (Close::WhileBytesMove, MUCH),
        (Close::WhileBytesWait, MUCH),
        (Close::AfterAll, MUCH),
        (Close::AfterAll, 0),
    ];
    let host = host("");
    let shim = idle(&host);
    for kind in Kind::ALL {
        for (number, (close, total)) in cases.into_iter().enumerate() {
            if close == Close::BeforeStart && skipped("CloseIO counts before Start") {
                continue;
            }
            let (what, name) = (format!("{kind:?}, {close:?}, {total}"), name(kind, number));
            let flow = Flow::lines(total);
            let streams = host.unread_streams(&name, INPUT);
            let taker = Taker::start(&streams.stdout, &flow, Pace::Fast);
            // The second `cat` finds the end too, and no byte.
            let gate = if close == Close::WhileBytesWait { GATE } else { "" };
            let script = format!("{gate} cat; cat; exit 3");
            let mut process = Process::describe(&shim, kind, &name, &script, &streams);
            let feeder = flow.feed(&streams.stdin);
            if close == Close::BeforeStart {
                sleep(Duration::from_millis(100)); // the client waits in open(2) by now, or is through
                process.close_stdin();
                process.close_stdin();
            }
            process.run();
            match close {
                Close::BeforeStart => {}
                Close::WhileBytesMove => drop(feeder.at_least(1)),
                Close::WhileBytesWait => drop(feeder.stuck_at()),
                Close::AfterAll => feeder.await_end(&what),
            }
            if close != Close::BeforeStart {
                process.close_stdin();
                process.close_stdin();
                let (_, took) = timed(|| shim.state(&process.id, &process.exec).unwrap());
                assert!(took < Duration::from_secs(1), "{what}: State took {took:?}");
            }
            open_gate(&host);
            feeder.finish(&what);
            taker.finish(&what);
            assert_eq!(process.reap(), 3, "{what}");
            close_gate(&host);
        }
    }
    shim.end();
}

#[test]
fn a_process_that_never_reads_its_input_blocks_nobody() {
    let host = host("");
    let shim = idle(&host);
    for kind in Kind::ALL {
        let name = name(kind, 0);
        let streams = host.unread_streams(&name, INPUT);
        let flow = Flow::lines(MUCH);
        let process = Process::start(&shim, kind, &name, "exec sleep 1000", &streams);
        let feeder = flow.feed(&streams.stdin);
        assert!(feeder.stuck_at() < MUCH / 2);
        let quick = |what: &str, action: &dyn Fn()| {
            let ((), took) = timed(action);
            assert!(took < Duration::from_secs(1), "{name}: {what} took {took:?}");
        };
        quick("State", &|| drop(shim.state(&process.id, &process.exec).unwrap()));
        quick("CloseIO", &|| process.close_stdin());
        quick("a container", &|| {
            host.prepare("other", Spec::sh("exit 4"));
            shim.run("other");
            assert_eq!(shim.reap("other", ""), 4);
        });
        quick("Kill and Delete", &|| {
            process.kill();
            assert_eq!(process.reap(), 137);
        });
        feeder.finish(&name); // EPIPE
    }
    shim.end();
}
