//! How a section of settings is written down once and read four ways: as a struct, as its defaults, as the list of
//! keys that may stand in a file, and as the reference page. `=> reloaded` behind a default says that a running broker
//! takes a new value in.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use crate::connection::networks::Network;
use crate::mount::MountPoint;

/// One key of a section.
#[derive(Debug)]
pub struct Field {
    /// As it stands in the file.
    pub name: &'static str,
    /// The lines of its doc comment.
    pub doc: &'static [&'static str],
    /// How the reference page names the type.
    pub type_name: fn() -> String,
    /// Whether text from the environment is taken as it stands rather than read as TOML.
    pub is_text: bool,
    /// Whether the value must never be shown.
    pub is_secret: bool,
    /// The keys below, if this is a section.
    pub children: Option<&'static [Field]>,
    /// What the keys below are if nobody says it, if this is a section.
    pub defaults: fn() -> Option<toml::Table>,
    /// Whether the section may stand several times (`[[name]]`).
    pub repeated: bool,
    /// Whether a running broker takes a new value in when it is told to read its settings again.
    pub reloaded: bool,
}

/// What `=> reloaded` behind a default means.
pub(super) const fn is_reloaded(words: &[&str]) -> bool {
    !words.is_empty()
}

/// A type that a setting may have.
pub trait SettingType {
    /// See [`Field::is_text`].
    const IS_TEXT: bool = false;
    /// See [`Field::is_secret`].
    const IS_SECRET: bool = false;
    /// See [`Field::children`].
    const CHILDREN: Option<&'static [Field]> = None;
    /// See [`Field::repeated`].
    const REPEATED: bool = false;

    /// How the reference page names the type.
    fn type_name() -> String;

    /// See [`Field::defaults`].
    fn defaults() -> Option<toml::Table> {
        None
    }
}

macro_rules! plain_types {
    ($($type:ty, $is_text:literal, $name:expr;)*) => {
        $(impl SettingType for $type {
            const IS_TEXT: bool = $is_text;
            fn type_name() -> String {
                String::from($name)
            }
        })*
    };
}

plain_types! {
    bool, false, "true or false";
    u8, false, "0 to 255";
    u16, false, "0 to 65535";
    u32, false, "0 to 4294967295";
    u64, false, "whole number";
    usize, false, "whole number";
    NonZeroU16, false, "1 to 65535";
    NonZeroU32, false, "1 to 4294967295";
    String, true, "text";
    PathBuf, true, "path";
    SocketAddr, true, "IP address and port";
    Network, true, "IP address or network";
    MountPoint, true, "beginning of topics";
}

impl<T: SettingType> SettingType for Option<T> {
    const IS_TEXT: bool = T::IS_TEXT;
    const IS_SECRET: bool = T::IS_SECRET;
    const CHILDREN: Option<&'static [Field]> = T::CHILDREN;

    fn type_name() -> String {
        T::type_name()
    }

    fn defaults() -> Option<toml::Table> {
        T::defaults()
    }
}

impl<T: SettingType> SettingType for Vec<T> {
    const CHILDREN: Option<&'static [Field]> = T::CHILDREN;
    const REPEATED: bool = T::CHILDREN.is_some();

    fn type_name() -> String {
        format!("list of: {}", T::type_name())
    }

    fn defaults() -> Option<toml::Table> {
        T::defaults()
    }
}

impl Field {
    /// The key named `name` below this one, if it is a section that has it.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&'static Field> {
        self.children?.iter().find(|field| field.name == name)
    }
}

/// Declares a section: the struct, its [`Default`] and its [`Field`]s. The doc comments become the reference page.
macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                pub $field:ident: $type:ty = $default:expr $(=> $reloaded:ident)?,
            )*
        }
    )*) => {$(
        $(#[doc = $section_doc])*
        #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $doc])*
                pub $field: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            /// The lines of the section's doc comment.
            pub const DOC: &'static [&'static str] = &[$($section_doc),*];

            /// The keys of the section, in the order of the reference page.
            pub const FIELDS: &'static [$crate::config::schema::Field] = &[
                $($crate::config::schema::Field {
                    name: stringify!($field),
                    doc: &[$($doc),*],
                    type_name: <$type as $crate::config::schema::SettingType>::type_name,
                    is_text: <$type as $crate::config::schema::SettingType>::IS_TEXT,
                    is_secret: <$type as $crate::config::schema::SettingType>::IS_SECRET,
                    children: <$type as $crate::config::schema::SettingType>::CHILDREN,
                    defaults: <$type as $crate::config::schema::SettingType>::defaults,
                    repeated: <$type as $crate::config::schema::SettingType>::REPEATED,
                    reloaded: $crate::config::schema::is_reloaded(&[$(stringify!($reloaded))?]),
                },)*
            ];
        }

        impl $crate::config::schema::SettingType for $name {
            const CHILDREN: Option<&'static [$crate::config::schema::Field]> = Some($name::FIELDS);

            fn type_name() -> String {
                String::from("section")
            }

            fn defaults() -> Option<toml::Table> {
                toml::Table::try_from(Self::default()).ok()
            }
        }
    )*};
}

/// Declares a setting that is one of a few words.
macro_rules! choices {
    ($(
        $(#[doc = $enum_doc:literal])*
        pub enum $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $variant:ident = $word:literal,
            )*
        }
    )*) => {$(
        $(#[doc = $enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
        pub enum $name {
            $(
                $(#[doc = $doc])*
                #[serde(rename = $word)]
                $variant,
            )*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)* })
            }
        }

        impl $crate::config::schema::SettingType for $name {
            const IS_TEXT: bool = true;

            fn type_name() -> String {
                [$(concat!("`\"", $word, "\"`")),*].join(", ")
            }
        }
    )*};
}

pub(super) use {choices, settings};
