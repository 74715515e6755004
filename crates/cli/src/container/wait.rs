//! Waiting for a container's exit code.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use crate::client::{ClientError, JsonStream, Request};
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult, EXIT_DAEMON, join};
use crate::flags::Parsed;
use crate::output::{complain, emit_line};

/// A wait that the daemon has registered; the exit code comes later.
pub struct Waiting(JsonStream);

impl Waiting {
    /// Asks the daemon to report the exit of `id`. When this returns the daemon has the
    /// request, so a start that follows cannot be missed. `condition` is the API's.
    pub async fn begin(ctx: &Ctx, id: &str, condition: &str) -> Result<Self, ClientError> {
        let request = Request::post(&["containers", id, "wait"])
            .query_some("condition", Some(condition).filter(|c| !c.is_empty()));
        Ok(Self(ctx.client().stream(request).await?))
    }

    /// The exit code.
    pub async fn code(mut self) -> CliResult<i32> {
        let answer: Option<Value> = self.0.next().await?;
        let Some(answer) = answer else {
            return Err(CliError::Client(ClientError::Body(
                "unexpected EOF".to_owned(),
            )));
        };
        let message = answer
            .pointer("/Error/Message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !message.is_empty() {
            return Err(CliError::msg(message));
        }
        let code = answer
            .get("StatusCode")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        Ok(i32::try_from(code).unwrap_or(i32::MAX))
    }

    /// The exit code, or 125 and a complaint if it cannot be had.
    pub async fn code_or_complain(self) -> i32 {
        match self.code().await {
            Ok(code) => code,
            Err(error) => {
                complain(format!("error waiting for container: {error}"));
                EXIT_DAEMON
            }
        }
    }
}

/// The `wait` command.
pub const WAIT: Command = Command::new(
    "wait",
    "CONTAINER [CONTAINER...]",
    "Wait until containers end, then print their exit codes",
    Arity::AtLeast(1),
    run_wait,
)
.spelled(&["bulkhead container wait", "bulkhead wait"]);

fn run_wait(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut errors = Vec::new();
        for name in &parsed.args {
            let code = match Waiting::begin(&ctx, name, "").await {
                Ok(waiting) => waiting.code().await,
                Err(error) => Err(error.into()),
            };
            match code {
                Ok(code) => emit_line(code)?,
                Err(error) => errors.push(error),
            }
        }
        join(errors)
    })
}
