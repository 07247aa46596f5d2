//! Load for the benchmark (`scripts/bench.sh`), and what it is compared with. Prints one line of JSON.
//!
//! * `rates names`: makes, stats or removes files in one directory from many threads, through one or more mounts;
//! * `rates nodes`: the same without a kernel: mounts in this process that share one Redis;
//! * `rates evalsha`: the bare cost of a script's round trip;
//! * `rates puts`: objects straight into an S3 server, as hfmount puts chunks.

mod evalsha;
mod laps;
mod names;
mod nodes;
mod puts;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Load for scripts/bench.sh, and what it is compared with")]
enum Command {
    /// Make, stat or remove files in directories, from many threads
    Names(names::Args),
    /// The same by mounts without a kernel, in this process
    Nodes(nodes::Args),
    /// Run a script that does nothing
    Evalsha(evalsha::Args),
    /// Put objects into an S3 server
    Puts(puts::Args),
}

type Outcome = Result<serde_json::Value, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let answer: Outcome = match Command::parse() {
        Command::Names(args) => names::run(&args),
        Command::Nodes(args) => runtime()?.block_on(nodes::run(args)),
        Command::Evalsha(args) => runtime()?.block_on(evalsha::run(args)),
        Command::Puts(args) => runtime()?.block_on(puts::run(args)),
    };
    println!("{}", answer?);
    Ok(())
}
