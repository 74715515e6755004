//! Builds: the classic builder, at both isolations.

use bulkhead_e2e::images::{Meta, Tar};
use bulkhead_e2e::{BUSYBOX, Cell, ClientKind, Daemon, Output, case};

/// A build whose context is an archive on the client's standard input.
fn build(cell: &Cell, arguments: &str, files: &[(&str, &str)]) -> Output {
    let mut tar = Tar::new();
    for (path, content) in files {
        tar.file(path, &Meta::mode(0o644), content.as_bytes());
    }
    cell.building(&format!("{arguments} -"))
        .stdin(tar.done())
        .output()
}

fn id(cell: &Cell, image: &str) -> String {
    cell.cli(&format!("image inspect -f {{{{.Id}}}} {image}"))
        .ok()
        .text()
}

fn remove(cell: &Cell, names: &[&str]) {
    for name in names {
        cell.cli(&format!("rmi {name}")).ok();
    }
}

case!(instructions_stages_and_the_cache, |cell| {
    // Cells share a daemon and its cache: what they build is each one's own.
    let (one, two) = (
        format!("first {}", cell.number()),
        format!("second {}", cell.number()),
    );
    let name = cell.name("image");
    let dockerfile = format!(
        "ARG BASE={BUSYBOX}\n\
         FROM $BASE AS made\n\
         LABEL cell=\"{one}\"\n\
         ARG WORD=none\n\
         ENV GREETING=hello\n\
         WORKDIR /made\n\
         COPY source copied\n\
         RUN echo $GREETING $WORD > said && cat copied >> said\n\
         FROM {BUSYBOX}\n\
         COPY --from=made --chown=7:8 /made/said /said\n\
         SHELL [\"/bin/sh\", \"-ec\"]\n\
         USER 1000\n\
         STOPSIGNAL SIGINT\n\
         CMD cat /said\n"
    );
    let files = [
        ("Dockerfile", dockerfile.as_str()),
        ("source", one.as_str()),
    ];
    let arguments = format!("--build-arg WORD=there --label a=b -t {name}");
    let output = build(cell, &arguments, &files)
        .ok()
        .says(&format!("Successfully tagged {name}:latest"));
    // Only our client asks for the times: others read the lines that Docker's builder says.
    let ours = cell.client == ClientKind::Bulkhead;
    assert_eq!(output.text().contains(" took "), ours, "{output}");
    assert_eq!(cell.prints(&name, ""), ["hello there", one.as_str()]);
    assert_eq!(cell.prints(&name, "stat -c %u:%g /said"), ["7:8"]);
    let config = cell.cli(&format!("image inspect {name}")).ok().json()[0]["Config"].clone();
    assert_eq!(config["Labels"]["a"], "b");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["User"], "1000");
    let first = id(cell, &name);

    // All of it is in the cache, until a file is another one.
    let again = build(cell, &arguments, &files).ok();
    assert!(!again.text().contains("Running in"), "{again}");
    assert_eq!(id(cell, &name), first);
    let changed = [files[0], ("source", two.as_str())];
    build(cell, &arguments, &changed).ok().says("Running in");
    assert_eq!(cell.prints(&name, ""), ["hello there", two.as_str()]);

    let target = cell.name("image");
    build(cell, &format!("--target made -t {target}"), &changed).ok();
    assert_eq!(
        cell.prints(&target, "cat /made/said"),
        ["hello none", two.as_str()]
    );
    remove(cell, &[&target, &name]);
    let _ = cell.cli(&format!("rmi {first}"));
});

case!(a_failed_step_is_told_and_leaves_no_image, |cell| {
    let name = cell.name("image");
    let dockerfile = format!("FROM {BUSYBOX}\nRUN echo before && exit 7\n");
    let arguments = format!("--force-rm -t {name}");
    build(cell, &arguments, &[("Dockerfile", &dockerfile)])
        .exits(7)
        .says("before")
        .says("returned a non-zero code: 7");
    cell.cli(&format!("image inspect {name}")).exits(1);
    build(cell, "", &[("Dockerfile", "FROM scratch\nNONSENSE x\n")])
        .exits(1)
        .says("nonsense");
    build(cell, "", &[("Dockerfile", "FROM scratch\nCOPY ../x /\n")])
        .exits(1)
        .says("forbidden path outside the build context");
});

case!(ours a_command_is_given_mounts, |cell| {
    let (one, two) = (
        format!("first {}\n", cell.number()),
        format!("second {}\n", cell.number()),
    );
    let name = cell.name("image");
    let dockerfile = format!(
        "FROM {BUSYBOX} AS other\n\
         LABEL cell=\"{}\"\n\
         RUN mkdir /o && echo from-stage > /o/file\n\
         FROM {BUSYBOX}\n\
         RUN --mount=type=bind,target=/context cat /context/in/file > /said; \
         touch /context/new 2>/dev/null || echo read-only >> /said\n\
         RUN --mount=type=bind,from=other,source=o,target=/m,rw \
         cat /m/file >> /said && echo gone > /m/file\n\
         RUN --mount=type=secret,id=none --mount=type=tmpfs,target=/t \
         [ ! -e /run/secrets/none ] && grep -c ' /t tmpfs' /proc/mounts >> /said\n\
         RUN --mount=type=tmpfs,target=/cache/of/it echo x > /cache/kept && touch /cache/of/it/file\n\
         RUN <<END\n\
         echo heredoc >> /said\n\
         END\n",
        one.trim()
    );
    let files = [("Dockerfile", dockerfile.as_str()), ("in/file", one.as_str())];
    build(cell, &format!("-t {name}"), &files).ok();
    let said = cell.prints(&name, "cat /said");
    assert_eq!(said, [one.trim(), "read-only", "from-stage", "1", "heredoc"]);
    // Nothing is left of where they were mounted.
    let left = cell.prints(&name, "sh -c 'ls -d /context /m /t /run /cache/of/it 2>/dev/null; ls /cache'");
    assert_eq!(left, ["kept"]);
    // What is mounted decides whether a step is the one in the cache.
    let first = id(cell, &name);
    build(cell, &format!("-t {name}"), &files).ok();
    assert_eq!(id(cell, &name), first);
    let changed = [files[0], ("in/file", two.as_str())];
    build(cell, &format!("-t {name}"), &changed).ok();
    assert_eq!(cell.prints(&name, "head -n1 /said"), [two.trim()]);
    remove(cell, &[&name]);
    let _ = cell.cli(&format!("rmi {first}"));
});

case!(hyperv the_image_is_the_same_at_either_isolation, |cell| {
    let dockerfile = format!(
        "FROM {BUSYBOX}\n\
         ARG SOURCE_DATE_EPOCH\n\
         ENV A=b\n\
         COPY source /source\n\
         WORKDIR /work/deep\n\
         RUN mkdir -p d/e && echo x > d/e/f && ln d/e/f hard && ln -s d/e/f soft && mkfifo p\n\
         RUN chmod 4755 d/e/f && chown 5:6 d && rm /source && rm -r d/e && mkdir d/e\n\
         RUN rm -f /etc/group && touch /etc/group && chmod 1777 /work\n\
         CMD [\"true\"]\n"
    );
    let files = [("Dockerfile", dockerfile.as_str()), ("source", "same\n")];
    let mut made = Vec::new();
    for isolation in ["process", "hyperv"] {
        let name = cell.name("image");
        let mut tar = Tar::new();
        for (path, content) in files {
            tar.file(path, &Meta::mode(0o644), content.as_bytes());
        }
        cell.line(&format!(
            "build --no-cache --isolation={isolation} --build-arg SOURCE_DATE_EPOCH=1000000000 \
             -t {name} -"
        ))
        .stdin(tar.done())
        .output()
        .ok();
        let image = cell.cli(&format!("image inspect {name}")).ok().json()[0].clone();
        made.push((name, image["RootFS"].clone(), image["Id"].clone()));
    }
    assert_eq!(made[0].1, made[1].1, "the layers");
    assert_eq!(made[0].2, made[1].2, "the digests");
    remove(cell, &[&made[0].0, &made[1].0]);
});

case!(hyperv a_steps_changes_come_from_the_machine_that_ran_it, |cell| {
    let guest = crate::failure::guest();
    let path = guest.path().display().to_string();
    let cell = &cell.on(Daemon::start(&["--guest-dir", &path]));
    let name = cell.name("image");
    let context = tempfile::tempdir().expect("a directory");
    // The step is printed before it runs; this says what is not written there.
    let step = "echo be''gun; until [ -e /end ]; do sleep 0.1; done; rm /end; echo x > /made";
    let dockerfile = format!("FROM {BUSYBOX}\nRUN {step}\n");
    std::fs::write(context.path().join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let mut building = cell
        .building(&format!("-t {name} {}", context.path().display()))
        .start();
    drop(building.expect("begun"));
    // From here on no machine can be started.
    guest.close().expect("the guest's directory");
    let id = cell.cli("ps -q --no-trunc").ok().text();
    cell.cli(&format!("exec {id} touch /end")).ok();
    building.finish().ok();
    cell.nothing_left_of(&id);
    assert_eq!(cell.prints(&name, "cat /made"), ["x"]);
    cell.cli(&format!("run --rm {name} test -e /end")).exits(1);
    remove(cell, &[&name]);
});

/// Containers, running or not, whose command has this word in it.
fn containers_with(cell: &Cell, word: &str) -> Vec<String> {
    let all = cell.cli("ps -a --no-trunc --format '{{.ID}} {{.Command}}'");
    let lines = all.ok().lines().into_iter();
    lines.filter(|line| line.contains(word)).collect()
}

case!(ours stages_are_built_side_by_side, |cell| {
    // Caches are pruned in the end, and so is what other cases have built.
    let cell = &cell.on(Daemon::start(&[]));
    let (mark, name) = (cell.number(), cell.name("image"));
    // Each waits for the other: one after the other they would never end.
    let meet = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,id=meet-{mark},target=/m touch /m/{own}; i=0; \
             until [ -e /m/{other} ]; do sleep 0.1; i=$((i+1)); [ $i -lt 900 ] || exit 1; done; \
             echo {own} met {other} | tee /met\n"
        )
    };
    let dockerfile = format!(
        "FROM {BUSYBOX} AS one\n{}\
         FROM no-such-image/anywhere:1 AS unneeded\nRUN exit 1\n\
         FROM {BUSYBOX} AS two\n{}\
         FROM {BUSYBOX}\nCOPY --from=one /met /one\nCOPY --from=two /met /two\n",
        meet("a", "b"),
        meet("b", "a"),
    );
    let files = [("Dockerfile", dockerfile.as_str())];
    let built = build(cell, &format!("-t {name}"), &files).ok();
    drop(
        built
            .says("[one 2/2] a met b")
            .says("[two 2/2] b met a")
            .says("[3 2/3] Step 8/9 : COPY --from=one /met /one")
            .says("Stage unneeded was not built"),
    );
    assert_eq!(
        cell.prints(&name, "cat /one /two"),
        ["a met b", "b met a"]
    );
    remove(cell, &[&name]);
    cell.api("POST", "/build/prune", None);
});

case!(ours a_failed_stage_ends_the_others, |cell| {
    // Caches are pruned in the end, and so is what other cases have built.
    let cell = &cell.on(Daemon::start(&[]));
    let (mark, name) = (cell.number(), cell.name("image"));
    let dockerfile = format!(
        "FROM {BUSYBOX} AS one\n\
         RUN --mount=type=cache,id=fail-{mark},target=/m until [ -e /m/begun ]; do sleep 0.1; done; \
         echo {mark} fails; exit 7\n\
         FROM {BUSYBOX} AS two\n\
         RUN --mount=type=cache,id=fail-{mark},target=/m touch /m/begun; sleep 100{mark}\n\
         FROM two\nCOPY --from=one /x /x\n"
    );
    let files = [("Dockerfile", dockerfile.as_str())];
    build(cell, &format!("--force-rm -t {name}"), &files)
        .exits(7)
        .says(&format!("[one 2/2] {mark} fails"))
        .says("returned a non-zero code: 7");
    assert_eq!(containers_with(cell, &mark.to_string()), [""; 0]);
    cell.cli(&format!("image inspect {name}")).exits(1);
    cell.api("POST", "/build/prune", None);
});

/// All layers of an image and its documents, as `save` writes them, decompressed as far as they
/// are archives.
fn saved(cell: &Cell, image: &str) -> Vec<u8> {
    let file = cell.daemon().base().join(cell.name("saved"));
    cell.cli(&format!("save -o {} {image}", file.display()))
        .ok();
    let bytes = std::fs::read(&file).expect("the archive");
    std::fs::remove_file(&file).expect("the archive");
    bytes
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes
        .windows(word.len())
        .any(|window| window == word.as_bytes())
}

case!(ours secrets_are_read_and_leave_no_trace, |cell| {
    let needed = format!("FROM {BUSYBOX}\nRUN --mount=type=secret,id=key,required=true true\n");
    build(cell, "", &[("Dockerfile", &needed)])
        .exits(1)
        .says("secret key: not found")
        .says("bulkhead build --secret");
    if cell.client == ClientKind::Docker {
        // Its classic builder has no way to send one.
        return;
    }
    let (mark, name) = (cell.number(), cell.name("image"));
    let (file, variable) = (format!("file-secret-{mark}"), format!("env-secret-{mark}"));
    let source = cell.daemon().base().join(cell.name("secret"));
    std::fs::write(&source, &file).expect("a secret");
    let dockerfile = format!(
        "FROM {BUSYBOX}\n\
         LABEL cell=\"{mark}\"\n\
         RUN --mount=type=secret,id=one,required=true --mount=type=secret,id=two,target=/two,uid=7,mode=0440 \
         sha256sum < /run/secrets/one > /sums && sha256sum < /two >> /sums && \
         stat -c '%a %u' /run/secrets/one /two >> /sums && ! touch /two\n\
         RUN ls /run/secrets /two 2>/dev/null | wc -l >> /sums; cat /run/secrets/one /two; true\n"
    );
    let files = [("Dockerfile", dockerfile.as_str())];
    let given = format!("--secret id=one,src={} --secret id=two,env=TWO", source.display());
    let mut tar = Tar::new();
    for (path, content) in files {
        tar.file(path, &Meta::mode(0o644), content.as_bytes());
    }
    let built = cell
        .line(&format!(
            "build --isolation={} {given} -t {name} -",
            cell.isolation_name()
        ))
        .env("TWO", &variable)
        .stdin(tar.done())
        .output()
        .ok();
    let sum = |text: &str| format!("{}  -", bulkhead_e2e::images::sha256(text.as_bytes()));
    let said = cell.prints(&name, "cat /sums");
    assert_eq!(said[..4], [sum(&file), sum(&variable), "400 0".into(), "440 7".into()]);
    let everything = saved(cell, &name);
    let history = cell.cli(&format!("history --no-trunc {name}")).ok().text();
    let inspected = cell.cli(&format!("image inspect {name}")).ok().text();
    let log = cell.daemon().log();
    for secret in [&file, &variable] {
        assert!(!contains(&everything, secret), "in the image");
        for text in [&built.to_string(), &history, &inspected, &log] {
            assert!(!text.contains(secret.as_str()), "{text}");
        }
    }
    // Nor is it in any file of the daemon's.
    let left = cell.daemon().exec_root().join("build");
    let mut found = Vec::new();
    bulkhead_e2e::host::walk(&left, 5, &mut |path, directory| {
        if !directory && contains(&std::fs::read(path).unwrap_or_default(), &mark.to_string()) {
            found.push(path.to_owned());
        }
    });
    assert!(found.is_empty(), "{found:?}");
    // What a secret is decides nothing: the step is in the cache.
    std::fs::write(&source, "another").expect("a secret");
    let first = id(cell, &name);
    build(cell, &format!("--secret id=one,src={} -t {name}", source.display()), &files).ok();
    assert_eq!(id(cell, &name), first);
    build(cell, "--secret id=one", &files).exits(1).says("one");
    remove(cell, &[&name]);
});
