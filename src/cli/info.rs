//! `hfmount info`: where one file is.

mod target;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::progress::waiting;
use super::show::{Table, show};
use super::volume::Opened;
use super::{Failure, MetaArgs, small_runtime};
use crate::admin::info::{CHUNKS_MAX, ChunkInfo, Info, info};
use crate::chunk::Amount;
use crate::config::Home;
use crate::config::units::human_size;
use crate::error::Result;
use crate::meta::Content;
use crate::source::Provider;
use crate::types::FileType;

use self::target::Target;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount info /mnt/hf/models--gpt2/snapshots/*/model.safetensors

  # Each chunk, and the objects that it consists of
  hfmount info --chunks /mnt/hf/notes.txt

  # Without a mount: from the volume's root, or by the number that fsck tells
  hfmount info --meta redis://redis.internal/1 volume:/notes.txt
  hfmount info --meta redis://redis.internal/1 inode:4711

  hfmount info --json /mnt/hf/notes.txt | jq -r '.chunks[].extents[].object'

What is told is what the metadata says: bytes that are being written are not in it before close or
fsync.")]
pub(super) struct InfoArgs {
    /// A path on a mount of this user; volume:/PATH; or inode:NUMBER.
    #[arg(value_name = "PATH")]
    path: String,

    #[command(flatten)]
    meta: MetaArgs,

    /// Tell of a symlink itself, rather than of what it leads to.
    #[arg(long)]
    no_follow: bool,

    /// Tell of each chunk.
    #[arg(long)]
    chunks: bool,

    /// Ask the storage for each object, rather than believe what the metadata says.
    #[arg(long)]
    check: bool,

    /// Look into this cache directory as well. Default: those of this user's mounts of the volume.
    #[arg(long, value_name = "DIR", env = "HFMOUNT_CACHE_DIR", hide_env_values = true)]
    cache_dir: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is told, and of what.
struct Told {
    info: Info,
    volume: String,
    chunk_size: u64,
}

impl InfoArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let target = Target::find(&home, &self.path, !self.no_follow)?;
        let told = {
            let _waiting = waiting(format!("for what is known of {}", self.path));
            small_runtime()?.block_on(self.look(&home, target))?
        };
        if self.json {
            show(&format!("{:#}\n", as_json(&told)))?;
        } else {
            show(&as_text(&told, self.chunks))?;
        }
        Ok(())
    }

    async fn look(&self, home: &Home, target: Target) -> Result<Told> {
        let mut meta = self.meta.url(home)?;
        // The mount knows best; unless it is the same place, which may have been given with a password.
        if let Some(own) = target.meta().filter(|own| *own != meta.to_string()) {
            meta = MetaArgs { meta: Some(own.to_owned()) }.url(home)?;
        }
        let opened = Opened::new(&meta).await?;
        let ino = target.inode(&opened, !self.no_follow).await?;
        let mut caches = target::caches(home, &opened.volume);
        caches.extend(self.cache_dir.clone().filter(|dir| !dir.as_os_str().is_empty()));
        caches.sort();
        caches.dedup();
        let info = info(&opened.place, ino, &caches, self.check).await?;
        let chunk_size = u64::from(opened.volume.chunk_size);
        Ok(Told { info, volume: opened.volume.name, chunk_size })
    }
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::File => "file",
        FileType::Dir => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
    }
}

fn content(content: &Content) -> &'static str {
    match content {
        Content::None => "none",
        Content::Inline(_) => "metadata",
        Content::Extents => "chunks",
        Content::Blob(_) => "hub",
        Content::Symlink(_) => "target",
    }
}

/// Where a chunk can be read from, the nearest first.
fn places(chunk: &ChunkInfo) -> Vec<&'static str> {
    let mut places = Vec::new();
    if !chunk.cached.is_empty() {
        places.push("cache");
    }
    match (chunk.stored, chunk.extents.is_empty()) {
        // What a file's rows name was uploaded before they did.
        (Some(true), _) | (None, false) => places.push("storage"),
        (Some(false), true) => places.push("hub"),
        // A hole that hides what the Hub has there.
        (None, true) => places.push("hole"),
        (Some(false), false) => {}
    }
    if places.is_empty() {
        places.push("NOWHERE");
    }
    places
}

/// Of the chunks of a blob: how many, and how many bytes, are on this machine by where they came from, and how many are not.
fn sources(told: &Told) -> (Vec<(Provider, Amount)>, Amount) {
    let mut here: Vec<(Provider, Amount)> = Vec::new();
    let mut missing = Amount::default();
    let size = told.info.attr.size;
    let proven = told.info.attr.proven.is_some();
    for chunk in told.info.chunks.iter().filter(|chunk| proven || chunk.extents.is_empty()) {
        let start = chunk.index.saturating_mul(told.chunk_size);
        let bytes = size.saturating_sub(start).min(told.chunk_size);
        match (chunk.from, here.iter_mut().find(|(from, _)| Some(*from) == chunk.from)) {
            (None, _) => missing.add(bytes),
            (Some(_), Some((_, amount))) => amount.add(bytes),
            (Some(from), None) => here.push((from, Amount { chunks: 1, bytes })),
        }
    }
    here.sort();
    (here, missing)
}

fn as_json(told: &Told) -> Value {
    let info = &told.info;
    let attr = &info.attr;
    let chunk = |chunk: &ChunkInfo| {
        let extents = chunk.extents.iter().map(|e| {
            json!({
                "start": e.start,
                "length": e.len,
                "object": format!("chunks/{}/{}", e.object.session, e.object.seq),
                "object_offset": e.object_offset,
            })
        });
        json!({
            "index": chunk.index,
            "offset": chunk.index * told.chunk_size,
            "blake3": chunk.hash.map(hex::encode),
            "where": places(chunk),
            "from": chunk.from,
            "caches": chunk.cached,
            "extents": extents.collect::<Vec<_>>(),
        })
    };
    let (here, missing) = sources(told);
    let amount = |a: &Amount| json!({"chunks": a.chunks, "bytes": a.bytes});
    let from: serde_json::Map<_, _> = here.iter().map(|(p, a)| (p.name().to_owned(), amount(a))).collect();
    let blob = info.blob.as_ref().map(|blob| {
        json!({
            "from": from,
            "missing": amount(&missing),
            "id": blob.id.to_string(),
            "verified": blob.verified,
            "verified_here": blob.verified_here,
            "origins": blob.origins.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    let target = match &attr.content {
        Content::Symlink(target) => Some(String::from_utf8_lossy(target).into_owned()),
        _ => None,
    };
    json!({
        "volume": told.volume,
        "path": info.path,
        "inode": attr.ino.0,
        "kind": kind(attr.kind),
        "mode": format!("{:04o}", attr.mode),
        "links": attr.nlink,
        "size": attr.size,
        "version": format!("{}-{}", attr.version.session, attr.version.seq),
        "content": content(&attr.content),
        "proven": attr.proven.is_some(),
        "target": target,
        "blob": blob,
        "chunk_size": told.chunk_size,
        "chunks": info.chunks.iter().map(chunk).collect::<Vec<_>>(),
        "more_chunks": info.more,
    })
}

fn as_text(told: &Told, each: bool) -> String {
    let info = &told.info;
    let attr = &info.attr;
    let mut table = Table::default();
    table.row("volume", &told.volume);
    table.row("path", info.path.as_deref().unwrap_or("(no name)"));
    table.row("inode", attr.ino.to_string());
    table.row("kind", format!("{}, mode {:04o}, {} links", kind(attr.kind), attr.mode, attr.nlink));
    if attr.kind == FileType::File {
        table.row("size", format!("{} ({} bytes)", human_size(attr.size), attr.size));
        table.row("version", format!("{}-{}", attr.version.session, attr.version.seq));
    }
    match (&attr.content, &info.blob) {
        (Content::Inline(_), _) => drop(table.row("content", "in the metadata")),
        (Content::Symlink(target), _) => drop(table.row("target", target.escape_ascii().to_string())),
        (_, Some(blob)) => {
            let verified = match (blob.verified_here, blob.verified) {
                (true, _) => "verified on this machine",
                (false, true) => "verified by a mount",
                (false, false) => "not verified as a whole yet",
            };
            let what = match (&attr.content, attr.proven) {
                (Content::Extents, Some(_)) => "written by a client, with the bytes of",
                (Content::Extents, None) => "written to, and else of the Hub,",
                _ => "of the Hub,",
            };
            table.row("content", format!("{what} {} ({verified})", blob.id));
            for origin in &blob.origins {
                table.row("from", origin.to_string());
            }
        }
        _ => {}
    }
    let chunks = &info.chunks;
    for place in ["cache", "storage", "hub", "hole", "NOWHERE"] {
        let there = chunks.iter().filter(|c| places(c).contains(&place)).count();
        if there > 0 {
            let words = match place {
                "cache" => "on this machine",
                "storage" => "in the storage",
                "hub" => "at the Hub",
                "hole" => "holes",
                _ => "NOWHERE",
            };
            table.row(words, format!("{there} of {} chunks", chunks.len()));
        }
    }
    if info.blob.is_some() {
        for (from, Amount { chunks, bytes }) in sources(told).0 {
            table.row("came from", format!("{from}: {chunks} chunks, {}", human_size(bytes)));
        }
    }
    let mut text = table.to_string();
    for chunk in chunks.iter().filter(|_| each) {
        text.push_str(&chunk_text(chunk, told.chunk_size));
    }
    if info.more {
        text.push_str(&format!("of a file of so many chunks only the first {CHUNKS_MAX} are looked at\n"));
    }
    text
}

fn chunk_text(chunk: &ChunkInfo, chunk_size: u64) -> String {
    let start = chunk.index * chunk_size;
    let mut text = format!("chunk {} at {start}: {}\n", chunk.index, places(chunk).join(", "));
    for extent in &chunk.extents {
        let first = start + u64::from(extent.start);
        text.push_str(&format!(
            "  bytes {first} to {}: chunks/{}/{} from {}\n",
            first + u64::from(extent.len) - 1,
            extent.object.session,
            extent.object.seq,
            extent.object_offset
        ));
    }
    text
}
