//! The files of a container in a VM: the agent has them, and bytes are passed on.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_agent_protocol::Files;
use bulkhead_isolation::{ContainerFiles, IsolationError, Result};
use oci_spec::runtime::Spec;

use crate::vm::Vm;

/// How much is passed on at once, bytes.
const BUFFER: usize = 64 << 10;

/// See the module.
pub struct VmFiles {
    vm: Arc<Vm>,
    id: String,
    /// The specification for the guest, of a container that is not created: the machine is
    /// there for its files alone.
    spec: Option<Box<Spec>>,
}

impl VmFiles {
    /// The files of the container that the agent has created.
    pub fn of_container(vm: Arc<Vm>, id: String) -> Self {
        Self { vm, id, spec: None }
    }

    /// The files of a container that is not created, in a machine that ends with them.
    pub fn owning(vm: Arc<Vm>, id: String, spec: Spec) -> Self {
        Self {
            vm,
            id,
            spec: Some(Box::new(spec)),
        }
    }
}

#[async_trait]
impl ContainerFiles for VmFiles {
    async fn serve(&self, client: UnixStream) -> Result<()> {
        let failed = |error| IsolationError::other("take over a client", error);
        client.set_nonblocking(true).map_err(failed)?;
        let mut client = tokio::net::UnixStream::from_std(client).map_err(failed)?;
        let request = Files {
            id: self.id.clone(),
            spec: self.spec.clone(),
        };
        let ((), mut stream) = self.vm.request(request).await?;
        let passed =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER);
        // One of both has gone; the other is told by our letting go.
        if let Err(error) = passed.await {
            tracing::debug!(%error, "a conversation about files was cut short");
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        match self.spec {
            Some(_) => self.vm.shut_down().await,
            None => Ok(()),
        }
    }
}
