//! The Rust of the peer link, which is made from its protobuf so that it cannot drift from it.
//!
//! Messages go to `proto`, which knows no runtime; the stubs of the service go to `cluster`, which speaks HTTP/2.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const GENERATED_BY: &str = "// Made from proto/src/peer/peer.proto by `cargo xtask peer`. Do not edit.\n\n";

/// The file that prost names after the protobuf's package.
const PACKAGE_FILE: &str = "kentongan.peer.v1.rs";

/// Writes the files, or with `check` compares them and says which are stale.
pub fn run(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let descriptors = protox::compile(["peer.proto"], [root.join("proto/src/peer")])?;
    let mut messages = tonic_prost_build::Config::new();
    messages.bytes(["."]);
    let messages = generate(|directory| Ok(messages.out_dir(directory).compile_fds(descriptors.clone())?))?;
    let service = generate(|directory| {
        let builder = tonic_prost_build::configure().extern_path(".kentongan.peer.v1", "::kentongan_proto::peer::wire");
        // Connections are made by our own code, which checks who is at their other end.
        Ok(builder.build_transport(false).out_dir(directory).compile_fds(descriptors)?)
    })?;

    let mut stale = Vec::new();
    for (path, text) in [("proto/src/peer/wire.rs", messages), ("cluster/src/transport/stubs.rs", service)] {
        let target = root.join(path);
        if fs::read_to_string(&target).is_ok_and(|found| found == text) {
            continue;
        }
        if check {
            stale.push(path);
        } else {
            fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    if !stale.is_empty() {
        bail!("stale: {}; run `cargo xtask peer`", stale.join(", "));
    }
    Ok(())
}

/// Runs a generator into a directory of its own and returns the one file that it makes.
fn generate(generator: impl FnOnce(&PathBuf) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let directory = tempfile::tempdir()?;
    generator(&directory.path().to_path_buf())?;
    let text = fs::read_to_string(directory.path().join(PACKAGE_FILE))?;
    Ok(format!("{GENERATED_BY}{text}"))
}
