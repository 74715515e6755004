//! The error of a request: an HTTP status and Docker's `{"message": …}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bulkhead_isolation::{ErrorKind, IsolationError};

/// Shorthand.
pub type ApiResult<T> = Result<T, ApiError>;

/// What a request is refused with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// For a person.
    pub message: String,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: like_docker(message.into()),
        }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 304: what was asked for is so already.
    pub fn not_modified() -> Self {
        Self::new(StatusCode::NOT_MODIFIED, "")
    }

    /// 501.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 500 that says what was being done.
    pub fn internal(context: impl std::fmt::Display, source: &dyn std::error::Error) -> Self {
        let mut message = format!("{context}: {source}");
        let mut cause = source.source();
        while let Some(next) = cause {
            message.push_str(&format!(": {next}"));
            cause = next.source();
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

/// Errors of the system as Docker says them, "no such file or directory" in place of "No such
/// file or directory (os error 2)": clients look for the words, docker's own for its exit code.
pub fn like_docker(mut message: String) -> String {
    const NUMBER: &str = " (os error ";
    while let Some(at) = message.find(NUMBER) {
        let Some(end) = message[at..].find(')') else {
            break;
        };
        message.replace_range(at..=at + end, "");
        let start = message[..at].rfind(": ").map_or(0, |colon| colon + 2);
        if let Some(first) = message.get_mut(start..=start) {
            first.make_ascii_lowercase();
        }
    }
    message
}

impl From<IsolationError> for ApiError {
    fn from(error: IsolationError) -> Self {
        let status = match error.kind {
            ErrorKind::CommandNotFound
            | ErrorKind::CommandNotExecutable
            | ErrorKind::WorkingDirectory
            | ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::FailedPrecondition => StatusCode::CONFLICT,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Unavailable | ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        (
            self.status,
            Json(serde_json::json!({ "message": self.message })),
        )
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_errors_are_said_as_docker_says_them() {
        let missing = std::io::Error::from_raw_os_error(2);
        let denied = std::io::Error::from_raw_os_error(13);
        let said = |text: String| ApiError::bad_request(text).message;
        assert_eq!(
            said(format!("cannot access path /x: {missing}")),
            "cannot access path /x: no such file or directory"
        );
        assert_eq!(
            said(format!("A: {missing} (B: {denied})")),
            "A: no such file or directory (B: permission denied)"
        );
        assert_eq!(said(denied.to_string()), "permission denied");
        for same in ["As it is: No", "", " (os error 2", "é (os error"] {
            assert_eq!(said(same.to_owned()), same);
        }
        assert_eq!(said("é (os error 5)".to_owned()), "é");
    }
}
