//! Images from and to registries: pull, push, run of what is not there yet, login.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use bulkhead_e2e::images::{Compression, Meta, Tar, busybox_tar, docker_archive, sha256};
use bulkhead_e2e::registry::{PASSWORD, Registry, USER};
use bulkhead_e2e::{Cell, Daemon, case};
use serde_json::{Value, json};

fn marked(word: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file("mark", &Meta::mode(0o644), word.as_bytes());
    tar.done()
}

/// Puts an image of busybox and a mark into the registry, with skopeo.
fn publish(registry: &Registry, repository: &str, tag: &str, mark: &str) {
    let archive = docker_archive(
        "published:1",
        &[busybox_tar().to_vec(), marked(mark)],
        &["cat", "/mark"],
    );
    let file = registry.directory().join(sha256(mark.as_bytes()));
    std::fs::write(&file, archive).expect("an archive");
    Registry::skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &format!("docker-archive:{}", file.display()),
        &format!("docker://{}/{repository}:{tag}", registry.address()),
    ]);
}

fn inspected(cell: &Cell, image: &str) -> Value {
    cell.cli(&format!("image inspect {image}")).ok().json()[0].clone()
}

case!(pull_run_push_and_pull_again, |cell| {
    let registry = Registry::start();
    let host = registry.address();
    let name = format!("{host}/{}", cell.name("image"));
    let path = &name[host.len() + 1..];
    let mark = cell.name("mark");
    publish(&registry, path, "latest", &mark);
    // What is not there is pulled.
    let run = cell.run(&format!("--rm {name}")).ok();
    assert_eq!(run.text(), mark);
    assert!(run.err().contains("Unable to find image"), "{run}");
    assert!(run.err().contains("Downloaded newer image"), "{run}");
    cell.cli(&format!("pull {name}"))
        .ok()
        .says("Using default tag: latest")
        .says(&format!("Image is up to date for {name}:latest"));
    let quiet = cell.cli(&format!("pull -q {name}:latest")).ok();
    assert_eq!(quiet.text(), format!("{name}:latest"));
    let image = inspected(cell, &name);
    let digests = image["RepoDigests"].as_array().cloned().unwrap_or_default();
    assert_eq!(digests.len(), 1, "{image}");
    let pinned = digests[0].as_str().expect("a digest").to_owned();
    let digest = pinned.split('@').nth(1).expect("a digest").to_owned();
    let listed = cell.cli("images --digests --no-trunc").ok().text();
    let line = listed.lines().find(|line| line.starts_with(&name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{listed}"));
    assert!(line.contains(&digest), "{line}");
    assert!(
        line.contains(image["Id"].as_str().expect("an ID")),
        "{line}"
    );
    // To another repository: what is there already is not sent again.
    let copy = format!("{host}/{}", cell.name("copy"));
    cell.cli(&format!("tag {name} {copy}:two")).ok();
    let pushed = cell.cli(&format!("push {copy}:two")).ok();
    let pushed = pushed
        .says(&format!("The push refers to repository [{copy}]"))
        .says("two: digest: sha256:")
        .says("Mounted from");
    drop(pushed);
    let again = cell.cli(&format!("push {copy}:two")).ok();
    drop(again.says("Layer already exists"));
    let seen = Registry::skopeo(&[
        "inspect",
        "--tls-verify=false",
        &format!("docker://{copy}:two"),
    ]);
    let seen: Value = serde_json::from_str(&seen).expect("JSON from skopeo");
    // Our own is the very manifest that was pulled.
    if !bulkhead_e2e::daemon::is_reference() {
        assert_eq!(seen["Digest"], digest.as_str());
    }
    assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(2));
    let target = registry.directory().join("copied");
    Registry::skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{copy}:two"),
        &format!("dir:{}", target.display()),
    ]);
    // Gone, and back by its digest.
    let removed = cell.cli(&format!("rmi -f {}", image["Id"].as_str().expect("an ID")));
    drop(removed.ok().says("Untagged").says("Deleted"));
    cell.cli(&format!("pull {pinned}")).ok().says(&digest);
    assert_eq!(cell.run(&format!("--rm {pinned}")).ok().text(), mark);
    let image = inspected(cell, &pinned);
    assert_eq!(image["RepoTags"], json!([]));
    cell.cli(&format!("rmi {pinned}")).ok().says("Untagged");
    // Of what is made here, every layer is sent.
    let own = format!("{host}/{}", cell.name("own"));
    for (tag, word) in [("one", "1"), ("two", "2")] {
        let import = cell.line(&format!("import - {own}:{tag}"));
        import.stdin(marked(word)).output().ok();
    }
    let all = cell.cli(&format!("push --all-tags {own}")).ok();
    drop(all.says("Pushed").says("one: digest:").says("two: digest:"));
    cell.cli(&format!("rmi {own}:one {own}:two")).ok();
    let all = cell.cli(&format!("pull --all-tags {own}")).ok();
    drop(all.says("Downloaded newer image"));
    let tags = cell.cli(&format!("images -q {own}")).ok().lines();
    assert_eq!(tags.len(), 2, "{tags:?}");
    cell.cli(&format!("rmi {own}:one {own}:two")).ok();
});

case!(process refusals_of_pull_and_push, |cell| {
    let registry = Registry::start();
    let host = registry.address();
    publish(&registry, "some/image", "1", "x");
    let missing = cell.cli(&format!("pull {host}/some/image:2")).exits(1);
    drop(missing.says(&format!(
        "manifest for {host}/some/image:2 not found: manifest unknown"
    )));
    cell.running(&format!("--rm {host}/no/such true"))
        .output()
        .exits(125)
        .says("not found");
    let absent = format!("{host}/some/image@sha256:{}", sha256(b"absent"));
    cell.cli(&format!("pull {absent}")).exits(1).says("not found");
    cell.cli(&format!("pull {host}/UPPER/case"))
        .exits(1)
        .says("lowercase");
    cell.cli(&format!("pull -a {host}/some/image:1"))
        .exits(1)
        .says("tag can't be used with --all-tags");
    cell.cli(&format!("push {host}/not/here"))
        .exits(1)
        .says("An image does not exist locally with the tag");
    drop(registry);
    cell.cli(&format!("pull {host}/some/image:1"))
        .exits(1)
        .says(&host)
        .says("connection refused");
    let left = cell.cli("images --format {{.Repository}}").ok().text();
    assert!(!left.contains(&host), "{left}");
});

case!(process login_and_credential_helpers, |cell| {
    let registry = Registry::with_authentication();
    let host = registry.address();
    let client = tempfile::tempdir().expect("a directory");
    let home = client.path().display().to_string();
    let helper = client.path().join("docker-credential-e2e");
    // Keeps what it is given in a file, for the registry that it is given for.
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat > {home}/kept;;\nget) cat {home}/kept;;\n\
         erase) rm -f {home}/kept;;\nesac\n"
    );
    std::fs::write(&helper, script).expect("a helper");
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = format!("{home}:{}", std::env::var("PATH").unwrap_or_default());
    let call = |line: &str| {
        cell.line(line)
            .env("DOCKER_CONFIG", &home)
            .env("PATH", &path)
    };
    let image = format!("{host}/{}:1", cell.name("image"));
    cell.line(&format!("import - {image}"))
        .stdin(marked("secret"))
        .output()
        .ok();
    call(&format!("push {image}"))
        .output()
        .exits(1)
        .says("no basic auth credentials");
    call(&format!("login -u {USER} --password-stdin {host}"))
        .stdin("wrong")
        .output()
        .exits(1)
        .says("401 Unauthorized");
    for config in [json!({}), json!({ "credHelpers": { host.as_str(): "e2e" } })] {
        let file = client.path().join("config.json");
        std::fs::write(&file, config.to_string()).expect("config.json");
        call(&format!("login -u {USER} --password-stdin {host}"))
            .stdin(PASSWORD)
            .output()
            .ok()
            .says("Login Succeeded");
        let kept = std::fs::read_to_string(&file).expect("config.json");
        assert!(!kept.contains(PASSWORD), "{kept}");
        assert_eq!(client.path().join("kept").exists(), config != json!({}));
        call(&format!("push {image}")).output().ok().says("digest:");
        cell.cli(&format!("rmi {image}")).ok();
        cell.cli(&format!("pull {image}"))
            .exits(1)
            .says("no basic auth credentials");
        call(&format!("pull {image}")).output().ok();
        call(&format!("logout {host}"))
            .output()
            .ok()
            .says("Removing login credentials");
        call(&format!("push {image}"))
            .output()
            .exits(1)
            .says("no basic auth credentials");
    }
    cell.cli(&format!("rmi {image}")).ok();
});

case!(ours process platforms_and_forms, |cell| {
    let registry = Registry::start();
    let host = registry.address();
    let config = |os: &str, architecture: &str, layers: &[(Vec<u8>, Compression)]| {
        let ids: Vec<String> = layers
            .iter()
            .map(|(tar, _)| format!("sha256:{}", sha256(tar)))
            .collect();
        json!({
            "os": os, "architecture": architecture, "config": { "Cmd": ["cat", "/mark"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        })
    };
    let repository = cell.name("list");
    // Cells run side by side: an image of its own for each, to be removed by its ID.
    let mark = |architecture: &str| format!("{architecture} {repository}");
    let mut entries = Vec::new();
    for (os, architecture, compression) in [
        ("linux", "arm64", Compression::Plain),
        ("linux", "amd64", Compression::Zstd),
        ("windows", "amd64", Compression::Gzip),
    ] {
        let layers = [
            (busybox_tar().to_vec(), compression),
            (marked(&mark(architecture)), compression),
        ];
        let config = config(os, architecture, &layers);
        let tag = format!("{os}-{architecture}");
        let mut entry = registry.image(&repository, &tag, &config, &layers);
        entry["platform"] = json!({ "os": os, "architecture": architecture });
        entries.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
    registry.manifest(&repository, "all", kind, &index);
    let image = format!("{host}/{repository}");
    let printed = cell.run(&format!("--rm {image}:all")).ok().text();
    assert_eq!(printed, mark("amd64"));
    cell.cli(&format!("pull --platform linux/arm64 {image}:all"))
        .ok();
    assert_eq!(
        inspected(cell, &format!("{image}:all"))["Architecture"],
        "arm64"
    );
    // Nobody asked for that when it becomes a container.
    let foreign = cell.cli(&format!("create {image}:all")).ok().says(
        "The requested image's platform (linux/arm64) does not match the detected host platform \
         (linux/amd64) and no specific platform was requested",
    );
    cell.cli(&format!("rm {}", foreign.text())).ok();
    // A build that asks for another gets that, although this one is here.
    let arm64 = inspected(cell, &format!("{image}:all"))["Id"].clone();
    let built = cell.name("built");
    let dockerfile = format!("FROM --platform=linux/amd64 {image}:all\nLABEL of={repository}\n");
    cell.line(&format!("build -t {built} -")).stdin(dockerfile).output().ok();
    assert_eq!(inspected(cell, &built)["Architecture"], "amd64");
    let arm64 = arm64.as_str().expect("an ID");
    cell.cli(&format!("rmi -f {built} {arm64}")).ok();
    cell.cli(&format!("pull --platform linux/s390x {image}:all"))
        .exits(1)
        .says("no matching manifest for linux/s390x in the manifest list entries");
    cell.cli(&format!("pull {image}:windows-amd64"))
        .exits(1)
        .says("operating system \"windows\" cannot be used");
    cell.cli(&format!("pull --platform windows/amd64 {image}:linux-amd64"))
        .exits(1)
        .says("operating system \"windows\" is not supported");
    // The same in docker's own forms.
    let plain = mark("schema 2");
    publish(&registry, &repository, "single", &plain);
    let single = format!("docker://{image}:single");
    let manifest = Registry::skopeo(&["inspect", "--raw", "--tls-verify=false", &single]);
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let entry = json!({
        "mediaType": kind, "size": manifest.len(),
        "digest": format!("sha256:{}", sha256(manifest.as_bytes())),
        "platform": { "os": "linux", "architecture": "amd64" },
    });
    let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [entry] });
    registry.manifest(&repository, "docker", kind, &list);
    assert_eq!(cell.run(&format!("--rm {image}:docker")).ok().text(), plain);
    let ids = cell.cli(&format!("images -aq {image}")).ok().lines();
    cell.cli(&format!("rmi -f {}", ids.join(" "))).ok();
});

// As many layers as an image may have, some of them more than once.
case!(ours many_layers_of_a_registry, |cell| {
    let registry = Registry::start();
    let mut layers = vec![(busybox_tar().to_vec(), Compression::Gzip)];
    for number in 0..126 {
        layers.push((marked(&format!("layer {}", number % 63)), Compression::Gzip));
    }
    for count in [60, 127] {
        let layers = &layers[..count];
        let repository = cell.name("deep");
        let ids: Vec<String> = layers
            .iter()
            .map(|(tar, _)| format!("sha256:{}", sha256(tar)))
            .collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": { "Cmd": ["cat", "/mark"], "Labels": { "of": repository } },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        registry.image(&repository, "1", &config, layers);
        let image = format!("{}/{repository}:1", registry.address());
        let expected = format!("layer {}", (count - 2) % 63);
        assert_eq!(cell.run(&format!("--rm {image}")).ok().text(), expected);
        cell.cli(&format!("rmi {image}")).ok();
    }
});

case!(process a_mirror_is_asked_first, |cell| {
    let registry = Registry::start();
    publish(&registry, "library/mirrored", "1", "by way of a mirror");
    let mirror = format!("http://{}", registry.address());
    let cell = cell.on(Daemon::start(&["--registry-mirror", &mirror]));
    assert_eq!(
        cell.run("--rm mirrored:1").ok().text(),
        "by way of a mirror"
    );
    let image = inspected(&cell, "mirrored:1");
    let digest = image["RepoDigests"][0].as_str().unwrap_or_default();
    assert!(digest.starts_with("mirrored@sha256:"), "{image}");
    let info = cell.api("GET", "/info", None).json();
    let mirrors = &info["RegistryConfig"]["Mirrors"];
    assert_eq!(mirrors, &json!([format!("{mirror}/")]), "{info}");
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
});

/// A program that keeps credentials in a file, and notes what it was asked for.
const HELPER: &str = r#"#!/bin/sh
here=$(dirname "$0")
input=$(cat)
echo "$1" >> "$here/asked"
case $1 in
store) printf %s "$input" > "$here/kept" ;;
get) [ -e "$here/kept" ] && cat "$here/kept" || { echo "credentials not found in native keychain"; exit 1; } ;;
list) [ -e "$here/kept" ] && sed 's/.*"ServerURL":"\([^"]*\)".*"Username":"\([^"]*\)".*/{"\1":"\2"}/' "$here/kept" || echo '{}' ;;
erase) rm -f "$here/kept" ;;
esac
"#;

/// What is asked of a registry with credentials in a header: the answer's status and body.
fn described(cell: &Cell, image: &str, credentials: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(cell.daemon().socket()).expect("a daemon");
    let head = format!(
        "GET /distribution/{image}/json HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\
         X-Registry-Auth: {credentials}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("a listener");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.find('{').and_then(|begin| {
        let end = answer.rfind('}')?;
        serde_json::from_str(&answer[begin..=end]).ok()
    });
    (status.expect("a status"), body.unwrap_or_default())
}

case!(process what_registries_say_of_images, |cell| {
    let registry = Registry::with_authentication();
    let image = format!("{}/some/image:1", registry.address());
    // {"username":"x","password":"wrong"}
    let wrong = "eyJ1c2VybmFtZSI6IngiLCJwYXNzd29yZCI6Indyb25nIn0=";
    let (status, body) = described(cell, &image, wrong);
    assert_eq!(status, 401, "{body}");
    let message = body["message"].as_str().unwrap_or_default();
    assert!(message.contains("authentication required"), "{message}");
    // What is no image has no platform.
    let registry = Registry::start();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let config = registry.blob("some/thing", "application/vnd.example.config", b"no JSON");
    let layer = registry.blob("some/thing", "application/vnd.example.thing", b"thing");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer],
    });
    let descriptor = registry.manifest("some/thing", "1", kind, &manifest);
    let thing = format!("{}/some/thing:1", registry.address());
    let (status, body) = described(cell, &thing, "e30=");
    assert_eq!(status, 200, "{body}");
    let found = if body["Descriptor"].is_null() { &body } else { &body["Descriptor"] };
    assert_eq!(found["digest"], descriptor["digest"], "{body}");
    assert!(body["Platforms"].as_array().is_none_or(Vec::is_empty), "{body}");
});

case!(process a_store_of_credentials_serves_builds_too, |cell| {
    let registry = Registry::with_authentication();
    let host = registry.address();
    let directory = registry.directory().join("helper");
    std::fs::create_dir(&directory).expect("a directory");
    let program = directory.join("docker-credential-fake");
    std::fs::write(&program, HELPER).expect("a program");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("bits");
    let path = format!(
        "{}:{}",
        directory.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let image = format!("{host}/{}", cell.name("kept"));
    let call = |line: &str| {
        cell.line(line)
            .env("DOCKER_CONFIG", &directory.to_string_lossy())
            .env("PATH", &path)
    };
    let settings = json!({ "credsStore": "fake" }).to_string();
    std::fs::write(directory.join("config.json"), settings).expect("a configuration");
    cell.cli(&format!("tag busybox {image}")).ok();
    call(&format!("login -u {USER} --password-stdin {host}"))
        .stdin(PASSWORD)
        .output()
        .ok()
        .says("Login Succeeded");
    call(&format!("push {image}")).output().ok();
    cell.cli(&format!("rmi {image}")).ok();
    let built = cell.name("built");
    let dockerfile = format!("FROM {image}\nLABEL cell={}\n", cell.number());
    let build = || {
        call(&format!("build -t {built} -"))
            .stdin(dockerfile.as_bytes())
            .output()
    };
    build().ok();
    cell.cli(&format!("rmi {built} {image}")).ok();
    call(&format!("logout {host}")).output().ok();
    build().fails().says("no basic auth credentials");
    // As old clients have written it: a URL, and what is asked for in Base64.
    let auths = json!({ format!("http://{host}/v1/"): { "auth": "dXNlcjpzZWNyZXQ=" } });
    let settings = json!({ "auths": auths }).to_string();
    std::fs::write(directory.join("config.json"), settings).expect("a configuration");
    build().ok();
    cell.cli(&format!("rmi {built} {image}")).ok();
    let asked = std::fs::read_to_string(directory.join("asked")).expect("what was asked");
    for action in ["store", "list", "get", "erase"] {
        assert!(asked.lines().any(|line| line == action), "{asked}");
    }
});
