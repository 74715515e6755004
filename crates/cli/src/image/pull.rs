//! `pull` and `push`.

use futures::future::LocalBoxFuture;
use hyper::header::HeaderName;

use super::progress::{self, Show};
use super::reference::Reference;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::output::{complain, emit_line};
use crate::registry;

/// The header that carries a registry's credentials.
pub const AUTH: HeaderName = HeaderName::from_static("x-registry-auth");

const TRUST: Flag = Flag::switch(
    "disable-content-trust",
    "Accepted and ignored: signatures are not checked",
)
.default("true");

const PULL_FLAGS: &[Flag] = &[
    Flag::switch("all-tags", "Pull every tag of the repository").short('a'),
    TRUST,
    Flag::text("platform", "Platform of the image, if it has several"),
    Flag::switch("quiet", "Do not show the pull's progress").short('q'),
];

/// The `pull` command.
pub const PULL: Command = Command::new(
    "pull",
    "[OPTIONS] NAME[:TAG|@DIGEST]",
    "Fetch an image from a registry",
    Arity::Exactly(1),
    run_pull,
)
.flags(&[PULL_FLAGS])
.common()
.spelled(&["bulkhead image pull", "bulkhead pull"]);

fn parse(text: &str) -> CliResult<Reference> {
    Reference::parse(text).map_err(|e| CliError::msg(e.to_string()))
}

async fn fetch(
    ctx: &Ctx,
    reference: &Reference,
    all_tags: bool,
    platform: Option<&str>,
    show: Show,
) -> CliResult {
    let tag = match (reference.digest(), reference.tag()) {
        _ if all_tags => None,
        (Some(digest), _) => Some(digest),
        (None, tag) => tag,
    };
    let mut request = Request::post(&["images", "create"])
        .query("fromImage", reference.name())
        .query_some("tag", tag)
        .query_some("platform", platform);
    if let Some(auth) = registry::header(ctx, reference.domain())? {
        request = request.header(AUTH, auth);
    }
    let stream = ctx.client().stream(request).await?;
    progress::show(stream, show, |_| {}).await
}

/// Pulls the image of a container that is to be created; progress goes to standard error.
pub async fn for_container(
    ctx: &Ctx,
    reference: &Reference,
    platform: Option<&str>,
    quiet: bool,
) -> CliResult {
    let show = if quiet { Show::Nothing } else { Show::Stderr };
    fetch(ctx, &reference.with_default_tag(), false, platform, show).await
}

fn run_pull(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let reference = parse(&parsed.args[0])?;
        let all = parsed.on("all-tags");
        let quiet = parsed.on("quiet");
        if all && (reference.tag().is_some() || reference.digest().is_some()) {
            return Err(CliError::msg("tag can't be used with --all-tags/-a"));
        }
        let reference = if all {
            reference
        } else {
            let tagged = reference.with_default_tag();
            if tagged != reference && !quiet {
                emit_line("Using default tag: latest")?;
            }
            tagged
        };
        let show = if quiet { Show::Nothing } else { Show::Stdout };
        fetch(&ctx, &reference, all, parsed.given("platform"), show).await?;
        emit_line(reference.canonical())
    })
}

const PUSH_FLAGS: &[Flag] = &[
    Flag::switch("all-tags", "Push every tag of the repository").short('a'),
    TRUST,
    Flag::text("platform", "Push only this platform of the image"),
    Flag::switch("quiet", "Do not show the push's progress").short('q'),
];

/// The `push` command.
pub const PUSH: Command = Command::new(
    "push",
    "[OPTIONS] NAME[:TAG]",
    "Send an image to a registry",
    Arity::Exactly(1),
    run_push,
)
.flags(&[PUSH_FLAGS])
.common()
.spelled(&["bulkhead image push", "bulkhead push"]);

fn run_push(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let reference = parse(&parsed.args[0])?;
        let all = parsed.on("all-tags");
        let quiet = parsed.on("quiet");
        if all && reference.tag().is_some() {
            return Err(CliError::msg("tag can't be used with --all-tags/-a"));
        }
        let reference = if all {
            reference
        } else {
            let tagged = reference.with_default_tag();
            if tagged != reference && !quiet {
                emit_line("Using default tag: latest")?;
            }
            tagged
        };
        // The daemon refuses a push without the header, even if there are no credentials.
        let auth = match registry::header(&ctx, reference.domain())? {
            Some(auth) => auth,
            None => registry::EMPTY_HEADER.to_owned(),
        };
        let name = reference.familiar_name();
        let request = Request::post(&["images", &name, "push"])
            .query_some("tag", reference.tag())
            .header(AUTH, auth);
        let stream = ctx.client().stream(request).await?;
        let show = if quiet { Show::Nothing } else { Show::Stdout };
        progress::show(stream, show, |_| {}).await?;
        if quiet {
            emit_line(reference.canonical())?;
        }
        if parsed.given("platform").is_some() {
            complain("WARNING: --platform was ignored: the whole image was pushed");
        }
        Ok(())
    })
}
