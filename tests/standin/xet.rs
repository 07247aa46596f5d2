//! Enough of a Xet store for unmodified clients: `/v1/reconstructions` and xorbs of uncompressed chunks, both made up
//! from the plain files. The "Xet hash" of a file is its sha256 here; clients do not look into it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::cdn::refuse;
use super::http::{self, Ranged, json as answer_json};
use super::hub::Shared;

/// The access token that `xet-read-token` hands out.
pub const TOKEN: &str = "xet-standin";
/// Bytes of a chunk, the most that the format allows.
const CHUNK: u64 = 128 << 10;
/// Chunks of a xorb: 32 MiB.
const CHUNKS: u64 = 256;
/// Version, compressed length, scheme, length.
const HEADER: u64 = 8;

/// Answers `/cas/…` and `/xorbs/…`; `None` for anything else.
pub fn answer(shared: &Shared, request: &Request<Incoming>) -> Option<Response<Body>> {
    let path = request.uri().path();
    let range = request.headers().get(header::RANGE).and_then(|v| v.to_str().ok());
    if let Some(hash) = path.strip_prefix("/cas/v1/reconstructions/") {
        shared.counters.request("xet_reconstruction", request.headers());
        let token = super::api::token(request.headers());
        if token.as_deref() != Some(TOKEN) {
            return Some(refuse(StatusCode::UNAUTHORIZED, "no Xet token"));
        }
        return Some(reconstruct(shared, hash, range));
    }
    if let Some(rest) = path.strip_prefix("/xorbs/") {
        shared.counters.request("xorb_get", request.headers());
        if request.method() != Method::GET || request.headers().contains_key(header::AUTHORIZATION) {
            return Some(refuse(StatusCode::BAD_REQUEST, "a signed GET is expected"));
        }
        return Some(xorb(shared, rest, request.headers()));
    }
    // Version 2 as well: clients then fall back to version 1.
    path.starts_with("/cas/").then(|| refuse(StatusCode::NOT_FOUND, "NoSuchKey"))
}

fn open(shared: &Shared, sha256: &str) -> Option<(File, u64)> {
    let file = File::open(shared.repos.find(sha256)?).ok()?;
    let size = file.metadata().ok()?.len();
    Some((file, size))
}

fn reconstruct(shared: &Shared, sha256: &str, range: Option<&str>) -> Response<Body> {
    let Some((_, size)) = open(shared, sha256) else { return refuse(StatusCode::NOT_FOUND, "NoSuchKey") };
    let wanted = match http::range(range, size) {
        Ranged::Whole => 0..size,
        Ranged::Part(range) => range,
        Ranged::Unsatisfiable => return refuse(StatusCode::RANGE_NOT_SATISFIABLE, "beyond the end"),
    };
    let (first, end) = (wanted.start / CHUNK, wanted.end.div_ceil(CHUNK));
    let (mut terms, mut fetch) = (Vec::new(), serde_json::Map::new());
    let mut chunk = first;
    while chunk < end {
        let index = chunk / CHUNKS;
        let until = end.min((index + 1) * CHUNKS);
        // Numbers of chunks count from the xorb's own first one.
        let (a, b) = (chunk - index * CHUNKS, until - index * CHUNKS);
        let raw = (until * CHUNK).min(size) - chunk * CHUNK;
        let hash = hex::encode(Sha256::digest(format!("{sha256} {index}")));
        let start = a * (CHUNK + HEADER);
        let last = start + raw + (b - a) * HEADER - 1;
        let url = format!("{}/xorbs/{sha256}/{index}", shared.cdn);
        terms.push(json!({"hash": hash, "unpacked_length": raw, "range": {"start": a, "end": b}}));
        fetch.insert(
            hash,
            json!([{"range": {"start": a, "end": b}, "url": url, "url_range": {"start": start, "end": last}}]),
        );
        chunk = until;
    }
    let offset = wanted.start - first * CHUNK;
    let value = json!({"offset_into_first_range": offset, "terms": terms, "fetch_info": fetch});
    answer_json(StatusCode::OK, &value)
}

fn xorb(shared: &Shared, rest: &str, headers: &HeaderMap) -> Response<Body> {
    let found = rest.split_once('/').and_then(|(sha256, index)| {
        let index: u64 = index.parse().ok()?;
        let (file, size) = open(shared, sha256)?;
        let raw = (index * CHUNKS * CHUNK).min(size)..((index + 1) * CHUNKS * CHUNK).min(size);
        Some((sha256, serialize(&file, raw).ok()?))
    });
    let Some((sha256, bytes)) = found else { return refuse(StatusCode::NOT_FOUND, "NoSuchKey") };
    let size = bytes.len() as u64;
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let (status, part) = match http::range(range, size) {
        Ranged::Whole => (StatusCode::OK, 0..size),
        Ranged::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Ranged::Unsatisfiable => return refuse(StatusCode::RANGE_NOT_SATISFIABLE, "beyond the end"),
    };
    let length = part.end - part.start;
    shared.counters.transfer(&format!("xet/{sha256}"), part.start, part.end, headers).sent(length);
    let mut response = Response::new(Body::from(bytes.slice(part.start as usize..part.end as usize)));
    *response.status_mut() = status;
    http::set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    http::set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", part.start, part.end - 1));
    response
}

/// The chunks of a run of a file, each behind its header, not compressed.
fn serialize(file: &File, raw: Range<u64>) -> std::io::Result<bytes::Bytes> {
    let mut out = Vec::new();
    let mut at = raw.start;
    while at < raw.end {
        let len = CHUNK.min(raw.end - at);
        let three = &(len as u32).to_le_bytes()[..3];
        out.push(0);
        out.extend_from_slice(three);
        out.push(0);
        out.extend_from_slice(three);
        let begin = out.len();
        out.resize(begin + len as usize, 0);
        file.read_exact_at(&mut out[begin..], at)?;
        at += len;
    }
    Ok(out.into())
}
