//! Metrics of a cgroup in v1 hierarchies.

use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use protobuf::MessageField;

use crate::cgroup::Directory;
use crate::cgroup::file::Reader;
use crate::cgroup::stats::{Files, Stats, huge_page_sizes, text};

/// Nanoseconds in a tick of `cpuacct.stat`: the kernel gives user space 100 ticks a second,
/// whatever it counts in itself.
const TICK: u64 = 10_000_000;

/// What `max` is in the message: since once only `pids.max` could say so, clients of v1 read 0.
const UNLIMITED: u64 = 0;

/// The metrics of the cgroup in `dirs`, or `None` if it is gone from all of them.
pub(super) fn read(dirs: &[Directory], huge_pages: &Path) -> io::Result<Option<Stats>> {
    let mut reader = Reader::new();
    let mut metrics = Box::new(Metrics::new());
    let mut found = false;
    for dir in dirs {
        let Some(mut files) = Files::open(&dir.path, UNLIMITED, &mut reader)? else { continue };
        found = true;
        // The controllers of one hierarchy can be mounted together.
        for controller in dir.controllers.split(',') {
            add(&mut metrics, controller, &mut files, huge_pages)?;
        }
    }
    if metrics.blkio.is_some() {
        name_devices(&mut metrics, &mut reader)?;
    }
    Ok(found.then_some(Stats::V1(metrics)))
}

/// Adds what one controller knows.
fn add(
    metrics: &mut Metrics,
    controller: &str,
    files: &mut Files<'_>,
    huge_pages: &Path,
) -> io::Result<()> {
    match controller {
        "cpu" => throttling(cpu_of(metrics), files.text("cpu.stat")?),
        "cpuacct" => usage(cpu_of(metrics), files)?,
        "memory" => {
            metrics.memory = MessageField::some(memory(files)?);
            let oom = oom_control(files.text("memory.oom_control")?);
            metrics.memory_oom_control = MessageField::some(oom);
        }
        "pids" => {
            metrics.pids = MessageField::some(PidsStat {
                current: files.number("pids.current")?,
                limit: files.number("pids.max")?,
                ..PidsStat::new()
            });
        }
        "blkio" => metrics.blkio = MessageField::some(blkio(files)?),
        "rdma" => {
            metrics.rdma = MessageField::some(RdmaStat {
                current: rdma(files.text("rdma.current")?),
                limit: rdma(files.text("rdma.max")?),
                ..RdmaStat::new()
            });
        }
        "hugetlb" => metrics.hugetlb = huge_page_stats(files, huge_pages)?,
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

fn usage(cpu: &mut CPUStat, files: &mut Files<'_>) -> io::Result<()> {
    let usage: &mut CPUUsage = cpu.usage.mut_or_insert_default();
    usage.total = files.number("cpuacct.usage")?;
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

fn memory(files: &mut Files<'_>) -> io::Result<MemoryStat> {
    let mut memory = memory_stat(files.text("memory.stat")?);
    memory.usage = entry(files, "memory")?;
    memory.swap = entry(files, "memory.memsw")?;
    memory.kernel = entry(files, "memory.kmem")?;
    memory.kernel_tcp = entry(files, "memory.kmem.tcp")?;
    Ok(memory)
}

/// One kind of memory. All four are in the message, with zeros where the kernel has no files:
/// clients take them for granted.
fn entry(files: &mut Files<'_>, kind: &str) -> io::Result<MessageField<MemoryEntry>> {
    let mut entry = MemoryEntry::new();
    let usage = format!("{kind}.usage_in_bytes");
    // Swap accounting can be off, kernel accounting is going away: then skip three more misses.
    if let Some(text) = files.optional(&usage)? {
        entry.usage = text::number(text).unwrap_or_default();
        entry.max = files.number(&format!("{kind}.max_usage_in_bytes"))?;
        entry.failcnt = files.number(&format!("{kind}.failcnt"))?;
        entry.limit = files.number(&format!("{kind}.limit_in_bytes"))?;
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

/// Block IO: from the CFQ scheduler's files, which Linux 5.0 dropped, if they count anything,
/// else from the throttling layer's, where those with nested cgroups are newer (Linux 5.0).
fn blkio(files: &mut Files<'_>) -> io::Result<BlkIOStat> {
    let mut blkio = BlkIOStat::new();
    let serviced = files.optional("blkio.io_serviced_recursive")?.map(blocks);
    if let Some(serviced) = serviced {
        blkio.io_serviced_recursive = serviced;
        blkio.sectors_recursive = blocks(files.text("blkio.sectors_recursive")?);
        blkio.io_service_bytes_recursive = blocks(files.text("blkio.io_service_bytes_recursive")?);
        blkio.io_queued_recursive = blocks(files.text("blkio.io_queued_recursive")?);
        blkio.io_service_time_recursive = blocks(files.text("blkio.io_service_time_recursive")?);
        blkio.io_wait_time_recursive = blocks(files.text("blkio.io_wait_time_recursive")?);
        blkio.io_merged_recursive = blocks(files.text("blkio.io_merged_recursive")?);
        blkio.io_time_recursive = blocks(files.text("blkio.time_recursive")?);
        if blkio != BlkIOStat::new() {
            return Ok(blkio);
        }
    }
    blkio.io_serviced_recursive = throttled(files, "blkio.throttle.io_serviced")?;
    blkio.io_service_bytes_recursive = throttled(files, "blkio.throttle.io_service_bytes")?;
    Ok(blkio)
}

fn throttled(files: &mut Files<'_>, name: &str) -> io::Result<Vec<BlkIOEntry>> {
    if let Some(text) = files.optional(&format!("{name}_recursive"))? {
        return Ok(blocks(text));
    }
    Ok(blocks(files.text(name)?))
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

/// Writes the devices' paths into the block IO metrics, if there are any to name.
fn name_devices(metrics: &mut Metrics, reader: &mut Reader) -> io::Result<()> {
    let Some(blkio) = metrics.blkio.as_mut() else { return Ok(()) };
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
    let mut entries = lists.into_iter().flatten().peekable();
    if entries.peek().is_none() {
        return Ok(());
    }
    let partitions = reader.list(Path::new("/proc/partitions"))?.unwrap_or_default();
    for entry in entries {
        if let Some(name) = text::device_name(partitions, (entry.major, entry.minor)) {
            entry.device = format!("/dev/{name}");
        }
    }
    Ok(())
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

fn huge_page_stats(files: &mut Files<'_>, sizes: &Path) -> io::Result<Vec<HugetlbStat>> {
    let mut stats = Vec::new();
    for pagesize in huge_page_sizes(sizes) {
        stats.push(HugetlbStat {
            usage: files.number(&format!("hugetlb.{pagesize}.usage_in_bytes"))?,
            max: files.number(&format!("hugetlb.{pagesize}.max_usage_in_bytes"))?,
            failcnt: files.number(&format!("hugetlb.{pagesize}.failcnt"))?,
            pagesize,
            ..HugetlbStat::new()
        });
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy's directory as the kernel would fill it.
    fn fake(root: &Path, controllers: &str, files: &[(&str, &str)]) -> Directory {
        let path = root.join(controllers);
        std::fs::create_dir(&path).unwrap();
        for (name, text) in files {
            std::fs::write(path.join(name), text).unwrap();
        }
        Directory { controllers: controllers.into(), path }
    }

    fn metrics(dirs: &[Directory], huge_pages: &Path) -> Box<Metrics> {
        match read(dirs, huge_pages).unwrap() {
            Some(Stats::V1(metrics)) => metrics,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_controller_is_read() {
        let root = tempfile::tempdir().unwrap();
        let huge = root.path().join("huge");
        std::fs::create_dir_all(huge.join("hugepages-2048kB")).unwrap();
        let fake = |controllers: &str, files: &[_]| fake(root.path(), controllers, files);
        let dirs = [
            fake(
                "cpuacct,cpu",
                &[
                    ("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 1\nnew 5\n"),
                    ("cpuacct.stat", "user 2\nsystem 3\n"),
                    ("cpuacct.usage", "51000000\n"),
                    ("cpuacct.usage_percpu", "50000000 1000000 \n"),
                ],
            ),
            fake(
                "memory",
                &[
                    (
                        "memory.stat",
                        "cache 1\nrss 2\npgpgin 3\ntotal_cache 4\nhierarchical_memsw_limit 5\n\
                         total_unevictable 6\n",
                    ),
                    ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
                    ("memory.usage_in_bytes", "10\n"),
                    ("memory.max_usage_in_bytes", "20\n"),
                    ("memory.failcnt", "30\n"),
                    ("memory.limit_in_bytes", "9223372036854771712\n"),
                    ("memory.kmem.usage_in_bytes", "40\n"),
                ],
            ),
            fake("pids", &[("pids.current", "2\n"), ("pids.max", "max\n")]),
            fake(
                "blkio",
                &[
                    ("blkio.throttle.io_serviced", "8:0 Read 99\n"),
                    ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Total 3\nTotal 3\n"),
                    ("blkio.throttle.io_service_bytes", "8:0 Read 512\n"),
                ],
            ),
            fake(
                "hugetlb",
                &[("hugetlb.2MB.usage_in_bytes", "4\n"), ("hugetlb.2MB.failcnt", "7\n")],
            ),
            fake("rdma", &[("rdma.max", "mlx hca_handle=max hca_object=3\n")]),
            fake("name=systemd", &[]),
        ];
        let metrics = metrics(&dirs, &huge);
        let (throttling, usage) = (&metrics.cpu.throttling, &metrics.cpu.usage);
        let periods = (throttling.periods, throttling.throttled_periods, throttling.throttled_time);
        assert_eq!(periods, (3, 2, 1));
        assert_eq!((usage.total, usage.user, usage.kernel), (51_000_000, 20_000_000, 30_000_000));
        assert_eq!(usage.per_cpu, [50_000_000, 1_000_000]);
        let memory = &metrics.memory;
        assert_eq!((memory.cache, memory.rss, memory.pg_pg_in, memory.total_cache), (1, 2, 3, 4));
        assert_eq!((memory.hierarchical_swap_limit, memory.total_unevictable), (5, 6));
        let of = &memory.usage;
        assert_eq!((of.usage, of.max, of.failcnt, of.limit), (10, 20, 30, 0x7fff_ffff_ffff_f000));
        assert!(memory.swap.is_some() && memory.kernel_tcp.is_some() && memory.kernel.usage == 40);
        let oom = &metrics.memory_oom_control;
        assert_eq!((oom.oom_kill_disable, oom.under_oom, oom.oom_kill), (0, 1, 2));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, 0));
        let serviced = &metrics.blkio.io_serviced_recursive;
        let serviced: Vec<_> = serviced.iter().map(|io| (io.op.as_str(), io.value)).collect();
        assert_eq!(serviced, [("Read", 1), ("Total", 3)]);
        assert_eq!(metrics.blkio.io_service_bytes_recursive[0].value, 512);
        let huge = &metrics.hugetlb[0];
        assert_eq!((huge.pagesize.as_str(), huge.usage, huge.failcnt), ("2MB", 4, 7));
        assert_eq!(metrics.rdma.limit[0].hca_handles, u32::MAX);
    }

    #[test]
    fn controllers_that_the_cgroup_lacks_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let none = Directory { controllers: "pids".into(), path: root.path().join("none") };
        let memory = fake(root.path(), "memory", &[("memory.stat", "garbage\n\n \nrss x\n")]);
        let metrics = metrics(&[none.clone(), memory], root.path());
        assert!(metrics.pids.is_none() && metrics.cpu.is_none() && metrics.blkio.is_none());
        assert!(metrics.rdma.is_none() && metrics.hugetlb.is_empty() && metrics.memory.rss == 0);
        assert!(read(&[none], root.path()).unwrap().is_none(), "gone");
    }
}
