//! How an [`IsolationError`] crosses the Task API: as a ttrpc status whose code is the
//! nearest one, with the error itself, in JSON, as a detail. Nobody reads the message.

use bulkhead_isolation::{ErrorKind, IsolationError};
use containerd_shim_protos::ttrpc;
use ttrpc::proto::Any;

/// `type_url` of the detail.
pub const TYPE_URL: &str = "bulkhead.v1.IsolationError";

/// The supervisor's half.
pub fn to_ttrpc(error: &IsolationError) -> ttrpc::Error {
    let code = match error.kind {
        ErrorKind::CommandNotFound
        | ErrorKind::CommandNotExecutable
        | ErrorKind::WorkingDirectory
        | ErrorKind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        ErrorKind::NotFound => ttrpc::Code::NOT_FOUND,
        ErrorKind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        ErrorKind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        ErrorKind::Unavailable => ttrpc::Code::UNAVAILABLE,
        ErrorKind::Unsupported => ttrpc::Code::UNIMPLEMENTED,
        ErrorKind::Other => ttrpc::Code::UNKNOWN,
    };
    let mut status = ttrpc::get_status(code, &error.message);
    if let Ok(value) = serde_json::to_vec(error) {
        let mut detail = Any::new();
        detail.type_url = TYPE_URL.to_owned();
        detail.value = value;
        status.details.push(detail);
    }
    ttrpc::Error::RpcStatus(status)
}

/// The daemon's half. An error without the detail (a supervisor that died, a foreign
/// shim) gets the kind that its code implies.
pub fn from_ttrpc(error: &ttrpc::Error) -> IsolationError {
    let ttrpc::Error::RpcStatus(status) = error else {
        return IsolationError::new(ErrorKind::Unavailable, format!("supervisor lost: {error}"));
    };
    let detail = status
        .details
        .iter()
        .find(|detail| detail.type_url == TYPE_URL);
    if let Some(own) = detail.and_then(|detail| serde_json::from_slice(&detail.value).ok()) {
        return own;
    }
    let kind = match status.code() {
        ttrpc::Code::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        ttrpc::Code::NOT_FOUND => ErrorKind::NotFound,
        ttrpc::Code::ALREADY_EXISTS => ErrorKind::AlreadyExists,
        ttrpc::Code::FAILED_PRECONDITION => ErrorKind::FailedPrecondition,
        ttrpc::Code::UNAVAILABLE => ErrorKind::Unavailable,
        ttrpc::Code::UNIMPLEMENTED => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    };
    IsolationError::new(kind, status.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_survives_the_wire() {
        let error = IsolationError::new(ErrorKind::CommandNotFound, "exec: \"nope\"");
        assert_eq!(from_ttrpc(&to_ttrpc(&error)), error);
    }
}
