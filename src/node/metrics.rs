//! `metrics`: the figures of all shims of a host for one scrape.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::merge::{Host, Owner};
use super::{Found, ask_all, with_loop};
use crate::error::{Error, Result};
use crate::manage::http::{self, Method, Request, Response};
use crate::manage::{PROMETHEUS, Places};

/// Scrapes at a time.
const MOST: usize = 4;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long an answer serves other scrapes too.
const FRESH: Duration = Duration::from_millis(900);

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
    let places = Places::new(MOST);
    let last = Rc::new(Last::default());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (place, last) = (places.take().await, last.clone());
                drop(spawn_local(async move {
                    http::converse(stream, &place, async |request| answer(&last, &request).await)
                        .await;
                }));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// What all shims said last. Scrapes that come together share one answer: no shim is asked twice.
#[derive(Default)]
struct Last(Mutex<Option<(Instant, String)>>);

impl Last {
    /// It, or what they say now if it is older than [`FRESH`].
    async fn text(&self, gather: impl AsyncFnOnce() -> Result<String>) -> Result<String> {
        let mut last = self.0.lock().await;
        if let Some((at, text)) = &*last {
            if at.elapsed() < FRESH {
                return Ok(text.clone());
            }
        }
        let text = gather().await?;
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

async fn answer(last: &Last, request: &Request) -> Response {
    match (request.method, request.path.as_str()) {
        (Method::Get | Method::Head, "/metrics") => match last.text(gather).await {
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
        let Found { namespace, group, apart, .. } = &answer.found;
        let owner = Owner { namespace, sandbox: group, socket: apart };
        let text = answer.body.and_then(|body| String::from_utf8(body).map_err(|e| e.to_string()));
        host.add("berth_up", owner, if text.is_ok() { 1.0 } else { 0.0 });
        host.add("berth_scrape_seconds", owner, answer.took.as_secs_f64());
        host.merge(&text.unwrap_or_default(), owner);
    }
    Ok(host.text())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn scrapes_that_come_together_share_an_answer() {
        let (last, asked) = (Last::default(), Cell::new(0));
        let scrape = async || {
            let gather = async || {
                tokio::time::sleep(Duration::from_millis(20)).await;
                asked.set(asked.get() + 1);
                Ok(asked.get().to_string())
            };
            last.text(gather).await.unwrap()
        };
        let age = async || last.0.lock().await.iter_mut().for_each(|(at, _)| *at -= FRESH);
        let (first, second) = tokio::join!(scrape(), scrape());
        assert_eq!((&*first, &*second), ("1", "1"));
        age().await;
        assert_eq!(scrape().await, "2");
        // What went wrong is not kept.
        age().await;
        last.text(async || Err(Error::Invalid("no".into()))).await.unwrap_err();
        assert_eq!(scrape().await, "3");
    }
}
