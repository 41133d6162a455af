//! Standard streams.

use std::io::Write;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Code, Host, Shim, Spec, Streams, eventually, skipped, stock, timed};

const ALL: [bool; 3] = [true, true, true];
const OUTPUT: [bool; 3] = [false, true, true];

/// Creates and starts container `c` with `streams`; its pid.
fn run(shim: &Shim<'_>, streams: &Streams) -> u32 {
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    let pid = shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    pid
}

/// Adds and starts exec `e` of `script` with `streams`.
fn exec(shim: &Shim<'_>, streams: &Streams, script: &str) {
    let mut request = shim.exec_request("c", "e", script);
    streams.to_exec(&mut request);
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
}

#[test]
fn any_subset_of_the_streams_works_for_init_and_exec() {
    const SCRIPT: &str = "cat; echo out; echo err >&2; exit 3";
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT));
    for bits in 0..8u8 {
        let set = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
        if bits != 0 && bits < 6 && skipped("stdin, stdout or stderr alone") {
            continue;
        }
        let finish = |streams: &Streams, exec: &str| {
            if set[0] {
                let mut stdin = streams.writer();
                stdin.write_all(b"in\n").unwrap();
                drop(stdin);
                shim.close_stdin("c", exec).unwrap();
            }
            assert_eq!(shim.reap("c", exec), 3, "{set:?} {exec}");
            let input = if set[0] { "in\n" } else { "" };
            let out = if set[1] { streams.out().finish() } else { format!("{input}out\n") };
            let err = if set[2] { streams.err().finish() } else { "err\n".into() };
            assert_eq!((out, err), (format!("{input}out\n"), "err\n".into()), "{set:?} {exec}");
        };
        host.prepare("c", Spec::sh(SCRIPT));
        let streams = host.streams(&format!("init{bits}"), set);
        run(&shim, &streams);
        finish(&streams, "");
        host.prepare("c", Spec::idle());
        shim.run("c");
        let streams = host.streams(&format!("exec{bits}"), set);
        exec(&shim, &streams, SCRIPT);
        finish(&streams, "e");
        shim.remove("c");
    }
    shim.stop();
}

#[test]
fn a_terminal_takes_its_size_from_resize() {
    const SCRIPT: &str = "read x; stty size; read x; stty size; exit 3";
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT).terminal());
    let talk = |streams: &Streams, exec: &str| {
        let mut stdin = streams.writer();
        shim.resize("c", exec, 80, 25).unwrap();
        stdin.write_all(b"\n").unwrap();
        streams.out().wait_for("25 80\r\n");
        shim.resize("c", exec, 100, 30).unwrap();
        stdin.write_all(b"\n").unwrap();
        assert_eq!(shim.reap("c", exec), 3);
        assert!(streams.out().finish().ends_with("30 100\r\n"), "{:?}", streams.out().text());
    };
    let streams = host.streams("init", [true, true, false]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    request.terminal = true;
    shim.create(&request).unwrap();
    shim.resize("c", "", 10, 10).unwrap(); // as clients do before Start
    shim.start("c", "").unwrap();
    assert!(shim.state("c", "").unwrap().terminal);
    talk(&streams, "");
    host.prepare("c", Spec::idle());
    shim.run("c");
    let streams = host.streams("exec", [true, true, false]);
    let process = json!({
        "args": ["/bin/sh", "-c", SCRIPT], "terminal": true,
        "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
    });
    let mut request = shim.exec_process("c", "e", process);
    streams.to_exec(&mut request);
    request.terminal = true;
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    talk(&streams, "e");
    assert!(stock() || !shim.descriptors().contains(&"/dev/ptmx".into()), "the console is closed");
    shim.end();
}

#[test]
fn a_terminal_may_lack_a_stream() {
    const SCRIPT: &str = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo out && exit 3";
    let host = Host::new();
    let spec = || Spec::sh(SCRIPT).terminal();
    let shim = host.start("c", spec());
    for bits in 0..4u8 {
        let set = [bits & 1 != 0, bits & 2 != 0, false];
        if !set[1] && skipped("a terminal without output") {
            continue;
        }
        host.prepare("c", spec());
        let streams = host.streams(&format!("init{bits}"), set);
        let mut request = shim.request("c");
        streams.to_create(&mut request);
        request.terminal = true;
        shim.create(&request).unwrap_or_else(|refusal| panic!("{set:?}: {refusal:?}"));
        shim.start("c", "").unwrap();
        assert_eq!(shim.reap("c", ""), 3, "{set:?}");
        if set[1] {
            assert_eq!(streams.out().finish(), "out\r\n", "{set:?}");
        }
    }
    shim.stop();
}

#[test]
fn all_output_has_reached_the_fifo_when_delete_answers() {
    const BYTES: usize = 20 << 20;
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let streams = host.streams("e", OUTPUT);
    exec(&shim, &streams, &format!("head -c {BYTES} /dev/zero; echo end >&2"));
    assert_eq!(shim.reap("c", "e"), 0);
    shim.signal(Signal::SIGSTOP); // it adds nothing from here on
    eventually("all bytes", || (streams.out().len() == BYTES).then_some(()));
    streams.err().wait_for("end\n");
    shim.signal(Signal::SIGCONT);
    streams.out().finish();
    shim.end();
}

#[test]
fn output_waits_for_a_reader_that_goes_and_comes_back() {
    const SCRIPT: &str = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT));
    let mut streams = host.streams("c", OUTPUT);
    run(&shim, &streams);
    streams.out().wait_for("line 20\n");
    let before = streams.reopen_out(|| thread::sleep(Duration::from_millis(500)));
    assert_eq!(shim.reap("c", ""), 0); // no SIGPIPE
    let all = before + &streams.out().finish();
    assert_eq!(all, (0..200).map(|n| format!("line {n}\n")).collect::<String>());
    shim.stop();
}

#[test]
fn a_reader_that_does_not_read_delays_only_its_own_process() {
    const BYTES: usize = 1 << 20;
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let streams = host.streams("e", OUTPUT);
    streams.out().hold(true);
    exec(&shim, &streams, &format!("head -c {BYTES} /dev/zero"));
    thread::sleep(Duration::from_millis(100)); // the FIFO is full now
    let (_, took) = timed(|| {
        shim.state("c", "e").unwrap();
        shim.exec_run("c", "other", "exit 1").unwrap();
        assert_eq!(shim.reap("c", "other"), 1);
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
    streams.out().hold(false);
    assert_eq!(shim.reap("c", "e"), 0);
    streams.out().finish();
    assert_eq!(streams.out().len(), BYTES);
    shim.end();
}

#[test]
fn stdin_ends_when_its_writer_and_closeio_say_so() {
    let host = Host::new();
    let shim = host.start("c", Spec::sh("cat; exit 3"));
    let streams = host.streams("c", ALL);
    run(&shim, &streams);
    for words in ["hello\n", "again\n"] {
        let mut stdin = streams.writer(); // a client that attaches, writes and detaches
        stdin.write_all(words.as_bytes()).unwrap();
        streams.out().wait_for(words);
    }
    let early = shim.within(Duration::from_millis(200)).wait("c", "");
    assert!(early.is_err(), "stdin ended when a client detached: {early:?}");
    shim.close_stdin("c", "").unwrap();
    assert_eq!(shim.reap("c", ""), 3);
    assert_eq!(streams.out().finish(), "hello\nagain\n");
    shim.stop();
}

#[test]
fn delete_names_the_process_that_holds_the_output() {
    if skipped("the drain limit names the holder") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let streams = host.streams("e", OUTPUT);
    exec(&shim, &streams, "sleep 777 & echo started");
    assert_eq!(shim.wait("c", "e").unwrap().exit_status, 0);
    let processes = host.processes();
    let holder = processes.iter().find(|process| process.line.contains("sleep 777")).unwrap();
    let (answer, took) = timed(|| shim.delete("c", "e"));
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
    assert!(refusal.message.contains(&holder.pid.to_string()), "{refusal:?}, not {holder:?}");
    assert!(took > Duration::from_secs(8) && took < Duration::from_secs(13), "{took:?}");
    assert_eq!(shim.delete("c", "e").unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(streams.out().text(), "started\n");
    shim.end();
}

#[test]
fn the_pipes_belong_to_the_user_that_the_options_name() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    let streams = host.streams("c", ALL);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    request.options = Some(shim.options(|options| {
        options.io_uid = 1234;
        options.io_gid = 4321;
    }))
    .into();
    shim.create(&request).unwrap();
    // Seen by the runtime: runc itself gives the container's user its streams later.
    assert!(host.script().last("create").contains(&"stdio=1234:4321 1234:4321 1234:4321".into()));
    shim.end();
}

#[test]
fn an_unknown_kind_of_stream_is_refused() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    for uri in ["gopher://x", "ftp:///tmp/x"] {
        let mut request = shim.request("c");
        request.stdout = uri.into();
        request.stderr = uri.into();
        let refusal = shim.create(&request).unwrap_err();
        assert!(stock() || refusal.code == Code::INVALID_ARGUMENT, "{uri}: {refusal:?}");
        assert!(stock() || refusal.message.contains(uri.split(':').next().unwrap()), "{refusal:?}");
    }
    drop(shim.delete("c", ""));
    if !stock() {
        assert!(host.mounts().is_empty() && host.states().is_empty());
    }
    shim.stop();
}
