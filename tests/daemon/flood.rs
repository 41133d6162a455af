//! Peers that take room and time: calls of others are answered at once all the same.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::support::{Host, Shim, Spec, eventually, skipped, timed};

fn connect(shim: &Shim<'_>) -> Option<UnixStream> {
    UnixStream::connect(shim.address().trim_start_matches("unix://")).ok()
}

/// A call on a connection of its own, and one on the old connection, within 100 ms (the best of five).
#[track_caller]
fn answers_at_once(shim: &Shim<'_>) {
    let new = || drop(shim.reconnect().state("c", "").unwrap());
    let old = || drop(shim.state("c", "").unwrap());
    for call in [&new as &dyn Fn(), &old] {
        let best = (0..5).map(|_| timed(call).1).min().unwrap();
        assert!(best < Duration::from_millis(100), "{best:?}");
    }
}

/// Sets how many descriptors the daemon may have.
fn limit_files(shim: &Shim<'_>, soft: u64) {
    let status = std::process::Command::new("prlimit")
        .args([format!("--pid={}", shim.pid()), format!("--nofile={soft}:")])
        .status();
    assert!(status.unwrap().success());
}

/// The header of a frame: length, stream, type, flags.
fn header(length: u32, kind: u8) -> Vec<u8> {
    [&length.to_be_bytes()[..], &1_u32.to_be_bytes(), &[kind, 0]].concat()
}

#[test]
fn ten_thousand_connections_leave_room_for_one_that_calls() {
    if skipped("the number of connections is limited") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut flood = Vec::new();
    for _ in 0..10_000 {
        flood.push(connect(&shim).unwrap());
    }
    answers_at_once(&shim);
    let files = shim.descriptors().len();
    assert!(files < 3000, "{files} descriptors");
    shim.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(shim.reap("c", "e"), 3);
    drop(flood);
    eventually("they are gone", || (shim.descriptors().len() < 50).then_some(()));
    shim.end();
}

#[test]
fn without_descriptors_left_calls_are_answered_and_it_is_said_once() {
    if skipped("silent connections are hung up") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let before = std::fs::read_to_string(format!("/proc/{}/limits", shim.pid())).unwrap();
    let line = before.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let usual = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    limit_files(&shim, 40);
    let flood: Vec<_> = (0..200).map(|_| connect(&shim).unwrap()).collect();
    answers_at_once(&shim);
    shim.log().wait_for("cannot accept connections");
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", shim.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (begin, ()) = (spent(), thread::sleep(Duration::from_secs(2)));
    assert!(spent() - begin < 20, "a busy loop: {} ticks in 2 s", spent() - begin);
    assert_eq!(shim.log().text().matches("cannot accept connections").count(), 1);
    // Whoever needs more than there is is told so.
    let refused = shim.exec_run("c", "e", "exit 3");
    if let Err(refused) = refused {
        assert!(refused.message.contains("open files"), "{refused:?}");
    }
    limit_files(&shim, usual);
    drop(flood);
    drop(shim.delete("c", "e"));
    shim.exec_run("c", "f", "exit 3").unwrap();
    assert_eq!(shim.reap("c", "f"), 3);
    shim.end();
}

#[test]
fn who_takes_the_last_descriptor_and_calls_is_heard() {
    if skipped("silent connections are hung up") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let dir = format!("/proc/{}/fd", shim.pid());
    let numbers = std::fs::read_dir(dir).unwrap().flatten();
    let numbers: Vec<u64> =
        numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // As many as are free below the highest number, and the last one.
    let limit = numbers.iter().max().unwrap() + 2;
    limit_files(&shim, limit);
    let free = usize::try_from(limit).unwrap() - numbers.len();
    let speakers: Vec<_> = (1..free).map(|_| shim.reconnect()).collect();
    speakers.iter().for_each(|speaker| drop(speaker.state("c", "").unwrap()));
    shim.signal(Signal::SIGSTOP);
    let mut last = connect(&shim).unwrap();
    last.write_all(&[header(3, 1), vec![0xff; 3]].concat()).unwrap();
    let one_more = connect(&shim).unwrap();
    shim.signal(Signal::SIGCONT);
    last.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    last.read_exact(&mut [0; 10]).expect("an answer");
    shim.log().wait_for("cannot accept connections");
    limit_files(&shim, 1024);
    drop((speakers, last, one_more));
    shim.end();
}

#[test]
fn a_peer_that_is_stopped_for_a_while_gets_all_its_answers() {
    if skipped("the number of answers that wait is limited") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut peer = connect(&shim).unwrap();
    let frame = [header(3, 1), vec![0xff; 3]].concat();
    peer.write_all(&frame.repeat(600)).unwrap(); // more answers than a socket holds
    thread::sleep(Duration::from_secs(15));
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for number in 0..600 {
        let mut start = [0; 10];
        peer.read_exact(&mut start).unwrap_or_else(|error| panic!("answer {number}: {error}"));
        let length = u32::from_be_bytes(start[..4].try_into().unwrap());
        peer.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).unwrap();
    }
    shim.end();
}

#[test]
fn a_frame_that_is_never_finished_ends_its_connection() {
    if skipped("half a frame has a time limit") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let cases = [
        ("half a header", vec![0, 0, 0]),
        ("no message", header(100, 1)),
        ("half a message", [header(100, 1), vec![10; 50]].concat()),
        ("half of 4 MiB", [header(4 << 20, 1), vec![10; 2 << 20]].concat()),
        ("half of what is too large", [header(8 << 20, 1), vec![10; 2 << 20]].concat()),
    ];
    thread::scope(|scope| {
        for (name, bytes) in &cases {
            let mut peer = connect(&shim).unwrap();
            scope.spawn(move || {
                peer.write_all(bytes).unwrap();
                peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                let (read, took) = timed(|| peer.read(&mut [0; 100]));
                assert!(matches!(read, Ok(0) | Err(_)), "{name}: {read:?}");
                assert!(took < Duration::from_secs(30), "{name}: {took:?}");
            });
        }
        // As slow as it can be, and never silent.
        for _ in 0..100 {
            let mut peer = connect(&shim).unwrap();
            scope.spawn(move || {
                let bytes = [header(1000, 1), vec![10; 1000]].concat();
                let (sent, took) = timed(|| {
                    bytes
                        .iter()
                        .take_while(|byte| {
                            thread::sleep(Duration::from_millis(250));
                            peer.write_all(&[**byte]).is_ok()
                        })
                        .count()
                });
                assert!(sent < 200 && took < Duration::from_secs(60), "{sent} bytes in {took:?}");
            });
        }
        for _ in 0..5 {
            answers_at_once(&shim);
            thread::sleep(Duration::from_secs(1));
        }
    });
    let _idle = connect(&shim).unwrap(); // a connection may be silent for as long as it likes
    shim.end();
}

#[test]
fn a_peer_that_reads_no_answer_costs_little_and_delays_nobody() {
    if skipped("the number of answers that wait is limited") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let cases = [
        ("bad requests", [header(3, 1), vec![0xff; 3]].concat()),
        ("data of no stream", [header(3, 3), vec![0xff; 3]].concat()),
        ("unknown types", header(0, 77)),
    ];
    for (name, frame) in cases {
        let mut peer = connect(&shim).unwrap();
        peer.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let many = frame.repeat(10_000);
        let mut sent = 0;
        while sent < 8 << 20 {
            match peer.write(&many) {
                Ok(count) => sent += count,
                Err(_) => break,
            }
        }
        answers_at_once(&shim);
        let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let memory: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(memory < 16 << 10, "{name}: {memory} KiB");
    }
    shim.end();
}
