//! `system check`, which Docker does not have.

use futures::future::LocalBoxFuture;
use serde::Deserialize;

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::output::emit_line;

const FLAGS: &[Flag] = &[Flag::switch("no-repair", "Only say what is wrong")];

/// `system check`.
pub const CHECK: Command = Command::new(
    "check",
    "[OPTIONS]",
    "Verify all images on disk, and repair what can be",
    Arity::None,
    run_check,
)
.flags(&[FLAGS]);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    images: u64,
    layers: u64,
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Finding {
    #[serde(rename = "Type")]
    kind: String,
    id: String,
    repaired: bool,
    images: Vec<String>,
}

impl Finding {
    fn line(&self) -> String {
        let Self {
            id,
            repaired,
            images,
            ..
        } = self;
        let names = images.join(", ");
        match (self.kind.as_str(), repaired) {
            ("layer-image", true) => format!("layer {id}: its image was damaged, made anew"),
            ("layer-image", false) => format!("layer {id}: its image is damaged"),
            ("config", true) => format!("image {id} ({names}): its config was damaged, removed"),
            ("config", false) => format!("image {id} ({names}): its config is damaged"),
            ("manifest", true) => format!("manifest {id} of {names}: was damaged, forgotten"),
            ("manifest", false) => format!("manifest {id} of {names}: is damaged"),
            _ => format!("layer {id}: is damaged; pull or load again: {names}"),
        }
    }
}

fn run_check(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let request = Request::post(&["system", "check"])
            .query_some("repair", parsed.on("no-repair").then_some("0"));
        let report: Report = ctx.client().json(request).await?;
        for finding in &report.findings {
            emit_line(finding.line())?;
        }
        emit_line(format!(
            "{} images, {} layers: {} damaged",
            report.images,
            report.layers,
            report.findings.len()
        ))?;
        if report.findings.iter().all(|finding| finding.repaired) {
            return Ok(());
        }
        Err(CliError::Exit(1))
    })
}
