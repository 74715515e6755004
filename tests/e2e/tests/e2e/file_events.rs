//! A program that watches files hears of what others change in them: the host, and other
//! containers.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bulkhead_e2e::{BUSYBOX, Cell, case};

fn host_dir(cell: &Cell) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&cell.name("watched").replace('/', "-"))
        .tempdir()
        .expect("a temporary directory")
}

fn append(path: &Path) {
    let opened = fs::File::options().append(true).open(path);
    opened
        .and_then(|mut file| file.write_all(b"more\n"))
        .expect("is ours");
}

case!(what_the_host_changes_raises_events, |cell| {
    let dir = host_dir(cell);
    let host = dir.path();
    let path = host.display();
    fs::create_dir_all(host.join("data/sub/deep")).expect("is ours");
    let data = host.join("data");
    fs::write(data.join("old"), "x\n").expect("is ours");
    fs::write(host.join("one"), "x\n").expect("is ours");
    let id = cell.detached(&format!(
        "-v {path}/data:/data -v {path}/data:/seen:ro -v {path}/one:/one {BUSYBOX} sleep 1000"
    ));
    let watching = |paths: &str| {
        let mut watch = cell.line(&format!("exec {id} probe watch {paths}")).start();
        watch.expect("watching\n");
        watch
    };
    let mut watch = watching("/data /data/sub/deep /one");
    // The same directory; in a VM another file system, whose events come when they come.
    let mut elsewhere = watching("/seen");

    append(&data.join("old"));
    watch.expect("/data modify old\n");
    elsewhere.expect("/seen modify old\n");
    append(&host.join("one"));
    watch.expect("/one modify -\n");
    let mut then = |word: &str| {
        watch.expect(&format!("/data {word}\n"));
    };
    fs::write(data.join("new"), "x").expect("is ours");
    then("create new");
    then("close new");
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(data.join("new"), mode).expect("is ours");
    then("attrib new");
    fs::rename(data.join("new"), data.join("old")).expect("is ours");
    then("from new");
    then("to old");
    fs::create_dir(data.join("made")).expect("is ours");
    then("create made");
    fs::remove_dir(data.join("made")).expect("is ours");
    then("delete made");
    fs::remove_file(data.join("old")).expect("is ours");
    then("delete old");
    fs::write(data.join("sub/deep/f"), "x").expect("is ours");
    watch.expect("/data/sub/deep create f\n");
    // Its own changes come once.
    let words = ["exec", &id, "sh", "-c", "echo x >/data/own; rm /data/own"];
    cell.call(&words).output().ok();
    fs::create_dir(data.join("end")).expect("is ours");
    let seen = watch.expect("/data create end\n");
    let own: Vec<_> = seen
        .lines()
        .filter(|line| line.starts_with("/data ") && line.ends_with(" own"))
        .collect();
    let wanted = ["create", "modify", "close", "delete"].map(|word| format!("/data {word} own"));
    assert_eq!(own, wanted, "{seen}");
    cell.cli(&format!("rm -f {id}")).ok();
    watch.finish();
    elsewhere.finish();
});

case!(ours what_another_container_changes_raises_events, |cell| {
    let volume = cell.name("shared");
    let id = cell.detached(&format!("-v {volume}:/v {BUSYBOX} sleep 1000"));
    let mut watch = cell.line(&format!("exec {id} probe watch /v")).start();
    watch.expect("watching\n");
    for isolation in ["process", "hyperv"] {
        let other = |script: &str| {
            let line = format!("--rm --isolation={isolation} -v {volume}:/v {BUSYBOX} sh -c");
            cell.cli(&format!("run {line} '{script}'")).ok();
        };
        other(&format!("echo x >/v/{isolation}; mkdir /v/d"));
        watch.expect(&format!("/v create {isolation}\n"));
        watch.expect(&format!("/v close {isolation}\n"));
        watch.expect("/v create d\n");
        other(&format!("rm -r /v/{isolation} /v/d"));
        watch.expect(&format!("/v delete {isolation}\n"));
        watch.expect("/v delete d\n");
    }
    cell.cli(&format!("rm -f {id}")).ok();
    watch.finish();
    cell.cli(&format!("volume rm {volume}")).ok();
});
