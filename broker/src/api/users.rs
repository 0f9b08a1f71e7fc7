//! Users that nodes know by their files.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::caller::Viewer;
use super::extract::Query;
use super::page::{PageAsked, PageMeta, Silent};
use super::problem::Problem;
use super::{Api, Problems};
use crate::operator::users::{SomeUsers, UserKey, UsersAsked};
use crate::operator::{NodeName, Operator, Question};

/// The routes of this module.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Which users.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only those with this in their names.
    like_username: Option<String>,
}

/// Where users come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The file of `auth.password_file`.
    PasswordFile,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct User {
    /// His name.
    pub username: String,
    /// Where he is known from.
    pub source: Source,
    /// How his password is kept: `argon2`, `scram-sha-256`, `pbkdf2-sha512` or `sha512`.
    pub algorithm: String,
    /// The nodes whose file has him so. Files are each node's own: where one is missing, he cannot log in there.
    pub nodes: Vec<String>,
}

/// A page of users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsersPage {
    /// By their names.
    pub data: Vec<User>,
    /// Where it goes on.
    pub meta: PageMeta,
    /// Nodes whose users are missing.
    pub unavailable: Vec<Silent>,
}

/// Users
///
/// Those in the nodes' password files, without their passwords. Whom a certificate, a token or a server vouches for is known only once he
/// is here: see /clients.
#[utoipa::path(
    get, path = "/users", operation_id = "listUsers", tag = "users", params(Wanted, PageAsked),
    responses((status = 200, description = "A page of them", body = UsersPage), Problems)
)]
async fn list(
    State(api): State<Arc<Api>>,
    _: Viewer,
    Query(wanted): Query<Wanted>,
    Query(page): Query<PageAsked>,
) -> Result<Json<UsersPage>, Problem> {
    let (limit, after) = (page.limit()?, page.begin::<Option<UserKey>>()?);
    let list = move |operator: &Operator| {
        let asked = UsersAsked { after, limit, like_username: wanted.like_username };
        let (mut heard, mut unavailable) = (Vec::new(), Vec::new());
        for (node, answer) in operator.ask_all::<SomeUsers>(&Question::Users(asked))? {
            match answer {
                Ok(some) => heard.push((node, some)),
                Err(error) => unavailable.push(Silent { node: node.name, detail: error.to_string() }),
            }
        }
        let (data, next) = merged(heard, limit);
        let meta = PageMeta::new(limit, data.len(), next.as_ref());
        Ok(UsersPage { data, meta, unavailable })
    };
    api.blocking(list).await.map(Json)
}

/// The first of what all nodes have, and behind whom it goes on.
fn merged(mut heard: Vec<(NodeName, SomeUsers)>, limit: usize) -> (Vec<User>, Option<UserKey>) {
    // Behind this one some node has said nothing of its users yet.
    let known_to =
        heard.iter().filter(|(_, some)| some.has_more).filter_map(|(_, some)| some.users.last()).min().cloned();
    let mut users = BTreeMap::<UserKey, Vec<String>>::new();
    heard.sort_unstable_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    for (node, some) in heard {
        for user in some.users {
            users.entry(user).or_default().push(node.name.clone());
        }
    }
    let is_known = |user: &UserKey| known_to.as_ref().is_none_or(|last| user <= last);
    let all = users.len();
    let page: Vec<_> = users.into_iter().take(limit).take_while(|(user, _)| is_known(user)).collect();
    let next = page.last().filter(|_| page.len() < all || known_to.is_some()).map(|(user, _)| user.clone());
    let row =
        |(UserKey { username, algorithm }, nodes)| User { username, source: Source::PasswordFile, algorithm, nodes };
    (page.into_iter().map(row).collect(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> UserKey {
        UserKey { username: name.to_owned(), algorithm: String::from("argon2") }
    }

    fn node(name: &str, users: &[&str], has_more: bool) -> (NodeName, SomeUsers) {
        let users = users.iter().map(|user| key(user)).collect();
        (NodeName { node: 1, name: name.to_owned(), lives: true }, SomeUsers { users, has_more })
    }

    fn names((users, next): &(Vec<User>, Option<UserKey>)) -> (Vec<(&str, usize)>, Option<&str>) {
        let rows = users.iter().map(|user| (&*user.username, user.nodes.len())).collect();
        (rows, next.as_ref().map(|next| &*next.username))
    }

    #[test]
    fn a_user_is_one_row_with_all_nodes_that_have_him() {
        let page = merged(vec![node("n2", &["budi", "cok"], false), node("n1", &["ana", "budi"], false)], 10);
        assert_eq!(names(&page), (vec![("ana", 1), ("budi", 2), ("cok", 1)], None));
        assert_eq!(page.0[1].nodes, ["n1", "n2"]);
        let other = (
            node("n3", &[], false).0,
            SomeUsers { users: vec![UserKey { algorithm: "sha512".into(), ..key("ana") }], has_more: false },
        );
        let page = merged(vec![node("n1", &["ana"], false), other], 10);
        assert_eq!(names(&page), (vec![("ana", 1), ("ana", 1)], None), "his passwords are two");
    }

    /// A page ends where a node has said nothing yet: who follows could be missing there, or stand in the wrong place.
    #[test]
    fn a_page_goes_no_further_than_every_node_has_said() {
        let page = merged(vec![node("n1", &["ana", "budi"], true), node("n2", &["cok", "dewi"], true)], 10);
        assert_eq!(names(&page), (vec![("ana", 1), ("budi", 1)], Some("budi")));
        let page = merged(vec![node("n1", &["ana", "budi"], false), node("n2", &["cok"], false)], 2);
        assert_eq!(names(&page), (vec![("ana", 1), ("budi", 1)], Some("budi")));
        assert_eq!(names(&merged(vec![node("n1", &[], false)], 2)), (vec![], None));
    }
}
