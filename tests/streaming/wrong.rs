//! Streams that are missing, broken, too many or cut off.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{STREAM, exec};
use crate::support::streaming::{self, DATA, Event, OPEN, REQUEST, Reader, Wire, uri};
use crate::support::{Code, Host, SOON, Spec, eventually, skipped, timed};

#[test]
fn a_stream_that_nobody_opens_fails_create() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let mut request = shim.request("c");
    request.stdout = uri(shim.address(), "missing-stdout");
    let (before, files) = (shim.descriptors(), host.files("c"));
    let (answer, took) = timed(|| shim.within(Duration::from_secs(1)).create(&request));
    assert!(took < Duration::from_secs(5), "{took:?}");
    let refusal = answer.unwrap_err();
    // The client's own deadline may be told first.
    if !refusal.message.is_empty() && refusal.code != Code::OK {
        assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
        assert!(refusal.message.contains("missing-stdout"), "{refusal:?}");
    }
    eventually("nothing is left", || {
        let undone = host.states().is_empty() && host.files("c") == files;
        (undone && host.mounts().is_empty() && shim.descriptors() == before).then_some(())
    });

    request.stdout = uri("unix:///nowhere/at/all", "x");
    let refusal = shim.create(&request).unwrap_err();
    assert!(refusal.message.contains("/nowhere/at/all"), "{refusal:?}");
    // It may also come a little later than its name.
    let late = thread::spawn({
        let address = shim.address().to_owned();
        move || {
            thread::sleep(Duration::from_millis(300));
            Reader::open(&address, "late")
        }
    });
    request.stdout = uri(shim.address(), "late");
    shim.create(&request).unwrap();
    shim.end();
    late.join().unwrap().finish();
}

#[test]
fn a_name_has_one_stream_at_a_time() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let address = shim.address();
    let refused = |name: &str| streaming::open(address, name).err().map(|refusal| refusal.code);
    for name in ["free", "taken"] {
        let first = Reader::open(address, name);
        if name == "taken" {
            exec(&shim, "e", &uri(address, name), "sleep 1000");
            let mut twice = shim.exec_request("c", "twice", "true");
            twice.stdout = uri(address, name);
            shim.exec(&twice).unwrap();
            assert_eq!(shim.start("c", "twice").unwrap_err().code, Code::ALREADY_EXISTS);
        }
        assert_eq!(refused(name), Some(Code::ALREADY_EXISTS), "{name}");
        first.vanish();
        eventually("the name is free again", || streaming::open(address, name).ok().map(drop));
    }
    assert_eq!(refused(""), Some(Code::INVALID_ARGUMENT));
    assert_eq!(refused(&"x".repeat(2000)), Some(Code::INVALID_ARGUMENT));
    shim.end();
}

#[test]
fn streams_that_nobody_takes_are_bounded() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut wire = Wire::connect(shim.address());
    let mut wires = vec![Wire::connect(shim.address())];
    let refusal = (0..1100_u32).find_map(|n| {
        if n == 500 {
            wires.push(Wire::connect(shim.address())); // so many are too many for one connection too
        }
        let wire = wires.last_mut().unwrap();
        wire.frame(2 * n + 1, REQUEST, OPEN, &streaming::request(STREAM, "Stream")).unwrap();
        wire.frame(2 * n + 1, DATA, 0, &streaming::init(&format!("n{n}"))).unwrap();
        match wire.numbered() {
            (id, Event::Ack) if id == 2 * n + 1 => None,
            (_, Event::Refused(code, message)) => Some((n, code, message)),
            other => panic!("{other:?}"),
        }
    });
    let (number, code, message) = refusal.unwrap();
    assert_eq!((number, code), (1024, Code::RESOURCE_EXHAUSTED), "{message}");
    drop(wires);
    eventually("they are forgotten with their connection", || {
        wire = streaming::open(shim.address(), "another").ok()?;
        Some(())
    });
    shim.end();
}

#[test]
fn what_is_broken_hurts_nobody_else() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut out = Reader::open(shim.address(), "good");
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.1; done";
    exec(&shim, "good", &uri(shim.address(), "good"), script);

    type Break = (&'static str, fn(&mut Wire), Code);
    let cases: [Break; 8] = [
        ("no message", |wire| wire.send(&[0xff; 9]).unwrap(), Code::INVALID_ARGUMENT),
        (
            "unasked bytes",
            |wire| wire.send(&streaming::data(b"x")).unwrap(),
            Code::INVALID_ARGUMENT,
        ),
        (
            "a shrinking window",
            |wire| wire.send(&streaming::window(-1)).unwrap(),
            Code::INVALID_ARGUMENT,
        ),
        ("a second name", |wire| wire.send(&streaming::init("y")).unwrap(), Code::INVALID_ARGUMENT),
        (
            "too large",
            |wire| wire.frame(1, DATA, 0, &vec![0; (4 << 20) + 1]).unwrap(),
            Code::RESOURCE_EXHAUSTED,
        ),
        (
            "a stream that is not there",
            |wire| wire.frame(3, DATA, 0, &streaming::window(1)).unwrap(),
            Code::INVALID_ARGUMENT,
        ),
        (
            "the same number",
            |wire| {
                wire.frame(1, REQUEST, OPEN, &streaming::request(STREAM, "Stream")).unwrap();
            },
            Code::INVALID_ARGUMENT,
        ),
        (
            "no request",
            |wire| wire.frame(5, REQUEST, OPEN, &[0xff; 9]).unwrap(),
            Code::INVALID_ARGUMENT,
        ),
    ];
    for (name, break_it, expected) in cases {
        let mut wire = streaming::open(shim.address(), name).unwrap();
        break_it(&mut wire);
        match wire.next() {
            Event::Refused(code, message) => assert_eq!(code, expected, "{name}: {message}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    for (service, method) in [(STREAM, "Other"), ("no.Service", "Stream")] {
        let mut wire = Wire::connect(shim.address());
        wire.frame(1, REQUEST, OPEN, &streaming::request(service, method)).unwrap();
        let event = wire.next();
        assert!(matches!(event, Event::Refused(Code::UNIMPLEMENTED, _)), "{event:?}");
    }
    // Windows that add up to more than a number holds, and frames that stop half-way.
    let mut greedy = streaming::open(shim.address(), "greedy").unwrap();
    for _ in 0..5 {
        greedy.send(&streaming::window(i32::MAX)).unwrap();
    }
    exec(&shim, "greedy", &uri(shim.address(), "greedy"), "head -c 100000 /dev/zero");
    let mut count = 0;
    loop {
        match greedy.next() {
            Event::Data(bytes) => count += bytes.len(),
            Event::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count, 100_000);
    let mut half = streaming::open(shim.address(), "half").unwrap();
    std::io::Write::write_all(&mut half.0, &[0, 0, 1, 0, 0, 0]).unwrap();
    drop(half);

    assert_eq!(shim.reap("c", "good"), 0);
    assert_eq!(out.finish(), (1..10).map(|n| format!("line {n}\n")).collect::<String>());
    shim.reap("c", "greedy");
    shim.end();
}

#[test]
fn the_end_of_the_daemon_closes_streams() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let mut out = Reader::open(shim.address(), "out");
    let mut idle = streaming::open(shim.address(), "idle").unwrap();
    let mut request = shim.request("c");
    request.stdout = uri(shim.address(), "out");
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    let (_, took) = timed(|| {
        shim.signal(Signal::SIGTERM);
        shim.wait_gone();
    });
    assert!(took < SOON / 2, "{took:?}");
    assert_eq!(out.finish(), "");
    assert_eq!(idle.next(), Event::End);
    assert_eq!(idle.next(), Event::Lost);
    host.clear();
    drop(idle);
}
