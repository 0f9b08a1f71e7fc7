//! How often one address may connect.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// Addresses remembered at a time. Beyond that, those that have not come for a second are forgotten.
const ADDRESSES_MAX: usize = 65_536;

/// In which an empty bucket is full again, and need not be remembered.
const REFILL_TIME: Duration = Duration::from_secs(1);

/// A token bucket of one second for each address.
#[derive(Debug, Default)]
pub struct AddressRates {
    buckets: HashMap<IpAddr, Bucket, foldhash::fast::RandomState>,
    /// When those that had not come for a second were last looked for: that takes a while, and many new addresses come at once.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    refilled: Instant,
}

impl AddressRates {
    /// Whether `address` may connect once more, at `rate` connections a second; 0 means no bound. The rate may be another one
    /// each time: what a bucket holds is never more than the one at hand.
    pub fn admits(&mut self, address: IpAddr, rate: u32, now: Instant) -> bool {
        if rate == 0 {
            return true;
        }
        let rate = f64::from(rate);
        let origin = origin(address);
        if self.buckets.len() >= ADDRESSES_MAX && !self.buckets.contains_key(&origin) {
            if self.swept.is_none_or(|at| now.duration_since(at) >= REFILL_TIME) {
                self.swept = Some(now);
                self.buckets.retain(|_, bucket| now.duration_since(bucket.refilled) < REFILL_TIME);
            }
            // More than that many in a second: better all of them than none.
            if self.buckets.len() >= ADDRESSES_MAX {
                return true;
            }
        }
        let bucket = self.buckets.entry(origin).or_insert(Bucket { tokens: rate, refilled: now });
        bucket.tokens = (bucket.tokens + rate * now.duration_since(bucket.refilled).as_secs_f64()).min(rate);
        bucket.refilled = now;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

/// Whoever has one IPv6 address has the whole /64 it lies in. IPv4 addresses may come as IPv6 ones.
pub(crate) fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_is_held_to_its_rate_and_others_are_not() {
        let mut rates = AddressRates::default();
        let start = Instant::now();
        let admitted = [0, 0, 0, 500, 500].map(|ms| rates.admits(ip("10.0.0.1"), 2, start + Duration::from_millis(ms)));
        assert_eq!(admitted, [true, true, false, true, false]);
        assert!(rates.admits(ip("10.0.0.2"), 2, start));
    }

    #[test]
    fn neighbours_in_a_64_share_their_rate_and_a_mapped_address_is_the_ipv4_one() {
        let mut rates = AddressRates::default();
        let now = Instant::now();
        assert!(rates.admits(ip("2001:db8::1"), 1, now));
        assert!(!rates.admits(ip("2001:db8::2"), 1, now));
        assert!(rates.admits(ip("2001:db8:0:1::1"), 1, now));
        assert!(rates.admits(ip("::ffff:10.0.0.1"), 1, now));
        assert!(!rates.admits(ip("10.0.0.1"), 1, now));
    }

    #[test]
    fn another_rate_counts_at_once() {
        let mut rates = AddressRates::default();
        let start = Instant::now();
        assert!(
            [10, 10, 2, 2, 2].map(|rate| rates.admits(ip("10.0.0.1"), rate, start)) == [true, true, true, true, false]
        );
        let later = start + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| rates.admits(ip("10.0.0.1"), 5, later)).count(), 5);
    }

    /// Somebody may have more networks than are remembered. Looking through all of them for each is what it must not cost.
    #[test]
    fn more_addresses_than_are_remembered_cost_one_search_a_second_and_hide_nobody() {
        let mut rates = AddressRates::default();
        let start = Instant::now();
        let network = |number: usize| IpAddr::V6(Ipv6Addr::from_bits((number as u128) << 64));
        assert!((0..ADDRESSES_MAX).all(|number| rates.admits(network(number), 1, start)));
        for (number, ms) in [(ADDRESSES_MAX, 0), (ADDRESSES_MAX + 1, 900)] {
            assert!(rates.admits(network(number), 1, start + Duration::from_millis(ms)));
            assert_eq!(rates.swept, Some(start));
        }
        assert!(!rates.admits(network(7), 1, start), "one that is known is held to its rate");
        assert!(rates.admits(network(ADDRESSES_MAX), 1, start + Duration::from_secs(1)));
        assert_eq!(rates.buckets.len(), 1, "the others are forgotten");
    }

    #[test]
    fn without_a_rate_nothing_is_remembered() {
        let mut rates = AddressRates::default();
        assert!((0..100).all(|_| rates.admits(ip("10.0.0.1"), 0, Instant::now())));
        assert!(rates.buckets.is_empty());
    }
}
