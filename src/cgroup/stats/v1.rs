//! Metrics of a cgroup in v1 hierarchies.

use std::collections::BTreeMap;
use std::io;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use protobuf::MessageField;

use crate::cgroup::Directory;
use crate::cgroup::file::Reader;
use crate::cgroup::stats::{Files, Host, Stats, text};

/// Nanoseconds in a tick of `cpuacct.stat`: the kernel gives user space 100 ticks a second,
/// whatever it counts in itself.
const TICK: u64 = 10_000_000;

/// What `max` is in the message: since once only `pids.max` could say so, clients of v1 read 0.
const UNLIMITED: u64 = 0;

/// The controllers that count something.
const COUNTING: [&str; 7] = ["cpu", "cpuacct", "memory", "pids", "blkio", "rdma", "hugetlb"];

/// Files of each kind of memory: its use, the most so far, refusals, the limit.
const USER: [&str; 4] = [
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.failcnt",
    "memory.limit_in_bytes",
];
const WITH_SWAP: [&str; 4] = [
    "memory.memsw.usage_in_bytes",
    "memory.memsw.max_usage_in_bytes",
    "memory.memsw.failcnt",
    "memory.memsw.limit_in_bytes",
];
const KERNEL: [&str; 4] = [
    "memory.kmem.usage_in_bytes",
    "memory.kmem.max_usage_in_bytes",
    "memory.kmem.failcnt",
    "memory.kmem.limit_in_bytes",
];
const KERNEL_TCP: [&str; 4] = [
    "memory.kmem.tcp.usage_in_bytes",
    "memory.kmem.tcp.max_usage_in_bytes",
    "memory.kmem.tcp.failcnt",
    "memory.kmem.tcp.limit_in_bytes",
];

/// The metrics of the cgroup in `dirs`, or `None` if it is gone from all of them.
pub(super) fn read(dirs: &[Directory], host: &Host) -> io::Result<Option<Stats>> {
    let mut reader = Reader::new();
    let mut metrics = Box::new(Metrics::new());
    let mut found = false;
    for dir in dirs.iter().filter(|dir| COUNTING.iter().any(|name| dir.controls(name))) {
        let files = if dir.controls("memory") {
            Files::open(&dir.path, UNLIMITED, &mut reader)?
        } else {
            Some(Files::named(&dir.path, UNLIMITED, &mut reader))
        };
        let Some(mut files) = files else { continue };
        // The controllers of one hierarchy can be mounted together.
        for controller in dir.controllers.split(',') {
            add(&mut metrics, controller, &mut files, host)?;
        }
        found |= files.found;
    }
    if let Some(blkio) = metrics.blkio.as_mut() {
        name_devices(blkio, host);
    }
    // It may be in hierarchies alone that count nothing.
    found = found || dirs.iter().any(|dir| dir.path.exists());
    Ok(found.then_some(Stats::V1(metrics)))
}

/// Adds what one controller knows, unless its directory is gone.
fn add(
    metrics: &mut Metrics,
    controller: &str,
    files: &mut Files<'_>,
    host: &Host,
) -> io::Result<()> {
    match controller {
        "cpu" => {
            if let Some(text) = files.optional("cpu.stat")? {
                throttling(cpu_of(metrics), text);
            }
        }
        "cpuacct" => {
            if let Some(total) = files.optional_number("cpuacct.usage")? {
                usage(cpu_of(metrics), total, files)?;
            }
        }
        "memory" => {
            if let Some(stat) = files.optional("memory.stat")?.map(memory_stat) {
                metrics.memory = MessageField::some(memory(stat, files)?);
                let oom = files.optional("memory.oom_control")?.map(oom_control);
                metrics.memory_oom_control = MessageField::from_option(oom);
            }
        }
        "pids" => {
            if let Some(current) = files.optional_number("pids.current")? {
                let limit = files.number("pids.max")?;
                metrics.pids = MessageField::some(PidsStat { current, limit, ..PidsStat::new() });
            }
        }
        "blkio" => metrics.blkio = MessageField::from_option(blkio(files)?),
        "rdma" => {
            if let Some(current) = files.optional("rdma.current")?.map(rdma) {
                let limit = rdma(files.text("rdma.max")?);
                metrics.rdma = MessageField::some(RdmaStat { current, limit, ..RdmaStat::new() });
            }
        }
        "hugetlb" => metrics.hugetlb = huge_page_stats(files, &host.huge_pages)?,
        _ => {}
    }
    Ok(())
}

/// The CPU metrics, which two controllers fill. Clients take both parts for granted.
fn cpu_of(metrics: &mut Metrics) -> &mut CPUStat {
    let cpu = metrics.cpu.mut_or_insert_default();
    cpu.usage.mut_or_insert_default();
    cpu.throttling.mut_or_insert_default();
    cpu
}

fn throttling(cpu: &mut CPUStat, text: &str) {
    let throttling: &mut Throttle = cpu.throttling.mut_or_insert_default();
    for (key, value) in text::pairs(text) {
        match key {
            "nr_periods" => throttling.periods = value,
            "nr_throttled" => throttling.throttled_periods = value,
            "throttled_time" => throttling.throttled_time = value,
            _ => {}
        }
    }
}

fn usage(cpu: &mut CPUStat, total: u64, files: &mut Files<'_>) -> io::Result<()> {
    let usage: &mut CPUUsage = cpu.usage.mut_or_insert_default();
    usage.total = total;
    for (key, ticks) in text::pairs(files.text("cpuacct.stat")?) {
        match key {
            "user" => usage.user = ticks.saturating_mul(TICK),
            "system" => usage.kernel = ticks.saturating_mul(TICK),
            _ => {}
        }
    }
    let each = files.text("cpuacct.usage_percpu")?.split_ascii_whitespace();
    usage.per_cpu = each.filter_map(text::number).collect();
    Ok(())
}

fn memory(mut memory: MemoryStat, files: &mut Files<'_>) -> io::Result<MemoryStat> {
    memory.usage = entry(files, USER)?;
    memory.swap = entry(files, WITH_SWAP)?;
    memory.kernel = entry(files, KERNEL)?;
    memory.kernel_tcp = entry(files, KERNEL_TCP)?;
    Ok(memory)
}

/// One kind of memory. All four are in the message, with zeros where the kernel has no files:
/// clients take them for granted.
fn entry(files: &mut Files<'_>, names: [&str; 4]) -> io::Result<MessageField<MemoryEntry>> {
    let mut entry = MemoryEntry::new();
    let [usage, max, failcnt, limit] = names;
    // Swap accounting can be off, kernel accounting is going away: then skip three more misses.
    if let Some(usage) = files.optional_number(usage)? {
        entry.usage = usage;
        entry.max = files.number(max)?;
        entry.failcnt = files.number(failcnt)?;
        entry.limit = files.number(limit)?;
    }
    Ok(MessageField::some(entry))
}

fn memory_stat(text: &str) -> MemoryStat {
    let mut memory = MemoryStat::new();
    for (key, value) in text::pairs(text) {
        let field = match key {
            "cache" => &mut memory.cache,
            "rss" => &mut memory.rss,
            "rss_huge" => &mut memory.rss_huge,
            "mapped_file" => &mut memory.mapped_file,
            "dirty" => &mut memory.dirty,
            "writeback" => &mut memory.writeback,
            "pgpgin" => &mut memory.pg_pg_in,
            "pgpgout" => &mut memory.pg_pg_out,
            "pgfault" => &mut memory.pg_fault,
            "pgmajfault" => &mut memory.pg_maj_fault,
            "inactive_anon" => &mut memory.inactive_anon,
            "active_anon" => &mut memory.active_anon,
            "inactive_file" => &mut memory.inactive_file,
            "active_file" => &mut memory.active_file,
            "unevictable" => &mut memory.unevictable,
            "hierarchical_memory_limit" => &mut memory.hierarchical_memory_limit,
            "hierarchical_memsw_limit" => &mut memory.hierarchical_swap_limit,
            "total_cache" => &mut memory.total_cache,
            "total_rss" => &mut memory.total_rss,
            "total_rss_huge" => &mut memory.total_rss_huge,
            "total_mapped_file" => &mut memory.total_mapped_file,
            "total_dirty" => &mut memory.total_dirty,
            "total_writeback" => &mut memory.total_writeback,
            "total_pgpgin" => &mut memory.total_pg_pg_in,
            "total_pgpgout" => &mut memory.total_pg_pg_out,
            "total_pgfault" => &mut memory.total_pg_fault,
            "total_pgmajfault" => &mut memory.total_pg_maj_fault,
            "total_inactive_anon" => &mut memory.total_inactive_anon,
            "total_active_anon" => &mut memory.total_active_anon,
            "total_inactive_file" => &mut memory.total_inactive_file,
            "total_active_file" => &mut memory.total_active_file,
            "total_unevictable" => &mut memory.total_unevictable,
            _ => continue,
        };
        *field = value;
    }
    memory
}

fn oom_control(text: &str) -> MemoryOomControl {
    let mut oom = MemoryOomControl::new();
    for (key, value) in text::pairs(text) {
        match key {
            "oom_kill_disable" => oom.oom_kill_disable = value,
            "under_oom" => oom.under_oom = value,
            "oom_kill" => oom.oom_kill = value,
            _ => {}
        }
    }
    oom
}

/// Block IO, nested cgroups included; `None` if the directory is gone.
///
/// From the throttling layer's files, of which Linux 5.0 has recursive ones. Before it, from the
/// CFQ scheduler's, which it dropped, if they count anything; else from the throttling layer's
/// without nested cgroups.
fn blkio(files: &mut Files<'_>) -> io::Result<Option<BlkIOStat>> {
    let mut blkio = BlkIOStat::new();
    if let Some(text) = files.optional("blkio.throttle.io_serviced_recursive")? {
        blkio.io_serviced_recursive = blocks(text);
        let bytes = files.text("blkio.throttle.io_service_bytes_recursive")?;
        blkio.io_service_bytes_recursive = blocks(bytes);
        return Ok(Some(blkio));
    }
    if let Some(text) = files.optional("blkio.io_serviced_recursive")? {
        blkio.io_serviced_recursive = blocks(text);
        blkio.sectors_recursive = blocks(files.text("blkio.sectors_recursive")?);
        blkio.io_service_bytes_recursive = blocks(files.text("blkio.io_service_bytes_recursive")?);
        blkio.io_queued_recursive = blocks(files.text("blkio.io_queued_recursive")?);
        blkio.io_service_time_recursive = blocks(files.text("blkio.io_service_time_recursive")?);
        blkio.io_wait_time_recursive = blocks(files.text("blkio.io_wait_time_recursive")?);
        blkio.io_merged_recursive = blocks(files.text("blkio.io_merged_recursive")?);
        blkio.io_time_recursive = blocks(files.text("blkio.time_recursive")?);
    }
    if blkio == BlkIOStat::new() {
        blkio.io_serviced_recursive = blocks(files.text("blkio.throttle.io_serviced")?);
        blkio.io_service_bytes_recursive = blocks(files.text("blkio.throttle.io_service_bytes")?);
    }
    Ok(files.found.then_some(blkio))
}

fn blocks(text: &str) -> Vec<BlkIOEntry> {
    let entry = |block: text::Block<'_>| BlkIOEntry {
        op: block.op.to_owned(),
        major: block.device.0,
        minor: block.device.1,
        value: block.value,
        ..BlkIOEntry::new()
    };
    text::blocks(text).map(entry).collect()
}

/// Writes the devices' paths into the block IO metrics; looks for each device once.
fn name_devices(blkio: &mut BlkIOStat, host: &Host) {
    let lists = [
        &mut blkio.io_service_bytes_recursive,
        &mut blkio.io_serviced_recursive,
        &mut blkio.io_queued_recursive,
        &mut blkio.io_service_time_recursive,
        &mut blkio.io_wait_time_recursive,
        &mut blkio.io_merged_recursive,
        &mut blkio.io_time_recursive,
        &mut blkio.sectors_recursive,
    ];
    let mut known = BTreeMap::new();
    for entry in lists.into_iter().flatten() {
        let numbers = (entry.major, entry.minor);
        let name = known.entry(numbers).or_insert_with(|| host.device(numbers));
        entry.device.clone_from(name);
    }
}

fn rdma(text: &str) -> Vec<RdmaEntry> {
    let entry = |(device, fields): (&str, text::Fields<'_>)| RdmaEntry {
        device: device.to_owned(),
        hca_handles: fields.limit("hca_handle"),
        hca_objects: fields.limit("hca_object"),
        ..RdmaEntry::new()
    };
    text::rdma(text).map(entry).collect()
}

/// The use of each size of huge pages; none if the directory is gone.
fn huge_page_stats(files: &mut Files<'_>, sizes: &[String]) -> io::Result<Vec<HugetlbStat>> {
    let mut stats = Vec::new();
    for size in sizes {
        let name = |what: &str| format!("hugetlb.{size}.{what}");
        let Some(usage) = files.optional_number(&name("usage_in_bytes"))? else { break };
        stats.push(HugetlbStat {
            usage,
            max: files.number(&name("max_usage_in_bytes"))?,
            failcnt: files.number(&name("failcnt"))?,
            pagesize: size.clone(),
            ..HugetlbStat::new()
        });
    }
    Ok(stats)
}
