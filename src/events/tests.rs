use std::path::Path;

use ttrpc::Code;

use super::refuses_event;
use super::store::{Head, Record, Store};
use crate::error::Error;

fn record(number: u32, vital: bool) -> Record {
    let mut bytes = vec![b'x'; 200];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Record { bytes: bytes.into(), vital }
}

/// Takes the first event off, as the journal does.
fn take(store: &mut Store) -> Option<u32> {
    loop {
        match store.head() {
            Head::None => return None,
            Head::Bytes(bytes) => {
                store.pop();
                return Some(u32::from_le_bytes(bytes[..4].try_into().unwrap()));
            }
            Head::OnDisk(read) => store.read(read.run()).unwrap(),
        }
    }
}

fn write(store: &mut Store, bundle: &Path) -> std::io::Result<()> {
    let write = store.begin_write();
    let batch = write.batch();
    store.end_write(batch, write.run(&[bundle.to_owned()]))
}

#[test]
fn order_is_kept_wherever_events_are() {
    let bundle = tempfile::tempdir().unwrap();
    // Of each ten turns, how many add ten events, and how many take ten.
    for (name, adds, takes) in [("grows", 7, 2), ("balances", 5, 5), ("shrinks", 4, 6)] {
        let mut store = Store::default();
        let (mut added, mut taken) = (0, 0);
        for turn in 0..3000_u32 {
            let dice = turn.wrapping_mul(2_654_435_761) >> 16;
            if dice % 10 < adds {
                for _ in 0..10 {
                    assert!(store.push(record(added, dice % 2 == 0)), "{name}");
                    added += 1;
                }
            }
            if dice / 10 % 10 < takes {
                for _ in 0..10_u32.min(added - taken) {
                    assert_eq!(take(&mut store), Some(taken), "{name}");
                    taken += 1;
                }
            }
            if store.overflows() && dice % 3 == 0 {
                // What is taken while a write is under way.
                let write = store.begin_write();
                let batch = write.batch();
                for _ in 0..(dice % 400).min(added - taken) {
                    assert_eq!(take(&mut store), Some(taken), "{name}");
                    taken += 1;
                }
                store.end_write(batch, write.run(&[bundle.path().to_owned()])).unwrap();
            }
            assert_eq!(store.len(), (added - taken) as usize, "{name}");
        }
        while let Some(number) = take(&mut store) {
            assert_eq!(number, taken, "{name}");
            taken += 1;
        }
        assert_eq!((added, store.len()), (taken, 0), "{name}");
    }
    assert_eq!(bundle.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_disk_that_takes_nothing_costs_no_vital_event() {
    let bundle = tempfile::tempdir().unwrap();
    let missing = bundle.path().join("missing");
    let mut store = Store::default();
    let mut kept = Vec::new();
    for number in 0..20_000 {
        let vital = number % 10 == 0;
        if store.push(record(number, vital)) {
            kept.push(number);
        } else {
            assert!(!vital);
        }
        if store.overflows() && number % 100 == 0 {
            assert!(write(&mut store, &missing).is_err());
        }
    }
    assert!(kept.len() < 5000, "{} events in memory", kept.len());
    assert_eq!(kept.iter().filter(|number| *number % 10 == 0).count(), 2000);
    assert_eq!(store.take_dropped(), 20_000 - kept.len());
    // The disk works again.
    while store.overflows() {
        write(&mut store, bundle.path()).unwrap();
    }
    let all: Vec<_> = std::iter::from_fn(|| take(&mut store)).collect();
    assert_eq!(all, kept);
}

#[test]
fn a_disk_that_lost_events_costs_only_those() {
    let bundle = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    for number in 0..1000 {
        store.push(record(number, true));
    }
    while store.overflows() {
        write(&mut store, bundle.path()).unwrap();
    }
    let (mut all, mut lost) = (0, 0);
    loop {
        match store.head() {
            Head::None => break,
            Head::Bytes(_) => {
                store.pop();
                all += 1;
            }
            Head::OnDisk(_) => {
                let (_, count) = store.read(Err(std::io::ErrorKind::Other.into())).unwrap_err();
                lost += count;
            }
        }
    }
    assert!(lost > 0 && all + lost == 1000, "{all} and {lost}");
}

#[test]
fn only_an_event_that_is_wrong_itself_is_dropped() {
    let remote = |code| Error::Remote { code, message: String::new() };
    let cases = [
        ("refused", remote(Code::INVALID_ARGUMENT), true),
        ("larger than any message", Error::TooLarge(5 << 20), true),
        ("containerd's own trouble", remote(Code::UNKNOWN), false),
        ("containerd is ending", remote(Code::UNAVAILABLE), false),
        ("nobody takes it", Error::ShuttingDown, false),
    ];
    for (name, error, expected) in cases {
        assert_eq!(refuses_event(&error), expected, "{name}");
    }
}
