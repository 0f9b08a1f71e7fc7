//! Lists that come a page at a time.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::operator::ROWS_MAX;

/// Rows of a page if nothing is said.
const LIMIT_DEFAULT: usize = 100;

/// Which page of a list.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageAsked {
    /// How many rows at most; there may be fewer although more follow.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<usize>,
    /// `meta.cursor` of the page before.
    pub cursor: Option<String>,
}

impl PageAsked {
    /// How many rows.
    ///
    /// # Errors
    /// It is no number of rows.
    pub fn limit(&self) -> Result<usize, Problem> {
        match self.limit.unwrap_or(LIMIT_DEFAULT) {
            limit @ 1..=ROWS_MAX => Ok(limit),
            _ => Err(Problem::bad_request(format!("`limit` must be 1 to {ROWS_MAX}"))),
        }
    }

    /// Where the page begins; the default is the beginning of the list.
    ///
    /// # Errors
    /// The cursor is none of ours.
    pub fn begin<T: DeserializeOwned + Default>(&self) -> Result<T, Problem> {
        let Some(cursor) = &self.cursor else { return Ok(T::default()) };
        let json = URL_SAFE_NO_PAD.decode(cursor).ok();
        let begin = json.and_then(|json| serde_json::from_slice(&json).ok());
        begin.ok_or_else(|| {
            Problem::bad_request(
                "`cursor` must be `meta.cursor` of the page before, and be left out for the first page",
            )
        })
    }
}

/// What there is to say of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PageMeta {
    /// How many rows were asked for.
    pub limit: usize,
    /// How many there are.
    pub count: usize,
    /// Whether there may be more.
    pub hasnext: bool,
    /// Where the next page begins, if there is one. It may be used as long as you like: what has come or gone since is seen,
    /// or not.
    pub cursor: Option<String>,
}

impl PageMeta {
    /// Of a page with `count` rows, after which the list goes on at `next`.
    pub fn new<T: Serialize>(limit: usize, count: usize, next: Option<&T>) -> Self {
        let cursor = next.and_then(|next| serde_json::to_vec(next).ok()).map(|json| URL_SAFE_NO_PAD.encode(json));
        Self { limit, count, hasnext: cursor.is_some(), cursor }
    }
}

/// A node that did not say what it has: the answer is not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Silent {
    /// Its name.
    pub node: String,
    /// Why.
    pub detail: String,
}
