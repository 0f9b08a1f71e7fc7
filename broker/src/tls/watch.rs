//! When files that changed are read.

use super::Files;
use super::material::Digest;

/// Watches the files of a listener, by what is in them: they may be replaced through a link, and a time of change says little.
///
/// A certificate and its key are two files, which nobody replaces at the same instant. So what changed is used once it has stayed
/// the same from one look to the next, and what was refused is not tried again before it changes.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<Digest>,
    tried: Option<Digest>,
}

impl Watch {
    /// Looks at `files`, `in_force` or not. `true`: they are to be used now.
    pub fn look(&mut self, files: &Files, in_force: bool) -> bool {
        self.look_at(files.digest(), in_force)
    }

    /// The same for files that are known by a digest of what is in them.
    pub fn look_at(&mut self, digest: [u8; 32], in_force: bool) -> bool {
        let has_settled = self.seen.replace(digest) == Some(digest);
        if in_force {
            self.tried = None;
            return false;
        }
        has_settled && self.tried.replace(digest) != Some(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::TlsConfig;

    #[test]
    fn what_changed_is_used_once_it_stays_the_same_and_tried_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("certificate");
        let config = TlsConfig { certificate_file: Some(file.clone()), ..TlsConfig::default() };
        let mut watch = Watch::default();
        let mut look = |contents: Option<&str>, in_force| {
            match contents {
                Some(contents) => fs::write(&file, contents).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            watch.look(&Files::read(&config), in_force)
        };
        assert!(!look(Some("old"), true) && !look(Some("old"), true));
        assert!(!look(Some("half"), false), "it may still be changing");
        assert!(!look(Some("new"), false));
        assert!(look(Some("new"), false));
        assert!(!look(Some("new"), false), "refused, and the same as before");
        assert!(!look(None, false));
        assert!(!look(Some("old"), true));
        assert!(!look(Some("new"), false) && look(Some("new"), false), "it came again");
    }
}
