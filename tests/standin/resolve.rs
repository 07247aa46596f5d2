//! `/{id}/resolve/{revision}/{path}`: git files are answered, LFS files redirected to the CDN.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::api::{self, No, decode};
use super::body::{self, Flow};
use super::cdn::lock;
use super::faults::Target;
use super::http::{self, Connection, Ranged, json};
use super::hub::Shared;
use super::repos::{Entry, Repo, Tree};

struct Call {
    plural: &'static str,
    id: String,
    revision: String,
    path: String,
    cached: bool,
}

/// `resolve-cache` is where the Hub itself sends for git files.
fn parse(path: &str) -> Option<Call> {
    if let Some(rest) = path.strip_prefix("/api/resolve-cache/") {
        let mut parts = rest.splitn(5, '/');
        let plural = plural(parts.next()?)?;
        let id = format!("{}/{}", decode(parts.next()?), decode(parts.next()?));
        let revision = decode(parts.next()?);
        return Some(Call { plural, id, revision, path: decode(parts.next()?), cached: true });
    }
    let path = path.strip_prefix('/')?;
    let (plural, path) = match path.split_once('/') {
        Some((first, rest)) if first != "models" && plural(first).is_some() => (plural(first)?, rest),
        _ => ("models", path),
    };
    let (id, rest) = path.split_once("/resolve/")?;
    let (revision, file) = rest.split_once('/')?;
    (id.split('/').count() <= 2).then(|| Call {
        plural,
        id: decode(id),
        revision: decode(revision),
        path: decode(file),
        cached: false,
    })
}

fn plural(s: &str) -> Option<&'static str> {
    ["models", "datasets", "spaces"].into_iter().find(|p| *p == s)
}

/// Answers HEAD and GET.
pub async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<Body> {
    let token = api::token(request.headers());
    let Some(call) = parse(request.uri().path()) else {
        shared.counters.request("other", request.headers());
        return json(StatusCode::NOT_FOUND, &serde_json::json!({"error": "Not found"}));
    };
    let kind = match (call.cached, request.method() == Method::HEAD) {
        (true, _) => "resolve_cache",
        (false, true) => "resolve_head",
        (false, false) => "resolve_get",
    };
    shared.counters.request(kind, request.headers());
    match carry_out(shared, connection, &call, token.as_deref(), &request).await {
        Ok(response) => response,
        Err(no) => no.response(&call.id, token.is_some()),
    }
}

async fn carry_out(
    shared: &Arc<Shared>,
    connection: &Connection,
    call: &Call,
    token: Option<&str>,
    request: &Request<Incoming>,
) -> Result<Response<Body>, No> {
    let repo = api::open(shared, call.plural, &call.id, token)?;
    if let Some(to) = &repo.json.moved_to {
        let whole = request.uri().path_and_query().map_or("", |p| p.as_str());
        return Err(No::Moved(whole.replacen(&call.id, to, 1)));
    }
    api::may_read(shared, &repo, token)?;
    let tree = api::tree(shared, &repo, &call.revision).await?;
    let Some(entry) = tree.get(&call.path).filter(|e| e.disk.is_some()) else {
        return Err(No::Entry(tree.commit.clone()));
    };
    match &entry.lfs {
        Some(_) => redirect(shared, &repo, &tree, entry, request.headers()),
        None if shared.options.resolve_cache && !call.cached => Ok(to_cache(&repo, &tree, entry, request)),
        None => git_file(shared, connection, &repo, &tree, entry, request),
    }
}

fn redirect(
    shared: &Shared,
    repo: &Repo,
    tree: &Tree,
    entry: &Entry,
    headers: &HeaderMap,
) -> Result<Response<Body>, No> {
    let Some(lfs) = &entry.lfs else { return Err(No::Entry(tree.commit.clone())) };
    let label = format!("{}/{}", repo.label(), entry.path);
    shared.counters.resolved(&label);
    let query = lock(&shared.signer).sign(&lfs.sha256, &label, shared.options.signed_for);
    let location = format!("{}/xet-bridge/{}?{query}", shared.cdn, lfs.sha256);
    let mut response = json(StatusCode::FOUND, &serde_json::json!({}));
    http::set(&mut response, header::LOCATION, &location);
    http::set(&mut response, "x-repo-commit", &tree.commit);
    http::set(&mut response, "x-linked-size", &entry.size.to_string());
    http::set(&mut response, "x-linked-etag", &format!("\"{}\"", lfs.sha256));
    http::set(&mut response, header::ACCEPT_RANGES, "bytes");
    if repo.json.xet {
        http::set(&mut response, "x-xet-hash", &lfs.sha256);
        // Old clients take it as it stands: it must name the host.
        let host = text(headers, "host").unwrap_or("localhost");
        let token = format!("http://{host}/api/{}/{}/xet-read-token/{}", repo.plural, repo.id, tree.commit);
        let link = format!(
            "<{token}>; rel=\"xet-auth\", <{}/cas/v1/reconstructions/{}>; rel=\"xet-reconstruction-info\"",
            shared.cdn, lfs.sha256
        );
        http::set(&mut response, header::LINK, &link);
    }
    Ok(response)
}

fn to_cache(repo: &Repo, tree: &Tree, entry: &Entry, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let file =
        path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, file)| file);
    let location = format!(
        "/api/resolve-cache/{}/{}/{}/{}",
        repo.plural,
        repo.id,
        tree.commit,
        file.replace('/', "%2F")
    );
    let mut response = json(StatusCode::TEMPORARY_REDIRECT, &serde_json::json!({}));
    http::set(&mut response, header::LOCATION, &location);
    http::set(&mut response, "x-repo-commit", &tree.commit);
    http::set(&mut response, "x-linked-size", &entry.size.to_string());
    http::set(&mut response, "x-linked-etag", &format!("\"{}\"", entry.oid));
    response
}

fn git_file(
    shared: &Shared,
    connection: &Connection,
    repo: &Repo,
    tree: &Tree,
    entry: &Entry,
    request: &Request<Incoming>,
) -> Result<Response<Body>, No> {
    let file = Served {
        label: &format!("{}/{}", repo.label(), entry.path),
        etag: &format!("\"{}\"", entry.oid),
        size: entry.size,
        disk: entry.disk.as_deref(),
        target: Target::Resolve,
    };
    let mut response = send(shared, connection, &file, request)?;
    http::set(&mut response, "x-repo-commit", &tree.commit);
    Ok(response)
}

/// A file about to be sent.
pub struct Served<'a> {
    pub label: &'a str,
    pub etag: &'a str,
    pub size: u64,
    pub disk: Option<&'a std::path::Path>,
    pub target: Target,
}

/// 200, 206, 304, 412 or 416, as the request's headers want.
pub fn send(
    shared: &Shared,
    connection: &Connection,
    served: &Served<'_>,
    request: &Request<Incoming>,
) -> Result<Response<Body>, No> {
    let text = |name: &str| text(request.headers(), name);
    let bare = |status| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        http::set(&mut response, header::ETAG, served.etag);
        response
    };
    if text("if-none-match").is_some_and(|v| v == "*" || v.contains(served.etag)) {
        return Ok(bare(StatusCode::NOT_MODIFIED));
    }
    if text("if-match").is_some_and(|v| v != "*" && !v.contains(served.etag)) {
        return Ok(bare(StatusCode::PRECONDITION_FAILED));
    }
    let wanted = if text("if-range").is_some_and(|v| v != served.etag) || shared.switches.get().no_range {
        None
    } else {
        text("range")
    };
    let (status, range) = match http::range(wanted, served.size) {
        Ranged::Whole => (StatusCode::OK, 0..served.size),
        Ranged::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Ranged::Unsatisfiable => {
            let mut response = bare(StatusCode::RANGE_NOT_SATISFIABLE);
            http::set(&mut response, header::CONTENT_RANGE, &format!("bytes */{}", served.size));
            http::set(&mut response, header::CONTENT_LENGTH, "0");
            return Ok(response);
        }
    };
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        let gone = |e: std::io::Error| No::Other(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
        let disk = served.disk.ok_or_else(|| gone(std::io::ErrorKind::NotFound.into()))?;
        let flow = Flow {
            buckets: shared.buckets(connection),
            spoil: shared.switches.body(served.target),
            meter: shared
                .counters
                .transfer(served.label, range.start, range.end, request.headers())
                .from(connection.peer),
        };
        body::file(std::fs::File::open(disk).map_err(gone)?, range.clone(), flow)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{}", range.start, range.end - 1, served.size);
        http::set(&mut response, header::CONTENT_RANGE, &value);
    }
    http::set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    http::set(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    http::set(&mut response, header::ACCEPT_RANGES, "bytes");
    http::set(&mut response, header::ETAG, served.etag);
    Ok(response)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}
