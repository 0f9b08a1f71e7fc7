//! What is said when something cannot be done: problem details (RFC 9457), with what to do about it.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::operator::AskError;

/// Why there is no answer, as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// The status code's own name.
    pub title: &'static str,
    /// The status code.
    pub status: u16,
    /// For programs: the same for the same kind of problem.
    pub code: &'static str,
    /// What is wrong, and what to do.
    pub detail: String,
    /// After how many seconds to ask again, if that may help.
    #[serde(skip)]
    #[schema(ignore)]
    pub retry_after_seconds: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Problem");
        Self { title, status: status.as_u16(), code, detail: detail.into(), retry_after_seconds: None }
    }

    /// What is asked for is not well said.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", detail)
    }

    /// There is no token, or not one of ours.
    pub fn unauthorized() -> Self {
        let detail = "send `Authorization: Bearer TOKEN` with a token that stands in the file of `api.tokens_file` on this node; \
                      `kentongan ctl token` makes one";
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", detail)
    }

    /// The token's role does not go that far.
    pub fn forbidden(has: super::tokens::Role, wants: super::tokens::Role) -> Self {
        let detail = format!("this wants the role {wants}, and the token has {has}: use another token");
        Self::new(StatusCode::FORBIDDEN, "FORBIDDEN", detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", detail)
    }

    /// There is no such route, or not for this method.
    pub fn no_route(status: StatusCode) -> Self {
        Self::new(status, "NO_SUCH_ROUTE", "see /api/v1/openapi.json for what there is")
    }

    /// It cannot be as things are.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "CONFLICT", detail)
    }

    /// Too many wrong tokens came from there.
    pub fn too_many(seconds: u32) -> Self {
        let detail = "too many wrong tokens came from this address: wait, and use one that is good";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_WRONG_TOKENS", detail);
        Self { retry_after_seconds: Some(seconds), ..problem }
    }

    /// Not now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", detail);
        Self { retry_after_seconds: Some(1), ..problem }
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Invalid(detail) => Self::bad_request(detail),
            AskError::Refused(detail) => Self::conflict(detail),
            AskError::Unavailable(detail) => Self::unavailable(detail),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let status = rejection.status();
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "TOO_LARGE" } else { "BAD_REQUEST" };
        Self::new(status, code, rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let seconds = self.retry_after_seconds;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
