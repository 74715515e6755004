//! `cp`, `diff`, `export`, `commit`: a container's files, from outside, whether it runs or not.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use bulkhead_e2e::daemon::is_reference;
use bulkhead_e2e::images::{Meta, TIME, Tar, sha256};
use bulkhead_e2e::{BUSYBOX, Cell, api, case};

/// A directory on the host that goes with the value.
fn host_dir(cell: &Cell, word: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&cell.name(word).replace('/', "-"))
        .tempdir()
        .expect("a temporary directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain paths")
}

/// What the probe says of a directory of the host.
fn walk_host(cell: &Cell, directory: &Path) -> Vec<String> {
    let output = Command::new(cell.probe())
        .args(["walk", text(directory)])
        .output()
        .expect("the probe runs");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(str::to_owned).collect()
}

/// Path, type, mode, owner, size.
fn short(lines: &[String]) -> Vec<String> {
    let first = |line: &String| line.split(' ').take(5).collect::<Vec<_>>().join(" ");
    lines.iter().map(first).collect()
}

fn exec(cell: &Cell, id: &str, script: &str) -> String {
    cell.call(&["exec", id, "sh", "-c", script])
        .output()
        .ok()
        .text()
}

/// The archive of a path, by the API, as a list of names with their types.
fn entries(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive");
    entries
        .map(|entry| {
            let entry = entry.expect("a whole archive");
            String::from_utf8_lossy(&entry.path_bytes()).into_owned()
        })
        .collect()
}

case!(copies_of_a_running_container, |cell| {
    let host = host_dir(cell, "cp");
    let tree = host.path().join("tree");
    let big: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::create_dir_all(tree.join("empty")).expect("is ours");
    std::fs::write(tree.join("file"), "words").expect("is ours");
    std::fs::write(tree.join("big"), &big).expect("is ours");
    std::fs::hard_link(tree.join("file"), tree.join("same")).expect("is ours");
    symlink("file", tree.join("link")).expect("is ours");
    let mode = std::fs::Permissions::from_mode(0o4750);
    std::fs::set_permissions(tree.join("big"), mode).expect("is ours");
    std::os::unix::fs::chown(tree.join("file"), Some(7), Some(8)).expect("is ours");

    let id = cell.detached(&format!("{BUSYBOX} sleep 100000"));
    exec(
        cell,
        &id,
        "mkdir /there && ln -s /there /to-there && ln -s / /up && ln -s ../there/x /dangling",
    );
    // A directory becomes a new one, or goes into one that is there.
    cell.cli(&format!("cp {} {id}:/data", text(&tree))).ok();
    cell.cli(&format!("cp {} {id}:/there", text(&tree))).ok();
    let walked = |path: &str| {
        cell.cli(&format!("exec {id} probe walk {path}"))
            .ok()
            .lines()
    };
    let expected = [
        format!("big f 4750 0:0 {}", big.len()),
        "empty d 755 0:0 0".to_owned(),
        "file f 644 7:8 5".to_owned(),
        "link l 777 0:0 0".to_owned(),
        "same f 644 7:8 5".to_owned(),
    ];
    assert_eq!(short(&walked("/data")), expected);
    assert_eq!(short(&walked("/there/tree")), expected);
    assert!(
        walked("/data")
            .iter()
            .any(|line| line.contains(&sha256(&big)))
    );
    // Its contents alone; a file under its own name and under another.
    cell.cli(&format!("cp {}/. {id}:/there", text(&tree))).ok();
    cell.cli(&format!("cp {}/file {id}:/there/renamed", text(&tree)))
        .ok();
    // Through a link, as anything in the container would go.
    cell.cli(&format!("cp {}/file {id}:/to-there/", text(&tree)))
        .ok();
    cell.cli(&format!("cp {}/file {id}:/up/there/up", text(&tree)))
        .ok();
    assert_eq!(
        exec(cell, &id, "ls /there; cat /there/up"),
        "big\nempty\nfile\nlink\nrenamed\nsame\ntree\nup\nwords"
    );
    // And back: what arrives is what went.
    let back = host.path().join("back");
    cell.cli(&format!("cp {id}:/data {}", text(&back))).ok();
    let told_alike = |lines: Vec<String>| -> Vec<String> {
        let cut = |line: &String| {
            let words: Vec<&str> = line.split(' ').collect();
            [&words[..3], &words[4..5], &words[9..]].concat().join(" ")
        };
        lines.iter().map(cut).collect()
    };
    assert_eq!(
        told_alike(walk_host(cell, &back)),
        told_alike(walk_host(cell, &tree))
    );
    cell.cli(&format!(
        "cp {id}:/to-there/renamed {}/one",
        text(host.path())
    ))
    .ok();
    assert_eq!(
        std::fs::read_to_string(host.path().join("one")).expect("is there"),
        "words"
    );
    // A link is copied as one unless it is to be followed.
    cell.cli(&format!("cp {id}:/data/link {}", text(host.path())))
        .ok();
    assert!(host.path().join("link").is_symlink());
    cell.cli(&format!(
        "cp -L {id}:/data/link {}/followed",
        text(host.path())
    ))
    .ok();
    assert_eq!(
        std::fs::read_to_string(host.path().join("followed")).expect("is there"),
        "words"
    );
    // Archives on the standard streams.
    let mut tar = Tar::new();
    tar.directory("in", &Meta::mode(0o711).owner(3, 4))
        .file("in/file", &Meta::mode(0o600).owner(5, 6), b"from a tar")
        .hard_link("in/other", "in/file", &Meta::mode(0o600).owner(5, 6))
        .node("in/pipe", tar::EntryType::Fifo, &Meta::mode(0o644), (0, 0));
    cell.line(&format!("cp - {id}:/there"))
        .stdin(tar.done())
        .output()
        .ok();
    let got = walked("/there/in");
    assert_eq!(
        got[0],
        format!("file f 600 5:6 10 {TIME} 2 - [] {}", sha256(b"from a tar"))
    );
    assert_eq!(short(&got)[1..], ["other f 600 5:6 10", "pipe p 644 0:0 0"]);
    let out = cell.cli(&format!("cp {id}:/there/in -")).ok();
    assert_eq!(
        entries(&out.stdout),
        ["in/", "in/file", "in/other", "in/pipe"]
    );
    // What does not fit is refused, and nothing is changed.
    cell.cli(&format!("cp {}/file {id}:/there/empty", text(&tree)))
        .ok();
    cell.cli(&format!("cp {} {id}:/there/renamed", text(&tree)))
        .fails()
        .says("cannot copy directory");
    cell.cli(&format!("cp {}/file {id}:/no/where", text(&tree)))
        .fails();
    cell.cli(&format!("cp {id}:/no/where {}", text(host.path())))
        .fails()
        .says("Could not find the file");
    cell.cli(&format!("cp {}/file nosuch:/x", text(&tree)))
        .fails()
        .says("No such container");
    let mut tar = Tar::new();
    tar.file("tree", &Meta::mode(0o644), b"x");
    let put = |path: &str, tar: Vec<u8>| {
        let path = format!("/containers/{id}/archive?noOverwriteDirNonDir=1&path={path}");
        let body = Some(("application/x-tar", tar.as_slice()));
        api::request(&cell.daemon().socket(), "PUT", &path, body).expect("an answer")
    };
    let refused = put("/there", tar.done());
    assert!(
        refused.message().contains("cannot overwrite directory"),
        "{}",
        refused.message()
    );
    assert_eq!(exec(cell, &id, "cat /there/tree/file"), "words");
    assert_eq!(put("/nope", Vec::new()).status, 404);
    assert!(
        put("/there/file", Vec::new())
            .message()
            .contains("not a directory")
    );
    // What a path is.
    let head = |path: &str| {
        let answer = cell.api(
            "HEAD",
            &format!("/containers/{id}/archive?path={path}"),
            None,
        );
        (
            answer.status,
            answer
                .header("x-docker-container-path-stat")
                .map(str::to_owned),
        )
    };
    assert_eq!(head("/nope").0, 404);
    let (status, stat) = head("/data/link");
    assert_eq!(status, 200);
    let stat = Command::new("base64")
        .arg("-d")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write;
            if let Some(mut pipe) = child.stdin.take() {
                pipe.write_all(stat.unwrap_or_default().as_bytes())?;
            }
            child.wait_with_output()
        })
        .expect("base64 runs");
    let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).expect("JSON");
    assert_eq!(stat["name"], "link");
    assert_eq!(stat["linkTarget"], "/data/file");
    assert_eq!(stat["mode"], (1_u32 << 27) | 0o777);
    // Names are rebased on what was asked for.
    let get = |path: &str| {
        entries(
            &cell
                .api(
                    "GET",
                    &format!("/containers/{id}/archive?path={path}"),
                    None,
                )
                .body,
        )
    };
    assert_eq!(
        get("/to-there/in/"),
        ["in/", "in/file", "in/other", "in/pipe"]
    );
    assert_eq!(get("/there/in/.")[..2], ["./", "./file"]);
    assert_eq!(get("/up/there/empty"), ["empty/", "empty/file"]);
    assert_eq!(
        cell.api("GET", &format!("/containers/{id}/archive"), None)
            .status,
        400
    );
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
});

case!(copies_of_a_container_at_rest, |cell| {
    let host = host_dir(cell, "rest");
    let file = host.path().join("file");
    std::fs::write(&file, "words\n").expect("is ours");
    let volume = cell.name("volume");
    // Before it ever ran, with what is mounted in it.
    let id = cell.create(&format!(
        "-v {volume}:/volume {BUSYBOX} sh -c 'cat /data/file; echo more >>/data/file'"
    ));
    cell.cli(&format!("cp {} {id}:/data", text(host.path())))
        .ok();
    cell.cli(&format!("cp {} {id}:/volume/in-volume", text(&file)))
        .ok();
    let other = cell
        .run(&format!("--rm -v {volume}:/v {BUSYBOX} cat /v/in-volume"))
        .ok();
    assert_eq!(other.text(), "words");
    // At once, though the files were looked at just now.
    assert_eq!(cell.cli(&format!("start -a {id}")).ok().text(), "words");
    cell.until_state(&id, "exited");
    let out = host.path().join("out");
    cell.cli(&format!("cp {id}:/data/file {}", text(&out))).ok();
    assert_eq!(
        std::fs::read_to_string(&out).expect("is there"),
        "words\nmore\n"
    );
    let changed = cell.cli(&format!("diff {id}")).ok().lines();
    assert!(changed.contains(&"A /data/file".to_owned()), "{changed:?}");
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
    cell.cli(&format!("volume rm {volume}")).ok();
});

/// What the container of the next cases does to its root.
const CHANGES: &str = "mkdir -p /data/tree/deep /data/old && cd /data && \
    echo one >file && chown 12:34 file && chmod 4711 file && ln file hard && ln -s file soft && \
    mknod null c 1 3 && mkfifo pipe && chmod 1777 tree && echo x >tree/deep/x && \
    rm /etc/group && rm -r /home && mkdir -p /home/new && touch -d @1000000000 tree/deep/x";

case!(differences_from_the_image, |cell| {
    let id = cell.detached(&format!("{BUSYBOX} sleep 100000"));
    assert_eq!(
        cell.cli(&format!("diff {id}")).ok().text(),
        "",
        "nothing was changed yet"
    );
    exec(
        cell,
        &id,
        "mkdir -p /etc/new /home/gone; echo x >>/etc/passwd; rm /etc/group; touch /etc/new/file",
    );
    let expected = [
        "C /etc",
        "D /etc/group",
        "A /etc/new",
        "A /etc/new/file",
        "C /etc/passwd",
    ];
    let look = || {
        let mut lines = cell.cli(&format!("diff {id}")).ok().lines();
        // In which order is nobody's promise.
        lines.sort();
        lines
    };
    let changed = look();
    let mut of_etc: Vec<&String> = changed
        .iter()
        .filter(|line| line.contains("/etc"))
        .collect();
    of_etc.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
    assert_eq!(of_etc, expected);
    cell.cli(&format!("stop -t 0 {id}")).ok();
    assert_eq!(look(), changed, "at rest as when it ran");
    cell.cli("diff nosuch").fails().says("No such container");
});

case!(committed_images, |cell| {
    let image = cell.name("image");
    let id = cell.detached(&format!("-e A=b -w /data {BUSYBOX} sleep 100000"));
    exec(cell, &id, CHANGES);
    let before = cell
        .cli(&format!("exec {id} probe walk /data"))
        .ok()
        .lines();
    assert_eq!(before.len(), 9, "{before:?}");
    let made = cell
        .call(&[
            "commit",
            "-a",
            "somebody",
            "-m",
            "a message",
            "-c",
            "CMD [\"cat\", \"/data/file\"]",
            "-c",
            "ENV C=d",
            &id,
            &image,
        ])
        .output()
        .ok()
        .text();
    assert!(made.starts_with("sha256:"), "{made}");
    assert_eq!(cell.state(&id), "running", "it was frozen for a moment");
    exec(cell, &id, "rm -r /data");
    let shown = cell.cli(&format!("image inspect {image}")).ok().json();
    assert_eq!(shown[0]["Author"], "somebody");
    assert_eq!(shown[0]["Config"]["WorkingDir"], "/data");
    let env = shown[0]["Config"]["Env"].to_string();
    assert!(env.contains("A=b") && env.contains("C=d"), "{env}");
    let history = cell
        .cli(&format!(
            "history --no-trunc --format '{{{{.Comment}}}}' {image}"
        ))
        .ok()
        .lines();
    assert_eq!(history[0], "a message");
    // It runs, at either isolation, and everything is as it was.
    assert_eq!(cell.run(&format!("--rm {image}")).ok().text(), "one");
    let mut runs = vec![
        cell.run(&format!("--rm {image} probe walk /data"))
            .ok()
            .lines(),
    ];
    if !is_reference() {
        let other = if cell.is_hyperv() {
            "process"
        } else {
            "hyperv"
        };
        let walk = format!("run --rm --isolation={other} {image} probe walk /data");
        runs.push(cell.cli(&walk).ok().lines());
    }
    for run in runs {
        assert_eq!(run, before);
    }
    let gone = cell.run(&format!("--rm {image} sh -c 'ls /etc/group; ls /home'"));
    assert_eq!(gone.text(), "new");
    // A layer on the layer, from one that has stopped; deletions of what the first one added.
    let second = cell.name("second");
    let next = cell.create(&format!(
        "{image} sh -c 'rm -r /data/tree /data/hard; mkdir /data/tree; echo 2 >/data/tree/2'"
    ));
    cell.cli(&format!("start -a {next}")).ok();
    cell.cli(&format!("commit {next} {second}")).ok();
    let listed = cell
        .run(&format!("--rm {second} sh -c 'ls /data /data/tree'"))
        .ok()
        .lines();
    assert_eq!(
        listed,
        [
            "/data:",
            "file",
            "null",
            "old",
            "pipe",
            "soft",
            "tree",
            "",
            "/data/tree:",
            "2"
        ]
    );
    // A container without a change makes an image without a layer.
    let none = cell.create(&format!("{BUSYBOX} true"));
    let third = cell.name("third");
    cell.cli(&format!("commit {none} {third}")).ok();
    let layers = |image: &str| {
        let shown = cell.cli(&format!("image inspect {image}")).ok().json();
        shown[0]["RootFS"]["Layers"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(layers(&third), layers(BUSYBOX));
    assert_eq!(layers(&second), layers(BUSYBOX) + 2);
    cell.cli(&format!("commit -c 'NOPE x' {none}"))
        .fails()
        .says("NOPE");
    cell.cli("commit nosuch").fails().says("No such container");
    cell.cli(&format!("rm -f {id} {next} {none}")).ok();
    cell.cli(&format!("rmi {second} {image} {third}")).ok();
});

case!(exports, |cell| {
    let id = cell.create(&format!("{BUSYBOX} sh -c '{CHANGES}'"));
    cell.cli(&format!("start -a {id}")).ok();
    let archive = cell.cli(&format!("export {id}")).ok().stdout;
    let names = entries(&archive);
    for name in ["bin/", "data/file", "data/pipe", "home/new/"] {
        assert!(names.iter().any(|one| one == name), "{name} is missing");
    }
    assert!(
        !names
            .iter()
            .any(|one| one == "etc/group" || one.contains(".wh."))
    );
    let image = cell.name("flat");
    cell.line(&format!("import - {image}"))
        .stdin(archive)
        .output()
        .ok();
    let run = cell.run(&format!(
        "--rm {image} sh -c 'cat /data/file; stat -c %a:%u:%h /data/hard'"
    ));
    assert_eq!(run.ok().lines(), ["one", "4711:12:2"]);
    cell.cli(&format!("rmi {image}")).ok();
});

/// A payload that swaps a directory for links to where it must not lead, as fast as it can.
const RACER: &str = "mkdir -p /race/real /race/spare; echo inside >/race/real/secret; \
    cp /race/real/secret /race/spare/secret; echo ready; \
    while true; do mv /race/real /race/away; ln -s $TARGET /race/real; rm /race/real; \
    ln -s ../../../../../../..$TARGET /race/real; rm /race/real; mv /race/away /race/real; done";

case!(nothing_leads_out_of_a_container, |cell| {
    let host = host_dir(cell, "outside");
    let secret = host.path().join("secret");
    std::fs::write(&secret, "SECRET").expect("is ours");
    let target = text(host.path());
    let id = cell.detached(&format!("-e TARGET={target} {BUSYBOX} sh -c '{RACER}'"));
    bulkhead_e2e::until("the payload races", cell.limit(), || {
        cell.cli(&format!("logs {id}"))
            .text()
            .contains("ready")
            .then_some(())
    });
    let mut tar = Tar::new();
    tar.file("planted", &Meta::mode(0o644), b"x").file(
        "secret",
        &Meta::mode(0o644),
        b"overwritten",
    );
    let tar = tar.done();
    let socket = cell.daemon().socket();
    let mut read = 0;
    let begun = std::time::Instant::now();
    for round in 0.. {
        // And on, until it was won once: nothing would be shown otherwise.
        if round >= 30 && (read > 0 || begun.elapsed() > cell.limit()) {
            break;
        }
        let path = format!("/containers/{id}/archive?path=/race/real");
        let path = if round % 2 == 0 {
            path
        } else {
            format!("{path}/secret")
        };
        // What is moved away while it is read breaks the answer off: it has no other way to say so.
        let got = match api::request(&socket, "GET", &path, None) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => continue,
            got => got.expect("an answer in time"),
        };
        let words = String::from_utf8_lossy(&got.body);
        assert!(!words.contains("SECRET"), "the host's file was read");
        read += usize::from(got.status == 200);
        let path = format!("/containers/{id}/archive?path=/race/real");
        let body = Some(("application/x-tar", tar.as_slice()));
        api::request(&socket, "PUT", &path, body).expect("an answer");
        assert_eq!(
            std::fs::read_to_string(&secret).expect("is there"),
            "SECRET"
        );
        assert!(!host.path().join("planted").exists());
    }
    assert!(read > 0, "the race was never won");
    // Plain links, absolute and by many steps up.
    cell.cli(&format!("kill {id}")).ok();
    cell.until_state(&id, "exited");
    let links = cell.create(&format!(
        "{BUSYBOX} sh -c 'ln -s {target} /abs; ln -s ../../../../../..{target} /rel; mkdir -p /d; ln -s /abs /d/two'"
    ));
    cell.cli(&format!("start -a {links}")).ok();
    for path in [
        "/abs/secret",
        "/rel/secret",
        "/d/two/secret",
        "/../../../..{target}/secret",
    ] {
        let path = path.replace("{target}", target);
        cell.cli(&format!("cp {links}:{path} -")).fails();
    }
    for name in [
        "../planted",
        "/../planted",
        "d/../../planted",
        "abs/planted",
        "d/two/planted",
    ] {
        let mut tar = Tar::new();
        tar.raw(name.as_bytes(), b"", tar::EntryType::Regular, 1, b"x");
        cell.line(&format!("cp - {links}:/"))
            .stdin(tar.done())
            .output();
    }
    assert!(!host.path().join("planted").exists());
    assert!(!Path::new("/planted").exists());
});

// Whoever copies has the files until the end, and who starts the container comes after: neither
// waits for the other in a ring.
case!(a_start_amid_a_copy, |cell| {
    let id = cell.create(&format!("{BUSYBOX} sleep 1000"));
    let mut tar = Tar::new();
    tar.file("late", &Meta::mode(0o644), b"words");
    let tar = tar.done();
    let socket = cell.daemon().socket();
    let mut copy = UnixStream::connect(&socket).expect("the daemon listens");
    copy.set_read_timeout(Some(cell.limit())).expect("a limit");
    let head = format!(
        "PUT /containers/{id}/archive?path=/ HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\
         Expect: 100-continue\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        tar.len()
    );
    copy.write_all(head.as_bytes()).expect("the head is taken");
    let mut goes_on = [0; 25];
    copy.read_exact(&mut goes_on)
        .expect("an answer to the head");
    assert!(goes_on.starts_with(b"HTTP/1.1 100"), "{goes_on:?}");
    // Enough for the archive to be known as one.
    copy.write_all(&tar[..512]).expect("the body is taken");
    // For each to get in line; nothing goes wrong where it does not.
    let settle = || std::thread::sleep(std::time::Duration::from_millis(300));
    settle();
    let path = format!("/containers/{id}/start");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| api::request(&socket, "POST", &path, None));
        settle();
        copy.write_all(&tar[512..]).expect("the body is taken");
        let mut answer = String::new();
        copy.read_to_string(&mut answer).expect("an answer in time");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let started = start.join().expect("the request ends");
        assert_eq!(started.expect("an answer in time").status, 204);
    });
    assert_eq!(exec(cell, &id, "cat /late"), "words");
});
