//! Which users there are, as far as this node's files say. Never a password, nor a hash of one.

use serde::{Deserialize, Serialize};

use super::{Answered, Operator, ROW_BYTES_MAX, ROWS_MAX};

/// Which users of a node are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsersAsked {
    /// Those behind this one.
    pub after: Option<UserKey>,
    /// How many at most.
    pub limit: usize,
    /// Only those with this in their names.
    pub like_username: Option<String>,
}

/// A user, and how his password is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UserKey {
    /// His name.
    pub username: String,
    /// `argon2` and so on.
    pub algorithm: String,
}

/// Some users of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SomeUsers {
    /// In their order.
    pub users: Vec<UserKey>,
    /// Whether there are more behind the last one.
    pub has_more: bool,
}

impl Operator {
    /// Users of the password file as it was read last. Looks at all of them: the table has no order.
    pub(super) fn users_here(&self, asked: &UsersAsked) -> Answered<SomeUsers> {
        let UsersAsked { after, limit, like_username } = asked;
        let is_wanted = |user: &UserKey| {
            after.as_ref().is_none_or(|after| user > after)
                && like_username.as_ref().is_none_or(|part| user.username.contains(part.as_str()))
        };
        let limit = (*limit).clamp(1, ROWS_MAX);
        let mut users = self.shared.authority.first_users(limit + 1, is_wanted);
        let mut bytes = 0;
        let fits = users.iter().take(limit).take_while(|user| {
            let fits = bytes < ROW_BYTES_MAX;
            bytes += 100 + user.username.len();
            fits
        });
        let fits = fits.count();
        let has_more = users.len() > fits;
        users.truncate(fits);
        Ok(SomeUsers { users, has_more })
    }
}
