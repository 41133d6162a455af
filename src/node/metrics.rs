//! `metrics`: the figures of all shims of a host for one scrape.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use super::merge::{Host, Owner};
use super::{ask_all, with_loop};
use crate::error::{Error, Result};
use crate::manage::PROMETHEUS;
use crate::manage::http::{self, Method, Request, Response};

/// Scrapes at a time.
const MOST: usize = 4;
/// Pause after a failed accept.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Asks all shims, and writes what they say to `file`, which is replaced as a whole.
///
/// # Errors
/// [`Error::Io`]; the old file is then still there.
pub(crate) fn write_metrics(file: &Path) -> Result<Vec<u8>> {
    let text = with_loop(gather())?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    // Collectors of such files pass over what does not end with .prom.
    name.push(format!(".{}.new", std::process::id()));
    let new = file.with_file_name(name);
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())
    };
    let written = write().and_then(|()| fs::rename(&new, file));
    written.inspect_err(|_| drop(fs::remove_file(&new))).map_err(Error::io("write", file))?;
    Ok(Vec::new())
}

/// Serves `/metrics` on `address` for ever; says on `out` where, once it does.
///
/// # Errors
/// [`Error::Sys`] if it cannot listen there.
pub(crate) fn serve_metrics(address: SocketAddr, out: &mut dyn Write) -> Result<()> {
    with_loop(async {
        let listener = TcpListener::bind(address).await.map_err(Error::sys("listen"))?;
        let address = listener.local_addr().map_err(Error::sys("listen"))?;
        let say = writeln!(out, "http://{address}/metrics").and_then(|()| out.flush());
        say.map_err(Error::sys("answer"))?;
        serve(listener).await;
        Ok(())
    })
}

async fn serve(listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MOST));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(spawn_local(async move {
                http::converse(stream, async |request| answer(&request).await).await;
                drop(place);
            })),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn answer(request: &Request) -> Response {
    match (request.method, request.path.as_str()) {
        (Method::Get | Method::Head, "/metrics") => match gather().await {
            Ok(text) => Response::new(200, PROMETHEUS, text),
            Err(error) => Response::text(500, format!("{error}\n")),
        },
        (Method::Get | Method::Head, "/") => Response::text(200, "/metrics\n"),
        (_, "/" | "/metrics") => {
            Response { allow: Some("GET, HEAD"), ..Response::text(405, "GET it\n") }
        }
        _ => Response::text(404, "no such path; there is:\n/metrics\n"),
    }
}

async fn gather() -> Result<String> {
    let mut host = Host::default();
    host.declare("berth_up", "Whether the shim answered.");
    host.declare("berth_scrape_seconds", "How long the shim took to answer, or was waited for.");
    for answer in ask_all("/metrics").await? {
        let owner = Owner { namespace: &answer.found.namespace, sandbox: &answer.found.group };
        let text = answer.body.and_then(|body| String::from_utf8(body).map_err(|e| e.to_string()));
        host.add("berth_up", owner, if text.is_ok() { 1.0 } else { 0.0 });
        host.add("berth_scrape_seconds", owner, answer.took.as_secs_f64());
        host.merge(&text.unwrap_or_default(), owner);
    }
    Ok(host.text())
}
