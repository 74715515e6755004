//! Real bridges and veth pairs, in a network namespace of the test's own, where nothing of
//! the host's is; root is needed, and without it the tests say so and pass.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::path::PathBuf;

use bulkhead_network::link::{self, BridgeConfig, InterfaceAddress, VethConfig, WayOut};
use bulkhead_network::{NetworkNamespace, prepare_directory, remove, within};

/// Runs a test in a new network namespace; its argument is the file of another.
fn apart(name: &str, test: impl FnOnce(PathBuf) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making network namespaces needs root");
        return;
    }
    let directory =
        std::env::temp_dir().join(format!("bulkhead-links-{name}-{}", std::process::id()));
    prepare_directory(&directory).unwrap();
    let file = directory.join("one");
    NetworkNamespace::create(&file).unwrap();
    let inner = file.clone();
    let outcome = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        test(inner);
    })
    .join();
    remove(&file).unwrap();
    rustix::mount::unmount(&directory, rustix::mount::UnmountFlags::DETACH).unwrap();
    std::fs::remove_dir(&directory).unwrap();
    outcome.unwrap();
}

fn address(text: &str, prefix: u8) -> InterfaceAddress {
    InterfaceAddress {
        address: text.parse().unwrap(),
        prefix,
    }
}

fn bridge<'a>(alias: &'a str, addresses: &'a [InterfaceAddress]) -> BridgeConfig<'a> {
    BridgeConfig {
        name: "br-test",
        alias,
        mtu: 1400,
        addresses,
    }
}

#[test]
fn a_bridge_belongs_to_its_owner() {
    apart("owner", |_| {
        let addresses = [address("10.77.0.1", 16)];
        link::ensure_bridge(&bridge("me", &addresses)).unwrap();
        // Again: nothing changes.
        link::ensure_bridge(&bridge("me", &addresses)).unwrap();
        let found = link::links().unwrap();
        let found = found.iter().find(|link| link.name == "br-test").unwrap();
        assert_eq!((found.alias.as_deref(), found.mtu), (Some("me"), 1400));
        let route = link::host_routes().unwrap();
        let route = route.iter().find(|route| route.interface == found.index);
        let expected: IpAddr = "10.77.0.0".parse().unwrap();
        assert_eq!(
            route.map(|one| (one.address, one.prefix)),
            Some((expected, 16))
        );
        let error = link::ensure_bridge(&bridge("you", &addresses)).unwrap_err();
        assert!(error.is_taken(), "{error}");
        link::delete("br-test").unwrap();
        link::delete("br-test").unwrap();
        assert!(
            link::links()
                .unwrap()
                .iter()
                .all(|link| link.name != "br-test")
        );
    });
}

#[test]
fn a_container_reaches_the_bridge() {
    apart("reach", |netns| {
        let own = [address("10.77.0.1", 16), address("fd00:77::1", 64)];
        link::ensure_bridge(&bridge("me", &own)).unwrap();
        let addresses = [address("10.77.0.2", 16), address("fd00:77::2", 64)];
        let config = VethConfig {
            host_name: "vtest",
            alias: "me",
            bridge: "br-test",
            name: "eth0",
            mac: [2, 0x42, 10, 77, 0, 2],
            mtu: 1400,
            addresses: &addresses,
            isolated: true,
        };
        link::join_bridge(&netns, &config).unwrap();
        let way = WayOut {
            interface: "eth0".to_owned(),
            addresses: addresses.to_vec(),
            gateways: vec![own[0].address, own[1].address],
        };
        link::set_ways_out(&netns, vec![way.clone()]).unwrap();
        // Another time is no error, nor is another way, or one for each family.
        link::set_ways_out(&netns, Vec::new()).unwrap();
        let of_family = |gateway: IpAddr| WayOut {
            gateways: vec![gateway],
            ..way.clone()
        };
        let each = own.map(|own| of_family(own.address));
        link::set_ways_out(&netns, each.to_vec()).unwrap();
        for to in ["10.77.0.1:0", "[fd00:77::1]:0"] {
            let listener = std::net::TcpListener::bind(to).unwrap();
            let to = listener.local_addr().unwrap();
            let from = within(&netns, move || {
                std::net::TcpStream::connect(to)?.local_addr()
            })
            .unwrap();
            assert!(
                addresses.iter().any(|own| own.address == from.ip()),
                "{from}"
            );
        }
        // What is left under the name is replaced; a name that is too long leaves nothing.
        link::delete("vtest").unwrap();
        link::join_bridge(&netns, &config).unwrap();
        let count = link::links().unwrap().len();
        let broken = VethConfig {
            host_name: "vother",
            name: "a-name-of-sixteen",
            ..config
        };
        assert!(link::join_bridge(&netns, &broken).is_err());
        assert_eq!(link::links().unwrap().len(), count);
    });
}
