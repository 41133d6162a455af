//! Mounts that a container has of its pod, put into its config.json.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::bundle::{Bundle, Config};
use crate::error::Result;

/// Something of a pod that its containers find in the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedMount {
    /// Where in the container.
    pub(crate) destination: String,
    /// Where on the host.
    pub(crate) source: PathBuf,
    /// It can be written to only if the container's root directory can.
    pub(crate) follows_root: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Existing {
    destination: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Root {
    readonly: bool,
}

impl Bundle {
    /// Adds mounts to config.json, where the container has none in the place. A tmpfs is none:
    /// such a `/dev/shm` is what every container gets that has no other.
    ///
    /// # Errors
    /// As [`Bundle::annotate`].
    pub(crate) fn share(&self, shared: &[SharedMount]) -> Result<()> {
        self.rewrite(|config| add(config, shared))
    }
}

fn add(config: &mut Config, shared: &[SharedMount]) -> serde_json::Result<()> {
    let field = |name: &str| config.get(name).map_or("null", |value| value.get());
    let root: Option<Root> = serde_json::from_str(field("root"))?;
    let read_only = root.unwrap_or_default().readonly;
    let mounts: Option<Vec<Box<RawValue>>> = serde_json::from_str(field("mounts"))?;
    let mut mounts = mounts.unwrap_or_default();
    let existing: Vec<Existing> = mounts
        .iter()
        .map(|mount| serde_json::from_str(mount.get()))
        .collect::<serde_json::Result<_>>()?;
    for mount in shared {
        let access = if mount.follows_root && read_only { "ro" } else { "rw" };
        let new = to_raw_value(&serde_json::json!({
            "destination": mount.destination,
            "type": "bind",
            "source": mount.source,
            "options": ["rbind", "rprivate", access],
        }))?;
        let same = |old: &Existing| old.destination.trim_end_matches('/') == mount.destination;
        match existing.iter().position(same) {
            None => mounts.push(new),
            Some(at) if existing[at].kind.as_deref() == Some("tmpfs") => mounts[at] = new,
            Some(_) => {}
        }
    }
    config.insert("mounts".into(), to_raw_value(&mounts)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_of_its_pod_what_it_has_not_itself() {
        let mount = |place: &str, follows_root| SharedMount {
            destination: place.into(),
            source: format!("/p{place}").into(),
            follows_root,
        };
        let shared = [mount("/etc/hosts", true), mount("/dev/shm", false)];
        let bind = |place: &str, access: &str| {
            format!(
                r#"{{"destination":"{place}","options":["rbind","rprivate","{access}"],"source":"/p{place}","type":"bind"}}"#
            )
        };
        let (hosts, shm) = (bind("/etc/hosts", "rw"), bind("/dev/shm", "rw"));
        let own = r#"{"destination": "/etc/hosts", "type": "bind", "x": 1.0}"#;
        let dev = r#"{"destination": "/dev", "type": "tmpfs"}"#;
        let cases = [
            ("nothing", "{}".to_owned(), vec![hosts.as_str(), shm.as_str()]),
            ("null", r#"{"mounts": null, "root": null}"#.into(), vec![&hosts, &shm]),
            ("its own", format!(r#"{{"mounts":[{own}]}}"#), vec![own, &shm]),
            (
                "the usual",
                format!(r#"{{"mounts":[{{"destination":"/dev/shm/","type":"tmpfs"}},{dev}]}}"#),
                vec![&shm, dev, &hosts],
            ),
        ];
        for (name, text, expected) in cases {
            let mut config: Config = serde_json::from_str(&text).unwrap();
            add(&mut config, &shared).unwrap();
            assert_eq!(config["mounts"].get(), format!("[{}]", expected.join(",")), "{name}");
        }
        let mut config: Config = serde_json::from_str(r#"{"root": {"readonly": true}}"#).unwrap();
        add(&mut config, &shared).unwrap();
        let expected = format!("[{},{shm}]", bind("/etc/hosts", "ro"));
        assert_eq!(config["mounts"].get(), expected);
    }
}
