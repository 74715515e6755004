//! `inspect`, and the printing that every inspect command shares.

use futures::future::LocalBoxFuture;
use serde::Serialize;
use serde_json::Value as Json;

use crate::client::{ClientError, Request};
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed, quote};
use crate::format::template::{MissingKey, Template, Value};
use crate::output::emit;

/// Help for `--format` of details.
pub const FORMAT_HELP: &str = "How to print: 'json', or a Go template";

const FLAGS: &[Flag] = &[
    Flag::text("format", FORMAT_HELP).short('f'),
    Flag::switch("size", "Measure the files too, of containers").short('s'),
    Flag::text("type", "Look only for this kind of thing"),
];

/// The `inspect` command.
pub const INSPECT: Command = Command::new(
    "inspect",
    "[OPTIONS] NAME|ID [NAME|ID...]",
    "Show all details of containers, images, networks and volumes",
    Arity::AtLeast(1),
    run_inspect,
)
.flags(&[FLAGS]);

enum Style {
    Indented,
    Compact,
    Template(Template),
}

/// Collects details and prints them all at once.
pub struct Inspector {
    style: Style,
    text: String,
    found: Vec<Json>,
    errors: Vec<CliError>,
}

/// JSON with four spaces a level.
fn indented(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

impl Inspector {
    /// Prints by `format`: empty, `json`, or a template.
    pub fn new(format: &str) -> CliResult<Self> {
        let style = match format {
            "" => Style::Indented,
            "json" => Style::Compact,
            template => {
                Style::Template(Template::parse(template).map_err(|error| CliError::Status {
                    message: format!("template parsing error: {error}"),
                    code: 64,
                })?)
            }
        };
        Ok(Self {
            style,
            text: String::new(),
            found: Vec::new(),
            errors: Vec::new(),
        })
    }

    /// Takes what a request gave.
    pub fn add(&mut self, details: CliResult<Json>) {
        let details = match details {
            Ok(details) => details,
            Err(error) => return self.errors.push(error),
        };
        let Style::Template(template) = &self.style else {
            return self.found.push(details);
        };
        match template.render(&Value::from_api(&details), MissingKey::Error) {
            Ok(text) => {
                self.text.push_str(&text);
                self.text.push('\n');
            }
            Err(error) => {
                self.errors
                    .push(CliError::msg(format!("template parsing error: {error}")));
            }
        }
    }

    /// Prints everything; failures are this call's.
    pub fn finish(self) -> CliResult {
        let broken = |e: serde_json::Error| CliError::msg(e.to_string());
        emit(match self.style {
            Style::Template(_) if self.text.is_empty() => "\n".to_owned(),
            Style::Template(_) => self.text,
            Style::Indented => indented(&self.found).map_err(broken)? + "\n",
            Style::Compact => serde_json::to_string(&self.found).map_err(broken)? + "\n",
        })?;
        crate::error::join(self.errors)
    }
}

/// The kinds of things, in the order in which a name is looked up.
const KINDS: &[(&str, &[&str])] = &[
    ("container", &["containers", "", "json"]),
    ("image", &["images", "", "json"]),
    ("network", &["networks", ""]),
    ("volume", &["volumes", ""]),
    ("service", &["services", ""]),
    ("task", &["tasks", ""]),
    ("node", &["nodes", ""]),
    ("plugin", &["plugins", "", "json"]),
    ("secret", &["secrets", ""]),
    ("config", &["configs", ""]),
];

/// The kinds that only clusters have; without a cluster they exist nowhere.
const CLUSTER: &[&str] = &["service", "task", "node", "secret", "config"];

async fn find(ctx: &Ctx, name: &str, kind: &str, size: bool) -> CliResult<Json> {
    for (of, path) in KINDS {
        if !kind.is_empty() && kind != *of {
            continue;
        }
        let path: Vec<&str> = path
            .iter()
            .map(|p| if p.is_empty() { name } else { p })
            .collect();
        let request = Request::get(&path).query_if("size", size && *of == "container");
        match ctx.client().json(request).await {
            Ok(details) => return Ok(details),
            Err(ClientError::Api { status: 404, .. }) if kind.is_empty() => {}
            Err(ClientError::Api {
                status: 400..=599, ..
            }) if kind.is_empty() && (CLUSTER.contains(of) || *of == "plugin") => {}
            // A name that cannot be an image's may be something else's.
            Err(ClientError::Api { status: 400, .. }) if kind.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        if kind.is_empty() && *of == "volume" {
            break;
        }
    }
    Err(CliError::msg(format!("Error: No such object: {name}")))
}

fn run_inspect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let kind = parsed.text("type");
        let known = || {
            let mut names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            format!("must be one of \"{}\"", names.join("\", \""))
        };
        if kind.is_empty() && parsed.changed("type") {
            return Err(CliError::msg(format!("type is empty: {}", known())));
        }
        if !kind.is_empty() && !KINDS.iter().any(|(name, _)| *name == kind) {
            return Err(CliError::msg(format!(
                "unknown type: {}: {}",
                quote(kind),
                known()
            )));
        }
        let mut inspector = Inspector::new(parsed.text("format"))?;
        for name in &parsed.args {
            let found = find(&ctx, name, kind, parsed.on("size")).await;
            if let Err(CliError::Client(error)) = &found
                && error.is_unreachable()
            {
                return found.map(drop);
            }
            inspector.add(found);
        }
        inspector.finish()
    })
}
