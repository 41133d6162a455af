//! What an administrator asks of all shims of a host: `ps`, `logs`, `metrics`. Each shim answers on its
//! management socket, in bounded time or not at all; one that is stopped delays nobody else.

mod doctor;
mod find;
mod ids;
mod merge;
mod metrics;
mod ps;

pub(crate) use self::doctor::doctor;
use self::find::Found;
pub(crate) use self::ids::ids;
pub(crate) use self::metrics::{serve_metrics, write_metrics};
pub(crate) use self::ps::ps;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use httparse::EMPTY_HEADER;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout};

use crate::container;
use crate::error::{Error, Result};
use crate::manage::{APART, DIGITS};

/// How long one shim may take to answer.
const LIMIT: Duration = Duration::from_secs(1);
/// Shims that are asked at a time.
const AT_ONCE: usize = 64;
/// The longest answer that is taken, in bytes.
const MOST: u64 = 16 << 20;

/// What came of asking one shim.
struct Answer {
    found: Found,
    /// The shim's, from the kernel: also of one that does not answer.
    pid: Option<i32>,
    took: Duration,
    /// What it said, or why it did not.
    body: Result<Vec<u8>, String>,
}

/// Asks every shim for the same `path`; sorted by namespace and pod. A socket that goes meanwhile counts
/// as none.
async fn ask_all(path: &'static str) -> Result<Vec<Answer>> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let asked = find::all()?.into_iter().map(|found| {
        let places = places.clone();
        spawn_local(async move {
            let _place = places.acquire_owned().await;
            ask(named(found).await, path).await
        })
    });
    let asked: Vec<_> = asked.collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.extend(answer.await.ok().flatten());
    }
    Ok(answers)
}

/// The same with the names that the shim has for itself, where its path has a digest.
async fn named(found: Found) -> Found {
    if !found.namespace.is_empty() {
        return found;
    }
    match ask(found.clone(), "/containers").await.and_then(|answer| pod(&answer).ok()) {
        Some(pod) => {
            let apart = found.group.chars().take(DIGITS).collect();
            Found { namespace: pod.namespace, group: pod.id, apart, ..found }
        }
        None => found,
    }
}

/// What a shim has said about its pod.
fn pod(answer: &Answer) -> Result<container::Pod, String> {
    let body = answer.body.as_deref().map_err(String::clone)?;
    serde_json::from_slice(body).map_err(|error| format!("its answer: {error}"))
}

/// Asks one shim; `None` if its socket is not there any more.
async fn ask(found: Found, path: &str) -> Option<Answer> {
    let began = Instant::now();
    let mut pid = None;
    let exchange = async {
        let mut stream = UnixStream::connect(&found.path).await?;
        pid = getsockopt(&stream.as_fd(), PeerCredentials).ok().map(|peer| peer.pid());
        let head = format!("GET {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(MOST).read_to_end(&mut bytes).await?;
        Ok::<_, io::Error>(bytes)
    };
    let body = match timeout(LIMIT, exchange).await {
        Ok(Ok(bytes)) => body(&bytes),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return None,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err("it is dead".into())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    };
    Some(Answer { found, pid, took: began.elapsed(), body })
}

/// The body of a whole answer with status 200.
fn body(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut headers = [EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        _ => return Err("its answer is no HTTP".into()),
    };
    let body = &bytes[length..];
    let expected = head.headers.iter().find(|one| one.name.eq_ignore_ascii_case("content-length"));
    let expected =
        expected.and_then(|one| std::str::from_utf8(one.value).ok()?.parse::<usize>().ok());
    match head.code {
        Some(200) if expected.is_none_or(|length| length == body.len()) => Ok(body.to_vec()),
        Some(200) => Err("its answer is cut short".into()),
        code => {
            Err(format!("status {}: {}", code.unwrap_or(0), String::from_utf8_lossy(body).trim()))
        }
    }
}

/// Runs `work` with an event loop of its own.
fn with_loop<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::sys("make the event loop"))?;
    LocalSet::new().block_on(&runtime, work)
}

/// What the shim of a pod or container logged last; `id` may be the beginning of one id only, or with the
/// namespace before it, as this names pods where there are several.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Invalid`] if several have such an id, or the shim does not answer.
pub(crate) fn logs(id: &str) -> Result<Vec<u8>> {
    with_loop(async {
        let found = choose(id, &ask_all("/containers").await?)?;
        let answer = ask(found, "/logs").await;
        let missing = || Error::NotFound { what: "the shim of", id: id.into() };
        let silent =
            |why| Error::Invalid(format!("the shim of {id:?} does not tell its log: {why}"));
        answer.ok_or_else(missing)?.body.map_err(silent)
    })
}

/// The shim that is called `id` as a whole ([`Found`]); else the one whose pod, or one of whose containers,
/// has the id; else the only one whose id begins so.
fn choose(id: &str, answers: &[Answer]) -> Result<Found> {
    let ids = |answer: &Answer| {
        let found = &answer.found;
        let containers = pod(answer).unwrap_or_default().containers;
        let mut ids: Vec<_> = containers.into_iter().map(|one| one.id).collect();
        ids.push(found.group.clone());
        ids.push(format!("{}{APART}{}", found.group, found.apart));
        if id.contains('/') {
            ids.iter_mut().for_each(|id| *id = format!("{}/{id}", found.namespace));
        }
        ids
    };
    let with = |fits: &dyn Fn(&str) -> bool| -> Vec<&Found> {
        let fitting = answers.iter().filter(|answer| ids(answer).iter().any(|one| fits(one)));
        fitting.map(|answer| &answer.found).collect()
    };
    let whole = answers.iter().map(|answer| &answer.found).filter(|one| one.to_string() == id);
    let mut found: Vec<_> = whole.collect();
    if found.is_empty() {
        found = with(&|one| one == id);
    }
    if found.is_empty() {
        found = with(&|one| one.starts_with(id));
    }
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Error::NotFound { what: "pod or container", id: id.to_owned() }),
        several => {
            let named: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(Error::Invalid(format!("{id:?} is not one pod: {}", named.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_counts() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        let cases = [
            ("whole", format!("{ok}ab"), Ok("ab")),
            ("cut short", format!("{ok}a"), Err("cut short")),
            ("refused", "HTTP/1.1 404 Not Found\r\n\r\nno\n".into(), Err("status 404: no")),
            ("nothing", String::new(), Err("no HTTP")),
            ("something else", "\0\0\0\u{1}".into(), Err("no HTTP")),
        ];
        for (name, text, expected) in cases {
            match (body(text.as_bytes()), expected) {
                (Ok(body), Ok(expected)) => assert_eq!(body, expected.as_bytes(), "{name}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{name}: {why}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_shim_is_found_by_its_pod_or_a_container_or_the_beginning_of_an_id() {
        let answer = |namespace: &str, group: &str, apart: &str, container: &str| {
            let containers = vec![container::View { id: container.into(), ..Default::default() }];
            let pod = container::Pod { containers, ..Default::default() };
            let [namespace, group, apart] = [namespace, group, apart].map(str::to_owned);
            let found = Found { namespace, group, apart, path: "/socket".into() };
            let body = Ok(serde_json::to_vec(&pod).unwrap());
            Answer { found, pid: None, took: LIMIT, body }
        };
        let answers = [
            answer("a", "pod", "", "web"),
            answer("a", "pods", "", "db"),
            answer("b", "other", "", "web-2"),
            answer("c", "twin", "", "left"),
            answer("c", "twin", "12345678", "right"),
            answer("d", "twins", "00000001", "one"),
            answer("d", "twins", "00000002", "two"),
        ];
        let cases = [
            ("a pod", "pod", Ok("a/pod")),
            ("the beginning of several", "po", Err("a/pod, a/pods")),
            ("a container", "web", Ok("a/pod")),
            ("the beginning of one", "oth", Ok("b/other")),
            ("of a container", "db", Ok("a/pods")),
            ("nothing", "x", Err("not found")),
            ("with its namespace", "b/other", Ok("b/other")),
            ("a container with its namespace", "b/web", Ok("b/other")),
            ("one of another namespace", "a/other", Err("not found")),
            ("twins", "twin", Err("c/twin, c/twin@12345678")),
            ("the usual one", "c/twin", Ok("c/twin")),
            ("the other", "c/twin@12345678", Ok("c/twin@12345678")),
            ("without its namespace", "twin@1", Ok("c/twin@12345678")),
            ("none is usual", "d/twins", Err("d/twins@00000001, d/twins@00000002")),
            ("its container", "right", Ok("c/twin@12345678")),
        ];
        for (name, id, expected) in cases {
            match (choose(id, &answers), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected, "{name}"),
                (Err(why), Err(part)) => assert!(why.to_string().contains(part), "{name}: {why}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }
}
