//! The CDN: signed URLs that run out, ranges, and no patience with tokens.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use super::faults::Target;
use super::http::{self, Connection};
use super::hub::Shared;
use super::resolve::{Served, send};
use super::xet;

/// Signs URLs.
#[derive(Debug)]
pub struct Signer {
    secret: u64,
}

impl Signer {
    /// A signer whose URLs nobody else accepts: after a restart the old ones are refused.
    pub fn new() -> Self {
        Signer { secret: rand::random() }
    }

    /// The query of a URL for this content that is good for `life`. `label`: what the counters call the file.
    pub fn sign(&self, sha256: &str, label: &str, life: Duration) -> String {
        let date = amz_date(now());
        let life = life.as_secs();
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("X-Amz-Algorithm", "AWS4-HMAC-SHA256").append_pair("X-Amz-Date", &date);
        query.append_pair("X-Amz-Expires", &life.to_string());
        query.append_pair("X-Amz-Signature", &self.signature(sha256, &date, life));
        query.append_pair("label", label).finish()
    }

    fn signature(&self, sha256: &str, date: &str, life: u64) -> String {
        hex::encode(Sha256::digest(format!("{} {sha256} {date} {life}", self.secret)))
    }

    /// The label of a URL, if its signature is right and has not run out.
    fn check(&self, sha256: &str, query: &str) -> Result<String, &'static str> {
        let pairs: HashMap<String, String> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let get = |name: &str| pairs.get(name).map_or("", String::as_str);
        let (date, life) = (get("X-Amz-Date"), get("X-Amz-Expires").parse().unwrap_or(0));
        if get("X-Amz-Signature") != self.signature(sha256, date, life) {
            return Err("SignatureDoesNotMatch");
        }
        // Dates of this form compare as text.
        if date < amz_date(now().saturating_sub(life)).as_str() {
            return Err("Request has expired");
        }
        Ok(get("label").to_owned())
    }
}

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

/// Answers HEAD and GET of signed URLs.
pub fn answer(shared: &Shared, connection: &Connection, request: &Request<Incoming>) -> Response<Body> {
    if let Some(response) = xet::answer(shared, request) {
        return response;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        // hf_xet posts its telemetry here.
        shared.counters.request("other", request.headers());
        return refuse(StatusCode::NOT_FOUND, "NoSuchKey");
    }
    let kind = if request.method() == Method::HEAD { "cdn_head" } else { "cdn_get" };
    shared.counters.request(kind, request.headers());
    if request.headers().contains_key(header::AUTHORIZATION) {
        shared.counters.leaked_token();
        return refuse(StatusCode::BAD_REQUEST, "Only one auth mechanism allowed");
    }
    let Some(sha256) = request.uri().path().strip_prefix("/xet-bridge/") else {
        return refuse(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    if shared.switches.expired() {
        return refuse(StatusCode::FORBIDDEN, "Request has expired");
    }
    let checked = lock(&shared.signer).check(sha256, request.uri().query().unwrap_or(""));
    let label = match checked {
        Ok(label) => label,
        Err(reason) => return refuse(StatusCode::FORBIDDEN, reason),
    };
    let file = shared.repos.find(sha256).and_then(|disk| Some((std::fs::metadata(&disk).ok()?, disk)));
    let Some((meta, disk)) = file else { return refuse(StatusCode::NOT_FOUND, "NoSuchKey") };
    let served = Served {
        label: &label,
        // Not the sha256: nobody may take a CDN's ETag for the content's name.
        etag: &format!("\"{}\"", &sha256[..32]),
        size: meta.len(),
        disk: Some(&disk),
        target: Target::Cdn,
    };
    send(shared, connection, &served, request).unwrap_or_else(|no| no.response("", false))
}

pub fn refuse(status: StatusCode, reason: &str) -> Response<Body> {
    let text =
        format!("<?xml version=\"1.0\"?><Error><Code>{status}</Code><Message>{reason}</Message></Error>");
    let mut response = Response::new(Body::from(text.clone()));
    *response.status_mut() = status;
    http::set(&mut response, header::CONTENT_TYPE, "application/xml");
    http::set(&mut response, header::CONTENT_LENGTH, &text.len().to_string());
    response
}

/// `2024-05-06T07:08:09.123Z`.
pub fn iso_date(nanos: i128) -> String {
    let millis = nanos.div_euclid(1_000_000);
    let seconds = i64::try_from(millis.div_euclid(1_000)).unwrap_or(0);
    let (y, mo, d, h, mi, s) = civil(seconds);
    format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{:03}Z", millis.rem_euclid(1_000))
}

fn amz_date(seconds: u64) -> String {
    let (y, mo, d, h, mi, s) = civil(i64::try_from(seconds).unwrap_or(0));
    format!("{y:04}{mo:02}{d:02}T{h:02}{mi:02}{s:02}Z")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The Gregorian calendar: days are counted from 1 March of year 0, where leap days come last.
fn civil(seconds: i64) -> (i64, i64, i64, i64, i64, i64) {
    let (days, time) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (d, m) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (year + era * 400 + i64::from(m <= 2), m, d, time / 3_600, time / 60 % 60, time % 60)
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
