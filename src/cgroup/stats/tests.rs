use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cgroup::Directory;

#[path = "../../../tests/support/fields.rs"]
#[allow(unreachable_pub, reason = "shared with the tests of the built program")]
mod all;

use all::fields;

/// What `memory.stat` says on v1, in the kernel's words.
const V1_MEMORY: &str = "cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault \
    pgmajfault inactive_anon active_anon inactive_file active_file unevictable \
    hierarchical_memory_limit hierarchical_memsw_limit total_cache total_rss total_rss_huge \
    total_mapped_file total_dirty total_writeback total_pgpgin total_pgpgout total_pgfault \
    total_pgmajfault total_inactive_anon total_active_anon total_inactive_file total_active_file \
    total_unevictable";

/// What it says on v2, as far as the message has it.
const V2_MEMORY: &str = "anon file kernel_stack slab sock shmem file_mapped file_dirty \
    file_writeback anon_thp inactive_anon active_anon inactive_file active_file unevictable \
    slab_reclaimable slab_unreclaimable pgfault pgmajfault workingset_refault workingset_activate \
    workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed \
    thp_fault_alloc thp_collapse_alloc";

const PSI: &str = "some avg10=1.50 avg60=2.25 avg300=3.75 total=4\n\
    full avg10=5.50 avg60=6.25 avg300=7.75 total=8\n";
const PSI_FIELDS: &str = "some.avg10=1.5 some.avg60=2.25 some.avg300=3.75 some.total=4 \
    full.avg10=5.5 full.avg60=6.25 full.avg300=7.75 full.total=8";

/// Files: their names and what they say.
type Texts<'a> = &'a [(&'a str, &'a str)];

/// A cgroup's directories as the kernel would fill them, and a host.
struct Fixture {
    root: tempfile::TempDir,
    host: Host,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (huge, block) = (root.path().join("huge"), root.path().join("block"));
        fs::create_dir_all(huge.join("hugepages-2048kB")).unwrap();
        fs::create_dir_all(huge.join("hugepages-1048576kB")).unwrap();
        fs::create_dir_all(&block).unwrap();
        for (numbers, name) in [("8:0", "sda"), ("104:1", "cciss!c0d0p1")] {
            let link = format!("../../devices/pci/block/{name}");
            std::os::unix::fs::symlink(link, block.join(numbers)).unwrap();
        }
        let host = Host::read(&huge, &block);
        Self { root, host }
    }

    /// A directory `name` with `files`.
    fn dir(&self, name: &str, files: Texts<'_>) -> PathBuf {
        let path = self.root.path().join(name);
        fs::create_dir(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        path
    }

    fn v1(&self, controllers: &str, files: Texts<'_>) -> Directory {
        Directory { controllers: controllers.into(), path: self.dir(controllers, files) }
    }
}

fn v1_fields(dirs: &[Directory], host: &Host) -> BTreeMap<String, String> {
    match v1::read(dirs, host).unwrap() {
        Some(Stats::V1(metrics)) => fields(&*metrics),
        other => panic!("{other:?}"),
    }
}

fn v2_fields(dir: &Path, host: &Host) -> BTreeMap<String, String> {
    match v2::read(dir, host).unwrap() {
        Some(Stats::V2(metrics)) => fields(&*metrics),
        other => panic!("{other:?}"),
    }
}

/// A line for each of `keys`, numbered from `first`, and one that nobody knows.
fn numbered(keys: &str, first: usize) -> String {
    let lines = keys.split_whitespace().enumerate();
    lines.map(|(index, key)| format!("{key} {}\n", first + index)).collect::<String>() + "new 1\n"
}

/// Compares all fields but those of lists with `expected`: words `FIELD=VALUE` after `PREFIX:`,
/// where underscores count for nothing, as the kernel's words and the message's differ in them.
#[track_caller]
fn check(found: &BTreeMap<String, String>, expected: &[(&str, String)]) {
    let expected = expected.iter().flat_map(|(prefix, words)| {
        words.split_whitespace().map(move |word| {
            let (name, value) = word.split_once('=').unwrap();
            (format!("{prefix}{name}").replace('_', ""), value.to_owned())
        })
    });
    let found = found.iter().map(|(name, value)| (name.replace('_', ""), value.clone()));
    let (found, expected): (BTreeMap<_, _>, BTreeMap<_, _>) = (found.collect(), expected.collect());
    let missing = expected.iter().filter(|(name, value)| found.get(*name) != Some(value));
    assert_eq!(missing.collect::<Vec<_>>(), [], "missing from {found:?}");
    let more = found.keys().filter(|name| !expected.contains_key(*name));
    assert_eq!(more.collect::<Vec<_>>(), [] as [&String; 0], "more than expected");
}

/// `numbered` in the form of `check`.
fn words(keys: &str, first: usize) -> String {
    let words = keys.split_whitespace().enumerate();
    words.map(|(index, key)| format!("{key}={} ", first + index)).collect()
}

#[test]
fn every_field_of_v1_is_filled() {
    let fixture = Fixture::new();
    let memory = numbered(V1_MEMORY, 100);
    let kinds = ["memory", "memory.memsw", "memory.kmem", "memory.kmem.tcp"];
    let names = ["usage_in_bytes", "max_usage_in_bytes", "failcnt", "limit_in_bytes"];
    let mut files: Vec<_> = kinds
        .iter()
        .enumerate()
        .flat_map(|(kind, prefix)| {
            names.iter().enumerate().map(move |(index, name)| {
                (format!("{prefix}.{name}"), (10 * kind + index + 1).to_string())
            })
        })
        .collect();
    files.push(("memory.stat".into(), memory));
    files.push((
        "memory.oom_control".into(),
        "oom_kill_disable 1\nunder_oom 2\noom_kill 3\n".into(),
    ));
    let memory: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let dirs = [
        fixture.v1("cpuset", &[]),
        fixture.v1(
            "cpuacct,cpu",
            &[
                ("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 1\nnew 5\n"),
                ("cpuacct.stat", "user 2\nsystem 3\n"),
                ("cpuacct.usage", "51000000\n"),
                ("cpuacct.usage_percpu", "50000000 1000000 \n"),
            ],
        ),
        fixture.v1("memory", &memory),
        fixture.v1("pids", &[("pids.current", "2\n"), ("pids.max", "9\n")]),
        fixture.v1(
            "blkio",
            &[
                ("blkio.throttle.io_serviced", "8:0 Read 99\n"),
                (
                    "blkio.throttle.io_serviced_recursive",
                    "8:0 Read 1\n104:1 Total 3\n9:9 Sync 4\nTotal 3\n",
                ),
                ("blkio.throttle.io_service_bytes", "8:0 Read 512\n"),
                ("blkio.throttle.io_service_bytes_recursive", "8:0 Write 5\nTotal 5\n"),
            ],
        ),
        fixture.v1(
            "hugetlb",
            &[
                ("hugetlb.2MB.usage_in_bytes", "4\n"),
                ("hugetlb.2MB.max_usage_in_bytes", "6\n"),
                ("hugetlb.2MB.failcnt", "7\n"),
                ("hugetlb.1GB.usage_in_bytes", "14\n"),
                ("hugetlb.1GB.max_usage_in_bytes", "16\n"),
                ("hugetlb.1GB.failcnt", "17\n"),
            ],
        ),
        fixture.v1(
            "rdma",
            &[
                ("rdma.current", "mlx hca_handle=1 hca_object=2\n"),
                ("rdma.max", "mlx hca_handle=max hca_object=3\n"),
            ],
        ),
        fixture.v1("name=systemd", &[]),
    ];
    let mut expected = vec![
        (
            "cpu.usage.",
            "total=51000000 user=20000000 kernel=30000000 per_cpu.0=50000000 per_cpu.1=1000000"
                .to_owned(),
        ),
        ("cpu.throttling.", "periods=3 throttled_periods=2 throttled_time=1".into()),
        ("memory.", words(V1_MEMORY, 100).replace("memsw", "swap")),
        ("memory_oom_control.", "oom_kill_disable=1 under_oom=2 oom_kill=3".into()),
        ("pids.", "current=2 limit=9".into()),
        (
            "blkio.io_serviced_recursive.0.",
            "op=Read device=/dev/sda major=8 minor=0 value=1".into(),
        ),
        (
            "blkio.io_serviced_recursive.1.",
            "op=Total device=/dev/cciss/c0d0p1 major=104 minor=1 value=3".into(),
        ),
        ("blkio.io_serviced_recursive.2.", "op=Sync device= major=9 minor=9 value=4".into()),
        (
            "blkio.io_service_bytes_recursive.0.",
            "op=Write device=/dev/sda major=8 minor=0 value=5".into(),
        ),
        ("hugetlb.0.", "pagesize=1GB usage=14 max=16 failcnt=17".into()),
        ("hugetlb.1.", "pagesize=2MB usage=4 max=6 failcnt=7".into()),
        ("rdma.current.0.", "device=mlx hca_handles=1 hca_objects=2".into()),
        ("rdma.limit.0.", format!("device=mlx hca_handles={} hca_objects=3", u32::MAX)),
    ];
    let parts = ["memory.usage.", "memory.swap.", "memory.kernel.", "memory.kernel_tcp."];
    for (kind, part) in parts.into_iter().enumerate() {
        expected.push((part, words("usage max failcnt limit", 10 * kind + 1)));
    }
    check(&v1_fields(&dirs, &fixture.host), &expected);
}

/// The files of block IO that v1 kernels had one after the other.
#[test]
fn block_io_comes_from_the_files_that_this_kernel_has() {
    let throttle = [
        ("blkio.throttle.io_serviced", "8:0 Read 1\nTotal 1\n"),
        ("blkio.throttle.io_service_bytes", "8:0 Read 512\nTotal 512\n"),
    ];
    let cfq = [
        ("blkio.io_serviced_recursive", "8:0 Read 2\nTotal 2\n"),
        ("blkio.io_service_bytes_recursive", "8:0 Read 3\n"),
        ("blkio.sectors_recursive", "8:0 4\n"),
        ("blkio.io_queued_recursive", "8:0 Read 5\n"),
        ("blkio.io_service_time_recursive", "8:0 Read 6\n"),
        ("blkio.io_wait_time_recursive", "8:0 Read 7\n"),
        ("blkio.io_merged_recursive", "8:0 Read 8\n"),
        ("blkio.time_recursive", "8:0 9\n"),
    ];
    let idle = cfq.map(|(name, _)| (name, "Total 0\n"));
    let recursive = [
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 10\n"),
        ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 11\n"),
    ];
    let old = "serviced=1 service_bytes=512";
    let of_cfq = "serviced=2 service_bytes=3 sectors=4 queued=5 service_time=6 wait_time=7 \
                  merged=8 time=9";
    let cases = [
        ("Linux before 5.0", throttle.to_vec(), old),
        ("with CFQ", [&throttle[..], &cfq].concat(), of_cfq),
        ("with CFQ on no device", [&throttle[..], &idle].concat(), old),
        ("Linux 5.0", [&throttle[..], &recursive].concat(), "serviced=10 service_bytes=11"),
    ];
    for (name, files, expected) in cases {
        let fixture = Fixture::new();
        let found = v1_fields(&[fixture.v1("blkio", &files)], &fixture.host);
        let values = found.iter().filter_map(|(field, value)| {
            let list = field.strip_prefix("blkio.")?.strip_suffix("_recursive.0.value")?;
            Some(format!("{}={value}", list.trim_start_matches("io_")))
        });
        let values: BTreeSet<_> = values.collect();
        let expected: BTreeSet<_> = expected.split_whitespace().map(str::to_owned).collect();
        assert_eq!(values, expected, "{name}");
    }
}

#[test]
fn every_field_of_v2_is_filled() {
    let fixture = Fixture::new();
    let (memory, expected_memory) = (numbered(V2_MEMORY, 100), words(V2_MEMORY, 100));
    let dir = fixture.dir(
        "c",
        &[
            ("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n"),
            (
                "cpu.stat",
                "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\n\
                      throttled_usec 1\nnr_bursts 7\nburst_usec 8\nnew 1\n",
            ),
            ("cpu.pressure", PSI),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("memory.stat", &memory),
            ("memory.current", "10\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "20\n"),
            ("memory.swap.current", "30\n"),
            ("memory.swap.max", "40\n"),
            ("memory.swap.peak", "50\n"),
            ("memory.pressure", PSI),
            ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nnew 7\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n"),
            ("io.pressure", PSI),
            ("rdma.current", "mlx hca_handle=1 hca_object=2\n"),
            ("rdma.max", "mlx hca_handle=max hca_object=3\n"),
            ("hugetlb.2MB.current", "4096\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 7\n"),
            ("hugetlb.1GB.current", "1\n"),
            ("hugetlb.1GB.max", "2\n"),
            ("hugetlb.1GB.events", "max 3\n"),
        ],
    );
    let expected = [
        (
            "cpu.",
            "usage_usec=9 user_usec=5 system_usec=4 nr_periods=3 nr_throttled=2 \
                  throttled_usec=1 nr_bursts=7 burst_usec=8"
                .to_owned(),
        ),
        ("cpu.psi.", PSI_FIELDS.into()),
        ("pids.", format!("current=2 limit={}", u64::MAX)),
        ("memory.", expected_memory),
        ("memory.", format!("usage=10 usage_limit={} max_usage=20", u64::MAX)),
        ("memory.", "swap_usage=30 swap_limit=40 swap_max_usage=50".into()),
        ("memory.psi.", PSI_FIELDS.into()),
        ("memory_events.", "low=1 high=2 max=3 oom=4 oom_kill=5 oom_group_kill=6".into()),
        ("io.usage.0.", "major=254 minor=0 rbytes=1 wbytes=2 rios=3 wios=4".into()),
        ("io.usage.1.", "major=7 minor=0 rbytes=0 wbytes=0 rios=0 wios=0".into()),
        ("io.psi.", PSI_FIELDS.into()),
        ("rdma.current.0.", "device=mlx hca_handles=1 hca_objects=2".into()),
        ("rdma.limit.0.", format!("device=mlx hca_handles={} hca_objects=3", u32::MAX)),
        ("hugetlb.0.", "pagesize=1GB current=1 max=2 failcnt=3".into()),
        ("hugetlb.1.", format!("pagesize=2MB current=4096 max={} failcnt=7", u64::MAX)),
    ];
    check(&v2_fields(&dir, &fixture.host), &expected);
}

#[test]
fn newer_kernels_parts_of_a_counter_are_added_up() {
    let fixture = Fixture::new();
    let stat = "workingset_refault_anon 3\nworkingset_refault_file 4\nworkingset_activate_anon 5\n\
                workingset_activate_file 6\n";
    let dir = fixture.dir("c", &[("cpu.stat", ""), ("memory.stat", stat)]);
    let found = v2_fields(&dir, &fixture.host);
    let sums =
        ["refault", "activate"].map(|name| found[&format!("memory.workingset_{name}")].as_str());
    assert_eq!(sums, ["7", "11"]);
}

/// Which parts of the message there are, by the files that the cgroup has.
#[test]
fn controllers_that_the_cgroup_lacks_are_left_out() {
    let cpu = ("cpu.stat", "usage_usec 9\nx\n");
    let v2_cases: &[(&str, Texts<'_>, &str)] = &[
        ("no controller", &[cpu], "cpu"),
        ("CPU time without the controller", &[cpu, ("cgroup.controllers", "pids\n")], "cpu"),
        ("pids", &[cpu, ("pids.current", "1\n")], "cpu pids"),
        (
            "memory",
            &[cpu, ("memory.stat", "anon 1\n"), ("memory.events", "")],
            "cpu memory memory_events",
        ),
        ("memory.stat is missing", &[cpu, ("memory.current", "1\n")], "cpu"),
        ("memory's pressure alone", &[cpu, ("memory.pressure", PSI)], "cpu"),
        ("io", &[cpu, ("io.stat", "7:0 \n")], "cpu io"),
        ("no device so far", &[cpu, ("io.stat", "")], "cpu"),
        ("io's pressure alone", &[cpu, ("io.pressure", PSI)], "cpu io"),
        ("PSI that is off", &[cpu, ("io.pressure", "")], "cpu"),
        ("RDMA", &[cpu, ("rdma.current", "mlx hca_handle=1 hca_object=2\n")], "cpu rdma"),
        ("huge pages", &[cpu, ("hugetlb.1GB.current", "0\n")], "cpu hugetlb"),
    ];
    for (name, files, expected) in v2_cases {
        let fixture = Fixture::new();
        let dir = fixture.dir("c", files);
        assert_eq!(parts(&v2_fields(&dir, &fixture.host)), *expected, "{name}");
    }
    let v1_cases: &[(&str, &str, Texts<'_>, &str)] = &[
        ("nothing counts", "name=systemd", &[], ""),
        ("cpu", "cpu", &[("cpu.stat", "")], "cpu"),
        ("cpuacct", "cpuacct", &[("cpuacct.usage", "1\n")], "cpu"),
        ("memory", "memory", &[("memory.stat", "cache 1\n")], "memory"),
        ("pids", "pids", &[("pids.current", "1\n")], "pids"),
        ("a controller without its files", "pids", &[], ""),
    ];
    for (name, controllers, files, expected) in v1_cases {
        let fixture = Fixture::new();
        let dirs = [fixture.v1(controllers, files)];
        assert_eq!(parts(&v1_fields(&dirs, &fixture.host)), *expected, "{name}");
    }
}

/// The top-level parts that have fields.
fn parts(found: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<_> = found.keys().filter_map(|name| name.split('.').next()).collect();
    names.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn limits_that_are_none_and_absent_files_have_their_numbers() {
    let fixture = Fixture::new();
    let dirs = [
        fixture.v1("pids", &[("pids.current", "1\n"), ("pids.max", "max\n")]),
        fixture.v1(
            "memory",
            &[
                ("memory.stat", ""),
                ("memory.usage_in_bytes", "1\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        ),
        fixture.v1("cpu", &[("cpu.stat", "nr_periods 3\n")]),
    ];
    let found = v1_fields(&dirs, &fixture.host);
    // Clients take these parts for granted.
    let cases = [
        ("pids.limit", "0"),
        ("memory.usage.limit", "9223372036854771712"),
        ("memory.swap.limit", "0"),
        ("memory.kernel.usage", "0"),
        ("memory.kernel_tcp.usage", "0"),
        ("cpu.throttling.periods", "3"),
        ("cpu.usage.total", "0"),
    ];
    for (name, value) in cases {
        assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn a_cgroup_that_is_gone_has_no_metrics() {
    let fixture = Fixture::new();
    let none = fixture.root.path().join("none");
    let gone =
        |controllers: &str| Directory { controllers: controllers.into(), path: none.clone() };
    for controllers in [COUNTING, "name=systemd"] {
        let dirs: Vec<_> = controllers.split_whitespace().map(gone).collect();
        assert!(v1::read(&dirs, &fixture.host).unwrap().is_none(), "{controllers}");
    }
    assert!(v1::read(&[], &fixture.host).unwrap().is_none(), "nowhere");
    assert!(v2::read(&none, &fixture.host).unwrap().is_none());
    let empty = fixture.dir("removed", &[]);
    assert!(v2::read(&empty, &fixture.host).unwrap().is_none(), "removed while it was open");
}

const COUNTING: &str = "cpu cpuacct memory pids blkio rdma hugetlb";
