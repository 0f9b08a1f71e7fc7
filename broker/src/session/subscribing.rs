//! What a SUBSCRIBE is granted, and which retained messages it brings.

use kentongan_proto::mqtt::{QoS, ReasonCode, RetainHandling};

/// Granted QoS is what was asked for [MQTT-3.8.4-7].
#[must_use]
pub fn granted(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQos1,
        QoS::ExactlyOnce => ReasonCode::GrantedQos2,
    }
}

/// Retain Handling [MQTT-3.3.1-9, 3.3.1-10, 3.3.1-11]; shared subscriptions get no retained messages (4.8.2).
#[must_use]
pub fn wants_retained(filter: &str, handling: RetainHandling, new: bool) -> bool {
    !filter.starts_with("$share/")
        && match handling {
            RetainHandling::Always => true,
            RetainHandling::IfNew => new,
            RetainHandling::Never => false,
        }
}
