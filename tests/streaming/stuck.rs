//! Readers that are there and take nothing.

use std::time::Duration;

use crate::sandbox::pod::{PLAIN, Pod};
use crate::support::streaming::{Reader, Writer, uri};
use crate::support::{Host, Spec, skipped, timed};

use super::{READ, exec};

#[test]
fn small_messages_that_nobody_reads_block_nobody() {
    if skipped("streams") {
        return;
    }
    let host = Host::new().configured("[io]\nspill = \"64MiB\"\n");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut out = Reader::open(shim.address(), "out");
    out.hold(true);
    let script = "i=0; while [ $i -lt 330 ]; do echo x; usleep 55000; i=$((i+1)); done; \
        head -c 500000 /dev/zero; echo end";
    exec(&shim, "e", &uri(shim.address(), "out"), script);
    let ended = shim.wait("c", "e");
    out.hold(false);
    assert_eq!(ended.unwrap().exit_status, 0, "it was not blocked");
    assert_eq!(shim.reap("c", "e"), 0);
    assert_eq!(out.finish().len(), 660 + 500_000 + 4);
    shim.end();
}

#[test]
fn a_container_that_never_ran_waits_for_no_reader() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let out = Reader::open(shim.address(), "out");
    let mut request = shim.request("c");
    request.stdout = uri(shim.address(), "out");
    shim.create(&request).unwrap();
    out.vanish();
    let (deleted, took) = timed(|| shim.delete("c", ""));
    deleted.unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
    shim.stop();
}

#[test]
fn a_pod_that_is_shut_down_waits_for_no_reader() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host);
    pod.create("pod", &PLAIN, "").unwrap();
    pod.start().unwrap();
    let address = pod.shim.address().to_owned();
    let out = Reader::open(&address, "out");
    out.hold(true);
    host.prepare("c", Spec::sh("head -c 500000 /dev/zero; exec sleep 1000"));
    let mut request = pod.request("c");
    request.stdout = uri(&address, "out");
    pod.shim.create(&request).unwrap();
    pod.shim.start("c", "").unwrap();
    std::thread::sleep(READ);
    let ((), took) = timed(|| pod.shutdown());
    assert!(took < Duration::from_secs(5), "{took:?}");
    host.sink.expect("c", &["create c", "start c", "exit c 137", "delete c 137"]);
    out.hold(false);
    out.vanish();
}

#[test]
fn what_nobody_comes_back_for_delays_nothing() {
    if skipped("streams") {
        return;
    }
    // What is kept in memory, too.
    for config in ["", "[io]\nspill = \"64MiB\"\n"] {
        let host = Host::new().configured(config);
        let shim = host.start("c", Spec::sh("echo one; read line; exit 3"));
        let out = Reader::open(shim.address(), "out");
        let stdin = Writer::open(shim.address(), "in");
        let mut request = shim.request("c");
        request.stdin = uri(shim.address(), "in");
        request.stdout = uri(shim.address(), "out");
        shim.create(&request).unwrap();
        shim.start("c", "").unwrap();
        out.wait_for("one");
        std::thread::sleep(READ);
        out.vanish();
        drop(stdin.close());
        let (status, took) = timed(|| shim.reap("c", ""));
        assert_eq!(status, 3);
        assert!(took < Duration::from_secs(4), "{took:?}");
        shim.stop();
    }
}

#[test]
fn what_nobody_came_back_for_is_lost_with_delete() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let out = Reader::open(shim.address(), "out");
    exec(&shim, "e", &uri(shim.address(), "out"), "sleep 0.5; echo lost; exit 3");
    out.vanish();
    // It waits for a reader, and then is no failure.
    assert_eq!(shim.reap("c", "e"), 3);
    shim.end();
}
