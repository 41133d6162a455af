//! What a pod's containers are to each other, and what a runtime is told of the pod.

use std::fs;

use containerd_shim_protos::api::Mount;
use serde_json::{Value, json};

use crate::support::{Code, Host, Shim, Spec, Stdin, skipped};

fn annotated(spec: Spec, annotations: &[(&str, &str)]) -> Spec {
    let set = |spec: Spec, (name, value): &(&str, &str)| {
        spec.set(&format!("/annotations/{}", name.replace('/', "~1")), json!(value))
    };
    annotations.iter().fold(spec, set)
}

const CRI: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"];

#[test]
fn a_shim_has_one_sandbox_and_it_comes_first() {
    if skipped("kinds of containers") {
        return;
    }
    let host = Host::new();
    let of = |kind: &'static str| annotated(Spec::idle(), &[(CRI[0], kind), (CRI[1], "pod")]);
    let shim = host.start("pod", of("sandbox"));
    host.prepare("early", of("container"));
    let refusal = shim.create_plain("early").unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains("sandbox \"pod\", which does not exist"), "{refusal:?}");
    shim.run("pod");
    host.prepare("second", of("sandbox"));
    let refusal = shim.create_plain("second").unwrap_err();
    assert_eq!(refusal.code, Code::ALREADY_EXISTS, "{refusal:?}");
    assert!(refusal.message.contains("sandbox \"pod\" already exists"), "{refusal:?}");
    shim.run("early");
    let stranger = annotated(Spec::idle(), &[(CRI[0], "container"), (CRI[1], "other")]);
    let wrong = annotated(Spec::idle(), &[(CRI[0], "sandbx")]);
    let nameless = annotated(Spec::idle(), &[(CRI[0], "container")]);
    for (id, spec, code, part) in [
        ("stranger", stranger, Code::FAILED_PRECONDITION, "\"other\""),
        ("wrong", wrong, Code::INVALID_ARGUMENT, "unknown container type \"sandbx\""),
        ("nameless", nameless, Code::INVALID_ARGUMENT, "io.kubernetes.cri.sandbox-id is missing"),
    ] {
        host.prepare(id, spec);
        let refusal = shim.create_plain(id).unwrap_err();
        assert_eq!(refusal.code, code, "{id}: {refusal:?}");
        assert!(refusal.message.contains(part), "{id}: {refusal:?}");
    }
    for id in ["early", "pod"] {
        shim.kill(id, "", 9).unwrap();
        shim.reap(id, "");
    }
    shim.stop();
}

#[test]
fn every_system_s_sandbox_id_makes_one_shim() {
    if skipped("the annotations of CRI-O and dockershim") {
        return;
    }
    for (kind, sandbox, id) in [
        (CRI[0], "sandbox", CRI[1]),
        ("io.kubernetes.cri-o.ContainerType", "sandbox", "io.kubernetes.cri-o.SandboxID"),
        ("io.kubernetes.docker.type", "podsandbox", "io.kubernetes.sandbox.id"),
    ] {
        let host = Host::new();
        let shim = host.start("pod", annotated(Spec::idle(), &[(kind, sandbox), (id, "pod")]));
        shim.run("pod");
        host.prepare("c", annotated(Spec::sh("exit 3"), &[(kind, "container"), (id, "pod")]));
        let same = host.attach("c", &Stdin::Nothing);
        assert_eq!(same.address(), shim.address(), "{kind}");
        shim.run("c");
        assert_eq!(shim.reap("c", ""), 3, "{kind}");
        shim.kill("pod", "", 9).unwrap();
        shim.reap("pod", "");
        shim.stop();
    }
}

/// Claims in berth's name that the rootfs is a device of the host.
fn spoofed(spec: Spec) -> Spec {
    let name = |name: &str| format!("io.containerd.berth.{name}");
    let (source, kind) = (name("rootfs.source"), name("rootfs.type"));
    annotated(spec, &[(&source, "/dev/sda"), (&kind, "ext4"), (&name("sizing.cpus"), "99")])
}

/// Has Create fail in the runtime; returns the annotations that the runtime saw.
fn told(host: &Host, shim: &Shim<'_>, id: &str, rootfs: Vec<Mount>) -> Value {
    let mut request = shim.request(id);
    request.options = None.into();
    request.rootfs = rootfs;
    let refusal = shim.create(&request).unwrap_err();
    assert!(refusal.message.contains("on purpose"), "{id}: {refusal:?}");
    let config = fs::read(host.bundle(id).join("config.json")).unwrap();
    serde_json::from_slice::<Value>(&config).unwrap()["annotations"].clone()
}

#[test]
fn a_runtime_is_told_what_it_asks_for() {
    if skipped("annotations for the runtime") {
        return;
    }
    let host = Host::scripted();
    host.script().set("create", "fail on purpose");
    let (script, root) = (host.runtime(), host.root());
    let host = host.configured(&format!(
        "default_runtime = \"guest\"\n[runtimes.guest]\npath = {script:?}\nroot = {root:?}\n\
         sizing = true\nguest_empty_dir = true\nnydus_rootfs = \"pass\"\n\
         [runtimes.plain]\npath = {script:?}\nroot = {root:?}\n"
    ));
    let volumes = "/var/lib/kubelet/pods/u/volumes";
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/a", "source": format!("{volumes}/kubernetes.io~empty-dir/a")},
        {"destination": "/s", "source": format!("{volumes}/kubernetes.io~secret/s")},
    ]);
    let pod = annotated(
        Spec::idle().set("/mounts", mounts),
        &[
            (CRI[0], "sandbox"),
            (CRI[1], "pod"),
            ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "150000"),
            ("io.kubernetes.cri.sandbox-memory", "268435456"),
        ],
    );
    let single = Spec::idle()
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .set("/linux/resources/cpu", json!({"quota": -1, "shares": 1500}));
    let layer = "io.katacontainers.fs-opt.layer=x";
    let nydus = |kind: &str, options: &[&str]| Mount {
        type_: kind.into(),
        source: "/image".into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    };
    let name = |name: &str| format!("io.containerd.berth.{name}");
    type Case = (&'static str, Spec, Vec<Mount>, Vec<(&'static str, &'static str)>);
    let cases: [Case; 3] = [
        (
            "pod",
            pod,
            vec![nydus("fuse.nydus-overlayfs", &["lowerdir=/a", "extraoption=b"])],
            vec![
                ("sizing.cpus", "2"),
                ("sizing.memory", "256"),
                ("empty-dirs", "[\"/a\"]"),
                ("rootfs.source", "/image"),
                ("rootfs.type", "fuse.nydus-overlayfs"),
                ("rootfs.options", "lowerdir=/a,extraoption=b"),
            ],
        ),
        (
            "single",
            single,
            vec![nydus("overlay", &[layer])],
            vec![
                ("sizing.cpus", "2"),
                ("sizing.memory", "64"),
                ("empty-dirs", "[]"),
                ("rootfs.type", "overlay"),
            ],
        ),
        ("none", spoofed(Spec::idle()), vec![], vec![("sizing.cpus", "0"), ("empty-dirs", "[]")]),
    ];
    for (id, spec, rootfs, expected) in cases {
        let shim = host.start(id, spec);
        let annotations = told(&host, &shim, id, rootfs);
        for (key, value) in expected {
            assert_eq!(annotations[name(key)], json!(value), "{id}: {key}");
        }
        assert_eq!(annotations.get(name("rootfs.source")).is_some(), id != "none", "{id}");
        assert!(host.mounts().is_empty(), "{id}");
        shim.stop();
    }
    let plain = annotated(spoofed(Spec::idle()), &[("io.containerd.berth.runtime", "plain")]);
    let shim = host.start("plain", plain);
    for (kind, options) in
        [("nydus", &[][..]), ("fuse.nydus-overlayfs", &[]), ("overlay", &[layer])]
    {
        let mut request = shim.request("plain");
        request.options = None.into();
        request.rootfs = vec![nydus(kind, options)];
        let refusal = shim.create(&request).unwrap_err();
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{kind}: {refusal:?}");
        assert!(refusal.message.contains("nydus_rootfs = \"pass\""), "{kind}: {refusal:?}");
    }
    let annotations = told(&host, &shim, "plain", vec![]);
    let ours = annotations.as_object().unwrap().keys();
    assert_eq!(ours.filter(|key| key.starts_with("io.containerd.berth.")).count(), 1);
    shim.stop();
}
