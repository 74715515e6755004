//! A registry that does whatever a test wants it to, on loopback.

#![allow(dead_code)] // Each test file uses its part.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_image::{Digest, ImageStore, Reference};
use bulkhead_registry::{PullRequest, PulledImage, Registry, RegistryError, Reporter, Settings};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const PLAIN: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// In lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// Whether the body ended before its length.
    pub broken: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An answer, right or wrong.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What `Content-Length` says instead of the truth.
    pub length: Option<u64>,
    /// Closes after so many bytes of the body.
    pub cut: Option<usize>,
    /// Waits so long before the body.
    pub pause: Duration,
    /// Sends the body again and again.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn missing() -> Self {
        Self::new(
            404,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
        )
    }
}

/// The server. It ends with its value.
pub struct FakeRegistry {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeRegistry {
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, handler) = (Arc::clone(&requests), Arc::new(handler));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                tokio::spawn(async move { serve(stream, &seen, &*handler).await });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    pub fn count(&self, wanted: impl Fn(&Request) -> bool) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| wanted(request)).count()
    }

    pub fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    handler: &(dyn Fn(&Request) -> Reply + Send + Sync),
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        // A TLS client's greeting.
        if head[0] == 0x16 {
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut request = Request {
        method,
        path,
        headers,
        body: Vec::new(),
        broken: false,
    };
    // An upload may be refused half-way: the handler sees what has come by then.
    let most = request
        .path
        .split("cut=")
        .nth(1)
        .and_then(|text| text.split('&').next()?.parse::<usize>().ok())
        .filter(|_| request.method == "PATCH")
        .unwrap_or(usize::MAX);
    request.body.resize(length.min(most), 0);
    stream.read_exact(&mut request.body).await.ok()?;
    request.broken = request.body.len() < length;
    seen.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    if request.broken {
        return None;
    }
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length");
    if !reply.endless && !has_length {
        let length = reply.length.unwrap_or(reply.body.len() as u64);
        text.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await.ok()?;
    if request.method == "HEAD" {
        return None;
    }
    tokio::time::sleep(reply.pause).await;
    let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    stream.write_all(&reply.body[..end]).await.ok()?;
    if reply.endless {
        loop {
            stream.write_all(&reply.body).await.ok()?;
        }
    }
    stream.shutdown().await.ok()
}

/// Documents and blobs of one image.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// By tag or digest: media type and bytes.
    pub manifests: HashMap<String, (String, Vec<u8>)>,
    /// By digest.
    pub blobs: HashMap<String, Vec<u8>>,
}

pub fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

impl Content {
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        self.blobs.insert(digest(bytes), bytes.to_vec());
        json!({ "mediaType": media_type, "size": bytes.len(), "digest": digest(bytes) })
    }

    /// A manifest under a tag and under its digest.
    pub fn document(&mut self, tag: &str, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let entry = (media_type.to_owned(), bytes.clone());
        self.manifests.insert(tag.to_owned(), entry.clone());
        self.manifests.insert(digest(&bytes), entry);
        json!({ "mediaType": media_type, "size": bytes.len(), "digest": digest(&bytes) })
    }

    /// An image of layers in these forms.
    pub fn image(&mut self, tag: &str, os: &str, layers: &[(Vec<u8>, &str)]) -> Value {
        let ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let config = json!({
            "os": os, "architecture": "amd64", "config": {},
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|(tar, form)| self.blob(form, &compressed(tar, form)))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        self.document(tag, MANIFEST, &manifest)
    }

    /// The answer of an honest registry that knows ranges.
    pub fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if path == "/v2/" {
            return Reply::new(200, "{}");
        }
        let name = path.rsplit('/').next().unwrap();
        if path.contains("/manifests/") {
            return match self.manifests.get(name) {
                Some((kind, bytes)) => Reply::new(200, bytes.clone()).with("Content-Type", kind),
                None => Reply::missing(),
            };
        }
        let Some(bytes) = self.blobs.get(name) else {
            return Reply::missing();
        };
        let range = request.header("range").strip_prefix("bytes=");
        match range.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok()) {
            None => Reply::new(200, bytes.clone()),
            Some(start) => {
                let last = bytes.len() - 1;
                Reply::new(206, bytes[start..].to_vec()).with(
                    "Content-Range",
                    format!("bytes {start}-{last}/{}", bytes.len()),
                )
            }
        }
    }
}

/// A tar of one file, as its layer is made of.
pub fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn compressed(tar: &[u8], form: &str) -> Vec<u8> {
    use std::io::Write as _;
    match form {
        GZIP => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        ZSTD => zstd::encode_all(tar, 1).unwrap(),
        _ => tar.to_vec(),
    }
}

/// A store with a registry client, impatient.
pub struct Host {
    pub root: tempfile::TempDir,
    pub store: Arc<ImageStore>,
    pub registry: Arc<Registry>,
}

pub fn settings() -> Settings {
    Settings {
        patience: Duration::from_millis(500),
        // Nobody's certificates.
        certificates: "/nonexistent".into(),
        ..Settings::default()
    }
}

impl Host {
    pub fn new(settings: Settings) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(ImageStore::open(root.path()).unwrap());
        let registry = Arc::new(Registry::new(Arc::clone(&store), settings));
        Self {
            root,
            store,
            registry,
        }
    }

    pub async fn pull(&self, reference: Reference) -> Result<Vec<PulledImage>, RegistryError> {
        let request = PullRequest {
            reference: reference.with_default_tag(),
            all_tags: false,
            platform: None,
            credentials: None,
        };
        self.registry.pull(&request, &Reporter::silent()).await
    }

    /// Files of the store but for its metadata and its reserve.
    pub fn files(&self) -> Vec<String> {
        let mut files = files(&self.root.path().join("images"));
        files.retain(|file| !file.ends_with("/reserve"));
        files
    }

    /// Waits until nothing is left in the store: ends are met in the background.
    pub async fn is_empty(&self) {
        for _ in 0..200 {
            if self.files().is_empty() {
                assert_eq!(self.store.list().unwrap(), []);
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("left: {:?}", self.files());
    }
}

fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let name = path.display().to_string();
            if !name.contains("metadata.sqlite") && !name.ends_with("/lock") {
                found.push(name);
            }
        }
    }
    found
}
