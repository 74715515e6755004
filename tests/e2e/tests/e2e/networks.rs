//! Networks: the default bridge, published ports, networks of one's own, names.

use std::net::SocketAddr;

use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case, host, until};
use serde_json::json;

/// A web server whose page is `page`.
fn server(page: &str) -> String {
    format!("sh -c 'mkdir -p /www && echo {page} > /www/index.html && exec httpd -f -p 80 -h /www'")
}

/// What a web server says; `None` when there is none.
fn fetch(address: SocketAddr) -> Option<String> {
    host::page(address, "/")
}

#[track_caller]
fn serves(cell: &Cell, address: &str, page: &str) {
    let address = address.parse().expect("an address");
    until(&format!("{address} serves"), cell.limit(), || {
        (fetch(address)? == page).then_some(())
    });
}

/// The host's port that leads to a port of a container.
#[track_caller]
fn port(cell: &Cell, id: &str, port: &str) -> u16 {
    let lines = cell.cli(&format!("port {id} {port}")).ok().lines();
    let (_, number) = lines[0].rsplit_once(':').expect("ADDRESS:PORT");
    number.parse().expect("a port")
}

/// A network of the 10.0.0.0/8 block that no other case has.
fn subnet(cell: &Cell) -> String {
    let number = cell.number();
    format!("10.{}.{}", 100 + number / 256 % 100, number % 256)
}

/// Asks in a container until the answer is this: a server may still be starting.
#[track_caller]
fn inside(cell: &Cell, id: &str, command: &str, answer: &str) {
    until(&format!("{command} says {answer}"), cell.limit(), || {
        let output = cell.cli(&format!("exec {id} {command}"));
        output.text().contains(answer).then_some(())
    });
}

case!(the_default_bridge, |cell| {
    let page = cell.name("page");
    let web = cell.detached(&format!(
        "-p 80 -p 127.0.0.1::80 {BUSYBOX} {}",
        server(&page)
    ));
    let inspect = cell.inspect(&web);
    let settings = &inspect["NetworkSettings"];
    let address = settings["IPAddress"]
        .as_str()
        .expect("an address")
        .to_owned();
    let gateway = settings["Gateway"].as_str().expect("an address").to_owned();
    assert_eq!(settings["Networks"]["bridge"]["IPAddress"], address);
    assert!(
        settings["MacAddress"]
            .as_str()
            .is_some_and(|mac| mac.len() == 17)
    );
    assert!(
        settings["SandboxKey"]
            .as_str()
            .is_some_and(|key| !key.is_empty())
    );
    let any = port(cell, &web, "80/tcp");
    for at in ["127.0.0.1", &gateway] {
        serves(cell, &format!("{at}:{any}"), &page);
    }
    // A host without IPv6 publishes none.
    if cell.cli(&format!("port {web}")).ok().text().contains("::") {
        serves(cell, &format!("[::1]:{any}"), &page);
    }
    serves(cell, &format!("{address}:80"), &page);
    cell.cli("ps --format '{{.Ports}}'")
        .ok()
        .says(&format!(":{any}->80/tcp"));
    // From another container: directly, by the host's port; and from the container itself.
    let other = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    inside(cell, &other, &format!("wget -qO- http://{address}/"), &page);
    inside(
        cell,
        &other,
        &format!("wget -qO- http://{gateway}:{any}/"),
        &page,
    );
    inside(
        cell,
        &web,
        &format!("wget -qO- http://{gateway}:{any}/"),
        &page,
    );
    inside(
        cell,
        &web,
        "cat /etc/hosts",
        &format!("{address}\t{}", &web[..12]),
    );
    inside(cell, &web, "ip route", &format!("default via {gateway}"));
    // One port has one holder, and who is refused holds nothing.
    cell.run(&format!("-d -p {any}:80 {BUSYBOX} true"))
        .exits(125)
        .says("port is already allocated");
    serves(cell, &format!("127.0.0.1:{any}"), &page);
    cell.cli(&format!("rm -f {web}")).ok();
    assert_eq!(fetch(SocketAddr::from(([127, 0, 0, 1], any))), None);
    cell.nothing_left_of(&web);
});

case!(a_network_of_ones_own, |cell| {
    let net = cell.name("net");
    let prefix = subnet(cell);
    cell.cli(&format!(
        "network create --subnet {prefix}.0/24 --gateway {prefix}.254 --ip-range {prefix}.64/26 \
         --aux-address taken={prefix}.64 --label colour=green {net}"
    ))
    .ok();
    let page = cell.name("page");
    let name = cell.name("web");
    let web = cell.detached(&format!(
        "--name {name} --network {net} --ip {prefix}.7 --network-alias www {BUSYBOX} {}",
        server(&page)
    ));
    let other = cell.detached(&format!("--network {net} {BUSYBOX} sleep 1000"));
    let place = &cell.inspect(&other)["NetworkSettings"]["Networks"][&net];
    assert_eq!(
        place["IPAddress"],
        format!("{prefix}.65"),
        "the first of the range"
    );
    assert_eq!(place["Gateway"], format!("{prefix}.254"));
    for known in [name.as_str(), "www", &web[..12], &format!("{name}.{net}")] {
        inside(
            cell,
            &other,
            &format!("nslookup {known}"),
            &format!("{prefix}.7"),
        );
    }
    // By address: of a static busybox only nslookup asks a name server without the C library.
    let direct = format!("wget -qO- http://{prefix}.7/");
    inside(cell, &other, &direct, &page);
    inside(
        cell,
        &other,
        "cat /etc/resolv.conf",
        "nameserver 127.0.0.11",
    );
    let inspect = cell.cli(&format!("network inspect {net}")).ok().json();
    assert_eq!(
        inspect[0]["IPAM"]["Config"][0]["Subnet"],
        format!("{prefix}.0/24")
    );
    assert_eq!(inspect[0]["Labels"]["colour"], "green");
    let members = &inspect[0]["Containers"];
    assert_eq!(members[&web]["IPv4Address"], format!("{prefix}.7/24"));
    assert_eq!(members.as_object().map_or(0, serde_json::Map::len), 2);
    cell.cli(&format!("network rm {net}"))
        .fails()
        .says("has active endpoints");
    cell.run(&format!("--network {net} --ip {prefix}.7 {BUSYBOX} true"))
        .exits(125)
        .says("already in use");
    // One that runs comes and goes.
    let late = cell.name("late");
    cell.cli(&format!("network create {late}")).ok();
    cell.cli(&format!("network connect --alias second {late} {web}"))
        .ok();
    cell.cli(&format!("network connect {late} {other}")).ok();
    let address = cell.inspect(&web)["NetworkSettings"]["Networks"][&late]["IPAddress"].clone();
    let address = address.as_str().expect("an address").to_owned();
    inside(cell, &other, "nslookup second", &address);
    inside(cell, &other, &format!("wget -qO- http://{address}/"), &page);
    cell.cli(&format!("network connect {late} {web}"))
        .fails()
        .says("already exists in network");
    cell.cli(&format!("network disconnect {late} {web}")).ok();
    let networks = cell.inspect(&web)["NetworkSettings"]["Networks"].clone();
    assert!(networks[&late].is_null(), "{networks}");
    inside(cell, &web, "ip address", &format!("{prefix}.7"));
    let seen = cell.cli(&format!("exec {web} ip address")).ok();
    assert!(!seen.text().contains(&address), "{seen}");
    inside(cell, &other, &direct, &page);
    cell.cli(&format!("rm -f {web} {other}")).ok();
    cell.cli(&format!("network rm {net} {late}")).ok();
    cell.nothing_left_of(&web);
});

case!(networks_that_cannot_be, |cell| {
    let net = cell.name("net");
    let prefix = subnet(cell);
    cell.cli(&format!(
        "network create --subnet {prefix}.0/24 --label mine={net} {net}"
    ))
    .ok();
    let refused = |line: &str, words: &str| {
        cell.cli(line).fails().says(words);
    };
    let another = cell.name("other");
    refused(&format!("network create {net}"), "already exists");
    refused(
        &format!("network create --subnet {prefix}.0/24 {another}"),
        "overlaps",
    );
    refused(&format!("network create -d nosuch {another}"), "nosuch");
    refused(
        &format!("network create --subnet 10.0.0.0/99 {another}"),
        "invalid",
    );
    if cell.now_or_then(true, false) {
        refused(
            &format!("network create --subnet 10.0.0.1/24 {another}"),
            "it should be 10.0.0.0/24",
        );
    }
    refused("network create bridge", "bridge");
    refused("network rm bridge", "pre-defined network");
    refused("network rm nosuch", "not found");
    refused(&format!("network connect nosuch {another}"), "");
    let status = |method: &str, path: &str, body: serde_json::Value| {
        cell.api(method, path, Some(&body)).status
    };
    use serde_json::json;
    assert_eq!(
        status(
            "POST",
            "/networks/create",
            json!({ "Name": net, "CheckDuplicate": true })
        ),
        409
    );
    assert_eq!(
        status(
            "POST",
            "/networks/create",
            json!({ "Name": another, "Driver": "nosuch" })
        ),
        404
    );
    assert_eq!(
        status("POST", "/networks/create", json!({ "Name": "host" })),
        403
    );
    assert_eq!(
        status("POST", "/networks/create", json!({ "Name": 5 })),
        400
    );
    assert_eq!(cell.api("DELETE", "/networks/bridge", None).status, 403);
    assert_eq!(cell.api("GET", "/networks/nosuch", None).status, 404);
    // What is refused at the start of a container leaves nothing on the network.
    let run = |options: &str, words: &str| {
        cell.run(&format!("{options} {BUSYBOX} true"))
            .exits(125)
            .says(words);
    };
    run("--rm --network nosuch", "not found");
    run(&format!("--rm --network {net} --ip 10.9.9.9"), "");
    run("--rm --ip 172.17.0.9", "user defined networks only");
    run("--rm -p 99999:80", "");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let held = holder.local_addr().expect("an address").port();
    run(
        &format!("--rm -p 127.0.0.1:{held}:80"),
        "address already in use",
    );
    let view = cell.cli(&format!("network inspect {net}")).ok().json();
    assert_eq!(view[0]["Containers"], json!({}));
    cell.cli(&format!(
        "network ls --filter name={net} --format '{{{{.Driver}}}}'"
    ))
    .ok()
    .says("bridge");
    // Other cells have networks at the same daemon.
    cell.cli(&format!("network prune -f --filter label=mine={net}"))
        .ok()
        .says(&net);
    assert_eq!(
        cell.api("GET", &format!("/networks/{net}"), None).status,
        404
    );
});

case!(addresses_where_nobody_chose_the_network, |cell| {
    let net = cell.name("net");
    cell.cli(&format!("network create {net}")).ok();
    let created = cell.create(&format!("{BUSYBOX} sleep 1000"));
    let running = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    for id in [&created, &running] {
        let networks = || {
            let networks = cell.inspect(id)["NetworkSettings"]["Networks"].clone();
            let networks = networks.as_object().expect("networks").clone();
            networks.keys().cloned().collect::<Vec<_>>()
        };
        let before = networks();
        for (network, words) in [
            (
                net.as_str(),
                "only when connecting to networks with user configured subnets",
            ),
            ("bridge", "on user defined networks only"),
        ] {
            // The reference has no default bridge.
            if network == "bridge" && cell.now_or_then(false, true) {
                continue;
            }
            let body = serde_json::json!({
                "Container": id,
                "EndpointConfig": { "IPAMConfig": { "IPv4Address": "172.18.0.77" } },
            });
            let path = format!("/networks/{network}/connect");
            let refused = cell.api("POST", &path, Some(&body));
            assert_eq!(refused.status, 400, "{network}: {}", refused.message());
            let message = refused.message();
            assert!(message.ends_with(words), "{message}");
        }
        assert_eq!(networks(), before);
    }
    cell.cli(&format!("rm -f {created} {running}")).ok();
    cell.cli(&format!("network rm {net}")).ok();
});

case!(configurations_for_other_networks, |cell| {
    use serde_json::json;
    let (source, net) = (cell.name("source"), cell.name("net"));
    let prefix = subnet(cell);
    let create = |body: serde_json::Value| {
        let answer = cell.api("POST", "/networks/create", Some(&body));
        (answer.status, answer.message())
    };
    let pool = json!({ "Subnet": format!("{prefix}.0/24"), "Gateway": format!("{prefix}.7") });
    let (status, message) = create(json!({
        "Name": source, "ConfigOnly": true, "CheckDuplicate": true,
        "IPAM": { "Config": [pool] }, "Labels": { "of": source },
        "Options": { "com.docker.network.driver.mtu": "1400" },
    }));
    assert_eq!(status, 201, "{message}");
    let view = |name: &str| cell.api("GET", &format!("/networks/{name}"), None).json();
    let seen = view(&source);
    assert_eq!(seen["Driver"], "null");
    assert_eq!(seen["ConfigOnly"], true);
    assert_eq!(seen["IPAM"]["Config"], json!([pool]));
    let from = |name: &str| json!({ "Name": net, "ConfigFrom": { "Network": name } });
    let with = |key: &str, value: serde_json::Value| {
        let mut body = from(&source);
        body[key] = value;
        body
    };
    let another = cell.name("another");
    for (body, status, words) in [
        (
            from("nosuch"),
            404,
            "configuration network \"nosuch\" does not exist",
        ),
        (
            from("bridge"),
            404,
            "configuration network \"bridge\" does not exist",
        ),
        (
            with("Labels", json!({ "x": "y" })),
            403,
            "user specified configurations",
        ),
        (
            with("Options", json!({ "x": "y" })),
            403,
            "network driver options",
        ),
        (
            with("IPAM", json!({ "Config": [{ "Subnet": "10.9.9.0/24" }] })),
            403,
            "user specified configurations",
        ),
        (
            with("EnableIPv6", json!(true)),
            403,
            "user specified configurations",
        ),
        (
            with("ConfigOnly", json!(true)),
            403,
            "cannot depend on another",
        ),
        (
            json!({ "Name": another, "ConfigOnly": true, "Internal": true }),
            403,
            "can only contain network specific fields",
        ),
        (
            json!({ "Name": source, "ConfigOnly": true, "CheckDuplicate": true }),
            409,
            "already exists",
        ),
    ] {
        let answer = create(body.clone());
        assert_eq!(answer.0, status, "{body}: {}", answer.1);
        assert!(answer.1.contains(words), "{body}: {}", answer.1);
    }
    if cell.now_or_then(true, false) {
        let answer = create(with("EnableIPv4", json!(false)));
        assert_eq!(answer.0, 403, "{}", answer.1);
    }
    // Nobody can be on it.
    let created = cell.create(&format!("--network {source} {BUSYBOX} true"));
    let words = "cannot create endpoint on configuration-only network";
    cell.cli(&format!("start {created}")).fails().says(words);
    cell.cli(&format!("rm {created}")).ok();
    // What is configured is had by who takes it, and only by one: it has addresses.
    let (status, message) = create(with("Internal", json!(true)));
    assert_eq!(status, 201, "{message}");
    let seen = view(&net);
    assert_eq!(seen["Driver"], "bridge");
    assert_eq!(seen["Internal"], true);
    assert_eq!(seen["ConfigOnly"], false);
    assert_eq!(seen["ConfigFrom"], json!({ "Network": source }));
    assert_eq!(seen["IPAM"]["Config"], json!([pool]));
    assert_eq!(seen["Labels"], json!({ "of": source }));
    assert_eq!(seen["Options"]["com.docker.network.driver.mtu"], "1400");
    let mut second = from(&source);
    second["Name"] = json!(another);
    assert_eq!(create(second).0, 403);
    let address = cell
        .run(&format!(
            "--rm --network {net} --ip {prefix}.99 {BUSYBOX} ip addr show eth0"
        ))
        .ok();
    address.says(&format!("{prefix}.99/24")).says("mtu 1400");
    let in_use = cell.api("DELETE", &format!("/networks/{source}"), None);
    assert_eq!(in_use.status, 403, "{}", in_use.message());
    assert!(
        in_use.message().contains("is in use"),
        "{}",
        in_use.message()
    );
    let prune = format!("network prune -f --filter label=of={source}");
    cell.cli(&prune).ok().says(&net);
    cell.cli(&format!("network rm {source}")).ok();
});

/// A network of IPv6 addresses that no other case has, without its length.
fn ipv6_network(cell: &Cell) -> String {
    let number = cell.number();
    format!("fdb5:{:x}:{:x}:", (number >> 16) & 0xffff, number & 0xffff)
}

case!(each_family_has_its_way_out, |cell| {
    let (first, second) = (cell.name("first"), cell.name("second"));
    let prefix = ipv6_network(cell);
    cell.cli(&format!("network create {first}")).ok();
    cell.cli(&format!(
        "network create --ipv6 --subnet {prefix}:/64 {second}"
    ))
    .ok();
    let id = cell.detached(&format!("--network {first} {BUSYBOX} sleep 600"));
    cell.cli(&format!("network connect {second} {id}")).ok();
    inside(cell, &id, "ip -6 route", &format!("default via {prefix}:1"));
    inside(cell, &id, "ip route", "default via ");
    // The other one stays when its network is left.
    cell.cli(&format!("network disconnect {second} {id}")).ok();
    inside(cell, &id, "ip route", "default via ");
    let left = cell.cli(&format!("exec {id} ip -6 route")).ok().text();
    assert!(!left.contains("default"), "{left}");
    cell.cli(&format!("rm -f {id}")).ok();
    cell.cli(&format!("network rm {first} {second}")).ok();
});

case!(a_network_with_ipv6, |cell| {
    let (net, name, page) = (cell.name("net"), cell.name("web"), cell.name("page"));
    let prefix = ipv6_network(cell);
    cell.cli(&format!(
        "network create --ipv6 --subnet {prefix}:/64 {net}"
    ))
    .ok();
    let shown = cell.cli(&format!("network inspect {net}")).ok().json()[0].clone();
    assert_eq!(shown["EnableIPv6"], true);
    assert_eq!(
        shown["IPAM"]["Config"].as_array().map(Vec::len),
        Some(2),
        "{shown}"
    );
    let address = format!("{prefix}:50");
    let web = cell.detached(&format!(
        "--name {name} --network {net} --ip6 {address} {BUSYBOX} {}",
        server(&page)
    ));
    let seen = cell.inspect(&web)["NetworkSettings"]["Networks"][&net].clone();
    assert_eq!(seen["GlobalIPv6Address"], address);
    assert_eq!(seen["GlobalIPv6PrefixLen"], 64);
    assert_eq!(seen["IPv6Gateway"], format!("{prefix}:1"));
    assert!(
        seen["IPAddress"].as_str().is_some_and(|v4| !v4.is_empty()),
        "{seen}"
    );
    serves(cell, &format!("[{address}]:80"), &page);
    // By number, by name, and out by the gateway.
    cell.run(&format!(
        "--rm --network {net} {BUSYBOX} sh -c 'wget -q -O - http://[{address}]/ && \
         ping -6 -c 1 {name} && ping -6 -c 1 {prefix}:1 && ip -6 route | grep ^default'"
    ))
    .ok()
    .says(&page)
    .says(&address);
    cell.cli(&format!("rm -f {web}")).ok();
    cell.cli(&format!("network rm {net}")).ok();
    // Without the family its addresses are only written down.
    cell.cli(&format!("network create --subnet {prefix}:/64 {net}"))
        .ok();
    let shown = cell.cli(&format!("network inspect {net}")).ok().json()[0].clone();
    let configs = shown["IPAM"]["Config"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(
        (configs.len(), &shown["EnableIPv6"]),
        (2, &json!(false)),
        "{shown}"
    );
    assert_eq!(configs[1]["Subnet"], format!("{prefix}:/64"));
    let addresses = format!("--rm --network {net} {BUSYBOX} ip address show eth0");
    let addresses = cell.run(&addresses).ok();
    assert!(!addresses.text().contains(&prefix), "{addresses}");
    cell.cli(&format!("network rm {net}")).ok();
});

case!(ours a_network_without_ipv4, |cell| {
    let (net, name, page) = (cell.name("net"), cell.name("web"), cell.name("page"));
    let create = |ipv4: bool, ipv6: bool| {
        let body = json!({ "Name": net, "EnableIPv4": ipv4, "EnableIPv6": ipv6 });
        cell.api("POST", "/networks/create", Some(&body))
    };
    let refused = create(false, false);
    assert_eq!(refused.status, 400);
    assert!(refused.message().contains("IPv4 or IPv6"), "{}", refused.message());
    assert_eq!(create(false, true).status, 201);
    let shown = cell.cli(&format!("network inspect {net}")).ok().json()[0].clone();
    assert_eq!((&shown["EnableIPv4"], &shown["EnableIPv6"]), (&json!(false), &json!(true)));
    let web = cell.detached(&format!(
        "--name {name} --network {net} -p 127.0.0.1::80 {BUSYBOX} {}",
        server(&page)
    ));
    let seen = cell.inspect(&web)["NetworkSettings"]["Networks"][&net].clone();
    assert_eq!(seen["IPAddress"], "");
    let address = seen["GlobalIPv6Address"].as_str().expect("an address").to_owned();
    serves(cell, &format!("[{address}]:80"), &page);
    // The host's port is one of IPv4.
    serves(cell, &format!("127.0.0.1:{}", port(cell, &web, "80")), &page);
    let client = format!("--rm --network {net} {BUSYBOX}");
    cell.run(&format!("{client} ping -6 -c 1 {name}")).ok().says(&address);
    let addresses = cell.run(&format!("{client} ip address show eth0")).ok();
    assert!(!addresses.text().contains("inet "), "{addresses}");
    cell.cli(&format!("rm -f {web}")).ok();
    cell.cli(&format!("network rm {net}")).ok();
});

/// The name that a bridge of a daemon has before it is finished.
fn unfinished_bridge(exec_root: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    format!("bulkhead {exec_root}").hash(&mut hasher);
    format!("bh-new{:08x}", hasher.finish() & 0xffff_ffff)
}

case!(ours process a_bridge_that_was_not_finished_is_swept, |cell| {
    let cell = cell.on(Daemon::start(&[]));
    let own = unfinished_bridge(&cell.daemon().exec_root().display().to_string());
    let others = unfinished_bridge(&cell.name("other"));
    let ip = |words: &str| {
        let status = std::process::Command::new("ip").args(words.split(' ')).status();
        assert!(status.expect("is there").success(), "ip {words}");
    };
    let there = |bridge: &str| std::path::Path::new("/sys/class/net").join(bridge).exists();
    cell.daemon().kill();
    for bridge in [&own, &others] {
        ip(&format!("link add {bridge} type bridge"));
    }
    cell.daemon().restart();
    let (left, kept) = (there(&own), there(&others));
    ip(&format!("link delete {others}"));
    assert!(!left && kept, "left {left}, kept {kept}");
    cell.finish();
});

case!(networks_outlive_the_daemon, |cell| {
    if cell.now_or_then(false, true) {
        return;
    }
    let cell = cell.on(Daemon::start(&[]));
    let net = cell.name("net");
    cell.cli(&format!("network create {net}")).ok();
    let page = cell.name("page");
    let name = cell.name("web");
    let web = cell.detached(&format!(
        "--name {name} --network {net} -p 80 {BUSYBOX} {}",
        server(&page)
    ));
    let published = port(&cell, &web, "80");
    serves(&cell, &format!("127.0.0.1:{published}"), &page);
    let before = cell.inspect(&web)["NetworkSettings"].clone();
    cell.daemon().kill();
    serves(&cell, &format!("127.0.0.1:{published}"), &page);
    cell.daemon().restart();
    assert_eq!(cell.inspect(&web)["NetworkSettings"], before);
    serves(&cell, &format!("127.0.0.1:{published}"), &page);
    inside(
        &cell,
        &web,
        &format!("nslookup {name}"),
        before["Networks"][&net]["IPAddress"]
            .as_str()
            .expect("an address"),
    );
    cell.cli(&format!("rm -f {web}")).ok();
    cell.daemon().kill();
    cell.daemon().restart();
    // The default bridge was never used, that of the network is there again.
    let base = cell.daemon().base().to_string_lossy().into_owned();
    assert_eq!(host::interfaces(&base).len(), 1);
    cell.cli(&format!("network rm {net}")).ok();
    assert!(host::interfaces(&base).is_empty());
    cell.finish();
});

case!(process a_hosts_name_and_what_it_is_told_of_others, |cell| {
    let seen = cell
        .run(&format!("--rm -h web.example.org {BUSYBOX} cat /etc/hosts"))
        .ok();
    assert!(seen.text().ends_with("\tweb.example.org web"), "{seen}");
    let line = format!("--rm --network host --add-host one:192.0.2.7 {BUSYBOX} cat /etc/hosts");
    let seen = cell.run(&line).ok();
    assert!(seen.text().ends_with("192.0.2.7\tone"), "{seen}");
    let line = format!("--name {} --network host -p 80:80 {BUSYBOX} true", cell.name("c"));
    cell.making("create", &line)
        .output()
        .ok()
        .says("Published ports are discarded when using host network mode");
    let net = cell.name("net");
    cell.cli(&format!(
        "network create --subnet 10.88.77.0/24 --subnet 10.89.77.0/24 {net}"
    ))
    .exits(1)
    .says("bridge driver doesn't support multiple subnets");
    cell.cli(&format!("network inspect {net}")).exits(1);
});

case!(links_of_the_default_bridge, |cell| {
    let name = cell.name("db");
    let db = cell.detached(&format!(
        "--name {name} -e COLOUR=green --expose 80 --expose 53/udp {BUSYBOX} sleep 1000"
    ));
    let address = cell.inspect(&db)["NetworkSettings"]["IPAddress"].clone();
    let address = address.as_str().expect("an address");
    let user = cell.name("user");
    let script = "cat /etc/hosts; env";
    let seen = cell
        .run(&format!(
            "--rm --name {user} --link {name}:the-db -e THE_DB_PORT_53_UDP=mine {BUSYBOX} sh -c '{script}'"
        ))
        .ok();
    let lines = seen.lines();
    for line in [
        format!("{address}\tthe-db {} {name}", &db[..12]),
        format!("THE_DB_NAME=/{user}/the-db"),
        // TCP before the lowest.
        cell.now_or_then(
            format!("THE_DB_PORT=tcp://{address}:80"),
            format!("THE_DB_PORT=udp://{address}:53"),
        ),
        format!("THE_DB_PORT_80_TCP=tcp://{address}:80"),
        format!("THE_DB_PORT_80_TCP_ADDR={address}"),
        "THE_DB_PORT_80_TCP_PORT=80".to_owned(),
        "THE_DB_PORT_80_TCP_PROTO=tcp".to_owned(),
        "THE_DB_PORT_53_UDP=mine".to_owned(),
        "THE_DB_ENV_COLOUR=green".to_owned(),
    ] {
        assert!(lines.contains(&line), "{line:?} is missing:\n{seen}");
    }
    cell.cli(&format!("kill {name}")).ok();
    cell.until_state(&db, "exited");
    cell.run(&format!("--rm --link {name} {BUSYBOX} true"))
        .fails()
        .says("Cannot link to a non running container");
    cell.run(&format!("--rm --link nosuch {BUSYBOX} true"))
        .fails()
        .says("No such container: nosuch");
});

case!(process namespaces_of_another_container, |cell| {
    let name = cell.name("donor");
    let donor = cell.detached(&format!(
        "--name {name} --ipc shareable --hostname giver {BUSYBOX} \
         sh -c 'echo shared >/dev/shm/it; exec sleep 1000'"
    ));
    let private = cell.detached(&format!("{BUSYBOX} sleep 1000"));
    until("it is there", cell.limit(), || {
        let look = cell.cli(&format!("exec {donor} cat /dev/shm/it"));
        (look.text() == "shared").then_some(())
    });
    let script = "cat /dev/shm/it; echo back >/dev/shm/back; hostname; \
                  kill -0 1 && grep -c sleep /proc/1/cmdline; ip -o -4 address";
    let seen = cell
        .run(&format!(
            "--rm --pid container:{name} --ipc container:{name} --network container:{name} \
             {BUSYBOX} sh -c '{script}'"
        ))
        .ok();
    let network = &cell.inspect(&donor)["NetworkSettings"];
    let address = network["IPAddress"].as_str().expect("an address").to_owned();
    assert_eq!(&seen.lines()[..3], ["shared", "giver", "1"], "{seen}");
    seen.says(&address);
    cell.cli(&format!("exec {donor} cat /dev/shm/back")).ok().says("back");
    // What ends with the one that joined is that one alone.
    assert_eq!(cell.state(&donor), "running");
    // Whom it joins is settled when it is made: by ID, whatever becomes of the name.
    let container = |key: &str, other: &str| {
        let body = json!({
            "Image": BUSYBOX,
            "Cmd": ["true"],
            "HostConfig": { key: format!("container:{other}") }
        });
        let answer = cell.api("POST", "/containers/create", Some(&body));
        (answer.status, answer.json())
    };
    for (key, refused) in [("PidMode", 400), ("IpcMode", 400), ("NetworkMode", 201)] {
        let (status, made) = container(key, &name);
        assert_eq!(status, 201, "{key}: {made}");
        let id = made["Id"].as_str().expect("an ID").to_owned();
        let joins = cell.inspect(&id)["HostConfig"][key].clone();
        assert_eq!(joins, format!("container:{donor}"), "{key}");
        cell.cli(&format!("rm {id}")).ok();
        let (status, made) = container(key, "nosuch");
        assert_eq!(status, refused, "{key}: {made}");
        if refused == 201 {
            let id = made["Id"].as_str().expect("an ID").to_owned();
            let start = cell.api("POST", &format!("/containers/{id}/start"), None);
            assert_eq!(start.status, 404, "{}", start.message());
            cell.cli(&format!("rm {id}")).ok();
        } else {
            assert_eq!(made["message"], "No such container: nosuch");
        }
    }
    for (options, words) in [
        (format!("--ipc container:{private}"), "non-shareable IPC"),
        ("--ipc container:nosuch".to_owned(), "No such container: nosuch"),
        ("--pid container:nosuch".to_owned(), "No such container: nosuch"),
        (format!("--network container:{name} --dns 1.1.1.1"), "conflicting options: dns"),
        (format!("--network container:{name} -p 80"), "conflicting options: port publishing"),
        (format!("--network container:{name} --add-host a:1.2.3.4"), "conflicting options"),
        (format!("--network container:{name} --hostname q"), "conflicting options: hostname"),
    ] {
        cell.run(&format!("--rm {options} {BUSYBOX} true")).exits(125).says(words);
    }
    cell.cli(&format!("kill {donor}")).ok();
    cell.until_state(&donor, "exited");
    for (what, words) in [
        ("pid", "is not running"),
        ("ipc", "is not running"),
        ("network", "non running container"),
    ] {
        cell.run(&format!("--rm --{what} container:{name} {BUSYBOX} true"))
            .exits(125)
            .says(words);
    }
    cell.run(&format!("--rm --ipc host {BUSYBOX} ls -d /dev/shm")).ok();
});
