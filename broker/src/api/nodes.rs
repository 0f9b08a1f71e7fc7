//! Nodes and groups of the cluster, and what is decided about them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kentongan_cluster::NodeId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::{Administers, Viewer};
use super::extract::{Body, Path, Query};
use super::page::Silent;
use super::problem::Problem;
use super::{Api, Problems, ProblemsOfBodies, result_of};
use crate::operator::control::Reloaded;
use crate::operator::nodes::{Member, NodeHere, group_name};
use crate::operator::{Answers, AskError, NodeName, Operator, Question};

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(nodes))
        .routes(routes!(drain, undrain))
        .routes(routes!(groups))
        .routes(routes!(reload))
        .routes(routes!(log, change_log))
}

/// The node that goes by this name or has this id.
pub(super) fn node_called(operator: &Operator, called: &str) -> Result<NodeName, Problem> {
    let mut meant = operator.nodes()?;
    meant.retain(|node| node.is_called(called));
    match meant.len() {
        1 => Ok(meant.remove(0)),
        0 => Err(Problem::not_found(format!("no node is called {called:?}: see /api/v1/nodes"))),
        _ => {
            Err(Problem::conflict(format!("several nodes are called {called:?}: say the id of one, see /api/v1/nodes")))
        }
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Node {
    /// Its name.
    pub node: String,
    /// Its id.
    pub id: String,
    /// `running`, `down`, or `silent` if the directory has it and it does not answer.
    pub node_status: String,
    /// What it may do: `serving` everything. Null if it does not answer.
    pub standing: Option<String>,
    /// Its program's version.
    pub version: Option<String>,
    /// Seconds since its process started.
    pub uptime_seconds: Option<u64>,
    /// Clients connected to it.
    pub connections: Option<u64>,
    /// For how many milliseconds it may still acknowledge; null: no end, or it does not answer.
    pub lease_ms_left: Option<u64>,
    /// How many groups it leads, the directory among them.
    pub leads: Option<usize>,
    /// Where clients dial it.
    pub client_address: String,
    /// Where other nodes dial it; empty if it is alone.
    pub peer_address: String,
    /// What it shares its fate with.
    pub zone: String,
    /// An operator drains it.
    pub drains: bool,
    /// Its process is about to end.
    pub stops: bool,
    /// It is to go.
    pub leaves: bool,
}

/// The nodes of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Nodes {
    /// The cluster, in hexadecimal digits; empty if the node is alone.
    pub cluster: String,
    /// By their names.
    pub data: Vec<Node>,
}

/// Nodes of the cluster, and how they are
#[utoipa::path(
    get, path = "/nodes", operation_id = "listNodes", tag = "cluster",
    responses((status = 200, description = "All of them", body = Nodes), Problems)
)]
async fn nodes(State(api): State<Arc<Api>>, _: Viewer) -> Result<Json<Nodes>, Problem> {
    let list = |operator: &Operator| {
        let members = operator.all_members()?;
        let answers = operator.ask_all::<NodeHere>(&Question::Node)?;
        let answer =
            |member: &Member| answers.iter().find(|(node, _)| node.node == member.node).map(|(_, answer)| answer);
        let cluster = answers.iter().find_map(|(_, answer)| answer.as_ref().ok().map(|here| here.cluster.clone()));
        let data =
            members.iter().map(|member| node_row(member, answer(member).and_then(|answer| answer.as_ref().ok())));
        Ok(Nodes { cluster: cluster.unwrap_or_default(), data: data.collect() })
    };
    api.blocking(list).await.map(Json)
}

fn node_row(member: &Member, here: Option<&NodeHere>) -> Node {
    let Member { node, name, peer_address, client_address, zone, lives, drains, stops, leaves } = member.clone();
    let node_status = match here {
        Some(_) => "running",
        None if lives => "silent",
        None => "down",
    };
    Node {
        node: name,
        id: NodeId(node).to_string(),
        node_status: node_status.to_owned(),
        standing: here.map(|here| here.standing.clone()),
        version: here.map(|here| here.version.clone()),
        uptime_seconds: here.map(|here| here.uptime_seconds),
        connections: here.map(|here| here.connections),
        lease_ms_left: here.and_then(|here| here.lease_ms_left),
        leads: here.map(|here| here.groups.iter().filter(|group| group.leads).count()),
        client_address,
        peer_address,
        zone,
        drains,
        stops,
        leaves,
    }
}

/// Whether a node is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Drained {
    /// Its name.
    pub node: String,
    /// Whether it is to lead nothing and to have no clients.
    pub drains: bool,
}

/// Drain a node
///
/// Its groups and clients go to other nodes, at a bounded rate; answers when that is decided, not when it is done: see
/// `/nodes`.
#[utoipa::path(
    post, path = "/nodes/{node}/drain", operation_id = "drainNode", tag = "cluster", params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "It is being drained", body = Drained), Problems)
)]
async fn drain(
    State(api): State<Arc<Api>>,
    Administers(caller): Administers,
    Path(called): Path<String>,
) -> Result<Json<Drained>, Problem> {
    set_drained(&api, &caller, called, true).await
}

/// Let a drained node have clients again
#[utoipa::path(
    delete, path = "/nodes/{node}/drain", operation_id = "undrainNode", tag = "cluster", params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "It is not drained any more", body = Drained), Problems)
)]
async fn undrain(
    State(api): State<Arc<Api>>,
    Administers(caller): Administers,
    Path(called): Path<String>,
) -> Result<Json<Drained>, Problem> {
    set_drained(&api, &caller, called, false).await
}

async fn set_drained(
    api: &Api,
    caller: &super::caller::Caller,
    called: String,
    on: bool,
) -> Result<Json<Drained>, Problem> {
    let what = json!({ "node": called });
    let outcome = api
        .blocking(move |operator| {
            let node = node_called(operator, &called)?;
            let takes = |other: &Member| {
                other.node != node.node && other.lives && !other.leaves && !other.drains && !other.stops
            };
            if on && !operator.all_members()?.iter().any(takes) {
                let name = &node.name;
                return Err(Problem::conflict(format!(
                    "no other node could take what {name} has: all others are down, drained or leaving"
                )));
            }
            operator.drain(node.node, on)?;
            Ok(Drained { node: node.name, drains: on })
        })
        .await;
    api.audit(caller, if on { "drain" } else { "undrain" }, what, result_of(&outcome));
    outcome.map(Json)
}

/// A group of sessions and retained messages, or the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Group {
    /// Its number, or `directory`.
    pub group: String,
    /// The node that leads it; null: none that answers.
    pub leader: Option<String>,
    /// The latest term.
    pub term: u64,
    /// The index up to which its leader knows entries to be committed.
    pub committed: u64,
    /// The nodes that vote in it.
    pub voters: Vec<String>,
    /// Those that follow it without a vote.
    pub learners: Vec<String>,
}

/// All groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Groups {
    /// By their numbers, the directory last.
    pub data: Vec<Group>,
    /// Nodes that do not say what they keep.
    pub unavailable: Vec<Silent>,
}

/// Groups, and who keeps and leads them
#[utoipa::path(
    get, path = "/groups", operation_id = "listGroups", tag = "cluster",
    responses((status = 200, description = "All of them", body = Groups), Problems)
)]
async fn groups(State(api): State<Arc<Api>>, _: Viewer) -> Result<Json<Groups>, Problem> {
    let list = |operator: &Operator| {
        let answers = operator.ask_all::<NodeHere>(&Question::Node)?;
        let named = |id: u64| {
            let known = answers.iter().find(|(node, _)| node.node == id);
            known.map_or_else(|| NodeId(id).to_string(), |(node, _)| node.name.clone())
        };
        let mut newest = std::collections::BTreeMap::new();
        for (node, answer) in &answers {
            for seen in answer.iter().flat_map(|here| &here.groups) {
                let rank = (seen.leads, seen.term, seen.committed);
                let known = newest.entry(seen.group).or_insert((rank, node, seen));
                if rank > known.0 {
                    *known = (rank, node, seen);
                }
            }
        }
        let group =
            |((leads, ..), node, seen): ((bool, u64, u64), &NodeName, &crate::operator::nodes::GroupHere)| Group {
                group: group_name(seen.group),
                leader: leads.then(|| node.name.clone()),
                term: seen.term,
                committed: seen.committed,
                voters: seen.voters.iter().map(|&id| named(id)).collect(),
                learners: seen.learners.iter().map(|&id| named(id)).collect(),
            };
        let data = newest.into_values().map(group).collect();
        Ok(Groups { data, unavailable: silent(&answers) })
    };
    api.blocking(list).await.map(Json)
}

fn silent<T>(answers: &[(NodeName, Result<T, AskError>)]) -> Vec<Silent> {
    let silent = |(node, answer): &(NodeName, Result<T, AskError>)| {
        let detail = answer.as_ref().err()?.to_string();
        Some(Silent { node: node.name.clone(), detail })
    };
    answers.iter().filter_map(silent).collect()
}

/// Which nodes.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct WhichNodes {
    /// Only this one, by its name or id. Without it, all.
    node: Option<String>,
}

/// What came of reading the settings again on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeReloaded {
    /// Its name.
    pub node: String,
    /// Whether they are in force.
    pub applied: bool,
    /// Settings that changed and are in force.
    pub changed: Vec<String>,
    /// Settings that changed and need a restart.
    pub needs_restart: Vec<String>,
    /// Why they are not in force: everything stayed as it was.
    pub detail: Option<String>,
}

/// What came of it on each node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AllReloaded {
    /// By their ids.
    pub data: Vec<NodeReloaded>,
}

fn ask_which<T: serde::de::DeserializeOwned>(
    operator: &Operator,
    which: WhichNodes,
    question: &Question,
) -> Result<Answers<T>, Problem> {
    let Some(called) = which.node else { return Ok(operator.ask_all(question)?) };
    let node = node_called(operator, &called)?;
    let answer = operator.ask(node.node, question);
    Ok(vec![(node, answer)])
}

/// Have settings, users, rights, tokens and certificates read again
///
/// Each node reads its own files, as on SIGHUP; if anything is wrong with them, everything stays as it was there.
#[utoipa::path(
    post, path = "/reload", operation_id = "reload", tag = "cluster", params(WhichNodes),
    responses((status = 200, description = "What came of it", body = AllReloaded), Problems)
)]
async fn reload(
    State(api): State<Arc<Api>>,
    Administers(caller): Administers,
    Query(which): Query<WhichNodes>,
) -> Result<Json<AllReloaded>, Problem> {
    let what = json!({ "node": which.node });
    let outcome = api
        .blocking(move |operator| {
            let answers = ask_which::<Reloaded>(operator, which, &Question::Reload)?;
            let row = |(node, answer): (NodeName, Result<Reloaded, AskError>)| {
                let (reloaded, detail) = match answer {
                    Ok(reloaded) => (Some(reloaded), None),
                    Err(error) => (None, Some(error.to_string())),
                };
                let applied = reloaded.is_some();
                let Reloaded { changed, needs_restart } = reloaded.unwrap_or_default();
                NodeReloaded { node: node.name, applied, changed, needs_restart, detail }
            };
            Ok(AllReloaded { data: answers.into_iter().map(row).collect() })
        })
        .await;
    api.audit(&caller, "ask to reload", what, result_of(&outcome));
    outcome.map(Json)
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogFilter {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or several with modules, such as
    /// `info,kentongan::session=debug`.
    #[schema(min_length = 1, max_length = 1000, example = "info,kentongan::session=debug")]
    pub filter: String,
}

/// What a node logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeLog {
    /// Its name.
    pub node: String,
    /// What it logs; null if it does not answer.
    pub filter: Option<String>,
    /// Why it does not.
    pub detail: Option<String>,
}

/// What each node logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AllLogs {
    /// By their ids.
    pub data: Vec<NodeLog>,
}

fn logs(operator: &Operator, which: WhichNodes, filter: Option<String>) -> Result<AllLogs, Problem> {
    let row = |(node, answer): (NodeName, Result<String, AskError>)| {
        let (filter, detail) = match answer {
            Ok(filter) => (Some(filter), None),
            Err(error) => (None, Some(error.to_string())),
        };
        NodeLog { node: node.name, filter, detail }
    };
    let answers = ask_which(operator, which, &Question::Log(filter))?;
    Ok(AllLogs { data: answers.into_iter().map(row).collect() })
}

/// What nodes log
#[utoipa::path(
    get, path = "/log", operation_id = "showLog", tag = "cluster", params(WhichNodes),
    responses((status = 200, description = "The filter of each", body = AllLogs), Problems)
)]
async fn log(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(which): Query<WhichNodes>,
) -> Result<Json<AllLogs>, Problem> {
    api.blocking(move |operator| logs(operator, which, None)).await.map(Json)
}

/// Change what nodes log
///
/// Until the settings are read again, or the node is started again.
#[utoipa::path(
    put, path = "/log", operation_id = "changeLog", tag = "cluster", params(WhichNodes), request_body = LogFilter,
    responses((status = 200, description = "The filter of each", body = AllLogs), Problems, ProblemsOfBodies)
)]
async fn change_log(
    State(api): State<Arc<Api>>,
    Administers(caller): Administers,
    Query(which): Query<WhichNodes>,
    Body(LogFilter { filter }): Body<LogFilter>,
) -> Result<Json<AllLogs>, Problem> {
    if filter.is_empty() || filter.len() > 1000 {
        return Err(Problem::bad_request("`filter` must have 1 to 1000 bytes, such as `info`"));
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&filter) {
        let message = format!("`filter`: {error}; a level such as `info`, or `info,kentongan::session=debug`");
        return Err(Problem::bad_request(message));
    }
    let what = json!({ "node": which.node, "filter": filter });
    let outcome = api.blocking(move |operator| logs(operator, which, Some(filter))).await;
    api.audit(&caller, "change log", what, result_of(&outcome));
    outcome.map(Json)
}
