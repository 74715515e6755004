//! Pushes: to a registry that breaks off, and to a real one with TLS and authentication.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_image::{ImageId, ImportOptions, Reference};
use bulkhead_registry::{
    Credentials, Message, PullRequest, PushRequest, RegistryError, Reporter, Settings,
};
use common::{FakeRegistry, Host, Reply, digest, noise, settings, tar};

fn import(host: &Host, reference: &Reference, seed: u64) -> ImageId {
    let archive = tar("noise", &noise(seed, 1_000_000));
    let options = ImportOptions {
        reference: Some(reference.clone()),
        ..ImportOptions::default()
    };
    host.store
        .import(&mut &archive[..], &options, &|_| {})
        .unwrap()
}

fn push(reference: &Reference) -> PushRequest {
    PushRequest {
        reference: reference.clone(),
        credentials: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_goes_on_where_it_was() {
    const CUT: usize = 300_000;
    let uploaded = Arc::new(Mutex::new(Vec::new()));
    let manifest = Arc::new(Mutex::new(Vec::new()));
    let (blob, document) = (Arc::clone(&uploaded), Arc::clone(&manifest));
    let server = FakeRegistry::start(move |request| {
        let path = request.path.as_str();
        let mut blob = blob.lock().unwrap();
        match request.method.as_str() {
            _ if path == "/v2/" => Reply::new(200, "{}"),
            "HEAD" => Reply::new(404, ""),
            "POST" => {
                blob.clear();
                let place = format!("/v2/a/b/blobs/uploads/1?cut={CUT}");
                Reply::new(202, "").with("Location", place)
            }
            "PATCH" => {
                let range = request.header("content-range");
                if !blob.is_empty() {
                    assert!(range.starts_with(&format!("{}-", blob.len())), "{range}");
                }
                blob.extend_from_slice(&request.body);
                Reply::new(202, "").with("Location", "/v2/a/b/blobs/uploads/1?state=x")
            }
            "GET" => Reply::new(204, "")
                .with("Location", "/v2/a/b/blobs/uploads/1?state=y")
                .with("Range", format!("0-{}", blob.len() - 1)),
            "PUT" if path.contains("/manifests/") => {
                *document.lock().unwrap() = request.body.clone();
                Reply::new(201, "")
            }
            "PUT" => {
                let name = digest(&blob).replace(':', "%3A");
                if path.contains(&name) {
                    Reply::new(201, "")
                } else {
                    Reply::new(
                        400,
                        r#"{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}"#,
                    )
                }
            }
            _ => Reply::missing(),
        }
    })
    .await;
    let host = Host::new(settings());
    let reference = server.reference("a/b:1");
    let id = import(&host, &reference, 1);
    let said = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&said);
    let reporter = Reporter::new(move |message| lines.lock().unwrap().push(message));
    let pushed = host.registry.push(&push(&reference), &reporter).await;
    assert_eq!(pushed.unwrap()[0].id, id);
    assert!(server.count(|request| request.broken) > 0);
    let digest = digest(&manifest.lock().unwrap());
    let said = said.lock().unwrap();
    let aux = said.iter().find_map(|message| match message {
        Message::Aux(value) => value["Digest"].as_str(),
        _ => None,
    });
    assert_eq!(aux, Some(digest.as_str()));
    let image = host.store.inspect(&id).unwrap();
    assert_eq!(
        image.summary.digests[0].digest().unwrap().to_string(),
        digest
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_says_why() {
    let server = FakeRegistry::start(|request| match request.path.as_str() {
        "/v2/" => Reply::new(200, "{}"),
        _ if request.method == "HEAD" => Reply::new(404, ""),
        _ => Reply::new(
            403,
            "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"not \\u001b[31myours\"}]}",
        ),
    })
    .await;
    let host = Host::new(settings());
    let reference = server.reference("a/b:1");
    import(&host, &reference, 1);
    let request = push(&reference);
    let refused = host.registry.push(&request, &Reporter::silent()).await;
    let error = refused.unwrap_err();
    // Nothing of it moves a terminal's cursor.
    assert_eq!(error.to_string(), "denied: not [31myours");
}

/// Debian's registry, with TLS, client certificates and a password. It ends with its value.
struct RealRegistry {
    child: Child,
    port: u16,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn openssl(directory: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl (scripts/setup.sh test installs it)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {line}: {errors}");
}

/// How many ports are tried: one that was free may be somebody's a moment later.
const PORTS: usize = 5;

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

impl RealRegistry {
    fn start(directory: &Path) -> Self {
        openssl(
            directory,
            &format!("req -x509 {NEW_KEY} -keyout ca.key -out ca.crt -subj /CN=authority -days 2"),
        );
        for (name, extension) in [
            ("server", "subjectAltName=IP:127.0.0.1"),
            ("client", "extendedKeyUsage=clientAuth"),
        ] {
            std::fs::write(directory.join("extension"), extension).unwrap();
            openssl(
                directory,
                &format!("req {NEW_KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"),
            );
            openssl(
                directory,
                &format!(
                    "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
                     -extfile extension -out {name}.crt"
                ),
            );
        }
        let root = directory.display();
        // "secret", as `htpasswd -B` writes it.
        let password = "user:$2b$04$6DPPbdhXuXm7p6xwNzZBFOgVUP9muH9dp.IHTrAV9Cq.A6jZDUfdq\n";
        std::fs::write(directory.join("htpasswd"), password).unwrap();
        let words = directory.join("words");
        for _ in 0..PORTS {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            let config = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
                 auth: {{htpasswd: {{realm: x, path: {root}/htpasswd}}}}\n\
                 http:\n  addr: '127.0.0.1:{port}'\n  tls:\n    certificate: {root}/server.crt\n\
                 \x20   key: {root}/server.key\n    clientcas: [{root}/ca.crt]\n"
            );
            std::fs::write(directory.join("config.yml"), config).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(directory.join("config.yml"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(&words).unwrap())
                .spawn()
                .expect("docker-registry (scripts/setup.sh test installs it)");
            loop {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { child, port };
                }
                // Somebody else may have got the port: another is tried.
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let words = std::fs::read_to_string(&words).unwrap();
        panic!("docker-registry does not start: {words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_of_a_real_registry() {
    let directory = tempfile::tempdir().unwrap();
    let server = RealRegistry::start(directory.path());
    let domain = format!("127.0.0.1:{}", server.port);
    let certificates = directory.path().join("certs.d");
    let own = certificates.join(&domain);
    std::fs::create_dir_all(&own).unwrap();
    let strict = |certificates: &Path| {
        Host::new(Settings {
            certificates: certificates.to_owned(),
            loopback_is_insecure: false,
            patience: Duration::from_secs(20),
            ..settings()
        })
    };
    let reference = Reference::parse(&format!("{domain}/some/thing:1")).unwrap();
    let credentials = Credentials {
        username: "user".to_owned(),
        password: "secret".to_owned(),
        serveraddress: domain.clone(),
        ..Credentials::default()
    };
    let pull = PullRequest {
        reference: reference.clone(),
        all_tags: false,
        platform: None,
        credentials: Some(credentials.clone()),
    };
    let silent = Reporter::silent();

    // Nobody that we know has signed it; then they have, but we are nobody.
    let words = |error: RegistryError| error.to_string();
    let host = strict(&certificates);
    let error = words(host.registry.pull(&pull, &silent).await.unwrap_err());
    assert!(error.contains("signed by unknown authority"), "{error}");
    std::fs::copy(directory.path().join("ca.crt"), own.join("ca.crt")).unwrap();
    let host = strict(&certificates);
    let error = words(host.registry.pull(&pull, &silent).await.unwrap_err());
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    std::fs::copy(directory.path().join("client.crt"), own.join("client.cert")).unwrap();
    let host = strict(&certificates);
    let error = words(host.registry.pull(&pull, &silent).await.unwrap_err());
    assert!(error.contains("missing key"), "{error}");
    std::fs::copy(directory.path().join("client.key"), own.join("client.key")).unwrap();

    // Certificates are right; the password may not be.
    let host = strict(&certificates);
    let missing = host.registry.pull(&pull, &silent).await.unwrap_err();
    assert!(words(missing).contains("manifest unknown"));
    let wrong = Credentials {
        password: "wrong".to_owned(),
        ..credentials.clone()
    };
    let error = words(host.registry.login(&wrong).await.unwrap_err());
    assert!(
        error.ends_with("failed with status: 401 Unauthorized"),
        "{error}"
    );
    host.registry.login(&credentials).await.unwrap();
    let anonymous = PullRequest {
        credentials: None,
        ..pull.clone()
    };
    let error = words(host.registry.pull(&anonymous, &silent).await.unwrap_err());
    assert!(error.contains("no basic auth credentials"), "{error}");

    let id = import(&host, &reference, 5);
    let request = PushRequest {
        reference,
        credentials: Some(credentials),
    };
    host.registry.push(&request, &silent).await.unwrap();
    let other = strict(&certificates);
    let pulled = other.registry.pull(&pull, &silent).await.unwrap();
    assert_eq!(pulled[0].id, id);
    assert_eq!(other.store.check(false).unwrap().findings, []);

    // A registry that may do without is not asked who it is.
    std::fs::remove_file(own.join("ca.crt")).unwrap();
    let lax = Host::new(Settings {
        certificates,
        patience: Duration::from_secs(20),
        ..settings()
    });
    lax.registry.pull(&pull, &silent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_only_where_that_is_allowed() {
    let server = FakeRegistry::start(|_| Reply::missing()).await;
    let host = Host::new(Settings {
        loopback_is_insecure: false,
        ..settings()
    });
    let error = host.pull(server.reference("a/b")).await.unwrap_err();
    assert!(error.to_string().starts_with("Get \"https://"), "{error}");
    assert_eq!(server.count(|_| true), 0);
}
