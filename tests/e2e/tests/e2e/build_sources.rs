//! Builds: where their files come from, what they are limited by, and what they find again.

use std::collections::BTreeMap;

use bulkhead_e2e::http::{Files, Server};
use bulkhead_e2e::images::{Meta, Tar, sha256};
use bulkhead_e2e::{BUSYBOX, Daemon, case};

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = Tar::new();
    for (path, content) in files {
        tar.file(path, &Meta::mode(0o644), content.as_bytes());
    }
    tar.done()
}

case!(process steps_back_stay_in_the_context, |cell| {
    let name = cell.name("image");
    let dockerfile = format!("FROM {BUSYBOX}\nCOPY sub/../none/../file /file\n");
    let context = archive(&[("named", &dockerfile), ("file", "it"), ("sub/other", "")]);
    let build = |dockerfile: &str, context: &[u8]| {
        let path = format!("/build?t={name}&dockerfile={dockerfile}");
        let body = Some(("application/x-tar", context));
        let answer = bulkhead_e2e::api::request(&cell.daemon().socket(), "POST", &path, body);
        answer.expect("an answer")
    };
    for way in ["sub/../named", "none/../sub/.././named", "/named"] {
        let answer = build(way, &context);
        let told = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(told.contains("Successfully tagged"), "{way}: {told}");
        assert_eq!(cell.prints(&name, "cat /file"), ["it"]);
        cell.cli(&format!("rmi {name}")).ok();
    }
    for way in ["../named", "sub/../../named"] {
        let answer = build(way, &context);
        assert!(answer.status >= 400, "{way}: {}", answer.status);
        let words = format!("forbidden path outside the build context: {way} ()");
        assert_eq!(answer.message(), words);
    }
    // The same of what is in the archive.
    let entry = |path: &[u8]| {
        let mut tar = Tar::new();
        tar.file("named", &Meta::mode(0o644), dockerfile.as_bytes());
        tar.raw(path, b"", tar::EntryType::Regular, 2, b"it");
        tar.done()
    };
    let answer = build("named", &entry(b"sub/../file"));
    let told = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(told.contains("Successfully tagged"), "{told}");
    assert_eq!(cell.prints(&name, "cat /file"), ["it"]);
    cell.cli(&format!("rmi {name}")).ok();
});

// docker's client adds it to the archive, which then ends with the file's last byte.
case!(process a_dockerfile_beside_the_context, |cell| {
    let name = cell.name("image");
    let dir = tempfile::tempdir().expect("a directory");
    let context = dir.path().join("context");
    std::fs::create_dir(&context).expect("a directory");
    std::fs::write(context.join("file"), "it").expect("a file");
    let dockerfile = dir.path().join("Dockerfile");
    std::fs::write(&dockerfile, format!("FROM {BUSYBOX}\nCOPY . /all\n")).expect("a file");
    let (dockerfile, context) = (dockerfile.display(), context.display());
    cell.building(&format!("-t {name} -f {dockerfile} {context}")).output().ok();
    assert_eq!(cell.prints(&name, "ls /all"), ["file"]);
    cell.cli(&format!("rmi {name}")).ok();
});

case!(process what_a_context_leaves_out, |cell| {
    let name = cell.name("image");
    let directory = tempfile::tempdir().expect("a directory");
    let dockerfile = format!("FROM {BUSYBOX}\nCOPY . /all\nLABEL cell={}\n", cell.number());
    let ignore = "# a comment\n\n*.log\n!keep.log\ntemp?\nsub/dir/\n!sub/dir/kept\n**/*.tmp\n\
                  .dockerignore\nDockerfile\n/rooted\n";
    for (path, content) in [
        ("Dockerfile", dockerfile.as_str()),
        (".dockerignore", ignore),
        ("a.log", ""),
        ("keep.log", ""),
        ("temp1", ""),
        ("temp12", ""),
        ("rooted", ""),
        ("sub/rooted", ""),
        ("sub/a.log", ""),
        ("sub/x.tmp", ""),
        ("x.tmp", ""),
        ("sub/dir/gone", ""),
        ("sub/dir/kept", ""),
        ("sub/Dockerfile", ""),
    ] {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(path, content).expect("a file");
    }
    let root = directory.path().display();
    cell.building(&format!("-t {name} {root}")).output().ok();
    let mut found = cell.prints(&name, "sh -c 'cd /all; find . -type f'");
    found.sort();
    assert_eq!(
        found,
        [
            "./keep.log",
            "./sub/Dockerfile",
            "./sub/a.log",
            "./sub/dir/kept",
            "./sub/rooted",
            "./temp12"
        ]
    );
    // A file that is left out is not there for COPY either.
    std::fs::write(
        directory.path().join("Dockerfile"),
        format!("FROM {BUSYBOX}\nCOPY a.log /\n"),
    )
    .expect("a file");
    cell.building(&root.to_string())
        .output()
        .exits(1)
        .says("a.log");
    std::fs::write(directory.path().join(".dockerignore"), "[\n").expect("a file");
    cell.building(&root.to_string()).output().exits(1);
    cell.cli(&format!("rmi {name}")).ok();
});

case!(process a_dockerfile_alone_and_remote_sources, |cell| {
    let (name, mark) = (cell.name("image"), cell.number());
    let dockerfile = format!("FROM {BUSYBOX}\nRUN echo {mark} > /said\nCMD cat /said\n");
    cell.building(&format!("-t {name} -"))
        .stdin(dockerfile.as_bytes())
        .output()
        .ok();
    assert_eq!(cell.prints(&name, ""), [mark.to_string()]);

    let remote = format!("FROM {BUSYBOX}\nCOPY file /said\nCMD cat /said\n");
    let word = format!("remote {mark}");
    let context = archive(&[("Dockerfile", remote.as_str()), ("file", word.as_str())]);
    let files: Files = BTreeMap::from([
        ("/context.tar".to_owned(), ("application/x-tar", context)),
        (
            "/Dockerfile".to_owned(),
            ("text/plain", format!("{dockerfile}LABEL a=b\n").into_bytes()),
        ),
        (
            "/unnamed".to_owned(),
            ("application/octet-stream", dockerfile.clone().into_bytes()),
        ),
        ("/page".to_owned(), ("text/html", b"<p>".to_vec())),
        (
            "/dir/file?x=y".to_owned(),
            ("application/octet-stream", b"fetched\n".to_vec()),
        ),
    ]);
    let server = Server::start(files);
    let host = server.address();
    cell.building(&format!("-t {name} http://{host}/context.tar"))
        .output()
        .ok();
    assert_eq!(cell.prints(&name, ""), [word]);
    cell.building(&format!("-t {name} http://{host}/Dockerfile"))
        .output()
        .ok();
    assert_eq!(cell.prints(&name, ""), [mark.to_string()]);
    cell.building(&format!("http://{host}/missing.tar"))
        .output()
        .exits(1)
        .says("404");

    // What its server has no name for is looked at. Clients fetch by themselves.
    let remote = format!("/build?t={name}&remote=http://{host}/unnamed&isolation=");
    let isolation = if bulkhead_e2e::daemon::is_reference() { "" } else { cell.isolation_name() };
    let answer = cell.api("POST", &(remote + isolation), None);
    assert_eq!(answer.status, 200, "{}", answer.message());
    assert_eq!(cell.prints(&name, ""), [mark.to_string()]);
    let answer = cell.api("POST", &format!("/build?remote=http://{host}/page"), None);
    let words = "unsupported Content-Type \"text/html\"";
    assert!(answer.message().contains(words), "{}", answer.message());
    let answer = cell.api("POST", &format!("/build?remote=http://{host}/missing.tar"), None);
    let prefix = format!("error downloading remote context http://{host}/missing.tar: ");
    assert_eq!(answer.status, 404, "{}", answer.message());
    assert!(answer.message().starts_with(&prefix), "{}", answer.message());

    let add = format!("FROM {BUSYBOX}\nADD http://{host}/dir/file?x=y /there/\n");
    cell.building(&format!("-t {name} -"))
        .stdin(add.as_bytes())
        .output()
        .ok();
    // As docker has it: its own name, 0600, the server's time.
    assert_eq!(
        cell.prints(&name, "sh -c 'cat /there/file; stat -c \"%a %Y\" /there/file'"),
        ["fetched", "600 1000000000"]
    );
    let missing = format!("FROM {BUSYBOX}\nADD http://{host}/none /there/\n");
    cell.building("-")
        .stdin(missing.as_bytes())
        .output()
        .exits(1)
        .says("404");
    if !bulkhead_e2e::daemon::is_reference() {
        for (sum, code) in [(sha256(b"fetched\n"), 0), (sha256(b"another"), 1)] {
            let add = format!(
                "FROM {BUSYBOX}\nADD --checksum=sha256:{sum} http://{host}/dir/file?x=y /there/\n"
            );
            let built = cell.building("-").stdin(add.as_bytes()).output().exits(code);
            if code == 1 {
                drop(built.says("digest mismatch"));
            }
        }
    }
    cell.cli(&format!("rmi {name}")).ok();
});

case!(networks_and_limits_of_steps, |cell| {
    let name = cell.name("image");
    let mark = cell.number();
    let dockerfile = format!(
        "FROM {BUSYBOX}\nLABEL cell={mark}\n\
         RUN ls /sys/class/net > /net && df -k /dev/shm | tail -n1 > /shm && ulimit -n > /nofile\n"
    );
    cell.building(&format!(
        "--network none --shm-size 16m --ulimit nofile=123:456 -t {name} -"
    ))
    .stdin(dockerfile.as_bytes())
    .output()
    .ok();
    let said = cell.prints(&name, "cat /net /nofile /shm");
    assert!(said.contains(&"lo".to_owned()), "{said:?}");
    let rest = &said[said.len() - 2..];
    assert_eq!(rest[0], "123");
    assert!(rest[1].contains(" 16384 "), "{said:?}");
    assert!(!said.contains(&"eth0".to_owned()), "{said:?}");
    // More memory than there may be.
    let hungry = format!(
        "FROM {BUSYBOX}\nLABEL cell={mark}\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n"
    );
    cell.building("--force-rm -m 64m --memory-swap 64m -")
        .stdin(hungry.as_bytes())
        .output()
        .fails()
        .says("returned a non-zero code");
    cell.building("--force-rm -")
        .stdin(hungry.as_bytes())
        .output()
        .ok();
    cell.building("--network no-such-network -")
        .stdin(format!("{hungry}RUN true\n").as_bytes())
        .output()
        .fails()
        .says("no-such-network");
    cell.cli(&format!("rmi {name}")).ok();
});

case!(ours process steps_of_another_image_count, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let dockerfile = format!("FROM {BUSYBOX}\nRUN echo x > /x\nCOPY file /file\nRUN echo y > /y\n");
    let context = archive(&[("Dockerfile", dockerfile.as_str()), ("file", "z")]);
    let build = |rest: &str| {
        cell.building(&format!("{rest} -"))
            .stdin(context.clone())
            .output()
            .ok()
            .to_string()
    };
    build("-t first");
    let layers = |image: &str| cell.cli(&format!("image inspect -f {{{{.RootFS}}}} {image}")).ok().text();
    // Nothing but the image tells of its steps now.
    cell.api("POST", "/build/prune", None);
    let again = build("--cache-from first -t second");
    assert!(!again.contains("Running in"), "{again}");
    assert_eq!(again.matches("Using cache").count(), 3, "{again}");
    assert_eq!(layers("first"), layers("second"));
    cell.api("POST", "/build/prune", None);
    assert!(build("--cache-from no-such-image -t third").contains("Running in"));
    // Also when the steps are known: only what is named counts.
    let fourth = build("--cache-from no-such-image -t fourth");
    assert!(!fourth.contains("Using cache"), "{fourth}");
    assert_eq!(build("-t fifth").matches("Using cache").count(), 3);
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
});

case!(ours process proxies_of_the_daemons_environment, |cell| {
    let files: Files = BTreeMap::from([(
        "http://files.invalid/file".to_owned(),
        ("application/octet-stream", b"by the proxy\n".to_vec()),
    )]);
    let proxy = Server::start(files);
    let direct = Server::start(BTreeMap::from([(
        "/file".to_owned(),
        ("application/octet-stream", b"directly\n".to_vec()),
    )]));
    let url = format!("http://{}", proxy.address());
    let cell = cell.on(Daemon::start_with(
        &["--insecure-registry", "plain.invalid"],
        &[
            ("HTTP_PROXY", &url),
            ("HTTPS_PROXY", &url),
            ("NO_PROXY", "unreached.invalid"),
        ],
    ));
    let add = |url: &str| format!("FROM {BUSYBOX}\nADD {url} /file\nCMD cat /file\n");
    for (url, said) in [
        ("http://files.invalid/file".to_owned(), "by the proxy"),
        (format!("http://{}/file", direct.address()), "directly"),
    ] {
        cell.building("-t fetched -").stdin(add(&url).as_bytes()).output().ok();
        assert_eq!(cell.prints("fetched", ""), [said]);
    }
    cell.building("-").stdin(add("http://unreached.invalid/file").as_bytes()).output().fails();
    cell.cli("pull plain.invalid/some/image").fails();
    cell.cli("pull secure.invalid/some/image").fails();
    let asked = proxy.asked();
    assert!(asked.contains(&"GET http://files.invalid/file".to_owned()), "{asked:?}");
    assert!(asked.contains(&"CONNECT secure.invalid:443".to_owned()), "{asked:?}");
    let plain = |line: &String| line.starts_with("GET http://plain.invalid/v2/");
    assert!(asked.iter().any(plain), "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains("unreached")), "{asked:?}");
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
});

// As many layers as an image may have, and one more.
case!(ours many_layers, |cell| {
    let name = cell.name("image");
    let mut dockerfile = format!("FROM {BUSYBOX}\nLABEL cell={}\n", cell.number());
    let build = |dockerfile: &str| {
        let context = archive(&[("Dockerfile", dockerfile), ("file", "x")]);
        cell.building(&format!("-q -t {name} -")).stdin(context).output()
    };
    let mut layers = 1;
    for wanted in [60, 127] {
        while layers < wanted - 1 {
            dockerfile.push_str(&format!("COPY file /layers{}/f{layers}\n", layers % 7));
            layers += 1;
        }
        let last = format!("{dockerfile}RUN ls -d /layers*/f* | wc -l > /count\n");
        build(&last).ok();
        let image = cell.cli(&format!("image inspect {name}")).ok().json();
        let count = image[0]["RootFS"]["Layers"].as_array().map(Vec::len);
        assert_eq!(count, Some(wanted));
        let said = cell.run(&format!("--rm {name} cat /count")).ok().text();
        assert_eq!(said, (wanted - 2).to_string());
    }
    let more = format!("{dockerfile}COPY file /one\nCOPY file /two\n");
    build(&more).exits(1).says("layers");
    cell.cli(&format!("rmi {name}")).ok();
});
