//! Listening on TCP, behind mutual TLS.
//!
//! TLS ends here: what is inside goes over a pair of sockets to the code that serves every
//! connection, which may hand its socket over to attach and exec.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client may take to prove who it is.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How many may be proving it at a time.
const MAX_HANDSHAKES: usize = 64;
/// How long a client's side may stay open after everything was said.
const LINGER: Duration = Duration::from_secs(5);

/// Where keys and certificates are, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who signs clients' certificates; `None` lets every client in.
    pub authority: Option<PathBuf>,
    /// Our certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why the daemon does not listen on TCP.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A file that is missing or holds something else.
    #[error("cannot read {what} from {path}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file without what was looked for.
    #[error("{path} holds no {what}")]
    Empty {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// Certificates that don't fit.
    #[error("certificates cannot be used")]
    Tls(#[from] rustls::Error),
    /// An authority that verifies nobody.
    #[error("the authority of clients cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// An address that is taken or not ours.
    #[error("cannot listen on tcp://{address}")]
    Bind {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
    let bad = |source| RemoteError::Pem {
        what,
        path: path.to_owned(),
        source,
    };
    let found = CertificateDer::pem_file_iter(path)
        .map_err(bad)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad)?;
    if found.is_empty() {
        return Err(RemoteError::Empty {
            what,
            path: path.to_owned(),
        });
    }
    Ok(found)
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, RemoteError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| RemoteError::Pem {
        what: "private key",
        path: files.key.clone(),
        source,
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &files.authority {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("certificate authority", path)? {
                roots.add(certificate)?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// An address that is listened on.
pub struct RemoteListener {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
}

impl std::fmt::Debug for RemoteListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteListener")
            .field("listener", &self.listener)
            .field("tls", &self.acceptor.is_some())
            .finish()
    }
}

impl RemoteListener {
    /// Listens on `host:port`; without files in plain text.
    ///
    /// # Errors
    /// What is wrong with the address or the files.
    pub async fn bind(address: &str, files: Option<&TlsFiles>) -> Result<Self, RemoteError> {
        let acceptor = files.map(acceptor).transpose()?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| RemoteError::Bind {
                address: address.to_owned(),
                source,
            })?;
        Ok(Self { listener, acceptor })
    }

    /// Where, with the port that was chosen.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves clients until `shutdown` is cancelled.
    pub async fn accept(
        self,
        router: Router,
        shutdown: CancellationToken,
        connections: TaskTracker,
    ) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (acceptor, router) = (self.acceptor.clone(), router.clone());
                    let (shutdown, handshakes) = (shutdown.clone(), Arc::clone(&handshakes));
                    connections.spawn(async move {
                        let served = serve(stream, acceptor, &handshakes, router, shutdown).await;
                        if let Err(error) = served {
                            tracing::debug!(%peer, %error, "client over TCP");
                        }
                    });
                }
                Err(error) => {
                    // As for sockets: give those that hold the descriptors a moment.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    handshakes: &Semaphore,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(acceptor) = acceptor else {
        return bridge(stream, router, shutdown).await;
    };
    let permit = handshakes.acquire().await.map_err(io::Error::other)?;
    let stream = tokio::select! {
        done = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)) => done??,
        () = shutdown.cancelled() => return Ok(()),
    };
    drop(permit);
    bridge(stream, router, shutdown).await
}

async fn bridge(
    stream: impl AsyncRead + AsyncWrite,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let serving = tokio::spawn(crate::connection::serve(theirs, router, shutdown));
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut from_server, mut to_server) = ours.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(up);
    tokio::pin!(down);
    tokio::select! {
        () = &mut up => down.await,
        () = &mut down => {
            let _ = tokio::time::timeout(LINGER, up).await;
        }
    }
    serving.await.map_err(io::Error::other)
}
