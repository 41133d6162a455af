//! The kernel's text formats. Pure; what does not parse is skipped, as kernels add to their files.

/// A number. Counters that went below 0 count as 0.
pub(super) fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix('-') {
        Some(digits) => digits.parse::<u64>().ok().map(|_| 0),
        None => text.parse().ok(),
    }
}

/// A limit; `unlimited` stands for `max`.
pub(super) fn limit(text: &str, unlimited: u64) -> Option<u64> {
    if text.trim() == "max" { Some(unlimited) } else { number(text) }
}

/// Lines of a key and a number: `memory.stat`, `cpu.stat`, `memory.events`.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value)?))
    })
}

/// One line of a pressure file: the share of time lost, in percent of the last 10, 60 and 300
/// seconds, and microseconds lost in total.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pressure {
    pub(super) avg10: f64,
    pub(super) avg60: f64,
    pub(super) avg300: f64,
    pub(super) total: u64,
}

/// The line `kind` (`some` or `full`) of a pressure file.
pub(super) fn pressure(text: &str, kind: &str) -> Option<Pressure> {
    let fields = text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == kind).then_some(words)
    })?;
    let mut pressure = Pressure::default();
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let share = || value.parse().unwrap_or_default();
        match key {
            "avg10" => pressure.avg10 = share(),
            "avg60" => pressure.avg60 = share(),
            "avg300" => pressure.avg300 = share(),
            "total" => pressure.total = number(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(pressure)
}

/// Lines of `MAJOR:MINOR KEY=NUMBER ...`: `io.stat`.
pub(super) fn io(text: &str) -> impl Iterator<Item = ((u64, u64), Fields<'_>)> {
    text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(' ')?;
        Some((device(number)?, Fields(rest)))
    })
}

/// The `KEY=NUMBER` words of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields<'a>(&'a str);

impl Fields<'_> {
    /// The number of `key`, 0 if it is not there.
    pub(super) fn number(self, key: &str) -> u64 {
        self.value(key).and_then(number).unwrap_or_default()
    }

    /// The 32-bit limit of `key`, 0 if it is not there.
    pub(super) fn limit(self, key: &str) -> u32 {
        let most = u64::from(u32::MAX);
        let value = self.value(key).and_then(|value| limit(value, most)).unwrap_or_default();
        u32::try_from(value).unwrap_or(u32::MAX)
    }

    fn value(&self, key: &str) -> Option<&str> {
        let mut fields = self.0.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        fields.find_map(|(name, value)| (name == key).then_some(value))
    }
}

/// Lines of a device and its limits or use: `rdma.current`, `rdma.max`.
pub(super) fn rdma(text: &str) -> impl Iterator<Item = (&str, Fields<'_>)> {
    text.lines().filter_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        Some((device, Fields(rest)))
    })
}

/// A line of a blkio file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block<'a> {
    pub(super) device: (u64, u64),
    /// `Read`, `Write`, `Total`; empty where a file has one number for each device.
    pub(super) op: &'a str,
    pub(super) value: u64,
}

/// Lines of `MAJOR:MINOR [OP] NUMBER`; the sum at the end, `Total NUMBER`, is left out.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(' ')?;
        let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
        Some(Block { device: device(number)?, op, value: self::number(value)? })
    })
}

/// `2MB` for a directory name `hugepages-2048kB`: the kernel names control files so.
pub(super) fn huge_page_size(name: &str) -> Option<String> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        0x10_0000.. => format!("{}GB", kib >> 20),
        0x400.. => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    })
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((number(major)?, number(minor)?))
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = (number(text), limit(text, u64::MAX), huge_page_size(text));
    let _ = (pairs(text).count(), pressure(text, "some"), blocks(text).count());
    for (_, fields) in io(text) {
        let _ = fields.number("rbytes");
    }
    for (_, fields) in rdma(text) {
        let _ = fields.limit("hca_handle");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_limits() {
        let cases = [
            ("plain", "12\n", Some(12), Some(12)),
            ("max", "max\n", None, Some(u64::MAX)),
            ("biggest", "18446744073709551615", Some(u64::MAX), Some(u64::MAX)),
            (
                "v1's no limit",
                "9223372036854771712",
                Some(0x7fff_ffff_ffff_f000),
                Some(0x7fff_ffff_ffff_f000),
            ),
            ("negative", "-1", Some(0), Some(0)),
            ("too big", "18446744073709551616", None, None),
            ("empty", "", None, None),
            ("garbage", "1x", None, None),
        ];
        for (name, text, plain, limited) in cases {
            assert_eq!(number(text), plain, "{name}");
            assert_eq!(limit(text, u64::MAX), limited, "{name}");
        }
    }

    #[test]
    fn lines_that_do_not_parse_are_skipped() {
        let text = "a 1\nb\nc x\nd 2 3\n\ne -4\nf 5";
        assert_eq!(pairs(text).collect::<Vec<_>>(), [("a", 1), ("e", 0), ("f", 5)]);

        let text = "8:0 rbytes=1 wbytes=2 x rios=y\n8:16 \nx\n7 rbytes=1\n253:1 dios=9\n";
        let devices: Vec<_> = io(text).map(|(device, of)| (device, of.number("wbytes"))).collect();
        assert_eq!(devices, [((8, 0), 2), ((8, 16), 0), ((253, 1), 0)]);
        assert_eq!(io(text).next().unwrap().1.number("rios"), 0);

        let text = "mlx4_0 hca_handle=2 hca_object=max\nocrdma1\n\n";
        let found: Vec<_> = rdma(text)
            .map(|(name, of)| (name, of.limit("hca_handle"), of.limit("hca_object")))
            .collect();
        assert_eq!(found, [("mlx4_0", 2, u32::MAX)]);

        let text = "8:0 Read 10\n8:0 Total 30\n8:16 7\n8:0 Read\nTotal 37\n\nx:y Read 1\n";
        let found: Vec<_> = blocks(text).map(|of| (of.device, of.op, of.value)).collect();
        assert_eq!(found, [((8, 0), "Read", 10), ((8, 0), "Total", 30), ((8, 16), "", 7)]);
    }

    #[test]
    fn pressure_lines_stand_alone() {
        let text = "some avg10=1.50 avg60=0.02 avg300=0.00 total=42\nfull avg10=x total=7 new=1\n";
        let some = Pressure { avg10: 1.5, avg60: 0.02, avg300: 0.0, total: 42 };
        assert_eq!(pressure(text, "some"), Some(some));
        assert_eq!(pressure(text, "full"), Some(Pressure { total: 7, ..Pressure::default() }));
        // The CPU's file had no `full` before Linux 5.13.
        assert_eq!(pressure("some avg10=0.00\n", "full"), None);
        assert_eq!(pressure("", "some"), None);
    }

    #[test]
    fn sizes_of_huge_pages() {
        let cases = [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-kB", None),
            ("hugepages-2048", None),
            ("x", None),
        ];
        for (name, expected) in cases {
            assert_eq!(huge_page_size(name).as_deref(), expected, "{name}");
        }
    }
}
