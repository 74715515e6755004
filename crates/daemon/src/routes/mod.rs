//! The HTTP surface: one router per subject, merged here. Paths are written without the
//! version; [`crate::connection`] takes `/v1.NN` off before the request gets here.

pub mod body;
pub mod build;
pub mod container_files;
pub mod container_streams;
pub mod container_views;
pub mod containers;
pub mod images;
pub mod network_shapes;
pub mod networks;
pub mod query;
pub mod shapes;
pub mod stats;
pub mod streams;
pub mod system;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use crate::config::API_VERSION;
use crate::error::ApiError;
use crate::state::AppState;

/// All routes.
pub fn router(state: AppState) -> Router {
    Router::new()
        .merge(system::router())
        .merge(images::router())
        .merge(build::router())
        .merge(networks::router())
        .merge(containers::router())
        .merge(container_files::router())
        .merge(container_streams::router())
        .merge(container_views::router())
        .fallback(|| async { ApiError::not_found("page not found") })
        .method_not_allowed_fallback(|| async { ApiError::not_found("page not found") })
        .layer(axum::middleware::map_response(docker_headers))
        .with_state(state)
}

/// Headers of every answer.
pub async fn docker_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static(API_VERSION));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert(
        header::SERVER,
        HeaderValue::from_static(concat!("bulkhead/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    response
}
