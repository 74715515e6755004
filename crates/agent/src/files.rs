//! A conversation about the container's files, between a stream of the host's and whoever
//! serves it here.

use std::os::unix::net::UnixStream;

use bulkhead_agent_protocol::{Stream, WireError};
use bulkhead_isolation::ContainerFiles;

/// How much is passed on at once, bytes.
const BUFFER: usize = 64 << 10;

/// Passes bytes on until both sides have ended, or one has gone.
///
/// # Errors
/// That the host has gone.
pub async fn serve(files: &dyn ContainerFiles, stream: &mut Stream) -> Result<(), WireError> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut ours = tokio::net::UnixStream::from_std(ours)?;
    let passing = async move {
        // Dropping our end afterwards ends the conversation on the other one.
        tokio::io::copy_bidirectional_with_sizes(stream, &mut ours, BUFFER, BUFFER).await
    };
    let (served, passed) = tokio::join!(files.serve(theirs), passing);
    if let Err(error) = served {
        tracing::warn!(%error, "a request for files was not served");
    }
    passed?;
    Ok(())
}
