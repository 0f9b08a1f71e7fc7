//! The reference page of the command line, made from what `--help` prints.

use std::fmt::Write as _;

const PREFACE: &str = "\
<!-- Made from the command line itself by `cargo xtask docs`; change it in broker/src/cli/. -->

# Command line

Exit codes: 0 success, 1 something failed while running, 2 the command line or the configuration is wrong, 3 this node was
removed from its cluster, 4 this version is too old, or too new, for the cluster, 5 the data directory is an older copy of the node's, or
a copy of a living node's; and 27 if `-W` of `kentongan sub` or `rr` ran out of time, as with mosquitto's. After 3, 4 and 5 another start of the same brings the same.

`pub`, `sub` and `rr` take the flags of mosquitto_pub, mosquitto_sub and mosquitto_rr, so `-h` is the host there and help is `--help`. They
differ in speaking MQTT 5 unless `-V` says otherwise, and in following the manual of mosquitto_sub where the program does
not: a width in `-F` never cuts anything off. Of a flag that is given twice the last one counts, unless it may be repeated; a second
message (`-m`, `-f`) is refused.
";

/// The page, in Markdown.
#[must_use]
pub fn reference_page() -> String {
    let mut command = super::command().term_width(100);
    command.build();
    let mut page = String::from(PREFACE);
    push_command(&mut page, &mut command, "kentongan");
    page
}

fn push_command(page: &mut String, command: &mut clap::Command, path: &str) {
    let help = command.render_long_help().to_string();
    let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    let _ = write!(page, "\n## `{path}`\n\n```text\n{}\n```\n", help.trim_end());
    for subcommand in command.get_subcommands_mut().filter(|subcommand| subcommand.get_name() != "help") {
        let path = format!("{path} {}", subcommand.get_name());
        push_command(page, subcommand, &path);
    }
}
