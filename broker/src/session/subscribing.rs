//! What a SUBSCRIBE is granted, and which retained messages it brings.

use kentongan_proto::mqtt::{QoS, ReasonCode, RetainHandling, SubscriptionOptions};

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

/// What a bridge of MQTT 3.x subscribes with, whose SUBSCRIBE has no room to say so: RETAIN goes on to the other broker
/// as it was published, and what came from there does not go back.
#[must_use]
pub fn bridge_options(filter: &str, asked: SubscriptionOptions) -> SubscriptionOptions {
    // No Local on a shared subscription is an error [MQTT-3.8.3-4].
    let no_local = !filter.starts_with("$share/");
    SubscriptionOptions { retain_as_published: true, no_local, ..asked }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_keeps_retain_and_gets_nothing_back() {
        let asked = SubscriptionOptions::new(QoS::AtLeastOnce);
        let granted = SubscriptionOptions { retain_as_published: true, no_local: true, ..asked };
        assert_eq!(bridge_options("#", asked), granted);
        assert_eq!(bridge_options("$share/g/#", asked), SubscriptionOptions { no_local: false, ..granted });
    }
}
