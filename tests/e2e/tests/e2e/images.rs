//! Images: import, load, tag, rmi, images, image inspect.

use bulkhead_e2e::images::{Compression, Meta, Tar, busybox_tar, docker_archive, oci_archive};
use bulkhead_e2e::{BUSYBOX, Cell, case};

fn marked(word: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file("mark", &Meta::mode(0o644), word.as_bytes());
    tar.done()
}

fn load(cell: &Cell, archive: Vec<u8>) -> bulkhead_e2e::Output {
    cell.line("load").stdin(archive).output()
}

fn runs(cell: &Cell, image: &str, expected: &str) {
    let output = cell.run(&format!("--rm {image} cat /mark")).ok();
    assert_eq!(output.text(), expected);
}

case!(import_with_changes, |cell| {
    let name = cell.name("image");
    let output = cell
        .line(&format!(
            "import -c 'CMD [\"sh\", \"-c\", \"echo $GREETING; id -u; pwd\"]' -c 'ENV GREETING=hello' \
             -c 'USER user' -c 'WORKDIR /tmp' -c 'LABEL a=b' -m 'by hand' - {name}:1"
        ))
        .stdin(busybox_tar())
        .output()
        .ok();
    assert!(output.text().starts_with("sha256:"), "{output}");
    let output2 = cell.run(&format!("--rm {name}:1")).ok();
    assert_eq!(output2.lines(), ["hello", "1000", "/tmp"]);
    let got = cell.cli(&format!("image inspect {name}:1")).ok().json()[0].clone();
    assert_eq!(got["Id"], output.text());
    assert_eq!(got["Config"]["Labels"]["a"], "b");
    assert_eq!(got["Architecture"], "amd64");
    assert_eq!(got["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
    cell.cli(&format!("rmi {name}:1"))
        .ok()
        .says("Untagged")
        .says("Deleted");
    cell.cli(&format!("image inspect {name}:1"))
        .exits(1)
        .says(&name);
    cell.line(&format!("import -c 'NONSENSE x' - {name}:2"))
        .stdin(busybox_tar())
        .output()
        .exits(1)
        .says("nonsense");
});

case!(process import_from_a_file_and_compressed, |cell| {
    let directory = tempfile::tempdir().expect("a directory");
    let mut kinds = vec![Compression::Plain, Compression::Gzip];
    if !bulkhead_e2e::daemon::is_reference() {
        kinds.push(Compression::Zstd);
    }
    for kind in kinds {
        let name = cell.name("image");
        let path = directory.path().join("root.tar");
        std::fs::write(&path, kind.apply(busybox_tar())).expect("a file");
        cell.cli(&format!("import {} {name}", path.display())).ok();
        cell.run(&format!("--rm {name} /bin/true")).ok();
        cell.cli(&format!("rmi {name}")).ok();
    }
});

case!(load_of_a_docker_archive, |cell| {
    let name = cell.name("image");
    let word = cell.number().to_string();
    let archive = docker_archive(
        &format!("{name}:latest"),
        &[busybox_tar().to_vec(), marked(&word)],
        &["sh"],
    );
    load(cell, archive)
        .ok()
        .says(&format!("Loaded image: {name}:latest"));
    runs(cell, &name, &word);
    let got = cell.cli(&format!("image inspect {name}")).ok().json()[0].clone();
    assert_eq!(got["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        got["Config"]["Env"],
        serde_json::json!(["PATH=/bin", "FROM=archive"])
    );
    cell.cli(&format!("rmi {name}")).ok();
});

case!(load_of_a_compressed_archive, |cell| {
    let name = cell.name("image");
    let word = cell.number().to_string();
    let archive = docker_archive(
        &format!("{name}:latest"),
        &[busybox_tar().to_vec(), marked(&word)],
        &["sh"],
    );
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.tar.gz");
    std::fs::write(&path, Compression::Gzip.apply(&archive)).expect("a file");
    cell.cli(&format!("load -q -i {}", path.display()))
        .ok()
        .says(&name);
    runs(cell, &name, &word);
    cell.cli(&format!("rmi {name}")).ok();
});

case!(ours load_of_an_oci_layout, |cell| {
    for kind in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let name = cell.name("image");
        let word = cell.number().to_string();
        let layers = [busybox_tar().to_vec(), marked(&word)];
        let archive = oci_archive(&format!("{name}:1.0"), &layers, kind, &["sh"]);
        load(cell, archive).ok().says(&format!("{name}:1.0"));
        runs(cell, &format!("{name}:1.0"), &word);
        cell.cli(&format!("rmi {name}:1.0")).ok();
    }
});

case!(process tags, |cell| {
    let (first, second) = (cell.name("image"), cell.name("image"));
    cell.line(&format!("import - {first}")).stdin(busybox_tar()).output().ok();
    let id = |name: &str| cell.cli(&format!("image inspect -f '{{{{.Id}}}}' {name}")).text();
    cell.cli(&format!("tag {first} {second}:v2")).ok();
    assert_eq!(id(&first), id(&format!("{second}:v2")));
    let output = cell.cli(&format!("images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' {second}")).ok();
    assert_eq!(output.text(), format!("{second}:v2"));
    cell.cli(&format!("tag no-such-image {second}:v3")).exits(1).says("no-such-image");
    cell.cli(&format!("tag {first} 'Not/Good:!'")).exits(1);
    // By ID it has two names: not without force.
    let image = id(&first);
    cell.cli(&format!("rmi {image}")).exits(1).says("multiple repositories");
    cell.cli(&format!("rmi {first}")).ok().says("Untagged");
    assert_eq!(id(&format!("{second}:v2")), image);
    cell.cli(&format!("rmi {}", &image[7..19])).ok().says("Deleted");
    cell.cli(&format!("rmi {second}:v2")).exits(1).says("no such image");
});

case!(process the_list, |cell| {
    let name = cell.name("image");
    cell.line(&format!("import - {name}:7")).stdin(busybox_tar()).output().ok();
    let output = cell.cli(&format!("images {name}")).ok();
    let lines = output.lines();
    let heading: Vec<&str> = lines[0].split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(heading, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    assert!(lines[1].starts_with(&name) && lines[1].ends_with("MB"), "{output}");
    assert_eq!(cell.cli(&format!("images -q --no-trunc {name}")).ok().text().len(), 71);
    assert_eq!(cell.cli(&format!("images -q --filter reference={name}:7")).ok().lines().len(), 1);
    assert_eq!(cell.cli(&format!("images -q --filter reference={name}:8")).ok().lines().len(), 0);
    cell.cli(&format!("rmi {name}:7")).ok();
});

case!(process an_image_in_use_stays, |cell| {
    let name = cell.name("image");
    cell.line(&format!("import - {name}")).stdin(busybox_tar()).output().ok();
    let id = cell.detached(&format!("{name} sleep 600"));
    let image = cell.inspect(&id)["Image"].as_str().expect("an ID").to_owned();
    cell.cli(&format!("rmi {image}")).exits(1).says("running container").says(&id[..12]);
    cell.cli(&format!("rm -f {id}")).ok();
    cell.cli(&format!("rmi {image}")).ok();
});

case!(ours process layers_are_shared, |cell| {
    // Two images on the same base: the second adds its own layer's blob, no more.
    let (first, second) = (cell.name("image"), cell.name("image"));
    let base = busybox_tar().to_vec();
    let size = |cell: &Cell| {
        let files = cell.daemon().files();
        files.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len()).sum::<u64>()
    };
    let cell = &cell.on(bulkhead_e2e::Daemon::start(&[]));
    load(cell, docker_archive(&format!("{first}:latest"), &[base.clone(), marked("1")], &["sh"])).ok();
    let before = size(cell);
    load(cell, docker_archive(&format!("{second}:latest"), &[base.clone(), marked("2")], &["sh"])).ok();
    let grown = size(cell) - before;
    assert!(grown < 200_000, "{grown} bytes for a layer of one byte");
    runs(cell, &first, "1");
    runs(cell, &second, "2");
    cell.cli(&format!("rmi {first}")).ok();
    runs(cell, &second, "2");
});

case!(process the_busybox_of_the_suite, |cell| {
    let output = cell.cli(&format!("image inspect {BUSYBOX}")).ok().json();
    assert_eq!(output[0]["RepoTags"][0], "busybox:latest");
    assert_eq!(output[0]["Os"], "linux");
    cell.cli("image inspect no-such-image").exits(1).says("no-such-image");
    cell.cli("rmi no-such-image").exits(1).says("no-such-image");
});

case!(process a_changed_entrypoint_stands_alone, |cell| {
    let id = cell.create(&format!("{BUSYBOX} sleep 1000"));
    let name = cell.name("image");
    let commit = |changes: &str| {
        cell.cli(&format!("commit {changes} {id} {name}")).ok();
        let image = cell.cli(&format!("image inspect {name}")).ok().json();
        cell.cli(&format!("rmi {name}")).ok();
        image[0]["Config"]["Cmd"].clone()
    };
    let entrypoint = "--change 'ENTRYPOINT [\"/bin/echo\"]'";
    assert!(commit(entrypoint).is_null());
    let command = "--change 'CMD [\"x\"]'";
    for both in [format!("{entrypoint} {command}"), format!("{command} {entrypoint}")] {
        assert_eq!(commit(&both), serde_json::json!(["x"]), "{both}");
    }
    cell.cli(&format!("rm {id}")).ok();
});
