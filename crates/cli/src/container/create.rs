//! Creating a container: the `create` command, and what `run` shares with it.

use std::fs::{File, OpenOptions};
use std::io::Write;

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::Value;

use super::files::go_error;
use super::options::{GENERAL, NETWORK, RESOURCES, SECURITY, STORAGE};
use super::spec::{self, Spec};
use crate::client::{ClientError, Request};
use crate::command::{Arity, Command, Ctx, PROGRAM};
use crate::error::{CliError, CliResult, EXIT_DAEMON};
use crate::flags::{Parsed, quote};
use crate::image::pull;
use crate::image::reference::Reference;
use crate::output::{complain, emit_line};

/// The `create` command.
pub const CREATE: Command = Command::new(
    "create",
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    "Create a container without starting it",
    Arity::AtLeast(1),
    run_create,
)
.flags(&[GENERAL, RESOURCES, SECURITY, NETWORK, STORAGE])
.options_first()
.spelled(&["bulkhead container create", "bulkhead create"]);

/// A message with the pointer to help that Docker adds, and its exit code.
pub fn with_help(command: &str, message: impl std::fmt::Display, code: i32) -> CliError {
    CliError::Status {
        message: format!(
            "{PROGRAM}: {message}\n\nRun '{PROGRAM} {command} --help' for more information"
        ),
        code,
    }
}

/// Checks what both commands check first.
pub fn spec_of(flags: &Parsed, command: &str, detached: bool) -> CliResult<Spec> {
    let refuse = |message: String| with_help(command, message, EXIT_DAEMON);
    let pull = flags.text("pull");
    if !["always", "missing", "never", ""].contains(&pull) {
        return Err(refuse(format!(
            "invalid pull option: '{pull}': must be one of \"always\", \"missing\" or \"never\""
        )));
    }
    if flags.on("use-api-socket") {
        return Err(refuse(
            "--use-api-socket is not supported: bind-mount the socket with \
                           --volume"
                .to_owned(),
        ));
    }
    spec::build(flags, detached).map_err(refuse)
}

/// The file that `--cidfile` names, removed again unless an ID is written.
struct IdFile<'a> {
    path: &'a str,
    file: Option<File>,
}

impl<'a> IdFile<'a> {
    fn open(path: &'a str) -> CliResult<Self> {
        if path.is_empty() {
            return Ok(Self { path, file: None });
        }
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Self {
                path,
                file: Some(file),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(CliError::msg(format!(
                "container ID file found, make sure the other container isn't running or \
                     delete {path}"
            ))),
            Err(e) => Err(CliError::msg(format!(
                "failed to create the container ID file: {}",
                go_error(path, "open", &e)
            ))),
        }
    }

    fn keep(mut self, id: &str) -> CliResult {
        match self.file.take() {
            Some(mut file) => file
                .write_all(id.as_bytes())
                .map_err(|e| CliError::io("failed to write the container ID to the file", e)),
            None => Ok(()),
        }
    }
}

impl Drop for IdFile<'_> {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// Creates the container, pulling its image as `--pull` says; returns its ID.
pub async fn create(ctx: &Ctx, flags: &Parsed, spec: Spec) -> CliResult<String> {
    let id_file = IdFile::open(flags.text("cidfile"))?;
    let reference = Reference::parse(&spec.image).map_err(|e| CliError::msg(e.to_string()))?;
    let quiet = flags.on("quiet");
    let platform = flags.given("platform");
    let policy = flags.text("pull");
    if policy == "always" {
        pull::for_container(ctx, &reference, platform, quiet).await?;
    }
    let body = Value::Object(spec.body);
    let request = || {
        Request::post(&["containers", "create"])
            .query_some("name", flags.given("name"))
            .query_some("platform", platform)
            .json(&body)
    };
    let mut answer = ctx.client().json::<Created>(request()).await;
    let missing = matches!(&answer, Err(ClientError::Api { status: 404, .. }));
    if missing && matches!(policy, "missing" | "") && !reference.is_id() {
        if !quiet {
            complain(format!(
                "Unable to find image '{}' locally",
                reference.with_default_tag().familiar()
            ));
        }
        pull::for_container(ctx, &reference, platform, quiet).await?;
        answer = ctx.client().json::<Created>(request()).await;
    }
    let created = answer?;
    for warning in created.warnings.unwrap_or_default() {
        complain(format!("WARNING: {warning}"));
    }
    id_file.keep(&created.id)?;
    if created.id.is_empty() {
        return Err(CliError::msg(format!(
            "the daemon created {} without an ID",
            quote(&spec.image)
        )));
    }
    Ok(created.id)
}

fn run_create(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let spec = spec_of(&parsed, "create", false)?;
        let id = create(&ctx, &parsed, spec).await?;
        emit_line(id)
    })
}
