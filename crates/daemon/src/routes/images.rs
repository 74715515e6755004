//! Routes of images.
//!
//! A name holds slashes and colons, so everything below `/images/` that is not a word of the
//! API is one wildcard, and what comes last in it says what is wanted.

mod filter;
pub(crate) mod registry;
mod transfer;

pub(crate) use filter::until_filter;
pub(crate) use registry::message_json;
pub(crate) use transfer::{encode, failure, feed, stream_response};

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bulkhead_image::{
    HistoryLine, ImageConfig, ImageDetail, ImageSummary, Reference, Removal, RemovalReport,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::query::{Params, check_filters};
use crate::connection::ApiVersion;
use crate::error::{ApiError, ApiResult};
use crate::services::images::RemoveOptions;
use crate::state::AppState;

/// The first API version that has no `VirtualSize` any more.
pub(crate) const WITHOUT_VIRTUAL_SIZE: ApiVersion = ApiVersion(1, 44);
/// Without the members of an image's configuration that only containers have.
const WITHOUT_CONTAINER_MEMBERS: ApiVersion = ApiVersion(1, 50);
/// The first API version in which an image without a name has no tags, instead of one that
/// says `<none>`.
const WITHOUT_NONE_TAGS: ApiVersion = ApiVersion(1, 43);

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/load", post(transfer::load))
        .route("/images/create", post(transfer::create))
        .route("/images/get", get(transfer::save))
        .route("/images/prune", post(prune))
        .route("/images/search", get(registry::search))
        .route("/auth", post(registry::login))
        .route("/distribution/{*rest}", get(registry::describe))
        .route(
            "/images/{*rest}",
            get(get_one).post(post_one).delete(delete_one),
        )
}

async fn list(
    State(state): State<AppState>,
    version: Option<Extension<ApiVersion>>,
    params: Params,
) -> ApiResult<Json<Vec<Value>>> {
    let version = version.map_or(ApiVersion::NEWEST, |Extension(version)| version);
    let mut filters = params.filters()?;
    if let Some(name) = params.get("filter") {
        // Until API 1.40.
        filters
            .entry("reference".to_owned())
            .or_default()
            .push(name.to_owned());
    }
    check_filters(&filters, &filter::KNOWN)?;
    let images = state.images.list().await?;
    let wanted = filter::select(&state, &images, &filters, params.flag("all")).await?;
    let uses = state.containers.image_uses();
    let shared = if params.flag("shared-size") {
        Some(state.images.shared_sizes().await?)
    } else {
        None
    };
    Ok(Json(
        wanted
            .into_iter()
            .map(|image| {
                let mut image = image.clone();
                image.tags.retain(|name| filter::is_shown(name, &filters));
                image
                    .digests
                    .retain(|name| filter::is_shown(name, &filters));
                let containers = uses.iter().filter(|used| used.image == image.id).count();
                let mut line = summary(&image, version, shared.is_some().then_some(containers));
                if let Some(shared) = &shared {
                    line["SharedSize"] = json!(shared.get(&image.id).copied().unwrap_or(0));
                }
                line
            })
            .collect(),
    ))
}

/// One line of the list; `containers` is counted only for those who ask.
fn summary(image: &ImageSummary, version: ApiVersion, containers: Option<usize>) -> Value {
    let mut tags = names(&image.tags);
    let mut digests = names(&image.digests);
    if version < WITHOUT_NONE_TAGS && tags.is_empty() {
        tags.push("<none>:<none>".to_owned());
        if digests.is_empty() {
            digests.push("<none>@<none>".to_owned());
        }
    }
    let mut line = json!({
        "Containers": containers.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX)),
        "Created": image.created,
        "Id": image.id.to_string(),
        "Labels": image.config.labels,
        "ParentId": image.parent.as_ref().map_or_else(String::new, ToString::to_string),
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": -1,
        "Size": image.size,
    });
    if version < WITHOUT_VIRTUAL_SIZE {
        line["VirtualSize"] = json!(image.size);
    }
    line
}

pub(crate) fn names(references: &[Reference]) -> Vec<String> {
    references.iter().map(Reference::familiar).collect()
}

/// Splits `name/verb`. The verb is never part of a name that exists: a name's last part could
/// be spelled like one, but then the verb still follows it.
fn split_verb(rest: &str) -> Option<(&str, &str)> {
    rest.trim_start_matches('/').rsplit_once('/')
}

async fn get_one(
    State(state): State<AppState>,
    version: Option<Extension<ApiVersion>>,
    Path(rest): Path<String>,
    params: Params,
) -> ApiResult<Response> {
    let version = version.map_or(ApiVersion::NEWEST, |Extension(version)| version);
    if let Some((name, "json" | "history" | "get")) = split_verb(&rest) {
        check_platform(&state, name, &params).await?;
    }
    match split_verb(&rest) {
        Some((name, "json")) => {
            let detail = state.images.inspect(name).await?;
            Ok(Json(inspect(&detail, version)).into_response())
        }
        Some((name, "history")) => {
            let lines = state.images.history(name).await?;
            Ok(Json(lines.iter().map(history).collect::<Vec<_>>()).into_response())
        }
        Some((name, "get")) => transfer::save_names(&state, vec![name.to_owned()]).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// Refuses an image that is for another platform than the one asked for.
async fn check_platform(state: &AppState, name: &str, params: &Params) -> ApiResult<()> {
    match params.get("platform") {
        None => Ok(()),
        Some(wanted) => is_for(name, wanted, &state.images.inspect(name).await?.document),
    }
}

/// Refuses an image that is for another platform than the one that is wanted, which is JSON.
fn is_for(name: &str, wanted: &str, document: &ImageConfig) -> ApiResult<()> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Wanted {
        os: String,
        architecture: String,
        variant: String,
    }
    let wanted: Wanted = serde_json::from_str(wanted)
        .map_err(|error| ApiError::bad_request(format!("invalid platform: {error}")))?;
    let said = |os: &str, architecture: &str, variant: &str| {
        let parts = [os, architecture, variant];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("/")
    };
    let variant = document.variant.as_deref().unwrap_or_default();
    let (os, architecture) = (document.os.as_str(), document.architecture.as_str());
    let fits = [
        (wanted.os.as_str(), os),
        (wanted.architecture.as_str(), architecture),
        (wanted.variant.as_str(), variant),
    ]
    .iter()
    // What one does not say is as the other says.
    .all(|(one, other)| one.is_empty() || other.is_empty() || one == other);
    match fits {
        true => Ok(()),
        false => Err(ApiError::not_found(format!(
            "image with reference {name} was found but its platform ({}) does not match the \
             specified platform ({})",
            said(os, architecture, variant),
            said(&wanted.os, &wanted.architecture, &wanted.variant),
        ))),
    }
}

async fn post_one(
    State(state): State<AppState>,
    Path(rest): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> ApiResult<Response> {
    match split_verb(&rest) {
        Some((name, "tag")) => {
            let repository = params
                .get("repo")
                .ok_or_else(|| ApiError::bad_request("invalid reference format"))?;
            state
                .images
                .tag(name, repository, params.get("tag"))
                .await?;
            Ok(StatusCode::CREATED.into_response())
        }
        Some((name, "push")) => registry::push(&state, name, params.get("tag"), &headers).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn delete_one(
    State(state): State<AppState>,
    Path(name): Path<String>,
    params: Params,
) -> ApiResult<Json<Vec<Value>>> {
    let _no_creates = state.containers.hold_creates().await;
    let uses = state.containers.image_uses();
    let options = RemoveOptions {
        force: params.flag("force"),
        keep_parents: params.flag("noprune"),
    };
    let report = state
        .images
        .remove(name.trim_start_matches('/'), options, uses)
        .await?;
    Ok(Json(removals(&report)))
}

fn removals(report: &RemovalReport) -> Vec<Value> {
    report
        .items
        .iter()
        .map(|item| match item {
            Removal::Untagged(reference) => json!({ "Untagged": reference.familiar() }),
            Removal::DeletedImage(id) => json!({ "Deleted": id.to_string() }),
            Removal::DeletedLayer(id) => json!({ "Deleted": id.to_string() }),
        })
        .collect()
}

/// `docker image prune`: images without a name and without a container; with
/// `dangling=false` all without a container.
async fn prune(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    let filters = params.filters()?;
    check_filters(&filters, &["dangling", "label", "label!", "until"])?;
    let dangling_only = filter::dangling(&filters)?.unwrap_or(true);
    let until = filter::until_filter(&filters, "until")?;
    let before = state.images.disk_usage().await?;
    let uses = state.containers.image_uses();
    let mut removed = Vec::new();
    for image in state.images.list().await? {
        let kept = (dangling_only && !image.tags.is_empty())
            || uses.iter().any(|used| used.image == image.id)
            || !filter::matches_labels(&image, &filters)
            || until.is_some_and(|until| image.created >= until);
        if kept {
            continue;
        }
        // By each name, so that one that others were made from at least loses those.
        let mut names = [names(&image.tags), names(&image.digests)].concat();
        if names.is_empty() {
            names.push(image.id.to_string());
        }
        let _no_creates = state.containers.hold_creates().await;
        for name in names {
            let uses = state.containers.image_uses();
            match state
                .images
                .remove(&name, RemoveOptions::default(), uses)
                .await
            {
                Ok(report) => removed.extend(removals(&report)),
                // An image that got a container or went away meanwhile is no failure of a
                // prune, nor is a digest that went with its last tag.
                Err(error) if error.status.is_client_error() => {
                    tracing::debug!(image = %name, %error, "not pruned");
                }
                Err(error) => return Err(error),
            }
        }
    }
    let after = state.images.disk_usage().await?;
    let reclaimed = (before.erofs_bytes + before.blob_bytes)
        .saturating_sub(after.erofs_bytes + after.blob_bytes);
    state.events.publish(
        "image",
        "prune",
        "",
        BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]),
    );
    Ok(Json(json!({
        "ImagesDeleted": if removed.is_empty() { Value::Null } else { json!(removed) },
        "SpaceReclaimed": reclaimed,
    })))
}

fn inspect(detail: &ImageDetail, version: ApiVersion) -> Value {
    let image = &detail.summary;
    let document = &detail.document;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut config = serde_json::to_value(&document.config).unwrap_or_default();
    // Clients' templates reach for these whether set or not.
    for (name, empty) in [
        ("User", json!("")),
        ("Env", Value::Null),
        ("Cmd", Value::Null),
        ("Volumes", Value::Null),
        ("WorkingDir", json!("")),
        ("Entrypoint", Value::Null),
        ("OnBuild", Value::Null),
        ("Labels", Value::Null),
    ] {
        if let Some(config) = config.as_object_mut() {
            config.entry(name).or_insert(empty);
        }
    }
    // What only containers have was there all the same.
    if version < WITHOUT_CONTAINER_MEMBERS
        && let Some(config) = config.as_object_mut()
    {
        for name in [
            "AttachStderr",
            "AttachStdin",
            "AttachStdout",
            "OpenStdin",
            "StdinOnce",
            "Tty",
        ] {
            config.entry(name).or_insert(json!(false));
        }
        for name in ["Domainname", "Hostname", "Image"] {
            config.entry(name).or_insert(json!(""));
        }
    }
    // Docker left these two out of API 1.45. Compose 1 asks for the newest version that there
    // is, and yet hands the volumes of a container that it replaces to the next one by this
    // list, and fails where there is none.
    let made_in = document.extra.get("container_config");
    let made_in = made_in.filter(|found| found.is_object()).unwrap_or(&config);
    let mut out = json!({
        "Id": image.id.to_string(),
        "RepoTags": names(&image.tags),
        "RepoDigests": names(&image.digests),
        "Parent": image.parent.as_ref().map_or_else(String::new, ToString::to_string),
        "Comment": text(&document.comment),
        "Created": document.created,
        "Container": document.extra.get("container").cloned().unwrap_or(json!("")),
        "ContainerConfig": made_in,
        "DockerVersion": document.extra.get("docker_version").cloned().unwrap_or(json!("")),
        "Author": text(&document.author),
        "Config": config,
        "Architecture": document.architecture,
    });
    if let Some(variant) = &document.variant {
        out["Variant"] = json!(variant);
    }
    out["Os"] = json!(document.os);
    out["Size"] = json!(image.size);
    if version < WITHOUT_VIRTUAL_SIZE {
        out["VirtualSize"] = json!(image.size);
    }
    let blobs: Vec<String> = detail
        .layers
        .iter()
        .map(|layer| layer.path.display().to_string())
        .collect();
    out["GraphDriver"] = json!({ "Data": { "Layers": blobs.join(":") }, "Name": "erofs" });
    let layers: Vec<String> = detail
        .layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    out["RootFS"] = json!({ "Type": "layers", "Layers": layers });
    out["Metadata"] = json!({
        "LastTagTime": detail.last_tagged.as_deref().unwrap_or("0001-01-01T00:00:00Z"),
    });
    out
}

fn history(line: &HistoryLine) -> Value {
    let tags = names(&line.tags);
    json!({
        "Comment": line.comment,
        "Created": line.created,
        "CreatedBy": line.created_by,
        "Id": line.id.as_ref().map_or_else(|| "<missing>".to_owned(), ToString::to_string),
        "Size": line.size,
        "Tags": if tags.is_empty() { Value::Null } else { json!(tags) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_that_are_wanted() {
        let document = ImageConfig {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            ..ImageConfig::default()
        };
        for fits in [
            r#"{"os":"linux","architecture":"amd64"}"#,
            r#"{"os":"linux"}"#,
            r#"{"architecture":"amd64","variant":"v2"}"#,
            "{}",
        ] {
            assert!(is_for("x", fits, &document).is_ok(), "{fits}");
        }
        let other = r#"{"os":"linux","architecture":"arm64"}"#;
        let error = is_for("x", other, &document).unwrap_err();
        assert_eq!(error.status, StatusCode::NOT_FOUND);
        assert!(
            error
                .message
                .ends_with("(linux/amd64) does not match the specified platform (linux/arm64)")
        );
        let error = is_for("x", "linux/arm64", &document).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn the_verb_comes_last() {
        assert_eq!(
            split_verb("busybox:latest/json"),
            Some(("busybox:latest", "json"))
        );
        assert_eq!(
            split_verb("localhost:5000/a/json/history"),
            Some(("localhost:5000/a/json", "history"))
        );
        assert_eq!(split_verb("busybox"), None);
    }
}
