//! Compose: both of its generations, and projects whose services differ in isolation.

use std::net::SocketAddr;

use bulkhead_e2e::programs::{Compose, PYTHON, Project, REDIS};
use bulkhead_e2e::{BUSYBOX, Cell, case, host, until};

/// The line of a service that says its isolation; dockerd's has none.
fn isolation(name: &str) -> String {
    if bulkhead_e2e::daemon::is_reference() {
        return String::new();
    }
    format!("isolation: {name}")
}

/// The isolation that the cell's is not.
fn other(cell: &Cell) -> &'static str {
    if cell.is_hyperv() {
        "process"
    } else {
        "hyperv"
    }
}

/// The host's address of a published port.
#[track_caller]
fn address(project: &Project<'_>, service: &str, port: u16) -> SocketAddr {
    let text = project.cli(&format!("port {service} {port}")).ok().text();
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Asks a web server until it answers with this.
#[track_caller]
fn says(cell: &Cell, at: SocketAddr, path: &str, page: &str) {
    until(&format!("{at}{path} says {page}"), cell.limit(), || {
        (host::page(at, path)? == page).then_some(())
    });
}

/// A web server in Python and redis: one in a VM, the other in processes of the host.
fn web_and_database(cell: &Cell, compose: Compose) {
    let (redis, python) = (cell.name("redis"), cell.name("python"));
    let file = format!(
        "services:\n\
         \x20 web:\n\
         \x20   build: {{context: web, args: {{GREETING: hit}}}}\n\
         \x20   {web}\n\
         \x20   labels: {{e2e: \"{label}\"}}\n\
         \x20   env_file: web.env\n\
         \x20   ports: [\"127.0.0.1::8000\"]\n\
         \x20   networks: [front, back]\n\
         \x20   depends_on: {{db: {{condition: service_healthy}}}}\n\
         \x20 db:\n\
         \x20   image: {redis}:latest\n\
         \x20   {db}\n\
         \x20   labels: {{e2e: \"{label}\"}}\n\
         \x20   volumes: [\"data:/data\"]\n\
         \x20   networks: {{back: {{aliases: [database]}}}}\n\
         \x20   healthcheck:\n\
         \x20     test: [CMD, /usr/bin/redis-cli, ping]\n\
         \x20     interval: 500ms\n\
         \x20     timeout: 60s\n\
         \x20     retries: 100\n\
         networks: {{front: {{}}, back: {{internal: true}}}}\n\
         volumes: {{data: {{}}}}\n",
        web = isolation(cell.isolation_name()),
        db = isolation(other(cell)),
        label = cell.label(),
    );
    let dockerfile = format!(
        "FROM {python}\n\
         ARG GREETING\n\
         ENV GREETING=$GREETING PYTHONDONTWRITEBYTECODE=1\n\
         COPY web.py /web.py\n\
         CMD [\"/usr/bin/python3.11\", \"/web.py\"]\n"
    );
    let files = [
        ("compose.yaml", file.as_str()),
        ("web.env", "DATABASE=database\n"),
        ("web/Dockerfile", &dockerfile),
        ("web/web.py", include_str!("../../programs/web.py")),
    ];
    let Some(project) = Project::new(cell, compose, &files) else {
        return;
    };
    REDIS.load(cell, &format!("{redis}:latest"));
    PYTHON.load(cell, &format!("{python}:latest"));

    project.cli("up -d").ok();
    let at = address(&project, "web", 8000);
    says(cell, at, "/", "hit :1");
    says(cell, at, "/", "hit :2");
    let own = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot_id");
    let seen = host::page(at, "/kernel").expect("an answer");
    assert_eq!(seen == own.trim(), !cell.is_hyperv(), "whose kernel it is");
    project.cli("logs web").ok().says("serving");
    project
        .cli("exec -T db /usr/bin/redis-cli get hits")
        .ok()
        .says("2");

    // The data are the volume's, not the container's.
    project.cli("down -t 5").ok();
    assert_eq!(host::page(at, "/"), None);
    project.cli("up -d").ok();
    says(cell, address(&project, "web", 8000), "/", "hit :3");
    project.cli("down -v -t 5").ok();
    project.cli("up -d").ok();
    says(cell, address(&project, "web", 8000), "/", "hit :1");

    drop(project);
    for image in [redis, python] {
        cell.cli(&format!("rmi {image}")).ok();
    }
}

case!(docker web_and_database_by_compose_1, |cell| {
    web_and_database(cell, Compose::One);
});

case!(docker web_and_database_by_compose_2, |cell| {
    web_and_database(cell, Compose::Two);
});

/// What compose's commands do to a project.
fn commands(cell: &Cell, compose: Compose) {
    let file = format!(
        "services:\n\
         \x20 one:\n\
         \x20   image: {BUSYBOX}\n\
         \x20   {own}\n\
         \x20   labels: {{e2e: \"{label}\"}}\n\
         \x20   command: sh -c 'trap \"exit 3\" TERM; echo \"$$WORD\"; while :; do sleep 0.1; done'\n\
         \x20   environment: {{WORD: \"${{GIVEN:-nothing}}\"}}\n\
         \x20   expose: [\"80\"]\n\
         \x20 two:\n\
         \x20   image: {BUSYBOX}\n\
         \x20   {other}\n\
         \x20   labels: {{e2e: \"{label}\"}}\n\
         \x20   command: sleep 1000\n\
         \x20   stop_signal: SIGKILL\n\
         \x20   tmpfs: /scratch\n\
         \x20   restart: \"no\"\n\
         \x20 aside:\n\
         \x20   image: {BUSYBOX}\n\
         \x20   {own}\n\
         \x20   labels: {{e2e: \"{label}\"}}\n\
         \x20   command: sleep 1000\n\
         \x20   profiles: [aside]\n",
        own = isolation(cell.isolation_name()),
        other = isolation(other(cell)),
        label = cell.label(),
    );
    let files = [
        ("compose.yaml", file.as_str()),
        (".env", "GIVEN=from-the-file\n"),
    ];
    let Some(project) = Project::new(cell, compose, &files) else {
        return;
    };
    project.cli("config").ok().says("from-the-file");
    project.cli("up -d -t 1").ok();
    let one = project.id("one");
    assert_eq!(project.ids("aside"), Vec::<String>::new());
    until("it has spoken", cell.limit(), || {
        let text = project.cli("logs one").ok().text();
        text.contains("from-the-file").then_some(())
    });
    // What has not changed is left alone.
    project.cli("up -d -t 1").ok();
    assert_eq!(project.id("one"), one);

    project.cli("ps").ok().says("Up");
    project.cli("exec -T two sh -c 'exit 7'").exits(7);
    project
        .line("exec -T one cat")
        .stdin("through\n")
        .output()
        .ok()
        .says("through");
    let network = "sh -c 'nslookup one | grep -q Address && mount | grep scratch'";
    project.cli(&format!("exec -T two {network}")).ok();
    project.cli("top two").ok().says("sleep 1000");
    project
        .cli("run --rm -T -e GIVEN=x one sh -c 'echo ran in $GIVEN; exit 5'")
        .exits(5)
        .says("ran in x");

    project.cli("pause two").ok();
    assert_eq!(cell.state(&project.all("two")[0]), "paused");
    project.cli("unpause two").ok();
    project.cli("stop one").ok();
    cell.until_state(&one, "exited");
    assert_eq!(cell.inspect(&one)["State"]["ExitCode"], 3);
    project.cli("start one").ok();
    assert_eq!(project.id("one"), one);
    project.cli("restart -t 5 one").ok();
    assert_eq!(cell.state(&one), "running");
    project.cli("kill -s KILL two").ok();
    cell.until_state(&project.all("two")[0], "exited");
    project.cli("rm -f two").ok();
    assert_eq!(project.all("two"), Vec::<String>::new());

    project.cli("up -d -t 1 --scale one=3").ok();
    assert_eq!(project.ids("one").len(), 3);
    project.cli("up -d -t 1 --scale one=1").ok();
    assert_eq!(project.id("one"), one);
    project.cli("--profile aside up -d -t 1").ok();
    assert_eq!(project.ids("aside").len(), 1);
    // Another configuration is another container.
    project
        .line("up -d -t 1 one")
        .env("GIVEN", "another")
        .output()
        .ok();
    assert_ne!(project.id("one"), one);
    project.cli("--profile aside down -t 1").ok();
    for service in ["one", "two", "aside"] {
        assert_eq!(project.all(service), Vec::<String>::new());
    }
    let left = format!("network ls -q --filter name={}", project.name());
    assert_eq!(cell.cli(&left).ok().text(), "");
}

case!(docker commands_of_compose_1, |cell| {
    commands(cell, Compose::One);
});

case!(docker commands_of_compose_2, |cell| {
    commands(cell, Compose::Two);
});
