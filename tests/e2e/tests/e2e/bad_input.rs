//! Input that has to be refused: the error names the thing, and nothing is left behind.

use bulkhead_e2e::images::{Compression, Meta, Tar, busybox_tar, docker_archive, oci_archive};
use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, leaks};

/// The containers, images and files that the daemon has.
fn store(cell: &Cell) -> (Vec<String>, Vec<String>, Vec<std::path::PathBuf>) {
    let mut containers = cell.cli("ps -aq --no-trunc").ok().lines();
    let mut images = cell.cli("images -aq --no-trunc").ok().lines();
    containers.sort();
    images.sort();
    let files = cell.daemon().files().into_iter();
    let journal = |path: &std::path::PathBuf| {
        let name = path.to_string_lossy().into_owned();
        name.ends_with("-wal") || name.ends_with("-shm") || name.ends_with("-journal")
    };
    (
        containers,
        images,
        files.filter(|path| !journal(path)).collect(),
    )
}

case!(ours process an_unknown_isolation, |cell| {
    let body = serde_json::json!({"Image": BUSYBOX, "HostConfig": {"Isolation": "nonsense"}});
    let answer = cell.api("POST", "/containers/create", Some(&body));
    assert_eq!(answer.status, 400);
    for word in ["nonsense", "process", "hyperv"] {
        assert!(answer.message().contains(word), "{word} in {}", answer.message());
    }
    cell.cli(&format!("run --rm --isolation=nonsense {BUSYBOX} true"))
        .exits(125)
        .says("nonsense");
});

case!(hyperv what_only_the_hosts_kernel_could_do, |cell| {
    for option in [
        "--network=host",
        "--pid=container:other",
        "--ipc=container:other",
        "--network=container:other",
    ] {
        let name = cell.name("c");
        cell.run(&format!("--name {name} {option} {BUSYBOX} true"))
            .exits(125)
            .says("own kernel");
        assert_eq!(cell.state(&name), "gone", "{option} makes no container");
    }
    let body = serde_json::json!({
        "Image": BUSYBOX, "HostConfig": {"Isolation": "hyperv", "NetworkMode": "host"}
    });
    let answer = cell.api("POST", "/containers/create", Some(&body));
    assert_eq!(answer.status, 400, "{}", answer.message());
});

case!(bodies_that_are_no_json, |cell| {
    let send = |bytes: &[u8]| {
        let socket = cell.daemon().socket();
        let body = Some(("application/json", bytes));
        bulkhead_e2e::api::request(&socket, "POST", "/containers/create", body)
            .expect("an answer")
            .status
    };
    for bytes in [
        &b"{"[..],
        b"nonsense",
        b"{\"Image\": 7}",
        b"\xff\xfe",
        b"{\"Image\":\"busybox\",\"HostConfig\":{\"Memory\":\"x\"}}",
    ] {
        let status = send(bytes);
        let known = status == 400 || (status == 500 && bulkhead_e2e::daemon::is_reference());
        assert!(known, "{status} for {}", String::from_utf8_lossy(bytes));
    }
});

fn refused(cell: &Cell, what: &str, archive: &[u8]) {
    let name = cell.name("image");
    let output = cell
        .line(&format!("import - {name}"))
        .stdin(archive)
        .output();
    assert!(output.code != 0, "import of {what} is refused: {output}");
    let layered = docker_archive(&format!("{name}:latest"), &[archive.to_vec()], &["sh"]);
    let output = cell.line("load").stdin(layered).output();
    assert!(output.code != 0, "load of {what} is refused: {output}");
    cell.cli(&format!("image inspect {name}")).exits(1);
}

case!(ours process hostile_archives, |cell| {
    let cell = &cell.on(Daemon::start(&[]));
    let before = store(cell);
    let canary = cell.daemon().base().join("canary");
    let escape = format!("../../../../../../../../../../..{}", canary.display());
    let absolute = canary.display().to_string();
    let regular = tar::EntryType::Regular;
    let made = |make: &dyn Fn(&mut Tar)| {
        let mut tar = Tar::new();
        tar.file("fine", &Meta::mode(0o644), b"fine");
        make(&mut tar);
        tar.done()
    };
    refused(cell, "a path upwards", &made(&|tar| {
        tar.raw(escape.as_bytes(), b"", regular, 1, b"x");
    }));
    refused(cell, "a path that goes up in its middle", &made(&|tar| {
        tar.raw(b"a/../../../x", b"", regular, 1, b"x");
    }));
    refused(cell, "an absolute path", &made(&|tar| {
        tar.raw(absolute.as_bytes(), b"", regular, 1, b"x");
    }));
    refused(cell, "a file through a symbolic link", &made(&|tar| {
        tar.symlink("way", &cell.daemon().base().display().to_string());
        tar.raw(b"way/canary", b"", regular, 1, b"x");
    }));
    refused(cell, "a hard link to the outside", &made(&|tar| {
        tar.raw(b"link", b"../../../../../../etc/passwd", tar::EntryType::Link, 0, b"");
    }));
    refused(cell, "a hard link to nothing", &made(&|tar| {
        tar.raw(b"link", b"missing", tar::EntryType::Link, 0, b"");
    }));
    refused(cell, "a size that is not there", &made(&|tar| {
        tar.raw(b"huge", b"", regular, 1 << 60, b"x");
    }));
    refused(cell, "a file inside a file", &made(&|tar| {
        tar.raw(b"fine/below", b"", regular, 1, b"x");
    }));
    let half = &busybox_tar()[..busybox_tar().len() / 2 + 100];
    refused(cell, "half an archive", half);
    let mut noise = busybox_tar()[..4096].to_vec();
    noise[600..700].fill(0xa5);
    refused(cell, "noise", &noise);
    refused(cell, "half a gzip stream", &{
        let bytes = Compression::Gzip.apply(busybox_tar());
        bytes[..bytes.len() / 2].to_vec()
    });
    assert!(!canary.exists(), "nothing was written outside");
    assert_eq!(store(cell), before, "the store is as before");
    cell.run(&format!("--rm {BUSYBOX} true")).ok();
});

case!(ours process device_nodes_of_an_image_open_nothing, |cell| {
    let name = cell.name("image");
    let mut tar = Tar::new();
    // 254:0 and 8:0 are where hosts have their disks.
    tar.node("disk", tar::EntryType::Block, &Meta::mode(0o666), (254, 0))
        .node("disk2", tar::EntryType::Block, &Meta::mode(0o666), (8, 0))
        .node("memory", tar::EntryType::Char, &Meta::mode(0o666), (1, 1));
    let layers = [busybox_tar().to_vec(), tar.done()];
    let archive = docker_archive(&format!("{name}:latest"), &layers, &["sh"]);
    cell.line("load").stdin(archive).output().ok();
    for node in ["/disk", "/disk2", "/memory"] {
        cell.run(&format!("--rm {name} head -c 1 {node}")).exits(1).says("not permitted");
    }
    cell.cli(&format!("rmi {name}")).ok();
});

case!(ours process archives_that_are_no_image, |cell| {
    let cell = &cell.on(Daemon::start(&[]));
    let before = store(cell);
    let plain = Meta::mode(0o644);
    let with = |name: &str, content: &[u8]| {
        let mut tar = Tar::new();
        tar.file(name, &plain, content);
        tar.done()
    };
    let load = |what: &str, archive: Vec<u8>| {
        let output = cell.line("load").stdin(archive).output();
        assert!(output.code != 0, "load of {what} is refused: {output}");
    };
    load("nothing", Vec::new());
    load("an empty archive", Tar::new().done());
    load("no manifest", with("file", b"x"));
    load("a manifest that is no JSON", with("manifest.json", b"{"));
    load("a manifest of nothing", with("manifest.json", b"[{\"Config\":\"x\",\"Layers\":[]}]"));
    load("a layer outside", with("manifest.json", br#"[{"Config":"../../../etc/passwd","RepoTags":["x:1"],"Layers":["/etc/passwd"]}]"#));
    // Content that is not what its digest says, in a layer that the store does not have.
    let word = cell.number().to_string();
    let layers = [with("mark", word.as_bytes())];
    let lie = |mut archive: Vec<u8>| {
        let found = archive.windows(word.len()).position(|at| at == word.as_bytes());
        archive[found.expect("in the layer")] = b'X';
        archive
    };
    load(
        "another layer than its digest",
        lie(oci_archive("lies:1", &layers, Compression::Plain, &["sh"])),
    );
    load("another layer than its diff ID", lie(docker_archive("lies:2", &layers, &["sh"])));
    assert_eq!(store(cell), before, "the store is as before");
});

case!(commands_that_do_not_exist_leave_nothing, |cell| {
    let name = cell.name("c");
    cell.run(&format!("--rm --name {name} {BUSYBOX} no-such-command"))
        .exits(127);
    assert_eq!(cell.state(&name), "gone");
    let id = cell.create(&format!("{BUSYBOX} /etc/not-executable"));
    cell.cli(&format!("start {id}"))
        .exits(1)
        .says("/etc/not-executable");
    assert_ne!(cell.state(&id), "running");
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
});

case!(hyperv no_engine, |cell| {
    // A PATH on which there is no QEMU, and no KVM that works for `kvm`: whatever the host
    // has, one of the two daemons finds none.
    let empty = tempfile::tempdir().expect("a directory");
    let path = empty.path().display().to_string();
    let cell = cell.on(Daemon::start_with(&["--vm-engine", "qemu"], &[("PATH", &path)]));
    let name = cell.name("c");
    let output = cell.run(&format!("--rm --name {name} {BUSYBOX} true")).exits(125);
    output.says("qemu");
    assert_eq!(cell.state(&name), "gone");
    assert!(leaks::of_containers(&cell.daemon().ids()).is_empty());
    // The other isolation does not mind.
    cell.cli(&format!("run --rm --isolation=process {BUSYBOX} true")).ok();
    cell.finish();
});

case!(hyperv no_guest_kernel, |cell| {
    let empty = tempfile::tempdir().expect("a directory");
    let path = empty.path().display().to_string();
    let cell = cell.on(Daemon::start_with(&[], &[("BULKHEAD_GUEST_DIR", &path)]));
    let name = cell.name("c");
    let output = cell.run(&format!("--rm --name {name} {BUSYBOX} true")).exits(125);
    output.says("guest").says(&path);
    assert_eq!(cell.state(&name), "gone");
    cell.cli(&format!("run --rm --isolation=process {BUSYBOX} true")).ok();
    cell.finish();
});

case!(memory_that_is_too_small, |cell| {
    let name = cell.name("c");
    cell.run(&format!("--name {name} -m 1m {BUSYBOX} true"))
        .exits(125)
        .says("memory");
    assert_eq!(cell.state(&name), "gone");
});

case!(the_daemons_own_flags, |cell| {
    let daemon = bulkhead_e2e::daemon::binaries().join("bulkhead");
    if bulkhead_e2e::daemon::is_reference() {
        return;
    }
    let _ = cell;
    let base = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        std::process::Command::new("timeout")
            .arg("20")
            .arg(&daemon)
            .args(["daemon", "--data-root"])
            .arg(base.path().join("data"))
            .arg("--exec-root")
            .arg(base.path().join("exec"))
            .args(arguments)
            .output()
            .expect("timeout")
    };
    for (arguments, word) in [
        (&["--exec-opt", "isolation=nonsense"][..], "nonsense"),
        (
            &["--userns-remap", "nobodyhere"],
            "cannot use --userns-remap nobodyhere",
        ),
        (&["--vm-engine", "nonsense"], "nonsense"),
        (&["-H", "nonsense://x"], "nonsense"),
        (&["--no-such-flag"], "no-such-flag"),
    ] {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && output.status.code() != Some(124),
            "{arguments:?}: {text}"
        );
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
});

case!(ours process two_daemons_on_one_data_root, |cell| {
    let daemon = cell.daemon();
    let base = tempfile::tempdir().expect("a directory");
    let output = std::process::Command::new("timeout")
        .arg("20")
        .arg(bulkhead_e2e::daemon::binaries().join("bulkhead"))
        .args(["daemon", "-H"])
        .arg(format!("unix://{}", base.path().join("s").display()))
        .arg("--data-root")
        .arg(daemon.data_root())
        .arg("--exec-root")
        .arg(base.path().join("exec"))
        .output()
        .expect("timeout");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.status.code() != Some(124), "{text}");
    assert!(text.contains(&daemon.data_root().display().to_string()), "{text}");
});
