//! What a guest says over the transport, and who carries files.

use std::io::Cursor;

use bulkhead_agent_protocol::{
    Connection, CreateReply, DnsMessage, Kill, Pause, Request, Role, SetupReply, hello,
    read_message, write_message,
};
use bulkhead_isolation::IsolationError;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

use crate::Target;

pub(crate) const HELLO: Target = Target {
    name: "agent_hello",
    run: |bytes| {
        block_on(async {
            let mut input = Cursor::new(bytes);
            let accepted = hello::receive(&mut input).await.is_ok();
            assert_eq!(accepted, bytes.starts_with(&hello::bytes()));
        });
    },
    seeds: || vec![hello::bytes().to_vec()],
    tries: 100_000,
};

pub(crate) const REQUEST: Target = Target {
    name: "agent_message",
    run: |bytes| {
        block_on(async {
            // As the agent reads, and as the host reads each kind of answer.
            let mut input = Cursor::new(bytes);
            while let Ok(request) = read_message::<Request, _>(&mut input).await {
                let mut again = Vec::new();
                assert!(write_message(&mut again, &request).await.is_ok());
            }
            let mut input = Cursor::new(bytes);
            while let Ok(Ok(_)) =
                read_message::<Result<SetupReply, IsolationError>, _>(&mut input).await
            {
            }
            let mut input = Cursor::new(bytes);
            while let Ok(Ok(_)) =
                read_message::<Result<CreateReply, IsolationError>, _>(&mut input).await
            {
            }
        });
    },
    seeds: || {
        let requests: [Request; 2] = [
            Pause.into(),
            Kill {
                process: "exec-1".to_owned(),
                signal: 9,
            }
            .into(),
        ];
        requests
            .iter()
            .map(|request| {
                let mut bytes = Vec::new();
                // A Vec takes everything.
                let _ = block_on(write_message(&mut bytes, request));
                bytes
            })
            .collect()
    },
    tries: 100_000,
};

/// Both ends of the multiplexer against a peer that says anything.
pub(crate) const TRANSPORT: Target = Target {
    name: "agent_transport",
    run: |bytes| {
        for role in [Role::Host, Role::Guest] {
            block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(1 << 16);
                let (connection, mut incoming) = Connection::spawn(ours, role);
                let opening = connection.clone();
                let opening = tokio::spawn(async move { opening.open().await.map(drop) });
                let accepting =
                    tokio::spawn(
                        async move { while let Some(_stream) = incoming.accept().await {} },
                    );
                let (mut answers, mut say) = tokio::io::split(&mut theirs);
                let sink = async {
                    // What it answers has to be taken, or it waits for us.
                    let _ = tokio::io::copy(&mut answers, &mut tokio::io::sink()).await;
                };
                let talk = async {
                    // It may have hung up on us, rightly.
                    let _ = say.write_all(bytes).await;
                    let _ = say.shutdown().await;
                };
                // Whatever was said, the end of the peer ends the connection.
                tokio::join!(talk, sink, connection.ended());
                let _ = opening.await;
                let _ = accepting.await;
            });
        }
    },
    seeds: || {
        // Frames of yamux 0: version, type, flags, stream, length.
        let frame = |kind: u8, flags: u16, stream: u32, length: u32| {
            let mut bytes = vec![0, kind];
            bytes.extend(flags.to_be_bytes());
            bytes.extend(stream.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes
        };
        let mut opened = frame(1, 1, 1, 0);
        opened.extend(frame(0, 0, 1, 5));
        opened.extend(b"hello");
        opened.extend(frame(0, 4, 1, 0));
        vec![
            opened,
            frame(2, 1, 0, 7),
            frame(3, 0, 0, 0),
            [frame(0, 1, 2, 0), frame(1, 0, 2, u32::MAX)].concat(),
        ]
    },
    tries: 1500,
};

pub(crate) const DNS: Target = Target {
    name: "agent_dns",
    run: |bytes| {
        block_on(async {
            let mut input = Cursor::new(bytes);
            let mut again = Vec::new();
            while let Ok(message) = DnsMessage::read(&mut input).await {
                assert!(message.write(&mut again).await.is_ok());
            }
            assert!(bytes.starts_with(&again));
        });
    },
    seeds: || {
        vec![
            [&[0, 0, 0, 0, 1, 0, 12][..], &[0; 12]].concat(),
            [&[1, 0, 0, 0, 2, 0, 1][..], &[7]].concat(),
        ]
    },
    tries: 100_000,
};

pub(crate) const FILES: Target = Target {
    name: "files_message",
    run: |bytes| {
        let mut input = bytes;
        while bulkhead_files::protocol::receive::<bulkhead_files::Request>(&mut input).is_ok() {}
        let mut input = bytes;
        while bulkhead_files::protocol::receive::<
            Result<bulkhead_files::Reply, bulkhead_files::FilesError>,
        >(&mut input)
        .is_ok()
        {}
    },
    seeds: || {
        let json = br#"{"Ok":{"Stat":{"name":"a"}}}"#;
        vec![[&[0, 0, 0, 28][..], json].concat()]
    },
    tries: 100_000,
};

fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: Runtime = match tokio::runtime::Builder::new_current_thread().build() {
            Ok(runtime) => runtime,
            Err(error) => panic!("no runtime: {error}"),
        };
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
