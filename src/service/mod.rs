//! The ttrpc services: decode, call, encode.

mod task;

use std::rc::Rc;

use tokio::time::Instant;
use ttrpc::proto::Request;

use crate::container::Containers;
use crate::error::{Error, Result};
use crate::rpc::server::Handler;

/// Answers every request of every connection.
pub(crate) struct Services {
    containers: Rc<Containers>,
}

impl Services {
    /// Services for these containers.
    pub(crate) fn new(containers: Rc<Containers>) -> Self {
        Self { containers }
    }
}

impl Handler for Services {
    async fn call(self: Rc<Self>, request: Request, deadline: Option<Instant>) -> Result<Vec<u8>> {
        match request.service.as_str() {
            // Their messages agree in every field that both have.
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => {
                task::call(&self.containers, &request.method, &request.payload, deadline).await
            }
            // containerd falls back to an older service on this status and no other.
            service => Err(Error::Unimplemented(format!("service {service}"))),
        }
    }
}
