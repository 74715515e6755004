//! Standard input and output without a terminal; attach.

use bulkhead_e2e::{BUSYBOX, case, images};

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

case!(everywhere output_and_error_are_apart, |cell| {
    let output = cell
        .run(&format!("--rm {BUSYBOX} sh -c 'echo out; echo err >&2'"))
        .ok();
    assert_eq!(
        (output.text().as_str(), output.err().as_str()),
        ("out", "err")
    );
});

case!(everywhere order_and_completeness, |cell| {
    let output = cell.run(&format!("--rm {BUSYBOX} seq 1 200000")).ok();
    let lines = output.lines();
    assert_eq!(lines.len(), 200_000);
    assert!(
        lines
            .iter()
            .zip(1..)
            .all(|(line, number)| *line == number.to_string())
    );
});

case!(everywhere every_byte_value, |cell| {
    let bytes: Vec<u8> = (0..=255).collect();
    let output = cell
        .running(&format!("--rm -i {BUSYBOX} cat"))
        .stdin(bytes.clone())
        .output()
        .ok();
    assert_eq!(output.stdout, bytes);
});

case!(everywhere fifty_megabytes_in, |cell| {
    let bytes = noise(50 << 20);
    let output = cell
        .running(&format!("--rm -i {BUSYBOX} sha256sum"))
        .stdin(bytes.clone())
        .output()
        .ok();
    assert_eq!(
        output.text().split(' ').next(),
        Some(images::sha256(&bytes).as_str())
    );
});

case!(everywhere fifty_megabytes_out, |cell| {
    // Out of the container's own hands: what it wrote and what came are compared by sums.
    // No log: a log of binary noise would be several times its size.
    let script = "dd if=/dev/urandom of=/tmp/noise bs=1M count=50 2>/dev/null; sha256sum /tmp/noise >&2; cat /tmp/noise";
    let output = cell
        .run(&format!(
            "--rm --log-driver none {BUSYBOX} sh -c '{script}'"
        ))
        .ok();
    assert_eq!(output.stdout.len(), 50 << 20);
    assert_eq!(
        output.err().split(' ').next(),
        Some(images::sha256(&output.stdout).as_str())
    );
});

case!(everywhere fifty_megabytes_through, |cell| {
    let bytes = noise(50 << 20);
    let output = cell
        .running(&format!("--rm -i --log-driver none {BUSYBOX} cat"))
        .stdin(bytes.clone())
        .output()
        .ok();
    assert_eq!(output.stdout.len(), bytes.len());
    assert!(output.stdout == bytes, "the same bytes come back");
});

case!(everywhere without_i_there_is_no_input, |cell| {
    let output = cell
        .running(&format!("--rm {BUSYBOX} cat"))
        .stdin("words")
        .output()
        .ok();
    assert_eq!(output.text(), "");
});

case!(everywhere closing_output_does_not_end_it, |cell| {
    cell.run(&format!(
        "--rm {BUSYBOX} sh -c 'exec >&- 2>&-; sleep 1; exit 8'"
    ))
    .exits(8);
});

case!(everywhere a_client_passes_signals_on, |cell| {
    let mut running = cell
        .running(&format!(
            r#"--rm {BUSYBOX} sh -c 'trap "exit 5" TERM; echo ready; while :; do sleep 0.1; done'"#
        ))
        .start();
    running.expect("ready");
    running.signal(rustix::process::Signal::TERM);
    running.finish().exits(5);
});

case!(everywhere attach_output, |cell| {
    let id = cell.detached(&format!(
        "{BUSYBOX} sh -c 'while [ ! -e /go ]; do sleep 0.1; done; seq 1 5; echo err >&2; exit 4'"
    ));
    let attached = cell.line(&format!("attach {id}")).start();
    // Attached for sure once the daemon counts it; there is no event for that, so the
    // payload is let go only after a second client has been through the same door.
    cell.cli(&format!("exec {id} sleep 1")).ok();
    cell.cli(&format!("exec {id} touch /go")).ok();
    let output = attached.finish().exits(4);
    assert_eq!(output.lines(), ["1", "2", "3", "4", "5"]);
    assert_eq!(output.err(), "err");
});

case!(everywhere attach_input, |cell| {
    let id = cell.detached(&format!(
        "-i {BUSYBOX} sh -c 'read line; echo got $line; read line; echo got $line; exit 2'"
    ));
    // The input of a detached container stays open when a client goes.
    let mut first = cell.line(&format!("attach {id}")).start();
    first.send("one\n");
    first.expect("got one");
    drop(first);
    let output = cell.line(&format!("attach {id}")).stdin("two\n").output();
    // Docker may pass the input on before it listens to the output.
    let got = output.exits(2).text();
    assert!(
        got == "got two" || bulkhead_e2e::daemon::is_reference(),
        "{got}"
    );
    assert_eq!(
        cell.cli(&format!("logs {id}")).ok().lines(),
        ["got one", "got two"]
    );
});

case!(everywhere attach_needs_a_running_container, |cell| {
    let id = cell.create(&format!("{BUSYBOX} true"));
    cell.cli(&format!("attach {id}"))
        .exits(1)
        .says("stopped container");
    cell.cli("attach no-such-thing")
        .exits(1)
        .says("no-such-thing");
});

case!(everywhere a_client_that_goes_leaves_the_container, |cell| {
    let name = cell.name("c");
    let mut running = cell
        .running(&format!(
            "--name {name} {BUSYBOX} sh -c 'echo ready; while :; do echo more; sleep 0.05; done'"
        ))
        .start();
    running.expect("ready");
    running.signal(rustix::process::Signal::KILL);
    running.finish().exits(137);
    assert_eq!(cell.state(&name), "running");
    let mut logs = cell.line(&format!("logs -f --tail 0 {name}")).start();
    logs.expect("more");
});

/// What was said on standard output, of Docker's frames.
fn unframed(mut frames: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk::<8>() {
        assert_eq!(head[..4], [1, 0, 0, 0], "a frame of standard output");
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let length = usize::try_from(length).expect("fits");
        output.extend_from_slice(&rest[..length]);
        frames = &rest[length..];
    }
    output
}

case!(docker a_client_that_reads_late_gets_all, |cell| {
    use std::io::{Read, Write};
    // Of most of these the end is still on its way when the container has ended.
    for (terminal, last) in [("", 20_000), ("", 110_000), ("-t", 55_000), ("-t", 90_000)] {
        let id = cell.create(&format!("{terminal} {BUSYBOX} seq 1 {last}"));
        let socket = cell.daemon().socket();
        let mut socket = std::os::unix::net::UnixStream::connect(socket).expect("is open");
        socket.set_read_timeout(Some(cell.limit())).expect("a socket");
        let head = format!(
            "POST /containers/{id}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\n\
             Host: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).expect("is open");
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
        cell.cli(&format!("start {id}")).ok();
        std::thread::sleep(std::time::Duration::from_secs(if cell.is_hyperv() { 4 } else { 2 }));
        let mut output = Vec::new();
        socket.read_to_end(&mut output).expect("the output");
        if terminal.is_empty() {
            output = unframed(&output);
        }
        let text = String::from_utf8(output).expect("numbers");
        assert_eq!(text.lines().count(), last, "{terminal} {last}");
        assert_eq!(text.lines().last(), Some(last.to_string().as_str()));
        cell.cli(&format!("rm -f {id}")).ok();
    }
});
