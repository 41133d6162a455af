//! Pods whose root is nobody on the host: `hostUsers: false`.

use crate::bed::Bed;
use crate::cri::Cri;
use crate::cri::messages::{IdMapping, POD, UserNamespace};
use crate::{Case, Runtime, pod};

const CASES: &[Case] = &[pod("pod-users", users)];

/// The cases, where the daemon offers it: 1.6 does not, and 2.x only for runtimes that can mount with
/// other ids, which runc 1.1 (Debian 12) cannot.
pub(crate) fn cases(version: &str, runtime: Runtime) -> &'static [Case] {
    match (version, runtime) {
        ("1.6", _) => &[],
        ("1.7", _) | (_, Runtime::Crun) => CASES,
        (_, Runtime::Runc) => &[],
    }
}

/// Where the pod's ids begin on the host.
const FIRST: u32 = 700_000;

/// The containers share a user namespace; what they are on the host is what was asked for, and so is
/// who owns what they write.
fn users(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let ids = vec![IdMapping { host_id: FIRST, container_id: 0, length: 65536 }];
    let pod = super::run(&cri, bed, "pod", |pod| {
        let users = UserNamespace { mode: POD, uids: ids.clone(), gids: ids };
        pod.namespaces().userns_options = Some(users);
    });
    let [a, b] = ["a", "b"].map(|name| pod.start(name, &["sleep", "1000"]));
    let of = |container: &str| pod.ask(container, "readlink /proc/self/ns/user");
    let host = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_eq!(of(&a), of(&b));
    assert_ne!(of(&a), host.to_str().unwrap());
    let map = pod.ask(&a, "cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "700000", "65536"]);
    assert_eq!(pod.ask(&a, "id -u; touch /file; busybox stat -c %u /file /bin/busybox"), "0\n0\n0");
    assert_eq!(pod.ask(&b, "echo shared >/dev/shm/file; id -u"), "0");
    assert_eq!(pod.ask(&a, "cat /dev/shm/file"), "shared");
    for process in pod.processes() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        let uid: u32 = uid.split_whitespace().next().unwrap().parse().unwrap();
        let expected = match process.pid {
            pid if pid == pod.shim() => 0..1,
            // berth's holder is nobody in there.
            pid if pid == pod.sandbox() => FIRST..FIRST + 65536,
            _ => FIRST..FIRST + 1,
        };
        assert!(expected.contains(&uid), "{}: {uid}", process.describe());
    }
    pod.remove();
}
