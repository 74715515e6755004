//! Networks: what is in a container's network namespace is in its VM.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bulkhead_isolation::{Container, ErrorKind, InjectedFile};
use serde_json::json;

use crate::harness::{Host, TestBox, exec, host};

/// A container's network namespace and one for the rest of the world, made by `ip`.
struct Lab {
    inside: String,
    outside: String,
}

impl Lab {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("bhvm{}x{number}", std::process::id());
        let lab = Self {
            inside: format!("{unique}i"),
            outside: format!("{unique}o"),
        };
        for name in [&lab.inside, &lab.outside] {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        lab
    }

    /// A cable: `ethN` inside, `outN` outside.
    fn plug(&self, number: u8) {
        let (inside, outside) = (format!("eth{number}"), format!("out{number}"));
        let mac = format!("02:42:0a:4d:{number:02x}:02");
        ip(&[
            "-n",
            &self.outside,
            "link",
            "add",
            &outside,
            "type",
            "veth",
            "peer",
            "name",
            &inside,
            "address",
            &mac,
            "netns",
            &self.inside,
        ]);
        let set = |namespace: &str, sysctl: String| {
            let out = Command::new("ip")
                .args(["netns", "exec", namespace, "sh", "-c", &sysctl])
                .output()
                .unwrap();
            assert!(out.status.success(), "{out:?}");
        };
        let address = |end: u8| format!("10.77.{number}.{end}/24");
        for (namespace, name, end) in [(&self.inside, &inside, 2), (&self.outside, &outside, 1)] {
            if number > 0 {
                let file = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
                set(namespace, format!("echo 1 > {file}"));
            } else {
                let v6 = format!("fd77::{end}/64");
                ip(&["-n", namespace, "addr", "add", &v6, "dev", name, "nodad"]);
            }
            let v4 = address(end);
            ip(&["-n", namespace, "addr", "add", &v4, "brd", "+", "dev", name]);
            ip(&["-n", namespace, "link", "set", name, "mtu", "1400", "up"]);
        }
    }

    fn unplug(&self, number: u8) {
        ip(&["-n", &self.outside, "link", "del", &format!("out{number}")]);
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.inside)
    }

    fn outside(&self, command: &[&str]) -> Command {
        let mut run = Command::new("ip");
        run.args(["netns", "exec", &self.outside]).args(command);
        run
    }

    fn request(&self, host: &Host, args: &[&str]) -> TestBox {
        TestBox::with(host, args, |spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "network");
            namespaces.push(json!({"type": "network", "path": self.path()}));
        })
    }

    /// What is in the container's namespace: interfaces with their addresses. Not whether the
    /// kernel still looks for others with the same: that ends when its time has come.
    fn interfaces(&self) -> String {
        let addresses = ip(&["-n", &self.inside, "-o", "addr", "show"]);
        addresses.replace(" tentative", "") + &ip(&["-n", &self.inside, "-o", "link", "show"])
    }
}

/// A thread in a namespace.
fn enter<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let namespace = std::fs::File::open(Path::new("/run/netns").join(name)).unwrap();
    std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
        work()
    })
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.inside, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) -> String {
    let out = Command::new("ip").args(args).output().unwrap();
    assert!(
        out.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

async fn sh(container: &Arc<dyn Container>, id: &str, script: &str) -> String {
    let (code, out, err) = exec(container, id, &["sh", "-c", script]).await;
    assert_eq!(code, 0, "{script}: {out}{err}");
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_namespace_is_in_the_guest() {
    let Some(host) = host() else { return };
    let lab = Lab::new();
    lab.plug(0);
    lab.plug(1);
    let inside = lab.inside.as_str();
    for route in [
        &["route", "add", "default", "via", "10.77.0.1"][..],
        &[
            "route",
            "add",
            "192.0.2.0/24",
            "via",
            "10.77.1.1",
            "metric",
            "7",
        ],
        &["route", "add", "198.51.100.9", "dev", "eth1"],
        &["-6", "route", "add", "default", "via", "fd77::1"],
    ] {
        ip(&[&["-n", inside], route].concat());
    }
    let request = lab.request(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();

    let seen = sh(
        &container,
        "a",
        "ip -o link; ip -o addr; ip route; ip -6 route",
    )
    .await;
    for part in [
        "mtu 1400",
        "link/ether 02:42:0a:4d:00:02",
        "inet 10.77.0.2/24 brd 10.77.0.255 scope global eth0",
        "inet6 fd77::2/64 scope global",
        "inet 10.77.1.2/24",
        "default via 10.77.0.1 dev eth0",
        "192.0.2.0/24 via 10.77.1.1 dev eth1  metric 7",
        "198.51.100.9 dev eth1 scope link",
        "default via fd77::1 dev eth0",
    ] {
        assert!(seen.contains(part), "{part} is missing in:\n{seen}");
    }
    // Spare cards are nobody's business, and eth1 has no IPv6.
    assert!(!seen.contains("eth2") && !seen.contains("spare"), "{seen}");
    let links = seen.lines().filter(|line| line.contains("mtu")).count();
    assert_eq!(links, 3, "{seen}");
    let of_eth1 = sh(&container, "b", "ip -6 -o addr show dev eth1").await;
    assert_eq!(of_eth1, "");

    // Both ways, both protocols.
    let ping = "ping -c 1 -W 20 10.77.0.1 && ping -c 1 -W 20 10.77.1.1 && ping6 -c 1 -W 20 fd77::1";
    sh(&container, "c", ping).await;
    for address in ["10.77.0.2", "fd77::2"] {
        let out = lab
            .outside(&["busybox", "ping", "-c", "1", "-W", "20", address])
            .output()
            .unwrap();
        assert!(out.status.success(), "{address}: {out:?}");
    }

    // Nothing but us is left in the namespace that could answer in the guest's place.
    let left = lab.interfaces();
    for address in ["10.77.", "fd77::", "fe80::"] {
        assert!(!left.contains(address), "{left}");
    }
    assert!(left.contains("bhtap0") && left.contains("bhtap3"), "{left}");

    container.delete().await.unwrap();
    request.check_gone();
    assert!(!lab.interfaces().contains("bhtap"), "{}", lab.interfaces());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_transfers_arrive_whole() {
    let Some(host) = host() else { return };
    let lab = Lab::new();
    lab.plug(0);
    let request = lab.request(host, &["sleep", "1000"]);
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let bytes: Vec<u8> = (0..2u64 << 20)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    let listener = enter(&lab.outside, || {
        TcpListener::bind(("10.77.0.1", 9000)).unwrap()
    });
    let listener = listener.join().unwrap();
    let sent = bytes.clone();
    let peer = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut down, _) = listener.accept().unwrap();
        down.write_all(&sent).unwrap();
        drop(down);
        let (mut up, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        up.read_to_end(&mut received).unwrap();
        received
    });
    let script = "nc 10.77.0.1 9000 > /tmp/down; wc -c < /tmp/down; nc 10.77.0.1 9000 < /tmp/down";
    let length = sh(&container, "a", script).await;
    assert_eq!(length.trim(), bytes.len().to_string());
    let received = tokio::task::spawn_blocking(|| peer.join().unwrap());
    assert!(received.await.unwrap() == bytes, "the bytes are others");
    // What the namespace counted is what the container received and sent.
    let counted = bulkhead_network::counters(&lab.path()).unwrap();
    assert_eq!(counted.len(), 1, "{counted:?}");
    let length = u64::try_from(bytes.len()).unwrap();
    assert!(
        counted[0].rx_bytes > length && counted[0].tx_bytes > length,
        "{counted:?}"
    );
    container.delete().await.unwrap();
    request.check_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_come_and_go_while_it_runs() {
    let Some(host) = host() else { return };
    let lab = Lab::new();
    lab.plug(0);
    let mut request = lab.request(host, &["sleep", "1000"]);
    let hosts = request.directory.path().join("hosts");
    std::fs::write(&hosts, "before\n").unwrap();
    request.request.injected_files.push(InjectedFile {
        source: hosts.clone(),
        destination: "/etc/hosts".into(),
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    container.network_changed().await.unwrap();

    std::fs::write(&hosts, "after\n").unwrap();
    lab.plug(1);
    container.network_changed().await.unwrap();
    let script = "cat /etc/hosts; ip -o link show eth1; ping -c 1 -W 20 10.77.1.1";
    let seen = sh(&container, "a", script).await;
    assert!(seen.starts_with("after\n"), "{seen}");
    assert!(seen.contains("02:42:0a:4d:01:02"), "{seen}");

    lab.plug(2);
    container.network_changed().await.unwrap();
    lab.plug(3);
    let error = container.network_changed().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    assert!(error.message.contains("eth3"), "{error}");
    lab.unplug(3);

    lab.unplug(1);
    container.network_changed().await.unwrap();
    let script = "ip -o link; ping -c 1 -W 20 10.77.0.1 && ping -c 1 -W 20 10.77.2.1";
    let seen = sh(&container, "b", script).await;
    assert!(!seen.contains("eth1:"), "{seen}");
    assert!(seen.contains("eth2:") && !seen.contains("spare"), "{seen}");

    // The card that has become free takes another one.
    lab.plug(1);
    container.network_changed().await.unwrap();
    sh(&container, "c", "ping -c 1 -W 20 10.77.1.1").await;
    container.delete().await.unwrap();
    request.check_gone();
    let left = lab.interfaces();
    assert!(!left.contains("bhtap"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_asked_for_in_the_namespace() {
    let Some(host) = host() else { return };
    let lab = Lab::new();
    lab.plug(0);
    let resolver = Ipv4Addr::new(127, 0, 0, 11);
    let sockets = enter(&lab.inside, move || {
        (
            UdpSocket::bind((resolver, 53)).unwrap(),
            TcpListener::bind((resolver, 53)).unwrap(),
        )
    });
    let (datagrams, connections) = sockets.join().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&answer(&buffer[..length]), from);
        }
    });
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for connection in connections.incoming() {
            let mut connection = connection.unwrap();
            let mut length = [0; 2];
            if connection.read_exact(&mut length).is_err() {
                continue;
            }
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            connection.read_exact(&mut query).unwrap();
            let answer = answer(&query);
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            connection
                .write_all(&[&length[..], &answer].concat())
                .unwrap();
        }
    });
    let mut request = lab.request(host, &["sleep", "1000"]);
    let file = request.directory.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 127.0.0.11\n").unwrap();
    request.request.injected_files.push(InjectedFile {
        source: file,
        destination: "/etc/resolv.conf".into(),
    });
    let container = request.create().await.unwrap();
    container.init().start().await.unwrap();
    let seen = sh(&container, "a", "nslookup -type=a db.example").await;
    assert!(seen.contains("10.9.8.7"), "{seen}");
    // By TCP, and with the port in use by a payload that is a name server itself.
    let script = r"nc -l -p 53 < /dev/null & printf \
        '\0\034\022\064\001\0\0\001\0\0\0\0\0\0\002db\007example\0\0\001\0\001' |
        nc 127.0.0.11 53 | od -An -tu1 | tail -n 1; ping -c 1 -W 1 db.example";
    let (_, seen, error) = exec(&container, "b", &["sh", "-c", script]).await;
    assert!(seen.contains("10   9   8   7"), "{seen}{error}");
    assert!(seen.contains("PING db.example (10.9.8.7)"), "{seen}{error}");
    container.delete().await.unwrap();
    request.check_gone();
}

/// 10.9.8.7, whatever was asked.
fn answer(query: &[u8]) -> Vec<u8> {
    let end = query[12..].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
    let mut answer = query[..end].to_vec();
    // An answer with one record, which names the question's name.
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7]);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn without_interfaces_there_is_loopback() {
    let Some(host) = host() else { return };
    let script = "ip -o link; ping -c 1 -W 20 127.0.0.1";
    let request = TestBox::new(host, &["sh", "-c", script]);
    let (code, out, err) = request.run().await;
    assert_eq!(code, 0, "{out}{err}");
    let links = out.lines().filter(|line| line.contains("mtu")).count();
    assert_eq!(links, 1, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_cannot_be_is_refused_and_leaves_nothing() {
    let Some(host) = host() else { return };
    let of_the_host = TestBox::with(host, &["true"], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    });
    let missing = TestBox::with(host, &["true"], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "network", "path": "/nonexistent/netns"}));
    });
    let lab = Lab::new();
    for number in 0..17 {
        lab.plug(number);
    }
    let too_many = lab.request(host, &["true"]);
    for (request, kind, word) in [
        (
            of_the_host,
            ErrorKind::InvalidArgument,
            "the host's network",
        ),
        (missing, ErrorKind::Other, "/nonexistent/netns"),
        (too_many, ErrorKind::InvalidArgument, "at most 16"),
    ] {
        let Err(error) = request.create().await else {
            panic!("must not succeed");
        };
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(word), "{error}");
        request.check_gone();
    }
    // A machine that does not start leaves the interfaces as they were.
    for number in 2..17 {
        lab.unplug(number);
    }
    let before = lab.interfaces();
    let mut request = lab.request(host, &["true"]);
    request.isolation =
        bulkhead_isolation_vm::VmIsolation::with_worker(PathBuf::from("/bin/false"));
    assert!(request.create().await.is_err());
    request.check_gone();
    assert_eq!(lab.interfaces(), before);
}
