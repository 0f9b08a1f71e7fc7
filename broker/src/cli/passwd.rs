//! `kentongan passwd`: the users of a password file, with the flags of mosquitto_passwd.

use std::fs;
use std::future::poll_fn;
use std::io::{self, BufRead, IsTerminal, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::task::Poll;

use anyhow::Context;
use clap::{Args, ValueEnum};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::EXIT_FAILURE;
use super::exclusive::{Exclusive, directory_of};
use crate::auth::{MosquittoForm, PasswordFile, StoredPassword, check_user_name, trim_blanks};

/// Rounds of what mosquitto_passwd writes.
const MOSQUITTO_ITERATIONS: NonZeroU32 = NonZeroU32::new(101).expect("not 0");

#[derive(Debug, Args)]
pub(super) struct PasswdArgs {
    /// Make a new file; one that is there is replaced.
    #[arg(short = 'c', conflicts_with_all = ["delete", "update"])]
    create: bool,
    /// Take the password from the command line, where other users of this machine may see it.
    #[arg(short = 'b', conflicts_with_all = ["delete", "update"], requires = "password")]
    batch: bool,
    /// Delete the user.
    #[arg(short = 'D', conflicts_with = "update")]
    delete: bool,
    /// Hash the passwords of a file that has them in plain text, as USER:PASSWORD. Those that are hashed stay as they are.
    #[arg(short = 'U', conflicts_with = "user")]
    update: bool,
    /// How passwords are hashed. The last two are for a file that mosquitto is to read as well.
    #[arg(short = 'H', value_enum, default_value_t = Form::Argon2id)]
    hash: Form,
    /// The file.
    file: PathBuf,
    /// The user; one that is there gets the new password.
    #[arg(required_unless_present = "update")]
    user: Option<String>,
    /// The password, with -b. Without, it is asked for, or read from standard input if that is no terminal.
    #[arg(requires = "batch")]
    password: Option<String>,
}

/// How a password is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// `$argon2id$`, as RFC 9106 recommends.
    Argon2id,
    /// `$scram-sha-256$`, for clients that show their password by SCRAM, or send it.
    #[value(alias = "scram-sha-256")]
    ScramSha256,
    /// `$7$`.
    Sha512Pbkdf2,
    /// `$6$`.
    Sha512,
}

impl Form {
    fn hash(self, password: &str) -> anyhow::Result<String> {
        let password = password.as_bytes();
        match self {
            Self::Argon2id => StoredPassword::argon2id(password),
            Self::ScramSha256 => StoredPassword::scram_sha256(password),
            Self::Sha512Pbkdf2 => {
                let form = MosquittoForm::Pbkdf2Sha512 { iterations: MOSQUITTO_ITERATIONS };
                StoredPassword::for_mosquitto(password, form)
            }
            Self::Sha512 => StoredPassword::for_mosquitto(password, MosquittoForm::Sha512),
        }
    }
}

pub(super) fn run(arguments: &PasswdArgs) -> u8 {
    match change(arguments) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("kentongan: {error:#}");
            EXIT_FAILURE
        }
    }
}

/// What becomes of the file.
#[derive(Debug)]
enum Change<'a> {
    HashPlain,
    Delete(&'a str),
    Set { user: &'a str, hash: String },
}

fn change(arguments: &PasswdArgs) -> anyhow::Result<()> {
    let path = &arguments.file;
    if !arguments.create {
        // Before anybody types a password for nothing.
        read(path)?;
    }
    let change = wanted(arguments)?;
    // A link to the file is changed where it leads.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    // From here on nobody is waited for: what others change meanwhile waits, and is not written over with what was read before.
    let _exclusive = Exclusive::beside(&target);
    let before = if arguments.create { String::new() } else { read(path)? };
    let after = match change {
        Change::HashPlain => hash_plain_lines(&before, arguments.hash)?,
        Change::Delete(user) => {
            let others = without(&before, user);
            anyhow::ensure!(others != before, "there is no user {user:?} in {}", path.display());
            others
        }
        Change::Set { user, hash } => replaced(&before, user, &hash),
    };
    write_whole(&target, &after)?;
    if let Err(error) = PasswordFile::read(path) {
        eprintln!("kentongan: written, but no broker will take it: {error}");
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).map_err(|error| {
        // Of a file that is there, it would be the end of all its users.
        let advice = if error.kind() == io::ErrorKind::NotFound { "; -c makes a new one" } else { "" };
        anyhow::Error::new(error).context(format!("cannot read {}{advice}", path.display()))
    })
}

/// Asks for the password, if it must, and hashes it: both take their time.
fn wanted(arguments: &PasswdArgs) -> anyhow::Result<Change<'_>> {
    let Some(user) = &arguments.user else { return Ok(Change::HashPlain) };
    check_user_name(user).map_err(anyhow::Error::msg)?;
    if arguments.delete {
        return Ok(Change::Delete(user));
    }
    let password = match &arguments.password {
        Some(password) => password.clone(),
        None => ask_for_password()?,
    };
    anyhow::ensure!(!password.is_empty(), "the password is empty");
    Ok(Change::Set { user, hash: arguments.hash.hash(&password)? })
}

fn user_of(line: &str) -> Option<&str> {
    line.split_once(':').map(|(user, _)| trim_blanks(user)).filter(|_| !line.starts_with('#'))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| line + "\n").collect()
}

fn without(text: &str, user: &str) -> String {
    lines(text.lines().filter(|line| user_of(line) != Some(user)).map(str::to_owned))
}

/// The line of a user changes, or a new one comes last.
fn replaced(text: &str, user: &str, hash: &str) -> String {
    let own = format!("{user}:{hash}");
    if !text.lines().any(|line| user_of(line) == Some(user)) {
        return lines(text.lines().map(str::to_owned).chain([own]));
    }
    lines(text.lines().map(|line| if user_of(line) == Some(user) { own.clone() } else { line.to_owned() }))
}

fn hash_plain_lines(text: &str, form: Form) -> anyhow::Result<String> {
    let hashed = |(number, line): (usize, &str)| -> anyhow::Result<String> {
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(line.to_owned());
        }
        let (user, password) =
            line.split_once(':').with_context(|| format!("line {}: not USER:PASSWORD", number + 1))?;
        if StoredPassword::parse(trim_blanks(password)).is_ok() {
            return Ok(line.to_owned());
        }
        let (number, user) = (number + 1, trim_blanks(user));
        check_user_name(user).map_err(|message| anyhow::anyhow!("line {number}: {message}"))?;
        // It would become one that lets in whoever gives that name.
        anyhow::ensure!(!password.is_empty(), "line {number}: the password of {user:?} is empty");
        Ok(format!("{user}:{}", form.hash(password)?))
    };
    Ok(lines(text.lines().enumerate().map(hashed).collect::<anyhow::Result<Vec<_>>>()?.into_iter()))
}

/// A broker that reads it meanwhile has the old file or the new one. It stays its owner's, and readable for the group that it was
/// readable for, but never for everybody.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = directory_of(path);
    let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = directory.join(beside);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        if let Ok(before) = fs::metadata(path) {
            // Only root can give it to another, and only then it may be another's. Otherwise its group is ours, which need not
            // be one that may read it.
            let is_given = fchown(&file, Some(before.uid()), Some(before.gid())).is_ok();
            if is_given {
                file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o770))?;
            }
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside))).with_context(|| format!("cannot write {}", path.display()))
}

/// Twice from a terminal, which does not show it; once from anything else.
fn ask_for_password() -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return read_line();
    }
    let shown = tcgetattr(io::stdin())?;
    restore_when_ended(shown.clone())?;
    let first = ask_hidden("Password: ", &shown)?;
    anyhow::ensure!(first == ask_hidden("Reenter password: ", &shown)?, "the passwords are not the same");
    Ok(first)
}

fn read_line() -> anyhow::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("cannot read the password")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

fn ask_hidden(prompt: &str, shown: &Termios) -> anyhow::Result<String> {
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
    eprint!("{prompt}");
    let line = read_line();
    tcsetattr(io::stdin(), OptionalActions::Flush, shown)?;
    eprintln!();
    line
}

/// From here on a signal that ends the process leaves the terminal as it was: it shows again what is typed, and nobody else gets
/// what was typed of the password.
fn restore_when_ended(shown: Termios) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let mut ends = {
        let _inside = runtime.enter();
        kinds.map(|kind| signal(kind).map(|signal| (kind, signal))).into_iter().collect::<io::Result<Vec<_>>>()?
    };
    let end = async move {
        let first = poll_fn(|context| {
            let come = ends.iter_mut().find_map(|(kind, end)| end.poll_recv(context).is_ready().then_some(*kind));
            come.map_or(Poll::Pending, Poll::Ready)
        });
        let kind = first.await;
        // A terminal that has hung up is nobody's any more.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &shown);
        eprintln!();
        // As a shell says that it was a signal.
        std::process::exit(128 + kind.as_raw_value())
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(end))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn passwd(line: &[&str]) -> anyhow::Result<()> {
        let cli = Cli::try_parse_from(["kentongan", "passwd"].iter().chain(line))?;
        match cli.command {
            Some(Command::Passwd(arguments)) => change(&arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn users_come_change_and_go_and_the_rest_of_the_file_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwords");
        let file = path.to_str().expect("UTF-8");
        assert!(passwd(&["-b", file, "ana", "x"]).is_err(), "no file yet");
        passwd(&["-c", "-b", file, "ana", "tabuh"]).expect("made");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        passwd(&["-H", "sha512", "-b", file, "budi", "kentong"]).expect("added");
        passwd(&["-H", "sha512-pbkdf2", "-b", file, "citra", "bedug"]).expect("added");
        let users = PasswordFile::read(&path).expect("a file");
        for (user, password) in [("ana", "tabuh"), ("budi", "kentong"), ("citra", "bedug")] {
            assert_eq!(users.verify(user, password.as_bytes()), Some(true), "{user}");
        }
        let text = fs::read_to_string(&path).expect("a file");
        let starts: Vec<_> = text.lines().map(|line| line.split_inclusive('$').take(2).collect::<String>()).collect();
        assert_eq!(starts, ["ana:$argon2id$", "budi:$6$", "citra:$7$"]);
        let mode = || fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(), 0o640, "its group may read it as before, and everybody no more");
        passwd(&["-b", file, "budi", "new"]).expect("changed");
        passwd(&["-D", file, "citra"]).expect("deleted");
        assert!(passwd(&["-D", file, "citra"]).is_err(), "gone already");
        assert!(passwd(&["-b", file, "#dewi", "x"]).is_err(), "it would be a comment");
        let users = PasswordFile::read(&path).expect("a file");
        assert_eq!((users.len(), users.verify("budi", b"new")), (2, Some(true)));
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn whoever_comes_at_the_same_moment_loses_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("kept")).expect("a directory");
        let [kept, link] = ["kept/passwords", "link"].map(|name| directory.path().join(name));
        fs::write(&kept, "").expect("written");
        std::os::unix::fs::symlink(&kept, &link).expect("a link");
        let together = std::sync::Barrier::new(12);
        std::thread::scope(|scope| {
            for number in 0..12 {
                let (file, together) = (if number % 2 == 0 { &kept } else { &link }, &together);
                scope.spawn(move || {
                    together.wait();
                    passwd(&["-H", "sha512", "-b", file.to_str().expect("UTF-8"), &format!("user-{number}"), "x"])
                        .expect("added");
                });
            }
        });
        assert_eq!(PasswordFile::read(&kept).expect("a file").len(), 12);
    }

    #[test]
    fn a_new_file_is_advised_only_where_there_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("passwords");
        let add = || passwd(&["-b", file.to_str().expect("UTF-8"), "ana", "x"]).expect_err("unreadable").to_string();
        assert!(add().ends_with("passwords; -c makes a new one"), "{}", add());
        // What only its bytes keep from being read.
        fs::write(&file, b"ana:\xFF\n").expect("written");
        assert!(add().ends_with("passwords"), "{}", add());
    }

    #[test]
    fn a_link_to_the_file_stays_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let [file, link] = ["passwords", "link"].map(|name| directory.path().join(name));
        fs::create_dir(directory.path().join("kept")).expect("a directory");
        let kept = directory.path().join("kept").join("passwords");
        fs::write(&kept, "").expect("written");
        std::os::unix::fs::symlink("kept/passwords", &file).expect("a link");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        passwd(&["-b", link.to_str().expect("UTF-8"), "ana", "tabuh"]).expect("added");
        assert!(link.is_symlink() && file.is_symlink() && !kept.is_symlink());
        let users = PasswordFile::read(&kept).expect("a file");
        assert_eq!(users.verify("ana", b"tabuh"), Some(true));
        passwd(&["-c", "-b", link.to_str().expect("UTF-8"), "budi", "kentong"]).expect("made anew");
        assert_eq!(PasswordFile::read(&kept).expect("a file").verify("ana", b"tabuh"), None);
    }

    /// As [`PasswordFile`] reads them.
    #[test]
    fn users_are_found_with_blanks_around_their_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwords");
        let hash = StoredPassword::for_mosquitto(b"old", MosquittoForm::Sha512).expect("hashed");
        fs::write(&path, format!(" ana:{hash} \nbudi :plain\n")).expect("written");
        let file = path.to_str().expect("UTF-8");
        passwd(&["-U", file]).expect("hashed");
        passwd(&["-b", file, "ana", "new"]).expect("changed");
        let users = PasswordFile::read(&path).expect("a file");
        assert_eq!(
            (users.len(), users.verify("ana", b"new"), users.verify("budi", b"plain")),
            (2, Some(true), Some(true))
        );
        assert!(passwd(&["-b", file, " ana", "x"]).is_err(), "it would be another's");
    }

    #[test]
    fn plain_passwords_are_hashed_and_hashed_ones_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("passwords");
        let kept = StoredPassword::for_mosquitto(b"kept", MosquittoForm::Sha512).expect("hashed");
        fs::write(&path, format!("# users\nana:ta:buh\nbudi:{kept}\n")).expect("written");
        passwd(&["-U", path.to_str().expect("UTF-8")]).expect("hashed");
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.starts_with("# users\nana:$argon2id$") && text.contains(&kept), "{text}");
        let users = PasswordFile::read(&path).expect("a file");
        assert_eq!((users.verify("ana", b"ta:buh"), users.verify("budi", b"kept")), (Some(true), Some(true)));
        for (line, expected) in
            [("citra:", "line 2: the password of \"citra\" is empty"), (":x", "line 2: the user name is")]
        {
            let text = format!("budi:{kept}\n{line}\n");
            fs::write(&path, &text).expect("written");
            let error = passwd(&["-U", path.to_str().expect("UTF-8")]).expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("a file"), text, "nothing was changed");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            &["-b", "f", "a:b", "x"][..],
            &["-b", "f", "a"],
            &["f", "a", "x"],
            &["-c", "-D", "f", "a"],
            &["-U", "f", "a"],
            &["-H", "md5", "f", "a"],
            &["f"],
        ] {
            assert!(passwd(line).is_err(), "{line:?}");
        }
    }
}
