//! The ids that a person at the command line may mean.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::{AT_ONCE, Found, ask, find, with_loop};
use crate::container;

/// How long all shims together may take: somebody has pressed TAB.
const PATIENCE: Duration = Duration::from_millis(300);

/// The pods and containers of this host, each with what it is; of a shim that does not answer soon, the
/// pod alone. None for one who may not see them.
pub(crate) fn ids() -> Vec<(String, String)> {
    let ids = with_loop(async {
        let end = Instant::now() + PATIENCE;
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let asked = find::all()?.into_iter().map(|found| {
            let (places, asked) = (places.clone(), found.clone());
            let answer = spawn_local(async move {
                let _place = places.acquire_owned().await;
                ask(asked, "/containers").await
            });
            (found, answer)
        });
        let mut ids = Vec::new();
        for (found, answer) in asked.collect::<Vec<_>>() {
            let answer = timeout_at(end, answer).await.ok().and_then(Result::ok).flatten();
            let body = answer.and_then(|answer| answer.body.ok()).unwrap_or_default();
            ids.extend(of_pod(&found, serde_json::from_slice(&body).ok()));
        }
        Ok(ids)
    });
    ids.unwrap_or_default()
}

/// A pod's, and those of its containers but for the one that has the same.
fn of_pod(found: &Found, pod: Option<container::Pod>) -> Vec<(String, String)> {
    let (namespace, group) = match &pod {
        Some(pod) => (&pod.namespace, &pod.id),
        None => (&found.namespace, &found.group),
    };
    let containers = pod.iter().flat_map(|pod| &pod.containers).filter(|one| one.id != *group);
    let containers = containers.map(|one| (one.id.clone(), format!("container of {group}")));
    [(group.clone(), format!("pod in {namespace}"))].into_iter().chain(containers).collect()
}
