//! How lines of output stand in a log: their pieces, and the records of the formats. Pure.
//!
//! A line ends with a newline. One of more than 16 KiB is cut into pieces, all of which but the last
//! are marked as partial, and so is what a stream ends with if that has no newline. This is what
//! containerd's CRI plugin and Docker do; the pieces of berth end between two UTF-8 characters.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memchr;

use super::Stream;
use crate::log::Timestamp;

/// The most bytes of a line that stand in one record, and that wait for the line's end.
pub(super) const MAX_PIECE: usize = 16 * 1024;

/// A stream's unfinished line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

/// A line without its newline, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) text: Cow<'a, [u8]>,
    /// Whether the line ends with it.
    pub(super) is_last: bool,
}

impl Lines {
    /// Takes the next piece from `bytes`; if there is none, what was left of them waits for more.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        let room = MAX_PIECE - self.pending.len();
        let near = &bytes[..bytes.len().min(room + 1)];
        if let Some(newline) = memchr(b'\n', near) {
            let text = self.join(&near[..newline]);
            *bytes = &bytes[newline + 1..];
            return Some(Piece { text, is_last: true });
        }
        if near.len() <= room {
            self.pending.extend_from_slice(near);
            *bytes = &[];
            return None;
        }
        let mut text = self.join(&near[..room]).into_owned();
        *bytes = &bytes[room..];
        self.pending = text.split_off(whole_characters(&text));
        Some(Piece { text: text.into(), is_last: false })
    }

    /// What the stream ends with, if that is no whole line.
    pub(super) fn end(&mut self) -> Option<Piece<'static>> {
        let text = std::mem::take(&mut self.pending);
        (!text.is_empty()).then(|| Piece { text: text.into(), is_last: false })
    }

    /// What was pending with `more` behind it.
    fn join<'a>(&mut self, more: &'a [u8]) -> Cow<'a, [u8]> {
        if self.pending.is_empty() {
            return more.into();
        }
        let mut text = std::mem::take(&mut self.pending);
        text.extend_from_slice(more);
        text.into()
    }
}

/// How many of the bytes are in front of a UTF-8 character that ends after them.
fn whole_characters(text: &[u8]) -> usize {
    let tail = text.len().saturating_sub(3)..text.len();
    let begun = tail.rev().find(|&at| !(0x80..0xC0).contains(&text[at]));
    begun
        .filter(|&at| {
            let length = match text[at] {
                0xC2..0xE0 => 2,
                0xE0..0xF0 => 3,
                0xF0..0xF5 => 4,
                _ => 1,
            };
            at + length > text.len()
        })
        .unwrap_or(text.len())
}

/// Stamps records with times that rise by at least a nanosecond each, so that a database of logs
/// keeps two equal lines and their order.
#[derive(Debug)]
pub(super) struct Clock {
    now: Duration,
    /// The text of the second `at`, up to the dot.
    text: String,
    at: Option<u64>,
}

impl Clock {
    /// A clock whose first record is of `now`.
    pub(super) fn new(now: SystemTime) -> Self {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { now, text: String::new(), at: None }
    }

    /// Writes the next record's time: RFC 3339 with nanoseconds, in UTC.
    fn stamp(&mut self, out: &mut Vec<u8>) {
        if self.at != Some(self.now.as_secs()) {
            self.at = Some(self.now.as_secs());
            self.text = Timestamp(UNIX_EPOCH + self.now).to_string();
            self.text.truncate(self.text.find('.').map_or(0, |dot| dot + 1));
        }
        out.extend_from_slice(self.text.as_bytes());
        let mut nanos = self.now.subsec_nanos();
        let mut digits = *b"000000000Z";
        for digit in digits[..9].iter_mut().rev() {
            *digit += (nanos % 10) as u8;
            nanos /= 10;
        }
        out.extend_from_slice(&digits);
        self.now += Duration::from_nanos(1);
    }
}

/// Adds a record of the format that kubelet reads: `TIME stdout F TEXT`, with `P` instead of `F` if the
/// line goes on. A carriage return before the newline is dropped, as containerd does.
pub(super) fn cri(out: &mut Vec<u8>, clock: &mut Clock, stream: Stream, piece: &Piece<'_>) {
    clock.stamp(out);
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if piece.is_last { b" F " } else { b" P " });
    let text = match piece.text.strip_suffix(b"\r") {
        Some(text) if piece.is_last => text,
        _ => &piece.text,
    };
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Adds a record of Docker's `json-file`: `{"log":"TEXT\n","stream":"stdout","time":"TIME"}`, without
/// `\n` in the text if the line goes on.
pub(super) fn json(out: &mut Vec<u8>, clock: &mut Clock, stream: Stream, piece: &Piece<'_>) {
    out.extend_from_slice(b"{\"log\":\"");
    for chunk in piece.text.utf8_chunks() {
        escape(out, chunk.valid().as_bytes());
        // One for each byte, as Go does.
        chunk.invalid().iter().for_each(|_| out.extend_from_slice("\u{FFFD}".as_bytes()));
    }
    out.extend_from_slice(if piece.is_last { b"\\n\",\"stream\":\"" } else { b"\",\"stream\":\"" });
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    clock.stamp(out);
    out.extend_from_slice(b"\"}\n");
}

/// Adds text inside of a JSON string.
fn escape(out: &mut Vec<u8>, mut text: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..0x20);
    while let Some(at) = text.iter().position(special) {
        out.extend_from_slice(&text[..at]);
        match text[at] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            // Into a vector it cannot fail.
            byte => drop(write!(out, "\\u{byte:04x}")),
        }
        text = &text[at + 1..];
    }
    out.extend_from_slice(text);
}

/// How many of `bytes` still go into a file, or 0 if it has to be rotated first. The file has `size`
/// bytes, the last `line` of which are a line that `bytes` go on with; it is to have `max` at most.
///
/// A line stays in one file: it is begun in a new one where it does not fit, and a file passes `max`
/// only to end the line that it was in the middle of, or by a single line that is alone in it. Only a
/// line of more than `longest` bytes is cut there.
pub(super) fn fits(bytes: &[u8], size: u64, line: u64, max: u64, longest: u64) -> usize {
    let within = |bound: u64| usize::try_from(bound).unwrap_or(usize::MAX).min(bytes.len());
    let room = within(max.saturating_sub(size));
    if room == bytes.len() {
        return room;
    }
    if let Some(newline) = memchr::memrchr(b'\n', &bytes[..room]) {
        return newline + 1;
    }
    if line == 0 && size > 0 {
        return 0;
    }
    let end = memchr(b'\n', bytes).map_or(bytes.len(), |newline| newline + 1);
    end.min(within(longest.saturating_sub(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for mut bytes in chunks.iter().copied() {
            while let Some(piece) = lines.next(&mut bytes) {
                found.push((piece.text.into_owned(), piece.is_last));
            }
            assert!(lines.pending.len() <= MAX_PIECE);
        }
        found.extend(lines.end().map(|piece| (piece.text.into_owned(), piece.is_last)));
        assert_eq!(lines.pending.capacity(), 0);
        found
    }

    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, bool)]);

    #[test]
    fn lines_are_cut_at_16_kib_and_marked() {
        let full = "x".repeat(MAX_PIECE);
        let over = format!("{full}y");
        let cases: [Case<'_>; 10] = [
            ("nothing", &[""], &[]),
            ("lines", &["a\n\nb\n"], &[("a", true), ("", true), ("b", true)]),
            ("in steps", &["a", "b", "\nc", "\n"], &[("ab", true), ("c", true)]),
            ("no newline", &["a\nb"], &[("a", true), ("b", false)]),
            ("just fits", &[&full, "\n"], &[(&full, true)]),
            ("just fits at once", &[&format!("{full}\n")], &[(&full, true)]),
            ("just fits at the end", &[&full], &[(&full, false)]),
            ("one more", &[&over, "\n"], &[(&full, false), ("y", true)]),
            ("one more later", &[&full, "y\n"], &[(&full, false), ("y", true)]),
            ("two more", &[&full, &full, "y"], &[(&full, false), (&full, false), ("y", false)]),
        ];
        for (name, chunks, expected) in cases {
            let chunks: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
            let expected: Vec<_> =
                expected.iter().map(|(text, end)| (text.as_bytes().to_vec(), *end)).collect();
            assert_eq!(pieces(&chunks), expected, "{name}");
        }
    }

    #[test]
    fn pieces_end_between_characters() {
        for (name, character, expected) in [
            ("ascii", "x".as_bytes(), MAX_PIECE),
            ("two", "é".as_bytes(), MAX_PIECE - 1),
            ("three", "€".as_bytes(), MAX_PIECE - 1),
            ("four", "🦀".as_bytes(), MAX_PIECE - 1),
            ("never begun", b"\x80", MAX_PIECE),
            ("no UTF-8", b"\xff", MAX_PIECE),
        ] {
            let mut text = vec![b'x'; MAX_PIECE - 1];
            text.extend(character.repeat(3));
            let found = pieces(&[&text]);
            assert_eq!(found[0].0.len(), expected, "{name}");
            let all: Vec<u8> = found.into_iter().flat_map(|(text, _)| text).collect();
            assert_eq!(all, text, "{name}");
        }
    }

    fn clock() -> Clock {
        Clock::new(UNIX_EPOCH + Duration::new(1_795_334_400, 999_999_999))
    }

    #[test]
    fn records_of_cri_are_those_of_containerd() {
        let mut out = Vec::new();
        let mut clock = clock();
        let cases: [(&[u8], bool, Stream); 4] = [
            (b"text\r", true, Stream::Stdout),
            (b"part\r", false, Stream::Stderr),
            (b"", true, Stream::Stderr),
            (b"\xff \"\r\r", true, Stream::Stdout),
        ];
        for (text, is_last, stream) in cases {
            cri(&mut out, &mut clock, stream, &Piece { text: text.into(), is_last });
        }
        let expected = b"2026-11-22T08:00:00.999999999Z stdout F text\n\
            2026-11-22T08:00:01.000000000Z stderr P part\r\n\
            2026-11-22T08:00:01.000000001Z stderr F \n\
            2026-11-22T08:00:01.000000002Z stdout F \xff \"\r\n";
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(expected));
    }

    #[test]
    fn records_of_json_file_are_those_of_docker() {
        let cases: [(&[u8], bool, &str); 7] = [
            (b"text", true, r#""text\n""#),
            (b"part", false, r#""part""#),
            (b"", true, r#""\n""#),
            (b"\"\\/ \t\r\x1b\x7f", true, "\"\\\"\\\\/ \\t\\r\\u001b\x7f\\n\""),
            ("ä€🦀".as_bytes(), true, "\"ä€🦀\\n\""),
            (
                b"a\xffb\xe2\x82c\xf0\x80",
                true,
                "\"a\u{fffd}b\u{fffd}\u{fffd}c\u{fffd}\u{fffd}\\n\"",
            ),
            (b"\0", false, r#""\u0000""#),
        ];
        for (text, is_last, expected) in cases {
            let mut out = Vec::new();
            json(&mut out, &mut clock(), Stream::Stderr, &Piece { text: text.into(), is_last });
            let time = "2026-11-22T08:00:00.999999999Z";
            let expected =
                format!("{{\"log\":{expected},\"stream\":\"stderr\",\"time\":\"{time}\"}}\n");
            assert_eq!(String::from_utf8_lossy(&out), expected);
            let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let log = parsed["log"].as_str().unwrap();
            assert_eq!(log.ends_with('\n'), is_last, "{log:?}");
        }
    }

    #[test]
    fn a_rotation_splits_only_a_line_that_is_longer_than_a_file() {
        const MANY: u64 = u64::MAX;
        type Case<'a> = (&'a str, &'a [u8], u64, u64, u64, usize);
        let cases: [Case<'_>; 14] = [
            ("room for all", b"ab\ncd\n", 4, 0, 10, 6),
            ("room for a line", b"ab\ncd\n", 5, 0, 10, 3),
            ("room for all but the newline", b"abcd\n", 6, 0, 10, 0),
            ("full", b"a\n", 10, 0, 10, 0),
            ("too full, as others write too", b"a\n", 20, 0, 10, 0),
            ("a begun line ends", b"abcd\nef\n", 8, 3, 10, 5),
            ("a begun line goes on", b"abcd", 8, 3, 10, 4),
            ("a begun line gets too long", b"abcdefghijk\n", 8, 3, 10, 7),
            ("a begun line is too long", b"abc", 10, 10, 10, 0),
            ("a long line", b"abcdefghijklm\n", 0, 0, 10, 10),
            ("a long line begins elsewhere", b"abcdefghijklm\n", 1, 0, 10, 0),
            ("its rest", b"klm\nn\nopqrstuv", 0, 0, 10, 6),
            ("no room for an unfinished line", b"ab", 9, 0, 10, 0),
            ("room for an unfinished line", b"ab", 8, 0, 10, 2),
        ];
        for (name, bytes, size, line, max, expected) in cases {
            assert_eq!(fits(bytes, size, line, max, max), expected, "{name}");
        }
        assert_eq!(fits(b"abcdefghijklm\nn\n", 0, 0, 10, MANY), 14, "a record is never cut");
        assert_eq!(fits(b"abcdefghijklm\nn\n", 1, 0, 10, MANY), 0, "and alone in its file");
    }
}
