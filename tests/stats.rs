//! Metrics, beside the files of the kernel that they are read from.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::{cgroups, cgroups_v2};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use crate::support::{
    Answer, Code, Counters, Fields, Host, SOON, Shim, Spec, differences, eventually, fields,
    hierarchies, poll, skipped,
};

const MIB: u64 = 1 << 20;

/// Some CPU time, more than a quota of a fifth lets pass in one go, 8 MiB of a tmpfs, direct reads
/// where the disk can, and three processes that wait for ever.
const LOAD: &str = "head -c 8388608 /dev/zero >/dev/x
    dd if=/bin/busybox of=/dev/null bs=4096 count=64 iflag=direct 2>/dev/null
    i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
    sleep 1000 & sleep 1000 & wait";

/// The fields of the message in `any`.
pub fn decoded(any: &Any) -> Fields {
    match any.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            fields(&cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap())
        }
        "io.containerd.cgroups.v2.Metrics" => {
            fields(&cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap())
        }
        other => panic!("{other}"),
    }
}

/// Waits until every field of what `ask` gives is what the kernel says, and gives it.
#[track_caller]
pub fn expect_the_kernels_words(counters: &Counters, ask: impl Fn() -> Any) -> Fields {
    let mut wrong = Vec::new();
    let version = if counters.v1() { "v1" } else { "v2" };
    let found = poll(SOON, || {
        let before = counters.read();
        let any = ask();
        let after = counters.read();
        assert_eq!(any.type_url, format!("io.containerd.cgroups.{version}.Metrics"));
        let found = decoded(&any);
        wrong = differences(&before, &found, &after);
        wrong.is_empty().then_some(found)
    });
    found.unwrap_or_else(|| panic!("{wrong:#?}"))
}

fn stats(shim: &Shim<'_>) -> Answer<Any> {
    shim.stats("c").map(|response| response.stats.unwrap())
}

/// A field's number in what a test read; v1's name, v2's name.
fn number(found: &Fields, names: [&str; 2]) -> u64 {
    let field = names.iter().find_map(|name| found.get(*name));
    field.unwrap_or_else(|| panic!("{names:?} in {found:?}")).parse().unwrap()
}

#[test]
fn every_field_is_what_the_kernel_says() {
    const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;
    let limits = json!({
        "memory": {"limit": 64 * MIB}, "pids": {"limit": 77},
        "cpu": {"quota": 20_000, "period": 100_000},
    });
    // What memory and pids may be at most, on v1 and v2, and whether it is throttled.
    let cases = [
        ("with limits", limits, [64 * MIB, 64 * MIB], [77, 77], true),
        ("without", json!({}), [V1_UNLIMITED, u64::MAX], [0, u64::MAX], false),
    ];
    for (name, resources, memory, pids, throttled) in cases {
        let host = Host::new();
        let shim = host.start("c", with(Spec::sh(LOAD), resources));
        shim.run("c");
        let counters = Counters::of(&format!("berth-test-{}/c", host.tag()));
        eventually("three processes", || {
            (counters.read().get("pids.current")? == "3").then_some(())
        });
        shim.pause("c").unwrap();
        let found = expect_the_kernels_words(&counters, || stats(&shim).unwrap());
        let version = usize::from(!counters.v1());
        assert_eq!(number(&found, ["memory.usage.limit", "memory.usage_limit"]), memory[version]);
        assert_eq!(number(&found, ["pids.limit"; 2]), pids[version], "{name}");
        assert!(number(&found, ["memory.usage.usage", "memory.usage"]) >= 8 * MIB, "{name}");
        let used = number(&found, ["cpu.usage.total", "cpu.usage_usec"]);
        assert!(used > [10_000_000, 10_000][version], "{name}: {used}");
        let periods = number(&found, ["cpu.throttling.throttled_periods", "cpu.nr_throttled"]);
        assert_eq!(periods > 0, throttled, "{name}: {found:?}");
        shim.resume("c").unwrap();

        shim.update("c", &json!({"memory": {"limit": 96 * MIB}})).unwrap();
        let found = expect_the_kernels_words(&counters, || stats(&shim).unwrap());
        assert_eq!(number(&found, ["memory.usage.limit", "memory.usage_limit"]), 96 * MIB);
        shim.end();
    }
}

/// Adds `resources` to those that every test container has.
fn with(mut spec: Spec, resources: Value) -> Spec {
    let all = spec.0["linux"]["resources"].as_object_mut().unwrap();
    all.extend(resources.as_object().unwrap().clone());
    spec
}

#[test]
fn a_stopped_container_has_metrics_as_long_as_it_has_a_cgroup() {
    if skipped("NotFound once the cgroup is gone") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh(LOAD));
    shim.run("c");
    let counters = Counters::of(&format!("berth-test-{}/c", host.tag()));
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.wait("c", "").unwrap();
    let found = expect_the_kernels_words(&counters, || stats(&shim).unwrap());
    assert_eq!(number(&found, ["pids.current"; 2]), 0);
    for dir in counters.dirs() {
        eventually("its removal", || fs::remove_dir(dir).ok());
    }
    let refusal = stats(&shim).unwrap_err();
    assert_eq!(refusal.code, Code::NOT_FOUND, "{refusal:?}");
    assert_eq!(shim.reap("c", ""), 137);
    assert_eq!(stats(&shim).unwrap_err().code, Code::NOT_FOUND, "no container");
    shim.stop();
}

/// The runtime leaves the container in its caller's cgroups: their metrics are not the container's.
#[test]
fn a_container_without_a_cgroup_of_its_own_has_no_metrics() {
    if skipped("no metrics of strangers") {
        return;
    }
    let host = Host::new();
    let lines: Vec<_> = own_cgroups().iter().map(|dir| dir.display().to_string()).collect();
    let script = format!(
        "#!/bin/sh\n{} \"$@\" || exit\nfor arg; do\n\
         [ \"$before\" = --pid-file ] && read -r pid <\"$arg\"\nbefore=$arg\ndone\n\
         [ \"$pid\" ] || exit 0\n\
         for dir in {}; do echo \"$pid\" >\"$dir/cgroup.procs\" || exit; done\n",
        host.runtime(),
        lines.join(" "),
    );
    let path = host.dir().join("astray");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let shim = host.start("c", Spec::idle());
    let mut request = shim.request("c");
    let options = shim.options(|options| options.binary_name = path.to_str().unwrap().into());
    request.options = Some(options).into();
    shim.create(&request).unwrap();
    let refusal = stats(&shim).unwrap_err();
    assert_eq!(refusal.code, Code::NOT_FOUND, "{refusal:?}");
    assert!(refusal.message.contains("cgroup"), "{refusal:?}");
    shim.end();
}

/// The cgroups that this process is in, and so the shims that it starts.
fn own_cgroups() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let find = |(options, point): (Option<String>, PathBuf)| {
        let member = text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let here = match &options {
                None => controllers.is_empty(),
                Some(options) => options.split(',').any(|word| word == controllers),
            };
            here.then_some(path)
        });
        let path = member.unwrap_or_else(|| panic!("{} in {text}", point.display()));
        point.join(path.trim_start_matches('/'))
    };
    hierarchies().into_iter().map(find).collect()
}

/// A call holds what it needs only while it lasts: 16 KiB more or less are the allocator's choice of
/// pages, a leak of 16 bytes a call would be ten times that.
#[test]
fn ten_thousand_calls_leave_the_memory_as_it_was() {
    if skipped("memory stays as it is") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let ask = |count: u32| (0..count).for_each(|_| drop(shim.stats("c").unwrap()));
    ask(100);
    let (before, open) = (private(&shim), shim.descriptors());
    ask(10_000);
    let after = private(&shim);
    assert!(after <= before + 16, "from {before} to {after} KiB");
    assert_eq!(shim.descriptors(), open);
    shim.end();
}

/// The daemon's own memory in KiB: what it has written and shares with nobody.
fn private(shim: &Shim<'_>) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", shim.pid());
    let text = fs::read_to_string(Path::new(&path)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
