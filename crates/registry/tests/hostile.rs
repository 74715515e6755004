//! Pulls from registries that are broken, slow or hostile. Afterwards the store is as before.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_image::{Digest, Platform};
use bulkhead_registry::{Credentials, ErrorKind, PullRequest, Reporter, Settings};
use common::{
    Content, FakeRegistry, GZIP, Host, LIST, MANIFEST, PLAIN, Reply, Request, ZSTD, compressed,
    digest, noise, settings, tar,
};
use serde_json::json;

fn is_blob(request: &Request) -> bool {
    request.path.contains("/blobs/")
}

fn three_layers() -> (Content, Vec<Vec<u8>>) {
    let tars: Vec<Vec<u8>> = (0..3)
        .map(|seed| tar("noise", &noise(seed, 400_000)))
        .collect();
    let forms = [GZIP, ZSTD, PLAIN];
    let layers: Vec<_> = tars.iter().cloned().zip(forms).collect();
    let mut content = Content::default();
    content.image("latest", "linux", &layers);
    (content, tars)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_form_come_whole() {
    let (content, tars) = three_layers();
    let server = FakeRegistry::start(move |request| content.answer(request)).await;
    let host = Host::new(settings());
    let pulled = host.pull(server.reference("a/b")).await.unwrap();
    assert!(pulled[0].is_new);
    let image = host.store.inspect(&pulled[0].id).unwrap();
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    assert_eq!(image.document.rootfs.diff_ids, diff_ids);
    assert_eq!(image.summary.digests[0].digest(), Some(pulled[0].digest));
    assert_eq!(host.store.check(false).unwrap().findings, []);
    let blobs = server.count(is_blob);
    let again = host.pull(server.reference("a/b")).await.unwrap();
    assert!(!again[0].is_new);
    assert_eq!(server.count(is_blob), blobs, "nothing is fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_is_resumed() {
    for knows_ranges in [true, false] {
        let (content, _) = three_layers();
        let breaks = AtomicUsize::new(0);
        let server = FakeRegistry::start(move |request| {
            let mut asked = request.clone();
            if !knows_ranges {
                asked.headers.remove("range");
            }
            let mut reply = content.answer(&asked);
            if is_blob(request) && reply.body.len() > 100_000 {
                // Sometimes at once, sometimes later, and once with an error.
                match breaks.fetch_add(1, Ordering::Relaxed) {
                    0 => reply = Reply::new(503, "busy"),
                    at @ 1..=5 => reply.cut = Some(90_000 * at),
                    6 => reply.pause = Duration::from_secs(5),
                    _ => {}
                }
            }
            reply
        })
        .await;
        let host = Host::new(settings());
        host.pull(server.reference("a/b")).await.unwrap();
        assert_eq!(host.store.check(false).unwrap().findings, []);
        let ranges = server.count(|request| !request.header("range").is_empty());
        assert!(ranges > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_fetch_a_shared_layer_once() {
    let shared = tar("shared", &noise(1, 300_000));
    let mut content = Content::default();
    for name in ["one", "two"] {
        let own = tar("own", name.as_bytes());
        content.image(name, "linux", &[(shared.clone(), GZIP), (own, GZIP)]);
    }
    let name = digest(&compressed(&shared, GZIP));
    let slow = name.clone();
    let server = FakeRegistry::start(move |request| {
        let mut reply = content.answer(request);
        if request.path.ends_with(&slow) {
            reply.pause = Duration::from_millis(300);
        }
        reply
    })
    .await;
    let host = Host::new(settings());
    let (one, two) = tokio::join!(
        host.pull(server.reference("a/b:one")),
        host.pull(server.reference("c/d:two")),
    );
    assert_ne!(one.unwrap()[0].id, two.unwrap()[0].id);
    assert_eq!(server.count(|request| request.path.ends_with(&name)), 1);
    assert_eq!(host.store.check(false).unwrap().findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_leaves_nothing() {
    let (content, _) = three_layers();
    let server = FakeRegistry::start(move |request| {
        let mut reply = content.answer(request);
        if is_blob(request) && reply.body.len() > 100_000 {
            reply.length = Some(reply.body.len() as u64);
            reply.cut = Some(50_000);
            reply.pause = Duration::from_millis(100);
        }
        reply
    })
    .await;
    let host = Host::new(Settings {
        attempts: 1000,
        ..settings()
    });
    let pull = host.pull(server.reference("a/b"));
    assert!(
        tokio::time::timeout(Duration::from_millis(700), pull)
            .await
            .is_err()
    );
    host.is_empty().await;
}

/// A case: what the registry does, and words of the error.
type Case = (&'static str, Box<dyn Fn() -> Content>, &'static str);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_announced_is_refused() {
    let layer = || tar("file", &noise(9, 200_000));
    // Changes the manifest of a good image.
    fn forged(edit: impl Fn(&mut serde_json::Value) + 'static) -> Box<dyn Fn() -> Content> {
        Box::new(move || {
            let mut content = Content::default();
            content.image(
                "latest",
                "linux",
                &[(tar("file", &noise(9, 200_000)), GZIP)],
            );
            let (_, bytes) = content.manifests["latest"].clone();
            let mut manifest = serde_json::from_slice(&bytes).unwrap();
            edit(&mut manifest);
            content.document("latest", MANIFEST, &manifest);
            content
        })
    }
    let gzip = compressed(&layer(), GZIP);
    let size = gzip.len();
    let cases: Vec<Case> = vec![
        (
            "a layer's bytes are others",
            Box::new({
                let gzip = gzip.clone();
                move || {
                    let mut content = Content::default();
                    content.image(
                        "latest",
                        "linux",
                        &[(tar("file", &noise(9, 200_000)), GZIP)],
                    );
                    // As long, a valid gzip stream, and not the announced one.
                    let mut other = gzip.clone();
                    other[4] ^= 1;
                    content.blobs.insert(digest(&gzip), other);
                    content
                }
            }),
            "filesystem layer verification failed",
        ),
        (
            "a layer is longer",
            forged(move |manifest| manifest["layers"][0]["size"] = json!(size - 1)),
            "longer than the",
        ),
        (
            "a layer is shorter",
            forged(move |manifest| manifest["layers"][0]["size"] = json!(size + 1)),
            "unexpected EOF",
        ),
        (
            "a layer is of no size",
            forged(|manifest| manifest["layers"][0]["size"] = json!(-1)),
            "invalid manifest",
        ),
        (
            "a layer is missing",
            forged(|manifest| manifest["layers"][0]["digest"] = json!(digest(b"no"))),
            "manifest unknown",
        ),
        (
            "a layer is one too many",
            forged(|manifest| {
                let layer = manifest["layers"][0].clone();
                manifest["layers"].as_array_mut().unwrap().push(layer);
            }),
            "mismatched layers",
        ),
        (
            "the config is another",
            forged(|manifest| manifest["config"]["size"] = json!(1)),
            "instead of 1",
        ),
        (
            "the config is huge",
            forged(|manifest| manifest["config"]["size"] = json!(1_u64 << 40)),
            "config is over",
        ),
        (
            "the layer's content is another",
            Box::new(|| {
                let mut content = Content::default();
                let good = tar("file", b"good");
                content.image("latest", "linux", &[(good.clone(), GZIP)]);
                let (_, bytes) = content.manifests["latest"].clone();
                let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                let bad = compressed(&tar("file", b"evil"), GZIP);
                manifest["layers"][0] = content.blob(GZIP, &bad);
                content.document("latest", MANIFEST, &manifest);
                content
            }),
            "filesystem layer verification failed",
        ),
        (
            "the layer is no archive",
            Box::new(|| {
                let mut content = Content::default();
                content.image("latest", "linux", &[(noise(3, 5000), GZIP)]);
                content
            }),
            "failed to register layer",
        ),
        (
            "the layer is broken inside",
            Box::new(|| {
                let mut content = Content::default();
                content.image(
                    "latest",
                    "linux",
                    &[(tar("file", &noise(9, 200_000)), GZIP)],
                );
                let (_, bytes) = content.manifests["latest"].clone();
                let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                let mut bad = compressed(&tar("file", &noise(9, 200_000)), GZIP);
                let middle = bad.len() / 2;
                bad.truncate(middle);
                manifest["layers"][0] = content.blob(GZIP, &bad);
                content.document("latest", MANIFEST, &manifest);
                content
            }),
            "failed to register layer",
        ),
        (
            "an image for windows",
            Box::new(|| {
                let mut content = Content::default();
                content.image("latest", "windows", &[(tar("file", b"x"), GZIP)]);
                content
            }),
            "operating system \"windows\" cannot be used",
        ),
        (
            "a list without our platform",
            Box::new(|| {
                let mut content = Content::default();
                let mut entry = content.image("x", "windows", &[(tar("file", b"x"), GZIP)]);
                entry["platform"] = json!({ "os": "windows", "architecture": "amd64" });
                let list = json!({ "schemaVersion": 2, "manifests": [entry] });
                content.document("latest", LIST, &list);
                content
            }),
            "no matching manifest for linux/",
        ),
        (
            "lists within lists",
            Box::new(|| {
                let mut content = Content::default();
                let mut entry = content.image("x", "linux", &[(tar("file", b"x"), GZIP)]);
                for _ in 0..5 {
                    let list = json!({ "schemaVersion": 2, "manifests": [entry] });
                    entry = content.document("latest", LIST, &list);
                }
                content
            }),
            "nested too deep",
        ),
        (
            "a document of its own kind",
            Box::new(|| {
                let mut content = Content::default();
                content.document("latest", "text/html", &json!({ "schemaVersion": 2 }));
                content
            }),
            "unsupported manifest media type",
        ),
        (
            "an artifact that is no image",
            forged(|manifest| manifest["config"]["mediaType"] = json!("application/vnd.helm")),
            "is no image's",
        ),
    ];
    for (what, content, words) in cases {
        let content = content();
        let server = FakeRegistry::start(move |request| content.answer(request)).await;
        let host = Host::new(Settings {
            attempts: 2,
            ..settings()
        });
        let error = host.pull(server.reference("a/b")).await.expect_err(what);
        let message = error.full_message();
        assert!(message.contains(words), "{what}: {message}");
        host.is_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_and_floods_are_bounded() {
    // Zeros without end, where documents are expected.
    for place in ["/manifests/", "/blobs/", "/v2/"] {
        let (content, _) = three_layers();
        let server = FakeRegistry::start(move |request| {
            if request.path.contains(place) && (place != "/v2/" || request.path == "/v2/") {
                return Reply {
                    endless: true,
                    ..Reply::new(if place == "/v2/" { 500 } else { 200 }, vec![b' '; 65536])
                }
                .with("Content-Type", MANIFEST);
            }
            content.answer(request)
        })
        .await;
        let host = Host::new(settings());
        let error = host.pull(server.reference("a/b")).await.unwrap_err();
        assert_ne!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        host.is_empty().await;
    }
    // A manifest by digest with other bytes than these.
    let (content, _) = three_layers();
    let server = FakeRegistry::start(move |request| {
        let mut reply = content.answer(request);
        if request.path.contains("/manifests/") {
            reply.body.push(b' ');
        }
        reply
    })
    .await;
    let (content, _) = three_layers();
    let known = digest(&content.manifests["latest"].1);
    let host = Host::new(settings());
    let error = host.pull(server.reference(&format!("a/b@{known}"))).await;
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("manifest verification failed"),
        "{message}"
    );
    host.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_not_waited_for() {
    for place in ["/v2/", "/manifests/", "/blobs/"] {
        let (content, _) = three_layers();
        let server = FakeRegistry::start(move |request| {
            let mut reply = content.answer(request);
            if request.path.contains(place) {
                reply.pause = Duration::from_secs(3600);
            }
            reply
        })
        .await;
        let host = Host::new(Settings {
            patience: Duration::from_millis(100),
            attempts: 2,
            ..settings()
        });
        let pull = host.pull(server.reference("a/b"));
        let ended = tokio::time::timeout(Duration::from_secs(20), pull).await;
        // What the greeting holds does not matter.
        if place == "/v2/" {
            continue;
        }
        assert!(ended.expect("it ends").is_err(), "{place}");
        host.is_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_used_and_renewed() {
    let (content, _) = three_layers();
    let issued = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&issued);
    let address = Arc::new(std::sync::OnceLock::new());
    let own = Arc::clone(&address);
    let server = FakeRegistry::start(move |request| {
        let base = own.get().unwrap();
        if request.path.starts_with("/token?") {
            // "user:secret"
            if request.header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
                return Reply::new(401, r#"{"details":"incorrect username or password"}"#);
            }
            assert!(request.path.contains("service=fake"), "{}", request.path);
            assert!(request.path.contains("scope=repository%3Aa%2Fb%3Apull"));
            let number = counter.fetch_add(1, Ordering::Relaxed);
            return Reply::new(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#));
        }
        // Only the second token is good: the first is taken for too old.
        if request.header("authorization") != "Bearer t1" {
            return Reply::new(
                401,
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            )
            .with(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{base}/token\",service=\"fake\",scope=\"x\""),
            );
        }
        content.answer(request)
    })
    .await;
    address.set(server.address).unwrap();
    let host = Host::new(settings());
    let mut request = PullRequest {
        reference: server.reference("a/b:latest"),
        all_tags: false,
        platform: Some(Platform::host()),
        credentials: Some(Credentials {
            username: "user".to_owned(),
            password: "wrong".to_owned(),
            ..Credentials::default()
        }),
    };
    let denied = host.registry.pull(&request, &Reporter::silent()).await;
    let denied = denied.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::NotFound);
    let message = denied.to_string();
    assert!(message.contains("pull access denied for"), "{message}");
    assert!(
        message.contains("incorrect username or password"),
        "{message}"
    );
    request.credentials.as_mut().unwrap().password = "secret".to_owned();
    host.registry
        .pull(&request, &Reporter::silent())
        .await
        .unwrap();
    assert_eq!(issued.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_redirect() {
    let (content, _) = three_layers();
    let elsewhere = content.clone();
    let storage = FakeRegistry::start(move |request| elsewhere.answer(request)).await;
    let target = storage.address;
    let server = FakeRegistry::start(move |request| {
        // "user:secret"
        if request.header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if is_blob(request) {
            let place = format!("http://{target}{}", request.path);
            return Reply::new(307, "").with("Location", place);
        }
        content.answer(request)
    })
    .await;
    let host = Host::new(settings());
    let request = PullRequest {
        reference: server.reference("a/b:latest"),
        all_tags: false,
        platform: None,
        credentials: Some(Credentials {
            username: "user".to_owned(),
            password: "secret".to_owned(),
            ..Credentials::default()
        }),
    };
    host.registry
        .pull(&request, &Reporter::silent())
        .await
        .unwrap();
    assert!(storage.count(is_blob) >= 4);
    assert_eq!(
        storage.count(|request| !request.header("authorization").is_empty()),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_fails_is_passed_over() {
    let server = FakeRegistry::start(|_| Reply::missing()).await;
    let host = Host::new(Settings {
        mirrors: vec![format!("http://{}/", server.address)],
        // Docker Hub is not to be asked by a test.
        https_proxy: Some("http://127.0.0.1:9".to_owned()),
        ..settings()
    });
    let reference = bulkhead_image::Reference::parse("busybox").unwrap();
    let error = host.pull(reference).await.unwrap_err().to_string();
    assert!(error.contains("registry-1.docker.io"), "{error}");
    assert_eq!(
        server.count(|request| request.path == "/v2/library/busybox/manifests/latest"),
        1
    );
}
