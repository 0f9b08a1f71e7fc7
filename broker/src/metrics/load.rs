//! The averages over 1, 5 and 15 minutes that `$SYS/broker/load/…` shows, computed as mosquitto does.

use std::time::Duration;

use super::Snapshot;

/// An exponential moving average, per minute, over 1, 5 and 15 minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Over one minute.
    pub one_minute: f64,
    /// Over five minutes.
    pub five_minutes: f64,
    /// Over fifteen minutes.
    pub fifteen_minutes: f64,
}

impl Load {
    fn advance(&mut self, per_minute: f64, minutes: f64) {
        for (average, window) in
            [(&mut self.one_minute, 1.0), (&mut self.five_minutes, 5.0), (&mut self.fifteen_minutes, 15.0)]
        {
            *average = per_minute + (-minutes / window).exp() * (*average - per_minute);
        }
    }
}

/// The averages of what `$SYS` shows as load.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LoadAverages {
    /// Packets of any kind received.
    pub messages_received: Load,
    /// Packets of any kind sent.
    pub messages_sent: Load,
    /// PUBLISH packets received.
    pub publish_received: Load,
    /// PUBLISH packets sent.
    pub publish_sent: Load,
    /// Messages dropped.
    pub publish_dropped: Load,
    /// Bytes received.
    pub bytes_received: Load,
    /// Bytes sent.
    pub bytes_sent: Load,
    /// Sockets opened.
    pub sockets: Load,
    /// CONNECTs accepted.
    pub connections: Load,
    previous: Snapshot,
}

impl LoadAverages {
    /// Takes in what changed since the last call, `elapsed` ago.
    pub fn advance(&mut self, now: &Snapshot, elapsed: Duration) {
        let minutes = elapsed.as_secs_f64() / 60.0;
        if minutes <= 0.0 {
            return;
        }
        let before = std::mem::replace(&mut self.previous, *now);
        for (load, now, before) in [
            (&mut self.messages_received, now.packets_received, before.packets_received),
            (&mut self.messages_sent, now.packets_sent, before.packets_sent),
            (&mut self.publish_received, now.publishes_received, before.publishes_received),
            (&mut self.publish_sent, now.publishes_sent, before.publishes_sent),
            (&mut self.publish_dropped, now.publishes_dropped, before.publishes_dropped),
            (&mut self.bytes_received, now.bytes_received, before.bytes_received),
            (&mut self.bytes_sent, now.bytes_sent, before.bytes_sent),
            (&mut self.sockets, now.sockets, before.sockets),
            (&mut self.connections, now.connections, before.connections),
        ] {
            load.advance(now.saturating_sub(before) as f64 / minutes, minutes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_approached_faster_by_the_shorter_average() {
        let mut loads = LoadAverages::default();
        let mut snapshot = Snapshot::default();
        for _ in 0..6 {
            snapshot.publishes_received += 100;
            loads.advance(&snapshot, Duration::from_secs(10));
        }
        let Load { one_minute, five_minutes, fifteen_minutes } = loads.publish_received;
        // After one minute: 600 a minute, times 1 - e^-1, 1 - e^-(1/5), 1 - e^-(1/15).
        for (found, expected) in [(one_minute, 379.27), (five_minutes, 108.76), (fifteen_minutes, 38.70)] {
            assert!((found - expected).abs() < 0.01, "{found} is not {expected}");
        }
        assert_eq!(loads.publish_sent, Load::default());
    }

    #[test]
    fn no_time_passed_changes_nothing() {
        let mut loads = LoadAverages::default();
        loads.advance(&Snapshot { sockets: 7, ..Snapshot::default() }, Duration::ZERO);
        assert_eq!(loads, LoadAverages::default());
    }
}
