//! What a package has beside the program, made from the command line and the settings: man pages and completions.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap_complete::Shell;

use crate::licences;
use crate::man;

/// Shells, and the name of a file with completions where they look for one.
const COMPLETIONS: [(Shell, &str); 3] =
    [(Shell::Bash, "kentongan.bash"), (Shell::Zsh, "_kentongan"), (Shell::Fish, "kentongan.fish")];

/// Writes all of it into `directory`, in place of what is there.
pub fn run(directory: &Path) -> anyhow::Result<()> {
    let mut command = kentongan::cli::command();
    for (shell, name) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "kentongan", &mut script);
        write(&directory.join("completions").join(name), &script)?;
    }
    let pages = directory.join("man");
    if pages.exists() {
        fs::remove_dir_all(&pages).with_context(|| format!("cannot empty {}", pages.display()))?;
    }
    for (name, page) in man::of_command(kentongan::cli::command())? {
        write(&pages.join(name), &page)?;
    }
    write(&pages.join("kentongan.toml.5"), man::of_settings(&kentongan::config::reference_page()).as_bytes())?;
    write(&directory.join("third-party-licences.txt"), licences::texts()?.as_bytes())
}

fn write(path: &PathBuf, bytes: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().context("a file lies in a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
