//! What OCI runtimes keep of a container.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ids::Pid;

/// What runc and crun write down of a container.
pub(super) struct Kept {
    pub(super) program: &'static str,
    pub(super) bundle: PathBuf,
    pub(super) process: Option<(Pid, Option<u64>)>,
}

impl Kept {
    /// That of one container, in a directory of the runtime's root.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        #[derive(Deserialize)]
        struct Runc {
            init_process_pid: i32,
            init_process_start: u64,
            config: RuncConfig,
        }
        #[derive(Deserialize)]
        struct RuncConfig {
            labels: Vec<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Crun {
            pid: i32,
            process_start_time: Option<u64>,
            bundle: PathBuf,
        }
        let read = |name: &str| fs::read(dir.join(name)).ok();
        if let Some(text) = read("state.json") {
            let state: Runc = serde_json::from_slice(&text).ok()?;
            let bundle =
                state.config.labels.iter().find_map(|label| label.strip_prefix("bundle="))?;
            let process =
                Pid::new(state.init_process_pid).map(|pid| (pid, Some(state.init_process_start)));
            return Some(Self { program: "runc", bundle: bundle.into(), process });
        }
        let state: Crun = serde_json::from_slice(&read("status")?).ok()?;
        let process = Pid::new(state.pid).map(|pid| (pid, state.process_start_time));
        Some(Self { program: "crun", bundle: state.bundle, process })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_both_runtimes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let pid = Pid::new(7).unwrap();
        let runc = r#"{"id":"c","init_process_pid":7,"init_process_start":9,"config":{"labels":["x","bundle=/b"]}}"#;
        let cases = [
            ("runc", "state.json", runc, Some(("runc", Some((pid, Some(9)))))),
            (
                "crun",
                "status",
                r#"{"pid":7,"process-start-time":9,"bundle":"/b"}"#,
                Some(("crun", Some((pid, Some(9))))),
            ),
            ("old crun", "status", r#"{"pid":7,"bundle":"/b"}"#, Some(("crun", Some((pid, None))))),
            ("no process", "status", r#"{"pid":0,"bundle":"/b"}"#, Some(("crun", None))),
            ("cut short", "state.json", "{\"id\"", None),
        ];
        for (name, file, text, expected) in cases {
            let own = dir.path().join(name);
            fs::create_dir(&own).unwrap();
            fs::write(own.join(file), text).unwrap();
            let kept = Kept::read(&own).map(|kept| {
                assert_eq!(kept.bundle, Path::new("/b"), "{name}");
                (kept.program, kept.process)
            });
            assert_eq!(kept, expected, "{name}");
        }
    }
}
