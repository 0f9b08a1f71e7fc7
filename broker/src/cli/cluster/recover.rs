//! `kentongan cluster recover`: a new cluster out of what survivors of an old one have on their disks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, BufRead, Write as _};
use std::path::PathBuf;

use anyhow::ensure;
use bytes::Bytes;
use clap::Args;
use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::recovery::{GroupCopy, GroupPlan, Recovery, Survivor};
use kentongan_cluster::{GroupId, NodeId};

use super::restore::check_level;
use super::show::{plain, push_table};
use crate::replicated::command::{self, BeginAnew, Command};

#[derive(Debug, Args)]
pub(in crate::cli) struct RecoverArgs {
    /// The data directory of each survivor, copied to this machine; the more, the less is lost.
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    from_survivors: Vec<PathBuf>,
    /// The data directory to be made: it must be empty, or not exist.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// The first answer, for scripts: the id of the cluster that ends.
    #[arg(long, value_name = "CLUSTER")]
    yes_i_accept_the_loss: Option<String>,
    /// The second answer, for scripts: the names of the nodes that are given up.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    given_up: Option<Vec<String>>,
    /// Groups of which no survivor has a copy, all of them: they begin empty.
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    start_empty: Vec<u16>,
}

pub(super) fn run(arguments: &RecoverArgs) -> anyhow::Result<String> {
    check_named_once(&arguments.from_survivors)?;
    let survivors = arguments.from_survivors.iter().map(|path| Survivor::open(path)).collect::<Result<_, _>>()?;
    let recovery = Recovery::plan(survivors)?;
    check_level(&recovery.survivors()[0].path().display().to_string(), recovery.directory())?;
    let names = Names(&recovery);
    let given_up = names.all(&recovery.given_up());
    ensure!(
        !given_up.is_empty(),
        "every member of the cluster is among the survivors: start them, and nothing is lost"
    );
    eprintln!("{}", report(&recovery, &given_up));
    check_missing(&recovery, &arguments.start_empty)?;

    let cluster = recovery.cluster_id().to_string();
    let first = match &arguments.yes_i_accept_the_loss {
        Some(answer) => answer.clone(),
        None => ask(&format!("To accept this, type the id of the cluster that ends ({cluster}): "))?,
    };
    ensure!(first.trim() == cluster, "that is not {cluster}: nothing was done");
    let second = match &arguments.given_up {
        Some(answer) => answer.clone(),
        None => {
            let asked = "No disk of the nodes that are given up can ever take part again. Type their names, with commas between: ";
            ask(asked)?.split(',').map(str::to_owned).collect()
        }
    };
    let named: BTreeSet<&str> = second.iter().map(|name| name.trim()).collect();
    ensure!(
        named == given_up.iter().map(String::as_str).collect(),
        "the nodes that are given up are {}: nothing was done",
        given_up.join(",")
    );

    let own = recovery.survivors()[0].node();
    let me = recovery.directory().members().get(&own).map(|member| member.record(own));
    let me = me.unwrap_or_else(|| MemberRecord { name: "recovered".to_owned(), ..MemberRecord::default() });
    let new = recovery.write(&arguments.into, me, &last_command())?;
    let into = arguments.into.display();
    Ok(format!(
        "cluster {new} takes the place of {cluster}. Its only node has its data in {into}.\n\
         Start that one first (serve --data-dir {into}, the other flags as before). Then start the other nodes with empty data\n\
         directories, and with it as their seed (--seeds). Keep the old directories until all is well: no node starts from them.\n"
    ))
}

/// The second time, a directory would be in use, by this process itself.
fn check_named_once(survivors: &[PathBuf]) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for path in survivors {
        let is_new = seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone()));
        ensure!(is_new, "{} was named twice: name each survivor once", path.display());
    }
    Ok(())
}

/// What comes after all that a group had.
pub(super) fn last_command() -> Bytes {
    command::encode(Command::BeginAnew(BeginAnew::beyond_everything()))
}

/// What no survivor has must be named: nobody shall find out afterwards.
fn check_missing(recovery: &Recovery, accepted: &[u16]) -> anyhow::Result<()> {
    let missing = recovery.groups().iter().filter(|plan| plan.chosen.is_none()).map(|plan| plan.group.0);
    let missing: BTreeSet<u16> = missing.collect();
    let accepted: BTreeSet<u16> = accepted.iter().copied().collect();
    let list = missing.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    ensure!(
        missing == accepted,
        "{}; nothing was done",
        if missing.is_empty() {
            "every group has a copy: none is to start empty (--start-empty)".to_owned()
        } else {
            format!(
                "no survivor that was named has a copy of the groups {list}: name more survivors, or say that all sessions, queues and \
                 retained messages of these groups are given up (--start-empty {list})"
            )
        }
    );
    Ok(())
}

fn ask(question: &str) -> anyhow::Result<String> {
    eprint!("{question}");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer)
}

struct Names<'a>(&'a Recovery);

impl Names<'_> {
    fn of(&self, node: NodeId) -> String {
        let member = self.0.directory().members().get(&node);
        member.map_or_else(|| node.to_string(), |member| plain(&member.name))
    }

    fn all(&self, nodes: &BTreeSet<NodeId>) -> Vec<String> {
        let mut names: Vec<String> = nodes.iter().map(|&node| self.of(node)).collect();
        names.sort_unstable();
        names
    }
}

/// What is left, and what may be lost.
fn report(recovery: &Recovery, given_up: &[String]) -> String {
    let names = Names(recovery);
    let mut text = format!("cluster {} ends\n\nSurvivors\n", recovery.cluster_id());
    for survivor in recovery.survivors() {
        let _ = writeln!(text, "  {} ({}): {}", names.of(survivor.node()), survivor.node(), survivor.path().display());
    }
    let _ = writeln!(text, "\nGiven up for good, with all that only they have\n  {}\n", given_up.join(", "));
    let survivors = recovery.survivors().iter().map(|survivor| format!("{} HAS", names.of(survivor.node())));
    let columns: Vec<String> = ["GROUP", "VOTERS", "MAJORITY"]
        .map(str::to_owned)
        .into_iter()
        .chain(survivors)
        .chain(["TAKEN".to_owned()])
        .collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = recovery.groups().iter().map(|plan| row(recovery, plan)).collect();
    push_table(&mut text, &columns, &rows);
    let lost = recovery.groups().iter().filter(|plan| !plan.is_whole).count();
    let _ = write!(
        text,
        "\nWhat a survivor has is said as index@term of its last entry, and up to which index it knew that entries were committed.\n\
         {lost} of {} groups lost their majority. These may lack what was acknowledged last, and may have at their ends what nobody\n\
         was ever told: such as a message whose publisher saw no acknowledgement, and sends it again. If a lost node can still\n\
         be started, or its disk be read, stop here: nothing has been changed.\n",
        recovery.groups().len()
    );
    text
}

fn row(recovery: &Recovery, plan: &GroupPlan) -> Vec<String> {
    let names = Names(recovery);
    let copy = |copy: &Option<GroupCopy>| match copy {
        None => "nothing".to_owned(),
        Some(copy) => format!("{}@{}, {}", copy.last.index, copy.last.term, copy.committed),
    };
    let group = if plan.group == GroupId::DIRECTORY { "directory".to_owned() } else { plan.group.to_string() };
    let voters = names.all(&plan.voters).join(", ");
    let mut row = vec![group, voters, if plan.is_whole { "here" } else { "LOST" }.to_owned()];
    row.extend(plan.copies.iter().map(copy));
    row.push(match plan.chosen {
        Some(at) => names.of(recovery.survivors()[at].node()),
        None => "EMPTY".to_owned(),
    });
    row
}

#[cfg(test)]
mod tests {
    use super::super::restore::tests::make_later_cluster;
    use super::*;

    #[test]
    fn survivors_of_a_later_level_are_refused_before_anything_is_asked() {
        let place = tempfile::tempdir().unwrap();
        let [survivor, into] = ["survivor", "into"].map(|name| place.path().join(name));
        make_later_cluster(&survivor);
        let (yes_i_accept_the_loss, given_up, start_empty) = (None, None, Vec::new());
        let from_survivors = vec![survivor];
        let arguments = RecoverArgs { from_survivors, into, yes_i_accept_the_loss, given_up, start_empty };
        let refused = run(&arguments).unwrap_err().to_string();
        assert!(refused.contains("survivor is of a cluster that uses feature level"), "{refused}");
    }

    #[test]
    fn a_survivor_that_is_named_twice_is_not_taken_for_one_that_runs() {
        let place = tempfile::tempdir().unwrap();
        let [survivor, again, into] = ["survivor", "./survivor", "into"].map(|name| place.path().join(name));
        make_later_cluster(&survivor);
        let (yes_i_accept_the_loss, given_up, start_empty) = (None, None, Vec::new());
        let arguments =
            RecoverArgs { from_survivors: vec![survivor, again], into, yes_i_accept_the_loss, given_up, start_empty };
        let refused = run(&arguments).unwrap_err().to_string();
        assert!(refused.ends_with("survivor was named twice: name each survivor once"), "{refused}");
    }
}
