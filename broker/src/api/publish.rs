//! Publishing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kentongan_proto::mqtt::{PublishProperties, QoS};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::Operates;
use super::extract::Body;
use super::problem::Problem;
use super::{Api, Problems, ProblemsOfBodies, result_of};
use crate::operator::publish::ToPublish;

/// User Properties of one message.
const USER_PROPERTIES_MAX: usize = 100;

/// Bytes of a text that MQTT can express.
const TEXT_BYTES_MAX: usize = 65_535;

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(publish))
}

/// How a payload stands in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PayloadEncoding {
    /// As it is.
    #[default]
    Plain,
    /// In Base64.
    Base64,
}

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// Topic Name.
    #[schema(min_length = 1, max_length = 65535, example = "plant/1/command")]
    pub topic: String,
    /// Its payload.
    #[serde(default)]
    pub payload: String,
    /// How the payload stands here.
    #[serde(default)]
    pub payload_encoding: PayloadEncoding,
    /// Quality of Service.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 2)]
    pub qos: u8,
    /// Whether it is retained.
    #[serde(default)]
    pub retain: bool,
    /// What goes with it, for clients of MQTT 5.
    #[serde(default)]
    pub properties: Properties,
}

/// Properties of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Properties {
    /// Seconds after which it is not delivered any more.
    pub message_expiry_interval: Option<u32>,
    /// What kind of payload it is.
    #[schema(max_length = 65535)]
    pub content_type: Option<String>,
    /// Names and values, in their order.
    #[schema(max_items = 100)]
    pub user_properties: Vec<(String, String)>,
}

/// Publish a message
///
/// To all who subscribe, over all nodes. 202 says, whatever its QoS is, that this node has taken it, and not that anybody else has: while
/// groups have no majority, what they are to keep waits in this node's memory, and is lost with it. Who must know that a message is safe
/// publishes it by MQTT.
///
/// 503 says that it is not published: as long as clients that publish are not read either, because memory is short or too much waits for
/// other nodes, nothing is taken. Only where `detail` says that this node does not know whether it has published it, it may have.
#[utoipa::path(
    post, path = "/publish", operation_id = "publish", tag = "publish", request_body = Publication,
    responses((status = 202, description = "This node has taken it"), Problems, ProblemsOfBodies)
)]
async fn publish(
    State(api): State<Arc<Api>>,
    Operates(caller): Operates,
    Body(publication): Body<Publication>,
) -> Result<StatusCode, Problem> {
    let what = json!({ "topic": publication.topic, "qos": publication.qos, "retain": publication.retain });
    let outcome = match to_publish(publication) {
        Ok(message) => api.blocking(move |operator| Ok(operator.publish(message)?)).await,
        Err(problem) => Err(problem),
    };
    api.audit(&caller, "publish", what, result_of(&outcome));
    outcome.map(|()| StatusCode::ACCEPTED)
}

fn to_publish(publication: Publication) -> Result<ToPublish, Problem> {
    let Publication { topic, payload, payload_encoding, qos, retain, properties } = publication;
    let bad = |text: &str| Problem::bad_request(text.to_owned());
    let qos = match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        2 => QoS::ExactlyOnce,
        _ => return Err(bad("`qos` must be 0, 1 or 2")),
    };
    let payload = match payload_encoding {
        PayloadEncoding::Plain => payload.into_bytes(),
        PayloadEncoding::Base64 => STANDARD.decode(payload).map_err(|_| bad("`payload` is no Base64"))?,
    };
    let Properties { message_expiry_interval, content_type, user_properties } = properties;
    let is_text = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.contains('\0');
    if user_properties.len() > USER_PROPERTIES_MAX {
        return Err(bad("`user_properties`: 100 at most"));
    }
    let texts = user_properties.iter().flat_map(|(name, value)| [name, value]).chain(&content_type);
    if !texts.into_iter().all(is_text) {
        return Err(bad("`properties`: a text has at most 65535 bytes, and no U+0000"));
    }
    let properties =
        PublishProperties { message_expiry_interval, content_type, user_properties, ..PublishProperties::default() };
    Ok(ToPublish { topic, payload, qos, retain, properties })
}
