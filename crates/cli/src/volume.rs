//! Commands about volumes.

use std::collections::BTreeMap;

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::container::list::FORMAT_HELP;
use crate::container::prune::{Pruned, ask, print_total};
use crate::container::spec::to_map;
use crate::container::values;
use crate::error::{CliError, CliResult, join};
use crate::flags::{Flag, Kind, Parsed};
use crate::format::{Format, Printer, Row, units};
use crate::output::emit_line;
use crate::system::filters;
use crate::system::inspect::{FORMAT_HELP as INSPECT_HELP, Inspector};

/// The `volume` group.
pub const VOLUME: Command = Command::group(
    "volume",
    "Manage volumes",
    &[CREATE, INSPECT, LS, PRUNE, RM],
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
    Flag::switch("quiet", "Show names only").short('q'),
];

const LS: Command = Command::new("ls", "[OPTIONS]", "List volumes", Arity::None, run_ls)
    .flags(&[LS_FLAGS])
    .named("ls", &["list"]);

/// Column titles of volumes.
pub const TITLES: &[(&str, &str)] = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Group", "GROUP"),
    ("Availability", "AVAILABILITY"),
    ("Status", "STATUS"),
];

/// What messages call a volume's row.
pub const TYPE_NAME: &str = "*formatter.volumeContext";

/// A volume in a list.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    name: String,
    driver: String,
    scope: String,
    mountpoint: String,
    labels: Option<BTreeMap<String, String>>,
    usage_data: Option<Usage>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Usage {
    size: i64,
    ref_count: i64,
}

impl Volume {
    /// Bytes; -1 if not known.
    pub fn size(&self) -> i64 {
        self.usage_data.as_ref().map_or(-1, |u| u.size)
    }

    /// Containers that use it.
    pub fn links(&self) -> i64 {
        self.usage_data.as_ref().map_or(0, |u| u.ref_count)
    }

    /// The row for a list.
    pub fn row(&self) -> Row {
        let labels = self.labels.clone().unwrap_or_default();
        let shown: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let (links, size) = match &self.usage_data {
            Some(usage) => (
                usage.ref_count.to_string(),
                units::size4(units::float(usage.size)),
            ),
            None => ("N/A".to_owned(), "N/A".to_owned()),
        };
        Row::default()
            .text("Name", &self.name)
            .text("Driver", &self.driver)
            .text("Scope", &self.scope)
            .text("Mountpoint", &self.mountpoint)
            .text("Labels", shown.join(","))
            .text("Links", links)
            .text("Size", size)
            .text("Group", "N/A")
            .text("Availability", "N/A")
            .text("Status", "N/A")
            .lookup("Label", labels)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Volumes {
    volumes: Option<Vec<Volume>>,
}

fn run_ls(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let table = if parsed.on("quiet") {
            "{{.Name}}"
        } else {
            "table {{.Driver}}\t{{.Name}}"
        };
        let format = Format::choose(parsed.text("format"), table);
        let printer = Printer::new(format, TITLES, TYPE_NAME)?;
        let request = Request::get(&["volumes"])
            .query_some("filters", filters::encode(parsed.list("filter")));
        let answer: Volumes = ctx.client().json(request).await?;
        let mut volumes = answer.volumes.unwrap_or_default();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        printer.print(volumes.iter().map(Volume::row))
    })
}

const CREATE_FLAGS: &[Flag] = &[
    Flag::text("driver", "Driver of the volume")
        .short('d')
        .default("local"),
    Flag::list("label", "Set a label").check(values::label),
    Flag::text("name", "").hidden(),
    Flag::list("opt", "Option of the driver").short('o'),
];

const CREATE: Command = Command::new(
    "create",
    "[OPTIONS] [VOLUME]",
    "Create a volume",
    Arity::AtMost(1),
    run_create,
)
.flags(&[CREATE_FLAGS]);

fn run_create(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let name = match (parsed.args.first(), parsed.given("name")) {
            (Some(_), Some(_)) => {
                return Err(CliError::msg(
                    "conflicting options: cannot specify a volume-name through both --name and \
                     as a positional arg",
                ));
            }
            (Some(name), None) => name,
            (None, name) => name.unwrap_or_default(),
        };
        let body = json!({
            "Name": name,
            "Driver": parsed.text("driver"),
            "DriverOpts": to_map(parsed.list("opt")),
            "Labels": to_map(parsed.list("label")),
        });
        let volume: Volume = ctx
            .client()
            .json(Request::post(&["volumes", "create"]).json(&body))
            .await?;
        emit_line(volume.name)
    })
}

const RM_FLAGS: &[Flag] =
    &[Flag::switch("force", "A volume that does not exist is no failure").short('f')];

const RM: Command = Command::new(
    "rm",
    "[OPTIONS] VOLUME [VOLUME...]",
    "Remove volumes",
    Arity::AtLeast(1),
    run_rm,
)
.flags(&[RM_FLAGS])
.named("rm", &["remove"]);

fn run_rm(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut errors = Vec::new();
        for name in &parsed.args {
            let request = Request::delete(&["volumes", name]).query_if("force", parsed.on("force"));
            match ctx.client().done(request).await {
                Ok(()) => emit_line(name)?,
                Err(error) => errors.push(error.into()),
            }
        }
        join(errors)
    })
}

const INSPECT_FLAGS: &[Flag] = &[Flag::text("format", INSPECT_HELP).short('f')];

const INSPECT: Command = Command::new(
    "inspect",
    "[OPTIONS] VOLUME [VOLUME...]",
    "Show all details of volumes",
    Arity::AtLeast(1),
    run_inspect,
)
.flags(&[INSPECT_FLAGS]);

fn run_inspect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut inspector = Inspector::new(parsed.text("format"))?;
        for name in &parsed.args {
            let request = Request::get(&["volumes", name]);
            inspector.add(ctx.client().json(request).await.map_err(CliError::from));
        }
        inspector.finish()
    })
}

const PRUNE_FLAGS: &[Flag] = &[
    Flag::switch("all", "Remove volumes with names too").short('a'),
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Remove only what matches (NAME=VALUE)",
    )
    .check(filters::check),
    Flag::switch("force", "Do not ask").short('f'),
];

const PRUNE: Command = Command::new(
    "prune",
    "[OPTIONS]",
    "Remove unused volumes",
    Arity::None,
    run_prune,
)
.flags(&[PRUNE_FLAGS]);

/// Prunes volumes: those without names, with `all` every unused one.
pub async fn prune(ctx: &Ctx, filter: &[String], all: bool) -> CliResult<Pruned> {
    let mut filter = filter.to_vec();
    if all {
        filter.push("all=1".to_owned());
    }
    let request =
        Request::post(&["volumes", "prune"]).query_some("filters", filters::encode(&filter));
    let answer: Value = ctx.client().json(request).await?;
    Ok(Pruned::from_answer(&answer, "VolumesDeleted"))
}

fn run_prune(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let all = parsed.on("all");
        let warning = if all {
            "WARNING! This will remove all local volumes not used by at least one container."
        } else {
            "WARNING! This will remove anonymous local volumes not used by at least one container."
        };
        ask(&parsed, warning)?;
        let pruned = prune(&ctx, parsed.list("filter"), all).await?;
        pruned.print("Deleted Volumes")?;
        print_total(pruned.space)
    })
}
