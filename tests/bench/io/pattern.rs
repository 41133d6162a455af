//! The bytes that are written and expected: numbered lines, none like another for 1 MB.

/// A line's bytes.
const LINE: u64 = 100;
/// Lines until the first one comes again.
const LINES: u64 = 10_000;

/// A sequence without end.
pub(crate) struct Pattern {
    bytes: Vec<u8>,
    /// How long a line is.
    line: u64,
}

impl Pattern {
    /// As it is written, or as a terminal shows it, which ends a line with `\r\n`.
    pub(crate) fn new(terminal: bool) -> Self {
        let end = if terminal { "\r\n" } else { "\n" };
        let mut bytes = Vec::new();
        let mut state = 1_u32;
        for number in 0..LINES {
            bytes.extend_from_slice(format!("{number:05} ").as_bytes());
            for _ in 0..LINE - 7 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes.push(b'a' + (state >> 28) as u8);
            }
            bytes.extend_from_slice(end.as_bytes());
        }
        let line = bytes.len() as u64 / LINES;
        Self { bytes, line }
    }

    /// How long `written` bytes are here; whole lines, where that is another number.
    pub(crate) fn length(&self, written: u64) -> u64 {
        if self.line == LINE { written } else { written / LINE * self.line }
    }

    /// Whether `found` is what comes after `offset` bytes.
    pub(crate) fn holds(&self, offset: u64, mut found: &[u8]) -> bool {
        let mut start = self.place(offset);
        while !found.is_empty() {
            let count = found.len().min(self.bytes.len() - start);
            if found[..count] != self.bytes[start..start + count] {
                return false;
            }
            (found, start) = (&found[count..], 0);
        }
        true
    }

    /// The place of `offset` within the bytes until they begin anew.
    pub(crate) fn place(&self, offset: u64) -> usize {
        usize::try_from(offset % self.bytes.len() as u64).unwrap_or(0)
    }

    /// The bytes until they begin anew, and the `more` next ones.
    pub(crate) fn into_bytes(self, more: usize) -> Vec<u8> {
        let count = self.bytes.len() + more;
        self.bytes.into_iter().cycle().take(count).collect()
    }
}
