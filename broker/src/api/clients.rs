//! Clients that are connected, on whichever node.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::Viewer;
use super::extract::Query;
use super::page::{PageAsked, PageMeta, Silent};
use super::problem::Problem;
use super::{Api, Problems};
use crate::operator::clients::{Client, ClientFilter, ClientsAsked, ClientsFrom, SomeClients};
use crate::operator::{AskError, NodeName, Operator, Question};

/// What is looked at for one page over all nodes, however little of it is wanted.
const LOOKED_AT_MAX: usize = 500_000;

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Which clients.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only those of this node, by its name or id.
    node: Option<String>,
    /// Only those of this user.
    username: Option<String>,
    /// Only those with this in their Client Identifiers.
    like_clientid: Option<String>,
    /// Only those from this address.
    #[param(value_type = Option<String>, example = "192.0.2.7")]
    ip_address: Option<IpAddr>,
}

/// Where a walk over all nodes goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct From {
    node: u64,
    at: ClientsFrom,
}

/// A page of clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClientsPage {
    /// In no order that means anything; who is connected all the while stands on one page.
    pub data: Vec<Client>,
    /// Where it goes on.
    pub meta: PageMeta,
    /// Nodes whose clients are missing.
    pub unavailable: Vec<Silent>,
}

/// Clients that are connected
///
/// Over all nodes. A filter that few meet may give pages with few rows, or none, although more follow.
#[utoipa::path(
    get, path = "/clients", tag = "clients", params(Wanted, PageAsked),
    responses((status = 200, description = "A page of them", body = ClientsPage), Problems)
)]
async fn list(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(wanted): Query<Wanted>,
    Query(page): Query<PageAsked>,
) -> Result<Json<ClientsPage>, Problem> {
    let (limit, from) = (page.limit()?, page.begin::<From>()?);
    api.blocking(move |operator| walk(operator, wanted, limit, from)).await.map(Json)
}

fn walk(operator: &Operator, wanted: Wanted, limit: usize, mut from: From) -> Result<ClientsPage, Problem> {
    let Wanted { node, username, like_clientid, ip_address } = wanted;
    let filter = ClientFilter { username, like_clientid, ip_address };
    let mut nodes = operator.nodes();
    if let Some(called) = node {
        nodes.retain(|node| node.is_called(&called));
        if nodes.is_empty() {
            return Err(Problem::not_found(format!("no node is called {called}: see /api/v1/nodes")));
        }
    }
    let (mut data, mut unavailable, mut looked_at) = (Vec::new(), Vec::new(), 0);
    let mut next = None;
    nodes.retain(|node| node.node >= from.node);
    for node in nodes {
        if node.node != from.node {
            from = From { node: node.node, at: ClientsFrom::default() };
        }
        loop {
            if data.len() >= limit || looked_at >= LOOKED_AT_MAX {
                next = Some(from);
                break;
            }
            let asked = ClientsAsked { from: from.at, limit: limit - data.len(), filter: filter.clone() };
            match ask(operator, &node, asked) {
                Ok(some) => {
                    looked_at += some.looked_at;
                    data.extend(some.clients);
                    match some.next {
                        Some(at) => from.at = at,
                        None => break,
                    }
                }
                Err(error) => {
                    unavailable.push(Silent { node: node.name.clone(), detail: error.to_string() });
                    break;
                }
            }
        }
        if next.is_some() {
            break;
        }
    }
    let meta = PageMeta::new(limit, data.len(), next.as_ref());
    Ok(ClientsPage { data, meta, unavailable })
}

fn ask(operator: &Operator, node: &NodeName, asked: ClientsAsked) -> Result<SomeClients, AskError> {
    if !node.lives {
        return Err(AskError::Unavailable("it is down".to_owned()));
    }
    operator.ask(node.node, &Question::Clients(asked))
}
