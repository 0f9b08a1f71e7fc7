//! Sessions that outlive their connections, and retained messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use kentongan_proto::mqtt::{PublishProperties, QoS};
use kentongan_proto::topic::{TopicFilter, check_topic_name};
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
use crate::operator::publish::ToPublish;
use crate::operator::sessions::{
    GroupLeaders, Part, RetainedAsked, RetainedMessage, Session, SessionDetail, SessionsAsked,
};
use crate::operator::{AskError, Operator, Question};

/// Questions to groups for one page, however little of what they have is wanted.
const QUESTIONS_MAX: usize = 200;

/// Time for a retained message to be gone.
const DELETED_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks whether it is.
const DELETED_PAUSE: Duration = Duration::from_millis(20);

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, discard))
        .routes(routes!(retained))
        .routes(routes!(show_retained, delete_retained))
}

/// Which sessions.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only those of this user.
    username: Option<String>,
    /// Only those with this in their Client Identifiers.
    like_clientid: Option<String>,
    /// Only those that have, or have not, a connection.
    connected: Option<bool>,
}

/// Where a walk over all groups goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct From {
    group: u16,
    after: Option<String>,
}

/// A page of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SessionsPage {
    /// By their groups, and there by their names.
    pub data: Vec<Session>,
    /// Where it goes on.
    pub meta: PageMeta,
    /// Groups whose sessions are missing; `node` says which group.
    pub unavailable: Vec<Silent>,
}

/// Sessions that outlive their connections
///
/// With and without a connection, over all nodes.
#[utoipa::path(
    get, path = "/sessions", operation_id = "listSessions", tag = "sessions", params(Wanted, PageAsked),
    responses((status = 200, description = "A page of them", body = SessionsPage), Problems)
)]
async fn list(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(wanted): Query<Wanted>,
    Query(page): Query<PageAsked>,
) -> Result<Json<SessionsPage>, Problem> {
    let (limit, from) = (page.limit()?, page.begin::<From>()?);
    let list = move |operator: &Operator| {
        let (data, next, unavailable) = walk(operator, limit, from, |From { group, after }, limit| {
            let Wanted { username, like_clientid, connected } = wanted.clone();
            Question::Sessions(SessionsAsked { group, after, limit, username, like_clientid, connected })
        })?;
        let meta = PageMeta::new(limit, data.len(), next.as_ref());
        Ok(SessionsPage { data, meta, unavailable })
    };
    api.blocking(list).await.map(Json)
}

type Walked<R> = (Vec<R>, Option<From>, Vec<Silent>);

/// Goes from group to group, each asked of its leader, until there are enough rows.
fn walk<R: DeserializeOwned>(
    operator: &Operator,
    limit: usize,
    mut from: From,
    question: impl Fn(From, usize) -> Question,
) -> Result<Walked<R>, AskError> {
    let mut leaders = GroupLeaders::new(operator, from.group)?;
    let (mut rows, mut unavailable) = (Vec::new(), Vec::new());
    let mut questions = 0;
    while usize::from(from.group) < leaders.groups() {
        if rows.len() >= limit || questions == QUESTIONS_MAX {
            return Ok((rows, Some(from), unavailable));
        }
        questions += 1;
        let asked = question(from.clone(), limit - rows.len());
        let next = match leaders.ask::<Part<R>>(from.group, &asked) {
            Ok(part) => {
                rows.extend(part.rows);
                part.next
            }
            Err(error) => {
                unavailable.push(Silent { node: format!("group {}", from.group), detail: error.to_string() });
                None
            }
        };
        from = match next {
            Some(after) => From { after: Some(after), ..from },
            None => From { group: from.group + 1, after: None },
        };
    }
    Ok((rows, None, unavailable))
}

/// The session of a name, and what it subscribes to
#[utoipa::path(
    get, path = "/sessions/{clientid}", operation_id = "showSession", tag = "sessions", params(("clientid" = String, Path, description = "Client Identifier, URL-encoded")),
    responses((status = 200, description = "There is one", body = SessionDetail), Problems)
)]
async fn show(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Path(client_id): Path<String>,
) -> Result<Json<SessionDetail>, Problem> {
    let find = move |operator: &Operator| {
        let group = operator.shared().submitter.slots().group_of(&client_id);
        let found = operator.ask_leader::<Option<SessionDetail>>(group, &Question::Session(client_id.clone()))?;
        found.ok_or_else(|| no_session(&client_id))
    };
    api.blocking(find).await.map(Json)
}

/// End a session
///
/// Its subscriptions and what waits for it are gone, on all nodes, as if its Session Expiry Interval were over; a will that waited is published.
/// Its client, if it is connected, is disconnected first (MQTT 5: 0x98, or 0x8E), and may come again at once, to a new session. Answers when
/// it has ended.
#[utoipa::path(
    delete, path = "/sessions/{clientid}", operation_id = "discardSession", tag = "sessions", params(("clientid" = String, Path, description = "Client Identifier, URL-encoded")),
    responses((status = 204, description = "It has ended"), Problems)
)]
async fn discard(
    State(api): State<Arc<Api>>,
    Operates(caller): Operates,
    Path(client_id): Path<String>,
) -> Result<StatusCode, Problem> {
    let named = client_id.clone();
    let outcome = api.blocking(move |operator| end(operator, &client_id)).await;
    api.audit(&caller, "discard session", json!({ "client_id": named }), result_of(&outcome));
    outcome.map(|()| StatusCode::NO_CONTENT)
}

fn end(operator: &Operator, client_id: &str) -> Result<(), Problem> {
    let group = operator.shared().submitter.slots().group_of(client_id);
    operator
        .ask_leader::<Option<SessionDetail>>(group, &Question::Session(client_id.to_owned()))?
        .ok_or_else(|| no_session(client_id))?;
    // For the sake of what its client is told. Wherever it is not heard, the end of the session itself closes the connection.
    drop(operator.ask_all::<bool>(&Question::Kick(client_id.to_owned())));
    // Where there is none any more, its time was over just now.
    operator.ask_leader::<bool>(group, &Question::Discard(client_id.to_owned()))?;
    Ok(())
}

fn no_session(client_id: &str) -> Problem {
    Problem::not_found(format!(
        "{client_id:?} has no session that outlives its connection; one that ends with it is among /api/v1/clients"
    ))
}

/// Which retained messages.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct WantedRetained {
    /// Only those whose topics this Topic Filter matches.
    #[param(example = "plant/#")]
    topic: Option<String>,
}

/// A page of retained messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RetainedMessages {
    /// By their groups, and there by their topics; without their payloads.
    pub data: Vec<RetainedMessage>,
    /// Where it goes on.
    pub meta: PageMeta,
    /// Groups whose messages are missing; `node` says which group.
    pub unavailable: Vec<Silent>,
}

/// Retained messages
#[utoipa::path(
    get, path = "/retained", operation_id = "listRetained", tag = "retained", params(WantedRetained, PageAsked),
    responses((status = 200, description = "A page of them", body = RetainedMessages), Problems)
)]
async fn retained(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(wanted): Query<WantedRetained>,
    Query(page): Query<PageAsked>,
) -> Result<Json<RetainedMessages>, Problem> {
    let (limit, from) = (page.limit()?, page.begin::<From>()?);
    let filter = wanted.topic.unwrap_or_else(|| "#".to_owned());
    if let Err(error) = TopicFilter::parse(&filter) {
        return Err(Problem::bad_request(format!("`topic`: {error}")));
    }
    let list = move |operator: &Operator| {
        let (data, next, unavailable) = walk(operator, limit, from, |From { group, after }, limit| {
            Question::Retained(RetainedAsked { group, after, limit, filter: filter.clone(), payload: false })
        })?;
        let meta = PageMeta::new(limit, data.len(), next.as_ref());
        Ok(RetainedMessages { data, meta, unavailable })
    };
    api.blocking(list).await.map(Json)
}

fn find_retained(operator: &Operator, topic: &str) -> Result<RetainedMessage, Problem> {
    check_topic_name(topic).map_err(|error| Problem::bad_request(format!("the topic: {error}")))?;
    let group = operator.shared().submitter.slots().group_of(topic);
    let asked = RetainedAsked { group, after: None, limit: 1, filter: topic.to_owned(), payload: true };
    let found: Part<RetainedMessage> = operator.ask_leader(group, &Question::Retained(asked))?;
    let message = found.rows.into_iter().next();
    message.ok_or_else(|| Problem::not_found(format!("nothing is retained for {topic:?}")))
}

/// The retained message of a topic
#[utoipa::path(
    get, path = "/retained/{topic}", operation_id = "showRetained", tag = "retained", params(("topic" = String, Path, description = "Topic Name, URL-encoded (`/` is %2F)")),
    responses((status = 200, description = "There is one", body = RetainedMessage), Problems)
)]
async fn show_retained(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Path(topic): Path<String>,
) -> Result<Json<RetainedMessage>, Problem> {
    api.blocking(move |operator| find_retained(operator, &topic)).await.map(Json)
}

/// Delete the retained message of a topic
///
/// As MQTT does it: an empty message is published there, which those who subscribe get too. Answers when it is gone.
#[utoipa::path(
    delete, path = "/retained/{topic}", operation_id = "deleteRetained", tag = "retained", params(("topic" = String, Path, description = "Topic Name, URL-encoded (`/` is %2F)")),
    responses((status = 204, description = "It is gone"), Problems)
)]
async fn delete_retained(
    State(api): State<Arc<Api>>,
    Operates(caller): Operates,
    Path(topic): Path<String>,
) -> Result<StatusCode, Problem> {
    let what = json!({ "topic": topic });
    let outcome = api.blocking(move |operator| delete(operator, &topic)).await;
    api.audit(&caller, "delete retained", what, result_of(&outcome));
    outcome.map(|()| StatusCode::NO_CONTENT)
}

fn delete(operator: &Operator, topic: &str) -> Result<(), Problem> {
    find_retained(operator, topic)?;
    let deadline = Instant::now() + DELETED_WITHIN;
    operator.publish(ToPublish {
        topic: topic.to_owned(),
        payload: Vec::new(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: PublishProperties::default(),
    })?;
    while Instant::now() < deadline {
        match find_retained(operator, topic) {
            Err(problem) if problem.status == 404 => return Ok(()),
            _ => std::thread::sleep(DELETED_PAUSE),
        }
    }
    Err(Problem::unavailable("it is not gone yet, or another one came: ask again"))
}
