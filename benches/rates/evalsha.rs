//! What one script costs that does nothing: no commit can be cheaper.

use std::time::Instant;

use redis::Script;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::laps::{Laps, summary};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    redis: String,
    #[arg(long, default_value_t = 1)]
    tasks: usize,
    /// Operations of all tasks together
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Connections, between which the tasks are shared out
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

pub async fn run(args: Args) -> Outcome {
    let client = redis::Client::open(args.redis.as_str())?;
    let mut connections = Vec::new();
    for _ in 0..args.connections.max(1) {
        connections.push(client.get_multiplexed_async_connection().await?);
    }
    let script = Script::new("return 1");
    script.load_async(&mut connections[0]).await?;
    let each = (args.count / args.tasks).max(1);
    let began = Instant::now();
    let mut running = JoinSet::new();
    for task in 0..args.tasks {
        let mut connection = connections[task % connections.len()].clone();
        let hash = script.get_hash().to_owned();
        running.spawn(async move {
            let mut laps = Laps::default();
            for _ in 0..each {
                let began = Instant::now();
                let request = redis::cmd("EVALSHA").arg(&hash).arg(0).to_owned();
                let _: i64 = request.query_async(&mut connection).await?;
                laps.note(began);
            }
            Ok::<_, redis::RedisError>(laps)
        });
    }
    let mut laps = Vec::new();
    while let Some(done) = running.join_next().await {
        laps.push(done??);
    }
    Ok(summary(laps, began.elapsed()))
}
