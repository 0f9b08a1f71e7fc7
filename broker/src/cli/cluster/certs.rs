//! `kentongan cluster certs`: certificates by which the nodes of a cluster know each other.
//!
//! One authority for the cluster, and a certificate for each node whose only name is the node's. That is what the links check
//! (`kentongan_cluster::transport`); it says nothing of addresses, so a node may move.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use jiff::{Timestamp, ToSpan as _};
use kentongan_cluster::transport::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

const AUTHORITY: &str = "ca";

/// An authority lasts longer than the certificates from it: to change it, all nodes must be given another.
const AUTHORITY_DAYS: u32 = 3650;

#[derive(Debug, Args)]
pub(in crate::cli) struct CertsArgs {
    /// Where the files are written. An authority that an earlier run made there is used again.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The name of each node, as it is started with (--node).
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    node: Vec<String>,
    /// Days for which the nodes' certificates are valid, from today.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=AUTHORITY_DAYS as i64))]
    days: u32,
    /// Replace certificates that are there, and their keys. Nodes take them up on SIGHUP.
    #[arg(long)]
    renew: bool,
}

pub(super) fn run(arguments: &CertsArgs) -> anyhow::Result<String> {
    let CertsArgs { directory, node: names, days, renew } = arguments;
    for name in names {
        let file = files(directory, name);
        ensure!(is_name(name), "{name:?} is no name for a node: letters, digits, '-' and '.', and not {AUTHORITY:?}");
        let is_there = file.certificate.try_exists()? || file.key.try_exists()?;
        ensure!(*renew || !is_there, "{} is there: give --renew to replace it", file.certificate.display());
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let authority = Authority::in_directory(directory)?;
    let mut text = String::new();
    for name in names {
        let files = authority.certify(directory, name, *days)?;
        let TlsFiles { ca, certificate, key } = files;
        let [ca, certificate, key] = [ca, certificate, key].map(|file| file.display().to_string());
        let _ = write!(
            text,
            "kentongan serve --node {name} \\\n  --set cluster.ca_file={ca} \\\n  --set cluster.certificate_file={certificate} \\\n  \
             --set cluster.key_file={key} ...\n\n"
        );
    }
    let _ = writeln!(
        text,
        "Give each node its own three files and no others. {} makes members of this cluster: keep it apart from all nodes.",
        directory.join(format!("{AUTHORITY}.key")).display()
    );
    Ok(text)
}

/// One that can stand in a certificate, and in the name of a file.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    name != AUTHORITY && name.len() <= 253 && name.split('.').all(is_label)
}

fn files(directory: &Path, name: &str) -> TlsFiles {
    let file = |name: &str, end: &str| directory.join(format!("{name}.{end}"));
    TlsFiles { ca: file(AUTHORITY, "crt"), certificate: file(name, "crt"), key: file(name, "key") }
}

/// Who says which nodes are members.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The one that is there, or a new one.
    fn in_directory(directory: &Path) -> anyhow::Result<Self> {
        let file = files(directory, AUTHORITY);
        let params = authority_params()?;
        let key = match (file.certificate.try_exists()?, file.key.try_exists()?) {
            (true, true) => {
                let pem = fs::read_to_string(&file.key).with_context(|| file.key.display().to_string())?;
                KeyPair::from_pem(&pem).with_context(|| file.key.display().to_string())?
            }
            (false, false) => {
                let key = KeyPair::generate()?;
                let certificate = params.self_signed(&key)?;
                write(&file.key, &key.serialize_pem())?;
                write(&file.certificate, &certificate.pem())?;
                key
            }
            (is_certificate, _) => {
                let (there, missing) =
                    if is_certificate { (&file.certificate, &file.key) } else { (&file.key, &file.certificate) };
                bail!("{} is there without {}", there.display(), missing.display());
            }
        };
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    fn certify(&self, directory: &Path, name: &str, days: u32) -> anyhow::Result<TlsFiles> {
        let files = files(directory, name);
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Each node dials the others and is dialled by them.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        last(&mut params, days)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let new = TlsFiles {
            certificate: files.certificate.with_added_extension("new"),
            key: files.key.with_added_extension("new"),
            ca: files.ca.clone(),
        };
        write(&new.key, &key.serialize_pem())?;
        write(&new.certificate, &certificate.pem())?;
        let checked = new.check(name).with_context(|| {
            format!("the authority in {} was not made by this command, or has expired", directory.display())
        });
        if checked.is_err() {
            // They are worth nothing; if they stay, the next run writes over them.
            let _ = fs::remove_file(&new.key).and_then(|()| fs::remove_file(&new.certificate));
        }
        checked?;
        fs::rename(&new.key, &files.key)?;
        fs::rename(&new.certificate, &files.certificate)?;
        Ok(files)
    }
}

/// Always the same but for the time: certificates name it as their issuer.
fn authority_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Kentongan cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    last(&mut params, AUTHORITY_DAYS)?;
    Ok(params)
}

/// From yesterday on, since clocks differ, and for so many days.
fn last(params: &mut CertificateParams, days: u32) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let today = jiff::tz::TimeZone::UTC.to_datetime(Timestamp::from_second(now as i64)?).date();
    let date = |date: jiff::civil::Date| date_time_ymd(i32::from(date.year()), date.month() as u8, date.day() as u8);
    params.not_before = date(today.checked_sub(1.day())?);
    params.not_after = date(today.checked_add(i64::from(days).days())?);
    Ok(())
}

/// Only the owner may read it.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn arguments(directory: &Path, names: &[&str], renew: bool) -> CertsArgs {
        let node = names.iter().map(|&name| name.to_owned()).collect();
        CertsArgs { directory: directory.to_owned(), node, days: 30, renew }
    }

    #[test]
    fn certificates_are_what_the_links_check_and_nobody_else_can_read_the_keys() {
        let directory = tempfile::tempdir().unwrap();
        let text = run(&arguments(directory.path(), &["n1", "n2.example"], false)).unwrap();
        assert!(text.contains("n2.example.key"), "{text}");
        for name in ["n1", "n2.example"] {
            files(directory.path(), name).check(name).unwrap();
            assert!(files(directory.path(), name).check("n3").is_err(), "a certificate is for one name");
        }
        for entry in fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 6);
    }

    /// Those that were given out before stay good: one node at a time can be added, or renewed.
    #[test]
    fn an_authority_is_used_again_and_nothing_is_replaced_without_being_told() {
        let directory = tempfile::tempdir().unwrap();
        run(&arguments(directory.path(), &["n1"], false)).unwrap();
        let authority = fs::read(files(directory.path(), AUTHORITY).certificate).unwrap();
        let key = || fs::read(files(directory.path(), "n1").key).unwrap();
        let before = key();
        let refused = run(&arguments(directory.path(), &["n2", "n1"], false)).unwrap_err();
        assert!(refused.to_string().contains("--renew"), "{refused}");
        assert_eq!(key(), before);
        run(&arguments(directory.path(), &["n1", "n2"], true)).unwrap();
        assert_ne!(key(), before);
        assert_eq!(fs::read(files(directory.path(), AUTHORITY).certificate).unwrap(), authority);
        ["n1", "n2"].iter().for_each(|name| files(directory.path(), name).check(name).unwrap());
    }

    #[test]
    fn another_authority_or_half_of_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        run(&arguments(directory.path(), &["n1"], false)).unwrap();
        let file = files(directory.path(), AUTHORITY);
        let other = KeyPair::generate().unwrap();
        fs::write(&file.key, other.serialize_pem()).unwrap();
        let refused = run(&arguments(directory.path(), &["n2"], false)).unwrap_err();
        assert!(refused.to_string().contains("was not made by this command"), "{refused}");
        fs::remove_file(&file.key).unwrap();
        assert!(
            run(&arguments(directory.path(), &["n2"], false)).unwrap_err().to_string().contains("is there without")
        );
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", "ca", "a/b", "..", "-a", "a b", "ä", &"a".repeat(64)] {
            assert!(run(&arguments(directory.path(), &[name], false)).is_err(), "{name:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
