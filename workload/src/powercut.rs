//! A power cut: a process is killed, and of its disk only what had been synced is left.
//!
//! `kill -9` keeps the page cache, so it cannot show that a sync is missing. `powercut.c`, preloaded, remembers what each
//! sync made safe; see there.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Error};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

/// The data directory, in that which is given.
const DATA: &str = "disk/var/data";

/// A directory whose power can be cut.
#[derive(Debug)]
pub struct PowerCut {
    directory: PathBuf,
}

impl PowerCut {
    /// Makes a disk in `directory`, and says what the process that writes to it needs in its environment. The syncs of the
    /// site `ignored` do not count, if the process logs in JSON, with `kentongan_cluster::disk` at `trace`.
    ///
    /// # Errors
    /// The directory cannot be written to, or there is no C compiler.
    pub fn prepare(directory: &Path, ignored: Option<&str>) -> io::Result<(Self, Vec<(String, String)>)> {
        let (source, library) = (directory.join("powercut.c"), directory.join("powercut.so"));
        fs::write(&source, include_str!("powercut.c"))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([library.as_os_str(), source.as_os_str()]).arg("-ldl");
        if !compiler.status()?.success() {
            return Err(Error::other("the C compiler failed"));
        }
        let own = Self { directory: directory.to_owned() };
        own.make_shadow()?;
        fs::create_dir(own.disk())?;
        own.remember(&own.disk())?;
        let text = |path: PathBuf| path.display().to_string();
        let environment = [
            ("LD_PRELOAD", text(library)),
            ("POWERCUT_DIR", text(own.disk())),
            ("POWERCUT_SHADOW", text(own.shadow())),
            ("POWERCUT_IGNORE", ignored.unwrap_or_default().to_owned()),
        ];
        Ok((own, environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    /// Where the process is to have its data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join(DATA)
    }

    /// Only this exists before the process starts: its data directory lies deeper.
    fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    fn shadow(&self) -> PathBuf {
        self.directory.join("shadow")
    }

    fn make_shadow(&self) -> io::Result<()> {
        ["files", "directories"].iter().try_for_each(|kind| fs::create_dir_all(self.shadow().join(kind)))
    }

    /// Puts the disk back together from what was safe, for the process that has just been killed.
    ///
    /// # Errors
    /// What was safe cannot be read, or the directory cannot be written to.
    pub fn cut(&self) -> io::Result<()> {
        let rebuilt = self.directory.join("rebuilt");
        self.rebuild(&self.disk(), &rebuilt)?;
        fs::remove_dir_all(self.disk())?;
        fs::rename(&rebuilt, self.disk())?;
        fs::remove_dir_all(self.shadow())?;
        self.make_shadow()?;
        self.remember(&self.disk())
    }

    fn rebuild(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        // Never synced: nothing in it is sure to be there.
        let names = fs::read_to_string(self.shadow().join("directories").join(key(from)?)).unwrap_or_default();
        for (key, name) in names.lines().filter_map(|line| line.split_once(' ')) {
            let (old, new) = (from.join(name), to.join(name));
            if self.shadow().join("directories").join(key).exists() || old.is_dir() {
                self.rebuild(&old, &new)?;
            } else {
                // Its name was safe before its content ever was: an empty file.
                let content = fs::read(self.shadow().join("files").join(key)).unwrap_or_default();
                fs::write(new, content)?;
            }
        }
        Ok(())
    }

    /// What a process finds at its start is safe.
    fn remember(&self, directory: &Path) -> io::Result<()> {
        let mut names = String::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let key = key(&path)?;
            let name =
                path.file_name().and_then(|name| name.to_str()).ok_or_else(|| Error::other("a name in UTF-8"))?;
            writeln!(names, "{key} {name}").map_err(Error::other)?;
            if path.is_dir() {
                self.remember(&path)?;
            } else {
                fs::copy(&path, self.shadow().join("files").join(key))?;
            }
        }
        fs::write(self.shadow().join("directories").join(key(directory)?), names)
    }
}

/// Tells a file from all others, as `powercut.c` does; empty for one that is gone.
fn key(path: &Path) -> io::Result<String> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(String::new());
    };
    let born = metadata.created()?.duration_since(UNIX_EPOCH).map_err(Error::other)?;
    Ok(format!("{}-{}-{}", metadata.ino(), born.as_secs(), born.subsec_nanos()))
}
