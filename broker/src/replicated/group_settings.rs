//! What the settings say about groups, as the nodes of a cluster agree on it when it forms.
//!
//! Every replica of a group must do the same with the same command, so what it may keep is not each node's own affair.

use bytes::Bytes;
use prost::Message as _;

use super::retained::RetainedLimits;
use super::state::GroupConfig;
use crate::session::outbound::DropPolicy;
use crate::subscription::PickStrategy;

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct GroupSettings {
    #[prost(uint64, tag = "1")]
    queue_messages_max: u64,
    #[prost(uint64, tag = "2")]
    queue_bytes_max: u64,
    #[prost(bool, tag = "3")]
    drop_oldest: bool,
    #[prost(uint64, tag = "4")]
    retained_messages_max: u64,
    #[prost(uint64, tag = "5")]
    retained_bytes_max: u64,
    #[prost(uint64, tag = "6")]
    retained_age_ms_max: u64,
    #[prost(bool, tag = "7")]
    one_each: bool,
    /// By its place in [`STRATEGIES`].
    #[prost(uint32, tag = "8")]
    share_strategy: u32,
    #[prost(uint64, tag = "9")]
    delayed_messages_max: u64,
    /// 0, as no bound, where the cluster was formed before there was one.
    #[prost(uint64, tag = "10")]
    delayed_bytes_max: u64,
}

/// Only ever appended to.
const STRATEGIES: [PickStrategy; 6] = [
    PickStrategy::RoundRobin,
    PickStrategy::Random,
    PickStrategy::Sticky,
    PickStrategy::HashClient,
    PickStrategy::HashTopic,
    PickStrategy::LeastInflight,
];

/// What was agreed on is none of what this version knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupSettingsError {
    /// Not protobuf.
    #[error("the settings that the cluster was formed with cannot be read: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// Of a later version.
    #[error(
        "the cluster was formed with a strategy for shared subscriptions ({0}) that this version does not know: upgrade it"
    )]
    UnknownStrategy(u32),
}

impl GroupConfig {
    /// As it is agreed on.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let share_strategy = STRATEGIES.iter().position(|&strategy| strategy == self.share_strategy);
        let settings = GroupSettings {
            queue_messages_max: self.queue_messages_max as u64,
            queue_bytes_max: self.queue_bytes_max as u64,
            drop_oldest: self.drop_policy == DropPolicy::Oldest,
            retained_messages_max: self.retained.messages_max,
            retained_bytes_max: self.retained.bytes_max,
            retained_age_ms_max: self.retained_age_ms_max,
            one_each: self.one_each,
            share_strategy: share_strategy.unwrap_or_default() as u32,
            delayed_messages_max: self.delayed_messages_max as u64,
            delayed_bytes_max: self.delayed_bytes_max as u64,
        };
        settings.encode_to_vec().into()
    }

    /// What was agreed on.
    ///
    /// # Errors
    /// See [`GroupSettingsError`].
    pub fn decode(settings: Bytes) -> Result<Self, GroupSettingsError> {
        let settings = GroupSettings::decode(settings)?;
        let bound = |bound: u64| usize::try_from(bound).unwrap_or(usize::MAX);
        let strategy = STRATEGIES.get(settings.share_strategy as usize);
        Ok(Self {
            queue_messages_max: bound(settings.queue_messages_max),
            queue_bytes_max: bound(settings.queue_bytes_max),
            drop_policy: if settings.drop_oldest { DropPolicy::Oldest } else { DropPolicy::New },
            retained: RetainedLimits {
                messages_max: settings.retained_messages_max,
                bytes_max: settings.retained_bytes_max,
            },
            retained_age_ms_max: settings.retained_age_ms_max,
            one_each: settings.one_each,
            share_strategy: *strategy.ok_or(GroupSettingsError::UnknownStrategy(settings.share_strategy))?,
            delayed_messages_max: bound(settings.delayed_messages_max),
            delayed_bytes_max: bound(settings.delayed_bytes_max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_agreed_on_is_read_as_it_was_written() {
        for share_strategy in STRATEGIES {
            let config = GroupConfig {
                queue_messages_max: 1,
                queue_bytes_max: 2,
                drop_policy: DropPolicy::Oldest,
                retained: RetainedLimits { messages_max: 3, bytes_max: 4 },
                retained_age_ms_max: 5,
                one_each: true,
                share_strategy,
                delayed_messages_max: 6,
                delayed_bytes_max: 7,
            };
            assert_eq!(GroupConfig::decode(config.encode()), Ok(config));
        }
        let later = GroupSettings { share_strategy: 6, ..GroupSettings::default() }.encode_to_vec();
        assert_eq!(GroupConfig::decode(later.into()), Err(GroupSettingsError::UnknownStrategy(6)));
    }
}
