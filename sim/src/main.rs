//! Runs whole clusters on simulated time, a seed at a time.

mod membership;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use clap::builder::TypedValueParser as _;
use kentongan::plants::Plant;
use kentongan::simulation::{Found, Plan, Summary, find, run_seed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// So many seeds do everything that a simulation can do.
const MANY: u64 = 500;

/// Seeds that a mistake may take to be found.
const PLANT_SEEDS_MAX: u64 = 1000;

/// Runs whole clusters on simulated time, from seeds. A seed that fails is printed with what happened last.
#[derive(Debug, Parser)]
struct Options {
    /// How many seeds are run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them; alone, the only one.
    #[arg(long, env = "KENTONGAN_SEED")]
    seed: Option<u64>,
    /// Threads, each with a seed of its own at a time.
    #[arg(long)]
    threads: Option<usize>,
    /// Makes a mistake, which some seed must find: its name, as `SkipSync`.
    #[arg(long, value_parser = plant)]
    plant: Option<Plant>,
    /// Makes each mistake there is, from the first seed on until one finds it, and wants that to be within 1,000 seeds.
    #[arg(long)]
    plants: bool,
    /// Runs members, leases, fences, interest and lanes alone, without the nodes around them: much faster.
    #[arg(long, conflicts_with_all = ["plant", "keep_going", "trace", "only", "history", "twice", "brief"])]
    membership: bool,
    /// Goes on behind a seed that fails.
    #[arg(long)]
    keep_going: bool,
    /// Prints everything that happens.
    #[arg(long)]
    trace: bool,
    /// Leaves out all faults but those whose names begin so. What befalls three nodes one after the other, as "a leader cut off", befalls
    /// all that are three then.
    #[arg(long, value_parser = clap::builder::StringValueParser::new().map(|name| &*name.leak()))]
    only: Option<&'static str>,
    /// Prints what clients saw, of a seed that fails.
    #[arg(long)]
    history: bool,
    /// Runs each seed twice, and compares.
    #[arg(long)]
    twice: bool,
    /// Prints the first lines of each failure only.
    #[arg(long)]
    brief: bool,
}

fn plant(name: &str) -> Result<Plant, String> {
    Plant::ALL.into_iter().find(|plant| format!("{plant:?}") == name).ok_or_else(|| format!("one of {:?}", Plant::ALL))
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    std::panic::set_hook(Box::new(|panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
    let options = Options::parse();
    let first = options.seed.unwrap_or(1);
    let seeds = if options.seed.is_some() && std::env::args().all(|argument| !argument.starts_with("--seeds")) {
        1
    } else {
        options.seeds
    };
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if options.membership {
        return if options.plants {
            membership::find_plants(first, threads)
        } else {
            membership::pass(first..first.saturating_add(seeds), threads)
        };
    }
    if options.plants {
        return find_plants(first, threads);
    }
    let (next, failed, stop) = (AtomicU64::new(first), AtomicU64::new(0), AtomicBool::new(false));
    let summary = Mutex::new(Summary::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(seeds) {
                        break;
                    }
                    let plan =
                        Plan { trace: options.trace, only: options.only, plant: options.plant, ..Plan::of_seed(seed) };
                    let outcome = run_seed(seed, plan);
                    if options.twice {
                        let (one, other) = (hash(&outcome), hash(&run_seed(seed, plan)));
                        if one != other {
                            eprintln!("seed {seed} is not the same twice: {one:?}, {other:?}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    match outcome {
                        Ok(outcome) => summary.lock().unwrap_or_else(PoisonError::into_inner).add(&outcome),
                        Err(failure) => {
                            if options.history {
                                eprintln!("{}", failure.history);
                            }
                            if options.brief {
                                let why: String = failure
                                    .why
                                    .lines()
                                    .filter(|line| !line.starts_with("  "))
                                    .take(3)
                                    .collect::<Vec<_>>()
                                    .join(" | ");
                                eprintln!("seed {}: {why}", failure.seed);
                            } else {
                                eprintln!("{failure}");
                            }
                            failed.fetch_add(1, Ordering::Relaxed);
                            stop.store(!options.keep_going, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (name, count) in &summary.counts {
        println!("{count:>10} {name}");
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds passed, {} failed, {} events, at least {} each, in {seconds:.1} s",
        summary.passed,
        failed.load(Ordering::Relaxed),
        summary.events,
        summary.events_min,
    );
    anyhow::ensure!(failed.into_inner() == 0, "some seeds failed");
    let missing: Vec<_> = summary.missing().collect();
    anyhow::ensure!(seeds < MANY || options.only.is_some() || missing.is_empty(), "in none of the seeds: {missing:?}");
    Ok(())
}

fn find_plants(first: u64, threads: usize) -> anyhow::Result<()> {
    let (next, missing) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(&plant) = Plant::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match find(plant, first..first + PLANT_SEEDS_MAX) {
                        Some(Found { seed, tried, why }) => println!("{plant:?}: seed {seed}, {tried} tried: {why}"),
                        None => missing.lock().unwrap_or_else(PoisonError::into_inner).push(plant),
                    }
                }
            });
        }
    });
    let missing = missing.into_inner().unwrap_or_else(PoisonError::into_inner);
    anyhow::ensure!(missing.is_empty(), "{PLANT_SEEDS_MAX} seeds do not find {missing:?}");
    Ok(())
}

fn hash(outcome: &Result<kentongan::simulation::Outcome, Box<kentongan::simulation::Failure>>) -> Result<u64, String> {
    match outcome {
        Ok(outcome) => Ok(outcome.hash),
        Err(failure) => Err(failure.why.clone()),
    }
}
