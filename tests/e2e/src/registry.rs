//! A real registry on loopback: Debian's `docker-registry`, with its own directory and port,
//! and `skopeo` as the other client.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::images::{Compression, sha256};
use crate::until;

/// The one user of a registry with authentication.
pub const USER: &str = "user";
/// Their password.
pub const PASSWORD: &str = "secret";
/// Both, as `htpasswd -B` writes them.
const HTPASSWD: &str = "user:$2b$04$6DPPbdhXuXm7p6xwNzZBFOgVUP9muH9dp.IHTrAV9Cq.A6jZDUfdq\n";

/// A running registry. Dropping it ends it.
pub struct Registry {
    directory: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Registry {
    /// One for everybody.
    #[track_caller]
    #[must_use]
    pub fn start() -> Self {
        Self::launch(false)
    }

    /// One for [`USER`] only.
    #[track_caller]
    #[must_use]
    pub fn with_authentication() -> Self {
        Self::launch(true)
    }

    #[track_caller]
    fn launch(authentication: bool) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("bh-registry-")
            .tempdir()
            .expect("a directory for a registry");
        let root = directory.path().display();
        // The port is free now; another may take it before the registry does, so it is tried
        // with others.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("a free port")
                .port();
            let mut config = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: '127.0.0.1:{port}', headers: {{X-Directory: ['{root}']}}}}\n"
            );
            if authentication {
                let file = directory.path().join("htpasswd");
                std::fs::write(&file, HTPASSWD).expect("htpasswd");
                config.push_str(&format!(
                    "auth: {{htpasswd: {{realm: e2e, path: {}}}}}\n",
                    file.display()
                ));
            }
            let file = directory.path().join("config.yml");
            std::fs::write(&file, config).expect("the registry's configuration");
            let log = std::fs::File::create(directory.path().join("log")).expect("a log");
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("dup"))
                .stderr(log)
                .spawn()
                .expect("docker-registry (scripts/setup.sh test installs it)");
            let up = until("the registry serves", Duration::from_secs(30), || {
                if child.try_wait().expect("wait").is_some() {
                    return Some(false);
                }
                serves(port, &root.to_string()).then_some(true)
            });
            if up {
                return Self {
                    directory,
                    child,
                    port,
                };
            }
        }
        panic!("no port for a registry");
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A directory that goes with the registry.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A request without credentials: status, headers in lower case, body.
    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the registry");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Accept: */*\r\nContent-Length: {}\r\n\r\n",
            self.address(),
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("a request");
        stream.write_all(body).expect("a body");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a header");
        let headers = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = headers
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("a status");
        (status, headers, answer[end + 4..].to_vec())
    }

    /// Puts a blob into a repository; its descriptor.
    #[track_caller]
    pub fn blob(&self, repository: &str, kind: &str, bytes: &[u8]) -> Value {
        let digest = format!("sha256:{}", sha256(bytes));
        let path = format!("/v2/{repository}/blobs/uploads/");
        let (status, headers, _) = self.request("POST", &path, kind, b"");
        assert_eq!(status, 202, "{headers}");
        let location = headers
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .expect("a location")
            .trim();
        let path = &location[location.find("/v2/").expect("a path")..];
        let (status, headers, _) = self.request(
            "PUT",
            &format!("{path}&digest={digest}"),
            "application/octet-stream",
            bytes,
        );
        assert_eq!(status, 201, "{headers}");
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    /// Puts a manifest or index under a tag; its descriptor.
    #[track_caller]
    pub fn manifest(&self, repository: &str, tag: &str, kind: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, headers, body) = self.request("PUT", &path, kind, &bytes);
        assert_eq!(status, 201, "{headers}\n{}", String::from_utf8_lossy(&body));
        let digest = format!("sha256:{}", sha256(&bytes));
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    /// Puts an OCI image of these layers under a tag; its descriptor.
    #[track_caller]
    pub fn image(
        &self,
        repository: &str,
        tag: &str,
        config: &Value,
        layers: &[(Vec<u8>, Compression)],
    ) -> Value {
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(repository, kind, config.to_string().as_bytes());
        let put = |(tar, compression): &(Vec<u8>, Compression)| {
            self.blob(
                repository,
                compression.media_type(),
                &compression.apply(tar),
            )
        };
        let layers: Vec<Value> = layers.iter().map(put).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
        });
        self.manifest(repository, tag, MANIFEST, &manifest)
    }

    /// Puts an image of these layers, compressed, under the tag `1`, whose containers run
    /// `cat /mark`; its name.
    #[track_caller]
    pub fn marked_image(&self, repository: &str, layers: &[Vec<u8>]) -> String {
        let ids: Vec<String> = layers
            .iter()
            .map(|tar| format!("sha256:{}", sha256(tar)))
            .collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": { "Cmd": ["cat", "/mark"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let layers: Vec<_> = layers
            .iter()
            .map(|tar| (tar.clone(), Compression::Gzip))
            .collect();
        self.image(repository, "1", &config, &layers);
        format!("{}/{repository}:1", self.address())
    }

    /// Runs skopeo; its standard output.
    #[track_caller]
    pub fn skopeo(arguments: &[&str]) -> String {
        let output = Command::new("skopeo")
            .arg("--insecure-policy")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("skopeo (scripts/setup.sh test installs it)");
        assert!(
            output.status.success(),
            "skopeo {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it is the registry of this directory that answers there. A connection alone says
/// nothing: one to a port that nobody listens at can get that very port for its other end.
fn serves(port: u16, directory: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut answer = Vec::new();
    let limit = Some(Duration::from_secs(1));
    let asked = stream
        .set_read_timeout(limit)
        .and_then(|()| stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n"));
    // What came until then counts.
    let _ = asked.and_then(|()| stream.read_to_end(&mut answer).map(drop));
    String::from_utf8_lossy(&answer).contains(directory)
}
