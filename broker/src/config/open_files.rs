//! Files with secrets that too many may read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Settings;

/// Bit of the mode by which everybody on this machine may read a file.
const READABLE_BY_OTHERS: u32 = 0o004;

/// Logs a warning for each file of secrets that `settings` name and everybody on this machine may read.
pub fn warn_of_open_files(settings: &Settings) {
    for (key, file) in open_files(settings) {
        tracing::warn!(
            key,
            file = %file.display(),
            "everybody on this machine may read this file, and there are secrets in it: take that from them (chmod o-r)"
        );
    }
}

fn open_files(settings: &Settings) -> Vec<(&'static str, &Path)> {
    let of_node = [
        ("auth.password_file", &settings.auth.password_file),
        ("http.token_file", &settings.http.token_file),
        ("api.tokens_file", &settings.api.tokens_file),
        ("api.key_file", &settings.api.key_file),
        ("auth.jwt.secret_file", settings.auth.jwt.as_ref().map_or(&None, |jwt| &jwt.secret_file)),
        ("auth.http.header_value_file", &settings.auth.http.header_value_file),
        ("events.webhook.secret_file", &settings.events.webhook.secret_file),
        ("cluster.key_file", &settings.cluster.key_file),
    ];
    let of_listeners = settings.listener.iter().filter_map(|listener| listener.tls.as_ref()).flat_map(|tls| {
        let main = [("tls.key_file", &tls.key_file), ("tls.ticket_key_file", &tls.ticket_key_file)];
        main.into_iter().chain(tls.sni.iter().map(|one| ("tls.sni.key_file", &one.key_file)))
    });
    let named = of_node.into_iter().chain(of_listeners).filter_map(|(key, file)| Some((key, file.as_deref()?)));
    // One that cannot be read is somebody else's to complain about.
    named.filter(|(_, file)| fs::metadata(file).is_ok_and(|found| found.mode() & READABLE_BY_OTHERS != 0)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::schema::Field;

    #[test]
    fn secrets_that_everybody_may_read_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, mode| {
            let path = directory.path().join(name);
            fs::write(&path, "x").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            Some(path)
        };
        let mut settings = Settings::default();
        settings.auth.password_file = file("users", 0o644);
        settings.http.token_file = file("token", 0o640);
        settings.cluster.key_file = Some(directory.path().join("none"));
        let keys: Vec<_> = open_files(&settings).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["auth.password_file"]);
    }

    /// Whatever there is a setting for that is a secret, or the key of a certificate, is looked at where it lies in a file.
    #[test]
    fn no_file_of_secrets_is_left_out() {
        fn files(fields: &[Field], prefix: &str, found: &mut Vec<String>) {
            for field in fields.iter().filter(|field| !field.repeated) {
                let key = format!("{prefix}{}", field.name);
                match field.children {
                    Some(children) => files(children, &format!("{key}."), found),
                    None if field.is_secret => found.push(format!("{key}_file")),
                    None if ["key_file", "secret_file"].contains(&field.name) => found.push(key),
                    None => {}
                }
            }
        }
        let mut keys = Vec::new();
        files(Settings::FIELDS, "", &mut keys);
        assert!(keys.len() > 4, "{keys:?}");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        fs::write(&path, "x").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        for key in keys {
            let (section, name) = key.rsplit_once('.').expect("in a section");
            let text = format!("[{section}]\n{name} = {path:?}\n");
            let settings: Settings = toml::from_str(&text).expect("settings");
            let named: Vec<_> = open_files(&settings).into_iter().map(|(key, _)| key).collect();
            assert_eq!(named, [key]);
        }
    }
}
