//! How fast clients may publish: token buckets of one second, of a connection and of all connections of a listener.
//!
//! Whoever has emptied one is not read until it has something in it again, which is looked at every [`RESUME_INTERVAL`]: so what
//! passes under a rate comes in small parts, not in one lump a second.
//!
//! A bucket is kept as the time at which it is full again, which is all that its state is (the generic cell rate algorithm). It may be
//! overdrawn by one message, however large that is; what that took too much is paid back before the next one is read.
//!
//! Such a time says nothing under another rate: what is paid back in a second there took an hour here. So with new rates all buckets
//! begin anew, and whoever waits for one that was set too low is read again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{ListenerConfig, Settings};

/// What a bucket holds: what may be sent in a second.
const CAPACITY_NS: u64 = 1_000_000_000;

/// What gathers in a longer time than this counts as sent in the last of it.
const BEHIND_NS_MAX: u64 = 10_000_000_000;

/// Time between two looks at connections that are not read.
pub const RESUME_INTERVAL: Duration = Duration::from_millis(50);

/// When the bucket is full again, if `amount` is taken now. 0 as a rate means no bound.
fn take(full_at_ns: u64, now_ns: u64, rate: u64, amount: u64) -> u64 {
    if rate == 0 {
        return 0;
    }
    full_at_ns.max(now_ns).saturating_add(amount.saturating_mul(CAPACITY_NS).div_ceil(rate))
}

/// Whether the bucket is empty, or overdrawn.
fn is_empty(full_at_ns: u64, now_ns: u64) -> bool {
    full_at_ns >= now_ns.saturating_add(CAPACITY_NS)
}

/// What publishers may do, of one listener. Connections that are there are held to new settings too.
#[derive(Debug, Default)]
pub struct Rates {
    /// PUBLISH packets a second of each connection; like all of these, 0 means no bound.
    messages_each: AtomicU32,
    /// Their bytes.
    bytes_each: AtomicU64,
    /// Seconds in a row for which one may be too fast.
    seconds_max: AtomicU32,
    /// Of all of them together.
    messages: AtomicU32,
    bytes: AtomicU64,
    /// The buckets of all of them together.
    messages_full_at_ns: AtomicU64,
    bytes_full_at_ns: AtomicU64,
    /// How often the rates changed. A bucket that was used under others is not counted on.
    generation: AtomicU32,
}

impl Rates {
    /// As the settings say from now on.
    pub fn set(&self, listener: &ListenerConfig, settings: &Settings) {
        let session = &settings.session;
        self.seconds_max.store(session.publish_rate_seconds_max, Ordering::Relaxed);
        let messages = |rate: &AtomicU32, new| rate.swap(new, Ordering::Relaxed) != new;
        let bytes = |rate: &AtomicU64, new| rate.swap(new, Ordering::Relaxed) != new;
        let changed = [
            messages(&self.messages_each, session.publish_rate_max),
            bytes(&self.bytes_each, session.publish_bytes_rate_max),
            messages(&self.messages, listener.publish_rate_max),
            bytes(&self.bytes, listener.publish_bytes_rate_max),
        ];
        if changed.contains(&true) {
            self.generation.fetch_add(1, Ordering::AcqRel);
            self.begin_anew();
        }
    }

    fn begin_anew(&self) {
        self.messages_full_at_ns.store(0, Ordering::Release);
        self.bytes_full_at_ns.store(0, Ordering::Release);
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Takes a PUBLISH of some connection out of the buckets of all, at the rates of a generation. `true`: they are empty now.
    fn take(&self, generation: u32, now_ns: u64, bytes: u64) -> bool {
        let is_empty = self.take_at_rates(now_ns, bytes);
        if generation == self.generation() {
            return is_empty;
        }
        // Maybe at an old rate, and from a bucket that had begun anew.
        self.begin_anew();
        false
    }

    fn take_at_rates(&self, now_ns: u64, bytes: u64) -> bool {
        let empties = |bucket: &AtomicU64, rate: u64, amount: u64| {
            if rate == 0 {
                return false;
            }
            let taken = |full_at_ns| Some(take(full_at_ns, now_ns, rate, amount));
            let before = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).unwrap_or_default();
            is_empty(take(before, now_ns, rate, amount), now_ns)
        };
        let messages = empties(&self.messages_full_at_ns, self.messages.load(Ordering::Relaxed).into(), 1);
        let bytes = empties(&self.bytes_full_at_ns, self.bytes.load(Ordering::Relaxed), bytes);
        messages || bytes
    }

    fn is_empty(&self, now_ns: u64) -> bool {
        let empty = |bucket: &AtomicU64, has_rate: bool| has_rate && is_empty(bucket.load(Ordering::Relaxed), now_ns);
        empty(&self.messages_full_at_ns, self.messages.load(Ordering::Relaxed) != 0)
            || empty(&self.bytes_full_at_ns, self.bytes.load(Ordering::Relaxed) != 0)
    }
}

/// How fast one connection publishes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    messages_full_at_ns: u64,
    bytes_full_at_ns: u64,
    /// That of the [`Rates`] under which they were used.
    generation: u32,
    /// The last second in which it used its own buckets up.
    last_over: u32,
    /// The last second in which it was not read for them.
    last_waited: u32,
    /// How many in a row it used them up in.
    seconds_over: u32,
    /// Since when it was not read for reasons of the broker's; 0: it was, or what gathered meanwhile was counted.
    behind_since_ns: u64,
    /// Until when what comes counts as what gathered then; 0: nothing came yet.
    behind_until_ns: u64,
}

/// What a PUBLISH meant for the rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// More may follow.
    Within,
    /// The last one for now: the connection is not to be read.
    Wait,
    /// It was too fast for too many seconds.
    Exceeded,
}

impl Pace {
    /// The connection is not read, and its rates are not why: what it sends meanwhile comes all at once, and not because it is fast.
    pub fn fall_behind(&mut self, now_ms: u64) {
        // Where something came since the last time, this is another time: or whoever waits every second could save up all that he may send.
        if self.behind_since_ns == 0 || self.behind_until_ns != 0 {
            self.behind_since_ns = now_ms * 1_000_000;
        }
        self.behind_until_ns = 0;
    }

    /// From when on what comes now may have been sent.
    fn sent_since(&mut self, now_ns: u64) -> u64 {
        if self.behind_since_ns == 0 {
            return now_ns;
        }
        if self.behind_until_ns == 0 {
            self.behind_until_ns = now_ns + CAPACITY_NS;
        }
        if now_ns >= self.behind_until_ns {
            self.behind_since_ns = 0;
            return now_ns;
        }
        self.behind_since_ns.max(now_ns.saturating_sub(BEHIND_NS_MAX))
    }

    /// What it did under other rates is no measure for these.
    fn keep_to(&mut self, generation: u32) {
        if self.generation != generation {
            let (behind_since_ns, behind_until_ns) = (self.behind_since_ns, self.behind_until_ns);
            *self = Self { generation, behind_since_ns, behind_until_ns, ..Self::default() };
        }
    }

    /// Counts a PUBLISH of so many bytes.
    pub fn count(&mut self, rates: &Rates, now_ms: u64, bytes: u64) -> Verdict {
        let now_ns = now_ms * 1_000_000;
        let generation = rates.generation();
        self.keep_to(generation);
        let of_all = rates.take(generation, now_ns, bytes);
        let sent_ns = self.sent_since(now_ns);
        let messages_rate = rates.messages_each.load(Ordering::Relaxed).into();
        self.messages_full_at_ns = take(self.messages_full_at_ns, sent_ns, messages_rate, 1);
        self.bytes_full_at_ns = take(self.bytes_full_at_ns, sent_ns, rates.bytes_each.load(Ordering::Relaxed), bytes);
        if !self.is_empty(now_ns) {
            return if of_all { Verdict::Wait } else { Verdict::Within };
        }
        let second = (now_ms / 1000) as u32;
        if second != self.last_over {
            // Paying back is not being too fast again, but it is no rest either.
            let has_rested = second > self.last_over.max(self.last_waited) + 1;
            self.seconds_over = if has_rested { 0 } else { self.seconds_over + 1 };
            self.last_over = second;
        }
        let seconds_max = rates.seconds_max.load(Ordering::Relaxed);
        if seconds_max != 0 && self.seconds_over >= seconds_max { Verdict::Exceeded } else { Verdict::Wait }
    }

    fn is_empty(&self, now_ns: u64) -> bool {
        is_empty(self.messages_full_at_ns, now_ns) || is_empty(self.bytes_full_at_ns, now_ns)
    }

    /// Whether the connection must still not be read; asked every [`RESUME_INTERVAL`] while it is not.
    pub fn must_wait(&mut self, rates: &Rates, now_ms: u64) -> bool {
        self.keep_to(rates.generation());
        let waits = self.is_empty(now_ms * 1_000_000);
        if waits {
            self.last_waited = (now_ms / 1000) as u32;
        }
        waits || rates.is_empty(now_ms * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SessionConfig;

    fn settings(each: (u32, u64), seconds_max: u32) -> Settings {
        let session = SessionConfig {
            publish_rate_max: each.0,
            publish_bytes_rate_max: each.1,
            publish_rate_seconds_max: seconds_max,
            ..SessionConfig::default()
        };
        Settings { session, ..Settings::default() }
    }

    fn rates(each: (u32, u64), seconds_max: u32, all: (u32, u64)) -> Rates {
        let listener =
            ListenerConfig { publish_rate_max: all.0, publish_bytes_rate_max: all.1, ..ListenerConfig::default() };
        let rates = Rates::default();
        rates.set(&listener, &settings(each, seconds_max));
        rates
    }

    /// What becomes of messages of so many bytes, sent at once.
    fn send(pace: &mut Pace, rates: &Rates, now_ms: u64, messages: &[u64]) -> Vec<Verdict> {
        messages.iter().map(|&bytes| pace.count(rates, now_ms, bytes)).collect()
    }

    use Verdict::{Exceeded, Wait, Within};

    #[test]
    fn a_bucket_holds_a_second_and_fills_as_time_passes() {
        let rates = rates((4, 0), 0, (0, 0));
        let mut pace = Pace::default();
        assert_eq!(send(&mut pace, &rates, 5_000, &[1; 4]), [Within, Within, Within, Wait]);
        assert!(pace.must_wait(&rates, 5_000) && !pace.must_wait(&rates, 5_250));
        assert_eq!(send(&mut pace, &rates, 5_500, &[1; 2]), [Within, Wait], "two came back in half a second");
        assert_eq!(
            send(&mut pace, &rates, 60_000, &[1; 4]),
            [Within, Within, Within, Wait],
            "and never more than four"
        );
    }

    #[test]
    fn one_large_message_is_paid_back_before_the_next() {
        let rates = rates((0, 1000), 0, (0, 0));
        let mut pace = Pace::default();
        assert_eq!(send(&mut pace, &rates, 5_000, &[10, 10_000]), [Within, Wait]);
        let waits = [6_000, 14_000, 14_009, 14_011].map(|now| pace.must_wait(&rates, now));
        assert_eq!(waits, [true, true, true, false]);
    }

    /// A publisher that always has more to say, once the bucket is used up.
    #[test]
    fn what_passes_under_a_rate_is_spread_over_each_second() {
        let rates = rates((1000, 0), 0, (0, 0));
        let mut pace = Pace::default();
        let mut in_tenths = Vec::new();
        for tick in 0..60 {
            let now_ms = 5_000 + tick * RESUME_INTERVAL.as_millis() as u64;
            let mut passed = 0;
            while !pace.must_wait(&rates, now_ms) {
                send(&mut pace, &rates, now_ms, &[1]);
                passed += 1;
            }
            if tick % 2 == 0 {
                in_tenths.push(0);
            }
            *in_tenths.last_mut().unwrap() += passed;
        }
        assert_eq!(in_tenths.remove(0), 1050, "what the bucket held");
        assert!(in_tenths.iter().all(|&passed| passed == 100), "{in_tenths:?}");
    }

    /// As where a SUBSCRIBE has no answer for three seconds: at once comes what it has sent at its rate, and it goes on at that.
    #[test]
    fn nobody_is_too_fast_for_what_gathered_while_it_was_not_read() {
        let rates = rates((50, 0), 3, (0, 0));
        let mut pace = Pace::default();
        let mut verdicts = send(&mut pace, &rates, 10_000, &[1; 40]);
        pace.fall_behind(10_000);
        pace.fall_behind(12_000);
        verdicts.extend(send(&mut pace, &rates, 13_000, &[1; 120]));
        for second in 13..30 {
            verdicts.extend(send(&mut pace, &rates, second * 1_000 + 500, &[1; 40]));
        }
        assert_eq!(verdicts.iter().position(|&verdict| verdict != Within), None);
        pace.fall_behind(30_000);
        let verdicts = send(&mut pace, &rates, 31_000, &[1; 150]);
        assert_eq!(
            verdicts.iter().position(|&verdict| verdict == Wait),
            Some(84),
            "it is what it may send in that time"
        );
    }

    #[test]
    fn nobody_saves_up_what_he_may_send_by_being_held_up_again_and_again() {
        let rates = rates((50, 0), 3, (0, 0));
        let within = |pace: &mut Pace, now_ms| {
            let verdicts = send(pace, &rates, now_ms, &[1; 1000]);
            verdicts.iter().position(|&verdict| verdict != Within).expect("there is a bound")
        };
        let mut pace = Pace::default();
        for half_second in 0..200 {
            pace.fall_behind(10_000 + half_second * 500);
            send(&mut pace, &rates, 10_001 + half_second * 500, &[1]);
        }
        assert!(within(&mut pace, 110_000) < 100);
        let mut pace = Pace::default();
        pace.fall_behind(10_000);
        assert!(within(&mut pace, 3_600_000) < 11 * 50, "nothing came for long");
    }

    #[test]
    fn only_who_is_too_fast_in_seconds_in_a_row_exceeds() {
        let rates = rates((2, 0), 2, (0, 0));
        let mut pace = Pace::default();
        let mut second = |second: u64| send(&mut pace, &rates, second * 1000, &[1; 2])[1];
        assert_eq!(
            [11, 12, 14, 15, 16].map(&mut second),
            [Wait, Wait, Wait, Wait, Exceeded],
            "a second of rest counts"
        );
    }

    /// However often it is looked at meanwhile.
    #[test]
    fn a_publisher_that_always_has_more_to_say_exceeds_after_so_many_seconds() {
        let rates = rates((10, 0), 2, (0, 0));
        let mut pace = Pace::default();
        let exceeded = (100..300).map(|tick| tick * RESUME_INTERVAL.as_millis() as u64).find(|&now_ms| {
            let mut verdict = Within;
            while verdict != Exceeded && !pace.must_wait(&rates, now_ms) {
                verdict = send(&mut pace, &rates, now_ms, &[1])[0];
            }
            verdict == Exceeded
        });
        assert_eq!(exceeded, Some(7_050), "it began at 5,000");
    }

    #[test]
    fn the_connections_of_a_listener_share_its_buckets_and_nobody_is_blamed_for_the_others() {
        let rates = rates((0, 0), 1, (3, 100));
        let (mut one, mut other) = (Pace::default(), Pace::default());
        for second in 1..5 {
            assert_eq!(send(&mut one, &rates, second * 1000, &[1; 2]), [Within, Within]);
            assert_eq!(send(&mut other, &rates, second * 1000, &[1]), [Wait]);
            assert!(one.must_wait(&rates, second * 1000), "their bucket is empty");
        }
        assert_eq!(send(&mut one, &rates, 10_000, &[200]), [Wait]);
        assert!(other.must_wait(&rates, 10_900) && !other.must_wait(&rates, 11_001));
    }

    #[test]
    fn new_settings_hold_for_who_is_there() {
        let rates = rates((1, 0), 0, (0, 0));
        let mut pace = Pace::default();
        assert_eq!(send(&mut pace, &rates, 1_000, &[1]), [Wait]);
        rates.set(&ListenerConfig::default(), &Settings::default());
        assert_eq!(send(&mut pace, &rates, 1_000, &[1]), [Within]);
        assert!(!pace.must_wait(&rates, 1_000));
    }

    /// A rate that was set too low, and is mended: nobody pays back at the new rate, or at none, what took an hour at the old one.
    #[test]
    fn buckets_begin_anew_under_new_rates() {
        let of_each = |bytes| (ListenerConfig::default(), settings((0, bytes), 0));
        let of_all = |bytes| {
            let listener = ListenerConfig { publish_bytes_rate_max: bytes, ..ListenerConfig::default() };
            (listener, settings((0, 0), 0))
        };
        for (old, others) in
            [(of_each(1), [of_each(1_000_000), of_each(0)]), (of_all(1), [of_all(1_000_000), of_all(0)])]
        {
            let rates = Rates::default();
            rates.set(&old.0, &old.1);
            for new in others {
                let mut pace = Pace::default();
                assert_eq!(send(&mut pace, &rates, 5_000, &[200_000]), [Wait]);
                rates.set(&old.0, &old.1);
                assert!(pace.must_wait(&rates, 60_000), "nothing changed");
                rates.set(&new.0, &new.1);
                assert!(!pace.must_wait(&rates, 60_000));
                assert_eq!(send(&mut pace, &rates, 60_000, &[1; 2]), [Within; 2]);
                rates.set(&old.0, &old.1);
            }
        }
    }

    /// Who was too fast under a rate is not closed by what it did then.
    #[test]
    fn seconds_in_a_row_are_counted_anew_under_new_rates() {
        let rates = rates((2, 0), 2, (0, 0));
        let mut pace = Pace::default();
        let verdicts = [11, 12].map(|second| send(&mut pace, &rates, second * 1000, &[1; 2])[1]);
        assert_eq!(verdicts, [Wait; 2]);
        rates.set(&ListenerConfig::default(), &settings((3, 0), 2));
        let verdicts = [13, 14, 15].map(|second| send(&mut pace, &rates, second * 1000, &[1; 3])[2]);
        assert_eq!(verdicts, [Wait, Wait, Exceeded]);
    }
}
