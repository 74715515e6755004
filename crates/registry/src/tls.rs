//! TLS as a registry needs it: the system's authorities, those of its directory in `certs.d`,
//! our certificate for it if it wants one.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{RegistryError, Result};

/// Largest file with certificates or a key, bytes.
const MAX_FILE: u64 = 4 << 20;

/// What `certs.d` holds for a registry.
#[derive(Default)]
struct Certificates {
    authorities: Vec<CertificateDer<'static>>,
    ours: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// The configuration for one registry; `verify` is false for an insecure one.
pub(crate) fn config(directory: &Path, verify: bool) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificates = read_directory(directory)?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(directory, &error))?;
    let builder = if verify {
        builder.with_root_certificates(roots(&certificates, directory)?)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer::new(&provider)))
    };
    let mut config = match certificates.ours {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad(directory, &error))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn bad(path: &Path, why: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Configuration(format!("certificates in {}: {why}", path.display()))
}

fn roots(certificates: &Certificates, directory: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a system certificate was left out");
    }
    // The system may hold some that are of no use here; those we were given must be good.
    roots.add_parsable_certificates(system.certs);
    for authority in &certificates.authorities {
        roots
            .add(authority.clone())
            .map_err(|error| bad(directory, &error))?;
    }
    Ok(roots)
}

fn read_directory(directory: &Path) -> Result<Certificates> {
    let mut found = Certificates::default();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(bad(directory, &error)),
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let has =
        |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
    for path in &paths {
        if has(path, "crt") {
            found.authorities.extend(chain(path)?);
        } else if has(path, "cert") {
            let key = path.with_extension("key");
            if !key.exists() {
                return Err(RegistryError::Configuration(format!(
                    "missing key {} for client certificate {}. CA certificates must use the \
                     extension .crt",
                    key.display(),
                    path.display()
                )));
            }
            if found.ours.is_none() {
                let bytes = read(&key)?;
                let key =
                    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| bad(&key, &error))?;
                found.ours = Some((chain(path)?, key));
            }
        } else if has(path, "key") && !path.with_extension("cert").exists() {
            return Err(RegistryError::Configuration(format!(
                "missing client certificate {} for key {}",
                path.with_extension("cert").display(),
                path.display()
            )));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|error| bad(path, &error))?;
    Ok(bytes)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    found.map_err(|error| bad(path, &error))
}

/// Takes every certificate: for registries that were declared insecure.
#[derive(Debug)]
struct AnyServer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyServer {
    fn new(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
