//! The HTTP surface: one router per subject, merged here. Paths are written without the
//! version; [`crate::connection`] takes `/v1.NN` off before the request gets here.

pub mod body;
pub mod build;
pub mod container_files;
pub mod container_streams;
pub mod container_views;
pub mod containers;
mod go_names;
pub mod images;
pub mod network_shapes;
pub mod networks;
pub mod query;
pub mod shapes;
pub mod stats;
pub mod streams;
pub mod system;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio_util::sync::CancellationToken;

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
        .fallback(no_page)
        .method_not_allowed_fallback(no_page)
        .layer(axum::middleware::from_fn(query::read_form))
        .layer(axum::middleware::from_fn(to_its_end))
        .layer(axum::middleware::from_fn(heads))
        .layer(axum::middleware::map_response(docker_headers))
        .with_state(state)
}

/// Docker says the same of a path that is not there and of a method that it has not.
async fn no_page(method: Method) -> Response {
    match method {
        Method::OPTIONS => axum::http::StatusCode::OK.into_response(),
        _ => ApiError::not_found("page not found").into_response(),
    }
}

/// What can be read has no head of its own, but for these.
async fn heads(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_archive = path.starts_with("/containers/") && path.ends_with("/archive");
    if request.method() == Method::HEAD && path != "/_ping" && !is_archive {
        return no_page(Method::HEAD).await;
    }
    next.run(request).await
}

/// Of a request: cancelled when its client has gone before it was answered.
#[derive(Debug, Clone)]
pub struct ClientGone(pub CancellationToken);

/// Lets a request that changes something come to its end also when its client goes away: a
/// restart that was begun ends with a container that runs. Streams still end with whoever
/// reads or writes them.
async fn to_its_end(mut request: Request, next: Next) -> Response {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    let gone = CancellationToken::new();
    request.extensions_mut().insert(ClientGone(gone.clone()));
    let unanswered = gone.drop_guard();
    let outcome = tokio::spawn(next.run(request)).await;
    unanswered.disarm();
    match outcome {
        Ok(response) => response,
        Err(error) => ApiError::internal("the request was not answered", &error).into_response(),
    }
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
