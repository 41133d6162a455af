//! See [`crate::fuzz`].

use std::rc::Rc;

use super::document::{self, Source, Via};
use super::section::Report;
use super::{Config, body, entry};

/// Every fault says something, and names the file.
pub(crate) fn text(data: &[u8]) {
    for via in [Via::Default, Via::ConfigBody] {
        let source = Rc::new(Source { name: "berth.toml".into(), via });
        let Err(faults) = read(data, via, &source) else { continue };
        assert!(!faults.is_empty());
        faults.iter().for_each(|fault| assert!(fault.contains("berth.toml"), "{fault:?}"));
    }
}

fn read(data: &[u8], via: Via, source: &Rc<Source>) -> Result<(), Vec<String>> {
    let table = document::parse(data, source)?;
    let table = if via == Via::ConfigBody { body::normalize(table)? } else { table };
    let table = entry::expand(table)?;
    let mut report = Report::default();
    let _ = Config::read(table, Some(via), &mut report);
    if report.faults.is_empty() { Ok(()) } else { Err(report.faults) }
}
