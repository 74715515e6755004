//! The `version` command.

use futures::future::LocalBoxFuture;
use serde_json::{Value as Json, json};

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::format::tabs::Tabs;
use crate::format::template::{MissingKey, Template, Value};
use crate::output::emit;

const FLAGS: &[Flag] = &[Flag::text("format", super::inspect::FORMAT_HELP).short('f')];

/// The `version` command.
pub const VERSION: Command = Command::new(
    "version",
    "[OPTIONS]",
    "Show the versions of client and engine",
    Arity::None,
    run_version,
)
.flags(&[FLAGS])
.common();

/// The API version that this client is written for.
pub const API_VERSION: &str = "1.50";

/// Go's name for the processor that this runs on.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn client() -> Json {
    json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API_VERSION,
        "DefaultAPIVersion": API_VERSION,
        "GitCommit": "",
        "GoVersion": "",
        "Os": std::env::consts::OS,
        "Arch": architecture(),
        "BuildTime": "",
        "Context": "default",
    })
}

/// `2025-05-30T12:07:14.000000000+00:00` as `Fri May 30 12:07:14 2025`.
fn build_time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%a %b %e %H:%M:%S %Y").to_string(),
        Err(_) => text.to_owned(),
    }
}

fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn pretty(server: Option<&Json>) -> String {
    let client = client();
    let mut out = format!(
        "Client:\n Version:\t{}\n API version:\t{}\n OS/Arch:\t{}/{}\n Context:\t{}",
        text(&client, "Version"),
        text(&client, "ApiVersion"),
        text(&client, "Os"),
        text(&client, "Arch"),
        text(&client, "Context"),
    );
    let Some(server) = server else {
        return out + "\n";
    };
    let platform = server
        .pointer("/Platform/Name")
        .and_then(Json::as_str)
        .unwrap_or_default();
    let gap = if platform.is_empty() { "" } else { " " };
    out.push_str(&format!("\n\nServer:{gap}{platform}"));
    let mut components = server
        .get("Components")
        .and_then(Json::as_array)
        .cloned()
        .unwrap_or_default();
    if !components.iter().any(|c| text(c, "Name") == "Engine") {
        let mut details = server.clone();
        details["Experimental"] = server
            .get("Experimental")
            .and_then(Json::as_bool)
            .unwrap_or_default()
            .to_string()
            .into();
        components.push(json!({
            "Name": "Engine", "Version": text(server, "Version"), "Details": details,
        }));
    }
    for component in &components {
        let name = text(component, "Name");
        out.push_str(&format!(
            "\n {name}:\n  Version:\t{}",
            text(component, "Version")
        ));
        let details = component.get("Details").cloned().unwrap_or_default();
        if name == "Engine" {
            let of = |key: &str| text(&details, key).to_owned();
            out.push_str(&format!(
                "\n  API version:\t{} (minimum version {})",
                of("ApiVersion"),
                of("MinAPIVersion")
            ));
            for (title, value) in [
                ("Go version", of("GoVersion")),
                ("Git commit", of("GitCommit")),
                ("Built", build_time(&of("BuildTime"))),
            ] {
                if !value.is_empty() {
                    out.push_str(&format!("\n  {title}:\t{value}"));
                }
            }
            out.push_str(&format!(
                "\n  OS/Arch:\t{}/{}\n  Experimental:\t{}",
                of("Os"),
                of("Arch"),
                of("Experimental")
            ));
            continue;
        }
        if let Some(details) = details.as_object() {
            let mut keys: Vec<&String> = details.keys().collect();
            keys.sort();
            for key in keys {
                let value = details[key].as_str().unwrap_or_default();
                out.push_str(&format!("\n  {key}:\t{value}"));
            }
        }
    }
    out + "\n"
}

fn run_version(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let template = match parsed.text("format") {
            "" => None,
            source => {
                let source = if source == "json" {
                    "{{json .}}"
                } else {
                    source
                };
                Some(Template::parse(source).map_err(|error| CliError::Status {
                    message: format!("template parsing error: {error}"),
                    code: 64,
                })?)
            }
        };
        let answer = ctx.client().json::<Json>(Request::get(&["version"])).await;
        let server = answer.as_ref().ok();
        match &template {
            None => emit(
                Tabs {
                    minimum: 20,
                    padding: 1,
                }
                .align(&pretty(server)),
            )?,
            Some(template) => {
                let data = json!({"Client": client(), "Server": server});
                match template.render(&Value::from_api(&data), MissingKey::NoValue) {
                    Ok(text) => emit(text + "\n")?,
                    Err(error) => {
                        emit("\n")?;
                        // That the daemon is out of reach is the reason, if it is.
                        answer?;
                        return Err(CliError::msg(error.to_string()));
                    }
                }
            }
        }
        answer?;
        Ok(())
    })
}
