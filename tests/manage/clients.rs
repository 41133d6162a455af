//! Clients of all kinds, none of whom delays anybody.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::count;
use crate::support::http::{AT_ONCE, Reply, connect, exchange, get};
use crate::support::{Host, Spec, patient, skipped, timed, within};

#[test]
fn slow_clients_and_many_clients_delay_nobody() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let socket = host.management("c");
    // All places but one are taken by clients who say nothing, or a little; who comes last finds none.
    let slow: Vec<_> = (0..7)
        .map(|number| {
            let mut stream = connect(&socket);
            stream.write_all(&b"GET / HTTP/1.1\r\n"[..number * 2]).unwrap();
            stream
        })
        .collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|number| {
                let socket = &socket;
                let path = ["/metrics", "/containers", "/config", "/events"][number % 4];
                scope.spawn(move || get(socket, path).status)
            })
            .collect();
        let mut longest = Duration::ZERO;
        while clients.iter().any(|client| !client.is_finished()) {
            let (state, took) = timed(|| shim.state("c", ""));
            state.unwrap();
            longest = longest.max(took);
        }
        assert!(longest < patient(AT_ONCE), "State took {longest:?}");
        let statuses: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert_eq!(statuses, [200; 100]);
    });
    // The slow ones had to go when others came; those who take all places now go too.
    let all = (0..8).map(|_| connect(&socket));
    let slow: Vec<_> = slow.into_iter().chain(all).collect();
    let (reply, took) = timed(|| get(&socket, "/healthz"));
    assert_eq!(reply.body, "ok\n");
    assert!(took < patient(Duration::from_secs(2)), "{took:?}");
    for mut stream in slow {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(Reply::of(&text).status, 408);
    }
    shim.end();
}

#[test]
fn what_is_no_request_gets_a_refusal_or_nothing() {
    if skipped("the management interface") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let socket = host.management("c");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let cases = [
        ("garbage", "\0\0\0\0\r\n\r\n".to_owned(), 400),
        ("a long head", long, 431),
        (
            "a long body",
            format!("PUT /log-level HTTP/1.1\r\nContent-Length: 2000\r\n\r\n{}", "x".repeat(2000)),
            413,
        ),
        (
            "chunks",
            "PUT /log-level HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            501,
        ),
    ];
    for (name, request, status) in cases {
        let mut stream = connect(&socket);
        // The shim may have hung up before it was all sent.
        drop(stream.write_all(request.as_bytes()));
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        assert_eq!(Reply::of(&text).status, status, "{name}: {read:?}");
    }
    // Who hangs up half-way, or does not read, leaves nothing behind.
    let open = count(&shim);
    for _ in 0..50 {
        drop(connect(&socket).write_all(b"GET /metrics HTTP/1.1\r\n"));
        drop(connect(&socket).write_all(b"GET /metrics HTTP/1.1\r\n\r\n"));
    }
    within(Duration::from_secs(30), "their connections to end", || {
        (count(&shim) <= open).then_some(())
    });
    assert_eq!(get(&socket, "/healthz").body, "ok\n");
    shim.end();
}

#[test]
fn a_client_of_another_uid_is_refused() {
    const SOCKET: &str = "BERTH_TEST_CLIENT";
    if skipped("the management interface") {
        return;
    }
    if let Ok(socket) = std::env::var(SOCKET) {
        // This is the child below: it exits with 0 if the shim talks to it.
        let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let text = exchange(stream, "GET /healthz HTTP/1.1\r\n\r\n").unwrap_or_default();
        std::process::exit(if text.is_empty() { 3 } else { 0 });
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    // A second name, open to all: the directory's and the socket's own modes do not help here.
    let open = host.dir().join("client");
    std::fs::hard_link(host.management("c"), &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).unwrap();
    for (uid, expected) in [(0, 0), (65534, 3)] {
        let mut client = Command::new("/proc/self/exe");
        client.args(["--exact", "manage::clients::a_client_of_another_uid_is_refused"]);
        client.env(SOCKET, &open).uid(uid);
        let output = client.output().unwrap();
        assert_eq!(output.status.code(), Some(expected), "uid {uid}: {output:?}");
    }
    shim.log().wait_for("refused a management client of uid 65534");
    shim.end();
}
