//! What the kernel's own files say of a cgroup, under the names that the metrics have for it. This is
//! written down apart from the shim's code, by the kernel's documents.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The fields of a message by their paths.
pub type Fields = BTreeMap<String, String>;

/// A cgroup's directories, each with the mount options of its hierarchy, which name v1's controllers.
pub struct Counters {
    dirs: Vec<(Option<String>, PathBuf)>,
}

impl Counters {
    /// The cgroup at `path` below the root of every hierarchy that has it.
    pub fn of(path: &str) -> Self {
        let all = hierarchies().into_iter();
        let dirs = all.map(|(options, point)| (options, point.join(path.trim_start_matches('/'))));
        let mut dirs: Vec<_> = dirs.filter(|(_, dir)| dir.is_dir()).collect();
        if dirs.iter().any(|(options, _)| options.is_some()) {
            dirs.retain(|(options, _)| options.is_some());
        }
        assert!(!dirs.is_empty(), "no cgroup {path}");
        Self { dirs }
    }

    /// Whether it is on a host with cgroup v1.
    pub fn v1(&self) -> bool {
        self.dirs[0].0.is_some()
    }

    /// Its directories.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(|(_, dir)| dir.as_path())
    }

    /// All that the message should say now.
    pub fn read(&self) -> Fields {
        let mut fields = Fields::new();
        if self.v1() {
            self.v1_fields(&mut fields)
        } else {
            v2_fields(&self.dirs[0].1, &mut fields)
        }
        fields
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        let found = self.dirs.iter().find(|(options, _)| {
            options.as_ref().is_some_and(|options| options.split(',').any(|word| word == name))
        });
        found.map(|(_, dir)| dir.as_path())
    }

    fn v1_fields(&self, all: &mut Fields) {
        self.v1_cpu(all);
        if let Some(dir) = self.controller("memory") {
            v1_memory(dir, all);
        }
        if let Some(dir) = self.controller("pids") {
            insert(all, "pids.current", text(dir, "pids.current"));
            insert(all, "pids.limit", text(dir, "pids.max").replace("max", "0"));
        }
        if let Some(dir) = self.controller("blkio") {
            for list in ["io_serviced_recursive", "io_service_bytes_recursive"] {
                let lines = text(dir, &format!("blkio.throttle.{list}"));
                let lines = lines.lines().filter(|line| line.contains(':'));
                for (index, line) in lines.enumerate() {
                    v1_block(line, &format!("blkio.{list}.{index}"), all);
                }
            }
        }
        if let Some(dir) = self.controller("hugetlb") {
            for (index, size) in huge_pages().iter().enumerate() {
                insert(all, &format!("hugetlb.{index}.pagesize"), size.clone());
                for (name, file) in [
                    ("usage", "usage_in_bytes"),
                    ("max", "max_usage_in_bytes"),
                    ("failcnt", "failcnt"),
                ] {
                    let value = text(dir, &format!("hugetlb.{size}.{file}"));
                    insert(all, &format!("hugetlb.{index}.{name}"), value);
                }
            }
        }
    }

    fn v1_cpu(&self, all: &mut Fields) {
        let (cpu, usage) = (self.controller("cpu"), self.controller("cpuacct"));
        let stat = cpu.map(|dir| pairs(dir, "cpu.stat")).unwrap_or_default();
        for (name, key) in [
            ("periods", "nr_periods"),
            ("throttled_periods", "nr_throttled"),
            ("throttled_time", "throttled_time"),
        ] {
            insert(all, &format!("cpu.throttling.{name}"), stat[key].clone());
        }
        let Some(dir) = usage else { return };
        let stat = pairs(dir, "cpuacct.stat");
        for (name, key) in [("user", "user"), ("kernel", "system")] {
            let ticks: u64 = stat[key].parse().unwrap();
            insert(all, &format!("cpu.usage.{name}"), (ticks * 10_000_000).to_string());
        }
        insert(all, "cpu.usage.total", text(dir, "cpuacct.usage"));
        for (index, value) in text(dir, "cpuacct.usage_percpu").split_whitespace().enumerate() {
            insert(all, &format!("cpu.usage.per_cpu.{index}"), value.to_owned());
        }
    }
}

fn v1_memory(dir: &Path, all: &mut Fields) {
    let stat = pairs(dir, "memory.stat");
    for name in V1_MEMORY.split_whitespace() {
        for name in [name.to_owned(), format!("total_{name}")] {
            let key = name.replace("pg_pg_", "pgpg").replace("pg_fault", "pgfault");
            let key = key.replace("pg_maj_fault", "pgmajfault");
            insert(all, &format!("memory.{name}"), stat[&key].clone());
        }
    }
    for (name, key) in [
        ("hierarchical_memory_limit", "hierarchical_memory_limit"),
        ("hierarchical_swap_limit", "hierarchical_memsw_limit"),
    ] {
        let value = stat.get(key).cloned().unwrap_or_else(|| "0".into());
        insert(all, &format!("memory.{name}"), value);
    }
    for (part, prefix) in
        [("usage", ""), ("swap", "memsw."), ("kernel", "kmem."), ("kernel_tcp", "kmem.tcp.")]
    {
        for (name, file) in [
            ("usage", "usage_in_bytes"),
            ("max", "max_usage_in_bytes"),
            ("failcnt", "failcnt"),
            ("limit", "limit_in_bytes"),
        ] {
            insert(
                all,
                &format!("memory.{part}.{name}"),
                text(dir, &format!("memory.{prefix}{file}")),
            );
        }
    }
    for (key, value) in pairs(dir, "memory.oom_control") {
        if ["oom_kill_disable", "under_oom", "oom_kill"].contains(&key.as_str()) {
            insert(all, &format!("memory_oom_control.{key}"), value);
        }
    }
}

fn v1_block(line: &str, prefix: &str, all: &mut Fields) {
    let words: Vec<_> = line.split([' ', ':']).collect();
    let [major, minor, op, value] = words[..] else { panic!("{line:?}") };
    let partitions = fs::read_to_string("/proc/partitions").unwrap();
    let device = partitions.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.len() == 4 && words[..2] == [major, minor]).then(|| format!("/dev/{}", words[3]))
    });
    for (name, text) in [("major", major), ("minor", minor), ("op", op), ("value", value)] {
        insert(all, &format!("{prefix}.{name}"), text.to_owned());
    }
    insert(all, &format!("{prefix}.device"), device.unwrap_or_default());
}

/// The message's words, each of which there is with `total_` too.
const V1_MEMORY: &str = "cache rss rss_huge mapped_file dirty writeback pg_pg_in pg_pg_out pg_fault \
    pg_maj_fault inactive_anon active_anon inactive_file active_file unevictable";

const V2_MEMORY: &str = "anon file kernel_stack slab sock shmem file_mapped file_dirty \
    file_writeback anon_thp inactive_anon active_anon inactive_file active_file unevictable \
    slab_reclaimable slab_unreclaimable pgfault pgmajfault workingset_nodereclaim pgrefill pgscan \
    pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc";

fn v2_fields(dir: &Path, all: &mut Fields) {
    let stat = pairs(dir, "cpu.stat");
    let names = "usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec nr_bursts \
                 burst_usec";
    take(all, "cpu", names, &stat);
    pressure(dir, "cpu", all);
    if dir.join("pids.current").exists() {
        insert(all, "pids.current", text(dir, "pids.current"));
        insert(all, "pids.limit", limit(dir, "pids.max"));
    }
    if dir.join("memory.stat").exists() {
        v2_memory(dir, all);
    }
    pressure(dir, "io", all);
    let devices = text(dir, "io.stat");
    for (index, line) in devices.lines().enumerate() {
        let (device, rest) = line.split_once(' ').unwrap();
        let (major, minor) = device.split_once(':').unwrap();
        insert(all, &format!("io.usage.{index}.major"), major.to_owned());
        insert(all, &format!("io.usage.{index}.minor"), minor.to_owned());
        let values = rest.split_whitespace().filter_map(|word| word.split_once('='));
        let values = values.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        take(all, &format!("io.usage.{index}"), "rbytes wbytes rios wios", &values);
    }
    for (index, size) in huge_pages().iter().enumerate() {
        let name = |what: &str| format!("hugetlb.{size}.{what}");
        if dir.join(name("current")).exists() {
            insert(all, &format!("hugetlb.{index}.pagesize"), size.clone());
            insert(all, &format!("hugetlb.{index}.current"), text(dir, &name("current")));
            insert(all, &format!("hugetlb.{index}.max"), limit(dir, &name("max")));
            let failcnt = pairs(dir, &name("events"))["max"].clone();
            insert(all, &format!("hugetlb.{index}.failcnt"), failcnt);
        }
    }
}

fn v2_memory(dir: &Path, all: &mut Fields) {
    let stat = pairs(dir, "memory.stat");
    take(all, "memory", V2_MEMORY, &stat);
    for name in ["workingset_refault", "workingset_activate"] {
        let parts = [name.to_owned(), format!("{name}_anon"), format!("{name}_file")];
        let numbers = parts.iter().filter_map(|part| stat.get(part)?.parse::<u64>().ok());
        insert(all, &format!("memory.{name}"), numbers.sum::<u64>().to_string());
    }
    for (name, file) in [
        ("usage", "memory.current"),
        ("usage_limit", "memory.max"),
        ("max_usage", "memory.peak"),
        ("swap_usage", "memory.swap.current"),
        ("swap_limit", "memory.swap.max"),
        ("swap_max_usage", "memory.swap.peak"),
    ] {
        insert(all, &format!("memory.{name}"), limit(dir, file));
    }
    pressure(dir, "memory", all);
    let names = "low high max oom oom_kill oom_group_kill";
    take(all, "memory_events", names, &pairs(dir, "memory.events"));
}

fn pressure(dir: &Path, what: &str, all: &mut Fields) {
    for line in text(dir, &format!("{what}.pressure")).lines() {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            insert(all, &format!("{what}.psi.{kind}.{key}"), value.to_owned());
        }
    }
}

/// What differs between `found` and the kernel's words `before` and `after` it was asked for: a field
/// has to be there and between the two.
pub fn differences(before: &Fields, found: &Fields, after: &Fields) -> Vec<String> {
    let wrong = before.iter().filter(|(name, first)| {
        let (found, last) = (found.get(*name), after.get(*name));
        !found.zip(last).is_some_and(|(found, last)| between(first, found, last))
    });
    let say = |(name, first): (&String, &String)| {
        format!("{name}: {:?} is not in {first}..={:?}", found.get(name), after.get(name))
    };
    let more = found.keys().filter(|name| !before.contains_key(*name));
    wrong.map(say).chain(more.map(|name| format!("{name}: too much"))).collect()
}

fn between(one: &str, found: &str, other: &str) -> bool {
    let whole = [one, found, other].map(str::parse::<u64>);
    if let [Ok(one), Ok(found), Ok(other)] = whole {
        return one.min(other) <= found && found <= one.max(other);
    }
    let parts = [one, found, other].map(str::parse::<f64>);
    if let [Ok(one), Ok(found), Ok(other)] = parts {
        return one.min(other) <= found && found <= one.max(other);
    }
    found == one || found == other
}

/// Every mounted hierarchy: its mount options where it is of v1, and its mount point.
pub fn hierarchies() -> Vec<(Option<String>, PathBuf)> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mounts = mounts.filter(|fields| fields[2].starts_with("cgroup"));
    let parts = mounts.map(|fields| {
        let options = (fields[2] == "cgroup").then(|| fields[3].to_owned());
        (options, PathBuf::from(fields[1]))
    });
    parts.collect()
}

/// The sizes of huge pages as control files name them.
fn huge_pages() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut sizes: Vec<_> = names
        .map(|name| {
            let kib = name.trim_start_matches("hugepages-").trim_end_matches("kB");
            match kib.parse::<u64>().unwrap() {
                kib if kib < 1 << 10 => format!("{kib}KB"),
                kib if kib < 1 << 20 => format!("{}MB", kib >> 10),
                kib => format!("{}GB", kib >> 20),
            }
        })
        .collect();
    sizes.sort();
    sizes
}

fn take(all: &mut Fields, prefix: &str, names: &str, from: &Fields) {
    for name in names.split_whitespace() {
        let value = from.get(name).cloned().unwrap_or_else(|| "0".into());
        insert(all, &format!("{prefix}.{name}"), value);
    }
}

fn insert(all: &mut Fields, name: &str, value: String) {
    let value = if value.is_empty() && !name.ends_with("device") { "0".into() } else { value };
    all.insert(name.to_owned(), value);
}

/// A file's text, nothing where this kernel has no such file.
fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default().trim_end().to_owned()
}

fn limit(dir: &Path, name: &str) -> String {
    text(dir, name).replace("max", &u64::MAX.to_string())
}

fn pairs(dir: &Path, name: &str) -> Fields {
    let text = text(dir, name);
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
