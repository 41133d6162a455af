//! Terminals lose nothing.

use super::flow::{Flow, Pace, Taker};
use super::{Kind, OUTPUT, Process, host, idle, name};
use crate::support::Shim;

/// How often it is tried: `BERTH_ROUNDS`, 10 unless it says otherwise.
fn rounds() -> usize {
    let text = std::env::var("BERTH_ROUNDS").ok();
    text.map_or(10, |text| text.parse().expect("BERTH_ROUNDS is a number"))
}

#[test]
fn a_busy_terminal_loses_nothing() {
    let flow = Flow::numbers(1_000_000);
    let hosts = ["", "[io]\nspill = \"64MiB\"\n"].map(host);
    let shims = hosts.each_ref().map(idle);
    for round in 0..rounds() {
        let kind = Kind::ALL[round % 2];
        let shim = &shims[round / 2 % 2];
        let pace = [Pace::Fast, Pace::Slow, Pace::Coming][round % 3];
        let (what, name) = (format!("round {round}, {kind:?}, {pace:?}"), name(kind, round));
        let streams = shim.host().unread_streams(&name, OUTPUT);
        let taker = Taker::start(&streams.stdout, &flow, pace);
        let process = Process::on_terminal(shim, kind, &name, flow.script(), &streams);
        assert_eq!(process.wait(), 0, "{what}");
        taker.finish(&what);
        process.reap();
    }
    shims.into_iter().for_each(Shim::end);
}
