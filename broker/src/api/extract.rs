//! What is read from a request, so that whoever says it wrong gets a [`Problem`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::problem::Problem;

/// What may stand in the query of each route, by its path and method.
#[derive(Debug, Default)]
pub struct QueryNames(BTreeMap<(String, &'static str), BTreeSet<String>>);

impl QueryNames {
    /// As the description has it.
    #[must_use]
    pub fn of(document: &OpenApi) -> Self {
        let mut names = BTreeMap::new();
        for (path, item) in &document.paths.paths {
            let operations =
                [("GET", &item.get), ("PUT", &item.put), ("POST", &item.post), ("DELETE", &item.delete)].into_iter();
            names.extend(
                operations
                    .filter_map(|(method, operation)| Some(((path.clone(), method), in_query(operation.as_ref()?)))),
            );
        }
        Self(names)
    }

    /// # Errors
    /// Something else stands there. It may be one of these, misspelt, and without it something else is done than was meant.
    fn check(&self, parts: &Parts) -> Result<(), Problem> {
        let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let method = if parts.method == Method::HEAD { "GET" } else { parts.method.as_str() };
        let known = self.0.iter().find(|((known, by), _)| known == path && *by == method);
        // Where there is no such thing, that is said.
        let Some((_, known)) = known else { return Ok(()) };
        let axum::extract::Query(given) = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)?;
        let Some((unknown, _)) = given.into_iter().find(|(name, _)| !known.contains(name)) else { return Ok(()) };
        let names: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(Problem::bad_request(format!("{unknown:?} is no parameter of the query here, which are: {names}")))
    }
}

fn in_query(operation: &Operation) -> BTreeSet<String> {
    let name = |parameter: &RefOr<Parameter>| match parameter {
        RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.clone()),
        RefOr::T(_) | RefOr::Ref(_) => None,
    };
    operation.parameters.iter().flatten().filter_map(name).collect()
}

/// Lets only those requests through whose queries have nothing else in them than what is described.
pub(super) async fn check_query(State(names): State<Arc<QueryNames>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match names.check(&parts) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(problem) => problem.into_response(),
    }
}

/// The query of a request.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let axum::extract::Query(query) = axum::extract::Query::from_request_parts(parts, state).await?;
        Ok(Self(query))
    }
}

/// What stands in the path of a request.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let axum::extract::Path(path) = axum::extract::Path::from_request_parts(parts, state).await?;
        Ok(Self(path))
    }
}

/// The body of a request, as JSON.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let axum::Json(body) = axum::Json::from_request(request, state).await?;
        Ok(Self(body))
    }
}
