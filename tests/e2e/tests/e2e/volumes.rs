//! Volumes and mounts: what is in them is the host's, shared, and stays.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_e2e::images::{Meta, TIME, Tar, busybox_tar, docker_archive, sha256};
use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, until};
use serde_json::json;

/// A directory on the host that goes with the value.
fn host_dir(cell: &Cell, word: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&cell.name(word).replace('/', "-"))
        .tempdir()
        .expect("a temporary directory")
}

fn mountpoint(cell: &Cell, volume: &str) -> PathBuf {
    let shown = cell.cli(&format!("volume inspect {volume}")).ok().json();
    shown[0]["Mountpoint"].as_str().expect("a path").into()
}

fn volumes(cell: &Cell, filters: &str) -> Vec<String> {
    cell.cli(&format!("volume ls -q {filters}")).ok().lines()
}

case!(a_volume_outlives_its_containers, |cell| {
    let name = cell.name("data");
    let other = cell.name("other");
    cell.cli(&format!(
        "volume create --label a=b --label e2e={name} {name}"
    ))
    .ok()
    .says(&name);
    cell.cli(&format!("volume create {name}")).ok();
    let shown = cell.cli(&format!("volume inspect {name}")).ok().json();
    assert_eq!(shown[0]["Driver"], "local");
    assert_eq!(shown[0]["Scope"], "local");
    assert_eq!(shown[0]["Labels"]["a"], "b");
    let script = "echo one >/data/file; chown 5:6 /data/file; mkdir /data/dir";
    cell.run(&format!("--rm -v {name}:/data {BUSYBOX} sh -c '{script}'"))
        .ok();
    let file = mountpoint(cell, &name).join("file");
    assert_eq!(std::fs::read_to_string(&file).expect("is there"), "one\n");
    assert_eq!(std::fs::metadata(&file).expect("is there").uid(), 5);
    std::fs::write(&file, "two\n").expect("is ours");
    let id = cell.create(&format!(
        "-v {name}:/data:ro -v {other}:/other {BUSYBOX} sh -c 'cat /data/file; echo x >/data/no'"
    ));
    cell.cli(&format!("start -a {id}"))
        .exits(1)
        .says("two")
        .says("read-only");
    let inspected = cell.inspect(&id);
    let mounts = inspected["Mounts"].as_array().expect("a list");
    let mount = mounts
        .iter()
        .find(|one| one["Name"] == name.as_str())
        .expect("is shown");
    assert_eq!(mount["Type"], "volume");
    assert_eq!(mount["Driver"], "local");
    assert_eq!(mount["Destination"], "/data");
    assert_eq!(mount["RW"], false);
    let found = cell
        .cli(&format!("ps -aq --no-trunc --filter volume={name}"))
        .ok()
        .text();
    assert_eq!(found, id);
    let none = format!("ps -aq --filter volume={name}x");
    assert_eq!(cell.cli(&none).ok().text(), "");
    cell.cli(&format!("volume rm {name}"))
        .fails()
        .says("volume is in use")
        .says(&id);
    assert!(!volumes(cell, "--filter dangling=true").contains(&name));
    cell.cli(&format!("rm -v {id}")).ok();
    assert!(
        volumes(cell, "--filter dangling=true").contains(&name),
        "rm -v keeps what has a name"
    );
    assert_eq!(
        volumes(cell, &format!("--filter label=e2e={name}")),
        [name.as_str()]
    );
    assert_eq!(
        volumes(cell, &format!("--filter name={other}")),
        [other.as_str()]
    );
    assert!(volumes(cell, "--filter driver=nope").is_empty());
    cell.cli(&format!("volume rm {name} {other}")).ok();
    cell.cli(&format!("volume inspect {name}"))
        .fails()
        .says("no such volume");
    cell.cli(&format!("volume rm {name}"))
        .fails()
        .says("no such volume");
    cell.cli(&format!("volume rm -f {name}")).ok();
    assert!(!file.exists());
});

case!(process anonymous_volumes_go_with_rm_v, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let first = cell.create(&format!("-v /data {BUSYBOX} true"));
    let mount = &cell.inspect(&first)["Mounts"][0];
    let name = mount["Name"].as_str().expect("a name").to_owned();
    assert_eq!(name.len(), 64);
    // Another that has it keeps it.
    let second = cell.create(&format!("--volumes-from {first}:ro {BUSYBOX} sh -c 'echo x >/data/x'"));
    cell.cli(&format!("rm -v {first}")).ok();
    assert_eq!(volumes(&cell, ""), [name.as_str()]);
    cell.cli(&format!("start -a {second}")).exits(1).says("read-only");
    cell.cli(&format!("rm {second}")).ok();
    assert_eq!(volumes(&cell, ""), [name]);
    cell.cli("volume prune -f").ok();
    assert!(volumes(&cell, "").is_empty());
    // With --rm they go by themselves.
    cell.run(&format!("--rm -v /data {BUSYBOX} touch /data/x")).ok();
    assert!(volumes(&cell, "").is_empty());
    cell.finish();
});

const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// An image with files, owners, attributes below `/data`, a link to it, and a `VOLUME` there.
fn image_with_a_volume(cell: &Cell) -> String {
    let name = cell.name("image");
    let plain = Meta::mode(0o644);
    let mut tar = Tar::new();
    tar.directory("data", &Meta::mode(0o2775).owner(7, 8))
        .file("data/a", &Meta::mode(0o4750).owner(12, 34), b"words")
        .hard_link("data/b", "data/a", &Meta::mode(0o4750).owner(12, 34))
        .symlink("data/c", "a")
        .directory("data/sub", &Meta::mode(0o1777))
        .file(
            "data/sub/x",
            &plain.clone().xattr("security.capability", &CAPABILITY),
            b"x",
        )
        .node("data/fifo", tar::EntryType::Fifo, &plain, (0, 0))
        .file("data/gone", &plain, b"gone")
        .symlink("link", "/data")
        .file("file", &plain, b"");
    let mut over = Tar::new();
    over.directory("data", &Meta::mode(0o2775).owner(7, 8))
        .file("data/.wh.gone", &plain, b"");
    let layers = [busybox_tar().to_vec(), tar.done(), over.done()];
    let archive = docker_archive(&format!("{name}:latest"), &layers, &["sh"]);
    cell.line("load").stdin(archive).output().ok();
    name
}

case!(process an_empty_volume_gets_what_the_image_has, |cell| {
    let image = image_with_a_volume(cell);
    let walk = |more: &str| {
        let lines = cell.run(&format!("--rm {more} {image} probe walk /data")).ok().lines();
        // How many names a directory has differs between file systems.
        lines
            .iter()
            .map(|line| line.trim_end().to_owned())
            .filter(|line| !line.starts_with("sub d"))
            .collect::<Vec<_>>()
    };
    let inside = walk("");
    let name = cell.name("data");
    let owner = format!("--rm -v {name}:/data {image} stat -c '%a %u:%g' /data /data/sub");
    assert_eq!(cell.run(&owner).ok().lines(), ["2775 7:8", "1777 0:0"]);
    let copied = walk(&format!("-v {name}:/data"));
    assert_eq!(copied, inside);
    assert!(copied.iter().any(|line| line.contains("security.capability")));
    assert!(copied.iter().any(|line| line.starts_with(&format!(
        "a f 4750 12:34 5 {TIME} 2 - [] {}", sha256(b"words")
    ))), "{copied:?}");
    assert!(!copied.iter().any(|line| line.contains("gone")));
    // What is there is not written over; where the image has nothing, nothing comes.
    cell.run(&format!("--rm -v {name}:/elsewhere {image} sh -c 'echo mine >/elsewhere/a; rm /elsewhere/b'")).ok();
    let kept = cell.run(&format!("--rm -v {name}:/data {image} sh -c 'cat /data/a; ls /data'")).ok();
    assert_eq!(kept.lines(), ["mine", "a", "c", "fifo", "sub"]);
    // Through a link of the image; without a copy; never over a file.
    let other = cell.name("other");
    cell.run(&format!("--rm -v {other}:/link {image} ls /link/sub")).ok().says("x");
    let empty = cell.name("empty");
    cell.run(&format!("--rm -v {empty}:/data:nocopy {image} ls /data")).ok();
    assert_eq!(cell.run(&format!("--rm -v {empty}:/here {image} ls /here")).ok().text(), "");
    let mount = format!("--rm --mount type=volume,src={empty},dst=/data,volume-nocopy");
    assert_eq!(cell.run(&format!("{mount} {image} ls /data")).ok().text(), "");
    cell.making("create", &format!("-v /file {image} true")).output().fails().says("file exists");
    cell.cli(&format!("volume rm {name} {other} {empty}")).ok();
    cell.cli(&format!("rmi {image}")).ok();
});

case!(process the_images_volumes, |cell| {
    let image = cell.name("image");
    let mut tar = Tar::new();
    tar.directory("data", &Meta::mode(0o750).owner(3, 4))
        .file("data/seed", &Meta::mode(0o644), b"seed");
    let mut whole = busybox_tar().to_vec();
    // The trailer of the first archive: two empty blocks, and what fills the record up.
    while whole.ends_with(&[0; 512]) {
        whole.truncate(whole.len() - 512);
    }
    whole.extend_from_slice(&tar.done());
    cell.line(&format!("import --change 'VOLUME /data' - {image}")).stdin(whole).output().ok();
    let id = cell.create(&format!("{image} sh -c 'stat -c %a:%u /data; cat /data/seed; echo more >>/data/seed'"));
    assert_eq!(cell.cli(&format!("start -a {id}")).ok().lines(), ["750:3", "seed"]);
    let mounts = cell.inspect(&id)["Mounts"].clone();
    assert_eq!(mounts[0]["Destination"], "/data");
    let name = mounts[0]["Name"].as_str().expect("a name").to_owned();
    assert_eq!(cell.cli(&format!("start -a {id}")).ok().lines(), ["750:3", "seedmore"]);
    // A bind there instead.
    let dir = host_dir(cell, "dir");
    let path = dir.path().display();
    let listed = cell.run(&format!("--rm -v {path}:/data {image} ls /data")).ok();
    assert_eq!(listed.text(), "");
    cell.cli(&format!("rm -v {id}")).ok();
    cell.cli(&format!("volume inspect {name}")).fails();
    cell.cli(&format!("rmi {image}")).ok();
});

case!(directories_and_files_of_the_host, |cell| {
    let dir = host_dir(cell, "dir");
    let path = dir.path().display();
    std::fs::create_dir(dir.path().join("sub")).expect("is ours");
    std::fs::write(dir.path().join("sub/file"), "old\n").expect("is ours");
    std::fs::write(dir.path().join("single"), "single\n").expect("is ours");
    std::os::unix::fs::symlink("sub", dir.path().join("link")).expect("is ours");
    let id = cell.create(&format!(
        "-v {path}/link:/a/b -v {path}/single:/a/one:ro -v {path}:/a -w /a/b \
         {BUSYBOX} sh -c 'cat file /a/one; echo new >file; chmod 600 file; ls /a; echo x >/a/one'"
    ));
    let output = cell
        .cli(&format!("start -a {id}"))
        .exits(1)
        .says("read-only");
    assert_eq!(&output.lines()[..2], ["old", "single"]);
    // Mounted over what is there, whatever the order on the command line.
    assert_eq!(&output.lines()[2..], ["b", "link", "one", "single", "sub"]);
    let file = dir.path().join("sub/file");
    assert_eq!(std::fs::read_to_string(&file).expect("is there"), "new\n");
    let mode = std::fs::metadata(&file)
        .expect("is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mounts = cell.inspect(&id)["Mounts"].clone();
    let mount = mounts
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["Destination"] == "/a");
    let mount = mount.expect("is shown");
    assert_eq!(mount["Type"], "bind");
    assert_eq!(mount["Source"], path.to_string());
    assert_eq!(mount["RW"], true);
    assert_eq!(mount["Propagation"], "rprivate");
    // -v makes what is missing when the container starts, --mount does not.
    let missing = dir.path().join("not/there");
    let shown = missing.display();
    cell.making(
        "create",
        &format!("--mount type=bind,src={shown},dst=/x {BUSYBOX} true"),
    )
    .output()
    .fails()
    .says(&format!("bind source path does not exist: {shown}"));
    let maker = cell.create(&format!("-v {shown}:/x {BUSYBOX} touch /x/made"));
    assert!(!missing.exists());
    cell.cli(&format!("start -a {maker}")).ok();
    assert!(missing.join("made").exists());
    // What is live is seen at once.
    let id = cell.detached(&format!(
        "--mount type=bind,source={path},target=/live,readonly {BUSYBOX} \
         sh -c 'while [ ! -e /live/go ]; do sleep 0.1; done; cat /live/go'"
    ));
    std::fs::write(dir.path().join("coming"), "gone\n").expect("is ours");
    std::fs::rename(dir.path().join("coming"), dir.path().join("go")).expect("is ours");
    assert_eq!(cell.cli(&format!("wait {id}")).ok().text(), "0");
    assert_eq!(cell.cli(&format!("logs {id}")).ok().text(), "gone");
});

/// A file system of the host's whose mounts travel, until it is dropped.
struct Travelling<'a>(&'a Path);

impl<'a> Travelling<'a> {
    fn mount(at: &'a Path) -> Self {
        let shown = at.display().to_string();
        host_command("mount", &["-t", "tmpfs", "travelling", &shown]);
        let mounted = Self(at);
        host_command("mount", &["--make-rshared", &shown]);
        mounted
    }
}

impl Drop for Travelling<'_> {
    fn drop(&mut self) {
        // What a case left mounted below goes with it.
        let _ = Command::new("umount")
            .args(["-R", "-l"])
            .arg(self.0)
            .status();
    }
}

fn host_command(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.expect("is there").success(),
        "{program} {arguments:?}"
    );
}

/// Whether the host has something mounted there.
fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("a table");
    let path = path.display().to_string();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&path))
}

case!(mounts_travel_as_far_as_they_are_let, |cell| {
    let dir = host_dir(cell, "dir");
    let travelling = Travelling::mount(dir.path());
    for name in ["ours", "theirs"] {
        std::fs::create_dir(dir.path().join(name)).expect("is ours");
    }
    let path = dir.path().display().to_string();
    // What the host mounts is seen in the container that lets it in, and in no other.
    let sees = |id: &str| {
        let listed = cell.cli(&format!("exec {id} ls /m/ours"));
        listed.text().contains("new")
    };
    let slave = cell.detached(&format!("-v {path}:/m:rslave {BUSYBOX} sleep 600"));
    let private = cell.detached(&format!(
        "--mount type=bind,src={path},dst=/m,bind-propagation=rprivate {BUSYBOX} sleep 600"
    ));
    host_command("mount", &["-t", "tmpfs", "ours", &format!("{path}/ours")]);
    std::fs::write(dir.path().join("ours/new"), "").expect("is ours");
    assert!(sees(&slave) && !sees(&private));
    let shown = &cell.inspect(&slave)["Mounts"][0]["Propagation"];
    assert_eq!(shown, "rslave");
    // A server of shares may still hold what was looked at.
    host_command("umount", &["-l", &format!("{path}/ours")]);
    assert!(!sees(&slave));
    let can_mount = "--cap-add SYS_ADMIN --security-opt seccomp=unconfined \
                     --security-opt apparmor=unconfined";
    let mount = "sh -c 'mount -t tmpfs theirs /m/theirs && touch /m/theirs/new && sleep 600'";
    if cell.is_hyperv() {
        for asked in [
            format!("-v {path}:/m:rshared"),
            format!("--mount type=bind,src={path},dst=/m,bind-propagation=shared"),
        ] {
            cell.making("create", &format!("{asked} {BUSYBOX} true"))
                .output()
                .fails()
                .says("does not appear on the host");
        }
        cell.cli(&format!("rm -f {slave} {private}")).ok();
        drop(travelling);
        return;
    }
    // What the container mounts is seen by the host where that is shared.
    let theirs = dir.path().join("theirs");
    let shared = cell.detached(&format!(
        "{can_mount} -v {path}:/m:rshared {BUSYBOX} {mount}"
    ));
    until("the host sees it", cell.limit(), || {
        theirs.join("new").exists().then_some(())
    });
    assert!(is_mounted(&theirs));
    assert_eq!(cell.inspect(&shared)["Mounts"][0]["Propagation"], "rshared");
    // And the other way round.
    host_command("mount", &["-t", "tmpfs", "ours", &format!("{path}/ours")]);
    std::fs::write(dir.path().join("ours/new"), "").expect("is ours");
    assert!(sees(&shared) && sees(&slave) && !sees(&private));
    cell.cli(&format!("rm -f {shared}")).ok();
    assert!(is_mounted(&dir.path().join("ours")) && is_mounted(&theirs));
    host_command("umount", &[&format!("{path}/theirs")]);
    // A slave keeps its mounts to itself.
    let quiet = cell.detached(&format!(
        "{can_mount} -v {path}:/m:rslave {BUSYBOX} {mount}"
    ));
    until("it has mounted", cell.limit(), || {
        let listed = cell.cli(&format!("exec {quiet} ls /m/theirs"));
        listed.text().contains("new").then_some(())
    });
    assert!(!is_mounted(&theirs));
    cell.cli(&format!("rm -f {slave} {private} {quiet}")).ok();
    drop(travelling);
});

case!(mounts_travel_only_where_the_hosts_do, |cell| {
    let dir = host_dir(cell, "dir");
    let mounted = Travelling::mount(dir.path());
    let path = dir.path().display().to_string();
    host_command("mount", &["--make-private", &path]);
    let mut modes = vec![("slave", "shared or slave"), ("rslave", "shared or slave")];
    if !cell.is_hyperv() {
        modes.extend([("shared", "shared"), ("rshared", "shared")]);
    }
    for (mode, wanted) in modes {
        let words = format!("path {path} is mounted on {path} but it is not a {wanted} mount");
        let id = cell.create(&format!("-v {path}:/m:{mode} {BUSYBOX} true"));
        cell.cli(&format!("start {id}")).fails().says(&words);
        cell.cli(&format!("rm {id}")).ok();
    }
    cell.run(&format!("--rm -v {path}:/m:rprivate {BUSYBOX} ls /m"))
        .ok();
    cell.making("create", &format!("-v {path}:/m:often {BUSYBOX} true"))
        .output()
        .fails()
        .says("invalid mode: often");
    drop(mounted);
});

case!(a_bind_of_the_data_root_learns_of_unmounts, |cell| {
    let root = cell.daemon().data_root().display().to_string();
    for bind in [
        "-v /:/m".to_owned(),
        format!("-v {root}:/m"),
        format!("--mount type=bind,src={root},dst=/m"),
    ] {
        let id = cell.create(&format!("{bind} {BUSYBOX} ls /m"));
        assert_eq!(cell.inspect(&id)["Mounts"][0]["Propagation"], "rslave");
        // Wherever the host's mounts travel to: nobody asked for it.
        cell.cli(&format!("start -a {id}")).ok();
    }
    let words = "must use either propagation mode \"rslave\" or \"rshared\"";
    let below = format!("{root}/tmp");
    for (source, mode) in [
        (root.as_str(), "rprivate"),
        ("/", "slave"),
        (&below, "private"),
    ] {
        cell.making("create", &format!("-v {source}:/m:{mode} {BUSYBOX} true"))
            .output()
            .fails()
            .says(words);
    }
});

case!(ours read_only_holds_for_what_is_mounted_below, |cell| {
    let dir = host_dir(cell, "dir");
    std::fs::create_dir(dir.path().join("below")).expect("is ours");
    let path = dir.path().display().to_string();
    let below = dir.path().join("below");
    let mounted = Travelling::mount(&below);
    let script = "touch /m/no 2>/dev/null && exit 9; touch /m/below/file";
    let read_only = format!("{path}:/m:ro");
    let mount = format!("--mount type=bind,src={path},dst=/m,readonly");
    for bind in [format!("-v {read_only}"), mount.clone()] {
        cell.run(&format!("--rm {bind} {BUSYBOX} sh -c '{script}'"))
            .exits(1)
            .says("ead-only");
        assert!(!below.join("file").exists());
    }
    let writable = format!("{mount},bind-recursive=writable");
    cell.run(&format!("--rm {writable} {BUSYBOX} sh -c '{script}'"))
        .ok();
    std::fs::remove_file(below.join("file")).expect("the container wrote it");
    // Clients of older versions know of no other way.
    for (version, code) in [("v1.43", 0), ("v1.44", 1)] {
        let body = json!({
            "Image": BUSYBOX,
            "Cmd": ["sh", "-c", script],
            "HostConfig": { "Binds": [read_only], "Isolation": cell.isolation_name() },
        });
        let made = cell.api("POST", &format!("/{version}/containers/create"), Some(&body));
        assert_eq!(made.status, 201, "{}", made.message());
        let id = made.json()["Id"].as_str().expect("an ID").to_owned();
        cell.cli(&format!("start -a {id}")).exits(code);
        assert_eq!(below.join("file").exists(), code == 0, "{version}");
        drop(std::fs::remove_file(below.join("file")));
        cell.cli(&format!("rm {id}")).ok();
    }
    drop(mounted);
});

case!(docker volumes_of_an_image_without_a_root, |cell| {
    let image = cell.name("image");
    let dockerfile = format!("FROM {BUSYBOX}\nVOLUME data ./more\n");
    cell.building(&format!("-q -t {image} -"))
        .stdin(dockerfile.into_bytes())
        .output()
        .ok();
    let script = "grep -c -e \" /data \" -e \" /more \" /proc/mounts";
    let seen = cell.run(&format!("--rm {image} sh -c '{script}'")).ok();
    assert_eq!(seen.text(), "2");
    cell.cli(&format!("rmi {image}")).ok();
});

case!(ours the_files_of_an_image_are_mounted, |cell| {
    let image = cell.name("files");
    let mut tar = Tar::new();
    tar.directory("etc", &Meta::mode(0o755))
        .file("etc/motto", &Meta::mode(0o644), b"festina lente\n")
        .directory("etc/deep", &Meta::mode(0o700))
        .file("etc/deep/file", &Meta::mode(0o640).owner(7, 8), b"deep\n")
        .symlink("etc/in", "motto")
        .symlink("etc/out", "/etc/motto");
    let archive = host_dir(cell, "archive");
    let path = archive.path().join("files.tar");
    std::fs::write(&path, tar.done()).expect("is ours");
    cell.cli(&format!("import {} {image}", path.display())).ok();
    let script = "cat /i/etc/motto; stat -c \"%a %u %g\" /i/etc/deep/file; touch /i/x || echo no";
    let id = cell.create(&format!(
        "--mount type=image,source={image},target=/i {BUSYBOX} sh -c '{script}'"
    ));
    let output = cell
        .cli(&format!("start -a {id}"))
        .ok()
        .says("Read-only");
    assert!(output.text().starts_with("festina lente\n640 7 8\n"), "{output}");
    let mount = cell.inspect(&id)["Mounts"][0].clone();
    assert_eq!((&mount["Type"], &mount["RW"]), (&json!("image"), &json!(false)));
    assert_eq!(mount["Source"], image);
    // It is in use; and what is mounted stays when it goes.
    cell.cli(&format!("rmi {image}")).fails().says(&id[..12]);
    // A part of it: a directory, or a file, but not what a link out of it leads to.
    let part = |subpath: &str, command: &str| {
        let body = json!({"Image": BUSYBOX, "Cmd": command.split(' ').collect::<Vec<_>>(),
            "HostConfig": {"Isolation": cell.isolation_name(), "Mounts": [{"Type": "image",
                "Source": image, "Target": "/p", "ImageOptions": {"Subpath": subpath}}]}});
        cell.api("POST", "/containers/create", Some(&body))
    };
    for (subpath, command, expected) in [
        ("etc/deep", "cat /p/file", "deep"),
        ("etc/motto", "cat /p", "festina lente"),
        ("etc/in", "cat /p", "festina lente"),
    ] {
        let made = part(subpath, command).json();
        let id = made["Id"].as_str().expect("an ID").to_owned();
        let output = cell.cli(&format!("start -a {id}")).ok();
        assert_eq!(output.text(), expected, "{subpath}");
        cell.cli(&format!("rm {id}")).ok();
    }
    let refused = part("../etc", "true");
    assert_eq!(refused.status, 400);
    let made = part("etc/none", "true").json();
    let missing = made["Id"].as_str().expect("an ID").to_owned();
    cell.cli(&format!("start {missing}")).fails().says("etc/none");
    cell.making("create", &format!("--mount type=image,source=no-such,target=/i {BUSYBOX} true"))
        .output()
        .fails()
        .says("no-such");
    let made = part("etc/out", "true").json();
    let outside = made["Id"].as_str().expect("an ID").to_owned();
    cell.cli(&format!("start {outside}")).fails().says("escapes the base directory");
    cell.cli(&format!("rmi -f {image}")).ok();
    cell.cli(&format!("start -a {id}")).ok().says("festina lente");
    cell.cli(&format!("rm {id} {missing} {outside}")).ok();
});

case!(every_mount_says_what_it_is, |cell| {
    let name = cell.name("data");
    let dir = host_dir(cell, "dir");
    let path = dir.path().display();
    let id = cell.create(&format!(
        "--mount type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=700 \
         --mount type=volume,source={name},target=/v,volume-label=k=w,readonly \
         --mount type=bind,source={path},target=/b,bind-propagation=private \
         --mount type=volume,destination=/own \
         {BUSYBOX} sh -c 'stat -c %a /t; df -k /t | tail -1; touch /b/x /own/x; touch /v/x'"
    ));
    let output = cell
        .cli(&format!("start -a {id}"))
        .exits(1)
        .says("read-only");
    assert_eq!(output.lines()[0], "700");
    assert!(output.lines()[1].contains(" 1024 "), "{output}");
    assert!(dir.path().join("x").exists());
    let shown = cell.cli(&format!("volume inspect {name}")).ok().json();
    assert_eq!(shown[0]["Labels"]["k"], "w");
    let mounts = cell.inspect(&id)["Mounts"].clone();
    let mut kinds: Vec<_> = mounts
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| format!("{} {} {}", one["Destination"], one["Type"], one["RW"]))
        .collect();
    kinds.sort();
    assert_eq!(
        kinds,
        [
            "\"/b\" \"bind\" true",
            "\"/own\" \"volume\" true",
            "\"/t\" \"tmpfs\" true",
            "\"/v\" \"volume\" false"
        ]
    );
    // All of them in another container; Docker took a tmpfs for a volume without a name.
    if cell.now_or_then(true, false) {
        let other = cell
            .run(&format!("--rm --volumes-from {id} {BUSYBOX} ls /b /own /v"))
            .ok();
        assert_eq!(other.lines(), ["/b:", "x", "", "/own:", "x", "", "/v:"]);
    }
    cell.cli(&format!("rm -v {id}")).ok();
    cell.cli(&format!("volume rm {name}")).ok();
});

case!(ours process a_part_of_a_volume, |cell| {
    let name = cell.name("data");
    let script = "mkdir -p /v/sub/deep; echo it >/v/sub/deep/file; ln -s /etc /v/out; \\
                  ln -s sub/deep /v/in";
    cell.run(&format!("--rm -v {name}:/v {BUSYBOX} sh -c '{script}'")).ok();
    let read = |subpath: &str, target: &str| {
        let mount = format!("type=volume,src={name},dst={target},volume-subpath={subpath}");
        cell.run(&format!("--rm --mount {mount} {BUSYBOX} cat {target}/file"))
    };
    assert_eq!(read("sub/deep", "/x").ok().text(), "it");
    // A link may lead to another place inside the volume, and nowhere else.
    assert_eq!(read("in", "/x").ok().text(), "it");
    read("out", "/x").fails().says("escapes the base directory");
    read("missing", "/x").fails().says("no such file or directory");
    read("../x", "/x").fails().says("relative path within the volume");
    cell.cli(&format!("volume rm {name}")).ok();
});

case!(ours a_directory_of_the_hosts_is_dev, |cell| {
    let dir = host_dir(cell, "dev");
    let path = dir.path();
    std::fs::write(path.join("mark"), "it\n").expect("is ours");
    std::os::unix::fs::symlink("/proc/self/fd", path.join("fd")).expect("is ours");
    std::fs::create_dir(path.join("below")).expect("is ours");
    std::fs::create_dir(path.join("pts")).expect("is ours");
    let ptmx = path.join("ptmx");
    assert!(
        Command::new("mknod")
            .arg(&ptmx)
            .args(["c", "5", "2"])
            .status()
            .expect("runs")
            .success()
    );
    let names = || {
        let entries = std::fs::read_dir(path).expect("is there");
        let mut names: Vec<_> = entries
            .map(|one| one.expect("is there").file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    for mode in ["rw", "ro"] {
        let output = cell.run(&format!(
            "--rm -v {}:/dev:{mode} --tmpfs /dev/below {BUSYBOX} \
             sh -c 'touch /dev/below/x; cat /dev/mark; ls /dev /dev/below'",
            path.display()
        ));
        let expected = [
            "it",
            "/dev:",
            "below",
            "fd",
            "mark",
            "ptmx",
            "pts",
            "",
            "/dev/below:",
            "x",
        ];
        assert_eq!(output.ok().lines(), expected, "{mode}");
    }
    assert_eq!(names(), before, "nothing was made in what is the host's");
    if !bulkhead_e2e::daemon::is_reference() {
        let id = cell.detached(&format!("-v {}:/dev {BUSYBOX} sleep 1000", path.display()));
        let mut terminal = cell.line(&format!("exec -it {id} tty")).terminal();
        terminal.expect("/dev/pts/");
        terminal.finish().ok();
    }
});

case!(process volumes_with_options, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let memory = cell.name("memory");
    let bound = cell.name("bound");
    let dir = host_dir(&cell, "dir");
    let path = dir.path().display();
    cell.cli(&format!(
        "volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=1m,uid=9 {memory}"
    ))
    .ok();
    cell.cli(&format!("volume create -o type=none -o device={path} -o o=bind {bound}")).ok();
    // Options without a value are none.
    let plain = cell.name("plain");
    cell.cli(&format!("volume create -o type= -o device= -o o= {plain}")).ok();
    cell.cli(&format!("volume rm {plain}")).ok();
    // Nobody's, and yet neither pruned nor counted.
    let pruned = cell.api("POST", "/v1.41/volumes/prune", None);
    assert_eq!(pruned.json()["VolumesDeleted"], json!([]));
    let usage = cell.api("GET", "/system/df", None).json();
    assert_eq!(usage["Volumes"], json!([]));
    let shown = cell.cli(&format!("volume inspect {memory}")).ok().json();
    assert_eq!(shown[0]["Options"]["o"], "size=1m,uid=9");
    let script = "stat -c %u /m; touch /m/x /b/ready; \
                  while [ ! -e /b/go ]; do sleep 0.1; done; ls /m";
    let id = cell.detached(&format!("-v {memory}:/m -v {bound}:/b {BUSYBOX} sh -c '{script}'"));
    until("it has written", cell.limit(), || dir.path().join("ready").exists().then_some(()));
    let look = format!("--rm -v {memory}:/m {BUSYBOX} ls /m");
    assert_eq!(cell.run(&look).ok().text(), "x", "the same memory");
    cell.daemon().kill();
    cell.daemon().restart();
    // Docker forgets how it was mounted.
    assert_eq!(cell.run(&look).ok().text(), cell.now_or_then("x", ""));
    std::fs::write(dir.path().join("go"), "").expect("is ours");
    assert_eq!(cell.cli(&format!("wait {id}")).ok().text(), "0");
    assert_eq!(cell.cli(&format!("logs {id}")).ok().lines(), ["9", "x"]);
    assert_eq!(cell.run(&look).ok().text(), "", "gone with its last user");
    cell.cli(&format!("rm {id}")).ok();
    // It counts the uses of before its end for ever, too.
    if cell.now_or_then(true, false) {
        cell.cli(&format!("volume rm {memory} {bound}")).ok();
    }
    assert!(dir.path().join("ready").exists(), "a bind's directory is not the volume's");
    cell.finish();
});

case!(process what_makes_no_sense_is_refused, |cell| {
    let dir = host_dir(cell, "dir");
    let path = dir.path().display();
    let create = |line: &str| cell.making("create", &format!("{line} {BUSYBOX} true")).output();
    for (line, words) in [
        ("-v /a:/b:zz", "invalid mode"),
        ("-v /a:b", "must be absolute"),
        ("-v /a:/", "destination can't be '/'"),
        ("-v a/b:/x", "includes invalid characters"),
        ("-v /tmp:/x -v /usr:/x", "duplicate mount point"),
        ("--volumes-from nosuchcontainer", "no such container"),
        ("--mount type=bind,src=/nosuchdirectory,dst=/x", "bind source path does not exist"),
        ("--mount type=volume,src=vv,dst=/x,volume-driver=nosuch", "nosuch"),
        ("--mount type=tmpfs,dst=/", "destination can't be '/'"),
    ] {
        if bulkhead_e2e::daemon::is_reference() && line.contains("nosuch") && !line.contains("bind") {
            continue;
        }
        create(line).fails().says(words);
    }
    // Nothing that is mounted in a guest appears on the host; the other kind looks at its start.
    if cell.is_hyperv() {
        create(&format!("-v {path}:/x:rshared")).fails().says("rshared");
    }
    let answer = |body: serde_json::Value| {
        let answer = cell.api("POST", "/volumes/create", Some(&body));
        (answer.status, answer.message())
    };
    assert_eq!(answer(json!({"Name": "a/b"})).0, 400);
    assert_eq!(answer(json!({"Name": "a"})).0, 400);
    assert_eq!(answer(json!({"Name": 5})).0, 400);
    assert_eq!(answer(json!({"Name": "some", "DriverOpts": {"nope": "x"}})).0, 400);
    assert_eq!(answer(json!({"Name": "some", "DriverOpts": {"type": "nfs"}})).0, 400);
    let (status, message) = answer(json!({"Name": "some", "Driver": "nosuch"}));
    assert_eq!(status, 404, "{message}");
    assert_eq!(cell.api("GET", "/volumes/nosuch", None).status, 404);
    assert_eq!(cell.api("DELETE", "/volumes/nosuch", None).status, 404);
    let filters = "%7B%22nope%22%3A%5B%22x%22%5D%7D";
    assert_eq!(cell.api("GET", &format!("/volumes?filters={filters}"), None).status, 400);
    // A pruning of nothing is a list of none.
    let filters = "%7B%22label%22%3A%5B%22nosuchlabel%22%5D%7D";
    let answer = cell.api("POST", &format!("/volumes/prune?filters={filters}"), None);
    assert_eq!(answer.json()["VolumesDeleted"], json!([]));
    assert!(!volumes(cell, "").iter().any(|name| name == "some" || name == "vv"));
});

case!(mounts_that_cannot_be, |cell| {
    let host = host_dir(cell, "host");
    let host = host.path().display();
    let file = format!("{host}/file");
    std::fs::write(&file, "x").expect("a file");
    let kinds = "Are you trying to mount a directory onto a file (or vice-versa)?";
    let of_proc = "cannot be mounted because it is not of type proc";
    let wrong = [
        (format!("-v {host}:/etc/passwd"), kinds),
        (format!("-v {host}:/proc"), of_proc),
        (format!("-v {file}:/etc"), kinds),
        (format!("-v {file}:/proc/sysrq-trigger"), "is inside /proc"),
    ];
    // Each takes a VM, and whoever looks is the same at both isolations.
    let tried = if cell.is_hyperv() { 2 } else { wrong.len() };
    for (mount, words) in &wrong[..tried] {
        let id = cell.create(&format!("{mount} {BUSYBOX} true"));
        let said = cell.cli(&format!("start {id}")).exits(1).says(words).err();
        assert!(!said.contains("Mount {"), "{said}");
        let state = cell.inspect(&id)["State"].clone();
        assert_eq!(state["Status"], "created", "{state}");
        assert_ne!(state["ExitCode"], 0, "{state}");
        cell.cli(&format!("rm {id}")).ok();
        cell.nothing_left_of(&id);
    }
    // What differs in kind from what the image has there is still fine where another covers it.
    cell.run(&format!(
        "--rm -v {host}:/etc -v {file}:/etc/file {BUSYBOX} cat /etc/file"
    ))
    .ok()
    .says("x");
});
