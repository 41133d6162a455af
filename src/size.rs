//! Sizes in bytes as people write them: `1048576`, `"1MiB"`, `"10m"`. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Units of 1024, then those of 1000; the longer of two that could be meant comes first. Docker's
/// `k`, `m` and `g` are of 1000.
const UNITS: [(&str, u64); 14] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("ki", 1 << 10),
    ("mi", 1 << 20),
    ("gi", 1 << 30),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("b", 1),
    ("", 1),
];
/// More than any buffer or file needs, and far from where arithmetic ends.
const MOST: u64 = 1 << 50;

/// A number of bytes, at most 1 PiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// As a length in memory.
    pub(crate) fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no size: write a number of bytes, or one with KiB, MiB or GiB, at most 1 PiB"
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start().to_ascii_lowercase();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
        bytes.filter(|bytes| *bytes <= MOST).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS[..3].iter().rev().zip(["GiB", "MiB", "KiB"]);
        for ((_, factor), name) in exact {
            if self.0 > 0 && self.0 % factor == 0 {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer) {
            Ok(Written::Number(number)) => number.to_string(),
            Ok(Written::Text(text)) => text,
            Err(_) => return Err(serde::de::Error::custom("must be a size, such as \"1MiB\"")),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_usual_form() {
        let cases = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("4096b", Some(4096)),
            ("64KiB", Some(65536)),
            ("64 kib", Some(65536)),
            ("10Mi", Some(10 << 20)),
            ("2GiB", Some(2 << 30)),
            ("10m", Some(10_000_000)),
            ("10MB", Some(10_000_000)),
            ("1g", Some(1_000_000_000)),
            ("1024GiB", Some(1 << 40)),
            ("9999999GiB", None),
            ("99999999999999999999", None),
            ("-1", None),
            ("", None),
            ("MiB", None),
            ("1.5MiB", None),
            ("10 apples", None),
            ("10mm", None),
        ];
        for (text, expected) in cases {
            let read = text.parse::<Size>();
            assert_eq!(read.as_ref().ok().map(|size| size.0), expected, "{text}");
            if let Err(why) = read {
                assert!(why.contains(&format!("{text:?}")), "{why}");
            }
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        let cases = [
            (0, "0"),
            (1, "1"),
            (1024, "1KiB"),
            (1 << 20, "1MiB"),
            (3 << 30, "3GiB"),
            (1500, "1500"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Size(bytes).to_string(), expected);
            assert_eq!(expected.parse(), Ok(Size(bytes)));
        }
    }
}
