//! What a container and the host have in common is one thing, whatever is between them:
//! each sees at once what the other does, and files are what they are on the host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use bulkhead_e2e::{BUSYBOX, Cell, case};

fn host_dir(cell: &Cell, word: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&cell.name(word).replace('/', "-"))
        .tempdir()
        .expect("a temporary directory")
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("is ours");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

case!(each_side_sees_what_the_other_does, |cell| {
    let dir = host_dir(cell, "dir");
    let host = dir.path();
    let path = host.display();
    fs::create_dir(host.join("live")).expect("is ours");
    write(&host.join("one"), "one\n");
    let live = host.join("live");
    let id = cell.detached(&format!(
        "-v {path}/live:/live -v {path}/live:/seen:ro -v {path}/one:/etc/one \
         -v {path}/one:/etc/fixed:ro {BUSYBOX} sleep 1000"
    ));
    let sh = |script: &str| {
        let words = ["exec", &id, "sh", "-c", script];
        cell.call(&words).output().ok().text()
    };

    for round in 0..3 {
        sh(&format!("echo {round} >/live/f"));
        assert_eq!(read(&live.join("f")), format!("{round}\n"));
        // As long as before: only the time tells them apart.
        write(&live.join("f"), &format!("{}\n", round + 5));
        assert_eq!(sh("cat /live/f /seen/f"), format!("{0}\n{0}", round + 5));
        fs::rename(live.join("f"), live.join("g")).expect("is ours");
        assert_eq!(sh("ls /live; mv /live/g /live/h"), "g");
        assert!(live.join("h").exists() && !live.join("g").exists());
        fs::remove_file(live.join("h")).expect("is ours");
        assert_eq!(sh("ls /live"), "");
    }

    // Owners, modes, times, links, attributes, special files.
    sh(
        "cd /live; umask 027; echo x >f; chown 1234:5678 f; chmod 4751 f; ln f hard; ln -s f soft; \
        mkfifo pipe; mkdir sub; chmod 1777 sub; touch -d @1000000000 f; mknod null c 1 3",
    );
    let seen = fs::metadata(live.join("f")).expect("is there");
    assert_eq!(
        (seen.uid(), seen.gid(), seen.mode()),
        (1234, 5678, 0o104_751)
    );
    assert_eq!((seen.nlink(), seen.mtime()), (2, 1_000_000_000));
    assert_eq!(
        fs::metadata(live.join("hard")).expect("is there").ino(),
        seen.ino()
    );
    assert_eq!(
        fs::read_link(live.join("soft")).expect("is a link"),
        Path::new("f")
    );
    let kind = |name: &str| {
        fs::symlink_metadata(live.join(name))
            .expect("is there")
            .file_type()
    };
    assert!(kind("pipe").is_fifo() && kind("null").is_char_device());
    assert_eq!(
        fs::metadata(live.join("sub")).expect("is there").mode() & 0o7777,
        0o1777
    );
    chown(live.join("hard"), Some(7), Some(8)).expect("is ours");
    fs::set_permissions(live.join("hard"), fs::Permissions::from_mode(0o640)).expect("is ours");
    // The rig has a tmpfs of Linux 6.1 there, which learnt users' attributes with 6.6.
    let attributes = match bulkhead_e2e::in_rig() {
        true => "",
        false => "user.e2e=776f7264",
    };
    if !attributes.is_empty() {
        let flags = rustix::fs::XattrFlags::CREATE;
        rustix::fs::setxattr(live.join("f"), "user.e2e", b"word", flags).expect("is ours");
    }
    let walked = sh("probe walk /live");
    let expected = format!("f f 640 7:8 2 1000000000 2 - [{attributes}]");
    assert!(
        walked.lines().any(|line| line.starts_with(&expected)),
        "{walked}"
    );
    assert!(
        walked
            .lines()
            .any(|line| line.starts_with("null c 640 0:0 ")),
        "{walked}"
    );
    // Other users of the container are kept out as on the host.
    let words = [
        "exec",
        "-u",
        "1000:1000",
        &id,
        "sh",
        "-c",
        "cat /live/f; echo mine >/live/sub/m",
    ];
    cell.call(&words).output().ok().says("permission denied");
    assert_eq!(
        fs::metadata(live.join("sub/m")).expect("is there").uid(),
        1000
    );

    // Contents: long, mapped, locked, appended to from both sides.
    let long: Vec<u8> = (0..5_000_000u32)
        .map(|at| (at / 251).to_le_bytes()[0])
        .collect();
    fs::write(live.join("long"), &long).expect("is ours");
    let digest = bulkhead_e2e::images::sha256(&long);
    assert!(sh("sha256sum /seen/long; cp /live/long /live/copy").starts_with(&digest));
    assert!(fs::read(live.join("copy")).expect("is there") == long);
    write(&live.join("mapped"), "before and after");
    assert_eq!(sh("probe map /live/mapped BEHIND"), "before");
    assert_eq!(read(&live.join("mapped")), "BEHIND and after");
    assert_eq!(
        sh("probe locks /live/mapped"),
        "flock true true\nflock true true\nchild true"
    );
    sh("echo one >>/live/log");
    fs::File::options()
        .append(true)
        .open(live.join("log"))
        .and_then(|mut log| log.write_all(b"two\n"))
        .expect("is ours");
    sh(
        "echo three >>/live/log; dd if=/live/log of=/live/direct bs=4096 oflag=direct 2>/dev/null; true",
    );
    assert_eq!(read(&live.join("log")), "one\ntwo\nthree\n");

    // A single file, and what must not be written.
    assert_eq!(
        sh("cat /etc/one /etc/fixed; echo more >>/etc/one"),
        "one\none"
    );
    assert_eq!(read(&host.join("one")), "one\nmore\n");
    write(&host.join("one"), "host\n");
    assert_eq!(sh("cat /etc/one /etc/fixed"), "host\nhost");
    let refused = sh(
        "exec 2>&1; touch /seen/x; rm /seen/f; mkdir /seen/d; chmod 777 /seen/f; \
                      ln /seen/f /seen/z; (echo x >/seen/log); (echo x >/etc/fixed); true",
    );
    assert_eq!(
        refused.matches("Read-only file system").count(),
        7,
        "{refused}"
    );
    assert_eq!(read(&live.join("log")), "one\ntwo\nthree\n");
    // A link leads where it leads for whoever follows it.
    write(&host.join("secret"), "secret");
    symlink("../secret", live.join("out")).expect("is ours");
    symlink(host.join("secret"), live.join("away")).expect("is ours");
    let followed = sh("cat /live/out /live/away 2>&1; true");
    assert_eq!(followed.matches("No such file").count(), 2, "{followed}");
    cell.cli(&format!("rm -f {id}")).ok();
    if !bulkhead_e2e::daemon::is_reference() {
        cell.nothing_left_of(&id);
    }
});

/// Answers everybody with what they said.
fn parrot(path: &Path) {
    let listener = UnixListener::bind(path).expect("a socket");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("is ours");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            std::thread::spawn(move || {
                let mut said = Vec::new();
                let read = connection.read_to_end(&mut said);
                // Whoever goes away early gets nothing.
                let _ = read.and_then(|_| connection.write_all(b"you said "));
                let _ = connection.write_all(&said);
            });
        }
    });
}

case!(a_socket_of_the_host, |cell| {
    let dir = host_dir(cell, "dir");
    let path = dir.path().display();
    parrot(&dir.path().join("s"));
    // What a container does that drives its own engine.
    let script = "stat -c '%F %a' /run/s; probe connect /run/s hello; echo; \
                  for i in 1 2 3 4 5; do probe connect /run/s $i; echo; done";
    let said = cell
        .run(&format!(
            "--rm -v {path}/s:/run/s {BUSYBOX} sh -c \"{script}\""
        ))
        .ok();
    let mut expected = vec!["socket 666".to_owned(), "you said hello".to_owned()];
    expected.extend((1..=5).map(|number| format!("you said {number}")));
    assert_eq!(said.lines(), expected);
    // A user who may, and many at once.
    let many = "for i in 1 2 3 4 5 6 7 8 9; do probe connect /run/s $i & done; wait";
    let said = cell
        .run(&format!(
            "--rm -u 1000 -v {path}/s:/run/s {BUSYBOX} sh -c '{many}'"
        ))
        .ok()
        .text();
    assert_eq!(said.matches("you said ").count(), 9, "{said}");
});
