//! Two containerds whose shims have the same namespace, ids and runtime root.

use serde_json::json;

use crate::support::{Code, Host, Spec, skipped};

/// A container in the cgroup that `host` gives to its container `c`: containerds name them alike.
fn in_cgroup_of(host: &Host) -> Spec {
    Spec::idle().set("/linux/cgroupsPath", json!(format!("/berth-test-{}/c", host.tag())))
}

#[test]
fn a_container_of_another_containerd_with_the_same_id_is_left_alone() {
    if skipped("a container of the same id is left alone") {
        return;
    }
    let (one, two) = (Host::new(), Host::new());
    let first = one.start("c", Spec::idle());
    let second = two.start("c", Spec::idle());
    assert_ne!((first.address(), first.pid()), (second.address(), second.pid()));
    let pid = first.run("c");
    // With a root of its own it runs beside the other.
    second.run("c");
    second.remove("c");
    two.prepare("c", in_cgroup_of(&one));
    let mut request = second.request("c");
    request.options = first.request("c").options;
    let refusal = second.create(&request).unwrap_err();
    assert_eq!(refusal.code, Code::ALREADY_EXISTS, "{refusal:?}");
    let bundle = one.bundle("c");
    assert!(refusal.message.contains(bundle.to_str().unwrap()), "{refusal:?}");
    two.delete("c"); // as containerd does after that
    let state = first.state("c", "").unwrap();
    assert_eq!((state.pid, state.status.value()), (pid, 2), "it runs");
    first.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(first.reap("c", "e"), 3);
    second.stop();
    first.end();
}

/// What the runtime of the other one does when it is asked whose the container is.
const ANSWERS: [(&str, &str); 2] = [
    ("none", "do kill -9 $$"),
    // As if the container had been made between the question and the Create.
    ("too late", "do [ -e $dir/asked ] || { : >$dir/asked; exit 1; }"),
];

#[test]
fn a_container_whose_owner_is_not_known_in_time_is_left_alone_too() {
    if skipped("a container of the same id is left alone") {
        return;
    }
    for (name, answer) in ANSWERS {
        let (one, two) = (Host::scripted(), Host::new());
        let first = one.start("c", Spec::idle());
        let second = two.start("c", in_cgroup_of(&one));
        let pid = first.run("c");
        one.script().set("state", answer);
        let mut request = second.request("c");
        request.options = first.request("c").options;
        second.create(&request).expect_err(name);
        one.script().reset();
        two.delete("c"); // as containerd does after that
        let state = first.state("c", "").unwrap();
        assert_eq!((state.pid, state.status.value()), (pid, 2), "{name}: it runs");
        first.exec_run("c", "e", "exit 3").unwrap();
        assert_eq!(first.reap("c", "e"), 3, "{name}");
        second.stop();
        first.end();
    }
}

/// What a container has left that nobody could delete is no obstacle to the next one, whichever way its
/// bundle is named.
#[test]
fn a_state_that_is_left_of_the_same_bundle_is_no_obstacle() {
    if skipped("a state that is left is no obstacle") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let (root, saved) = (host.root().join("tests/c"), host.dir().join("saved"));
    std::os::unix::fs::symlink("task", host.dir().join("link")).unwrap();
    for way in ["task", "link"] {
        let mut request = shim.request("c");
        request.bundle = host.dir().join(way).join("tests/c").to_str().unwrap().to_owned();
        shim.create(&request).unwrap();
        let copied = std::process::Command::new("cp").arg("-a").args([&root, &saved]).status();
        assert!(copied.unwrap().success());
        shim.remove("c");
        std::fs::rename(&saved, &root).unwrap();
        drop(shim.create(&request)); // it may fail, and removes it
        if shim.state("c", "").is_ok() {
            shim.remove("c");
        }
        let made = shim.create(&request);
        assert!(made.is_ok(), "{way}: {made:?}");
        shim.remove("c");
    }
    shim.stop();
}
