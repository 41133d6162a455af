//! Events outlive every state of containerd, and cost the daemon little memory meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::http::{get, samples};
use crate::support::{Host, Mood, Shim, Spec, skipped, timed, within};

/// How long containerd is down, in seconds: 60.
const DOWN: &str = "BERTH_TEST_DOWN";

/// Adds exec processes that are never started, from number `first` on: an event each, and no process.
fn add_execs(shim: &Shim<'_>, first: u32, count: u32) {
    for n in first..first + count {
        let exec = format!("e{n}");
        shim.exec(&shim.exec_request("c", &exec, "true")).unwrap();
        shim.delete("c", &exec).unwrap();
    }
}

/// What [`add_execs`] tells.
fn added(first: u32, count: u32) -> Vec<String> {
    (first..first + count).map(|n| format!("exec-added c/e{n}")).collect()
}

/// Waits until the sink has `count` events.
fn wait_for_count(host: &Host, count: usize) {
    within(Duration::from_secs(120), &format!("{count} events"), || {
        (host.sink.events().len() >= count).then_some(())
    });
}

/// The daemon's resident memory, in KiB.
fn memory(shim: &Shim<'_>) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn two_hundred_exits_while_containerd_is_down_come_once_and_in_order() {
    if skipped("events are kept while containerd is down") {
        return;
    }
    let down: u64 = std::env::var(DOWN).map_or(60, |text| text.parse().unwrap());
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.sink.wait_for("start c");
    host.sink.stop();
    let gone = Instant::now();
    let mut expected = vec!["create c".to_owned(), "start c".to_owned()];
    for n in 0..200_u32 {
        let (exec, status) = (format!("e{n}"), n % 100);
        shim.exec_run("c", &exec, &format!("exit {status}")).unwrap();
        assert_eq!(shim.reap("c", &exec), status);
        let told = ["exec-added c/E", "exec-started c/E", "exit c/E"];
        expected.extend(told.map(|line| line.replace('E', &exec)));
        expected.last_mut().unwrap().push_str(&format!(" {status}"));
    }
    std::thread::sleep(Duration::from_secs(down).saturating_sub(gone.elapsed()));
    // It is killed twice more while it catches up, between two events.
    for count in [50, 300] {
        host.sink.resume();
        wait_for_count(&host, count);
        host.sink.stop();
    }
    host.sink.resume();
    wait_for_count(&host, expected.len());
    assert_eq!(host.sink.lines(), expected);
    shim.end();
}

#[test]
fn ten_thousand_events_wait_on_disk_and_come_fast() {
    if skipped("events are kept while containerd is down") {
        return;
    }
    const COUNT: u32 = 10_000;
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    add_execs(&shim, 0, 500); // the daemon has all the memory that calls need
    host.sink.wait_for("exec-added c/e499");
    let before = memory(&shim);
    host.sink.stop();
    add_execs(&shim, 500, COUNT);
    let more = memory(&shim).saturating_sub(before);
    assert!(more < 512, "{more} KiB for {COUNT} events of more than 200 bytes each");
    let files = shim.descriptors();
    assert!(files.iter().any(|file| file.ends_with(" (deleted)")), "{files:?}");
    assert!(host.files("c").iter().all(|name| !name.contains("spill")), "{:?}", host.files("c"));

    host.sink.resume();
    let ((), took) = timed(|| wait_for_count(&host, 2 + 500 + COUNT as usize));
    eprintln!("{COUNT} events that waited came within {took:?}, and took {more} KiB");
    assert!(took < Duration::from_secs(15), "{took:?}");
    let expected = [vec!["create c".into(), "start c".into()], added(0, 500 + COUNT)].concat();
    assert!(host.sink.lines() == expected, "out of order, lost or twice");
    let file_goes =
        || (!shim.descriptors().iter().any(|file| file.ends_with(" (deleted)"))).then_some(());
    within(Duration::from_secs(30), "the file to go", file_goes);
    shim.end();
}

/// A full file system at `path`; unmounted when dropped.
struct Full<'a>(&'a Path);

impl<'a> Full<'a> {
    fn mount(path: &'a Path) -> Self {
        std::fs::create_dir(path).unwrap();
        mount(Some("full"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        Self(path)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_costs_no_exit() {
    if skipped("events are kept while containerd is down") {
        return;
    }
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let work = host.bundle("c").join("work");
    let full = Full::mount(&work);
    let shim = host.attach("c", &crate::support::Stdin::Nothing);
    shim.run("c");
    host.sink.wait_for("start c");
    host.sink.stop();
    let mut exits = Vec::new();
    for round in 0..10 {
        add_execs(&shim, round * 400, 400);
        let exec = format!("x{round}");
        shim.exec_run("c", &exec, "exit 4").unwrap();
        assert_eq!(shim.reap("c", &exec), 4);
        exits.push(format!("exit c/{exec} 4"));
    }
    exits.push("exit c 137".into());
    exits.push("delete c 137".into());
    shim.remove("c");
    host.sink.resume();
    host.sink.wait_for("delete c 137");
    let lines = host.sink.lines();
    let vital = |line: &&String| line.starts_with("exit") || line.starts_with("delete");
    assert_eq!(lines.iter().filter(vital).collect::<Vec<_>>(), exits.iter().collect::<Vec<_>>());
    assert!(lines.len() < 3500, "{} events were kept, where?", lines.len());
    let mut numbers: Vec<u32> =
        lines.iter().filter_map(|line| line.strip_prefix("exec-added c/e")?.parse().ok()).collect();
    assert!(numbers.len() > 200 && numbers.is_sorted());
    numbers.dedup();
    assert!(lines.len() >= numbers.len() + exits.len());
    shim.log().wait_for("were dropped for want of disk space");
    let metrics = samples(&get(&host.management("c"), "/metrics").body);
    assert!(metrics["berth_events_dropped_total"] >= 1.0, "{metrics:#?}");
    shim.stop();
    drop(full);
}

/// What is dropped is told of also where containerd is only slow, and no delivery has failed.
#[test]
fn a_full_disk_and_a_slow_containerd_cost_no_exit_and_are_told_of() {
    if skipped("events are kept while containerd is down") {
        return;
    }
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let work = host.bundle("c").join("work");
    let full = Full::mount(&work);
    let shim = host.attach("c", &crate::support::Stdin::Nothing);
    shim.run("c");
    host.sink.wait_for("start c");
    host.sink.set(Mood::Slow(Duration::from_millis(500)));
    add_execs(&shim, 0, 3000);
    shim.exec_run("c", "x", "exit 4").unwrap();
    assert_eq!(shim.reap("c", "x"), 4);
    host.sink.set(Mood::Answer);
    host.sink.wait_for("exit c/x 4");
    shim.log().wait_for("were dropped for want of disk space");
    assert!(!shim.log().text().contains("cannot deliver"), "{}", shim.log().text());
    shim.end();
    drop(full);
}

/// The daemon runs in the bundle of the pod's first container, which may be the first to go.
#[test]
fn events_wait_on_disk_although_the_first_bundle_is_gone() {
    if skipped("events are kept while containerd is down") {
        return;
    }
    let host = Host::new();
    let shim = host.start("first", Spec::idle());
    host.prepare("c", Spec::idle().of_pod("first"));
    shim.run("first");
    shim.run("c");
    shim.remove("first");
    std::fs::remove_dir_all(host.bundle("first")).unwrap();
    host.sink.wait_for("delete first 137");
    host.sink.stop();
    add_execs(&shim, 0, 3000);
    let on_disk = || shim.descriptors().into_iter().find(|file| file.ends_with(" (deleted)"));
    let file = crate::support::eventually("a file of events", on_disk);
    assert!(file.contains("/c/"), "{file}");
    host.sink.resume();
    wait_for_count(&host, 6 + 3000);
    assert!(host.sink.lines()[6..] == added(0, 3000), "out of order, lost or twice");
    shim.remove("c");
    shim.stop();
}

#[test]
fn exits_behind_a_containerd_that_accepts_and_never_answers_come_once_and_in_order() {
    if skipped("events are kept while containerd hangs") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.sink.wait_for("start c");
    host.sink.set(Mood::Silent);
    let mut expected = vec!["create c".to_owned(), "start c".to_owned()];
    for n in 0..30_u32 {
        let exec = format!("e{n}");
        shim.exec_run("c", &exec, &format!("exit {n}")).unwrap();
        assert_eq!(shim.reap("c", &exec), n);
        expected.push(format!("exec-added c/{exec}"));
        expected.push(format!("exec-started c/{exec}"));
        expected.push(format!("exit c/{exec} {n}"));
        let best =
            (0..3).map(|_| timed(|| shim.state("c", "").map(drop).unwrap()).1).min().unwrap();
        assert!(best < Duration::from_millis(100), "State took {best:?}");
    }
    std::thread::sleep(Duration::from_secs(6)); // longer than one delivery may take
    host.sink.stop();
    host.sink.set(Mood::Answer);
    host.sink.resume();
    wait_for_count(&host, expected.len());
    assert_eq!(host.sink.lines(), expected);
    shim.end();
}

#[test]
fn an_answer_that_got_lost_repeats_its_event_and_no_other() {
    if skipped("an event whose answer got lost is repeated") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    host.sink.set(Mood::Killed);
    shim.run("c");
    host.sink.expect("c", &["create c", "create c", "start c"]);
    shim.remove("c");
    host.sink.expect("c", &["create c", "create c", "start c", "exit c 137", "delete c 137"]);
    shim.stop();
}

#[test]
fn a_containerd_that_is_slow_gets_everything() {
    if skipped("a slow answer is waited for") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    host.sink.set(Mood::Slow(Duration::from_secs(6)));
    shim.run("c");
    let ((), took) = timed(|| shim.state("c", "").map(drop).unwrap());
    assert!(took < Duration::from_secs(1), "{took:?}");
    // The first is given up after 5 s and repeated; then berth knows how slow it is.
    within(Duration::from_secs(40), "the second event", || {
        host.sink.lines().contains(&"start c".to_owned()).then_some(())
    });
    host.sink.set(Mood::Answer);
    shim.remove("c");
    host.sink.wait_for("delete c 137");
    let mut lines = host.sink.lines();
    lines.dedup();
    assert_eq!(lines, ["create c", "start c", "exit c 137", "delete c 137"]);
    shim.stop();
}
