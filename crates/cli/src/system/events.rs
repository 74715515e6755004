//! The `events` command.

use futures::future::LocalBoxFuture;
use serde_json::Value as Json;

use super::filters;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::format::template::{MissingKey, Template, Value};
use crate::format::time;
use crate::output::emit_line;

const FLAGS: &[Flag] = &[
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Show only what matches (NAME=VALUE)",
    )
    .short('f')
    .check(filters::check),
    Flag::text("format", "How to print: 'json', or a Go template"),
    Flag::text("since", "Begin with what happened from this time on"),
    Flag::text("until", "End at this time"),
];

/// The `events` command.
pub const EVENTS: Command = Command::new(
    "events",
    "[OPTIONS]",
    "Show what happens in the engine, as it happens",
    Arity::None,
    run_events,
)
.flags(&[FLAGS])
.spelled(&["bulkhead system events", "bulkhead events"]);

/// An event on a line.
fn line(event: &Json) -> String {
    let text = |pointer: &str| {
        event
            .pointer(pointer)
            .and_then(Json::as_str)
            .unwrap_or_default()
    };
    let number = |key: &str| event.get(key).and_then(Json::as_i64).unwrap_or_default();
    let nanoseconds = match number("timeNano") {
        0 => i128::from(number("time")) * 1_000_000_000,
        nanoseconds => i128::from(nanoseconds),
    };
    let mut out = String::new();
    if nanoseconds != 0 {
        out = format!("{} ", time::event(nanoseconds));
    }
    out.push_str(&format!(
        "{} {} {}",
        text("/Type"),
        text("/Action"),
        text("/Actor/ID")
    ));
    let attributes = event.pointer("/Actor/Attributes").and_then(Json::as_object);
    if let Some(attributes) = attributes.filter(|a| !a.is_empty()) {
        let mut pairs: Vec<(&String, &str)> = attributes
            .iter()
            .map(|(k, v)| (k, v.as_str().unwrap_or_default()))
            .collect();
        pairs.sort();
        let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        out.push_str(&format!(" ({})", pairs.join(", ")));
    }
    out
}

fn run_events(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let wrong = |error: String| CliError::Status {
            message: format!("Error parsing format: {error}"),
            code: 64,
        };
        let template = match parsed.text("format") {
            "" => None,
            "json" => Some(Template::parse("{{json .}}").map_err(|e| wrong(e.to_string()))?),
            text => Some(Template::parse(text).map_err(|e| wrong(e.to_string()))?),
        };
        let moment = |flag: &str| -> CliResult<Option<String>> {
            parsed
                .given(flag)
                .map(|v| time::moment(v).map_err(CliError::msg))
                .transpose()
        };
        let request = Request::get(&["events"])
            .query_some("since", moment("since")?)
            .query_some("until", moment("until")?)
            .query_some("filters", filters::encode(parsed.list("filter")));
        let mut events = ctx.client().stream(request).await?;
        while let Some(event) = events.next::<Json>().await? {
            match &template {
                None => emit_line(line(&event))?,
                Some(template) => {
                    let text = template
                        .render(&Value::from_api(&event), MissingKey::NoValue)
                        .map_err(|e| CliError::msg(e.to_string()))?;
                    emit_line(text)?;
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let event = serde_json::json!({
            "Type": "container", "Action": "start", "timeNano": 1_136_073_600_000_000_001i64,
            "Actor": {"ID": "c0ffee", "Attributes": {"name": "one", "image": "busybox"}},
        });
        let line = line(&event);
        assert!(line.contains(":00.000000001"), "{line}");
        assert!(
            line.ends_with(" container start c0ffee (image=busybox, name=one)"),
            "{line}"
        );
    }
}
