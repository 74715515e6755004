//! Commands about networks.

use std::collections::BTreeMap;

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::container::list::FORMAT_HELP;
use crate::container::prune::{self as pruning, Pruned, ask};
use crate::container::spec::to_map;
use crate::container::values;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::format::{Format, Printer, Row, short_id, time};
use crate::output::{complain, emit_line};
use crate::system::filters;
use crate::system::inspect::{FORMAT_HELP as INSPECT_HELP, Inspector};

/// The `network` group.
pub const NETWORK: Command = Command::group(
    "network",
    "Manage networks",
    &[CONNECT, CREATE, DISCONNECT, INSPECT, LS, PRUNE, RM],
);

const LS_FLAGS: &[Flag] = &[
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Show only what matches (NAME=VALUE)",
    )
    .short('f')
    .check(filters::check),
    Flag::text("format", FORMAT_HELP),
    Flag::switch("no-trunc", "Show everything in full"),
    Flag::switch("quiet", "Show IDs only").short('q'),
];

const LS: Command = Command::new("ls", "[OPTIONS]", "List networks", Arity::None, run_ls)
    .flags(&[LS_FLAGS])
    .named("ls", &["list"]);

const TITLES: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Network {
    id: String,
    name: String,
    driver: String,
    scope: String,
    created: String,
    #[serde(rename = "EnableIPv4")]
    ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    ipv6: bool,
    internal: bool,
    labels: Option<BTreeMap<String, String>>,
}

fn run_ls(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let table = if parsed.on("quiet") {
            "{{.ID}}"
        } else {
            "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
        };
        let printer = Printer::new(
            Format::choose(parsed.text("format"), table),
            TITLES,
            "*network.networkContext",
        )?;
        let request = Request::get(&["networks"])
            .query_some("filters", filters::encode(parsed.list("filter")));
        let mut networks: Vec<Network> = ctx.client().json(request).await?;
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        let trunc = !parsed.on("no-trunc");
        printer.print(networks.iter().map(|n| {
            let labels = n.labels.clone().unwrap_or_default();
            let shown: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            Row::default()
                .text("ID", if trunc { short_id(&n.id) } else { &n.id })
                .text("Name", &n.name)
                .text("Driver", &n.driver)
                .text("Scope", &n.scope)
                .text("IPv4", n.ipv4.to_string())
                .text("IPv6", n.ipv6.to_string())
                .text("Internal", n.internal.to_string())
                .text("Labels", shown.join(","))
                .text("CreatedAt", time::go_time(&n.created))
                .lookup("Label", labels)
        }))
    })
}

const CREATE_FLAGS: &[Flag] = &[
    Flag::switch("attachable", "Let containers be attached by hand"),
    Flag::list(
        "aux-address",
        "Address that the network must not give away (NAME=IP)",
    ),
    Flag::text("config-from", "Take the configuration of this network"),
    Flag::switch(
        "config-only",
        "Only a configuration, for other networks to take",
    ),
    Flag::text("driver", "Driver of the network")
        .short('d')
        .default("bridge"),
    Flag::list("gateway", "Gateway of a subnet"),
    Flag::switch("internal", "No way to the outside"),
    Flag::list("ip-range", "Range from which containers get addresses"),
    Flag::text("ipam-driver", "Driver that gives addresses").default("default"),
    Flag::list("ipam-opt", "Option of that driver"),
    Flag::switch("ipv4", "Give IPv4 addresses").default("true"),
    Flag::switch("ipv6", "Give IPv6 addresses"),
    Flag::list("label", "Set a label").check(values::label),
    Flag::list("opt", "Option of the driver").short('o'),
    Flag::text("scope", "Scope of the network"),
    Flag::list("subnet", "Subnet in CIDR notation"),
];

const CREATE: Command = Command::new(
    "create",
    "[OPTIONS] NETWORK",
    "Create a network",
    Arity::Exactly(1),
    run_create,
)
.flags(&[CREATE_FLAGS]);

/// The addresses and prefix length of a subnet.
fn subnet(text: &str) -> CliResult<(std::net::IpAddr, u32)> {
    let wrong = || CliError::msg(format!("invalid CIDR address: {text}"));
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address: std::net::IpAddr = address.parse().map_err(|_| wrong())?;
    let bits: u32 = bits.parse().map_err(|_| wrong())?;
    if bits > if address.is_ipv4() { 32 } else { 128 } {
        return Err(wrong());
    }
    Ok((address, bits))
}

fn contains((network, bits): (std::net::IpAddr, u32), address: std::net::IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    match (network, address) {
        (V4(n), V4(a)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(n) & mask == u32::from(a) & mask
        }
        (V6(n), V6(a)) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            u128::from(n) & mask == u128::from(a) & mask
        }
        _ => false,
    }
}

/// The address configuration: every range, gateway and reserved address goes to its subnet.
fn addresses(parsed: &Parsed) -> CliResult<Vec<Value>> {
    let split = |flag: &str| -> Vec<String> {
        parsed
            .list(flag)
            .iter()
            .flat_map(|v| v.split(','))
            .map(str::to_owned)
            .collect()
    };
    let (subnets, ranges, gateways) = (split("subnet"), split("ip-range"), split("gateway"));
    if subnets.len() < ranges.len() || subnets.len() < gateways.len() {
        return Err(CliError::msg(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    let mut configs: Vec<((std::net::IpAddr, u32), Map<String, Value>)> = Vec::new();
    for text in &subnets {
        let parsed = subnet(text)?;
        let config = Map::from_iter([("Subnet".to_owned(), Value::from(text.clone()))]);
        configs.push((parsed, config));
    }
    let mut place = |address: std::net::IpAddr, key: &str, value: Value, what: &str| match configs
        .iter_mut()
        .find(|(net, _)| contains(*net, address))
    {
        Some((_, config)) if !config.contains_key(key) || value.is_object() => {
            match (config.get_mut(key), value) {
                (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                (_, value) => {
                    config.insert(key.to_owned(), value);
                }
            }
            Ok(())
        }
        Some(_) => Err(CliError::msg(format!(
            "cannot configure multiple {what} on the same subnet"
        ))),
        None => Err(CliError::msg(format!(
            "no matching subnet for {what} {address}"
        ))),
    };
    let wrong = |text: &str| CliError::msg(format!("invalid address: {text}"));
    for text in &ranges {
        place(subnet(text)?.0, "IPRange", text.clone().into(), "range")?;
    }
    for text in &gateways {
        let address = text.parse().map_err(|_| wrong(text))?;
        place(address, "Gateway", text.clone().into(), "gateway")?;
    }
    for text in parsed.list("aux-address") {
        let (name, address) = text.split_once('=').unwrap_or((text, ""));
        let parsed = address.parse().map_err(|_| wrong(address))?;
        place(
            parsed,
            "AuxiliaryAddresses",
            json!({name: address}),
            "aux-address",
        )?;
    }
    Ok(configs
        .into_iter()
        .map(|(_, config)| Value::Object(config))
        .collect())
}

fn run_create(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut body = json!({
            "Name": parsed.args[0],
            // Older engines look for the name only if they are told to.
            "CheckDuplicate": true,
            "Driver": parsed.text("driver"),
            "Scope": parsed.text("scope"),
            "Internal": parsed.on("internal"),
            "Attachable": parsed.on("attachable"),
            "ConfigOnly": parsed.on("config-only"),
            "ConfigFrom": { "Network": parsed.text("config-from") },
            "IPAM": {
                "Driver": parsed.text("ipam-driver"),
                "Options": to_map(parsed.list("ipam-opt")),
                "Config": addresses(&parsed)?,
            },
            "Options": to_map(parsed.list("opt")),
            "Labels": to_map(parsed.list("label")),
        });
        for (flag, key) in [("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")] {
            if parsed.changed(flag) {
                body[key] = parsed.on(flag).into();
            }
        }
        let answer: Value = ctx
            .client()
            .json(Request::post(&["networks", "create"]).json(&body))
            .await?;
        emit_line(answer.get("Id").and_then(Value::as_str).unwrap_or_default())
    })
}

const RM_FLAGS: &[Flag] =
    &[Flag::switch("force", "A network that does not exist is no failure").short('f')];

const RM: Command = Command::new(
    "rm",
    "NETWORK [NETWORK...]",
    "Remove networks",
    Arity::AtLeast(1),
    run_rm,
)
.flags(&[RM_FLAGS])
.named("rm", &["remove"]);

fn run_rm(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut failed = false;
        for name in &parsed.args {
            match ctx
                .client()
                .done(Request::delete(&["networks", name]))
                .await
            {
                Ok(()) => emit_line(name)?,
                Err(error) => {
                    let error = CliError::from(error);
                    if !(parsed.on("force") && error.is_not_found()) {
                        complain(error);
                        failed = true;
                    }
                }
            }
        }
        if failed {
            Err(CliError::msg("exit status 1"))
        } else {
            Ok(())
        }
    })
}

const INSPECT_FLAGS: &[Flag] = &[
    Flag::text("format", INSPECT_HELP).short('f'),
    Flag::switch("verbose", "Show what the network's driver knows").short('v'),
];

const INSPECT: Command = Command::new(
    "inspect",
    "[OPTIONS] NETWORK [NETWORK...]",
    "Show all details of networks",
    Arity::AtLeast(1),
    run_inspect,
)
.flags(&[INSPECT_FLAGS]);

fn run_inspect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut inspector = Inspector::new(parsed.text("format"))?;
        for name in &parsed.args {
            let request = Request::get(&["networks", name])
                .query_some("verbose", parsed.on("verbose").then_some("true"));
            inspector.add(ctx.client().json(request).await.map_err(CliError::from));
        }
        inspector.finish()
    })
}

const CONNECT_FLAGS: &[Flag] = &[
    Flag::list("alias", "Further name of the container in the network"),
    Flag::list("driver-opt", "Option of the network's driver"),
    Flag::int("gw-priority", "Priority of this network's gateway"),
    Flag::text("ip", "IPv4 address"),
    Flag::text("ip6", "IPv6 address"),
    Flag::list("link", "Link to another container").check(values::link),
    Flag::list("link-local-ip", "Link-local address"),
];

const CONNECT: Command = Command::new(
    "connect",
    "[OPTIONS] NETWORK CONTAINER",
    "Connect a container to a network",
    Arity::Exactly(2),
    run_connect,
)
.flags(&[CONNECT_FLAGS]);

fn run_connect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let body = json!({
            "Container": parsed.args[1],
            "EndpointConfig": {
                "IPAMConfig": {
                    "IPv4Address": parsed.text("ip"),
                    "IPv6Address": parsed.text("ip6"),
                    "LinkLocalIPs": parsed.list("link-local-ip"),
                },
                "Links": parsed.list("link"),
                "Aliases": parsed.list("alias"),
                "DriverOpts": to_map(parsed.list("driver-opt")),
                "GwPriority": parsed.int("gw-priority"),
            },
        });
        let request = Request::post(&["networks", &parsed.args[0], "connect"]).json(&body);
        Ok(ctx.client().done(request).await?)
    })
}

const DISCONNECT_FLAGS: &[Flag] =
    &[Flag::switch("force", "Disconnect although the container does not answer").short('f')];

const DISCONNECT: Command = Command::new(
    "disconnect",
    "[OPTIONS] NETWORK CONTAINER",
    "Disconnect a container from a network",
    Arity::Exactly(2),
    run_disconnect,
)
.flags(&[DISCONNECT_FLAGS]);

fn run_disconnect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let body = json!({"Container": parsed.args[1], "Force": parsed.on("force")});
        let request = Request::post(&["networks", &parsed.args[0], "disconnect"]).json(&body);
        Ok(ctx.client().done(request).await?)
    })
}

const PRUNE: Command = Command::new(
    "prune",
    "[OPTIONS]",
    "Remove unused networks",
    Arity::None,
    run_prune,
)
.flags(&[pruning::FLAGS]);

/// Prunes networks.
pub async fn prune(ctx: &Ctx, filter: &[String]) -> CliResult<Pruned> {
    let request =
        Request::post(&["networks", "prune"]).query_some("filters", filters::encode(filter));
    let answer: Value = ctx.client().json(request).await?;
    Ok(Pruned::from_answer(&answer, "NetworksDeleted"))
}

fn run_prune(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        ask(
            &parsed,
            "WARNING! This will remove all custom networks not used by at least one container.",
        )?;
        prune(&ctx, parsed.list("filter"))
            .await?
            .print("Deleted Networks")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_to_their_subnets() {
        let args: Vec<String> = [
            "--subnet=10.0.0.0/8",
            "--subnet",
            "fd00::/64",
            "--gateway",
            "fd00::1",
            "--aux-address",
            "a=10.1.2.3",
            "--aux-address",
            "b=10.1.2.4",
            "n",
        ]
        .map(str::to_owned)
        .to_vec();
        let parsed = crate::flags::parse(CREATE.flags, true, &args).unwrap();
        let found = addresses(&parsed).unwrap();
        assert_eq!(found[1]["Gateway"], "fd00::1");
        assert_eq!(
            found[0]["AuxiliaryAddresses"],
            json!({"a": "10.1.2.3", "b": "10.1.2.4"})
        );
        assert!(subnet("10.0.0.0/33").is_err());
    }
}
