//! Images that are kept: found by filters, named and removed, saved and loaded, checked.

use std::collections::BTreeMap;

use bulkhead_e2e::http::{Files, Server};
use bulkhead_e2e::images::{Meta, Tar, busybox_tar, docker_archive};
use bulkhead_e2e::registry::Registry;
use bulkhead_e2e::{BUSYBOX, Cell, ClientKind, Daemon, case};
use serde_json::{Value, json};

fn marked(word: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file("mark", &Meta::mode(0o644), word.as_bytes());
    tar.done()
}

fn import(cell: &Cell, options: &str, name: &str, tar: Vec<u8>) -> String {
    let line = format!("import {options} - {name}");
    cell.line(&line).stdin(tar).output().ok().text()
}

fn build(cell: &Cell, name: &str, dockerfile: &str) -> String {
    cell.line(&format!("build -t {name} -"))
        .stdin(dockerfile)
        .output()
        .ok();
    id(cell, name)
}

fn id(cell: &Cell, name: &str) -> String {
    cell.cli(&format!("image inspect -f {{{{.Id}}}} {name}"))
        .ok()
        .text()
}

/// Ends a daemon that was the case's own.
fn finish(cell: Cell) {
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
}

case!(process found_by_filters, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    // In this order, a moment apart: what is compared is when they were made.
    for (name, label) in [("one:1", "color=red"), ("two:1", "color=blue"), ("deep/er:1.5", "other=one")] {
        import(&cell, &format!("-c 'LABEL {label}'"), name, marked(name));
    }
    cell.cli("tag two:1 two:2").ok();
    let list = |options: &str| {
        let line = format!("images --format {{{{.Repository}}}}:{{{{.Tag}}}} {options}");
        let mut lines = cell.cli(&line).ok().lines();
        lines.retain(|line| !line.starts_with("busybox"));
        if options.is_empty() && !bulkhead_e2e::daemon::is_reference() {
            // The newest come first.
            assert_eq!(lines[..3], ["deep/er:1.5", "two:1", "two:2"]);
        }
        lines.sort();
        lines
    };
    assert_eq!(list(""), ["deep/er:1.5", "one:1", "two:1", "two:2"]);
    assert_eq!(list("-f before=two:1"), ["one:1"]);
    assert_eq!(list("-f since=two:2"), ["deep/er:1.5"]);
    assert_eq!(list("-f since=one:1 -f before=deep/er:1.5"), ["two:1", "two:2"]);
    assert_eq!(list("-f label=color"), ["one:1", "two:1", "two:2"]);
    assert_eq!(list("-f label=color=red"), ["one:1"]);
    assert_eq!(list("-f label=color -f label=other"), [""; 0]);
    assert_eq!(list("-f reference=two"), ["two:1", "two:2"]);
    assert_eq!(list("-f reference=*:2"), ["two:2"]);
    assert_eq!(list("-f reference=*/er"), ["deep/er:1.5"]);
    assert_eq!(list("-f reference=one -f reference=*/*:1.*"), ["deep/er:1.5", "one:1"]);
    assert_eq!(list("two"), ["two:1", "two:2"]);
    assert_eq!(list("two:2"), ["two:2"]);
    assert_eq!(list("absent"), [""; 0]);
    if !bulkhead_e2e::daemon::is_reference() {
        assert_eq!(list("-f until=24h"), [""; 0]);
    }
    // Another image takes the name; the one that had it is dangling.
    let old = id(&cell, "one:1");
    import(&cell, "", "one:1", marked("again"));
    assert_eq!(list("-f dangling=true"), ["<none>:<none>"]);
    assert_eq!(cell.cli("images -q --no-trunc -f dangling=true").ok().text(), old);
    assert_eq!(list("-f dangling=false"), ["deep/er:1.5", "one:1", "two:1", "two:2"]);
    cell.cli("images -f before=absent").exits(1).says("absent");
    cell.cli("images -f nonsense=x").exits(1).says("nonsense");
    // Both digests, in full.
    let listed = cell.cli("images --digests --no-trunc").ok().lines();
    let heading: Vec<&str> = listed[0].split_whitespace().collect();
    assert_eq!(heading[..5], ["REPOSITORY", "TAG", "DIGEST", "IMAGE", "ID"]);
    assert!(listed.iter().any(|line| line.contains(&old)), "{listed:?}");
    // By label and by age nothing else goes.
    cell.cli("image prune -f --filter until=24h").ok().says("Total reclaimed space: 0B");
    cell.cli("image prune -f --filter label=color=green").ok().says("Total reclaimed space: 0B");
    cell.cli("image prune -f --filter label=color=red").ok().says(&old);
    cell.cli("rmi two:2").ok();
    let kept = cell.create("two:1 x");
    let pruned = cell.cli("image prune -af").ok().to_string();
    assert!(pruned.contains("deep/er:1.5") && !pruned.contains("two"), "{pruned}");
    assert_eq!(cell.cli("images --format {{.Repository}}:{{.Tag}}").ok().text(), "two:1");
    cell.cli(&format!("rm {kept}")).ok();
    finish(cell);
});

case!(a_container_outlives_its_image, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let image = build(
        &cell,
        "made",
        &format!("FROM {BUSYBOX}\nRUN echo it >/mark\n"),
    );
    let container = cell.create("made cat /mark");
    cell.cli("rmi -f made")
        .ok()
        .says(&format!("Deleted: {image}"));
    let still_starts = || cell.cli(&format!("start -a {container}")).ok().text();
    assert_eq!(still_starts(), "it");
    // Others that go don't take its layers along, nor does a daemon that comes.
    import(&cell, "", "other", marked("other"));
    cell.cli("rmi other").ok();
    cell.daemon().restart();
    assert_eq!(still_starts(), "it");
    let layers = || {
        let dir = cell.daemon().data_root().join("images/layers");
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    let before = layers();
    cell.cli(&format!("rm {container}")).ok();
    if !bulkhead_e2e::daemon::is_reference() {
        // The layer and its tar.
        assert_eq!(layers(), before - 2, "nobody has that layer any more");
    }
    finish(cell);
});

case!(process parents_and_children, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let parent = build(&cell, "parent", &format!("FROM {BUSYBOX}\nENV A=1\nLABEL x=y\nUSER 7\n"));
    let child = build(&cell, "child", "FROM parent\nENV B=2\nENV C=3\n");
    let inspect = |name: &str, what: &str| cell.cli(&format!("image inspect -f {{{{.{what}}}}} {name}")).ok().text();
    // Steps are shown to those who ask.
    let shown = |options: &str| cell.cli(&format!("images -q {options}")).ok().lines().len();
    assert_eq!((shown(""), shown("-a")), (3, 6));
    cell.cli(&format!("rmi -f {parent}"))
        .exits(1)
        .says("(cannot be forced) - image has dependent child images");
    // Its name can go.
    let output = cell.cli("rmi parent").ok().says("Untagged: parent:latest");
    assert!(!output.to_string().contains("Deleted"), "{output}");
    cell.cli("image inspect parent").exits(1);
    let step = inspect("child", "Parent");
    let removed = cell.cli("rmi --no-prune child").ok().says(&format!("Deleted: {child}"));
    assert!(!removed.to_string().contains(&step), "{removed}");
    assert_eq!(cell.cli(&format!("image inspect -f {{{{.Id}}}} {step}")).ok().text(), step);
    // What an image was made from goes with the last that was made from it.
    cell.cli(&format!("rmi {}", &step[7..19])).ok().says(&format!("Deleted: {parent}"));
    assert_eq!((shown(""), shown("-a")), (1, 1));
    // A container is in the way of the last name, and of the image.
    import(&cell, "", "used:1", busybox_tar().to_vec());
    let used = id(&cell, "used:1");
    let container = cell.create("used:1 true");
    cell.cli("rmi used:1")
        .exits(1)
        .says("(must force)")
        .says(&container[..12]);
    cell.cli(&format!("rmi {used}")).exits(1).says("stopped container");
    cell.cli("tag used:1 also:1").ok();
    cell.cli(&format!("rmi {used}")).exits(1).says("multiple repositories");
    cell.cli("rmi used:1 also:1").exits(1).says("(must force)");
    // By force the image goes, and the container stays until it is removed.
    cell.cli("rmi -f also:1").ok().says(&format!("Deleted: {used}"));
    cell.cli(&format!("rm {container}")).ok();
    // Some of several, and all that can be.
    import(&cell, "", "here:1", marked("here"));
    let some = cell.cli("rmi absent here:1 absent:2").exits(1).says("Untagged: here:1").says("absent:2");
    drop(some);
    cell.cli("image inspect here:1").exits(1);
    // More images than there are digits: two begin alike.
    let mut ids: Vec<String> = (0..17).map(|number| import(&cell, "", &format!("many:{number}"), marked(&number.to_string()))).collect();
    ids.sort();
    let alike = ids.windows(2).find(|pair| pair[0][..8] == pair[1][..8]).expect("two of seventeen");
    for line in ["rmi", "image inspect", "tag"] {
        let target = if line == "tag" { " new:1" } else { "" };
        let refused = cell.cli(&format!("{line} {}{target}", &alike[0][7..8])).fails();
        drop(refused.says(&alike[0][7..8]));
    }
    assert_eq!(cell.cli("images -q many").ok().lines().len(), 17);
    let all: Vec<&str> = ids.iter().map(|id| &id[7..27]).collect();
    cell.cli(&format!("rmi {}", all.join(" "))).ok();
    assert_eq!(shown("-a"), 1);
    finish(cell);
});

case!(process what_is_pruned_and_what_lists_show_of_it, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let base = build(&cell, "base:1", &format!("FROM {BUSYBOX}\nENV A=1\n"));
    cell.cli("tag base:1 base:2").ok();
    import(&cell, "", "own:1", marked("own"));
    let child = build(&cell, "child:1", "FROM base:1\nENV B=2\nCMD x\n");
    let container = cell.create("child:1");
    let shown = || {
        let listed = cell.api("GET", "/containers/json?all=1", None).json();
        listed[0]["Image"].clone()
    };
    assert_eq!(shown(), "child:1");
    // What builds made on the way is not counted.
    let usage = cell.api("GET", "/system/df", None).json();
    assert_eq!(usage["Images"].as_array().map(Vec::len), Some(4), "{usage}");
    // In use or not, all names go; what others were made from stays without one.
    let pruned = cell.cli("image prune -a -f").ok().to_string();
    for name in ["base:1", "base:2", "own:1"] {
        assert!(pruned.contains(&format!("untagged: {name}")), "{pruned}");
    }
    let kept = cell.api("GET", &format!("/images/{base}/json"), None).json();
    assert_eq!(kept["RepoTags"], json!([]));
    // A name that means another image now is not what the container has.
    build(&cell, "child:1", "FROM scratch\nENV C=3\nCMD x\n");
    assert_eq!(shown(), child.as_str());
    cell.cli("rmi child:1").ok();
    assert_eq!(shown(), child.as_str());
    // Old clients find members of an image that only containers have.
    let document = cell.api("GET", &format!("/v1.41/images/{child}/json"), None).json();
    for (name, empty) in [("Tty", json!(false)), ("AttachStdin", json!(false)), ("Hostname", json!(""))] {
        assert_eq!(document["Config"][name], empty, "{name}");
    }
    cell.cli(&format!("rm {container}")).ok();
    finish(cell);
});

case!(process what_happens_to_images_is_told_in_dockers_order, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970");
        format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
    };
    let since = now();
    let imported = import(&cell, "", "own:1", marked("own"));
    let archive = cell.api("GET", "/images/own:1/get", None).body;
    cell.cli("rmi own:1").ok();
    cell.line("load").stdin(archive).output().ok();
    let container = cell.create(&format!("{BUSYBOX} true"));
    cell.cli(&format!("commit {container} made:1")).ok();
    cell.api("POST", "/images/prune", None);
    let path = format!("/events?since={since}&until={}", now());
    let answer = cell.api("GET", &path, None);
    let events: Vec<Value> = serde_json::Deserializer::from_slice(&answer.body)
        .into_iter()
        .map(|event| event.expect("an event"))
        .collect();
    let told: Vec<String> = events
        .iter()
        .map(|event| format!("{} {}", event["Type"], event["Action"]).replace('"', ""))
        .collect();
    let expected = [
        "image tag",
        "image import",
        "image save",
        "image untag",
        "image delete",
        "image load",
        "container create",
        "image tag",
        "container commit",
        "image prune",
    ];
    assert_eq!(told, expected);
    let name = |at: usize| &events[at]["Actor"]["Attributes"]["name"];
    assert_eq!((name(0), name(7)), (&json!("own:1"), &json!("made:1")));
    assert_eq!((name(1), name(2)), (&json!(imported), &json!(imported)));
    assert_eq!(events[9].get("id"), None, "{}", events[9]);
    cell.cli(&format!("rm {container}")).ok();
    finish(cell);
});

case!(process history_tells_every_step, |cell| {
    let name = cell.name("image");
    let dockerfile = format!(
        "FROM {BUSYBOX}\nLABEL cell={}\nRUN head -c 12345 /dev/zero > /zeros\nCMD [\"sh\"]\n",
        cell.number()
    );
    let image = build(cell, &name, &dockerfile);
    let history = |options: &str| cell.cli(&format!("history {options} {name}")).ok().lines();
    let lines = history("--no-trunc --human=false --format '{{.ID}}|{{.CreatedBy}}|{{.Size}}'");
    let lines: Vec<Vec<&str>> = lines.iter().map(|line| line.split('|').collect()).collect();
    assert_eq!(lines[0][..], [image.as_str(), "/bin/sh -c #(nop)  CMD [\"sh\"]", "0"]);
    assert!(lines[1][0].starts_with("sha256:"), "{lines:?}");
    assert_eq!(lines[1][1..], ["/bin/sh -c head -c 12345 /dev/zero > /zeros", "12345"]);
    let sizes: u64 = lines.iter().map(|line| line[2].parse::<u64>().expect("bytes")).sum();
    let inspected = cell.cli(&format!("image inspect {name}")).ok().json()[0].clone();
    assert_eq!(inspected["Size"], sizes);
    let short = history("");
    let heading: Vec<&str> = short[0].split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(heading, ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    assert!(short[2].contains("12.3kB"), "{short:?}");
    assert_eq!(history("-q")[0], &image[7..19]);
    // What comes from elsewhere does not say its steps' images.
    let file = cell.daemon().base().join(cell.name("saved"));
    cell.cli(&format!("save -o {} {name}", file.display())).ok();
    cell.cli(&format!("rmi {name}")).ok();
    cell.cli(&format!("load -i {}", file.display())).ok();
    assert_eq!(id(cell, &name), image);
    assert_eq!(history("-q")[..2], [&image[7..19], "<missing>"]);
    std::fs::remove_file(&file).expect("the archive");
    cell.cli(&format!("rmi {name}")).ok();
});

case!(several_images_in_one_archive, |cell| {
    let cell = &cell.on(Daemon::start(&[]));
    for (name, word) in [("first:1", "1"), ("second:1", "2"), ("third:1", "3")] {
        let layers = [busybox_tar().to_vec(), marked(word)];
        let archive = docker_archive(name, &layers, &["cat", "/mark"]);
        cell.line("load").stdin(archive).output().ok();
    }
    cell.cli("tag second:1 second:again").ok();
    let third = id(cell, "third:1");
    let base = cell.daemon().base().to_owned();
    let saved = base.join("saved.tar");
    let (file, third_short) = (saved.display(), &third[7..19]);
    cell.cli(&format!("save -o {file} first:1 absent {third_short}"))
        .fails();
    assert!(!saved.exists(), "an archive of what is not there");
    cell.cli(&format!(
        "save -o {file} first:1 second:1 second:again {third_short}"
    ))
    .ok();
    cell.cli("rmi first:1 second:1 second:again third:1").ok();
    cell.cli(&format!("load -i {file}"))
        .ok()
        .says("Loaded image: first:1")
        .says("Loaded image: second:1")
        .says("Loaded image: second:again")
        .says(&format!("Loaded image ID: {third}"));
    let prints = |image: &str| cell.run(&format!("--rm {image}")).ok().text();
    assert_eq!(
        [prints("first:1"), prints("second:again"), prints(&third)],
        ["1", "2", "3"]
    );
    assert_eq!(
        cell.cli("images -q -f dangling=true --no-trunc")
            .ok()
            .text(),
        third
    );
    // What another program makes of it, and of that again, is the same image.
    let layout = base.join("layout.tar");
    Registry::skopeo(&[
        "copy",
        &format!("docker-archive:{file}:second:1"),
        &format!("oci-archive:{}:second:1", layout.display()),
    ]);
    cell.cli("rmi second:1 second:again").ok();
    if !bulkhead_e2e::daemon::is_reference() {
        cell.cli(&format!("load -i {}", layout.display())).ok();
        let loaded = cell.cli("images -aq --no-trunc").ok().lines();
        assert_eq!(loaded.len(), 4, "{loaded:?}");
        let seen = Registry::skopeo(&["inspect", "--config", &format!("oci-archive:{file}:again")]);
        let seen: Value = serde_json::from_str(&seen).expect("JSON from skopeo");
        assert_eq!(seen["config"]["Cmd"], json!(["cat", "/mark"]));
    }
    for line in [
        "save absent",
        "save -o /no/such/directory/x first:1",
        "load -i /no/such/file",
    ] {
        cell.cli(line).fails();
    }
});

case!(process import_from_an_address, |cell| {
    let name = cell.name("image");
    let files: Files = BTreeMap::from([(
        "/root.tar".to_owned(),
        ("application/x-tar", busybox_tar().to_vec()),
    )]);
    let server = Server::start(files);
    let host = server.address();
    cell.cli(&format!("import -c 'CMD echo came' http://{host}/root.tar {name}:1")).ok();
    assert_eq!(cell.run(&format!("--rm {name}:1")).ok().text(), "came");
    cell.cli(&format!("import http://{host}/none.tar {name}:2")).exits(1).says("404");
    cell.cli(&format!("import http://127.0.0.1:1/root.tar {name}:2")).exits(1);
    cell.cli(&format!("image inspect {name}:2")).exits(1);
    cell.cli(&format!("rmi {name}:1")).ok();
    // Every change that is allowed, and a platform.
    let changes = [
        "CMD [\"a\"]", "ENTRYPOINT [\"b\"]", "ENV C=d", "EXPOSE 80", "ONBUILD RUN x", "USER 5",
        "VOLUME /v", "WORKDIR /w", "LABEL l=m", "HEALTHCHECK CMD true",
    ];
    let options: Vec<String> = changes.iter().map(|change| format!("-c '{change}'")).collect();
    let options = format!("{} --platform linux/arm64", options.join(" "));
    import(cell, &options, &format!("{name}:3"), marked("x"));
    let image = cell.cli(&format!("image inspect {name}:3")).ok().json()[0].clone();
    assert_eq!(image["Architecture"], cell.now_or_then("arm64", "amd64"));
    for (key, value) in [
        ("Cmd", json!(["a"])), ("Entrypoint", json!(["b"])), ("ExposedPorts", json!({ "80/tcp": {} })),
        ("OnBuild", json!(["RUN x"])), ("User", json!("5")), ("Volumes", json!({ "/v": {} })),
        ("WorkingDir", json!("/w")), ("Labels", json!({ "l": "m" })),
        ("Healthcheck", json!({ "Test": ["CMD-SHELL", "true"] })),
    ] {
        assert_eq!(image["Config"][key], value, "{key}");
    }
    cell.cli(&format!("rmi {name}:3")).ok();
});

case!(process what_images_take, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let mut words = Tar::new();
    words.file("words", &Meta::mode(0o644), &[b'x'; 2_000_000]);
    let words = words.done();
    for name in ["one:1", "two:1"] {
        let layers = [busybox_tar().to_vec(), words.clone(), marked(name)];
        cell.line("load").stdin(docker_archive(name, &layers, &["sh"])).output().ok();
    }
    let container = cell.create("one:1 true");
    let usage = cell.api("GET", "/system/df", None).json();
    let image = |name: &str| {
        let images = usage["Images"].as_array().cloned().unwrap_or_default();
        let named = |image: &Value| image["RepoTags"] == json!([name]);
        images.into_iter().find(|image| named(image)).expect("the image")
    };
    let (one, two) = (image("one:1"), image("two:1"));
    assert_eq!((&one["Containers"], &two["Containers"]), (&json!(1), &json!(0)));
    let number = |value: &Value| value.as_u64().expect("a number");
    let own = |image: &Value| number(&image["Size"]) - number(&image["SharedSize"]);
    assert_eq!((own(&one), own(&two)), (5, 5));
    // Shared layers are there once.
    let together = number(&usage["LayersSize"]);
    assert!(together < number(&one["Size"]) + 1_000_000, "{usage}");
    let table = cell.cli("system df").ok().lines();
    let heading: Vec<&str> = table[0].split_whitespace().collect();
    assert_eq!(heading, ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    let line: Vec<&str> = table[1].split_whitespace().collect();
    assert_eq!(line[..3], ["Images", "3", "1"]);
    let all = cell.cli("system df -v").ok();
    let text = all.to_string();
    assert!(text.contains("SHARED SIZE") && text.contains("UNIQUE SIZE"), "{text}");
    let line = text.lines().find(|line| line.starts_with("two ")).expect("the image");
    assert!(line.contains("5B") && line.trim_end().ends_with('0'), "{line}");
    cell.cli(&format!("rm {container}")).ok();
    finish(cell);
});

case!(ours what_is_damaged_is_repaired, |cell| {
    let registry = Registry::start();
    let cell = &cell.on(Daemon::start(&[]));
    let image = registry.marked_image("damaged", &[busybox_tar().to_vec(), marked("whole")]);
    cell.cli(&format!("pull {image}")).ok();
    let layers = |cell: &Cell| {
        let inspected = cell.cli(&format!("image inspect {image}")).ok().json()[0].clone();
        let layers = inspected["GraphDriver"]["Data"]["Layers"].as_str().expect("layers").to_owned();
        let digest = inspected["RootFS"]["Layers"][1].as_str().expect("a layer").to_owned();
        (layers.split(':').nth(1).expect("the second").to_owned(), digest)
    };
    let check = |repair: bool| {
        let query = if repair { "" } else { "?repair=0" };
        let report = cell.api("POST", &format!("/system/check{query}"), None).json();
        report["Findings"].as_array().cloned().expect("findings")
    };
    assert_eq!(check(true), [] as [Value; 0]);
    let damage = |path: &str| {
        let mut bytes = std::fs::read(path).expect("a file of the store's");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(path).expect("it can go");
        std::fs::write(path, bytes).expect("another one");
    };
    let (erofs, digest) = layers(cell);
    damage(&erofs);
    let found = check(false);
    assert_eq!(found[0]["Type"], "layer-image", "{found:?}");
    assert_eq!(found[0]["Repaired"], false);
    if cell.client == ClientKind::Bulkhead {
        cell.cli("system check --no-repair").exits(1).says(&format!("layer {digest}: its image is damaged"));
        cell.cli("system check").ok().says("made anew");
    } else {
        assert_eq!(check(true)[0]["Repaired"], true);
    }
    assert_eq!(check(true), [] as [Value; 0]);
    assert_eq!(cell.run(&format!("--rm {image}")).ok().text(), "whole");
    // What came from the registry has to come again.
    let blobs = cell.daemon().data_root().join("images/blobs/sha256");
    let name = bulkhead_e2e::images::sha256(&bulkhead_e2e::images::Compression::Gzip.apply(&marked("whole")));
    damage(&blobs.join(name).display().to_string());
    let found = check(true);
    assert_eq!((&found[0]["Type"], &found[0]["Images"]), (&json!("layer"), &json!([image])), "{found:?}");
    cell.cli(&format!("pull {image}")).ok();
    assert_eq!(check(true), [] as [Value; 0]);
    assert_eq!(cell.run(&format!("--rm {image}")).ok().text(), "whole");
    cell.cli(&format!("rmi {image}")).ok();
});
