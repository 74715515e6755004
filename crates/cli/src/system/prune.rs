//! `system prune`.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::filters;
use crate::client::{ClientError, Request};
use crate::command::{Arity, Command, Ctx};
use crate::container::prune::{self as containers, Pruned, print_total};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::image::manage as images;
use crate::output::confirm;
use crate::{network, volume};

const FLAGS: &[Flag] = &[
    Flag::switch("all", "Remove every image that no container uses").short('a'),
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Remove only what matches (NAME=VALUE)",
    )
    .check(filters::check),
    Flag::switch("force", "Do not ask").short('f'),
    Flag::switch("volumes", "Remove unused anonymous volumes too"),
];

/// `system prune`.
pub const PRUNE: Command = Command::new(
    "prune",
    "[OPTIONS]",
    "Remove everything that is not used",
    Arity::None,
    run_prune,
)
.flags(&[FLAGS]);

fn run_prune(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let (all, volumes) = (parsed.on("all"), parsed.on("volumes"));
        let filter = parsed.list("filter");
        if volumes && filter.iter().any(|f| f.starts_with("until=")) {
            return Err(CliError::msg(
                "ERROR: The \"until\" filter is not supported with \"--volumes\"",
            ));
        }
        if !parsed.on("force") {
            let mut warning = "WARNING! This will remove:\n  - all stopped containers\n  - all \
                               networks not used by at least one container\n"
                .to_owned();
            if volumes {
                warning.push_str("  - all anonymous volumes not used by at least one container\n");
            }
            warning.push_str(if all {
                "  - all images without at least one container associated to them\n"
            } else {
                "  - all dangling images\n"
            });
            warning.push_str(if all {
                "  - all build cache\n"
            } else {
                "  - unused build cache\n"
            });
            if !filter.is_empty() {
                warning.push_str("\n  Items to be pruned will be filtered with:\n");
                for one in filter {
                    warning.push_str(&format!("  - {one}\n"));
                }
            }
            if !confirm(&format!("{warning}\nAre you sure you want to continue?"))? {
                return Ok(());
            }
        }
        let mut space = 0u64;
        let pruned = containers::containers(&ctx, filter).await?;
        pruned.print("Deleted Containers")?;
        space = space.saturating_add(pruned.space);
        let pruned = network::prune(&ctx, filter).await?;
        pruned.print("Deleted Networks")?;
        if volumes {
            let pruned = volume::prune(&ctx, filter, false).await?;
            pruned.print("Deleted Volumes")?;
            space = space.saturating_add(pruned.space);
        }
        let pruned = images::prune(&ctx, filter, all).await?;
        pruned.print("Deleted Images")?;
        space = space.saturating_add(pruned.space);
        let request = Request::post(&["build", "prune"])
            .query_if("all", all)
            .query_some("filters", filters::encode(filter));
        match ctx.client().json::<Value>(request).await {
            Ok(answer) => {
                let pruned = Pruned::from_answer(&answer, "CachesDeleted");
                pruned.print("Deleted build cache objects")?;
                space = space.saturating_add(pruned.space);
            }
            // An engine without a build cache has nothing to remove.
            Err(ClientError::Api {
                status: 404 | 501, ..
            }) => {}
            Err(error) => return Err(error.into()),
        }
        print_total(space)
    })
}
