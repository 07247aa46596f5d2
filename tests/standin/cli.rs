//! Servers for the benchmark and the off-line quickstart: `standin hub`, `standin s3`, `standin make-model`.

#[path = "mod.rs"]
mod standin;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use standin::{Options, S3, S3Options, StandIn, model};

#[derive(Debug, Parser)]
#[command(about = "Stand-ins for the Hub and for an S3 store")]
enum Command {
    /// A Hub over a folder: <root>/{models,datasets,spaces}/<org>/<name>/<revision>/files
    Hub(HubArgs),
    /// An S3 store over a folder, path-style
    S3(S3Args),
    /// Write a model of random numbers
    MakeModel(ModelArgs),
}

#[derive(Debug, clap::Args)]
struct HubArgs {
    #[arg(long)]
    root: PathBuf,
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:0")]
    cdn_listen: SocketAddr,
    /// Bytes per second of all connections together
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    /// Bytes per second of each connection
    #[arg(long, value_parser = size)]
    conn_rate: Option<u64>,
    /// Milliseconds before each answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Entries of a page of a tree
    #[arg(long, default_value_t = 1_000)]
    page: usize,
    /// Seconds for which a signed URL is good
    #[arg(long, default_value_t = 3_600)]
    signed_for: u64,
    /// A token that exists; may be repeated. None given: every token does
    #[arg(long)]
    token: Vec<String>,
    /// Redirect git files to /api/resolve-cache/ on the same origin
    #[arg(long)]
    resolve_cache: bool,
    #[command(flatten)]
    ready: Ready,
}

#[derive(Debug, clap::Args)]
struct S3Args {
    #[arg(long)]
    root: PathBuf,
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long, default_value = "test")]
    bucket: String,
    #[arg(long, default_value = "standin")]
    access_key: String,
    #[arg(long, default_value = "standin-secret")]
    secret_key: String,
    /// Bytes per second that leave it, all connections together
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    /// Bytes per second of each connection
    #[arg(long, value_parser = size)]
    conn_rate: Option<u64>,
    /// Milliseconds before each answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    #[command(flatten)]
    ready: Ready,
}

#[derive(Debug, clap::Args)]
struct Ready {
    /// Also write the line with the addresses to this file, in one step
    #[arg(long)]
    port_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ModelArgs {
    dir: PathBuf,
    /// Bytes of all tensors: 1GiB, 64MiB, 10MB, 4096
    #[arg(long, value_parser = size, default_value = "64MiB")]
    size: u64,
    /// Number of files
    #[arg(long, default_value_t = 1)]
    shards: u64,
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

fn main() -> std::io::Result<()> {
    match Command::parse() {
        Command::Hub(args) => hub(args),
        Command::S3(args) => s3(args),
        Command::MakeModel(args) => {
            model::write(&args.dir, &model::Model { size: args.size, shards: args.shards, seed: args.seed })
        }
    }
}

fn hub(args: HubArgs) -> std::io::Result<()> {
    let options = Options {
        listen: args.listen,
        cdn_listen: args.cdn_listen,
        rate: args.rate,
        conn_rate: args.conn_rate,
        delay: Duration::from_millis(args.delay_ms),
        page: args.page,
        signed_for: Duration::from_secs(args.signed_for),
        tokens: (!args.token.is_empty()).then_some(args.token),
        resolve_cache: args.resolve_cache,
    };
    let hub = StandIn::start(&args.root, options)?;
    args.ready.announce(&serde_json::json!({"endpoint": hub.endpoint(), "cdn": hub.cdn()}))?;
    wait();
    Ok(())
}

fn s3(args: S3Args) -> std::io::Result<()> {
    let options = S3Options {
        listen: args.listen,
        bucket: args.bucket,
        access_key: args.access_key,
        secret_key: args.secret_key,
        rate: args.rate,
        conn_rate: args.conn_rate,
        delay: Duration::from_millis(args.delay_ms),
    };
    let s3 = S3::start_with(&args.root, options)?;
    args.ready.announce(&serde_json::json!({"endpoint": s3.endpoint(), "bucket": s3.bucket()}))?;
    wait();
    Ok(())
}

impl Ready {
    /// Says on standard output where the server is, as one line of JSON.
    fn announce(&self, addresses: &serde_json::Value) -> std::io::Result<()> {
        if let Some(file) = &self.port_file {
            let tmp = file.with_extension("tmp");
            std::fs::write(&tmp, format!("{addresses}\n"))?;
            std::fs::rename(&tmp, file)?;
        }
        let mut out = std::io::stdout();
        writeln!(out, "{addresses}")?;
        out.flush()
    }
}

/// Until a signal ends the process.
fn wait() {
    loop {
        std::thread::park();
    }
}

/// `1GiB`, `64MiB`, `10MB`, `500k`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|e| format!("{text}: {e}"))?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        unit => return Err(format!("{unit}: not a unit")),
    };
    number.checked_mul(unit).ok_or_else(|| format!("{text}: too large"))
}
