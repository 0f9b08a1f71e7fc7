//! What goes on: a trace as a stream, slow subscribers, top topics.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::{Caller, Viewer};
use super::extract::Query;
use super::page::Silent;
use super::problem::Problem;
use super::{Api, Problems};
use crate::operator::watching::WatchAsked;
use crate::operator::{NodeName, Operator, Question};
use crate::watching::slow::{self, SlowSubscriber, Slowest};
use crate::watching::top_topics::{self, Counts, TopTopic};
use crate::watching::trace::{self, Lines, Target, Wanted};

/// Rows if nothing is said.
const LIMIT_DEFAULT: usize = 20;

/// Seconds for which topics are counted if nothing is said, and at most.
const COUNTED_SECONDS: std::ops::RangeInclusive<u32> = 1..=60;
const COUNTED_SECONDS_DEFAULT: u32 = 5;

/// Seconds that a trace goes on if nothing is said.
const TRACED_SECONDS_DEFAULT: u32 = 300;

/// How often nodes are asked what they have for a trace.
const TRACE_INTERVAL: Duration = Duration::from_millis(250);

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(slow_subscribers)).routes(routes!(top_topics)).routes(routes!(trace_stream))
}

/// Which slow subscribers.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct SlowAsked {
    /// By what: `bytes` that wait in memory, `messages` that wait or are not acknowledged, or for how long a socket has taken nothing
    /// (`blocked`).
    #[serde(default)]
    #[param(inline)]
    by: slow::Ranking,
    /// How many.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    limit: Option<usize>,
}

/// The clients that are most behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
struct SlowSubscribers {
    /// The slowest first.
    data: Vec<SlowSubscriber>,
    /// Nodes whose clients are missing.
    unavailable: Vec<Silent>,
}

/// Slow subscribers
///
/// The connected clients, over all nodes, that are most behind. Nothing is kept for it: connections are looked at when it is asked.
#[utoipa::path(
    get, path = "/slow-subscribers", tag = "watching", params(SlowAsked),
    responses((status = 200, description = "Those that are most behind", body = SlowSubscribers), Problems)
)]
async fn slow_subscribers(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(asked): Query<SlowAsked>,
) -> Result<Json<SlowSubscribers>, Problem> {
    let limit = limit(asked.limit, slow::LIMIT_MAX)?;
    let found = api.blocking(move |operator| {
        let mut slowest = Slowest::new(asked.by, limit);
        let question = WatchAsked::SlowSubscribers { ranking: asked.by, limit };
        let (heard, unavailable) = ask_all::<Vec<SlowSubscriber>>(operator, question)?;
        heard.into_iter().flat_map(|(_, found)| found).for_each(|one| slowest.look_at(one));
        Ok(SlowSubscribers { data: slowest.in_order(), unavailable })
    });
    found.await.map(Json)
}

/// Which topics.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct TopAsked {
    /// By what: `messages`, or `bytes` of payload.
    #[serde(default)]
    #[param(inline)]
    by: top_topics::Ranking,
    /// For how long what clients publish is counted, before there is an answer.
    #[param(minimum = 1, maximum = 60, default = 5)]
    seconds: Option<u32>,
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 20)]
    limit: Option<usize>,
}

/// The topics that were published to most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
struct TopTopics {
    /// Those with most first.
    data: Vec<TopTopic>,
    /// What a topic that is not there has at most.
    others_at_most: u64,
    /// For how long it was counted.
    milliseconds: u64,
    /// Nodes that did not count.
    unavailable: Vec<Silent>,
}

/// Top topics
///
/// What clients publish is counted for some seconds, on all nodes, in bounded memory: a count may be too large by `error`, and is never
/// too small. While nobody asks, nothing is counted.
#[utoipa::path(
    get, path = "/top-topics", tag = "watching", params(TopAsked),
    responses((status = 200, description = "Those that were published to most", body = TopTopics), Problems)
)]
async fn top_topics(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(asked): Query<TopAsked>,
) -> Result<Json<TopTopics>, Problem> {
    let limit = limit(asked.limit, 200)?;
    let seconds = asked.seconds.unwrap_or(COUNTED_SECONDS_DEFAULT);
    if !COUNTED_SECONDS.contains(&seconds) {
        return Err(Problem::bad_request("`seconds` must be 1 to 60"));
    }
    api.blocking(move |operator| ask_all::<()>(operator, WatchAsked::CountTopics(seconds))).await?;
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let counted = api.blocking(move |operator| {
        // More than is wanted: what is among the first of all need not be among the first of each.
        let question = WatchAsked::TopTopics { ranking: asked.by, limit: usize::MAX };
        let (heard, unavailable) = ask_all::<Counts>(operator, question)?;
        let parts: Vec<Counts> = heard.into_iter().map(|(_, counts)| counts).collect();
        let Counts { topics, others_at_most, milliseconds } = Counts::merged(&parts, limit);
        Ok(TopTopics { data: topics, others_at_most, milliseconds, unavailable })
    });
    counted.await.map(Json)
}

/// What is traced.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct TraceAsked {
    /// The client of this Client Identifier: its packets and what becomes of it.
    client: Option<String>,
    /// What is published to topics that this Topic Filter matches, and who gets it.
    topic: Option<String>,
    /// For how long; it ends earlier if whoever asked goes.
    #[param(minimum = 1, maximum = 3600, default = 300)]
    seconds: Option<u32>,
    /// So many bytes of each payload are shown.
    #[param(minimum = 0, maximum = 1024, default = 0)]
    payload: Option<usize>,
}

impl TraceAsked {
    fn wanted(self) -> Result<Wanted, Problem> {
        let target = match (self.client, self.topic) {
            (Some(client), None) => Target::Client(client),
            (None, Some(filter)) => {
                trace::check_filter(&filter).map_err(|error| Problem::bad_request(format!("`topic`: {error}")))?;
                Target::Topic(filter)
            }
            _ => return Err(Problem::bad_request("say either `client` or `topic`")),
        };
        let seconds = self.seconds.unwrap_or(TRACED_SECONDS_DEFAULT);
        let payload_bytes_max = self.payload.unwrap_or(0);
        if !(1..=trace::SECONDS_MAX).contains(&seconds) {
            return Err(Problem::bad_request(format!("`seconds` must be 1 to {}", trace::SECONDS_MAX)));
        }
        if payload_bytes_max > trace::PAYLOAD_BYTES_MAX {
            return Err(Problem::bad_request(format!("`payload` must be 0 to {}", trace::PAYLOAD_BYTES_MAX)));
        }
        Ok(Wanted { number: rand::random(), target, seconds, payload_bytes_max })
    }
}

/// Trace
///
/// One client, or the topics of one filter, on all nodes, as it goes on: a line of JSON each. The first line says that it begins. What
/// could not be shown as fast is counted by a line `trace.left_out`. It ends, with a line `trace.ended`, when the token is good no more.
#[utoipa::path(
    get, path = "/trace", tag = "watching", params(TraceAsked),
    responses((status = 200, description = "Lines as they come", content_type = "application/x-ndjson", body = String), Problems)
)]
async fn trace_stream(
    State(api): State<Arc<Api>>,
    Viewer(caller): Viewer,
    Query(asked): Query<TraceAsked>,
) -> Result<Response, Problem> {
    let wanted = asked.wanted()?;
    let begun = wanted.clone();
    let (heard, unavailable) = api.blocking(move |operator| begin(operator, &begun)).await?;
    api.audit(&caller, "trace", json!({ "target": wanted.target, "seconds": wanted.seconds }), "begun");
    let mut first = VecDeque::from([line(&json!({
        "event": "trace.begun", "nodes": heard, "unavailable": unavailable, "seconds": wanted.seconds,
    }))]);
    let ends = Instant::now() + Duration::from_secs(wanted.seconds.into());
    let watching = Watching { api, caller, wanted, ends, silent: unavailable, is_over: false };
    let lines = stream::unfold(watching, move |mut watching| {
        let first = first.pop_front();
        async move {
            let text = match first {
                Some(text) => text,
                None => watching.next().await?,
            };
            Some((Ok::<_, Infallible>(Bytes::from(text)), watching))
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

type Begun = (Vec<String>, Vec<Silent>);

/// Has all nodes begin, and says which have.
fn begin(operator: &Operator, wanted: &Wanted) -> Result<Begun, Problem> {
    let (heard, unavailable) = ask_all::<()>(operator, WatchAsked::BeginTrace(wanted.clone()))?;
    match unavailable.first() {
        Some(first) if heard.is_empty() => Err(Problem::conflict(first.detail.clone())),
        _ => Ok((heard.into_iter().map(|(node, ())| node.name).collect(), unavailable)),
    }
}

/// A trace that somebody reads.
struct Watching {
    api: Arc<Api>,
    /// Who reads it.
    caller: Caller,
    wanted: Wanted,
    ends: Instant,
    /// Nodes that were told of as silent.
    silent: Vec<Silent>,
    is_over: bool,
}

impl Watching {
    /// The next lines; `None`: there are no more.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.is_over {
                return None;
            }
            tokio::time::sleep(TRACE_INTERVAL).await;
            if !self.api.still_hears(&self.caller) {
                self.is_over = true;
                let detail = "the token by which it was begun is not good any more, or not for as much";
                return Some(line(&json!({ "event": "trace.ended", "detail": detail })));
            }
            self.is_over = Instant::now() >= self.ends;
            let wanted = self.wanted.clone();
            let taken = self.api.blocking(move |operator| take(operator, &wanted)).await;
            let Ok((heard, silent)) = taken else { continue };
            let mut text = String::new();
            for (node, lines) in heard {
                lines.lines.iter().for_each(|one| {
                    text.push_str(one);
                    text.push('\n');
                });
                if lines.left_out > 0 {
                    text += &line(&json!({ "event": "trace.left_out", "node": node.name, "lines": lines.left_out }));
                }
            }
            for one in silent.iter().filter(|one| !self.silent.contains(one)) {
                text += &line(&json!({ "event": "trace.unavailable", "node": one.node, "detail": one.detail }));
            }
            self.silent = silent;
            if !text.is_empty() {
                return Some(text);
            }
        }
    }
}

/// Whoever reads it is gone, or it is over: nodes need not wait until they notice.
impl Drop for Watching {
    fn drop(&mut self) {
        let (api, number) = (Arc::clone(&self.api), self.wanted.number);
        // Where there is no runtime any more, the process ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let ended = api.blocking(move |operator| ask_all::<()>(operator, WatchAsked::EndTrace(number)));
                drop(ended.await);
            });
        }
    }
}

/// Takes what all nodes have. One that has no such trace, since it was not there when it began, begins.
fn take(operator: &Operator, wanted: &Wanted) -> Result<Heard<Lines>, Problem> {
    let (heard, unavailable) = ask_all::<Option<Lines>>(operator, WatchAsked::TakeTrace(wanted.number))?;
    let lines = |(node, lines): (NodeName, Option<Lines>)| match lines {
        Some(lines) => Some((node, lines)),
        None => {
            let question = Question::Watch(WatchAsked::BeginTrace(wanted.clone()));
            // It is asked again the next time.
            drop(operator.ask::<()>(node.node, &question));
            None
        }
    };
    Ok((heard.into_iter().filter_map(lines).collect(), unavailable))
}

fn line(json: &serde_json::Value) -> String {
    format!("{json}\n")
}

/// What nodes say, and who says nothing.
type Heard<T> = (Vec<(NodeName, T)>, Vec<Silent>);

/// Asks all nodes.
fn ask_all<T: serde::de::DeserializeOwned>(operator: &Operator, asked: WatchAsked) -> Result<Heard<T>, Problem> {
    let (mut heard, mut unavailable) = (Vec::new(), Vec::new());
    for (node, answered) in operator.ask_all::<T>(&Question::Watch(asked))? {
        match answered {
            Ok(said) => heard.push((node, said)),
            Err(error) => unavailable.push(Silent { node: node.name, detail: error.to_string() }),
        }
    }
    Ok((heard, unavailable))
}

fn limit(asked: Option<usize>, maximum: usize) -> Result<usize, Problem> {
    match asked.unwrap_or(LIMIT_DEFAULT) {
        limit if (1..=maximum).contains(&limit) => Ok(limit),
        _ => Err(Problem::bad_request(format!("`limit` must be 1 to {maximum}"))),
    }
}
