//! Clients that are connected, on whichever node, and what they subscribe to.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::{Operates, Viewer};
use super::extract::{Path, Query};
use super::page::{PageAsked, PageMeta, Silent};
use super::problem::Problem;
use super::{Api, Problems, result_of};
use crate::operator::clients::{
    Client, ClientFilter, ClientsAsked, ClientsFrom, SomeClients, SomeSubscriptions, Subscription, SubscriptionsAsked,
    SubscriptionsFrom,
};
use crate::operator::in_turn::InTurn;
use crate::operator::{AskError, NodeName, Operator, Question};

/// What is looked at for one page over all nodes, however little of it is wanted.
const LOOKED_AT_MAX: usize = 500_000;

/// What is looked at for a part of the subscriptions, at most.
const LOOKED_AT_A_PART: usize = 200_000;

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, kick)).routes(routes!(subscriptions))
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct From<T> {
    node: u64,
    at: T,
}

/// What one node had of a list.
struct Part<R, T> {
    rows: Vec<R>,
    next: Option<T>,
    looked_at: usize,
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
    get, path = "/clients", operation_id = "listClients", tag = "clients", params(Wanted, PageAsked),
    responses((status = 200, description = "A page of them", body = ClientsPage), Problems)
)]
async fn list(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(wanted): Query<Wanted>,
    Query(page): Query<PageAsked>,
) -> Result<Json<ClientsPage>, Problem> {
    let (limit, from) = (page.limit()?, page.begin::<From<ClientsFrom>>()?);
    let list = move |operator: &Operator| {
        let Wanted { node, username, like_clientid, ip_address } = wanted;
        let filter = ClientFilter { username, like_clientid, ip_address };
        let nodes = match node {
            Some(called) => vec![super::nodes::node_called(operator, &called)?],
            None => operator.nodes()?,
        };
        let question = |from, limit| Question::Clients(ClientsAsked { from, limit, filter: filter.clone() });
        let (data, next, unavailable) = walk(operator, nodes, limit, from, question, |some: SomeClients| Part {
            rows: some.clients,
            next: some.next,
            looked_at: some.looked_at,
        });
        let meta = PageMeta::new(limit, data.len(), next.as_ref());
        Ok(ClientsPage { data, meta, unavailable })
    };
    api.blocking(list).await.map(Json)
}

/// Goes from node to node, in the order of their ids, until there are enough rows or enough was looked at.
fn walk<A: DeserializeOwned, R, T: Clone + Default>(
    operator: &Operator,
    mut nodes: Vec<NodeName>,
    limit: usize,
    mut from: From<T>,
    question: impl Fn(T, usize) -> Question,
    part: impl Fn(A) -> Part<R, T>,
) -> (Vec<R>, Option<From<T>>, Vec<Silent>) {
    let (mut rows, mut unavailable, mut looked_at) = (Vec::new(), Vec::new(), 0);
    nodes.retain(|node| node.node >= from.node);
    let mut in_turn = InTurn::new(operator, nodes.iter().filter(|node| node.lives).map(|node| node.node));
    for node in nodes {
        if node.node != from.node {
            from = From { node: node.node, at: T::default() };
        }
        loop {
            if rows.len() >= limit || looked_at >= LOOKED_AT_MAX {
                return (rows, Some(from), unavailable);
            }
            let answer = match node.lives {
                true => in_turn.ask(node.node, &question(from.at.clone(), limit - rows.len())),
                false => Err(AskError::Unavailable("it is down".to_owned())),
            };
            match answer.map(&part) {
                Ok(part) => {
                    looked_at += part.looked_at;
                    rows.extend(part.rows);
                    match part.next {
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
    }
    (rows, None, unavailable)
}

/// The client of a name
#[utoipa::path(
    get, path = "/clients/{clientid}", operation_id = "showClient", tag = "clients", params(("clientid" = String, Path, description = "Client Identifier, URL-encoded")),
    responses((status = 200, description = "It is connected", body = Client), Problems)
)]
async fn show(State(api): State<Arc<Api>>, _: Viewer, Path(client_id): Path<String>) -> Result<Json<Client>, Problem> {
    let find = move |operator: &Operator| {
        let answers = operator.ask_all::<Option<Client>>(&Question::Client(client_id.clone()))?;
        first_of(answers)?.ok_or_else(|| not_connected(&client_id))
    };
    api.blocking(find).await.map(Json)
}

/// Close a client's connection
///
/// It may come again at once: ban it if it should not. Its session stays, if it outlives the connection. A client of MQTT 5 is
/// told that it was an administrator's doing.
#[utoipa::path(
    delete, path = "/clients/{clientid}", operation_id = "kickClient", tag = "clients", params(("clientid" = String, Path, description = "Client Identifier, URL-encoded")),
    responses((status = 204, description = "It is closed"), Problems)
)]
async fn kick(
    State(api): State<Arc<Api>>,
    Operates(caller): Operates,
    Path(client_id): Path<String>,
) -> Result<StatusCode, Problem> {
    let named = client_id.clone();
    let outcome = api
        .blocking(move |operator| {
            let answers = operator.ask_all::<bool>(&Question::Kick(client_id.clone()))?;
            let kicked = answers.into_iter().map(|(node, answer)| (node, answer.map(|kicked| kicked.then_some(()))));
            first_of(kicked.collect())?.ok_or_else(|| not_connected(&client_id))
        })
        .await;
    api.audit(&caller, "kick", json!({ "client_id": named }), result_of(&outcome));
    outcome.map(|()| StatusCode::NO_CONTENT)
}

fn not_connected(client_id: &str) -> Problem {
    Problem::not_found(format!(
        "no client {client_id:?} is connected; a session without a connection is among /api/v1/sessions"
    ))
}

/// The one answer that there is; that some node did not answer counts only if no other has it.
fn first_of<T>(answers: Vec<(NodeName, Result<Option<T>, AskError>)>) -> Result<Option<T>, Problem> {
    let mut silent = None;
    for (node, answer) in answers {
        match answer {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(error) if node.lives => silent = Some(Problem::unavailable(format!("{}: {error}", node.name))),
            // A node that is down has no clients.
            Err(_) => {}
        }
    }
    silent.map_or(Ok(None), Err)
}

/// Which subscriptions.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct WantedSubscriptions {
    /// Only those of this client.
    clientid: Option<String>,
    /// Only those with this very Topic Filter.
    topic: Option<String>,
    /// Only those that match this Topic Name.
    match_topic: Option<String>,
}

/// A page of subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SubscriptionsPage {
    /// In no order that means anything.
    pub data: Vec<Subscription>,
    /// Where it goes on.
    pub meta: PageMeta,
    /// Nodes whose clients are missing.
    pub unavailable: Vec<Silent>,
}

/// Subscriptions of connected clients
///
/// Over all nodes. Those of sessions without a connection stand with their sessions.
#[utoipa::path(
    get, path = "/subscriptions", operation_id = "listSubscriptions", tag = "subscriptions", params(WantedSubscriptions, PageAsked),
    responses((status = 200, description = "A page of them", body = SubscriptionsPage), Problems)
)]
async fn subscriptions(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(wanted): Query<WantedSubscriptions>,
    Query(page): Query<PageAsked>,
) -> Result<Json<SubscriptionsPage>, Problem> {
    let (limit, from) = (page.limit()?, page.begin::<From<SubscriptionsFrom>>()?);
    let list =
        move |operator: &Operator| {
            let WantedSubscriptions { clientid, topic, match_topic } = wanted;
            let asked = SubscriptionsAsked { clientid, topic, match_topic, ..SubscriptionsAsked::default() };
            let nodes = operator.nodes()?;
            let question = |from, limit| Question::Subscriptions(SubscriptionsAsked { from, limit, ..asked.clone() });
            let (data, next, unavailable) = walk(operator, nodes, limit, from, question, |some: SomeSubscriptions| {
                Part { rows: some.subscriptions, next: some.next, looked_at: LOOKED_AT_A_PART }
            });
            let meta = PageMeta::new(limit, data.len(), next.as_ref());
            Ok(SubscriptionsPage { data, meta, unavailable })
        };
    api.blocking(list).await.map(Json)
}
