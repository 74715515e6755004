//! The `logs` command.

use futures::future::LocalBoxFuture;

use super::session::Demux;
use super::start::{text, truth};
use crate::client::{BodyStream, Request};
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::format::time;
use crate::output;

const FLAGS: &[Flag] = &[
    Flag::switch("details", "Show the log's extra attributes"),
    Flag::switch("follow", "Go on as new output comes").short('f'),
    Flag::text(
        "since",
        "Show logs from this time on (a date, a UNIX time, or an age like 42m)",
    ),
    Flag::text("tail", "Show only this many of the last lines")
        .short('n')
        .default("all"),
    Flag::switch("timestamps", "Show the time of every line").short('t'),
    Flag::text(
        "until",
        "Show logs before this time (a date, a UNIX time, or an age like 42m)",
    ),
];

/// The `logs` command.
pub const LOGS: Command = Command::new(
    "logs",
    "[OPTIONS] CONTAINER",
    "Show the output of a container",
    Arity::Exactly(1),
    run_logs,
)
.flags(&[FLAGS])
.spelled(&["bulkhead container logs", "bulkhead logs"]);

fn run_logs(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let details = ctx.client().inspect_container(&parsed.args[0]).await?;
        let moment = |flag: &str| -> CliResult<Option<String>> {
            parsed
                .given(flag)
                .map(|value| {
                    time::moment(value)
                        .map_err(|e| CliError::msg(format!("invalid value for \"{flag}\": {e}")))
                })
                .transpose()
        };
        let request = Request::get(&["containers", text(&details, "/Id"), "logs"])
            .query("stdout", "1")
            .query("stderr", "1")
            .query_some("since", moment("since")?)
            .query_some("until", moment("until")?)
            .query_if("timestamps", parsed.on("timestamps"))
            .query_if("details", parsed.on("details"))
            .query_if("follow", parsed.on("follow"))
            .query("tail", parsed.text("tail"));
        let mut body = BodyStream::new(ctx.client().send(request).await?);
        if truth(&details, "/Config/Tty") {
            while let Some(bytes) = body.next().await? {
                output::emit(&bytes)?;
            }
            return Ok(());
        }
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        let mut demux = Demux::default();
        while let Some(bytes) = body.next().await? {
            demux.feed(&bytes)?;
            demux.flush(Some(&mut out), Some(&mut err)).await?;
        }
        Ok(())
    })
}
