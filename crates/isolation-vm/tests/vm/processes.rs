//! Processes and their streams.

use std::sync::Arc;

use bulkhead_isolation::{Container, ErrorKind, TerminalSize};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{TestBox, exec, host, output, process, processes_with};

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_runs_on_a_kernel_of_its_own() {
    let Some(host) = host() else { return };
    let script = "uname -r; hostname; cat /second; echo oops >&2; ping -c1 localhost >/dev/null || \
                  ping -c1 127.0.0.1 >/dev/null && echo pong; exit 7";
    let container = TestBox::new(host, &["sh", "-c", script]);
    let (code, out, err) = container.run().await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(code, 7, "{out}{err}");
    assert_ne!(
        lines[0],
        rustix::system::uname().release().to_string_lossy()
    );
    assert_eq!(
        lines[1..],
        ["inside", "from the second layer", "pong"],
        "{err}"
    );
    assert!(err.contains("oops"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_reaches_the_payload_and_its_end_too() {
    let Some(host) = host() else { return };
    let mut request = TestBox::new(host, &["wc", "-c"]);
    request.request.stdin = true;
    let container = request.create().await.unwrap();
    let init = container.init();
    let mut streams = init.take_stdio();
    assert!(init.take_stdio().stdout.is_none());
    init.start().await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    let bytes = vec![b'x'; 3_000_000];
    stdin.write_all(&bytes).await.unwrap();
    stdin.shutdown().await.unwrap();
    let (out, _) = output(streams).await;
    assert_eq!(out.trim(), "3000000");
    assert_eq!(init.wait().await.code, 0);
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_signals() {
    let Some(host) = host() else { return };
    let mut request = TestBox::with(host, &["sh"], |spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({"width": 81, "height": 21});
    });
    request.request.stdin = true;
    let container = request.create().await.unwrap();
    let init = container.init();
    let mut streams = init.take_stdio();
    assert!(streams.stderr.is_none());
    init.start().await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    let mut stdout = streams.stdout.take().unwrap();
    let mut seen = String::new();
    stdin
        .write_all(b"stty size; echo end-$((1+1))\n")
        .await
        .unwrap();
    read_until(&mut stdout, &mut seen, "end-2").await;
    assert!(seen.contains("21 81"), "{seen}");
    let size = TerminalSize {
        width: 101,
        height: 31,
    };
    init.resize(size).await.unwrap();
    seen.clear();
    stdin
        .write_all(b"stty size; echo end-$((2+2))\n")
        .await
        .unwrap();
    read_until(&mut stdout, &mut seen, "end-4").await;
    assert!(seen.contains("31 101"), "{seen}");
    stdin.write_all(b"exit 3\n").await.unwrap();
    read_until(&mut stdout, &mut seen, "\0").await;
    assert_eq!(init.wait().await.code, 3);
    container.delete().await.unwrap();
    request.check_gone();
}

/// Reads until the text has come, or the end.
async fn read_until(stream: &mut bulkhead_isolation::ByteReader, seen: &mut String, text: &str) {
    let mut bytes = [0; 1024];
    while !seen.contains(text) {
        let read = stream.read(&mut bytes).await.unwrap();
        if read == 0 {
            break;
        }
        seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_top_stats_pause_and_signals() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    let init = container.init();
    init.start().await.unwrap();

    let (code, out, err) = exec(&container, "e1", &["sh", "-c", "echo hi; id -u; exit 5"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (5, "hi\n0\n", ""));
    // The name is free again.
    assert_eq!(exec(&container, "e1", &["true"]).await.0, 0);
    missing_commands(&container).await;

    let processes = container.processes().await.unwrap();
    // The remains of the failed execs may still be there.
    let sleep = processes
        .iter()
        .find(|process| Some(process.pid) == init.pid());
    assert_eq!(
        sleep.map(|process| process.args.as_str()),
        Some("sleep 1000")
    );
    let stats = container.stats().await.unwrap();
    assert!(stats.memory.unified);
    assert_eq!(stats.memory.limit, 512 << 20);
    assert!(stats.memory.usage > 0 && stats.cpu.total > 0 && stats.pids >= 1);

    let workers = processes_with(&request.id);
    assert_eq!(
        workers.iter().filter(|(_, comm)| comm == "vmwp").count(),
        1,
        "{workers:?}"
    );

    container.pause().await.unwrap();
    let error = container.pause().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    container.resume().await.unwrap();
    init.kill(9).await.unwrap();
    let status = init.wait().await;
    assert_eq!((status.code, status.failure), (137, None));
    assert_eq!(init.kill(9).await.unwrap_err().kind, ErrorKind::NotFound);
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_execs_one_after_the_other_and_at_once() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    for number in 0..20 {
        let text = format!("{number}\n");
        let (code, out, _) = exec(&container, "same", &["echo", text.trim()]).await;
        assert_eq!((code, out), (0, text));
    }
    let all = (0..8).map(|number| {
        let container = Arc::clone(&container);
        tokio::spawn(async move {
            exec(
                &container,
                &format!("e{number}"),
                &["sh", "-c", "echo out; echo err >&2"],
            )
            .await
        })
    });
    for one in all.collect::<Vec<_>>() {
        assert_eq!(
            one.await.unwrap(),
            (0, "out\n".to_owned(), "err\n".to_owned())
        );
    }
    container.delete().await.unwrap();
    request.check_gone();
}

async fn missing_commands(container: &Arc<dyn Container>) {
    for (command, kind) in [
        ("nonexistent", ErrorKind::CommandNotFound),
        ("/not-executable", ErrorKind::CommandNotExecutable),
    ] {
        let result = match container.exec("missing", process(&[command]), false).await {
            Ok(process) => process.start().await,
            Err(error) => Err(error),
        };
        assert_eq!(result.unwrap_err().kind, kind, "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_not_there() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["nonexistent"]);
    let error = match request.create().await {
        Ok(container) => {
            let error = container.init().start().await.unwrap_err();
            container.delete().await.unwrap();
            error
        }
        Err(error) => error,
    };
    assert_eq!(error.kind, ErrorKind::CommandNotFound, "{error}");
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn never_started_and_deleted() {
    let Some(host) = host() else { return };
    let request = TestBox::new(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.delete().await.unwrap();
    assert_eq!(container.init().wait().await.code, 137);
    request.check_gone();
}
