//! What a pod shares, and the process that holds it.

use std::fs;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::pod::{CONTAINER, Config, NODE, Network, PLAIN, POD, Pod};
use crate::support::{Host, binary, skipped};

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

fn same_as_host(pid: i32) -> Vec<&'static str> {
    let own = i32::try_from(std::process::id()).unwrap();
    let same = |kind: &&str| namespace(pid, kind) == namespace(own, kind);
    ["net", "ipc", "uts", "pid", "user", "mnt"].into_iter().filter(same).collect()
}

/// A line of `/proc/PID/status`.
fn line(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_holder_has_the_pods_namespaces_and_nothing_else() {
    if skipped("the sandbox service") {
        return;
    }
    let host_spaces = |names: &[&'static str]| names.to_vec();
    let cases = [
        ("own processes", PLAIN, host_spaces(&["pid", "user"])),
        ("shared processes", Config { pid: POD, ..PLAIN }, host_spaces(&["user"])),
        ("the host's network", Config { network: NODE, ..PLAIN }, {
            host_spaces(&["net", "uts", "pid", "user"])
        }),
        ("the host's IPC", Config { ipc: NODE, ..PLAIN }, host_spaces(&["ipc", "pid", "user"])),
        ("own users", Config { user: Some(200_000), pid: POD, ..PLAIN }, host_spaces(&[])),
    ];
    for (name, config, expected) in cases {
        let host = Host::new();
        let (pod, pid) = Pod::started(&host, &config, "");
        assert_eq!(same_as_host(pid), expected, "{name}");
        let user = config.user.unwrap_or(0) + 65535;
        assert_eq!(line(pid, "Uid"), format!("{user} {user} {user} {user}"), "{name}");
        assert_eq!(line(pid, "Groups"), "", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(line(pid, set), "0000000000000000", "{name}: {set}");
        }
        assert_eq!(line(pid, "NoNewPrivs"), "1", "{name}");
        assert_eq!(line(pid, "Seccomp"), "1", "{name}: it can read, write and exit");
        let root = fs::read_dir(format!("/proc/{pid}/root/")).unwrap();
        assert_eq!(root.count(), 0, "{name}: its root directory is empty");
        let error = fs::write(format!("/proc/{pid}/root/x"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{name}");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{name}: {mounts}");
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        assert!(files.count() <= 4, "{name}");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"", "{name}");
        let program = statvfs(format!("/proc/{pid}/exe").as_str()).unwrap();
        assert!(program.flags().contains(FsFlags::ST_RDONLY), "{name}: its program is read-only");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = format!("/berth-test-{}/pod/pod", host.tag());
        let hybrid = cgroup.lines().filter(|line| !line.starts_with("0::") && is_mounted(line));
        let lines: Vec<_> = hybrid.collect();
        let all = if lines.is_empty() { cgroup.lines().collect() } else { lines };
        assert!(all.iter().all(|line| line.ends_with(&own)), "{name}: {cgroup}");
        pod.end();
    }
}

/// Whether the hierarchy of a line of proc_pid_cgroup(5) can be seen: one that was unmounted while
/// something was in it lives on.
fn is_mounted(line: &str) -> bool {
    let name = line.split(':').nth(1).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut options = mounts.lines().filter(|line| line.starts_with("cgroup "));
    options.any(|line| line.split([' ', ',']).any(|word| name.split(',').any(|it| it == word)))
}

#[test]
fn containers_find_what_the_pod_shares() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let network = Network::new(&host);
    let sysctls = vec![("net.ipv4.ip_forward", "1"), ("kernel.shmmni", "1234")];
    let config = Config { sysctls, pid: POD, ..PLAIN };
    let (pod, holder) = Pod::started(&host, &config, network.0.to_str().unwrap());
    let kinds = ["net", "ipc", "uts", "pid"];
    let links = kinds.map(|kind| namespace(holder, kind)).join("\n") + "\n";
    let script = "for kind in net ipc uts pid; do busybox readlink /proc/self/ns/$kind; done";
    assert_eq!(pod.output("namespaces", script, holder, &kinds), links);
    let named = format!(
        "net:[{}]",
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(&network.0).unwrap())
    );
    assert_eq!(namespace(holder, "net"), named);
    for (name, script, expected) in [
        ("name", "busybox hostname; cat /etc/hostname", "pod-host\npod-host\n".to_owned()),
        (
            "dns",
            "cat /etc/resolv.conf",
            "search a.test\nnameserver 10.1.2.3\noptions ndots:5\n".into(),
        ),
        ("hosts", "cat /etc/hosts", fs::read_to_string("/etc/hosts").unwrap()),
        ("forward", "cat /proc/sys/net/ipv4/ip_forward", "1\n".into()),
        ("shmmni", "cat /proc/sys/kernel/shmmni", "1234\n".into()),
        ("ports", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0\n".into()),
        ("ping", "cat /proc/sys/net/ipv4/ping_group_range", "0\t2147483647\n".into()),
        ("shm", "busybox df -k /dev/shm | busybox awk 'NR==2 {print $2}'", "65536\n".into()),
        ("mode", "busybox stat -c %a /dev/shm; echo x >> /etc/hosts; cat /etc/hostname", {
            "1777\npod-host\n".into()
        }),
    ] {
        assert_eq!(pod.output(name, script, holder, &kinds), expected, "{name}");
    }
    pod.end();
    drop(network);
}

#[test]
fn the_init_process_of_the_pod_reaps() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let (pod, holder) = Pod::started(&host, &Config { pid: POD, ..PLAIN }, "");
    assert_eq!(line(holder, "NSpid"), format!("{holder} 1"));
    // Orphans of the container's end as children of the pod's init process.
    let script = "for n in 1 2 3 4 5; do (sleep 0.2 & exec true) & done; wait; sleep 1; \
                  cat /proc/[0-9]*/stat | busybox grep -c ' Z ' ; true";
    assert_eq!(pod.output("orphans", script, holder, &["pid"]), "0\n");
    // Signals from within the pod do not reach it, as init's do not.
    let script = "kill -9 1; kill -TERM 1; kill -0 1 2> /dev/null; cat /proc/1/comm";
    let output = pod.output("kill", script, holder, &["pid"]);
    assert!(output.ends_with("berth-pod\n"), "{output}");
    assert_eq!(pod.status().state, "SANDBOX_READY");
    pod.end();
}

#[test]
fn the_holder_is_small() {
    if skipped("the sandbox service") {
        return;
    }
    // The type of an ELF file: of a program that is loaded anywhere, as the one that is being
    // developed, every page with an address in it is private. The one that users get is not.
    let anywhere = fs::read(binary()).unwrap()[16] == 3;
    let limit = if anywhere { 600 } else { 150 };
    for pid in [POD, CONTAINER] {
        let host = Host::new();
        let (pod, holder) = Pod::started(&host, &Config { pid, ..PLAIN }, "");
        let rollup = fs::read_to_string(format!("/proc/{holder}/smaps_rollup")).unwrap();
        let dirty = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        let dirty: u32 = dirty.trim().trim_end_matches(" kB").parse().unwrap();
        eprintln!("the holder has {dirty} KiB of private memory");
        assert!(dirty < limit, "{dirty} KiB");
        pod.end();
    }
}
