//! Which way an output takes: the process has the FIFO itself, or a pipe of berth's.

use std::fs::read_link;

use containerd_shim_protos::shim::oci::Options;
use serde_json::json;

use super::{Kind, Process};
use crate::support::{Host, Spec, skipped, stock};

const OUTPUTS: [bool; 3] = [false, true, true];

/// What the streams of a process are.
fn files(pid: u32) -> [String; 2] {
    [1, 2]
        .map(|number| read_link(format!("/proc/{pid}/fd/{number}")).unwrap().display().to_string())
}

#[test]
fn an_init_process_has_the_fifo_itself_where_nobody_notices() {
    if skipped("FIFOs are handed over") {
        return;
    }
    let plain = || Spec::sh("true");
    let no_pid = json!(["ipc", "uts", "mount"].map(|kind| json!({"type": kind})));
    let other_pid = json!([{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "mount"}]);
    let user = json!(["pid", "user", "mount"].map(|kind| json!({"type": kind})));
    let none: fn(&mut Options) = |_| ();
    let cases = [
        ("as it comes", plain(), "", none, true),
        ("a smaller buffer", plain(), "[io]\nbuffer = \"64KiB\"\n", none, true),
        ("host's PID namespace", plain().set("/linux/namespaces", no_pid), "", none, false),
        ("another's PID namespace", plain().set("/linux/namespaces", other_pid), "", none, false),
        ("user namespace", plain().set("/linux/namespaces", user), "", none, false),
        ("AppArmor", plain().set("/process/apparmorProfile", json!("berth")), "", none, false),
        ("SELinux", plain().set("/process/selinuxLabel", json!("a:b:c:d")), "", none, false),
        ("owner of pipes", plain(), "", |options| options.io_uid = 1234, false),
        ("switched off", plain(), "[io]\nhandover = false\n", none, false),
        ("a file", plain(), "[io]\nspill = \"1MiB\"\n", none, false),
        ("dropping", plain(), "[io]\non_full = \"drop-oldest\"\n", none, false),
        ("a buffer larger than a FIFO's", plain(), "[io]\nbuffer = \"1GiB\"\n", none, false),
    ];
    for (case, spec, config, change, expected) in cases {
        let host = Host::scripted().configured(config);
        // What the runtime gets is the question, not whether this machine has the security module.
        host.script().set("create", "fail on purpose");
        let shim = host.start("c", spec);
        let streams = host.unread_streams("c", OUTPUTS);
        let mut request = shim.request("c");
        streams.to_create(&mut request);
        request.options = Some(shim.options(change)).into();
        assert!(shim.create(&request).unwrap_err().message.contains("on purpose"), "{case}");
        let last = host.script().last("create");
        let files = last.iter().find_map(|line| line.strip_prefix("stdio-files=")).unwrap();
        let fifos = format!("/dev/null {} {}", streams.stdout, streams.stderr);
        assert_eq!(files == fifos, expected, "{case}: {files}");
        let pipes = files.split(' ').skip(1).all(|file| file.starts_with("pipe:"));
        assert_eq!(pipes, !expected, "{case}: {files}");
        drop(shim.delete("c", ""));
        shim.stop();
    }
}

#[test]
fn a_running_process_has_what_the_runtime_got() {
    let host = super::host("");
    let shim = super::idle(&host);
    for kind in Kind::ALL {
        let name = super::name(kind, 0);
        let streams = host.unread_streams(&name, OUTPUTS);
        let process = Process::start(&shim, kind, &name, "exec sleep 1000", &streams);
        let files = files(process.pid);
        match kind {
            Kind::Init if !stock() => assert_eq!(files, [streams.stdout, streams.stderr]),
            _ => assert!(files.iter().all(|file| file.starts_with("pipe:")), "{files:?}"),
        }
        process.kill();
        process.reap();
    }
    for kind in Kind::ALL {
        let name = super::name(kind, 1);
        let streams = host.unread_streams(&name, super::OUTPUT);
        let process = Process::on_terminal(&shim, kind, &name, "exec sleep 1000", &streams);
        let files = files(process.pid);
        assert!(files.iter().all(|file| file.starts_with("/dev/pts/")), "{files:?}");
        process.kill();
        process.reap();
    }
    shim.end();
}
