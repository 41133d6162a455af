//! See [`crate::fuzz`].

use std::time::SystemTime;

use super::format::{self, Clock, Lines, MAX_PIECE};
use super::uri::Target;
use super::{StdioSpec, Stream};

/// A refusal says why; whatever the answer, it is the same for the stream's check.
pub(crate) fn uri(text: &str) {
    match Target::parse(text) {
        Ok(target) => assert_eq!(Target::parse(text).as_ref(), Ok(&target)),
        Err(why) => assert!(!why.is_empty()),
    }
    let stdio =
        StdioSpec { stdin: text.into(), stdout: text.into(), stderr: text.into(), terminal: false };
    let _ = stdio.check();
}

/// However output is cut, its records are legible and hold all of it.
pub(crate) fn records(data: &[u8]) {
    let Some((&size, data)) = data.split_first() else { return };
    let (mut lines, mut whole) = (Lines::default(), Vec::new());
    let mut clock = Clock::new(SystemTime::UNIX_EPOCH);
    let mut take = |piece: &format::Piece<'_>| {
        assert!(piece.text.len() <= MAX_PIECE);
        whole.extend_from_slice(&piece.text);
        whole.extend(piece.is_last.then_some(b'\n'));
        let mut record = Vec::new();
        format::json(&mut record, &mut clock, Stream::Stdout, piece);
        assert!(serde_json::from_slice::<serde_json::Value>(&record).is_ok());
        record.clear();
        format::cri(&mut record, &mut clock, Stream::Stderr, piece);
        assert_eq!(record.last(), Some(&b'\n'));
    };
    for mut chunk in data.chunks(usize::from(size) * 97 + 1) {
        while let Some(piece) = lines.next(&mut chunk) {
            take(&piece);
        }
    }
    if let Some(piece) = lines.end() {
        take(&piece);
    }
    assert!(whole == data);
}
