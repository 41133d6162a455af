//! Every byte arrives, once and in order.

use std::thread;

use super::flow::{Flow, Pace, Taker, large};
use super::{GATE, Kind, OUTPUT, Process, WAYS, host, idle, name, open_gate, with_gate};
use crate::support::{Spec, Streams};

/// Writes `out` and `err` at once, in every way and by both kinds of process.
fn both_streams_arrive(out: &Flow, err: &Flow, pace: Pace) {
    let script = format!("( {} ) & ( {} ) >&2 & wait", out.script(), err.script());
    for (way, config) in WAYS {
        let host = host(config);
        let shim = idle(&host);
        for kind in Kind::ALL {
            let what = format!("{way}, {kind:?}, {pace:?}");
            let name = name(kind, 0);
            let streams = host.unread_streams(&name, [false, true, true]);
            let takers = [(&streams.stdout, out), (&streams.stderr, err)];
            let takers = takers.map(|(path, flow)| Taker::start(path, flow, pace));
            let process = Process::start(&shim, kind, &name, &script, &streams);
            assert_eq!(process.wait(), 0, "{what}");
            // Before Delete, which leaves nothing for a reader that happens to be away.
            takers.into_iter().for_each(|taker| taker.finish(&what));
            process.reap();
        }
        shim.end();
    }
}

#[test]
fn both_streams_arrive_at_a_fast_reader() {
    both_streams_arrive(&Flow::programs(large()), &Flow::lines(large()), Pace::Fast);
}

#[test]
fn both_streams_arrive_at_a_slow_reader() {
    let most = large() / 8;
    both_streams_arrive(&Flow::programs(most), &Flow::lines(most), Pace::Slow);
}

#[test]
fn both_streams_arrive_at_a_reader_that_comes_and_goes() {
    let most = large() / 2;
    both_streams_arrive(&Flow::programs(most), &Flow::lines(most), Pace::Coming);
}

#[test]
fn bursts_of_single_bytes_arrive() {
    let flow = Flow::single_bytes(60_000);
    for pace in [Pace::Fast, Pace::Slow] {
        both_streams_arrive(&flow, &flow, pace);
    }
}

#[test]
fn what_sixty_four_processes_write_at_once_arrives() {
    for (way, config) in WAYS {
        let host = host(config);
        let flow = Flow::programs(large() / 32);
        let script = format!("{GATE} {}", flow.script());
        let names: Vec<_> = (0..64).map(|number| name(Kind::Exec, number)).collect();
        let streams: Vec<_> = names.iter().map(|name| host.unread_streams(name, OUTPUT)).collect();
        let start = |paths: &Streams| Taker::start(&paths.stdout, &flow, Pace::Fast);
        let takers: Vec<_> = streams.iter().map(start).collect();

        // The container of the exec processes stays until they have ended.
        let init = format!("{script}; until [ -e /tmp/end ]; do sleep 0.1; done");
        let shim = host.start("c", with_gate(&host, Spec::sh(&init)));
        let mut request = shim.request("c");
        streams[0].to_create(&mut request);
        shim.create(&request).unwrap();
        shim.start("c", "").unwrap();
        let execs: Vec<_> = names.iter().zip(&streams).skip(1).collect();
        thread::scope(|scope| {
            for part in execs.chunks(16) {
                let (shim, script) = (&shim, &script);
                scope.spawn(move || {
                    for (name, streams) in part {
                        Process::start(shim, Kind::Exec, name, script, streams);
                    }
                });
            }
        });
        open_gate(&host);
        for name in &names[1..] {
            assert_eq!(shim.reap("c", name), 0, "{way}: {name}");
        }
        std::fs::write(super::gate(&host).join("end"), "").unwrap();
        assert_eq!(shim.reap("c", ""), 0, "{way}");
        takers.into_iter().for_each(|taker| taker.finish(way));
        shim.stop();
    }
}
