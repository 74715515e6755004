//! `--userns-remap`: containers with process isolation whose IDs are others on the host.
//!
//! The daemons have an `/etc` of their own, over the host's, in which there is a user with
//! subordinate IDs.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bulkhead_e2e::daemon::binaries;
use bulkhead_e2e::images::{Meta, Tar};
use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case};

/// The host's IDs of the user.
const FIRST: u32 = 1_420_000;

/// An `/etc` over the host's, in a mount namespace that goes with the value.
struct Etc {
    base: tempfile::TempDir,
    holder: Option<Child>,
}

impl Etc {
    /// One with the user `e2eremap` and these lines in `/etc/subuid` and `/etc/subgid`.
    fn new(ranges: &str) -> Self {
        let mut etc = Self {
            base: tempfile::tempdir().expect("a directory"),
            holder: None,
        };
        for name in ["upper", "work"] {
            std::fs::create_dir(etc.base.path().join(name)).expect("is ours");
        }
        let more = |name: &str, line: &str| {
            let host = std::fs::read_to_string(Path::new("/etc").join(name));
            let text = format!("{}{line}\n", host.unwrap_or_default());
            std::fs::write(etc.path(name), text).expect("is ours");
        };
        more("passwd", "e2eremap:x:1419999:1419999::/:/bin/false");
        more("group", "e2eremap:x:1419999:");
        for name in ["subuid", "subgid"] {
            std::fs::write(etc.path(name), ranges).expect("is ours");
        }
        etc.hold();
        etc
    }

    /// Has a process in the mount namespace, that ends when this program does.
    fn hold(&mut self) {
        let base = self.base.path().display();
        let script = format!(
            "mount -t overlay -o lowerdir=/etc,upperdir={base}/upper,workdir={base}/work \
             etc /etc && echo ready && exec cat"
        );
        let mut holder = Command::new("unshare")
            .args(["-m", "--propagation", "slave", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut said = [0; 5];
        let stdout = holder.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut said).expect("it is ready");
        self.holder = Some(holder);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join("upper").join(name)
    }

    /// What executes the words after it, and with them a program, over this `/etc`.
    fn before(&self) -> Vec<String> {
        let pid = self.holder.as_ref().map_or(0, Child::id).to_string();
        ["nsenter", "-m", "-t", &pid].map(str::to_owned).to_vec()
    }

    fn daemon(&self, value: &str) -> Daemon {
        let before = self.before();
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        Daemon::start_behind(&before, &["--userns-remap", value], &[])
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        if let Some(mut holder) = self.holder.take() {
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}

/// Whether files can be shown under other IDs where daemons have theirs: not in the rig, where
/// that is a tmpfs of Linux 6.1, which learnt it with 6.3.
fn can_map() -> bool {
    !bulkhead_e2e::in_rig()
}

fn remapped(cell: &Cell) -> (Cell, Etc) {
    let etc = Etc::new(&format!("e2eremap:{FIRST}:65536\n"));
    (cell.on(etc.daemon("e2eremap")), etc)
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = std::fs::symlink_metadata(path).expect("is there");
    (metadata.uid(), metadata.gid())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

case!(process ids_and_files, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    let host = tempfile::tempdir().expect("a directory");
    let host = host.path();
    for name in ["read", "write"] {
        std::fs::create_dir(host.join(name)).expect("is ours");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(host.join(name), mode).expect("is ours");
    }
    // Docker's root of a container has to get there by itself.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(host, mode).expect("is ours");
    std::fs::write(host.join("read/file"), "words\n").expect("is ours");
    std::os::unix::fs::chown(host.join("write"), Some(FIRST), Some(FIRST)).expect("is ours");
    let volume = cell.name("v");
    let id = cell.detached(&format!(
        "--network none -v {volume}:/volume -v {h}/read:/read -v {h}/write:/write \
         {BUSYBOX} sleep 100000",
        h = host.display()
    ));
    let pid = cell.inspect(&id)["State"]["Pid"].as_u64().expect("a number");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let uids = status.lines().find(|line| line.starts_with("Uid:"));
    assert_eq!(words(uids.unwrap_or_default())[1..], vec![FIRST.to_string(); 4]);

    let exec = |script: &str| cell.call(&["exec", &id, "sh", "-c", script]).output();
    let map = exec("cat /proc/self/uid_map").ok().text();
    assert_eq!(words(&map), ["0", &FIRST.to_string(), "65536"]);
    assert_eq!(exec("id -u; id -g").ok().lines(), ["0", "0"]);
    // In the root, in a volume and in a bind of its own, but not in one of the host's.
    exec("touch /made /volume/made /write/made && chown 7:8 /made && mkdir /dir").ok();
    exec("cat /read/file && ! touch /read/made 2>/dev/null").ok().says("words");
    let seen = exec("stat -c '%u:%g' /bin /made /dir /volume /volume/made /write/made /etc/hosts");
    assert_eq!(seen.ok().lines(), ["0:0", "7:8", "0:0", "0:0", "0:0", "0:0", "0:0"]);
    exec("test $(stat -c %u /read/file) = 65534 && echo x >>/etc/hosts").ok();
    assert_eq!(owner(&host.join("write/made")), (FIRST, FIRST));
    let line = format!("volume inspect -f {{{{.Mountpoint}}}} {volume}");
    let data = PathBuf::from(cell.cli(&line).ok().text());
    assert_eq!(owner(&data), (FIRST, FIRST));
    assert_eq!(owner(&data.join("made")), (FIRST, FIRST));
    // Streams and the kernel's file systems.
    exec("echo out >/dev/stdout").ok().says("out");
    exec("test -w /dev/null && ls /sys/class/net && ! mkdir /sys/x 2>/dev/null").ok().says("lo");
    exec("! echo 1 >/proc/sys/kernel/panic").ok();
    exec("! mount -t tmpfs x /dir 2>/dev/null").ok();
    cell.call(&["exec", "-u", "5", &id, "sh", "-c", "id -u; echo o >/dev/stdout; touch /tmp/x"])
        .output()
        .ok()
        .says("5");
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
    cell.cli(&format!("volume rm {volume}")).ok();
    cell.finish();
});

case!(process files_from_outside, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    let host = tempfile::tempdir().expect("a directory");
    std::fs::write(host.path().join("in"), "words").expect("is ours");
    std::os::unix::fs::chown(host.path().join("in"), Some(7), Some(8)).expect("is ours");
    let (volume, image) = (cell.name("v"), cell.name("i"));
    let id = cell.detached(&format!(
        "--network none -v {volume}:/volume {BUSYBOX} sleep 100000"
    ));
    let script = "touch /made && chown 3:4 /made && rm /etc/group";
    cell.call(&["exec", &id, "sh", "-c", script]).output().ok();
    let copy = |id: &str, path: &str| {
        let name = path.trim_start_matches('/').replace('/', "-");
        cell.cli(&format!("cp {}/in {id}:{path}", host.path().display())).ok();
        let back = host.path().join(name);
        cell.cli(&format!("cp {id}:{path} {}", back.display())).ok();
        assert_eq!(std::fs::read_to_string(&back).expect("came back"), "words");
    };
    let stat = |id: &str, path: &str| {
        cell.call(&["exec", id, "stat", "-c", "%u:%g", path]).output().ok().text()
    };
    // Owners are those that the archive says, in the container.
    copy(&id, "/running");
    copy(&id, "/volume/running");
    let owners = [stat(&id, "/running"), stat(&id, "/volume/running")];
    assert_eq!(owners, ["7:8", "7:8"]);
    let diff = cell.cli(&format!("diff {id}")).ok();
    diff.says("A /made").says("A /running").says("D /etc/group");

    cell.cli(&format!("commit {id} {image}")).ok();
    let layers = format!("save {image} -o {}", host.path().join("saved").display());
    cell.cli(&layers).ok();
    cell.cli(&format!("stop -t 0 {id}")).ok();
    copy(&id, "/stopped");
    copy(&id, "/volume/stopped");
    cell.cli(&format!("start {id}")).ok();
    let owners = [stat(&id, "/stopped"), stat(&id, "/volume/stopped")];
    assert_eq!(owners, ["7:8", "7:8"]);
    assert_eq!(stat(&id, "/made"), "3:4");

    // An export says what the container sees.
    let exported = cell.call(&["export", &id]).output().ok();
    let mut archive = tar::Archive::new(exported.stdout.as_slice());
    let found = archive.entries().expect("an archive").find_map(|entry| {
        let entry = entry.expect("a whole archive");
        let is_it = entry.path_bytes().ends_with(b"made");
        is_it.then(|| (entry.header().uid().ok(), entry.header().gid().ok()))
    });
    assert_eq!(found, Some((Some(3), Some(4))));
    cell.cli(&format!("rm -f {id}")).ok();

    // An image knows nothing of the mapping; Docker's layers are shifted, and show it.
    let plain = ["3:4", "7:8", "0:0"].map(str::to_owned);
    let shifted = [(3, 4), (7, 8), (0, 0)].map(|(uid, gid)| format!("{}:{}", FIRST + uid, FIRST + gid));
    let of_host = cell.now_or_then(plain.clone(), shifted);
    for (line, expected) in [("", plain), ("--userns=host", of_host)] {
        let script = "stat -c '%u:%g' /made /running /etc";
        let owners = cell.run(&format!("--rm --network none {line} {image} {script}"));
        assert_eq!(owners.ok().lines(), expected, "{line}");
    }
    cell.cli(&format!("rmi {image}")).ok();
    cell.cli(&format!("volume rm {volume}")).ok();
    cell.finish();
});

case!(process an_image_is_built, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    let image = cell.name("i");
    let mut tar = Tar::new();
    let dockerfile = format!(
        "FROM {BUSYBOX}\nRUN mkdir /ran && touch /ran/file && chown 5:6 /ran/file && \
         cat /proc/self/uid_map >/ran/map\nCOPY --chown=7:8 file /copied\nVOLUME /data\n\
         COPY file /data/file\nRUN stat -c '%u:%g' /copied >/ran/copied\n"
    );
    tar.file("Dockerfile", &Meta::mode(0o644), dockerfile.as_bytes());
    tar.file("file", &Meta::mode(0o600), b"words");
    let build = cell.building(&format!("--network none -t {image} -"));
    build.stdin(tar.done()).output().ok();
    let script = "cat /ran/map /ran/copied && stat -c '%u:%g' /ran /ran/file /copied /data/file";
    let output = cell.run(&format!("--rm --network none {image} sh -c '{script}'"));
    let lines = output.ok().lines();
    assert_eq!(words(&lines[0]), ["0", &FIRST.to_string(), "65536"]);
    assert_eq!(lines[1..], ["7:8", "0:0", "5:6", "7:8", "0:0"]);
    cell.cli(&format!("rmi {image}")).ok();
    cell.finish();
});

case!(process what_goes_with_it, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    cell.cli("info -f {{.SecurityOptions}}").ok().says("name=userns");
    for (option, words) in [
        (
            "--privileged",
            "privileged mode is incompatible with user namespaces.  You must run the container in \
             the host namespace when running privileged mode",
        ),
        (
            "--network=host",
            "cannot share the host's network namespace when user namespaces are enabled",
        ),
        (
            "--pid=host",
            "cannot share the host PID namespace when user namespaces are enabled",
        ),
    ] {
        let name = cell.name("c");
        cell.run(&format!("--rm --name {name} {option} {BUSYBOX} true"))
            .exits(125)
            .says(words);
        assert_eq!(cell.state(&name), "gone");
    }
    let own = "readlink /proc/self/ns/user; cat /proc/self/uid_map";
    for options in ["--network none", "--network=host", "--network none --pid=host"] {
        let line = format!("--rm --userns=host {options} {BUSYBOX} sh -c '{own}'");
        let lines = cell.run(&line).ok().lines();
        let host = std::fs::read_link("/proc/self/ns/user").expect("a link");
        assert_eq!(lines[0], host.to_string_lossy(), "{options}");
        assert_eq!(words(&lines[1]), ["0", "0", "4294967295"], "{options}");
    }
    let id = cell.create(&format!("--userns=host --network none {BUSYBOX} true"));
    assert_eq!(cell.inspect(&id)["HostConfig"]["UsernsMode"], "host");
    cell.cli(&format!("rm {id}")).ok();
    // Options that have to do with IDs and mounts.
    let script = "id -u; id -G; touch /t/x; stat -c %u:%g /t; ! touch /x 2>/dev/null";
    let line = format!(
        "--rm --network none --read-only --tmpfs /t:uid=5,gid=6,mode=700 -u 5:6 --group-add 77 \
         --init --sysctl net.ipv4.ip_forward=1 --cap-add ALL {BUSYBOX} sh -c '{script}'"
    );
    assert_eq!(cell.run(&line).ok().lines(), ["5", "6 77", "5:6"]);
    cell.run(&format!("--rm --network none -u 70000 {BUSYBOX} true"))
        .fails()
        .says("mapped");
    let id = cell.create(&format!("--network none {BUSYBOX} /nowhere"));
    cell.cli(&format!("start {id}")).fails().says("/nowhere");
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
    let mut terminal = cell.terminal(&format!("--rm --network none {BUSYBOX} sh"));
    terminal.send("stat -c %u:%g $(tty); exit 3\n");
    terminal.expect("0:5");
    terminal.finish().exits(3);
    cell.finish();
});

case!(process namespaces_of_others, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    let name = cell.name("c");
    let line = format!("--name {name} --network none --ipc shareable {BUSYBOX} sleep 100000");
    let id = cell.detached(&line);
    for joined in ["--network container:", "--network none --pid container:"] {
        let script = "readlink /proc/self/ns/user";
        let line = format!("--rm {joined}{name} {BUSYBOX} sh -c '{script}'");
        let theirs = cell.run(&line).ok().text();
        let own = cell.call(&["exec", &id, "readlink", "/proc/self/ns/user"]);
        assert_eq!(theirs, own.output().ok().text(), "{joined}");
    }
    cell.run(&format!("--rm --network none --pid container:{name} {BUSYBOX} ps"))
        .ok()
        .says("sleep 100000");
    cell.run(&format!(
        "--rm --network none --ipc container:{name} {BUSYBOX} sh -c 'echo x >/dev/shm/x'"
    ))
    .ok();
    cell.call(&["exec", &id, "cat", "/dev/shm/x"]).output().ok().says("x");
    cell.finish();
});

case!(ours process networks_and_devices, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    let name = cell.name("c");
    let network = cell.name("n");
    cell.cli(&format!("network create {network}")).ok();
    let line = format!("--name {name} --network {network} {BUSYBOX} sleep 100000");
    let id = cell.detached(&line);
    cell.run(&format!("--rm --network {network} {BUSYBOX} ping -c 1 -W 5 {name}"))
        .ok()
        .says("1 packets received");
    // A directory that is root's alone on the host.
    let private = tempfile::tempdir().expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(private.path(), mode).expect("is ours");
    let script = "test -c /dev/mine && echo x >/dev/mine && ! ls /private 2>/dev/null";
    let line = format!(
        "--rm --network none --device /dev/null:/dev/mine -v {}:/private {BUSYBOX} sh -c '{script}'",
        private.path().display()
    );
    cell.run(&line).ok();
    // A directory that is made for a bind is the container's.
    let made = private.path().join("some/where");
    let line = format!("--rm --network none -v {}:/made {BUSYBOX} touch /made/x", made.display());
    cell.run(&line).ok();
    assert_eq!(owner(&made), (FIRST, FIRST));
    assert_eq!(owner(&made.join("x")), (FIRST, FIRST));
    // One of the host's user namespace cannot be joined, a restarted daemon's can.
    let host = cell.detached(&format!("--userns=host --network none {BUSYBOX} sleep 100000"));
    cell.run(&format!("--rm --network container:{host} {BUSYBOX} true"))
        .exits(125)
        .says("--userns=host");
    cell.daemon().restart();
    cell.run(&format!("--rm --network container:{name} {BUSYBOX} ip addr"))
        .ok()
        .says("eth0");
    cell.call(&["exec", &id, "id", "-u"]).output().ok().says("0");
    cell.cli(&format!("rm -f {id} {host}")).ok();
    cell.cli(&format!("network rm {network}")).ok();
    cell.finish();
});

case!(hyperv machines_are_as_ever, |cell| {
    if !can_map() {
        return;
    }
    let (cell, _etc) = remapped(cell);
    let volume = cell.name("v");
    let script = "cat /proc/self/uid_map && touch /x /v/x && stat -c %u:%g /x /v/x";
    let line = format!("--rm --privileged -v {volume}:/v {BUSYBOX} sh -c '{script}'");
    let lines = cell.run(&line).ok().lines();
    assert_eq!(words(&lines[0]), ["0", "0", "4294967295"]);
    assert_eq!(lines[1..], ["0:0", "0:0"]);
    cell.cli(&format!("volume rm {volume}")).ok();
    cell.finish();
});

/// Runs a daemon that does not get far; what it says.
fn refused(etc: &Etc, value: &str) -> String {
    let base = tempfile::tempdir().expect("a directory");
    let before = etc.before();
    let output = Command::new("timeout")
        .arg("20")
        .args(&before)
        .arg(binaries().join("bulkhead"))
        .args(["daemon", "--userns-remap", value, "-H"])
        .arg(format!("unix://{}", base.path().join("s").display()))
        .arg("--data-root")
        .arg(base.path().join("data"))
        .arg("--exec-root")
        .arg(base.path().join("exec"))
        .arg("--pidfile")
        .arg(base.path().join("pid"))
        .output()
        .expect("timeout");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| code != 0 && code != 124),
        "{value}: {text}"
    );
    let left = std::fs::read_dir(base.path()).expect("is there").count();
    assert_eq!(left, 0, "{value}: {text}");
    text
}

case!(ours process daemons_that_do_not_start, |cell| {
    let _ = cell;
    let etc = Etc::new("e2eremap:200000:1000\nother:100000:65536\n");
    for (value, words) in [
        ("nobodyhere", "there is no user 'nobodyhere' in /etc/passwd"),
        ("4242424", "there is no user '4242424'"),
        ("e2eremap:nogrouphere", "there is no group 'nogrouphere' in /etc/group"),
        ("e2eremap", "has 1000 subordinate IDs in /etc/subuid, and 65536 are needed"),
        ("1419999:1419999", "65536 are needed"),
        ("root", "root cannot be mapped to itself"),
        ("a:b:c", "expected default, a user, or a user and a group"),
    ] {
        let text = refused(&etc, value);
        assert!(text.contains(words), "{value}: {text}");
        assert!(text.contains(&format!("--userns-remap {value}")), "{text}");
    }
    let none = Etc::new("other:100000:65536\n");
    let text = refused(&none, "e2eremap");
    assert!(text.contains("no subordinate IDs of the user 'e2eremap'"), "{text}");
});

case!(ours process the_default_user_is_made, |cell| {
    if !can_map() {
        return;
    }
    let etc = Etc::new("other:150000:65536");
    let other = cell.on(etc.daemon("default"));
    let text = std::fs::read_to_string(etc.path("subuid")).expect("is there");
    assert_eq!(text, "other:150000:65536\ndockremap:215536:65536\n");
    let passwd = std::fs::read_to_string(etc.path("passwd")).expect("is there");
    assert!(passwd.contains("\ndockremap:x:"), "{passwd}");
    let line = format!("--rm {BUSYBOX} cat /proc/self/uid_map");
    assert_eq!(words(&other.run(&line).ok().text()), ["0", "215536", "65536"]);
    other.finish();
    // It stays as it is.
    let again = cell.on(etc.daemon("default"));
    let after = std::fs::read_to_string(etc.path("subuid")).expect("is there");
    assert_eq!(after, text);
    again.finish();
});
