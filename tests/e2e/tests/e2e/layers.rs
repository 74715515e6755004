//! What is in a layer is what a container sees, at both isolations: owners, modes, times,
//! links, devices, extended attributes, whiteouts, many layers.

use bulkhead_e2e::images::{Meta, TIME, Tar, busybox_tar, docker_archive, sha256};
use bulkhead_e2e::{Cell, case};

fn load(cell: &Cell, layers: &[Vec<u8>]) -> String {
    let name = cell.name("image");
    let mut all = vec![busybox_tar().to_vec()];
    all.extend_from_slice(layers);
    let archive = docker_archive(&format!("{name}:latest"), &all, &["sh"]);
    cell.line("load").stdin(archive).output().ok();
    name
}

fn walk(cell: &Cell, image: &str) -> Vec<String> {
    cell.run(&format!("--rm {image} probe walk /data"))
        .ok()
        .lines()
}

fn gone(cell: &Cell, image: &str) {
    cell.cli(&format!("rmi {image}")).ok();
}

case!(everything_a_tar_can_say, |cell| {
    let plain = Meta::mode(0o644);
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let long = "n".repeat(255);
    let deep = format!("data/{0}/{0}/{0}", "d".repeat(120));
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut tar = Tar::new();
    tar.directory("data", &Meta::mode(0o755))
        .file("data/a", &Meta::mode(0o640).owner(12, 34), b"words")
        .hard_link("data/b", "data/a", &Meta::mode(0o640).owner(12, 34))
        .symlink("data/c", "a")
        .symlink("data/d", "/absolute/nowhere")
        .node("data/e", tar::EntryType::Char, &Meta::mode(0o666), (1, 3))
        .node(
            "data/f",
            tar::EntryType::Block,
            &Meta::mode(0o660),
            (259, 1234),
        )
        .node("data/g", tar::EntryType::Fifo, &plain, (0, 0))
        .file("data/h", &plain, &content)
        .file("data/i", &Meta::mode(0o4755), b"")
        .directory("data/j", &Meta::mode(0o2775).owner(70_000, 80_000))
        .file(
            "data/k",
            &plain
                .clone()
                .xattr("user.word", b"value")
                .xattr("user.x", b"\x00\x01"),
            b"k",
        )
        .file(
            "data/l",
            &Meta::mode(0o755).xattr("security.capability", &capability),
            b"l",
        )
        .file(&format!("data/{long}"), &plain, b"long")
        .file("data/ünïcödé 'quoted'", &plain, b"u");
    for end in 1..=3 {
        let part: Vec<&str> = deep.split('/').take(end + 1).collect();
        tar.directory(&part.join("/"), &Meta::mode(0o755));
    }
    tar.file(&format!("{deep}/file"), &plain, b"deep");
    let image = load(cell, &[tar.done()]);
    let hash = |bytes: &[u8]| sha256(bytes);
    let capability: String = capability
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let d = "d".repeat(120);
    let mut expected = vec![
        format!("a f 640 12:34 5 {TIME} 2 - [] {}", hash(b"words")),
        format!("b f 640 12:34 5 {TIME} 2 - [] {}", hash(b"words")),
        format!("c l 777 0:0 0 {TIME} 1 - [] a"),
        format!("d l 777 0:0 0 {TIME} 1 - [] /absolute/nowhere"),
        format!("{d} d 755 0:0 0 {TIME} 0 - []"),
        format!("{d}/{d} d 755 0:0 0 {TIME} 0 - []"),
        format!("{d}/{d}/{d} d 755 0:0 0 {TIME} 0 - []"),
        format!(
            "{d}/{d}/{d}/file f 644 0:0 4 {TIME} 1 - [] {}",
            hash(b"deep")
        ),
        format!("e c 666 0:0 0 {TIME} 1 1:3 []"),
        format!("f b 660 0:0 0 {TIME} 1 259:1234 []"),
        format!("g p 644 0:0 0 {TIME} 1 - []"),
        format!(
            "h f 644 0:0 {} {TIME} 1 - [] {}",
            content.len(),
            hash(&content)
        ),
        format!("i f 4755 0:0 0 {TIME} 1 - [] {}", hash(b"")),
        format!("j d 2775 70000:80000 0 {TIME} 0 - []"),
        // Docker keeps user.* attributes only where its storage driver does.
        format!(
            "k f 644 0:0 1 {TIME} 1 - [user.word=76616c7565,user.x=0001] {}",
            hash(b"k")
        ),
        format!(
            "l f 755 0:0 1 {TIME} 1 - [security.capability={capability}] {}",
            hash(b"l")
        ),
        format!("{long} f 644 0:0 4 {TIME} 1 - [] {}", hash(b"long")),
        format!("ünïcödé 'quoted' f 644 0:0 1 {TIME} 1 - [] {}", hash(b"u")),
    ];
    let mut got: Vec<String> = walk(cell, &image)
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect();
    if bulkhead_e2e::daemon::is_reference() {
        // Docker 20.10 drops user.* attributes of layers.
        let cut =
            |line: &mut String| *line = line.replace("[user.word=76616c7565,user.x=0001]", "[]");
        expected.iter_mut().for_each(cut);
        got.iter_mut().for_each(cut);
    }
    expected.sort();
    got.sort();
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!(got, expected);
    }
    assert_eq!(got.len(), expected.len());
    gone(cell, &image);
});

case!(whiteouts_and_opaque_directories, |cell| {
    let plain = Meta::mode(0o644);
    let directory = Meta::mode(0o755);
    let mut one = Tar::new();
    one.directory("data", &directory)
        .file("data/stays", &plain, b"1")
        .file("data/goes", &plain, b"1")
        .file("data/changes", &plain, b"1")
        .directory("data/tree", &directory)
        .file("data/tree/old", &plain, b"1")
        .directory("data/whole", &directory)
        .file("data/whole/file", &plain, b"1")
        .directory("data/becomes-file", &directory)
        .file("data/becomes-file/x", &plain, b"1")
        .file("data/becomes-directory", &plain, b"1");
    let mut two = Tar::new();
    two.directory("data", &directory)
        .file("data/.wh.goes", &plain, b"")
        .file("data/changes", &Meta::mode(0o600).owner(5, 6), b"22")
        .directory("data/tree", &directory)
        .file("data/tree/new", &plain, b"2")
        // After what it must not hide: the mark covers lower layers alone.
        .file("data/tree/.wh..wh..opq", &plain, b"")
        .file("data/.wh.whole", &plain, b"")
        .file("data/becomes-file", &plain, b"2")
        .directory("data/becomes-directory", &directory)
        .file("data/becomes-directory/y", &plain, b"2");
    let mut three = Tar::new();
    three
        .directory("data", &directory)
        .file("data/goes", &plain, b"3")
        .directory("data/whole", &directory)
        .file("data/whole/again", &plain, b"3")
        .file("data/.wh.never-was", &plain, b"");
    let image = load(cell, &[one.done(), two.done(), three.done()]);
    let short: Vec<String> = walk(cell, &image)
        .iter()
        .map(|line| line.split(' ').take(5).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        short,
        [
            "becomes-directory d 755 0:0 0",
            "becomes-directory/y f 644 0:0 1",
            "becomes-file f 644 0:0 1",
            "changes f 600 5:6 2",
            "goes f 644 0:0 1",
            "stays f 644 0:0 1",
            "tree d 755 0:0 0",
            "tree/new f 644 0:0 1",
            "whole d 755 0:0 0",
            "whole/again f 644 0:0 1",
        ]
    );
    gone(cell, &image);
});

case!(ours many_layers, |cell| {
    // 126 on top of busybox: more than a machine has slots for disks.
    let layers: Vec<Vec<u8>> = (0..126)
        .map(|number: u32| {
            let mut tar = Tar::new();
            tar.directory("data", &Meta::mode(0o755))
                .file(&format!("data/{number:03}"), &Meta::mode(0o644), number.to_string().as_bytes())
                .file("data/last", &Meta::mode(0o644), number.to_string().as_bytes());
            if number > 0 {
                tar.file(&format!("data/.wh.{:03}", number - 1), &Meta::mode(0o644), b"");
            }
            tar.done()
        })
        .collect();
    let image = load(cell, &layers);
    let output = cell.run(&format!("--rm {image} sh -c 'ls /data; cat /data/last'")).ok();
    assert_eq!(output.lines(), ["125", "last", "125"]);
    gone(cell, &image);
});

case!(large_and_sparse_files, |cell| {
    let mut content = vec![0_u8; 48 << 20];
    for (number, block) in content.chunks_mut(1 << 20).enumerate() {
        if number % 3 == 0 {
            block.fill(u8::try_from(number).expect("small") + 1);
        }
    }
    let mut tar = Tar::new();
    tar.directory("data", &Meta::mode(0o755))
        .file("data/large", &Meta::mode(0o644), &content);
    let image = load(cell, &[tar.done()]);
    let expected = format!(
        "large f 644 0:0 {} {TIME} 1 - [] {}",
        content.len(),
        sha256(&content)
    );
    assert_eq!(walk(cell, &image), [expected]);
    gone(cell, &image);
});

case!(the_upper_layer_is_writable_everywhere, |cell| {
    let mut tar = Tar::new();
    tar.directory("data", &Meta::mode(0o755))
        .file("data/file", &Meta::mode(0o644), b"old")
        .directory("data/tree", &Meta::mode(0o755))
        .file("data/tree/file", &Meta::mode(0o644), b"old");
    let image = load(cell, &[tar.done()]);
    let script = "echo new >>/data/file && cat /data/file && mv /data/tree /data/moved && \
                  ls /data/moved && rm -r /data/moved && ls /data && chown 5:6 /data/file && \
                  stat -c %u:%g /data/file && ln /data/file /data/link && mkfifo /data/pipe && \
                  mknod /data/null c 1 3 && ls /data";
    let output = cell.run(&format!("--rm {image} sh -c '{script}'")).ok();
    assert_eq!(
        output.lines(),
        [
            "oldnew", "file", "file", "5:6", "file", "link", "null", "pipe"
        ]
    );
    // And the image is as before.
    assert_eq!(
        cell.run(&format!("--rm {image} cat /data/file"))
            .ok()
            .text(),
        "old"
    );
    gone(cell, &image);
});

case!(links_where_files_are_generated, |cell| {
    // Where every container gets a file of its own, an image may have a link to anywhere.
    let mut tar = Tar::new();
    tar.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
        .symlink("etc/hosts", "/data/hosts")
        .symlink("etc/hostname", "/tmp")
        .file("data/hosts", &Meta::mode(0o644), b"image\n");
    let image = load(cell, &[tar.done()]);
    let script = "cd /etc; for f in resolv.conf hosts hostname; do \
                  test ! -L $f && test -f $f && test -s $f && echo $f; done; \
                  cat hostname /data/hosts; test -e /run/systemd && echo led; readlink mtab; \
                  stat -c %F:%s:%a /.dockerenv; mkdir -p /made";
    let id = cell.create(&format!("-h thing {image} sh -c '{script}'"));
    for _ in 0..2 {
        let output = cell.cli(&format!("start -a {id}")).ok();
        assert_eq!(
            output.lines(),
            [
                "resolv.conf",
                "hosts",
                "hostname",
                "thing",
                "image",
                "/proc/mounts",
                "regular empty file:0:755"
            ]
        );
    }
    // None of that is a change of the container's, and no part of an image of it.
    assert_eq!(cell.cli(&format!("diff {id}")).ok().lines(), ["A /made"]);
    let idle = cell.create(&format!("{image} true"));
    cell.cli(&format!("start -a {idle}")).ok();
    assert_eq!(cell.cli(&format!("diff {idle}")).ok().text(), "");
    let committed = cell.name("committed");
    cell.cli(&format!("commit {idle} {committed}")).ok();
    let layers = |image: &str| {
        let shown = cell.cli(&format!("image inspect {image}")).ok().json();
        shown[0]["RootFS"]["Layers"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(layers(&committed), layers(&image));
    // It is in the container's files all the same.
    let archive = cell.cli(&format!("export {id}")).ok().stdout;
    let mut archive = tar::Archive::new(archive.as_slice());
    let names: Vec<String> = archive
        .entries()
        .expect("an archive")
        .map(|entry| {
            let entry = entry.expect("a whole archive");
            String::from_utf8_lossy(&entry.path_bytes()).into_owned()
        })
        .collect();
    for name in [".dockerenv", "etc/hosts", "etc/mtab", "made/"] {
        assert!(names.iter().any(|one| one == name), "{name} is missing");
    }
    cell.cli(&format!("rm {id} {idle}")).ok();
    cell.cli(&format!("rmi {committed}")).ok();
    gone(cell, &image);
});

case!(links_to_nothing_lead_to_mounts, |cell| {
    // What such a link leads to is made, and within the root.
    let mut tar = Tar::new();
    tar.symlink("ahead", "nowhere/yet")
        .symlink("up", "../../../../../../../e2e-above/it")
        .symlink("twice", "/ahead/more");
    let image = load(cell, &[tar.done()]);
    let host = tempfile::Builder::new()
        .prefix(&cell.name("links").replace('/', "-"))
        .tempdir()
        .expect("a temporary directory");
    let file = host.path().join("file");
    std::fs::write(&file, "words").expect("is ours");
    let (host, file) = (host.path().display(), file.display());
    let run = |options: &str, script: &str| {
        let output = cell.run(&format!("--rm {options} {image} sh -c '{script}'"));
        output.ok().text()
    };
    assert_eq!(run("-w /ahead", "pwd -P"), "/nowhere/yet");
    assert_eq!(
        run(
            "--tmpfs /twice",
            "grep -c \" /nowhere/yet/more tmpfs\" /proc/mounts"
        ),
        "1"
    );
    assert_eq!(
        run(&format!("-v {host}:/ahead/y"), "cat /nowhere/yet/y/file"),
        "words"
    );
    assert_eq!(run(&format!("-v {file}:/up"), "cat /e2e-above/it"), "words");
    assert!(!std::path::Path::new("/e2e-above").exists());
    gone(cell, &image);
});

case!(many_files, |cell| {
    let mut tar = Tar::new();
    tar.directory("data", &Meta::mode(0o755));
    for number in 0..6000_u32 {
        tar.file(
            &format!("data/{number:05}"),
            &Meta::mode(0o644),
            &number.to_le_bytes(),
        );
    }
    let image = load(cell, &[tar.done()]);
    let got = walk(cell, &image);
    assert_eq!(got.len(), 6000);
    for (number, line) in (0_u32..).zip(&got) {
        let expected = format!(
            "{number:05} f 644 0:0 4 {TIME} 1 - [] {}",
            sha256(&number.to_le_bytes())
        );
        assert_eq!(line, &expected);
    }
    gone(cell, &image);
});
