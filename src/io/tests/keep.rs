//! Output that nobody reads, and FIFOs that a process has itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, fcntl};

use super::*;
use crate::config::OnFull;
use crate::size::Size;
use crate::sys;

const MIB: usize = 1 << 20;

fn policy(buffer: usize, spill: usize, on_full: OnFull) -> config::Io {
    let (buffer, spill) = (Size(buffer as u64), Size(spill as u64));
    config::Io { buffer, spill, on_full, handover: true }
}

async fn opened(fifos: &Fifos, policy: config::Io, is_confined: bool) -> (ProcessIo, ChildStdio) {
    let reaper = Reaper::default();
    let bundle = fifos.directory.path();
    let context = Context { bundle, policy, is_confined, ..plain(&reaper) };
    ProcessIo::open(&fifos.spec(&["stdout"]), &context).await.unwrap()
}

fn number(position: usize) -> u8 {
    (position % 251) as u8
}

/// Writes numbered bytes in uneven parts.
fn writer(pipe: OwnedFd, total: usize) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut file, mut at) = (File::from(pipe), 0);
        for length in [1, 100, 4096, 70_000].into_iter().cycle() {
            let length = length.min(total - at);
            let part: Vec<u8> = (at..at + length).map(number).collect();
            file.write_all(&part).unwrap();
            at += length;
            if at == total {
                return;
            }
        }
    })
}

#[test]
fn a_process_goes_on_without_a_reader_as_long_as_there_is_room() {
    let cases = [
        ("the FIFO's own buffer", policy(MIB, 0, OnFull::Block), MIB, 4 * MIB),
        ("more memory than a FIFO can have", policy(4 * MIB, 0, OnFull::Block), 4 * MIB, 8 * MIB),
        ("a file", policy(MIB, 6 * MIB, OnFull::Block), 6 * MIB, 12 * MIB),
        ("a file behind a small buffer", policy(4096, 3 * MIB, OnFull::Block), 3 * MIB, 9 * MIB),
    ];
    for (name, policy, room, total) in cases {
        run(async {
            let fifos = Fifos::new();
            let (io, child) = opened(&fifos, policy, false).await;
            let (first, rest) = (writer(child.stdout.try_clone().unwrap(), room), total - room);
            until(name, || first.is_finished()).await;
            let second = std::thread::spawn(move || {
                let part: Vec<u8> = (room..total).map(number).collect();
                File::from(child.stdout).write_all(&part).unwrap();
            });
            sleep(Duration::from_millis(200)).await;
            assert!(!second.is_finished(), "{name}: {rest} more are not kept");
            assert_idle(name).await;
            let bytes = joined(fifos.reader("stdout"));
            let drained = io.drained(in_ms(20_000));
            let (bytes, drained) = tokio::join!(bytes, drained);
            drained.unwrap();
            assert!(bytes.iter().copied().eq((0..total).map(number)), "{name}: {}", bytes.len());
            joined(second).await;
            assert_eq!(fifos.directory.path().read_dir().unwrap().count(), 3, "{name}: files");
        });
    }
}

#[test]
fn a_fifo_full_of_small_writes_leaves_room_for_the_rest() {
    let cases = [
        ("the FIFO's own buffer", policy(MIB, 0, OnFull::Block), MIB),
        ("more memory than a FIFO can have", policy(4 * MIB, 0, OnFull::Block), 4 * MIB),
        ("a file", policy(MIB, 2 * MIB, OnFull::Block), 3 * MIB - (64 << 10)),
        ("the youngest", policy(MIB, 0, OnFull::DropOldest), 3 * MIB),
    ];
    for (name, policy, room) in cases {
        run(async {
            let fifos = Fifos::new();
            let (io, child) = opened(&fifos, policy, false).await;
            let client = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
            let mut small = File::from(child.stdout.try_clone().unwrap());
            // Each byte has a page of the FIFO for itself.
            for at in 0..300 {
                small.write_all(&[number(at)]).unwrap();
                let moved = || sys::pipe::unread(client.as_fd()).unwrap() > at;
                let until = in_ms(100);
                while at < 256 && !moved() && Instant::now() < until {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            drop(small);
            let large = std::thread::spawn(move || {
                let part: Vec<u8> = (300..room).map(number).collect();
                File::from(child.stdout).write_all(&part).unwrap();
            });
            until(name, || large.is_finished()).await;
            let bytes = joined(fifos.reader("stdout")).await;
            let dropped = usize::try_from(io.dropped()).unwrap();
            assert_eq!(bytes.len() + dropped, room, "{name}");
            assert!(bytes.len() >= MIB / 2, "{name}: {} are kept", bytes.len());
            if dropped == 0 {
                assert!(bytes.iter().copied().eq((0..room).map(number)), "{name}");
            }
        });
    }
}

#[test]
fn the_end_is_seen_behind_a_full_fifo() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = opened(&fifos, policy(4096, 0, OnFull::Block), false).await;
        let client = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
        let mut stdout = File::from(child.stdout);
        for at in 0..16 {
            stdout.write_all(b"x").unwrap();
            until("a page each", || sys::pipe::unread(client.as_fd()).unwrap() > at).await;
        }
        drop(stdout);
        io.drained(in_ms(5000)).await.unwrap();
    });
}

#[test]
fn a_reader_that_comes_and_goes_gets_everything_once() {
    for policy in [policy(MIB, 64 * MIB, OnFull::Block), policy(MIB, 0, OnFull::Block)] {
        run(async {
            let fifos = Fifos::new();
            let (io, child) = opened(&fifos, policy, policy.spill == Size(0)).await;
            let total = 24 * MIB;
            let writer = writer(child.stdout, total);
            let path = fifos.path("stdout");
            let reader = std::thread::spawn(move || {
                let (mut bytes, mut block) = (Vec::new(), vec![0; 100_000]);
                while bytes.len() < total {
                    let mut fifo = File::open(&path).unwrap();
                    for _ in 0..30 {
                        let count = fifo.read(&mut block).unwrap();
                        bytes.extend_from_slice(&block[..count]);
                    }
                    drop(fifo);
                    std::thread::sleep(Duration::from_millis(5));
                }
                bytes
            });
            joined(writer).await;
            io.process_ended();
            let bytes = joined(reader).await;
            assert!(bytes.iter().copied().eq((0..total).map(number)));
        });
    }
}

#[test]
fn the_oldest_output_is_dropped_and_counted_if_that_is_wanted() {
    for spill in [0, MIB] {
        run(async {
            let fifos = Fifos::new();
            let policy = policy(256 << 10, spill, OnFull::DropOldest);
            let (io, child) = opened(&fifos, policy, true).await;
            let total = 16 * MIB;
            let writer = writer(child.stdout, total);
            until("nothing blocks the writer", || writer.is_finished()).await;
            until("bytes are dropped", || io.dropped() > 0).await;
            let bytes = joined(fifos.reader("stdout")).await;
            let dropped = usize::try_from(io.dropped()).unwrap();
            assert_eq!(bytes.len() + dropped, total, "spill {spill}");
            assert!(bytes.len() >= spill + (256 << 10), "spill {spill}: {}", bytes.len());
            // First what the FIFO has, which cannot be taken back; then a gap; then the youngest.
            let gap = bytes.iter().zip((0..total).map(number)).position(|(a, b)| *a != b).unwrap();
            let young = bytes[gap..].iter().copied();
            assert!(young.eq((gap + dropped..total).map(number)), "spill {spill}");
        });
    }
}

#[test]
fn a_fifo_is_handed_over_only_where_nobody_notices() {
    let usual = policy(MIB, 0, OnFull::Block);
    let cases = [
        ("safe", usual, true, true),
        ("small buffer", policy(4096, 0, OnFull::Block), true, true),
        ("writers that outlive it", usual, false, false),
        ("switched off", config::Io { handover: false, ..usual }, true, false),
        ("spill", policy(MIB, 1, OnFull::Block), true, false),
        ("drop", policy(MIB, 0, OnFull::DropOldest), true, false),
        ("more than the kernel grants", policy(1 << 30, 0, OnFull::Block), true, false),
    ];
    for (name, policy, is_confined, expected) in cases {
        run(async {
            let fifos = Fifos::new();
            let (_io, child) = opened(&fifos, policy, is_confined).await;
            let link = format!("/proc/self/fd/{}", child.stdout.as_raw_fd());
            let handed = std::fs::read_link(link).unwrap() == fifos.path("stdout");
            assert_eq!(handed, expected, "{name}");
            let flags = OFlag::from_bits_retain(fcntl(&child.stdout, FcntlArg::F_GETFL).unwrap());
            assert_eq!(flags & (OFlag::O_ACCMODE | OFlag::O_NONBLOCK), OFlag::O_WRONLY, "{name}");
            if handed {
                let size = fcntl(&child.stdout, FcntlArg::F_GETPIPE_SZ).unwrap();
                assert!(size as u64 >= policy.buffer.0, "{name}: {size}");
            }
        });
    }
}

#[test]
fn a_handed_fifo_keeps_a_relays_promises() {
    run(async {
        let fifos = Fifos::new();
        let policy = policy(MIB, 0, OnFull::Block);
        let (io, child) = opened(&fifos, policy, true).await;
        let mut process = spawn("echo one; sleep 0.3; seq 1 2000", child);
        let mut client = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
        let mut bytes = [0; 16];
        until("a first reader has it", || client.read(&mut bytes).is_ok_and(|n| n == 4)).await;
        drop(client);
        assert!(process.wait().unwrap().success(), "no reader is no SIGPIPE");
        let later = fifos.reader("stdout");
        sleep(Duration::from_millis(50)).await;
        assert!(!later.is_finished(), "no end before berth knows of the process's");
        io.drained(in_ms(5000)).await.unwrap();
        let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
        assert_eq!(joined(later).await, expected.as_bytes());
    });
}

#[test]
fn a_handed_fifo_waits_for_a_reader_after_the_end() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = opened(&fifos, policy(MIB, 0, OnFull::Block), true).await;
        assert!(spawn("echo late", child).wait().unwrap().success());
        io.drained(in_ms(5000)).await.unwrap();
        sleep(Duration::from_millis(20)).await;
        assert_idle("waiting for a reader").await;
        assert_eq!(joined(fifos.reader("stdout")).await, b"late\n");
    });
}

#[test]
fn a_reader_that_waits_sees_no_end_before_the_first_byte() {
    let usual = policy(MIB, 0, OnFull::Block);
    for policy in [usual, policy(1 << 30, 0, OnFull::Block), policy(MIB, MIB, OnFull::Block)] {
        run(async {
            let fifos = Fifos::new();
            let mut client = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
            let waits = std::thread::spawn(move || {
                let mut end =
                    [nix::poll::PollFd::new(client.as_fd(), nix::poll::PollFlags::POLLIN)];
                nix::poll::poll(&mut end, 5000u16).unwrap();
                let mut bytes = [0; 16];
                let count = client.read(&mut bytes).unwrap();
                bytes[..count].to_vec()
            });
            sleep(Duration::from_millis(20)).await;
            let (io, child) = opened(&fifos, policy, true).await;
            sleep(Duration::from_millis(20)).await;
            let mut process = spawn("echo first", child);
            assert_eq!(joined(waits).await, b"first\n");
            process.wait().unwrap();
            drop(io);
        });
    }
}

#[test]
fn input_may_be_closed_while_it_streams() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = fifos.open(&["stdin", "stdout"]).await;
        let script =
            "trap go=1 USR1; head -c 3000000; until [ $go ]; do sleep 0.05; done; exec cat";
        let mut process = spawn(script, child);
        let reader = fifos.reader("stdout");
        let mut client = OpenOptions::new().write(true).open(fifos.path("stdin")).unwrap();
        let (total, sent) = (8 * MIB, Arc::new(AtomicUsize::new(0)));
        let written = Arc::clone(&sent);
        let writer = std::thread::spawn(move || {
            for at in (0..total).step_by(512) {
                let part: Vec<u8> = (at..at + 512).map(number).collect();
                client.write_all(&part).unwrap();
                written.store(at, Ordering::Relaxed);
            }
        });
        while sent.load(Ordering::Relaxed) < MIB {
            tokio::task::yield_now().await;
        }
        io.close_stdin();
        io.close_stdin();
        sleep(Duration::from_millis(300)).await;
        assert!(!writer.is_finished(), "everything is full");
        assert_idle("input that was closed and is not read").await;
        let go = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(go, nix::sys::signal::SIGUSR1).unwrap();
        joined(writer).await;
        io.drained(in_ms(20_000)).await.unwrap();
        let bytes = joined(reader).await;
        assert!(bytes.iter().copied().eq((0..total).map(number)), "{}", bytes.len());
        process.wait().unwrap();
    });
}

#[test]
fn a_reader_that_is_about_to_come_back_is_waited_for() {
    for (name, is_confined) in [("handed over", true), ("relayed", false)] {
        run(async {
            let fifos = Fifos::new();
            let (io, child) = opened(&fifos, policy(MIB, 0, OnFull::Block), is_confined).await;
            let first = fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
            joined(writer(child.stdout, MIB / 2)).await;
            io.drained(in_ms(5000)).await.unwrap();
            assert_eq!(io.abandoned(in_ms(5000)).await, [], "{name}: it has the FIFO open");
            drop(first);
            let path = fifos.path("stdout");
            let second = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                let mut bytes = Vec::new();
                File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
                bytes
            });
            let abandoned = io.abandoned(in_ms(5000)).await;
            io.close();
            let bytes = joined(second).await;
            assert_eq!((abandoned, bytes.len()), (vec![], MIB / 2), "{name}");
        });
    }
}

#[test]
fn what_is_lost_with_a_fifo_is_known() {
    run(async {
        let fifos = Fifos::new();
        let (io, child) = opened(&fifos, policy(MIB, 0, OnFull::Block), true).await;
        joined(writer(child.stdout, 5000)).await;
        io.drained(in_ms(5000)).await.unwrap();
        assert_eq!(io.abandoned(in_ms(5000)).await, [("stdout", 5000)]);
    });
}

#[test]
fn the_end_of_a_process_waits_for_a_reader_that_reads() {
    let cases = [
        ("nobody", None, 0..90, false),
        ("one that has stopped", Some(0), 90..400, false),
        ("one that reads", Some(24), 1..900, true),
    ];
    for is_confined in [true, false] {
        for (name, blocks, expected, empty) in cases.clone() {
            run(async {
                let fifos = Fifos::new();
                let (io, child) = opened(&fifos, policy(MIB, 0, OnFull::Block), is_confined).await;
                let client = || fifos.client(OpenOptions::new().read(true), "stdout").unwrap();
                let reader = blocks.map(|_| client());
                joined(writer(child.stdout, 600_000)).await;
                io.process_ended();
                let reader = reader.map(|mut fifo| {
                    std::thread::spawn(move || {
                        let mut block = vec![0; 25_000];
                        for _ in 0..blocks.unwrap() {
                            std::thread::sleep(Duration::from_millis(10));
                            let _ = fifo.read(&mut block);
                        }
                        fifo
                    })
                });
                let began = Instant::now();
                io.taken().await;
                let took = u32::try_from(began.elapsed().as_millis()).unwrap();
                assert!(expected.contains(&took), "{name}, {is_confined}: {took} ms");
                if let Some(reader) = reader {
                    let left = sys::pipe::unread(joined(reader).await.as_fd()).unwrap();
                    assert_eq!(left == 0, empty, "{name}, {is_confined}: {left} left");
                }
            });
        }
    }
}
