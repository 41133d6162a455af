//! What is pure in the benchmark: its command line, its figures and its bytes.

#[path = "bench/args.rs"]
mod args;
#[path = "bench/figures.rs"]
mod figures;
#[path = "bench/limit.rs"]
mod limit;
#[path = "bench/io/pattern.rs"]
mod pattern;
#[path = "bench/projection.rs"]
mod projection;

use args::Args;
use figures::Summary;
use limit::Limit;
use pattern::Pattern;

fn parse(line: &str) -> Result<Args, String> {
    Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
}

#[test]
fn a_summary_is_median_minimum_and_95th_percentile() {
    let to = |last: u32| (1..=last).rev().map(f64::from).collect::<Vec<_>>();
    let cases = [
        ("one", vec![3.0], Some((3.0, 3.0, 3.0))),
        ("odd", vec![5.0, 1.0, 2.0], Some((2.0, 1.0, 5.0))),
        ("even", vec![4.0, 1.0, 2.0, 3.0], Some((2.5, 1.0, 4.0))),
        ("19: the largest", to(19), Some((10.0, 1.0, 19.0))),
        ("20: the last but one", to(20), Some((10.5, 1.0, 19.0))),
        ("100", to(100), Some((50.5, 1.0, 95.0))),
        ("none", vec![], None),
    ];
    for (name, samples, expected) in cases {
        let summary = Summary::of(&samples);
        assert_eq!(summary.map(|one| (one.median, one.min, one.p95)), expected, "{name}");
    }
}

#[test]
fn some_shims_are_projected_to_a_node_and_a_cluster() {
    let measured = projection::Measured {
        count: 500.0,
        pss_mib: 102.4,
        idle_cpu_ms: 60.0,
        idle_wake_ups_per_s: 5.0,
        start_cpu_s: 1.5,
    };
    let line = projection::line("berth", measured);
    assert_eq!(line, "| berth | 0.20 GiB | 2.0 ms | 10 | 3.0 s | 2.0 TiB |\n");
    let cells = |text: &str| text.matches('|').count();
    let head = projection::HEAD.lines().next().unwrap();
    assert_eq!(cells(head), cells(&line));
}

#[test]
fn words_choose_parts_and_rows() {
    const PARTS: &[&str] = &["io", "life", "many"];
    let cases = [
        ("", "io", "terminal, init", true),
        ("io", "io", "terminal, init", true),
        ("life", "io", "terminal, init", false),
        ("", "many", "shims", false),
        ("many", "many", "shims", true),
        ("io life", "io", "terminal, init", true),
        ("terminal", "io", "terminal, init", true),
        ("io terminal init", "io", "terminal, init", true),
        ("io terminal exec", "io", "terminal, init", false),
        ("--runtime crun terminal", "io", "terminal, init", true),
    ];
    for (line, part, row, expected) in cases {
        let args = parse(line).unwrap();
        let chosen = args.chooses_part(part, PARTS, part != "many") && args.chooses_row(row, PARTS);
        assert_eq!(chosen, expected, "{line:?}");
    }
}

#[test]
fn options_have_values_that_are_checked() {
    let args = parse(
        "io --rounds 3 --shim /a/b --shim x=/c --json f --stock /s --runtime crun --check --count 7",
    );
    let args = args.unwrap();
    assert_eq!((args.rounds, args.runtime.as_deref()), (Some(3), Some("crun")));
    assert_eq!((args.check, args.count), (true, 7));
    assert_eq!(args.shims, [("b".into(), "/a/b".into()), ("x".into(), "/c".into())]);
    assert_eq!((args.json, args.stock), (Some("f".into()), Some("/s".into())));
    for (line, fault) in [
        ("--rounds", "--rounds needs a value"),
        ("--rounds 0", "--rounds 0: not a number from 1 on"),
        ("--rounds many", "--rounds many: not a number from 1 on"),
        ("--laps 3", "unknown option --laps"),
    ] {
        assert_eq!(parse(line).unwrap_err(), fault, "{line:?}");
    }
}

#[test]
fn a_budget_is_met_as_far_as_it_is_printed() {
    for (limit, value, digits, expected, words) in [
        (Limit::AtMost(1.2), 1.204, 2, true, "≤ 1.20"),
        (Limit::AtMost(1.2), 1.206, 2, false, "≤ 1.20"),
        (Limit::AtMost(0.0), 0.004, 2, true, "≤ 0.00"),
        (Limit::AtLeast(200.0), 199.6, 0, true, "≥ 200"),
        (Limit::AtLeast(200.0), 199.4, 0, false, "≥ 200"),
        (Limit::AtMost(350.0), f64::INFINITY, 0, false, "≤ 350"),
    ] {
        assert_eq!(limit.is_met(value, digits), expected, "{words} {value}");
        assert_eq!(limit.say(digits), words);
    }
}

#[test]
fn lost_changed_and_moved_bytes_are_found() {
    let bytes = Pattern::new(false).into_bytes(2_000_000);
    let pattern = Pattern::new(false);
    assert!(pattern.holds(0, &bytes) && pattern.holds(123, &bytes[123..]));
    assert_eq!(pattern.length(250), 250);
    let mut changed = bytes.clone();
    changed[1_999_999] ^= 1;
    assert!(!pattern.holds(0, &changed), "changed");
    for lost in [1, 64, 100, 4096, 65_536, 1 << 20] {
        assert!(!pattern.holds(0, &bytes[lost..]), "{lost} lost");
    }
    let terminal = Pattern::new(true);
    let text = String::from_utf8(bytes[..1000].to_vec()).unwrap().replace('\n', "\r\n");
    assert!(terminal.holds(0, text.as_bytes()));
    assert_eq!(terminal.length(1000), text.len() as u64);
}
