//! Wrong tokens, counted by the address they come from.

use std::collections::HashMap;
use std::net::IpAddr;

/// Wrong tokens from one address that are answered as such; one more within [`WINDOW_SECONDS`] is told that it is too many.
const FROM_ONE_MAX: u32 = 10;

/// How long an address is remembered from its first wrong token on.
const WINDOW_SECONDS: u64 = 60;

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// What becomes of a wrong token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is refused, and somebody should know.
    Named,
    /// It is one of too many, for so many seconds.
    TooMany(u32),
}

/// Who sent wrong tokens lately.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Since when, and how many.
    by_address: HashMap<IpAddr, (u64, u32)>,
}

impl Refusals {
    /// One more came from `address`, at this second.
    pub fn count(&mut self, address: IpAddr, now: u64) -> Refusal {
        let is_recent = |since: u64| now.saturating_sub(since) < WINDOW_SECONDS;
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&address) {
            self.by_address.retain(|_, (since, _)| is_recent(*since));
            if self.by_address.len() >= ADDRESSES_MAX {
                // So many at once are no operators.
                return Refusal::TooMany(WINDOW_SECONDS as u32);
            }
        }
        let (since, count) = self.by_address.entry(address).or_insert((now, 0));
        if !is_recent(*since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        match *count {
            ..=FROM_ONE_MAX => Refusal::Named,
            _ => Refusal::TooMany((*since + WINDOW_SECONDS - now) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Abuse: [api]
    #[test]
    fn an_address_has_ten_wrong_tokens_a_minute_and_memory_is_bounded() {
        let mut refusals = Refusals::default();
        let at = |number: u32| IpAddr::from(Ipv4Addr::from_bits(number));
        let named = (0..15).filter(|_| refusals.count(at(1), 100) == Refusal::Named).count();
        assert_eq!(named, 10);
        assert_eq!(refusals.count(at(1), 130), Refusal::TooMany(30));
        assert_eq!(refusals.count(at(2), 130), Refusal::Named, "another address");
        assert_eq!(refusals.count(at(1), 160), Refusal::Named, "a minute later");
        for number in 3..6_000 {
            refusals.count(at(number), 170);
        }
        assert!(refusals.by_address.len() <= ADDRESSES_MAX);
    }
}
