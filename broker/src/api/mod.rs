//! What operators ask and do over HTTP: `/api/v1`, over the whole cluster from any node.
//!
//! A request is let through by its token ([`caller`]), its handler asks [`crate::operator`] on a thread that may wait, and
//! what cannot be done is said as a [`problem`]. Each file of routes has its own `routes()`, described for OpenAPI beside the
//! code ([`document`]). What changes anything goes to the audit log ([`Api::audit`]).
//!
//! It runs on threads of its own, so that neither a long list nor a slow reader of one ever delays a packet. Absent: what
//! nodes know, and how they are asked.

pub mod bans;
pub mod caller;
mod certificate;
pub mod clients;
pub mod extract;
pub mod nodes;
pub mod page;
pub mod problem;
pub mod publish;
mod refusals;
mod server;
pub mod sessions;
pub mod tokens;
pub mod users;
pub mod watching;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder,
};
use utoipa::{IntoResponses, ToSchema as _};
use utoipa_axum::router::OpenApiRouter;

use crate::http::bounded::Known;
use crate::metrics::{ApiMetrics, ApiOutcome};
use crate::operator::Operator;
use problem::Problem;
use refusals::{Refusal, Refusals};
pub use server::{ApiServer, NewCertificate, start};
use tokens::Tokens;

/// Requests that threads work at, at a time; others wait for a while.
const AT_A_TIME_MAX: usize = 8;

/// How long a request waits for others.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Where everything stands.
const PREFIX: &str = "/api/v1";

/// Who is at the other end of the connection that a request came by.
#[derive(Debug, Clone)]
struct Peer {
    address: SocketAddr,
    /// Whether the connection belongs to somebody with a good token.
    known: Known,
}

/// What all requests share.
#[derive(Debug)]
pub struct Api {
    operator: Arc<Operator>,
    tokens: RwLock<Arc<Tokens>>,
    refusals: Mutex<Refusals>,
    permits: Arc<Semaphore>,
    metrics: ApiMetrics,
}

impl Api {
    /// For those who have one of `tokens`.
    #[must_use]
    pub fn new(operator: Arc<Operator>, tokens: Tokens, metrics: ApiMetrics) -> Self {
        Self {
            operator,
            tokens: RwLock::new(Arc::new(tokens)),
            refusals: Mutex::default(),
            permits: Arc::new(Semaphore::new(AT_A_TIME_MAX)),
            metrics,
        }
    }

    /// The way to this node and the others. It waits, so use it in [`Self::blocking`].
    #[must_use]
    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    /// Lets in those who have one of these from here on, and nobody else.
    pub fn change_tokens(&self, tokens: Tokens) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something that waits, on a thread that may.
    ///
    /// # Errors
    /// What it says, or that too many others wait.
    pub async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Operator) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let busy = || Problem::unavailable("too many requests are under way on this node: ask again");
        let permit = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.permits).acquire_owned());
        let permit = permit.await.ok().and_then(Result::ok).ok_or_else(busy)?;
        let operator = Arc::clone(&self.operator);
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            act(&operator)
        });
        work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request of the API was not carried out");
            Err(Problem::unavailable("this node failed to do that; its log says why"))
        })
    }

    /// Records what somebody did or wanted to do.
    pub fn audit(&self, caller: &caller::Caller, event: &str, what: Value, result: &str) {
        let shared = self.operator.shared();
        let who = caller.who();
        tracing::info!(event, %who, %what, result, "an operator's wish");
        shared.audit.record(shared.clock.wall_ms(), event, who, what, result);
    }

    /// Counts an answer.
    fn count(&self, status: StatusCode) {
        self.metrics.count(match status {
            StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS => ApiOutcome::Unauthorized,
            status if status.is_server_error() => ApiOutcome::Unavailable,
            status if status.is_client_error() => ApiOutcome::Refused,
            _ => ApiOutcome::Answered,
        });
    }

    /// Somebody sent a wrong token.
    /// Somebody asked for what his role does not go as far as; in the audit log at the rate of wrong tokens.
    fn note_forbidden(&self, caller: &caller::Caller, what: Value) {
        let now = self.operator.shared().clock.now_ms() / 1000;
        let refusal = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).count(caller.address, now);
        if matches!(refusal, Refusal::Named) {
            self.audit(caller, "api request", what, "refused: the role does not go that far");
        }
    }

    fn refuse_token(&self, address: IpAddr) -> Problem {
        let shared = self.operator.shared();
        let now = shared.clock.now_ms() / 1000;
        let refusal = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).count(address, now);
        match refusal {
            Refusal::TooMany(seconds) => Problem::too_many(seconds),
            Refusal::Named => {
                tracing::warn!(%address, "a wrong token for the API");
                let who = json!({ "address": address.to_string() });
                shared.audit.record(shared.clock.wall_ms(), "api login", who, Value::Null, "refused: wrong token");
                Problem::unauthorized()
            }
        }
    }
}

/// What became of something that an operator did, for the audit log.
fn result_of<T>(outcome: &Result<T, Problem>) -> &str {
    match outcome {
        Ok(_) => "done",
        Err(problem) => &problem.detail,
    }
}

/// The problems that any route may answer with: status, what its response is called in the description, and what it means.
const PROBLEMS: [(u16, &str, &str); 7] = [
    (400, "BadRequest", "The request is not well said."),
    (401, "Unauthorized", "The token is missing or wrong."),
    (403, "Forbidden", "The token's role does not go that far."),
    (404, "NotFound", "There is no such thing."),
    (409, "Conflict", "It cannot be as things are."),
    (429, "TooManyWrongTokens", "Too many wrong tokens came from this address."),
    (503, "Unavailable", "Not now: ask again."),
];

/// The same, of those routes that take a body.
const PROBLEMS_OF_BODIES: [(u16, &str, &str); 3] = [
    (413, "TooLarge", "The body is too large."),
    (415, "NoJson", "The body is not said to be JSON."),
    (422, "NotAsDescribed", "The body is JSON, and not as described here."),
];

/// [`PROBLEMS`], for the description of a route: each says only where it stands.
#[derive(Debug)]
struct Problems;

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        references(&PROBLEMS)
    }
}

/// [`PROBLEMS_OF_BODIES`], beside [`Problems`].
#[derive(Debug)]
struct ProblemsOfBodies;

impl IntoResponses for ProblemsOfBodies {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        references(&PROBLEMS_OF_BODIES)
    }
}

fn references(problems: &[(u16, &str, &str)]) -> BTreeMap<String, RefOr<Response>> {
    let reference = |name| RefOr::Ref(Ref::from_response_name(name));
    problems.iter().map(|&(status, name, _)| (status.to_string(), reference(name))).collect()
}

/// What stands once and is referred to.
fn components() -> ComponentsBuilder {
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let base = ComponentsBuilder::new().security_scheme("token", bearer).schema_from::<Problem>();
    PROBLEMS.iter().chain(&PROBLEMS_OF_BODIES).fold(base, |components, &(_, name, text)| {
        let schema = Content::new(Some(Ref::from_schema_name(Problem::name())));
        let response = ResponseBuilder::new().description(text).content("application/problem+json", schema);
        components.response(name, response.build())
    })
}

/// The description of everything, as docs/reference/api.json has it.
#[must_use]
pub fn document() -> OpenApi {
    described().into_openapi()
}

/// [`document`] as the reference page is written.
#[must_use]
pub fn reference_page() -> String {
    let mut page = document().to_pretty_json().expect("a description is made of what JSON can express");
    page.push('\n');
    page
}

fn described() -> OpenApiRouter<Arc<Api>> {
    let info = InfoBuilder::new()
        .title("Kentongan")
        .version("1")
        .description(Some(
            "What operators ask of the nodes of a cluster and have them do, from any of them. Lists come a page at a time; \
             what cannot be done is answered with problem details (RFC 9457), and so is a query with a parameter that is not described.",
        ))
        .build();
    let base = OpenApiBuilder::new()
        .info(info)
        .components(Some(components().build()))
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build();
    let routes = OpenApiRouter::new()
        .merge(clients::routes())
        .merge(sessions::routes())
        .merge(publish::routes())
        .merge(bans::routes())
        .merge(users::routes())
        .merge(nodes::routes())
        .merge(watching::routes());
    OpenApiRouter::with_openapi(base).nest(PREFIX, routes)
}

fn router(api: &Arc<Api>) -> Router {
    let (routes, document) = described().split_for_parts();
    let query_names = Arc::new(extract::QueryNames::of(&document));
    // Anybody may ask for it, so it is put into words once.
    let document = Bytes::from(serde_json::to_vec(&document).expect("a description is made of what JSON can express"));
    let document = ([(header::CONTENT_TYPE, "application/json")], document);
    routes
        .route_layer(middleware::from_fn_with_state(query_names, extract::check_query))
        .route_layer(middleware::from_fn_with_state(Arc::clone(api), caller::check))
        .route(&format!("{PREFIX}/openapi.json"), get(async move || document.clone()))
        .fallback(async || Problem::no_route(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || Problem::no_route(StatusCode::METHOD_NOT_ALLOWED))
        .with_state(Arc::clone(api))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_described_once_and_referred_to() {
        let page = reference_page();
        for (status, name, text) in PROBLEMS.into_iter().chain(PROBLEMS_OF_BODIES) {
            assert_eq!(page.matches(text).count(), 1, "{name}");
            let reference = format!(r##""$ref": "#/components/responses/{name}""##);
            assert!(page.contains(&reference), "{status} {reference}");
        }
        let operations = page.matches(r#""operationId""#).count();
        assert_eq!(page.matches("#/components/responses/Unavailable").count(), operations, "each may be unavailable");
        let with_body = page.matches(r#""requestBody""#).count();
        assert_eq!(page.matches("#/components/responses/NotAsDescribed").count(), with_body, "any body may be wrong");
    }
}
