//! See [`crate::fuzz`].

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::format::{self, Clock, Lines, MAX_PIECE};
use super::uri::Target;
use super::{StdioSpec, Stream, logger};

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

/// A logger's start: which version of the protocol (the first byte), the query of its URI up to a line's
/// end, and what it says on descriptor 5. The query's pairs become arguments one by one, whatever they are.
pub(crate) fn logger(data: &[u8]) {
    let Some((&version, data)) = data.split_first() else { return };
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let query = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let said = parts.next().unwrap_or_default();
    let scheme = if version & 1 == 0 { "binary" } else { "binary-v2" };
    let parse = |query: &str| match Target::parse(&format!("{scheme}:///bin/logger?{query}")) {
        Ok(Target::Logger(target)) => Some(target),
        _ => None,
    };
    let target = parse(&query);
    let arguments = target.as_ref().map(|target| target.args.clone()).unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).count();
    assert_eq!(arguments.len(), 2 * pairs, "{query:?}");
    assert!(target.is_some_and(|target| {
        target.program.as_os_str() == "/bin/logger" && target.says_ready == (version & 1 == 1)
    }));
    let encode = |text: &OsString| percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
    let pairs: Vec<_> = arguments
        .chunks(2)
        .map(|pair| format!("{}={}", encode(&pair[0]), encode(&pair[1])))
        .collect();
    assert_eq!(parse(&pairs.join("&")).map(|again| again.args), Some(arguments));
    if let Ok(ready) = logger::says_ready(said) {
        assert_eq!(ready, !said.is_empty(), "one byte, whichever, is the word");
    }
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
