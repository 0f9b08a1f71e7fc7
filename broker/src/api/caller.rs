//! Who asks, and whether he may.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::problem::Problem;
use super::tokens::{Role, TokenHash};
use super::{Api, Peer};

/// Somebody whose token is good.
#[derive(Debug, Clone)]
pub struct Caller {
    /// As the file of tokens calls him.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// Where he comes from.
    pub address: IpAddr,
    /// His token.
    token: TokenHash,
}

impl Caller {
    /// For the audit log.
    #[must_use]
    pub fn who(&self) -> Value {
        json!({ "api": self.name, "role": self.role.name(), "address": self.address.to_string() })
    }
}

impl Api {
    /// Whether somebody's token is still good, and for as much: for what goes on for long.
    pub(super) fn still_hears(&self, caller: &Caller) -> bool {
        self.tokens().bearer(&caller.token).is_some_and(|bearer| bearer.role >= caller.role)
    }
}

/// Lets only those through whose token is good, and says who it is.
///
/// A good token is always heard: 256 bits of chance are not found by trying, and nobody who sends wrong ones should be able
/// to keep an operator out who comes from the same address. Those who send too many are told so, and have no more lines in
/// the audit log.
pub(super) async fn check(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let response = identified(&api, request, next).await;
    api.count(response.status());
    response
}

async fn identified(api: &Api, mut request: Request, next: Next) -> Response {
    let Some(Peer { address, known }) = request.extensions().get::<Peer>() else {
        return Problem::unauthorized().into_response();
    };
    let address = address.ip().to_canonical();
    let value = request.headers().get(header::AUTHORIZATION);
    let Some(token) = value.and_then(|value| bearer_token(value.as_bytes())) else {
        known.set(false);
        return Problem::unauthorized().into_response();
    };
    let tokens = api.tokens();
    let bearer = TokenHash::of(token).and_then(|token| Some((tokens.bearer(&token)?.clone(), token)));
    known.set(bearer.is_some());
    match bearer {
        Some((bearer, token)) => {
            let caller = Caller { name: bearer.name, role: bearer.role, address, token };
            let what = json!({ "method": request.method().as_str(), "path": request.uri().path() });
            request.extensions_mut().insert(caller.clone());
            let response = next.run(request).await;
            if response.status() == StatusCode::FORBIDDEN {
                api.note_forbidden(&caller, what);
            }
            response
        }
        None => api.refuse_token(address).into_response(),
    }
}

/// The token in a header `Authorization`. The name of the scheme is the same in capitals (RFC 9110, 11.1).
pub(crate) fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"Bearer ";
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(token)
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident, $role:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub Caller);

        impl<S: Send + Sync> FromRequestParts<S> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
                let caller = parts.extensions.get::<Caller>().ok_or_else(Problem::unauthorized)?;
                if caller.role < $role {
                    return Err(Problem::forbidden(caller.role, $role));
                }
                Ok(Self(caller.clone()))
            }
        }
    };
}

role!(
    /// A caller who may see everything.
    Viewer,
    Role::Viewer
);
role!(
    /// A caller who may publish, kick and ban.
    Operates,
    Role::Operator
);
role!(
    /// A caller who may change how nodes run.
    Administers,
    Role::Administrator
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_scheme_may_be_in_capitals_or_not() {
        for value in ["Bearer tabuh", "bearer tabuh", "BEARER tabuh"] {
            assert_eq!(bearer_token(value.as_bytes()), Some(&b"tabuh"[..]), "{value}");
        }
        for value in ["Basic tabuh", "Bearer", "Bearertabuh", ""] {
            assert_eq!(bearer_token(value.as_bytes()), None, "{value}");
        }
    }
}
