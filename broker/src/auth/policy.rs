//! The files that say who is who and who may what, as they were read together.

use std::sync::Arc;

use super::acl_file::AclFile;
use super::http::Server;
use super::jwt::Tokens;
use super::password_file::{FileError, PasswordFile};
use super::rights::Rules;
use super::rules_file;
use crate::config::{AclSubscribe, AuthConfig};

/// What the files say. Replaced as a whole, or not at all.
#[derive(Debug, Default)]
pub struct Policy {
    /// Grows with each reading.
    pub(super) generation: u64,
    pub(super) passwords: Option<PasswordFile>,
    /// `None`: there are no tokens.
    pub(super) tokens: Option<Arc<Tokens>>,
    /// `None`: everybody may do everything.
    pub(super) rules: Option<Rules>,
    /// Who is asked beside the files.
    pub(super) server: Option<Arc<Server>>,
    /// Every subscription is granted, and what comes of it is looked at message by message.
    pub(super) grants_subscriptions: bool,
}

impl Policy {
    /// Only users, from the text of a file.
    #[cfg(test)]
    pub(super) fn of_users(text: &str) -> Result<Self, FileError> {
        let passwords = Some(PasswordFile::parse(std::path::Path::new("passwords"), text)?);
        Ok(Self { passwords, ..Self::default() })
    }

    /// Whether a server says who may come in.
    pub(super) fn asks_server(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_asked_about_logins())
    }

    /// Reads the files that the settings name. `before` is what is in force.
    ///
    /// # Errors
    /// What is wrong, with file and line.
    pub(super) fn read(config: &AuthConfig, before: &Self) -> Result<Self, FileError> {
        let ordered = config.rules_file.as_deref().map(rules_file::read).transpose()?;
        let acl_file = config.acl_file.as_deref().map(AclFile::read).transpose()?;
        let has_rules = ordered.is_some() || acl_file.is_some();
        Ok(Self {
            generation: before.generation + 1,
            passwords: config.password_file.as_deref().map(PasswordFile::read).transpose()?,
            tokens: config
                .jwt
                .as_ref()
                .map(|jwt| Tokens::read(jwt, before.tokens.as_deref()))
                .transpose()?
                .map(Arc::new),
            rules: has_rules.then(|| Rules { ordered: ordered.unwrap_or_default().into(), acl_file }),
            server: Server::new(&config.http).map_err(FileError::Server)?.map(Arc::new),
            grants_subscriptions: config.acl_subscribe == AclSubscribe::Filter,
        })
    }
}
