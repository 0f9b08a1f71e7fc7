//! Settings: where they come from, what they may be, and where each value was said.
//!
//! Flags win over the environment (`KENTONGAN_SESSION__RECEIVE_MAXIMUM`), that over the drop-in directory beside the
//! file (`FILE.d/*.toml`, in the order of their names), that over the file, that over the defaults in [`Settings`].

mod schema;
mod secret;
mod settings;

pub use schema::{Field, SettingType};
pub use secret::{REDACTED, Secret};
pub use settings::*;
