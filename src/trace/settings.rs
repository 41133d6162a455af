//! Where spans go and which: the configuration, and below it OpenTelemetry's [variables]. Pure.
//!
//! The environment is containerd's, with what its `shim.v1.manager` adds; containerd calls itself by
//! `OTEL_SERVICE_NAME`, which is not meant for those that it starts.
//!
//! [variables]: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::context::TraceId;
use super::otlp::Value;
use crate::config::{DISABLED, Endpoint, Sampler, Tracing, check_header, is_containerds};

/// How long one export may take, unless a variable says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// And at most.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// All that is decided once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) endpoint: Endpoint,
    pub(super) headers: Vec<(String, String)>,
    /// Attributes of all spans together.
    pub(super) resource: Vec<(String, String)>,
    pub(super) timeout: Duration,
    pub(super) rule: Rule,
    /// Variables that are not what they must be, and are as if they were not set.
    pub(super) ignored: Vec<&'static str>,
}

impl Settings {
    /// The attributes of all spans together: what is asked for, but for what only the process itself knows, its
    /// `own`; the name of the `host` if nobody names it otherwise.
    pub(super) fn resource(
        &self,
        own: Vec<(&'static str, Value)>,
        host: &str,
    ) -> Vec<(String, Value)> {
        const HOST: &str = "host.name";
        let is_named = self.resource.iter().any(|(key, _)| key == HOST);
        let host = (!is_named).then(|| (HOST, host.into()));
        let is_asked = |(key, _): &&(String, String)| own.iter().all(|(known, _)| key != known);
        let asked = self.resource.iter().filter(is_asked);
        let asked: Vec<_> =
            asked.map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        let own = own.into_iter().chain(host).map(|(key, value)| (key.to_owned(), value));
        asked.into_iter().chain(own).collect()
    }
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) sampler: Sampler,
    pub(super) ratio: f64,
}

impl Rule {
    /// Whether a trace is recorded here; `parent` says it of the caller, if there is one.
    pub(super) fn records(self, trace: &TraceId, parent: Option<bool>) -> bool {
        let [.., a, b, c, d, e, f, g, h] = *trace;
        // 63 bits, of which all programs that record a part take the same one.
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        let part = || number < (self.ratio * (1_u64 << 63) as f64) as u64;
        match (self.sampler, parent) {
            (Sampler::AlwaysOn, _) | (Sampler::ParentOrOn, None) => true,
            (Sampler::AlwaysOff, _) | (Sampler::ParentOrOff, None) => false,
            (Sampler::Ratio, _) | (Sampler::ParentOrRatio, None) => part(),
            (_, Some(parent)) => parent,
        }
    }
}

/// What `config` and the variables that `var` knows come to; `None` if spans are not wanted.
///
/// # Errors
/// Why none can be sent although they are wanted. Nothing that may be secret is in it.
pub(super) fn settings(
    config: &Tracing,
    var: impl Fn(&str) -> Option<String>,
) -> Result<Option<Settings>, String> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    let first =
        |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, var(name)?)));
    if var(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let endpoint = match &config.endpoint {
        Some(url) if url.is_empty() => return Ok(None),
        Some(url) => {
            Endpoint::of_collector(url).map_err(|why| format!("tracing.endpoint {why}"))?
        }
        None => {
            const ONE: [&str; 2] =
                ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
            let Some((name, url)) = first(ONE) else { return Ok(None) };
            match var("OTEL_TRACES_EXPORTER").as_deref() {
                None | Some("otlp") => {}
                Some("none") => return Ok(None),
                Some(other) => {
                    return Err(format!("OTEL_TRACES_EXPORTER = {other:?}: berth has otlp"));
                }
            }
            check_protocol(first([
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ]))?;
            let parse = if name == ONE[0] { Endpoint::parse } else { Endpoint::of_collector };
            parse(&url).map_err(|why| format!("{name} {why}"))?
        }
    };
    // Those of the environment may be a key to the collector that it names, and not to another.
    let headers = match config.headers.is_empty() && config.endpoint.is_none() {
        false => config.headers.clone().into_iter().collect(),
        true => first(["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"])
            .map_or(Ok(Vec::new()), |(name, list)| headers(name, &list))?,
    };
    let mut ignored = Vec::new();
    let timeout = first(["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"])
        .and_then(|(name, millis)| read(name, &millis, is_timeout, &mut ignored));
    let timeout = timeout.map_or(TIMEOUT, Duration::from_millis).min(LONGEST_TIMEOUT);
    let resource = resource(config, var, &mut ignored);
    let rule = rule(config, var, &mut ignored)?;
    Ok(Some(Settings { endpoint, headers, resource, timeout, rule, ignored }))
}

/// A variable's value, unless that is to be ignored.
fn read<T: FromStr>(
    name: &'static str,
    text: &str,
    is_valid: impl Fn(&T) -> bool,
    ignored: &mut Vec<&'static str>,
) -> Option<T> {
    let value = text.parse().ok().filter(is_valid);
    if value.is_none() {
        ignored.push(name);
    }
    value
}

fn is_timeout(millis: &u64) -> bool {
    *millis > 0
}

fn check_protocol(found: Option<(&str, String)>) -> Result<(), String> {
    match found {
        Some((name, value)) if value != "http/protobuf" => {
            Err(format!("{name} = {value:?}: berth speaks http/protobuf and nothing else"))
        }
        _ => Ok(()),
    }
}

fn headers(name: &str, list: &str) -> Result<Vec<(String, String)>, String> {
    let headers = pairs(list).ok_or_else(|| format!("{name} is no list of key=value"))?;
    for (header, value) in &headers {
        check_header(header, value).map_err(|why| format!("{name}: one {why}"))?;
    }
    Ok(headers)
}

/// Each key once: of several values the last one.
fn resource(
    config: &Tracing,
    var: impl Fn(&str) -> Option<String>,
    ignored: &mut Vec<&'static str>,
) -> Vec<(String, String)> {
    const NAME: &str = "service.name";
    const LIST: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let list = var(LIST).unwrap_or_default();
    let found = pairs(&list).unwrap_or_else(|| {
        ignored.push(LIST);
        Vec::new()
    });
    let mut resource: Vec<(String, String)> = Vec::with_capacity(found.len() + 1);
    for pair in found {
        resource.retain(|(key, _)| *key != pair.0);
        resource.push(pair);
    }
    let own = var("OTEL_SERVICE_NAME").filter(|name| !is_containerds(name));
    let name = config.service_name.clone().or(own);
    if let Some(name) = name {
        resource.retain(|(key, _)| key != NAME);
        resource.push((NAME.into(), name));
    } else if !resource.iter().any(|(key, _)| key == NAME) {
        resource.push((NAME.into(), "berth".into()));
    }
    resource
}

fn rule(
    config: &Tracing,
    var: impl Fn(&str) -> Option<String>,
    ignored: &mut Vec<&'static str>,
) -> Result<Rule, String> {
    const PART: &str = "OTEL_TRACES_SAMPLER_ARG";
    let word = |word: String| {
        serde_json::from_value(word.as_str().into())
            .map_err(|_| format!("OTEL_TRACES_SAMPLER = {word:?}: berth does not have it"))
    };
    let asked = var("OTEL_TRACES_SAMPLER").filter(|_| config.sampler.is_none()).map(word);
    let sampler = config.sampler.or(asked.transpose()?).unwrap_or_default();
    let is_part = |ratio: &f64| (0.0..=1.0).contains(ratio);
    let ratio = config.ratio.or_else(|| read(PART, &var(PART)?, is_part, ignored));
    Ok(Rule { sampler, ratio: ratio.unwrap_or(1.0) })
}

/// `key=value,key=value`, with what needs it as `%20`; `None` if it is something else.
fn pairs(list: &str) -> Option<Vec<(String, String)>> {
    let decode =
        |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((decode(key).filter(|key| !key.is_empty())?, decode(value)?))
    };
    list.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &Tracing, vars: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let var = |name: &str| vars.iter().find(|(key, _)| *key == name);
        settings(config, |name| var(name).map(|(_, value)| (*value).to_owned()))
    }

    fn at(endpoint: &str) -> Tracing {
        Tracing { endpoint: Some(endpoint.into()), ..Tracing::default() }
    }

    #[test]
    fn the_configuration_wins_over_the_environment() {
        const ANY: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:1");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let off = ("OTEL_SDK_DISABLED", "TRUE");
        let none = Tracing::default();
        type Found = Result<Option<&'static str>, &'static str>;
        let cases: [(_, &Tracing, &[_], Found); 16] = [
            ("nothing", &none, &[], Ok(None)),
            ("configured", &at("http://file:1"), &[ANY], Ok(Some("file /v1/traces"))),
            ("configured off", &at(""), &[ANY], Ok(None)),
            ("environment", &none, &[ANY], Ok(Some("env /v1/traces"))),
            (
                "of spans alone",
                &none,
                &[ANY, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:1")],
                Ok(Some("own /")),
            ),
            ("empty", &none, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], Ok(None)),
            ("disabled", &none, &[ANY, off], Ok(None)),
            ("disabled, all", &at("http://file:1"), &[off], Ok(None)),
            ("not disabled", &none, &[ANY, (off.0, "0")], Ok(Some("env /v1/traces"))),
            ("no exporter", &none, &[ANY, ("OTEL_TRACES_EXPORTER", "none")], Ok(None)),
            (
                "other exporter",
                &none,
                &[ANY, ("OTEL_TRACES_EXPORTER", "zipkin")],
                Err("berth has otlp"),
            ),
            ("protocol", &none, &[ANY, grpc], Err("berth speaks http/protobuf")),
            ("protocol of others", &at("http://file:1"), &[grpc], Ok(Some("file /v1/traces"))),
            ("protocol of nobody", &none, &[grpc], Ok(None)),
            (
                "TLS",
                &none,
                &[(ANY.0, "https://h:1")],
                Err("OTEL_EXPORTER_OTLP_ENDPOINT https needs TLS"),
            ),
            (
                "sampler",
                &none,
                &[ANY, ("OTEL_TRACES_SAMPLER", "xray")],
                Err("\"xray\": berth does not"),
            ),
        ];
        for (name, config, vars, expected) in cases {
            let found = of(config, vars).map(|found| {
                found
                    .map(|Settings { endpoint, .. }| format!("{} {}", endpoint.host, endpoint.path))
            });
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{name}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{name}: {why}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }

    #[test]
    fn details_come_from_both() {
        let vars = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, b=1,"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=other"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let found = of(&at("http://h"), &vars).unwrap().unwrap();
        assert_eq!(found.headers, [], "the keys of another collector");
        let with_endpoint = [&vars[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h")]].concat();
        let own = of(&Tracing::default(), &with_endpoint).unwrap().unwrap();
        assert_eq!(own.headers, [("authorization", "Bearer x"), ("b", "1")].map(pair));
        let environment = ("deployment.environment", "test");
        assert_eq!(found.resource, [environment, ("service.name", "other")].map(pair));
        assert_eq!(found.timeout, Duration::from_millis(250));
        assert_eq!(found.rule, Rule { sampler: Sampler::Ratio, ratio: 0.25 });

        let named = |value| of(&at("http://h"), &[("OTEL_SERVICE_NAME", value)]).unwrap().unwrap();
        assert_eq!(named("x").resource, [("service.name", "x")].map(pair));
        assert_eq!(named("containerd").resource, [("service.name", "berth")].map(pair));
        let config = Tracing {
            service_name: Some("own".into()),
            sampler: Some(Sampler::AlwaysOff),
            headers: [pair(("c", "2"))].into(),
            ..at("http://h")
        };
        let found = of(&config, &vars).unwrap().unwrap();
        assert_eq!(found.headers, [("c", "2")].map(pair));
        assert_eq!(found.resource, [environment, ("service.name", "own")].map(pair));
        assert_eq!(found.rule, Rule { sampler: Sampler::AlwaysOff, ratio: 0.25 });
    }

    #[test]
    fn a_resource_has_each_key_once() {
        let list = "host.name=other,process.pid=1,service.version=x,service.version=y,k=v";
        let found = of(&at("http://h"), &[("OTEL_RESOURCE_ATTRIBUTES", list)]).unwrap().unwrap();
        let plain = of(&at("http://h"), &[]).unwrap().unwrap();
        let texts = |settings: &Settings| -> Vec<String> {
            let pairs = settings.resource(vec![("process.pid", 7.into())], "own");
            let text = |(key, value): (String, Value)| match value {
                Value::Text(text) => format!("{key}={text}"),
                Value::Number(number) => format!("{key}={number}"),
            };
            pairs.into_iter().map(text).collect()
        };
        let asked = ["host.name=other", "service.version=y", "k=v", "service.name=berth"];
        assert_eq!(texts(&found), [&asked[..], &["process.pid=7"]].concat());
        assert_eq!(texts(&plain), ["service.name=berth", "process.pid=7", "host.name=own"]);
    }

    #[test]
    fn what_is_not_understood_is_ignored_and_named() {
        let sampler = "OTEL_TRACES_SAMPLER_ARG";
        let (timeout, resource) = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_RESOURCE_ATTRIBUTES");
        let cases = [
            (sampler, "0.5", None),
            (sampler, "half", Some(sampler)),
            (sampler, "1.5", Some(sampler)),
            (sampler, "nan", Some(sampler)),
            (timeout, "1", None),
            (timeout, "0", Some(timeout)),
            (timeout, "10s", Some(timeout)),
            (resource, "a=1,a=2,b=%20", None),
            (resource, "a=1,b", Some(resource)),
        ];
        for (name, value, ignored) in cases {
            let found = of(&at("http://h"), &[(name, value)]).unwrap().unwrap();
            assert_eq!(found.ignored, Vec::from_iter(ignored), "{name}={value}");
            let keys = found.resource.iter().filter(|(key, _)| key == "a").count();
            assert_eq!(keys, usize::from(value.starts_with("a=1,a=2")), "{name}={value}");
            if ignored.is_some() {
                assert_eq!((found.timeout, found.rule.ratio), (TIMEOUT, 1.0), "{name}={value}");
            }
        }
    }

    #[test]
    fn a_bad_header_is_not_quoted() {
        for list in ["s3cret", "a=s3cret%0d%0ab: c", "=s3cret", "a b=s3cret", "a=s3cret%ff"] {
            let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h");
            let vars = [endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", list)];
            let why = of(&Tracing::default(), &vars).unwrap_err();
            assert!(why.contains("OTEL_EXPORTER_OTLP_HEADERS") && !why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn a_sampler_asks_the_caller_or_the_number() {
        let low = [0; 16];
        let high = [0xff; 16];
        let rule = |sampler| Rule { sampler, ratio: 0.5 };
        let cases = [
            (Sampler::AlwaysOn, [true, true, true, true]),
            (Sampler::AlwaysOff, [false, false, false, false]),
            (Sampler::Ratio, [true, false, true, true]),
            (Sampler::ParentOrOn, [true, true, true, false]),
            (Sampler::ParentOrOff, [false, false, true, false]),
            (Sampler::ParentOrRatio, [true, false, true, false]),
        ];
        for (sampler, expected) in cases {
            let rule = rule(sampler);
            let found = [
                rule.records(&low, None),
                rule.records(&high, None),
                rule.records(&low, Some(true)),
                rule.records(&low, Some(false)),
            ];
            assert_eq!(found, expected, "{sampler:?}");
        }
        let all = Rule { sampler: Sampler::Ratio, ratio: 1.0 };
        let none = Rule { sampler: Sampler::Ratio, ratio: 0.0 };
        assert!(all.records(&high, None) && !none.records(&low, None));
    }
}
