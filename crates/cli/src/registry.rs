//! Credentials for registries: `login`, `logout`, and what other commands send along.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Read, Write};
use std::process::{Command as Process, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::config;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::format::{Format, Printer, Row, ellipsis};
use crate::image::pull::AUTH;
use crate::output::{complain, emit, emit_line};
use crate::system::filters;

/// The key of the default registry in the configuration file.
const DEFAULT_SERVER: &str = "https://index.docker.io/v1/";

/// The header of someone without credentials: an empty object.
pub const EMPTY_HEADER: &str = "e30=";

fn server_key(domain: &str) -> &str {
    if matches!(
        domain,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    ) {
        DEFAULT_SERVER
    } else {
        domain
    }
}

struct Credentials {
    user: String,
    password: String,
    token: String,
}

impl Credentials {
    fn to_json(&self, server: &str) -> Value {
        json!({
            "username": self.user, "password": self.password, "serveraddress": server,
            "identitytoken": self.token,
        })
    }
}

/// Runs the program that keeps credentials.
fn helper(suffix: &str, action: &str, input: &str) -> std::io::Result<(bool, String)> {
    let mut child = Process::new(format!("docker-credential-{suffix}"))
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It has ended without reading: its status and its words say why.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let output = child.wait_with_output()?;
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}

fn store_for(config: &config::ConfigFile, server: &str) -> Option<String> {
    let named = config
        .cred_helpers
        .get(server)
        .unwrap_or(&config.creds_store);
    Some(named.clone()).filter(|n| !n.is_empty())
}

fn find(ctx: &Ctx, server: &str) -> CliResult<Option<Credentials>> {
    let config = ctx.config();
    if let Some(store) = store_for(&config, server) {
        let (ok, answer) = helper(&store, "get", server).map_err(|e| {
            CliError::io(
                format!("error getting credentials: docker-credential-{store}"),
                e,
            )
        })?;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let text = |key| {
            answer
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (user, secret) = (text("Username"), text("Secret"));
        return Ok(match user.as_str() {
            _ if !ok => None,
            "<token>" => Some(Credentials {
                user: String::new(),
                password: String::new(),
                token: secret,
            }),
            _ => Some(Credentials {
                user,
                password: secret,
                token: String::new(),
            }),
        });
    }
    Ok(config.auths.get(server).map(|entry| {
        let decoded = STANDARD.decode(&entry.auth).unwrap_or_default();
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        let (user, password) = decoded.split_once(':').unwrap_or((&decoded, ""));
        Credentials {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
            token: entry.identitytoken.clone(),
        }
    }))
}

/// The header with the credentials for a registry, if there are any.
pub fn header(ctx: &Ctx, domain: &str) -> CliResult<Option<String>> {
    let server = server_key(domain);
    Ok(find(ctx, server)?.map(|found| URL_SAFE.encode(found.to_json(server).to_string())))
}

/// The header with the credentials for all registries that some are kept for.
pub fn all(ctx: &Ctx) -> CliResult<Option<String>> {
    let config = ctx.config();
    let mut servers: BTreeSet<String> = config.auths.keys().cloned().collect();
    servers.extend(config.cred_helpers.keys().cloned());
    if !config.creds_store.is_empty() {
        let store = &config.creds_store;
        let (ok, answer) = helper(store, "list", "").map_err(|e| {
            CliError::io(
                format!("error getting credentials: docker-credential-{store}"),
                e,
            )
        })?;
        if ok {
            let listed: BTreeMap<String, Value> = serde_json::from_str(&answer).unwrap_or_default();
            servers.extend(listed.into_keys());
        }
    }
    let mut all = serde_json::Map::new();
    for server in servers {
        if let Some(found) = find(ctx, &server)? {
            let value = found.to_json(&server);
            all.insert(server, value);
        }
    }
    Ok((!all.is_empty()).then(|| URL_SAFE.encode(Value::Object(all).to_string())))
}

const LOGIN_FLAGS: &[Flag] = &[
    Flag::text("password", "Password or token").short('p'),
    Flag::switch("password-stdin", "Read the password from standard input"),
    Flag::text("username", "User name").short('u'),
];

/// The `login` command.
pub const LOGIN: Command = Command::new(
    "login",
    "[OPTIONS] [SERVER]",
    "Give and keep the credentials for a registry",
    Arity::AtMost(1),
    run_login,
)
.flags(&[LOGIN_FLAGS])
.common();

fn ask(prompt: &str) -> CliResult<String> {
    emit(prompt)?;
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|e| CliError::io("read /dev/stdin", e))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn password(parsed: &Parsed, user: &str) -> CliResult<String> {
    if parsed.on("password-stdin") {
        if parsed.given("password").is_some() {
            return Err(CliError::msg(
                "--password and --password-stdin are mutually exclusive",
            ));
        }
        if user.is_empty() {
            return Err(CliError::msg(
                "Must provide --username with --password-stdin",
            ));
        }
        let mut secret = String::new();
        std::io::stdin()
            .take(1 << 20)
            .read_to_string(&mut secret)
            .map_err(|e| CliError::io("read /dev/stdin", e))?;
        return Ok(secret.trim_end_matches(['\r', '\n']).to_owned());
    }
    if let Some(given) = parsed.given("password") {
        complain("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        return Ok(given.to_owned());
    }
    if !std::io::stdin().is_terminal() {
        return Err(CliError::msg(
            "Error: Cannot perform an interactive login from a non TTY device",
        ));
    }
    let hidden =
        crate::terminal::NoEcho::enter().map_err(|e| CliError::io("hide what is typed", e))?;
    let secret = ask("Password: ");
    drop(hidden);
    emit("\n")?;
    secret
}

fn run_login(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let server = parsed.args.first().map_or(DEFAULT_SERVER, String::as_str);
        let server = server_key(server);
        let user = match parsed.text("username") {
            "" if std::io::stdin().is_terminal() => ask("Username: ")?,
            user => user.to_owned(),
        };
        let secret = password(&parsed, &user)?;
        if user.is_empty() {
            return Err(CliError::msg("Error: username is required"));
        }
        if secret.is_empty() {
            return Err(CliError::msg("Error: password is required"));
        }
        let body = json!({"username": user, "password": secret, "serveraddress": server});
        let answer: Value = ctx
            .client()
            .json(Request::post(&["auth"]).json(&body))
            .await?;
        let token = answer
            .get("IdentityToken")
            .and_then(Value::as_str)
            .unwrap_or_default();
        keep(&ctx, server, &user, &secret, token)?;
        match answer.get("Status").and_then(Value::as_str) {
            Some(status) if !status.is_empty() => emit_line(status),
            _ => Ok(()),
        }
    })
}

fn keep(ctx: &Ctx, server: &str, user: &str, secret: &str, token: &str) -> CliResult {
    if let Some(store) = store_for(&ctx.config(), server) {
        let (user, secret) = if token.is_empty() {
            (user, secret)
        } else {
            ("<token>", token)
        };
        let entry = json!({"ServerURL": server, "Username": user, "Secret": secret});
        let (ok, answer) = helper(&store, "store", &entry.to_string())
            .map_err(|e| CliError::io(format!("docker-credential-{store}"), e))?;
        if ok {
            return Ok(());
        }
        return Err(CliError::msg(format!(
            "Error saving credentials: {}",
            answer.trim()
        )));
    }
    let auth = STANDARD.encode(format!("{user}:{secret}"));
    config::rewrite(ctx.config_dir(), |file| {
        let entry = if token.is_empty() {
            json!({"auth": auth})
        } else {
            json!({"auth": STANDARD.encode(format!("{user}:")), "identitytoken": token})
        };
        let auths = file.entry("auths").or_insert_with(|| json!({}));
        if let Value::Object(auths) = auths {
            auths.insert(server.to_owned(), entry);
        }
    })
    .map_err(|e| CliError::io("Error saving credentials", e))
}

/// The `logout` command.
pub const LOGOUT: Command = Command::new(
    "logout",
    "[SERVER]",
    "Forget the credentials for a registry",
    Arity::AtMost(1),
    run_logout,
)
.common();

fn run_logout(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let named = parsed.args.first().map_or(DEFAULT_SERVER, String::as_str);
        let server = server_key(named);
        if find(&ctx, server)?.is_none() {
            return emit_line(format!("Not logged in to {named}"));
        }
        emit_line(format!("Removing login credentials for {named}"))?;
        if let Some(store) = store_for(&ctx.config(), server) {
            helper(&store, "erase", server)
                .map_err(|e| CliError::io(format!("docker-credential-{store}"), e))?;
        }
        config::rewrite(ctx.config_dir(), |file| {
            if let Some(Value::Object(auths)) = file.get_mut("auths") {
                auths.shift_remove(server);
            }
        })
        .map_err(|e| CliError::io("Error erasing credentials", e))
    })
}

const SEARCH_FLAGS: &[Flag] = &[
    Flag::new(
        "filter",
        crate::flags::Kind::List("filter"),
        "Show only what matches (NAME=VALUE)",
    )
    .short('f')
    .check(filters::check),
    Flag::text("format", crate::container::list::FORMAT_HELP),
    Flag::int("limit", "Most results to show"),
    Flag::switch("no-trunc", "Show everything in full"),
];

/// The `search` command.
pub const SEARCH: Command = Command::new(
    "search",
    "[OPTIONS] TERM",
    "Search the default registry",
    Arity::Exactly(1),
    run_search,
)
.flags(&[SEARCH_FLAGS])
.common();

const SEARCH_TABLE: &str = "table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";

const SEARCH_TITLES: &[(&str, &str)] = &[
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];

fn run_search(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let printer = Printer::new(
            Format::choose(parsed.text("format"), SEARCH_TABLE),
            SEARCH_TITLES,
            "*registry.searchContext",
        )?;
        let limit = parsed.int("limit");
        let mut request = Request::get(&["images", "search"])
            .query("term", &parsed.args[0])
            .query_some("limit", (limit != 0).then(|| limit.to_string()))
            .query_some("filters", filters::encode(parsed.list("filter")));
        if let Some(auth) = header(&ctx, "docker.io")? {
            request = request.header(AUTH, auth);
        }
        let found: Vec<Value> = ctx.client().json(request).await?;
        let trunc = !parsed.on("no-trunc");
        printer.print(found.iter().map(|image| {
            let text = |key| image.get(key).and_then(Value::as_str).unwrap_or_default();
            let mark = |key| match image.get(key).and_then(Value::as_bool) {
                Some(true) => "[OK]",
                _ => "",
            };
            let about = text("description").replace(['\n', '\r'], " ");
            let stars = image
                .get("star_count")
                .and_then(Value::as_i64)
                .unwrap_or_default();
            Row::default()
                .text("Name", text("name"))
                .text(
                    "Description",
                    if trunc { ellipsis(&about, 45) } else { about },
                )
                .text("StarCount", stars.to_string())
                .text("IsOfficial", mark("is_official"))
                .text("IsAutomated", mark("is_automated"))
        }))
    })
}
