use std::future::Future;

use prost::Message;

use super::*;

const CALLER: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

fn tracing(endpoint: &str, sampler: &str) -> Tracing {
    let sampler = serde_json::from_value(sampler.into()).unwrap();
    Tracing { endpoint: Some(endpoint.into()), sampler: Some(sampler), ..Tracing::default() }
}

/// Runs what spawns tasks of its own, none of which comes to its turn.
fn alone<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// The spans that wait, and whether each is below a caller's.
fn waiting(tracer: &Tracer) -> Vec<(String, u32)> {
    let spans = tracer.0.queue.take();
    let span = |bytes: Vec<u8>| proto::Span::decode(bytes.as_slice()).unwrap();
    spans.into_iter().map(span).map(|span| (span.name, span.flags)).collect()
}

#[test]
fn nothing_is_made_where_nothing_is_sent() {
    let tracer = Tracer::default();
    tracer.decide(&tracing("", "always_on"), "ns", "pod");
    let mut request = tracer.request(|| panic!("a name"), std::iter::empty());
    let span = tracer.span(Kind::Client, || panic!("a name"));
    request.set("key", Loud);
    assert!(!request.is_recorded() && !span.is_recorded() && tracer.0.root.get().is_none());
    assert_eq!(size_of::<Span>(), size_of::<usize>());
    let mut work = std::pin::pin!(async { CURRENT.try_with(|_| ()).is_err() });
    assert!(alone(request.around(work.as_mut())), "and nothing is below it");
}

struct Loud;

impl From<Loud> for Value {
    fn from(_: Loud) -> Self {
        panic!("a value")
    }
}

#[test]
fn what_began_early_is_recorded_as_its_caller_says() {
    let first = |flags: &str| Some(format!("00-{CALLER}-{flags}"));
    let second = |flags: &str| Some(format!("00-{}-{flags}", CALLER.replace('0', "1")));
    type Requests<'a> = &'a [(&'a str, Option<String>)];
    let on = "parentbased_always_on";
    let cases: [(_, _, Requests<'_>, &[&str]); 6] = [
        ("no caller", on, &[("a", None), ("b", None)], &["a", "b", "below"]),
        ("recorded", on, &[("a", first("01"))], &["a", "below"]),
        ("not recorded", on, &[("a", first("00"))], &[]),
        ("one of two", on, &[("a", first("01")), ("b", second("00"))], &["a"]),
        ("the later one", on, &[("a", None), ("b", second("00"))], &["a"]),
        ("all the same", "always_on", &[("a", first("00"))], &["a", "below"]),
    ];
    for (name, sampler, requests, expected) in cases {
        alone(async {
            let tracer = Tracer::default();
            let open = |(name, parent): &(&str, Option<String>)| {
                let metadata = parent.iter().map(|parent| ("traceparent", parent.as_str()));
                tracer.request(|| (*name).to_owned(), metadata)
            };
            let spans: Vec<Span> = requests.iter().map(open).collect();
            let tracing = tracing("http://127.0.0.1:9", sampler);
            let below = std::pin::pin!(async {
                tracer.decide(&tracing, "ns", "pod");
                drop(span(Kind::Internal, "below"));
            });
            spans.last().unwrap().around(below).await;
            drop(spans);
            let mut found = waiting(&tracer);
            found.sort();
            let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, expected, "{name}");
            assert!(found.iter().all(|(_, flags)| flags & 1 == 1), "{name}: they are recorded");
        });
    }
}

#[test]
fn before_it_is_known_little_is_kept_and_nothing_counts_as_lost() {
    let tracer = Tracer::default();
    for _ in 0..10_000 {
        drop(tracer.request(|| "request".into(), std::iter::empty()));
    }
    assert_eq!(tracer.counts(), (0, 0));
    let kept = waiting(&tracer).len();
    assert!((100..2000).contains(&kept), "{kept}");
}

#[test]
fn numbers_are_as_their_forms_have_it() {
    let ids = Ids::default();
    let all: Vec<String> = (0..100).map(|_| ids.uuid()).collect();
    for uuid in &all {
        let parts: Vec<&str> = uuid.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
        assert!(parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]), "{uuid}");
    }
    assert!(all.iter().all(|one| all.iter().filter(|other| *other == one).count() == 1));
    let others = Ids::default();
    assert_ne!(ids.trace(), others.trace());
    assert_ne!(ids.span(), others.span());
}
