//! Settings: where they come from, what they may be, and where each value was said.
//!
//! Flags win over the environment (`KENTONGAN_SESSION__RECEIVE_MAXIMUM`), that over the drop-in directory beside the
//! file (`FILE.d/*.toml`, the last in the order of their names), that over the file, that over the defaults in
//! [`Settings`]. Each source is read and checked by itself, so that a mistake is blamed on its file and line; only
//! then are they laid over each other.
//!
//! Absent: anything that acts on a setting.

mod address;
mod bounds;
mod events;
mod http_auth;
mod http_url;
mod layer;
mod load;
mod open_files;
mod origin;
mod reload;
mod schema;
mod secret;
mod settings;
mod show;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;

pub use address::{FileMode, ListenAddress};
pub use bounds::warn_of_bounds;
pub use events::{ClientEventKind, EventsConfig, WebhookConfig};
pub use http_url::HttpUrl;
pub use layer::{CONFIG_VARIABLE, ENVIRONMENT_PREFIX};
pub(crate) use load::check_host_port;
pub use load::{Effective, FlagValue, Sources};
pub use open_files::warn_of_open_files;
pub use origin::{ConfigError, Origin, Problem};
pub use reload::{Change, ListenerName, Reload, changes};
pub use schema::{Field, SettingType};
pub use secret::{REDACTED, Secret};
pub use settings::*;
pub use show::reference_page;
pub use tokens::{JwtConfig, RequiredClaim, TokenPlace};
