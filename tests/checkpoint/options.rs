//! Each option of a checkpoint.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::shim::oci::CheckpointOptions;
use serde_json::json;

use super::super::support::{Host, Script, Shim, Spec, Streams, within};
use super::{COUNTER, counts, criu, exit, host_with, image, restoring, with_network};

/// The option's name, its value, and its arguments.
type Row = (&'static str, fn(&mut CheckpointOptions), &'static [&'static str]);

const ROWS: [Row; 9] = [
    ("nothing", |_| {}, &[]),
    ("open TCP", |o| o.open_tcp = true, &["--tcp-established"]),
    ("unix sockets", |o| o.external_unix_sockets = true, &["--ext-unix-sk"]),
    ("terminal", |o| o.terminal = true, &["--shell-job"]),
    ("file locks", |o| o.file_locks = true, &["--file-locks"]),
    ("cgroups mode", |o| o.cgroups_mode = "full".into(), &["--manage-cgroups-mode", "full"]),
    (
        "empty namespaces",
        |o| o.empty_namespaces = ["network".into(), "ipc".into()].into(),
        &["--empty-ns", "network", "--empty-ns", "ipc"],
    ),
    ("exit", |o| o.exit = true, &[]),
    ("work path", |o| o.work_path = "/run/berth-no-such/work".into(), &[]),
];

#[test]
fn every_option_reaches_the_runtimes_arguments_and_those_of_the_restore() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("checkpoint", "nopid");
    host.script().set("restore", "fail on purpose");
    let arguments = |command: &str| {
        let all = Script::arguments(&host.script().last(command));
        let from = all.iter().position(|argument| argument == command).unwrap();
        all[from + 1..].to_vec()
    };
    for (name, change, expected) in ROWS {
        let mut options = CheckpointOptions::default();
        change(&mut options);
        let image = image(&host, &name.replace(' ', "-"));
        shim.checkpoint("c", &image, &options).unwrap();
        let bundle = host.bundle("c");
        let own = bundle.join("criu-work").to_str().unwrap().to_owned();
        let work = if options.work_path.is_empty() { own } else { options.work_path.clone() };
        let mut all = vec!["--image-path", &image, "--work-path", &work];
        all.extend(expected);
        all.extend(if options.exit { &["c"][..] } else { &["--leave-running", "c"] });
        assert_eq!(arguments("checkpoint"), all, "{name}");
        assert_eq!(Path::new(&work).exists(), !options.work_path.is_empty(), "{name}");

        host.prepare("r", Spec::idle());
        shim.create(&restoring(&shim, "r", &image)).unwrap();
        let refusal = shim.start("r", "").unwrap_err();
        assert!(refusal.message.contains("on purpose"), "{name}: {refusal:?}");
        let bundle = host.bundle("r");
        let [bundle, pid, work] = ["", "/init.pid", "/criu-work"]
            .map(|file| format!("{}{file}", bundle.display()));
        let mut all = vec!["--bundle", &bundle, "--detach", "--no-subreaper", "--pid-file", &pid];
        all.extend(["--image-path", &image, "--work-path", &work]);
        all.extend(expected);
        all.push("r");
        assert_eq!(arguments("restore"), all, "{name}");
        shim.delete("r", "").unwrap();
    }
    std::fs::remove_dir_all("/run/berth-no-such").unwrap();
    shim.end();
}

#[test]
fn the_image_is_where_the_client_wants_it_and_where_containerd_does() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("checkpoint", "nopid");
    let [wanted, other] = ["wanted", "other"].map(|name| image(&host, name));
    let cases = [
        ("path", other.as_str(), "", &other),
        ("option", "", wanted.as_str(), &wanted),
        ("both, from containerd 2.0", &wanted, &wanted, &wanted),
        ("both, until containerd 1.7", &other, &wanted, &wanted),
    ];
    for (name, path, option, expected) in cases {
        for dir in [&wanted, &other] {
            drop(std::fs::remove_dir_all(dir));
        }
        let options = CheckpointOptions { image_path: option.into(), ..Default::default() };
        if name.contains("1.7") {
            std::fs::create_dir(path).unwrap(); // containerd's, a temporary one
        }
        shim.checkpoint("c", path, &options).unwrap();
        let arguments = Script::arguments(&host.script().last("checkpoint"));
        assert!(arguments.contains(expected), "{name}: {arguments:?}");
        for dir in [path, option].iter().filter(|dir| !dir.is_empty()) {
            assert!(Path::new(dir).join("berth.json").exists(), "{name}: {dir}");
        }
    }
    // Create of a containerd until 1.7 has only the option.
    host.prepare("r", Spec::idle());
    let mut request = shim.request("r");
    let image_path = |o: &mut containerd_shim_protos::shim::oci::Options| {
        o.criu_image_path.clone_from(&wanted);
        o.criu_work_path = image(&host, "work");
    };
    request.options = Some(shim.options(image_path)).into();
    assert_eq!(shim.create(&request).unwrap(), 0);
    host.script().set("restore", "fail on purpose");
    shim.start("r", "").unwrap_err();
    let arguments = Script::arguments(&host.script().last("restore"));
    for expected in [&wanted, &image(&host, "work")] {
        assert!(arguments.contains(expected), "{arguments:?}");
    }
    shim.delete("r", "").unwrap();
    shim.end();
}

/// A container that needs an option to be saved, and goes on counting once it is restored.
struct Needy {
    name: &'static str,
    spec: fn(&Host) -> Spec,
    allow: fn(&mut CheckpointOptions),
    /// What CRIU says without.
    refusal: Option<&'static str>,
}

/// A program that starts when `first` has done what it does.
fn counter_after(first: &str) -> Spec {
    Spec::sh(&format!("{first}\n{COUNTER}"))
}

/// A connection to itself, on its own loopback.
fn tcp(_: &Host) -> Spec {
    let server = "nc -l -p 5000 -s 127.0.0.1 -e cat >/dev/null 2>&1 & sleep 0.5";
    let client = "(while sleep 0.1; do echo x; done) | nc 127.0.0.1 5000 >/dev/null 2>&1 & sleep 0.5";
    with_network(counter_after(&format!("{server}\n{client}")))
}

/// A socket whose other end is the host's.
fn unix_socket(host: &Host) -> Spec {
    let path = host.dir().join("log-socket");
    std::mem::forget(UnixDatagram::bind(&path).unwrap());
    let spec = counter_after("mkdir /dev/cron; crond -f -l 0 -c /dev/cron & sleep 0.5");
    let mut mounts = spec.0["mounts"].clone();
    mounts.as_array_mut().unwrap().push(json!({
        "destination": "/dev/log", "type": "bind", "source": path, "options": ["bind"],
    }));
    spec.set("/mounts", mounts)
}

const NEEDY: [Needy; 6] = [
    Needy {
        name: "an open TCP connection",
        spec: tcp,
        allow: |o| o.open_tcp = true,
        refusal: Some("Connected TCP socket"),
    },
    Needy {
        name: "a unix socket of the host",
        spec: unix_socket,
        allow: |o| o.external_unix_sockets = true,
        refusal: Some("External socket"),
    },
    Needy {
        name: "a file lock",
        spec: |_| Spec::sh(&format!("exec flock /dev/lock sh -c '{}'", COUNTER.replace('\'', "\""))),
        allow: |o| o.file_locks = true,
        refusal: Some("--file-locks"),
    },
    Needy {
        name: "a namespace that is restored empty",
        spec: |_| with_network(Spec::sh(COUNTER)),
        allow: |o| o.empty_namespaces.push("network".into()),
        refusal: None,
    },
    Needy {
        name: "cgroups of no interest",
        spec: |_| Spec::sh(COUNTER),
        allow: |o| o.cgroups_mode = "ignore".into(),
        refusal: None,
    },
    Needy {
        name: "cgroups in full",
        spec: |_| Spec::sh(COUNTER),
        allow: |o| o.cgroups_mode = "full".into(),
        refusal: None,
    },
];

fn run<'h>(shim: &Shim<'h>, id: &str, image: Option<&str>) -> Streams {
    let streams = shim.host().streams(id, [false, true, true]);
    let mut request = shim.request(id);
    request.checkpoint = image.unwrap_or_default().into();
    streams.to_create(&mut request);
    shim.create(&request).unwrap();
    shim.start(id, "").unwrap();
    streams
}

#[test]
fn what_a_container_has_is_saved_if_that_is_allowed() {
    let Some(criu) = criu() else { return };
    for Needy { name, spec, allow, refusal } in NEEDY {
        eprintln!("{name}");
        let host = host_with(&criu);
        let spec = spec(&host);
        let shim = host.start("c", spec.clone());
        let streams = run(&shim, "c", None);
        counts(&streams, 2);
        if let Some(words) = refusal {
            let refused = shim.checkpoint("c", &image(&host, "refused"), &exit()).unwrap_err();
            assert!(refused.message.contains(words), "{name}: {refused:?}");
            let more = counts(&streams, 0).len() + 2;
            counts(&streams, more); // it goes on
        }
        let work = image(&host, "work");
        let mut options = CheckpointOptions { work_path: work.clone(), ..exit() };
        allow(&mut options);
        let image = image(&host, "image");
        shim.checkpoint("c", &image, &options).unwrap();
        assert_eq!(shim.reap("c", ""), 137, "{name}");
        assert!(Path::new(&work).join("dump.log").exists(), "{name}");
        assert!(Path::new(&image).join("inventory.img").exists(), "{name}");
        let last = *counts(&streams, 1).last().unwrap();

        host.prepare("r", spec);
        let streams = run(&shim, "r", Some(&image));
        let restored = within(Duration::from_secs(60), "numbers", || {
            Some(counts(&streams, 3)).filter(|all| !all.is_empty())
        });
        assert_eq!(restored[0], last + 1, "{name}");
        shim.remove("r");
        shim.stop();
    }
}
