//! The `ps` command.

use std::collections::{BTreeMap, HashMap};

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::Value;

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed, quote};
use crate::format::template::{MissingKey, Template, TemplateError};
use crate::format::{Format, Printer, Row, ellipsis, short_id, time, units};
use crate::image::reference::Reference;
use crate::output::complain;
use crate::system::filters;

/// Help for `--format` of lists.
pub const FORMAT_HELP: &str = "How to print: 'table', 'table TEMPLATE', 'json', or a Go template";

const FLAGS: &[Flag] = &[
    Flag::switch("all", "Show stopped containers too").short('a'),
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Show only what matches (NAME=VALUE)",
    )
    .short('f')
    .check(filters::check),
    Flag::text("format", FORMAT_HELP),
    Flag::int(
        "last",
        "Show this many of the newest containers, in any state",
    )
    .short('n')
    .default("-1"),
    Flag::switch("latest", "Show the newest container, in any state").short('l'),
    Flag::switch("no-trunc", "Show everything in full"),
    Flag::switch("quiet", "Show IDs only").short('q'),
    Flag::switch("size", "Show how much the containers have written").short('s'),
];

/// The `ps` command.
pub const PS: Command = Command::new("ps", "[OPTIONS]", "List containers", Arity::None, run_ps)
    .flags(&[FLAGS])
    .common()
    .spelled(&[
        "bulkhead container ls",
        "bulkhead container list",
        "bulkhead container ps",
        "bulkhead ps",
    ]);

const TABLE: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t\
                     {{.Ports}}\t{{.Names}}";

/// Column titles of containers.
pub const TITLES: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];

/// What messages call a container's row.
pub const TYPE_NAME: &str = "*formatter.ContainerContext";

/// A container in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Summary {
    /// Its ID.
    pub id: String,
    names: Option<Vec<String>>,
    /// Its image as it was named.
    pub image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: i64,
    ports: Option<Vec<Port>>,
    /// `running`, `exited`…
    pub state: String,
    status: String,
    /// Bytes it has written.
    pub size_rw: i64,
    /// Bytes of its root filesystem.
    pub size_root_fs: i64,
    labels: Option<BTreeMap<String, String>>,
    mounts: Option<Vec<Mount>>,
    network_settings: Option<Networks>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Port {
    #[serde(rename = "IP")]
    ip: String,
    private_port: u16,
    public_port: u16,
    #[serde(rename = "Type")]
    protocol: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    name: String,
    source: String,
    driver: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Networks {
    networks: Option<serde_json::Map<String, Value>>,
}

/// Ports as lists show them: neighbouring ones together, mappings to other numbers last.
fn show_ports(ports: &[Port]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_by(|a, b| {
        (a.private_port, &a.ip, a.public_port, &a.protocol).cmp(&(
            b.private_port,
            &b.ip,
            b.public_port,
            &b.protocol,
        ))
    });
    let host = |ip: &str, port: &str| {
        if ip.contains(':') {
            format!("[{ip}]:{port}")
        } else {
            format!("{ip}:{port}")
        }
    };
    let group = |(ip, protocol): &(String, String), first: u16, last: u16| {
        let numbers = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        if ip.is_empty() {
            format!("{numbers}/{protocol}")
        } else {
            format!("{}->{numbers}/{protocol}", host(ip, &numbers))
        }
    };
    let mut order: Vec<(String, String)> = Vec::new();
    let mut open: HashMap<(String, String), (u16, u16)> = HashMap::new();
    let mut shown = Vec::new();
    let mut mapped = Vec::new();
    for port in &ports {
        if !port.ip.is_empty() && port.public_port != port.private_port {
            mapped.push(format!(
                "{}->{}/{}",
                host(&port.ip, &port.public_port.to_string()),
                port.private_port,
                port.protocol
            ));
            continue;
        }
        let key = (port.ip.clone(), port.protocol.clone());
        match open.get_mut(&key) {
            None => {
                open.insert(key.clone(), (port.private_port, port.private_port));
                order.push(key);
            }
            Some((_, last)) if last.checked_add(1) == Some(port.private_port) => {
                *last = port.private_port;
            }
            Some(range) => {
                shown.push(group(&key, range.0, range.1));
                *range = (port.private_port, port.private_port);
            }
        }
    }
    for key in &order {
        if let Some((first, last)) = open.get(key) {
            shown.push(group(key, *first, *last));
        }
    }
    shown.extend(mapped);
    shown.join(", ")
}

impl Summary {
    fn shown_names(&self, trunc: bool) -> String {
        let names: Vec<&str> = self
            .names
            .iter()
            .flatten()
            .map(|n| n.strip_prefix('/').unwrap_or(n))
            .collect();
        if trunc {
            // Names with a slash are links of other containers.
            if let Some(own) = names.iter().find(|n| !n.contains('/')) {
                return (*own).to_owned();
            }
        }
        names.join(",")
    }

    fn shown_image(&self, trunc: bool) -> String {
        if self.image.is_empty() {
            return "<no image>".to_owned();
        }
        if !trunc {
            return self.image.clone();
        }
        let short = short_id(&self.image_id);
        if !short.is_empty() && short == short_id(&self.image) {
            return short.to_owned();
        }
        match Reference::parse(&self.image) {
            Ok(reference) if !reference.is_id() => reference.without_digest().familiar(),
            _ => self.image.clone(),
        }
    }

    fn shown_size(&self) -> String {
        let own = units::size3(units::float(self.size_rw));
        if self.size_root_fs > 0 {
            format!(
                "{own} (virtual {})",
                units::size3(units::float(self.size_root_fs))
            )
        } else {
            own
        }
    }

    /// The row of a list that shows only what the container itself has written.
    pub fn own_size_row(&self) -> Row {
        let size = units::size3(units::float(self.size_rw));
        self.row(true).replace("Size", size)
    }

    /// The row for a list.
    pub fn row(&self, trunc: bool) -> Row {
        let labels = self.labels.clone().unwrap_or_default();
        let shown: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mounts: Vec<String> = self
            .mounts
            .iter()
            .flatten()
            .map(|m| {
                let name = if m.name.is_empty() {
                    &m.source
                } else {
                    &m.name
                };
                if trunc {
                    ellipsis(name, 15)
                } else {
                    name.clone()
                }
            })
            .collect();
        let local = self
            .mounts
            .iter()
            .flatten()
            .filter(|m| m.driver == "local")
            .count();
        let networks: Vec<&str> = self
            .network_settings
            .iter()
            .flat_map(|n| n.networks.iter())
            .flat_map(|n| n.keys().map(String::as_str))
            .collect();
        let command = if trunc {
            ellipsis(&self.command, 20)
        } else {
            self.command.clone()
        };
        Row::default()
            .text("ID", if trunc { short_id(&self.id) } else { &self.id })
            .text("Names", self.shown_names(trunc))
            .text("Image", self.shown_image(trunc))
            .text("Command", quote(&command))
            .text("CreatedAt", time::local(self.created))
            .text("RunningFor", time::ago(self.created))
            .text(
                "Ports",
                show_ports(self.ports.as_deref().unwrap_or_default()),
            )
            .text("State", &self.state)
            .text("Status", &self.status)
            .text("Size", self.shown_size())
            .text("Labels", shown.join(","))
            .text("Mounts", mounts.join(","))
            .text("LocalVolumes", local.to_string())
            .text("Networks", networks.join(","))
            .value("Platform", crate::format::template::Value::Nil)
            .lookup("Label", labels)
    }
}

fn run_ps(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let quiet = parsed.on("quiet");
        let source = match parsed.text("format") {
            "" => ctx.config().ps_format,
            given => {
                if quiet {
                    complain(
                        "WARNING: Ignoring custom format, because both --format and --quiet \
                              are set.",
                    );
                }
                given.to_owned()
            }
        };
        let mut size = parsed.on("size");
        if !source.is_empty() {
            let template = Template::parse(&source).map_err(|error: TemplateError| {
                CliError::msg(format!("failed to parse template: {error}"))
            })?;
            let sample = crate::format::printer::sample(Summary::default().row(true), TYPE_NAME);
            template
                .render(&sample, MissingKey::NoValue)
                .map_err(|error| CliError::msg(format!("failed to execute template: {error}")))?;
            if !quiet && !size && !parsed.changed("size") {
                size = template.mentions("Size");
            }
        }
        let format = if quiet {
            Format::new("{{.ID}}")
        } else {
            let mut format = Format::choose(&source, TABLE);
            if size && (source.is_empty() || source == "table") {
                format.append("\t{{.Size}}");
            }
            format
        };
        let limit = match parsed.int("last") {
            -1 if parsed.on("latest") => 1,
            last => last,
        };
        let request = Request::get(&["containers", "json"])
            .query_if("all", parsed.on("all"))
            .query_some("limit", (limit > 0).then(|| limit.to_string()))
            .query_if("size", size)
            .query_some("filters", filters::encode(parsed.list("filter")));
        let containers: Vec<Summary> = ctx.client().json(request).await?;
        let trunc = !parsed.on("no-trunc");
        let printer = Printer::new(format, TITLES, TYPE_NAME)?;
        printer.print(containers.iter().map(|c| c.row(trunc)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, private: u16, public: u16) -> Port {
        Port {
            ip: ip.to_owned(),
            private_port: private,
            public_port: public,
            protocol: "tcp".to_owned(),
        }
    }

    #[test]
    fn ports() {
        assert_eq!(
            show_ports(&[port("", 81, 0), port("", 80, 0), port("", 90, 0)]),
            "80-81/tcp, 90/tcp"
        );
        assert_eq!(
            show_ports(&[port("0.0.0.0", 80, 8080)]),
            "0.0.0.0:8080->80/tcp"
        );
        assert_eq!(show_ports(&[port("::", 80, 80)]), "[::]:80->80/tcp");
    }

    #[test]
    fn a_row() {
        let summary: Summary = serde_json::from_value(serde_json::json!({
            "Id": "0123456789abcdef", "Names": ["/other/alias", "/one"], "Image": "busybox",
            "Command": "sh -c 'a long command line'", "Status": "Up 3 seconds", "Ports": null,
            "SizeRw": 5, "SizeRootFs": 1_980_000,
        }))
        .unwrap();
        let printer = Printer::new(
            Format::new("{{.ID}}|{{.Names}}|{{.Image}}|{{.Command}}|{{.Size}}"),
            TITLES,
            TYPE_NAME,
        )
        .unwrap();
        assert_eq!(
            printer.render([summary.row(true)]).unwrap(),
            "0123456789ab|one|busybox|\"sh -c 'a long comma…\"|5B (virtual 1.98MB)\n"
        );
    }
}
