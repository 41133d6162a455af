//! W3C Trace Context: what tells a span of another program, as text. Pure.
//!
//! containerd [writes] `traceparent` and `tracestate` into the metadata of a ttrpc request, in lower case and
//! once each; of several the first counts, as it does to containerd. [Trace Context] says what is valid.
//!
//! [writes]: https://github.com/containerd/otelttrpc/blob/main/metadata_supplier.go
//! [Trace Context]: https://www.w3.org/TR/trace-context/

use std::rc::Rc;

/// The metadata that names the caller's span.
pub(crate) const TRACE_PARENT: &str = "traceparent";
/// The metadata with what vendors say about the trace.
pub(crate) const TRACE_STATE: &str = "tracestate";

/// Bytes of a `tracestate` that are handed on; a longer one is left out whole.
const LONGEST_STATE: usize = 512;
/// Members of a `tracestate`, at most.
const MOST_MEMBERS: usize = 32;

/// A trace's number; never zero.
pub(super) type TraceId = [u8; 16];
/// A span's number; never zero.
pub(super) type SpanId = [u8; 8];

/// What names a span to those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    /// Whether it is recorded, and those below it with it.
    pub(super) sampled: bool,
    /// `tracestate`, as it came.
    pub(super) state: Rc<str>,
}

impl Context {
    /// Reads a `traceparent` and the `tracestate` beside it. An invalid state is left out, an invalid parent
    /// is none.
    pub(crate) fn parse(parent: &str, state: &str) -> Option<Self> {
        let mut parts = parent.splitn(5, '-');
        let [version] = hex(parts.next()?)?;
        let trace: TraceId = hex(parts.next()?)?;
        let span: SpanId = hex(parts.next()?)?;
        let [flags] = hex(parts.next()?)?;
        let has_more = parts.next().is_some(); // a later version may have, which begins with the same
        if version == 0xff || (version == 0 && has_more) || trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let state = if is_state(state) { state.trim_matches([' ', '\t']) } else { "" };
        Some(Self { trace, span, sampled: flags & 1 == 1, state: state.into() })
    }

    /// The context that the metadata of a request name.
    pub(crate) fn of<'a>(
        metadata: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Option<Self> {
        let value =
            |key: &str| metadata.clone().find(|(found, _)| *found == key).map(|(_, value)| value);
        Self::parse(value(TRACE_PARENT)?, value(TRACE_STATE).unwrap_or_default())
    }
}

/// So many bytes in lower case hexadecimal digits, no more and no fewer.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Whether a text is a `tracestate`: members `key=value`, each key once.
fn is_state(text: &str) -> bool {
    if text.len() > LONGEST_STATE {
        return false;
    }
    let members = text.split(',').map(|member| member.trim_matches([' ', '\t']));
    let members = members.filter(|member| !member.is_empty());
    let mut keys = Vec::new();
    for member in members {
        let Some((key, value)) = member.split_once('=') else { return false };
        if keys.len() == MOST_MEMBERS || keys.contains(&key) || !is_key(key) || !is_value(value) {
            return false;
        }
        keys.push(key);
    }
    true
}

fn is_key(key: &str) -> bool {
    let other = |byte: &u8| matches!(byte, b'_' | b'-' | b'*' | b'/');
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || other(&byte);
    let part =
        |part: &str, most: usize| (1..=most).contains(&part.len()) && part.bytes().all(plain);
    let starts = |part: &str| part.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    match key.split_once('@') {
        None => part(key, 256) && starts(key),
        Some((tenant, system)) => part(tenant, 241) && part(system, 14) && starts(system),
    }
}

fn is_value(value: &str) -> bool {
    let printable = |byte: u8| matches!(byte, 0x20..=0x7e) && byte != b',' && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(printable) && !value.ends_with(' ')
}

/// A `traceparent`, and a `tracestate` on the next line.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (parent, state) = text.split_once('\n').unwrap_or((text, ""));
    let Some(context) = Context::parse(parent, state) else { return };
    assert!(context.trace != [0; 16] && context.span != [0; 8]);
    assert!(context.state.len() <= LONGEST_STATE && context.state.is_ascii());
    let written = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(&parent[3..35], written(&context.trace));
    assert_eq!(&parent[36..52], written(&context.span));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_parent_is_valid_or_none() {
        let plain = format!("00-{TRACE}-{SPAN}-01");
        let cases = [
            ("plain", plain.clone(), Some(true)),
            ("not sampled", format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            ("other flags", format!("00-{TRACE}-{SPAN}-fe"), Some(false)),
            ("later version", format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            ("later version with more", format!("cc-{TRACE}-{SPAN}-01-what-ever"), Some(true)),
            ("more", format!("{plain}-x"), None),
            ("an end too many", format!("{plain}-"), None),
            ("invalid version", format!("ff-{TRACE}-{SPAN}-01"), None),
            ("upper case", plain.to_uppercase(), None),
            ("no trace", format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            ("no span", format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            ("short trace", format!("00-{}-{SPAN}-01", &TRACE[1..]), None),
            ("long span", format!("00-{TRACE}-{SPAN}0-01"), None),
            ("long flags", format!("00-{TRACE}-{SPAN}-011"), None),
            ("no digit", format!("00-{TRACE}-{SPAN}-0g"), None),
            ("no flags", format!("00-{TRACE}-{SPAN}"), None),
            ("blank", format!(" {plain}"), None),
            ("no ASCII", format!("00-{TRACE}-{SPAN}-0é"), None),
            ("empty", String::new(), None),
        ];
        for (name, text, sampled) in cases {
            let found = Context::parse(&text, "");
            assert_eq!(found.as_ref().map(|found| found.sampled), sampled, "{name}");
            if let Some(found) = found {
                assert_eq!((found.trace[0], found.trace[15]), (0x0a, 0x9c), "{name}");
                assert_eq!((found.span[0], found.span[7]), (0xb7, 0x31), "{name}");
            }
            fuzz(&text);
        }
    }

    #[test]
    fn a_state_is_handed_on_or_left_out() {
        let many = |count| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        let cases = [
            ("none", String::new(), true),
            ("one", "rojo=00f067aa0ba902b7".into(), true),
            ("two, blanks between", "a=1 ,\tb=2".into(), true),
            ("empty members", "a=1,,b=2,".into(), true),
            ("tenant", "fw529a3039@dt=FfAaBbCc".into(), true),
            ("digit first in a tenant", "0x@dt=1".into(), true),
            ("all that fit", many(32), true),
            ("too many", many(33), false),
            ("twice", "a=1,a=2".into(), false),
            ("no value", "a".into(), false),
            ("empty value", "a=".into(), false),
            ("two values", "a=1=2".into(), false),
            ("upper case key", "A=1".into(), false),
            ("digit first", "0a=1".into(), false),
            ("no ASCII", "a=é".into(), false),
            ("control", "a=\u{1}".into(), false),
            ("too long", format!("a={},b={}", "v".repeat(256), "v".repeat(256)), false),
        ];
        for (name, text, valid) in cases {
            let parent = format!("00-{TRACE}-{SPAN}-01");
            let found = Context::parse(&parent, &text).unwrap();
            assert_eq!(&*found.state, if valid { text.as_str() } else { "" }, "{name}");
            fuzz(&format!("{parent}\n{text}"));
        }
    }

    #[test]
    fn of_several_the_first_counts() {
        let parent = |end: &str| format!("00-{TRACE}-{SPAN}-{end}");
        let (first, second) = (parent("01"), parent("00"));
        let plain = [("traceparent", first.as_str()), ("traceparent", second.as_str())];
        let found = |metadata: &[(&str, &str)]| {
            Context::of(metadata.iter().copied())
                .map(|found| (found.sampled, found.state.to_string()))
        };
        assert_eq!(found(&plain), Some((true, String::new())));
        let state = [("tracestate", "a=1"), ("x", "y"), ("traceparent", second.as_str())];
        assert_eq!(found(&state), Some((false, "a=1".into())));
        assert_eq!(found(&[("Traceparent", first.as_str())]), None);
        assert_eq!(found(&[("traceparent", "junk"), ("traceparent", first.as_str())]), None);
        assert_eq!(found(&[]), None);
    }
}
