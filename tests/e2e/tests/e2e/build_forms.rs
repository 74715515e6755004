//! Builds: the forms of instructions, and what is refused.

use bulkhead_e2e::images::{Compression, Meta, Tar};
use bulkhead_e2e::{BUSYBOX, Cell, case};
use serde_json::{Value, json};

/// A build of a context with these files.
fn build(cell: &Cell, arguments: &str, files: &[(&str, &[u8])]) -> bulkhead_e2e::Output {
    let mut tar = Tar::new();
    for (path, content) in files {
        tar.file(path, &Meta::mode(0o644), content);
    }
    cell.building(&format!("{arguments} -"))
        .stdin(tar.done())
        .output()
}

fn config(cell: &Cell, image: &str) -> Value {
    cell.cli(&format!("image inspect {image}")).ok().json()[0]["Config"].clone()
}

case!(ours heredocs_in_every_form, |cell| {
    let name = cell.name("image");
    let dockerfile = format!(
        "FROM {BUSYBOX}\n\
         LABEL cell={}\n\
         ARG WORD=argument\n\
         ENV NAME=environment\n\
         RUN <<END\n\
         echo $NAME > /said\n\
         echo \"$WORD\" >> /said\n\
         END\n\
         RUN <<-END\n\t\techo tabs >> /said\n\tEND\n\
         RUN <<'END'\n\
         echo $((40 + 2)) >> /said\n\
         END\n\
         RUN cat <<ONE >> /said && cat >> /said <<\"TWO\"\n\
         one $NAME\n\
         ONE\n\
         two $NAME\n\
         TWO\n\
         RUN <<END\n\
         #!/bin/awk -f\n\
         BEGIN {{ print \"another program\" >> \"/said\" }}\n\
         END\n\
         COPY <<END /expanded\n\
         $NAME ${{WORD}} \\$NAME\n\
         END\n\
         COPY <<'END' /verbatim\n\
         $NAME ${{WORD}}\n\
         END\n\
         COPY --chmod=640 --chown=7:8 <<one file <<two /several/\n\
         first\n\
         one\n\
         second\n\
         two\n\
         ADD <<END /added\n\
         # not a comment\n\
         END\n",
        cell.number()
    );
    let files: [(&str, &[u8]); 2] = [("Dockerfile", dockerfile.as_bytes()), ("file", b"third\n")];
    build(cell, &format!("-t {name}"), &files).ok();
    assert_eq!(
        cell.prints(&name, "cat /said"),
        ["environment", "argument", "tabs", "42", "one environment", "two $NAME", "another program"]
    );
    assert_eq!(
        cell.prints(&name, "cat /expanded /verbatim /added"),
        ["environment argument $NAME", "$NAME ${WORD}", "# not a comment"]
    );
    assert_eq!(
        cell.prints(&name, "sh -c 'cd /several; cat one two file; stat -c \"%n %a %u:%g\" *'"),
        ["first", "second", "third", "file 640 7:8", "one 640 7:8", "two 640 7:8"]
    );
    let unended = format!("FROM {BUSYBOX}\nRUN <<END\necho\n");
    build(cell, "", &[("Dockerfile", unended.as_bytes())])
        .exits(1)
        .says("unterminated heredoc");
    cell.cli(&format!("rmi {name}")).ok();
});

case!(triggers_shells_and_archives, |cell| {
    let (base, name) = (cell.name("base"), cell.name("image"));
    let dockerfile = format!(
        "FROM {BUSYBOX}\n\
         LABEL cell={}\n\
         SHELL [\"/bin/sh\", \"-e\", \"-c\"]\n\
         ONBUILD COPY word /word\n\
         ONBUILD RUN echo triggered >> /word\n\
         ONBUILD ENV FROM_BASE=yes\n",
        cell.number()
    );
    build(
        cell,
        &format!("-t {base}"),
        &[("Dockerfile", dockerfile.as_bytes())],
    )
    .ok();
    assert_eq!(
        config(cell, &base)["OnBuild"],
        json!([
            "COPY word /word",
            "RUN echo triggered >> /word",
            "ENV FROM_BASE=yes"
        ])
    );
    let mut tree = Tar::new();
    tree.directory("deep", &Meta::mode(0o750).owner(3, 4))
        .file("deep/file", &Meta::mode(0o600).owner(5, 6), b"unpacked\n")
        .symlink("deep/link", "file");
    let tree = tree.done();
    let packed = Compression::Gzip.apply(&tree);
    // The shell is the base's; `false` ends it.
    let dockerfile = format!(
        "FROM {base}\n\
         RUN [ \"$FROM_BASE\" = yes ]\n\
         ADD plain.tar packed.tgz /unpacked/\n\
         COPY packed.tgz /copied\n\
         ADD word /unpacked/not-an-archive\n\
         COPY --chown=user:extra word /owned\n\
         WORKDIR /work\n\
         WORKDIR relative\n\
         COPY w?rd [p]lain.tar ./\n\
         VOLUME /data\n\
         EXPOSE 80 90-92/udp\n\
         HEALTHCHECK --interval=1m --retries=7 CMD true\n\
         ENTRYPOINT [\"cat\"]\n\
         CMD [\"/word\"]\n\
         ENV A=1 B=\"$A two\" C=${{A:-x}}${{NONE:-none}}${{A:+set}}\n\
         MAINTAINER somebody\n"
    );
    let files: [(&str, &[u8]); 4] = [
        ("Dockerfile", dockerfile.as_bytes()),
        ("word", b"a word\n"),
        ("plain.tar", &tree),
        ("packed.tgz", &packed),
    ];
    build(cell, &format!("-t {name}"), &files)
        .ok()
        .says("Executing 3 build triggers");
    assert_eq!(cell.prints(&name, ""), ["a word", "triggered"]);
    let shell = |script: &str| {
        cell.cli(&format!("run --rm --entrypoint sh {name} -c '{script}'"))
            .ok()
            .lines()
    };
    assert_eq!(
        shell(
            "cd /unpacked; cat deep/link not-an-archive; stat -c \"%a %u:%g\" deep deep/file /owned"
        ),
        ["unpacked", "a word", "750 3:4", "600 5:6", "644 1000:1234"]
    );
    assert_eq!(
        shell("head -c2 /copied | od -An -tx1; pwd; ls"),
        ["1f 8b", "/work/relative", "plain.tar", "word"]
    );
    let config = config(cell, &name);
    assert_eq!(config["OnBuild"], Value::Null);
    assert_eq!(config["Volumes"], json!({ "/data": {} }));
    let ports = ["80/tcp", "90/udp", "91/udp", "92/udp"];
    assert_eq!(
        config["ExposedPorts"].as_object().map(serde_json::Map::len),
        Some(ports.len())
    );
    assert!(
        ports
            .iter()
            .all(|port| config["ExposedPorts"].get(port).is_some()),
        "{config}"
    );
    assert_eq!(
        config["Healthcheck"],
        json!({ "Test": ["CMD-SHELL", "true"], "Interval": 60_000_000_000_u64, "Retries": 7 })
    );
    let environment = config["Env"].as_array().cloned().unwrap_or_default();
    for wanted in ["FROM_BASE=yes", "A=1", "B= two", "C=xnone"] {
        assert!(
            environment.contains(&json!(wanted)),
            "{wanted}: {environment:?}"
        );
    }
    // As the shell of the base ends at the first failure.
    let failing = format!("FROM {base}\nRUN false; true\n");
    let files: [(&str, &[u8]); 2] = [("Dockerfile", failing.as_bytes()), ("word", b"w")];
    build(cell, "--force-rm", &files)
        .exits(1)
        .says("returned a non-zero code: 1");
    cell.cli(&format!("rmi {name}")).ok();
    cell.cli(&format!("rmi {base}")).ok();
});

case!(ours process copies_as_buildkit_has_them, |cell| {
    let name = cell.name("image");
    let dockerfile = format!(
        "FROM {BUSYBOX} AS made\n\
         LABEL cell={}\n\
         RUN mkdir /from && echo x > /from/file\n\
         FROM {BUSYBOX}\n\
         COPY --link --chmod=0751 file /linked\n\
         COPY --link --from=made --chown=7 --chmod=600 /from /from\n\
         ADD --chmod=0400 --chown=user file /added\n",
        cell.number()
    );
    let files: [(&str, &[u8]); 2] = [("Dockerfile", dockerfile.as_bytes()), ("file", b"words\n")];
    build(cell, &format!("-t {name}"), &files).ok();
    assert_eq!(
        cell.prints(&name, "stat -c '%n %a %u:%g' /linked /from/file /added"),
        ["/linked 751 0:0", "/from/file 600 7:7", "/added 400 1000:1000"]
    );
    cell.cli(&format!("rmi {name}")).ok();
});

case!(ours process refusals_of_builds, |cell| {
    let simple = format!("FROM {BUSYBOX}\nRUN true\n");
    let with = |dockerfile: &str, arguments: &str| {
        build(cell, arguments, &[("Dockerfile", dockerfile.as_bytes()), ("file", b"x")])
    };
    for (dockerfile, arguments, why) in [
        (simple.as_str(), "--squash", "squash"),
        (&simple, "--target nowhere", "nowhere"),
        (&simple, "-f other", "Cannot locate specified Dockerfile: other"),
        (&simple, "-t UPPER", "must be lowercase"),
        (&simple, "--security-opt seccomp=unconfined", "does not support setting security options"),
        ("", "", "cannot be empty"),
        ("# only a comment\n", "", "no instructions"),
        ("RUN true\n", "", "no build stage in current context"),
        ("FROM scratch\nRUN true\n", "", "scratch"),
        ("FROM scratch AS one\nCOPY --from=two f /\nFROM scratch AS two\nCOPY --from=one f /\n", "", "two"),
        ("FROM scratch AS one\nFROM scratch AS One\n", "", "one stage name already used"),
        ("FROM scratch\nCOPY --nonsense file /\n", "", "nonsense"),
        ("FROM scratch\nCOPY --parents file /\n", "", "--parents and --exclude are not supported"),
        ("FROM scratch\nCOPY --chmod=8 file /\n", "", "invalid chmod parameter"),
        ("FROM scratch\nCOPY missing /\n", "", "missing"),
        ("FROM scratch\nADD https://host.invalid/x.git#main /\n", "", "git repositories"),
        ("FROM scratch\nADD git@host.invalid:x /\n", "", "git repositories"),
        ("FROM scratch\nCOPY file file /to\n", "", "must be a directory and end with a /"),
        ("FROM scratch\nENV\n", "", "ENV requires at least one argument"),
        ("FROM scratch\nONBUILD FROM x\n", "", "FROM isn't allowed as an ONBUILD trigger"),
        ("FROM scratch\nONBUILD ONBUILD RUN x\n", "", "Chaining ONBUILD"),
        ("FROM scratch\nEXPOSE 99999\n", "", "99999"),
        ("FROM scratch\nSTOPSIGNAL NONE\n", "", "NONE"),
        ("FROM scratch\nHEALTHCHECK --interval=1 CMD x\n", "", "duration"),
        ("FROM scratch\nSHELL /bin/sh\n", "", "SHELL requires the arguments to be in JSON form"),
        ("FROM scratch\nENV A=${B\n", "", "${B"),
        ("FROM ${NONE}\n", "", "should not be blank"),
    ] {
        with(dockerfile, arguments).fails().says(why);
    }
    for remote in ["git://host.invalid/x", "http://host.invalid/x.git", "git@host.invalid:x"] {
        let answer = cell.api("POST", &format!("/build?remote={remote}"), None);
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains("git repositories as build contexts"), "{remote}");
    }
    let buildkit = cell.api("POST", "/build?version=2", None);
    assert_eq!(buildkit.status, 400);
    assert!(buildkit.message().contains("DOCKER_BUILDKIT=0"), "{}", buildkit.message());
});
