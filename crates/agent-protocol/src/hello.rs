//! The first bytes in each direction: a magic and the protocol's version.
//!
//! The agent speaks first, so that its hello tells the host that the guest has come up.
//! Whoever sees another version gives up; host and guest image are built together.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of everything in this crate. Counts up with every incompatible change.
pub const VERSION: u32 = 2;

/// Stands for the version where a guest cannot be used, because its kernel measured its timer
/// while the host kept it waiting. Another start is all it needs.
const MISTIMED: u32 = u32::MAX;

const MAGIC: [u8; 8] = *b"BULKHEAD";

/// The other side is not one we can talk to.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The stream ended or broke.
    #[error("the transport broke during the handshake")]
    Io(#[from] std::io::Error),
    /// What came is no hello.
    #[error("the other side does not speak the agent's protocol")]
    Magic,
    /// It is one of another version.
    #[error(
        "host and guest image do not match: this side speaks version {VERSION} of the agent's \
         protocol, the other one version {0}; build the guest image again"
    )]
    Version(u32),
    /// See [`mistimed`].
    #[error(
        "the guest's kernel could not measure its timer, because the host was too busy; try \
         again when it has less to do"
    )]
    Mistimed,
}

/// Our hello, for whoever sends it without a runtime.
pub fn bytes() -> [u8; 12] {
    with(VERSION)
}

/// What a guest says in place of a hello when its kernel's timer is of no use.
pub fn mistimed() -> [u8; 12] {
    with(MISTIMED)
}

fn with(version: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&version.to_be_bytes());
    bytes
}

/// Sends our hello.
///
/// # Errors
/// [`HelloError::Io`].
pub async fn send<T: AsyncWrite + Unpin>(transport: &mut T) -> Result<(), HelloError> {
    transport.write_all(&bytes()).await?;
    transport.flush().await?;
    Ok(())
}

/// Reads the other side's hello.
///
/// # Errors
/// See [`HelloError`].
pub async fn receive<T: AsyncRead + Unpin>(transport: &mut T) -> Result<(), HelloError> {
    let mut magic = [0; 8];
    transport.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(HelloError::Magic);
    }
    match transport.read_u32().await? {
        VERSION => Ok(()),
        MISTIMED => Err(HelloError::Mistimed),
        other => Err(HelloError::Version(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn equal_versions_meet() {
        let (mut a, mut b) = tokio::io::duplex(64);
        send(&mut a).await.unwrap();
        receive(&mut b).await.unwrap();
    }

    #[tokio::test]
    async fn others_are_told() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(b"BULKHEAD\0\0\0\x63").await.unwrap();
        let error = receive(&mut b).await.unwrap_err();
        assert!(matches!(error, HelloError::Version(99)), "{error}");
        a.write_all(b"SSH-2.0-").await.unwrap();
        assert!(matches!(receive(&mut b).await, Err(HelloError::Magic)));
        drop(a);
        assert!(matches!(receive(&mut b).await, Err(HelloError::Io(_))));
    }
}
