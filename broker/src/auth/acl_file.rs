//! mosquitto's ACL file, with its exact meaning.
//!
//! `topic [read|write|readwrite|deny] FILTER` is for the user of the last `user NAME` line before it; those that stand before
//! the first such line are for clients that are nobody in particular. `pattern …` is for everybody, with `%u` and `%c` for the
//! names of the client. A client meets the lines of its own first and then the patterns, and `deny` counts before the rest
//! of each. So what a user is allowed by its own lines no pattern takes away.

use std::path::Path;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::password_file::FileError;
use super::rights::{Effect, Lines, PUBLISH, Pattern, READ, Rule, Subject, is_dangerous};

/// A file that was read.
#[derive(Debug, Default)]
pub struct AclFile {
    /// By user, those that deny first; the empty name is that of nobody in particular.
    own: HashMap<Box<str>, Lines, RandomState>,
    patterns: Lines,
}

impl AclFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It is unreadable, empty, or a line is wrong.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Self::parse(path, &FileError::read(path)?)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let mut own: HashMap<Box<str>, Vec<Rule>, RandomState> = HashMap::default();
        let mut patterns = Vec::new();
        let mut user = "";
        for (number, line) in text.lines().enumerate() {
            let refused = |message: String| FileError::line(path, number + 1, message);
            let line = line.trim_end();
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (word, rest) = line.trim_start().split_once(' ').unwrap_or((line.trim_start(), ""));
            let rest = rest.trim_start();
            match word {
                "user" if rest.is_empty() => return Err(refused(String::from("`user` without a name"))),
                "user" => user = rest,
                "topic" => {
                    let rule = rule(rest, Pattern::literal).map_err(refused)?;
                    enter(own.entry(Box::from(user)).or_default(), rule);
                }
                "pattern" => enter(&mut patterns, rule(rest, Pattern::parse).map_err(refused)?),
                _ => {
                    return Err(refused(format!("a line begins with `user`, `topic` or `pattern`, not with {word:?}")));
                }
            }
        }
        if own.is_empty() && patterns.is_empty() {
            return Err(FileError::whole(path, "there is no `topic` and no `pattern` in it: nobody could do anything"));
        }
        let own = own.into_iter().map(|(user, rules)| (user, rules.into())).collect();
        Ok(Self { own, patterns: patterns.into() })
    }

    /// What stands there about a user or about everybody, also if no pattern is for one of that name.
    pub(super) fn about(&self, identity: &str) -> impl Iterator<Item = &Lines> {
        self.own.get(identity).into_iter().chain([&self.patterns])
    }

    /// What a client meets, in order.
    pub(super) fn for_subject(&self, subject: &Subject<'_>) -> impl Iterator<Item = &Lines> {
        let own = self.own.get(subject.identity).into_iter();
        // Somebody with such a name could reach into what is another's: not even patterns without names are for it.
        let is_dangerous = is_dangerous(subject.identity) || is_dangerous(subject.client_id);
        own.chain((!is_dangerous).then_some(&self.patterns))
    }
}

/// Those that deny come first, the last of them before the others, as they would with mosquitto: it makes no difference.
fn enter(lines: &mut Vec<Rule>, rule: Rule) {
    match rule.effect {
        Effect::Deny => lines.insert(0, rule),
        Effect::Allow => lines.push(rule),
    }
}

/// `[read|write|readwrite|deny] FILTER`. A filter that contains spaces needs the word before it.
fn rule(text: &str, pattern: fn(&str) -> Result<Pattern, String>) -> Result<Rule, String> {
    let (effect, actions, filter) = match text.split_once(' ') {
        None if text.is_empty() => return Err(String::from("there is no topic filter")),
        None => (Effect::Allow, READ | PUBLISH, text),
        Some(("read", filter)) => (Effect::Allow, READ, filter),
        Some(("write", filter)) => (Effect::Allow, PUBLISH, filter),
        Some(("readwrite", filter)) => (Effect::Allow, READ | PUBLISH, filter),
        Some(("deny", filter)) => (Effect::Deny, READ | PUBLISH, filter),
        Some((word, _)) => return Err(format!("{word:?} is none of `read`, `write`, `readwrite` and `deny`")),
    };
    Ok(Rule::about(effect, actions, pattern(filter.trim_start())?))
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::QoS;

    use super::super::rights::{Rights, Rules, Site};
    use super::*;

    fn parse(text: &str) -> Result<AclFile, String> {
        AclFile::parse(Path::new("acl"), text).map_err(|error| error.to_string())
    }

    fn rights(text: &str, identity: &str, client_id: &str) -> Rights {
        let rules = Rules { acl_file: Some(parse(text).expect("a file")), ..Rules::default() };
        rules.for_subject(&Subject { identity, client_id, site: Site::NoAddress })
    }

    const FILE: &str = "# for everybody without a name\n\
                        topic read news/#\n\
                        \n\
                        user ana\n\
                        topic plant/#\n\
                        topic deny plant/secret\n\
                        topic read own topic/x\r\n\
                        user budi\n\
                        topic write plant/+\n\
                        pattern readwrite home/%u/#\n\
                        pattern deny home/+/locked\n\
                        pattern deny plant/7\n\
                        pattern read $SYS/#\n\
                        user ana\n\
                        topic home/ana/locked\n";

    /// Each line as mosquitto 2.0 takes it; a test beside real clients compares the two.
    #[test]
    fn the_lines_of_a_user_come_before_the_patterns_and_what_denies_before_what_allows() {
        let ana = rights(FILE, "ana", "c");
        let budi = rights(FILE, "budi", "c");
        let nobody = rights(FILE, "", "c");
        let read = |rights: &Rights, topic: &str| rights.may_read(topic, QoS::AtMostOnce);
        let write = |rights: &Rights, topic: &str| rights.may_publish(topic, QoS::AtMostOnce, false);
        assert!(read(&ana, "plant/7") && write(&ana, "plant"), "her own line comes before the pattern that denies");
        assert!(!read(&ana, "plant/secret") && !write(&ana, "plant/secret"));
        assert!(write(&ana, "home/ana/locked"), "a second section of the same user");
        assert!(write(&budi, "plant/7") && !read(&budi, "plant/7"));
        assert!(!write(&budi, "home/budi/locked") && write(&budi, "home/budi/x") && !read(&budi, "home/ana/x"));
        assert!(read(&nobody, "news/x") && !write(&nobody, "news/x") && !read(&budi, "news/x"));
        assert!(!read(&nobody, "home//x"), "nobody has no name");
        assert!(read(&nobody, "$SYS/x") && !read(&ana, "$other"), "no wildcard reaches `$`");
        let citra = rights(FILE, "citra", "c");
        assert!(!read(&citra, "news/x") && read(&citra, "home/citra/x"), "somebody without lines is not nobody");
        let literal = rights("topic read own/%u/%c\n", "", "c");
        assert!(read(&literal, "own/%u/%c"), "only patterns have names in them");
    }

    #[test]
    fn dangerous_names_meet_no_pattern_at_all() {
        for (identity, client_id) in [("a/b", "c"), ("+", "c"), ("x", "#"), ("x", "a/b")] {
            assert!(!rights(FILE, identity, client_id).may_read("$SYS/x", QoS::AtMostOnce), "{identity} {client_id}");
        }
        assert!(rights(FILE, "ana", "#").may_read("plant/1", QoS::AtMostOnce), "their own lines they keep");
    }

    #[test]
    fn a_file_that_cannot_be_used_whole_is_not_used_at_all() {
        for (text, expected) in [
            ("", "acl: there is no `topic`"),
            ("# x\nuser a\n", "acl: there is no `topic`"),
            ("topic\n", "acl, line 1: there is no topic filter"),
            ("topic x\ntopic update x\n", "acl, line 2: \"update\" is none of"),
            ("user\n", "acl, line 1: `user` without a name"),
            ("topic read a/#/b\n", "acl, line 1: \"a/#/b\" is no topic filter"),
            ("pattern a+/%u\n", "acl, line 1: \"a+/%u\" is no topic filter"),
            ("allow x\n", "acl, line 1: a line begins with"),
        ] {
            let error = parse(text).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
