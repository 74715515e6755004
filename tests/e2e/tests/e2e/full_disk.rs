//! A disk that is too small: what does not fit is refused with words, and all is as before.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;

use bulkhead_e2e::images::{Meta, Tar, busybox_tar, docker_archive};
use bulkhead_e2e::registry::Registry;
use bulkhead_e2e::{BUSYBOX, Cell, Daemon, Output, case};

const DISK: u32 = 40;

/// Bytes that cannot be compressed.
fn noise(mebibytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(mebibytes << 20);
    while bytes.len() < mebibytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file(name, &Meta::mode(0o644), content);
    tar.done()
}

/// Files of the daemon's that tell something: not those that a database makes as it likes.
fn files(cell: &Cell) -> BTreeSet<PathBuf> {
    let mut files = cell.daemon().files();
    files.retain(|path| {
        let name = path.to_string_lossy();
        !name.ends_with("-wal") && !name.ends_with("-shm")
    });
    files
}

case!(ours process what_does_not_fit_changes_nothing, |cell| {
    let registry = Registry::start();
    let big = noise(30);
    let too_big = registry.marked_image(
        "big",
        &[
            busybox_tar().to_vec(),
            layer("mark", b"big"),
            layer("noise", &big),
        ],
    );
    let small = registry.marked_image(
        "small",
        &[busybox_tar().to_vec(), layer("mark", b"small")],
    );
    let archive = registry.directory().join("big.tar");
    let loaded = docker_archive("loaded:1", &[busybox_tar().to_vec(), layer("noise", &big)], &["sh"]);
    std::fs::write(&archive, loaded).expect("an archive");
    let context = |dockerfile: &str, with: &[u8]| {
        let mut tar = Tar::new();
        tar.file("Dockerfile", &Meta::mode(0o644), dockerfile.as_bytes());
        tar.file("noise", &Meta::mode(0o644), with);
        tar.done()
    };
    let cell = cell.on(Daemon::start_on_disk(DISK));
    let (listed, before) = (cell.cli("images -a --format {{.Repository}}:{{.Tag}}={{.ID}}").ok().text(), files(&cell));
    let check = |what: Output| {
        let told = what.exits(1).to_string().to_lowercase();
        // Whoever comes first: a file, or the database.
        let words = ["no space left", "disk is full"];
        assert!(words.iter().any(|word| told.contains(word)), "{told}");
        assert_eq!(cell.cli("images -a --format {{.Repository}}:{{.Tag}}={{.ID}}").ok().text(), listed);
        assert_eq!(cell.cli("ps -aq").ok().text(), "");
        assert_eq!(files(&cell), before);
        assert_eq!(cell.run(&format!("--rm {BUSYBOX} echo works")).ok().text(), "works");
    };
    check(cell.cli(&format!("pull {too_big}")));
    check(cell.cli(&format!("load -i {}", archive.display())));
    check(cell.line("import - imported").stdin(layer("noise", &big)).output());
    let dockerfile = format!("FROM {BUSYBOX}\nCOPY noise /noise\n");
    let fits_once = context(&dockerfile, &big);
    check(cell.line("build -t built -").stdin(fits_once).output());
    let fits_never = context(&dockerfile, &noise(50));
    check(cell.line("build -t built -").stdin(fits_never).output());
    let runs = format!(
        "FROM {BUSYBOX} AS other\nRUN sleep 1000\n\
         FROM {BUSYBOX}\nRUN dd if=/dev/zero of=/zero bs=1M count=60\nCOPY --from=other / /\n"
    );
    let runs = context(&runs, b"");
    check(cell.line("build --force-rm -t built -").stdin(runs).output());
    // Containers have filled it: they can be removed, and so can images.
    cell.cli(&format!("pull {small}")).ok();
    cell.cli("volume create held").ok();
    cell.making("run", &format!("--name filler {BUSYBOX} dd if=/dev/zero of=/zero bs=4k"))
        .output()
        .exits(1);
    let mut rest = std::fs::File::create(cell.daemon().data_root().join("rest")).expect("a file");
    while rest.write_all(&[0; 512]).is_ok() {}
    drop(rest);
    cell.cli(&format!("pull {too_big}")).exits(1).says("no space left");
    cell.cli(&format!("rmi {small}")).ok();
    cell.cli("volume rm held").ok();
    cell.cli("rm -f filler").ok();
    std::fs::remove_file(cell.daemon().data_root().join("rest")).expect("the file");
    assert_eq!(cell.run(&format!("--rm {small}")).ok().text(), "small");
    cell.cli(&format!("rmi {small}")).ok();
    assert_eq!(files(&cell), before);
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
});
