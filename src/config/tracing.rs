//! The table `tracing`: whether spans are sent, where to, and which.

use std::collections::BTreeMap;
use std::env;

use serde::{Deserialize, Serialize};

use super::section::{Section, Setting};

/// What a collector's address is followed by, for spans.
const PATH: &str = "/v1/traces";

/// It is `true` where all is switched off.
pub(crate) const DISABLED: &str = "OTEL_SDK_DISABLED";

/// Keys, and the variable of OpenTelemetry that counts where a key is not set. Of two the first that is set.
const VARIABLES: [(&str, &str); 5] = [
    ("endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    ("endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("sampler", "OTEL_TRACES_SAMPLER"),
    ("ratio", "OTEL_TRACES_SAMPLER_ARG"),
    ("service_name", "OTEL_SERVICE_NAME"),
];

/// What the administrator decides; the environment says the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tracing {
    /// The collector; one that is empty switches tracing off.
    pub(crate) endpoint: Option<String>,
    /// Which traces are recorded.
    pub(crate) sampler: Option<Sampler>,
    /// The part of them that `traceidratio` records, 0 to 1.
    pub(crate) ratio: Option<f64>,
    /// How spans name this program.
    pub(crate) service_name: Option<String>,
    /// Sent with each request; may be secret.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Tracing {
    /// Whether the configuration itself names a collector.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|url| !url.is_empty())
    }

    /// What to say of it to whoever checks a file; `can_send` says whether this program was built with it.
    pub(super) fn remark(&self, can_send: bool) -> &'static str {
        match self.is_asked_for() && !can_send {
            true => "tracing: this berth was built without the feature otel and sends no spans\n",
            false => "",
        }
    }
}

/// Which traces are recorded, as OpenTelemetry names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sampler {
    /// Every one.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A part, by the trace's number.
    #[serde(rename = "traceidratio")]
    Ratio,
    /// As the caller does; all of those that have none.
    #[default]
    #[serde(rename = "parentbased_always_on")]
    ParentOrOn,
    /// As the caller does; none of those that have none.
    #[serde(rename = "parentbased_always_off")]
    ParentOrOff,
    /// As the caller does; a part of those that have none.
    #[serde(rename = "parentbased_traceidratio")]
    ParentOrRatio,
}

/// A collector that takes OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// An address, without brackets, or a name.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
}

impl Endpoint {
    /// Reads the address of a collector that takes more than spans, which have a path of their own there.
    ///
    /// # Errors
    /// What it must be; nothing of it is quoted, as it may hold a password.
    pub(crate) fn of_collector(url: &str) -> Result<Self, String> {
        let mut found = Self::parse(url)?;
        found.path = format!("{}{PATH}", found.path.trim_end_matches('/'));
        Ok(found)
    }

    /// Reads the address to which spans go as it is.
    ///
    /// # Errors
    /// As [`Endpoint::of_collector`].
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "must be http://HOST:PORT";
        let Some((scheme, rest)) = url.split_once("://") else { return Err(FORM.into()) };
        if scheme.eq_ignore_ascii_case("https") {
            let way = "name a collector that listens without it, such as one on this host";
            return Err(format!("https needs TLS, which berth does not have: {way}"));
        }
        let plain = |byte: u8| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'@' | b'?' | b'#');
        if !scheme.eq_ignore_ascii_case("http") || !rest.bytes().all(plain) {
            return Err(format!("{FORM}, without user, query or blanks"));
        }
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or(FORM)?)),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Ok(80), |port| port.parse::<u16>().map_err(|_| FORM))?;
        if host.is_empty() || port == 0 {
            return Err(FORM.into());
        }
        Ok(Self { host: host.into(), port, path: path.into() })
    }
}

/// Whether HTTP can carry a header; nothing of its value is quoted.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_header(name: &str, value: &str) -> Result<(), String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let ours = ["host", "content-length", "content-type", "connection", "transfer-encoding"];
    if name.is_empty() || !name.bytes().all(token) {
        return Err("is no name of an HTTP header".into());
    }
    if ours.iter().any(|other| name.eq_ignore_ascii_case(other)) {
        return Err("is a header that berth sets".into());
    }
    let visible = |byte: u8| byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
    if value.bytes().all(visible) { Ok(()) } else { Err("has control characters".into()) }
}

/// Reads the table `tracing`.
pub(super) fn tracing(top: &mut Section<'_>) -> Tracing {
    let table = top.take_table("tracing").unwrap_or_default();
    let mut section = top.section("tracing", table);
    let is_endpoint = |url: &String| match url.as_str() {
        "" => Ok(()),
        url => Endpoint::of_collector(url).map(drop),
    };
    let is_ratio = |ratio: &f64| match (0.0..=1.0).contains(ratio) {
        true => Ok(()),
        false => Err("must be between 0 and 1".into()),
    };
    let tracing = Tracing {
        endpoint: section.take_checked("endpoint", None, is_endpoint),
        sampler: section.take_checked("sampler", Some(Sampler::default()), |_| Ok(())),
        ratio: section.take_checked("ratio", Some(1.0), is_ratio),
        service_name: section
            .take_checked("service_name", Some("berth".into()), |_: &String| Ok(())),
        headers: section.take_texts("headers", check_header),
    };
    section.finish();
    tracing
}

/// Whether the name of a service is the one that containerd gives itself, in the environment that it hands on.
pub(crate) fn is_containerds(name: &str) -> bool {
    name == "containerd"
}

/// Shows what the environment says in the place of what the configuration leaves to it.
pub(super) fn show_environment(settings: &mut [Setting]) {
    show_variables(settings, |name| env::var(name).ok());
}

fn show_variables(settings: &mut [Setting], var: impl Fn(&str) -> Option<String>) {
    let is_off = var(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    for setting in settings.iter_mut().filter(|setting| setting.table == "tracing") {
        if is_off && setting.key == "endpoint" {
            setting.value = Some("".into());
            setting.place = Some(format!("environment variable {DISABLED}"));
        }
        if setting.place.is_some() {
            continue;
        }
        let variables = VARIABLES.iter().filter(|(key, _)| *key == setting.key);
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let mut found = variables.filter_map(|(_, name)| Some((name, set(name)?)));
        let Some((name, text)) = found.next() else { continue };
        if let Some(value) = value(&setting.key, text) {
            setting.value = Some(value);
            setting.place = Some(format!("environment variable {name}"));
        }
    }
}

/// What a variable makes of `key`; `None` if it is ignored there.
fn value(key: &str, text: String) -> Option<serde_json::Value> {
    match key {
        // What is none may have a password, and nothing is sent to it.
        "endpoint" if Endpoint::parse(&text).is_err() => Some("(not shown)".into()),
        "ratio" => {
            let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))?;
            Some(ratio.into())
        }
        "service_name" if is_containerds(&text) => None,
        _ => Some(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_is_a_host_that_is_reached_without_tls() {
        let found = |host: &str, port, path: &str| Ok((host.to_owned(), port, path.to_owned()));
        let cases = [
            ("http://127.0.0.1:4318", found("127.0.0.1", 4318, "/v1/traces")),
            ("http://127.0.0.1:4318/", found("127.0.0.1", 4318, "/v1/traces")),
            ("http://h:1/otlp/", found("h", 1, "/otlp/v1/traces")),
            ("HTTP://h", found("h", 80, "/v1/traces")),
            ("http://[::1]:4318", found("::1", 4318, "/v1/traces")),
            ("http://[::1]", found("::1", 80, "/v1/traces")),
            ("https://h:4318", Err("https needs TLS")),
            ("h:4318", Err("must be http://HOST:PORT")),
            ("grpc://h:4317", Err("must be http://HOST:PORT")),
            ("http://", Err("must be http://HOST:PORT")),
            ("http://:1", Err("must be http://HOST:PORT")),
            ("http://h:0", Err("must be http://HOST:PORT")),
            ("http://h:65536", Err("must be http://HOST:PORT")),
            ("http://[::1]1", Err("must be http://HOST:PORT")),
            ("http://u:s3cret@h", Err("without user")),
            ("http://h/a b", Err("blanks")),
            ("http://h/a\r\nX: y", Err("blanks")),
            ("http://h/?key=s3cret", Err("without user, query")),
        ];
        for (url, expected) in cases {
            match (Endpoint::of_collector(url), expected) {
                (Ok(Endpoint { host, port, path }), expected) => {
                    assert_eq!(Ok((host, port, path)), expected, "{url}");
                }
                (Err(why), Err(part)) => {
                    assert!(why.contains(part) && !why.contains("s3cret"), "{url}: {why}");
                }
                (Err(why), Ok(_)) => panic!("{url}: {why}"),
            }
        }
        assert_eq!(Endpoint::parse("http://h:1/x").unwrap().path, "/x");
    }

    #[test]
    fn who_checks_a_file_hears_that_it_asks_for_too_much() {
        let at = |url: &str| Tracing { endpoint: Some(url.into()), ..Tracing::default() };
        assert!(at("http://h").remark(false).contains("without the feature otel"));
        for quiet in [at("http://h").remark(true), at("").remark(false)] {
            assert_eq!(quiet, "");
        }
        assert_eq!(Tracing::default().remark(false), "");
    }

    #[test]
    fn the_environment_is_shown_as_far_as_it_counts() {
        let endpoints = [VARIABLES[0].1, VARIABLES[1].1];
        let cases = [
            ("endpoint", endpoints[1], "http://h:1", Some(json!("http://h:1"))),
            ("endpoint", endpoints[0], "http://h:1/x", Some(json!("http://h:1/x"))),
            ("endpoint", endpoints[1], "http://u:s3cret@h", Some(json!("(not shown)"))),
            ("endpoint", endpoints[1], "http://h/?key=s3cret", Some(json!("(not shown)"))),
            ("endpoint", endpoints[1], "", None),
            ("ratio", "OTEL_TRACES_SAMPLER_ARG", "0.25", Some(json!(0.25))),
            ("ratio", "OTEL_TRACES_SAMPLER_ARG", "some", None),
            ("sampler", "OTEL_TRACES_SAMPLER", "always_off", Some(json!("always_off"))),
            ("service_name", "OTEL_SERVICE_NAME", "x", Some(json!("x"))),
            ("service_name", "OTEL_SERVICE_NAME", "containerd", None),
        ];
        for (key, name, text, expected) in cases {
            let place = expected.as_ref().map(|_| format!("environment variable {name}"));
            let setting = |value, place| Setting {
                table: "tracing".into(),
                key: key.into(),
                value: Some(value),
                place,
            };
            let var = |asked: &str| (asked == name).then(|| text.to_owned());
            let default = || json!("default");
            let mut shown = [setting(default(), None), setting(default(), Some("x:1".into()))];
            show_variables(&mut shown, var);
            let own = setting(default(), Some("x:1".into()));
            assert_eq!(shown, [setting(expected.unwrap_or_else(default), place), own], "{text}");
            show_variables(&mut shown, |asked| (asked == DISABLED).then(|| "True".to_owned()));
            let is_off = shown.iter().all(|one| one.value == Some(json!("")));
            assert_eq!(is_off, key == "endpoint", "{key}");
        }
    }

    #[test]
    fn a_header_ends_where_it_ends() {
        let cases = [
            ("authorization", "Bearer x", true),
            ("x-é", "y", false),
            ("", "y", false),
            ("a b", "y", false),
            ("a", "y\r\nb: z", false),
            ("Content-Length", "1", false),
        ];
        for (name, value, valid) in cases {
            assert_eq!(check_header(name, value).is_ok(), valid, "{name:?}: {value:?}");
        }
    }
}
