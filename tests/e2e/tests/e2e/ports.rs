//! Published ports: datagrams, ranges, and what is left to chance.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bulkhead_e2e::{BUSYBOX, Cell, case, until};

/// The host's address of a container's port.
#[track_caller]
fn published(cell: &Cell, id: &str, port: &str) -> String {
    cell.cli(&format!("port {id} {port}")).ok().lines()[0].clone()
}

#[track_caller]
fn number(address: &str) -> u16 {
    let (_, number) = address.rsplit_once(':').expect("ADDRESS:PORT");
    number.parse().expect("a port")
}

/// Sends datagrams of this length until one is answered so.
#[track_caller]
fn answers(cell: &Cell, socket: &UdpSocket, to: &str, length: usize, answer: &str) {
    let wait = Some(Duration::from_millis(500));
    socket.set_read_timeout(wait).expect("a socket");
    let mut buffer = [0; 100];
    until(&format!("{to} answers {answer}"), cell.limit(), || {
        // An error is that of an earlier datagram: the port was closed.
        let _ = socket.send_to(&vec![b'x'; length], to);
        let got = socket.recv(&mut buffer).ok()?;
        (&buffer[..got] == format!("{answer} {length}").as_bytes()).then_some(())
    });
}

case!(datagrams, |cell| {
    let name = cell.name("c");
    let ports = "-p 5300/udp -p 127.0.0.1::5300/udp";
    let server = cell.detached(&format!("{ports} {BUSYBOX} probe answer 5300 {name}"));
    let settings = cell.inspect(&server)["NetworkSettings"].clone();
    let gateway = settings["Gateway"].as_str().expect("an address");
    let address = settings["IPAddress"].as_str().expect("an address");
    let port = number(&published(cell, &server, "5300/udp"));
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let direct = format!("{address}:5300");
    let (local, outer) = (format!("127.0.0.1:{port}"), format!("{gateway}:{port}"));
    for to in [&direct, &local, &outer] {
        answers(cell, &socket, to, 1, &name);
        // In several packets, either way.
        answers(cell, &socket, to, 8000, &name);
    }
    // From another container, and from itself.
    let other = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    for from in [&other, &server] {
        cell.cli(&format!("exec {from} probe ask {outer}"))
            .ok()
            .says(&format!("{name} 1"));
    }
    // The port is nobody else's, whatever the protocol's other half does.
    cell.run(&format!("--rm -p {port}:5300/udp {BUSYBOX} true"))
        .exits(125)
        .says("port is already allocated");
    assert!(UdpSocket::bind(format!("127.0.0.1:{port}")).is_err());
    // A client that goes on with the same socket reaches the next holder of the port, at
    // whatever address that one is.
    cell.cli(&format!("rm -f {server}")).ok();
    let _ = socket.send_to(b"x", &outer);
    let holder = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    let next = cell.name("c");
    let second = cell.detached(&format!(
        "-p {port}:5300/udp {BUSYBOX} probe answer 5300 {next}"
    ));
    assert_ne!(cell.inspect(&second)["NetworkSettings"]["IPAddress"], "");
    for to in [&local, &outer] {
        answers(cell, &socket, to, 1, &next);
    }
    drop(holder);
    cell.cli(&format!("rm -f {second}")).ok();
    cell.nothing_left_of(&second);
});

/// The first of so many ports in a row that nobody has, and that no other case is given.
fn free(count: u16) -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 97).unwrap_or(0);
    loop {
        let block = spread + GIVEN.fetch_add(1, Ordering::Relaxed);
        let first = 20_000 + block * count;
        assert!(first < 30_000, "no free ports");
        let ports = first..first + count;
        let held: Vec<_> = ports
            .map_while(|port| TcpListener::bind(("0.0.0.0", port)).ok())
            .collect();
        if held.len() == usize::from(count) {
            return first;
        }
    }
}

case!(ranges, |cell| {
    let first = free(8);
    let last = first + 2;
    // As many as the container has: each its own.
    let range = format!("127.0.0.1:{first}-{last}");
    let id = cell.detached(&format!("-p {range}:80-82 {BUSYBOX} httpd -f -p 82"));
    for (port, held) in [(80, first), (81, first + 1), (82, last)] {
        let at = published(cell, &id, &format!("{port}/tcp"));
        assert_eq!(at, format!("127.0.0.1:{held}"));
    }
    let at = format!("127.0.0.1:{last}").parse().expect("an address");
    until("it serves", cell.limit(), || {
        bulkhead_e2e::host::page(at, "/")
    });
    cell.cli(&format!("rm -f {id}")).ok();
    // More than the container has: one that is free, as long as there is one. Docker did not
    // look at what others hold.
    if cell.now_or_then(false, true) {
        return;
    }
    let mut held = Vec::new();
    let range = format!("127.0.0.1:{first}-{last}");
    let taken = TcpListener::bind(("127.0.0.1", first)).expect("a free port");
    for _ in 0..2 {
        let id = cell.detached(&format!("-p {range}:80 {BUSYBOX} sleep 1000"));
        held.push(number(&published(cell, &id, "80/tcp")));
    }
    held.sort_unstable();
    assert_eq!(held, [first + 1, last]);
    cell.run(&format!("--rm -p {range}:80 {BUSYBOX} true"))
        .exits(125)
        .says("failed");
    drop(taken);
    cell.run(&format!("--rm -p {range}:80 {BUSYBOX} true")).ok();
    cell.run(&format!("--rm -p {first}-{last}:80-81 {BUSYBOX} true"))
        .exits(125)
        .says("invalid ranges");
    // Whatever is exposed, wherever there is room.
    let id = cell.detached(&format!(
        "-P --expose 90-91 --expose 90/udp {BUSYBOX} sleep 1000"
    ));
    for port in ["90/tcp", "91/tcp", "90/udp"] {
        assert!(number(&published(cell, &id, port)) > 1024);
    }
    // Another start may have other ports, and has as many.
    cell.cli(&format!("restart -t 0 {id}")).ok();
    for port in ["90/tcp", "91/tcp", "90/udp"] {
        assert!(number(&published(cell, &id, port)) > 1024);
    }
    cell.cli(&format!("stop -t 0 {id}")).ok();
    assert_eq!(cell.cli(&format!("port {id}")).ok().text(), "");
});
