//! `bulkhead system check`, which Docker does not have: `POST /system/check`.

use axum::Json;
use axum::extract::State;
use bulkhead_image::Finding;
use serde_json::{Value, json};

use super::super::query::Params;
use crate::error::ApiResult;
use crate::state::AppState;

pub(super) async fn check(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    let report = state.images.check(params.flag_or("repair", true)).await?;
    let findings: Vec<Value> = report.findings.iter().map(finding).collect();
    Ok(Json(json!({
        "Images": report.images,
        "Layers": report.layers,
        "Findings": findings,
    })))
}

fn finding(finding: &Finding) -> Value {
    match finding {
        Finding::LayerImage { diff_id, repaired } => json!({
            "Type": "layer-image", "Id": diff_id.to_string(), "Repaired": repaired, "Images": [],
        }),
        Finding::LayerTar { diff_id, images } => json!({
            "Type": "layer", "Id": diff_id.to_string(), "Repaired": false, "Images": images,
        }),
        Finding::Config {
            image,
            names,
            repaired,
        } => json!({
            "Type": "config", "Id": image.to_string(), "Repaired": repaired, "Images": names,
        }),
        Finding::Document {
            image,
            digest,
            repaired,
        } => json!({
            "Type": "manifest", "Id": digest.to_string(), "Repaired": repaired,
            "Images": [image.to_string()],
        }),
    }
}
