//! `images` and `history`.

use futures::future::LocalBoxFuture;
use serde::Deserialize;

use super::reference::Reference;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::container::list::FORMAT_HELP;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::format::{Format, Printer, Row, ellipsis, short_id, time, units};
use crate::system::filters;

const FLAGS: &[Flag] = &[
    Flag::switch("all", "Show intermediate images too").short('a'),
    Flag::switch("digests", "Show digests"),
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
    Flag::switch("tree", "Not supported").hidden(),
];

/// The `images` command.
pub const IMAGES: Command = Command::new(
    "images",
    "[OPTIONS] [REPOSITORY[:TAG]]",
    "List images",
    Arity::AtMost(1),
    run_images,
)
.flags(&[FLAGS])
.common()
.spelled(&[
    "bulkhead image ls",
    "bulkhead image list",
    "bulkhead images",
]);

const TABLE: &str = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{if .CreatedSince }}\
                     {{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}";
const TABLE_DIGESTS: &str = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t\
                             {{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}";

/// Column titles of images.
pub const TITLES: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];

/// What messages call an image's row.
pub const TYPE_NAME: &str = "*formatter.imageContext";

/// An image in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Summary {
    id: String,
    repo_tags: Option<Vec<String>>,
    repo_digests: Option<Vec<String>>,
    created: i64,
    /// Bytes.
    pub size: i64,
    /// Bytes shared with other images, -1 if not known.
    pub shared_size: i64,
    /// Containers of the image, -1 if not known.
    pub containers: i64,
}

const NONE: &str = "<none>";

impl Summary {
    fn row(&self, repository: &str, tag: &str, digest: &str, trunc: bool) -> Row {
        let size = units::float(self.size);
        let known = |n: i64, text: String| if n == -1 { "N/A".to_owned() } else { text };
        let unique = if self.size == -1 {
            -1
        } else {
            self.shared_size
        };
        Row::default()
            .text("ID", if trunc { short_id(&self.id) } else { &self.id })
            .text("Repository", repository)
            .text("Tag", tag)
            .text("Digest", digest)
            .text("CreatedSince", time::ago(self.created))
            .text("CreatedAt", time::local(self.created))
            .text("Size", units::size3(size))
            .text("VirtualSize", units::size4(size))
            .text(
                "Containers",
                known(self.containers, self.containers.to_string()),
            )
            .text(
                "SharedSize",
                known(
                    self.shared_size,
                    units::size4(units::float(self.shared_size)),
                ),
            )
            .text(
                "UniqueSize",
                known(
                    unique,
                    units::size4(units::float(self.size - self.shared_size)),
                ),
            )
    }

    /// The row of the image's first name.
    pub fn first_row(&self, trunc: bool) -> Row {
        let first = self.repo_tags.iter().flatten().next();
        match first.and_then(|t| Reference::parse(t).ok()) {
            Some(reference) => {
                let tag = reference.tag().unwrap_or(NONE);
                self.row(&reference.familiar_name(), tag, NONE, trunc)
            }
            None => self.row(NONE, NONE, NONE, trunc),
        }
    }

    /// A row for every name. Names come in the daemon's order.
    fn rows(&self, digests: bool, digest_column: bool, trunc: bool) -> Vec<Row> {
        let parse = |texts: &Option<Vec<String>>| -> Vec<Reference> {
            texts
                .iter()
                .flatten()
                .filter_map(|t| Reference::parse(t).ok())
                .collect()
        };
        let tags: Vec<Reference> = parse(&self.repo_tags);
        let by_digest = parse(&self.repo_digests);
        let mut rows = Vec::new();
        for tagged in &tags {
            let (Some(tag), name) = (tagged.tag(), tagged.familiar_name()) else {
                continue;
            };
            let own: Vec<&str> = by_digest
                .iter()
                .filter(|d| digest_column && d.familiar_name() == name)
                .filter_map(Reference::digest)
                .collect();
            if own.is_empty() {
                rows.push(self.row(&name, tag, NONE, trunc));
            }
            for digest in own {
                rows.push(self.row(&name, tag, digest, trunc));
            }
        }
        let mut untagged: Vec<String> = Vec::new();
        for by_digest in &by_digest {
            let name = by_digest.familiar_name();
            if tags.iter().any(|t| t.familiar_name() == name) {
                continue;
            }
            let digest = by_digest.digest().unwrap_or(NONE);
            if digests {
                rows.push(self.row(&name, NONE, digest, trunc));
            } else if !untagged.contains(&name) {
                rows.push(self.row(&name, NONE, "", trunc));
                untagged.push(name);
            }
        }
        if rows.is_empty() {
            rows.push(self.row(NONE, NONE, NONE, trunc));
        }
        rows
    }
}

fn run_images(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        if parsed.on("tree") {
            return Err(CliError::msg("--tree is not supported"));
        }
        let quiet = parsed.on("quiet");
        let digests = parsed.on("digests");
        let source = match parsed.text("format") {
            "" => ctx.config().images_format,
            given => given.to_owned(),
        };
        let format = if quiet && (source.is_empty() || source == "table") {
            Format::new("{{.ID}}")
        } else {
            let own = source.is_empty() || source == "table";
            let default = if digests { TABLE_DIGESTS } else { TABLE };
            let mut format = Format::choose(&source, default);
            if !own && digests && format.is_table() && !format.contains("{{.Digest}}") {
                format.append("\t{{.Digest}}");
            }
            format
        };
        let mut filter = parsed.list("filter").to_vec();
        if let Some(name) = parsed.args.first() {
            filter.push(format!("reference={name}"));
        }
        let request = Request::get(&["images", "json"])
            .query_if("all", parsed.on("all"))
            .query_some("filters", filters::encode(&filter));
        let images: Vec<Summary> = ctx.client().json(request).await?;
        let digest_column = digests || format.contains("{{.Digest}}");
        let trunc = !parsed.on("no-trunc");
        let printer = Printer::new(format, TITLES, TYPE_NAME)?;
        printer.print(
            images
                .iter()
                .flat_map(|i| i.rows(digests, digest_column, trunc)),
        )
    })
}

const HISTORY_FLAGS: &[Flag] = &[
    Flag::text("format", FORMAT_HELP),
    Flag::switch("human", "Show sizes and times for people")
        .short('H')
        .default("true"),
    Flag::switch("no-trunc", "Show everything in full"),
    Flag::text("platform", "Show this platform of the image"),
    Flag::switch("quiet", "Show IDs only").short('q'),
];

/// The `history` command.
pub const HISTORY: Command = Command::new(
    "history",
    "[OPTIONS] IMAGE",
    "Show how an image was made",
    Arity::Exactly(1),
    run_history,
)
.flags(&[HISTORY_FLAGS])
.spelled(&["bulkhead image history", "bulkhead history"]);

const HISTORY_TABLE: &str =
    "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const HISTORY_RAW_TABLE: &str =
    "table {{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

const HISTORY_TITLES: &[(&str, &str)] = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Step {
    id: String,
    created: i64,
    created_by: String,
    size: i64,
    comment: String,
}

fn run_history(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let human = parsed.on("human");
        let trunc = !parsed.on("no-trunc");
        let format = match parsed.text("format") {
            "" | "table" if parsed.on("quiet") => Format::new("{{.ID}}"),
            source => Format::choose(
                source,
                if human {
                    HISTORY_TABLE
                } else {
                    HISTORY_RAW_TABLE
                },
            ),
        };
        let printer = Printer::new(format, HISTORY_TITLES, "*image.historyContext")?;
        let request = Request::get(&["images", &parsed.args[0], "history"]);
        let steps: Vec<Step> = ctx.client().json(request).await?;
        printer.print(steps.iter().map(|step| {
            let command = step.created_by.replace('\t', " ");
            Row::default()
                .text("ID", if trunc { short_id(&step.id) } else { &step.id })
                .text(
                    "CreatedSince",
                    if human {
                        time::ago(step.created)
                    } else {
                        time::rfc3339_local(step.created)
                    },
                )
                .text("CreatedAt", time::rfc3339_local(step.created))
                .text(
                    "CreatedBy",
                    if trunc {
                        ellipsis(&command, 45)
                    } else {
                        command
                    },
                )
                .text(
                    "Size",
                    if human {
                        units::size3(units::float(step.size))
                    } else {
                        step.size.to_string()
                    },
                )
                .text("Comment", &step.comment)
        }))
    })
}
