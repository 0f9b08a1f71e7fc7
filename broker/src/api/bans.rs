//! Who is kept out of the cluster.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use kentongan_cluster::directory::bans::{REASON_BYTES_MAX, SUBJECT_BYTES_MAX};
use kentongan_cluster::directory::command::Ban;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::{Operates, Viewer};
use super::extract::{Body, Path, Query};
use super::page::{PageAsked, PageMeta};
use super::problem::Problem;
use super::{Api, Problems, ProblemsOfBodies, result_of};
use crate::bans::Subject;
use crate::operator::Operator;

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list, ban)).routes(routes!(lift))
}

/// What a ban is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Whoever has this Client Identifier.
    ClientId,
    /// Whoever is this user, or says to be.
    Username,
    /// Whoever comes from this address, or with `/BITS` behind it from this network.
    PeerHost,
}

/// Somebody who is kept out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Banned {
    /// What `who` is.
    #[serde(rename = "as")]
    pub kind: Kind,
    /// A Client Identifier, a user, or an address or network.
    pub who: String,
    /// Until when, in seconds since 1970; null: for good.
    pub until_seconds: Option<u64>,
    /// Why.
    pub reason: String,
}

/// Somebody who is to be kept out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToBan {
    /// What `who` is.
    #[serde(rename = "as")]
    pub kind: Kind,
    /// A Client Identifier, a user, or an address or network.
    #[schema(min_length = 1, max_length = 1014, example = "meter-7")]
    pub who: String,
    /// For how many seconds; without it for good.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3153600000u64)]
    pub seconds: Option<u64>,
    /// Why, for those who read it.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub reason: String,
}

/// A page of bans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BansPage {
    /// In a fixed order.
    pub data: Vec<Banned>,
    /// Where it goes on.
    pub meta: PageMeta,
}

/// Who is banned
#[utoipa::path(
    get, path = "/banned", operation_id = "listBanned", tag = "banned", params(PageAsked),
    responses((status = 200, description = "A page of them", body = BansPage), Problems)
)]
async fn list(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(page): Query<PageAsked>,
) -> Result<Json<BansPage>, Problem> {
    let (limit, from) = (page.limit()?, page.begin::<String>()?);
    let list = move |operator: &Operator| {
        let mut bans = operator.bans(from)?;
        // A page here is no longer than one there.
        let is_more = bans.len() > limit || bans.len() >= crate::peers::administration::BANS_A_PAGE;
        bans.truncate(limit);
        let next = bans.last().filter(|_| is_more).map(|ban| ban.subject.clone());
        let data: Vec<_> = bans.into_iter().filter_map(row).collect();
        let meta = PageMeta::new(limit, data.len(), next.as_ref());
        Ok(BansPage { data, meta })
    };
    api.blocking(list).await.map(Json)
}

/// `None`: of a kind that this version does not know.
fn row(ban: Ban) -> Option<Banned> {
    let (kind, who) = match ban.subject.parse::<Subject>().ok()? {
        Subject::ClientId(id) => (Kind::ClientId, id),
        Subject::User(name) => (Kind::Username, name),
        Subject::Network(network) => (Kind::PeerHost, network.to_string()),
    };
    let until_seconds = Some(ban.until_seconds).filter(|&seconds| seconds != 0);
    Some(Banned { kind, who, until_seconds, reason: ban.reason })
}

fn subject(kind: Kind, who: String) -> Result<Subject, Problem> {
    if who.is_empty() {
        return Err(Problem::bad_request("`who` must not be empty"));
    }
    match kind {
        Kind::ClientId => Ok(Subject::ClientId(who)),
        Kind::Username => Ok(Subject::User(who)),
        Kind::PeerHost => {
            who.parse().map(Subject::Network).map_err(|error| Problem::bad_request(format!("`who`: {error}")))
        }
    }
}

/// Ban somebody
///
/// On all nodes, within a second: who is connected is closed, who comes is refused.
#[utoipa::path(
    post, path = "/banned", operation_id = "ban", tag = "banned", request_body = ToBan,
    responses((status = 200, description = "It is committed", body = Banned), Problems, ProblemsOfBodies)
)]
async fn ban(
    State(api): State<Arc<Api>>,
    Operates(caller): Operates,
    Body(wanted): Body<ToBan>,
) -> Result<Json<Banned>, Problem> {
    let ToBan { kind, who, seconds, reason } = wanted;
    let what = json!({ "as": kind, "who": who, "seconds": seconds, "reason": reason });
    let wall_ms = api.operator().shared().clock.cluster_wall_ms();
    let outcome = match (subject(kind, who), seconds) {
        (_, Some(0)) => Err(Problem::bad_request("`seconds` must be 1 or more; leave it out to ban for good")),
        (_, Some(long)) if long > 3_153_600_000 => Err(Problem::bad_request("`seconds`: a hundred years at most")),
        (Err(problem), _) => Err(problem),
        _ if reason.len() > REASON_BYTES_MAX => {
            Err(Problem::bad_request(format!("`reason`: {REASON_BYTES_MAX} bytes at most")))
        }
        (Ok(subject), _) if subject.to_string().len() > SUBJECT_BYTES_MAX => {
            Err(Problem::bad_request(format!("`who`: {SUBJECT_BYTES_MAX} bytes at most, with what it is")))
        }
        (Ok(subject), seconds) => {
            // Later rather than too early.
            let until_seconds = seconds.map_or(0, |seconds| wall_ms.div_ceil(1000).saturating_add(seconds));
            let ban = Ban { subject: subject.to_string(), until_seconds, reason, ..Ban::default() };
            api.blocking(move |operator| {
                operator.ban(&ban)?;
                row(ban).ok_or_else(|| Problem::bad_request("`who` cannot be banned"))
            })
            .await
        }
    };
    api.audit(&caller, "ban", what, result_of(&outcome));
    outcome.map(Json)
}

/// Lift a ban
///
/// If there is none, that is as well.
#[utoipa::path(
    delete, path = "/banned/{as}/{who}", operation_id = "liftBan", tag = "banned",
    params(
        ("as" = Kind, Path, description = "What `who` is"),
        ("who" = String, Path, description = "As it was banned, URL-encoded")
    ),
    responses((status = 204, description = "It is committed"), Problems)
)]
async fn lift(
    State(api): State<Arc<Api>>,
    Operates(caller): Operates,
    Path((kind, who)): Path<(Kind, String)>,
) -> Result<StatusCode, Problem> {
    let what = json!({ "as": kind, "who": who });
    let outcome = match subject(kind, who) {
        Ok(subject) => {
            let ban = Ban { subject: subject.to_string(), lifted: true, ..Ban::default() };
            api.blocking(move |operator| Ok(operator.ban(&ban)?)).await
        }
        Err(problem) => Err(problem),
    };
    api.audit(&caller, "unban", what, result_of(&outcome));
    outcome.map(|()| StatusCode::NO_CONTENT)
}
