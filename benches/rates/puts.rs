//! Objects of random bytes straight into an S3 server, by `object_store` as it comes, out of memory. The keys are in
//! `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, as usual.

use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use rand::RngExt;

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    bucket: String,
    #[arg(long)]
    endpoint: String,
    #[arg(long, default_value_t = 256)]
    count: usize,
    /// Bytes of an object
    #[arg(long, default_value_t = 4 << 20)]
    size: usize,
    /// Under way at once: a mount's uploads have 32 MiB
    #[arg(long, default_value_t = 8)]
    at_once: usize,
}

pub async fn run(args: Args) -> Outcome {
    // No second crypto library is built for this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(&args.bucket)
        .with_endpoint(&args.endpoint)
        .with_region("us-east-1")
        .with_allow_http(true)
        .build()?;
    let mut data = vec![0; args.size];
    rand::rng().fill(&mut data[..]);
    let data = Bytes::from(data);
    let began = Instant::now();
    stream::iter(0..args.count)
        .map(|n| {
            let payload = PutPayload::from_bytes(data.clone());
            let store = &store;
            async move { store.put(&Path::from(format!("puts/{n}")), payload).await.map(drop) }
        })
        .buffer_unordered(args.at_once)
        .try_collect::<()>()
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(serde_json::json!({"seconds": seconds, "bytes": args.count * args.size}))
}
