//! `/api/…`: repositories, revisions, trees, refs.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::cdn::iso_date;
use super::http::{self, json as answer_json};
use super::hub::Shared;
use super::repos::{Entry, Repo, Tree};
use super::xet;

const VERBS: &[&str] = &["revision", "tree", "paths-info", "refs", "xet-read-token"];
/// Pages are this small when every entry is expanded.
const EXPANDED_PAGE: usize = 50;

/// The ways to say no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum No {
    BadToken,
    Repo,
    Revision,
    /// In this commit.
    Entry(String),
    Gated,
    Disabled,
    Moved(String),
    Other(StatusCode, String),
}

impl No {
    /// The answer; what it is depends on whether a token was given.
    pub fn response(self, repo: &str, with_token: bool) -> Response<Body> {
        let access = if with_token { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        let (status, code, text) = match &self {
            No::BadToken => {
                (StatusCode::UNAUTHORIZED, None, "Invalid credentials in Authorization header".to_owned())
            }
            No::Repo if with_token => {
                (StatusCode::NOT_FOUND, Some("RepoNotFound"), "Repository not found".into())
            }
            No::Repo => {
                (StatusCode::UNAUTHORIZED, Some("RepoNotFound"), "Invalid username or password.".to_owned())
            }
            No::Revision => (StatusCode::NOT_FOUND, Some("RevisionNotFound"), "Invalid rev id".to_owned()),
            No::Entry(_) => (StatusCode::NOT_FOUND, Some("EntryNotFound"), "Entry not found".to_owned()),
            No::Gated => (
                access,
                Some("GatedRepo"),
                format!("Access to model {repo} is restricted and you are not in the authorized list."),
            ),
            No::Disabled => (StatusCode::FORBIDDEN, None, "Access to this resource is disabled.".to_owned()),
            No::Moved(_) => (StatusCode::TEMPORARY_REDIRECT, None, "Temporary Redirect".to_owned()),
            No::Other(status, text) => (*status, None, text.clone()),
        };
        let mut response = answer_json(status, &json!({"error": text}));
        http::set(&mut response, "x-error-message", &text);
        if let Some(code) = code {
            http::set(&mut response, "x-error-code", code);
        }
        match self {
            No::Entry(commit) => http::set(&mut response, "x-repo-commit", &commit),
            No::Moved(location) => http::set(&mut response, header::LOCATION, &location),
            _ => {}
        }
        response
    }
}

/// The bearer token of a request.
pub fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    Some(value.strip_prefix("Bearer ").unwrap_or(value).to_owned())
}

/// The repository, if this caller may know of it.
pub fn open(shared: &Shared, plural: &str, id: &str, token: Option<&str>) -> Result<Repo, No> {
    let repo = shared.repos.open(plural, id);
    let own = |t: &str| repo.as_ref().is_some_and(|r| r.json.tokens.iter().any(|x| x == t));
    if let (Some(t), Some(known)) = (token, &shared.options.tokens)
        && !known.iter().any(|k| k == t)
        && !own(t)
    {
        return Err(No::BadToken);
    }
    let may = token.is_some_and(own);
    match repo {
        None => Err(No::Repo),
        Some(repo) if repo.json.private && !may => Err(No::Repo),
        Some(repo) if repo.json.disabled => Err(No::Disabled),
        Some(repo) => Ok(repo),
    }
}

/// Whether this caller may have the bytes.
pub fn may_read(shared: &Shared, repo: &Repo, token: Option<&str>) -> Result<(), No> {
    let gated =
        shared.switches.get().gated || matches!(&repo.json.gated, Value::String(_) | Value::Bool(true));
    let may = token.is_some_and(|t| repo.json.tokens.iter().any(|x| x == t));
    if gated && !may { Err(No::Gated) } else { Ok(()) }
}

/// The tree of a revision. Walks and hashes on a thread for blocking work.
pub async fn tree(shared: &Arc<Shared>, repo: &Repo, revision: &str) -> Result<Arc<Tree>, No> {
    let (shared, repo, revision) = (shared.clone(), repo.clone(), revision.to_owned());
    match tokio::task::spawn_blocking(move || shared.repos.resolve(&repo, &revision)).await {
        Ok(Ok(Some(tree))) => Ok(tree),
        Ok(Ok(None)) => Err(No::Revision),
        Ok(Err(e)) => Err(No::Other(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
        Err(e) => Err(No::Other(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
    }
}

/// A percent-decoded path segment.
pub fn decode(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// Whose token this is: `hf_alice` is alice's.
fn user(token: &str) -> Value {
    let name = token.strip_prefix("hf_").unwrap_or("standin");
    let access = json!({"displayName": name, "role": "read", "createdAt": "2024-05-06T07:08:09.000Z"});
    json!({"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": access}})
}

struct Call {
    plural: String,
    id: String,
    verb: String,
    revision: String,
    path: String,
}

fn parse(path: &str) -> Option<Call> {
    let mut segments = path.strip_prefix("/api/")?.split('/').peekable();
    let plural = segments.next().filter(|p| matches!(*p, "models" | "datasets" | "spaces"))?.to_owned();
    let mut id = decode(segments.next()?);
    if let Some(name) = segments.next_if(|s| !VERBS.contains(s)) {
        id = format!("{id}/{}", decode(name));
    }
    let verb = segments.next().unwrap_or("").to_owned();
    let revision = segments.next().map(decode).unwrap_or_else(|| "main".to_owned());
    let path = segments.map(decode).collect::<Vec<_>>().join("/");
    (verb.is_empty() || VERBS.contains(&verb.as_str())).then_some(Call { plural, id, verb, revision, path })
}

/// Answers one call.
pub async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let token = token(request.headers());
    let path = request.uri().path().to_owned();
    if path == "/api/whoami-v2" {
        shared.counters.request("whoami", request.headers());
        let known = |t: &str| shared.options.tokens.as_ref().is_none_or(|k| k.iter().any(|x| x == t));
        return match token.filter(|t| known(t)) {
            Some(token) => answer_json(StatusCode::OK, &user(&token)),
            None => No::BadToken.response("", true),
        };
    }
    let Some(call) = parse(&path) else {
        shared.counters.request("other", request.headers());
        return No::Other(StatusCode::NOT_FOUND, "Sorry, we can't find the page you are looking for.".into())
            .response("", true);
    };
    let kind = match call.verb.as_str() {
        "" => "info".to_owned(),
        "xet-read-token" => "xet_token".to_owned(),
        verb => verb.replace('-', "_"),
    };
    shared.counters.request(&kind, request.headers());
    let id = call.id.clone();
    match carry_out(shared, call, token.as_deref(), request).await {
        Ok(response) => response,
        Err(no) => no.response(&id, token.is_some()),
    }
}

async fn carry_out(
    shared: &Arc<Shared>,
    call: Call,
    token: Option<&str>,
    request: Request<Incoming>,
) -> Result<Response<Body>, No> {
    let repo = open(shared, &call.plural, &call.id, token)?;
    if let Some(to) = &repo.json.moved_to {
        let from = format!("/api/{}/{}", call.plural, call.id);
        let rest = request.uri().path_and_query().map_or("", |p| p.as_str());
        let rest = rest.strip_prefix(&from).unwrap_or("");
        let is_url = to.starts_with("http");
        return Err(No::Moved(if is_url {
            format!("{to}{from}{rest}")
        } else {
            format!("/api/{}/{to}{rest}", call.plural)
        }));
    }
    let query = Query::parse(request.uri().query());
    match call.verb.as_str() {
        "" | "revision" => {
            let tree = tree(shared, &repo, &call.revision).await?;
            let mut value = info(shared, &repo, &tree, query.is("blobs"));
            // With `expand`, only what it names (and who it is) is answered.
            if let (Some(map), Some(_)) = (value.as_object_mut(), query.get("expand")) {
                map.retain(|name, _| {
                    name == "id" || name == "_id" || query.0.iter().any(|(k, v)| k == "expand" && v == name)
                });
            }
            Ok(answer_json(StatusCode::OK, &value))
        }
        "tree" => {
            let tree = tree(shared, &repo, &call.revision).await?;
            list(shared, &repo, &tree, &call, &query, &request)
        }
        "paths-info" => {
            if request.method() != Method::POST {
                return Err(No::Other(StatusCode::METHOD_NOT_ALLOWED, "POST".into()));
            }
            let tree = tree(shared, &repo, &call.revision).await?;
            let is_json = request
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
            let body = axum::body::to_bytes(Body::new(request.into_body()), 16 << 20)
                .await
                .map_err(|e| No::Other(StatusCode::BAD_REQUEST, e.to_string()))?;
            let paths = if is_json { json_paths(&body) } else { form_paths(&body) };
            let found: Vec<Value> = paths
                .iter()
                .filter_map(|p| tree.get(p.trim_end_matches('/')))
                .map(|e| entry(&repo, e))
                .collect();
            Ok(answer_json(StatusCode::OK, &Value::Array(found)))
        }
        "refs" => refs(shared, &repo, query.is("include_prs")),
        _ => xet_token(&repo, shared),
    }
}

fn info(shared: &Shared, repo: &Repo, tree: &Tree, blobs: bool) -> Value {
    let id = repo.json.canonical_id.as_ref().unwrap_or(&repo.id);
    let siblings: Vec<Value> = tree
        .entries
        .iter()
        .filter(|e| e.disk.is_some())
        .map(|e| {
            let mut value = json!({"rfilename": e.path});
            if blobs {
                value["size"] = json!(e.size);
                value["blobId"] = json!(e.oid);
                if let Some(lfs) = &e.lfs {
                    value["lfs"] =
                        json!({"size": e.size, "sha256": lfs.sha256, "pointerSize": lfs.pointer_size});
                }
            }
            value
        })
        .collect();
    let modified = repo.json.last_modified.clone().unwrap_or_else(|| iso_date(tree.newest));
    let gated = match (&repo.json.gated, shared.switches.get().gated) {
        (Value::Null, true) | (Value::Bool(false), true) => json!("auto"),
        (Value::Null, false) => json!(false),
        (gated, _) => gated.clone(),
    };
    let used: u64 = tree.entries.iter().map(|e| e.size).sum();
    json!({
        "_id": &super::repos::git_id(repo.label().as_bytes())[..24],
        "id": id, "modelId": id, "author": id.split('/').next(),
        "sha": tree.commit, "lastModified": modified, "createdAt": modified,
        "private": repo.json.private, "gated": gated, "disabled": false,
        "tags": [], "downloads": 0, "likes": 0, "siblings": siblings, "usedStorage": used,
    })
}

fn entry(repo: &Repo, e: &Entry) -> Value {
    if e.disk.is_none() {
        return json!({"type": "directory", "oid": e.oid, "size": 0, "path": e.path});
    }
    let mut value = json!({"type": "file", "oid": e.oid, "size": e.size, "path": e.path});
    if let Some(lfs) = &e.lfs {
        value["lfs"] = json!({"oid": lfs.sha256, "size": e.size, "pointerSize": lfs.pointer_size});
        if repo.json.xet {
            value["xetHash"] = json!(lfs.sha256);
        }
    }
    value
}

fn list(
    shared: &Shared,
    repo: &Repo,
    tree: &Tree,
    call: &Call,
    query: &Query,
    request: &Request<Incoming>,
) -> Result<Response<Body>, No> {
    let prefix = if call.path.is_empty() { String::new() } else { format!("{}/", call.path) };
    let recursive = query.is("recursive");
    let mut found: Vec<&Entry> = tree
        .entries
        .iter()
        .filter(|e| e.path.strip_prefix(&prefix).is_some_and(|rest| recursive || !rest.contains('/')))
        .collect();
    if found.is_empty() && !prefix.is_empty() {
        return Err(No::Entry(tree.commit.clone()));
    }
    let most = if query.is("expand") { EXPANDED_PAGE.min(shared.options.page) } else { shared.options.page };
    let limit = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(most).clamp(1, most);
    if let Some(cursor) = query.get("cursor") {
        found.retain(|e| e.path.as_str() > cursor);
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let body: Vec<Value> = found.iter().map(|e| entry(repo, e)).collect();
    let mut response = answer_json(StatusCode::OK, &Value::Array(body));
    http::set(&mut response, "x-repo-commit", &tree.commit);
    if let (true, Some(last)) = (more, found.last()) {
        let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        let mut next = url::form_urlencoded::Serializer::new(String::new());
        for (k, v) in query.0.iter().filter(|(k, _)| k != "cursor") {
            next.append_pair(k, v);
        }
        next.append_pair("cursor", &last.path);
        let link = format!("<http://{host}{}?{}>; rel=\"next\"", request.uri().path(), next.finish());
        http::set(&mut response, header::LINK, &link);
    }
    Ok(response)
}

fn refs(shared: &Shared, repo: &Repo, include_prs: bool) -> Result<Response<Body>, No> {
    let (mut branches, mut tags, mut prs) = (Vec::new(), Vec::new(), Vec::new());
    for r in repo.refs() {
        let tree = shared
            .repos
            .tree(repo, &r.folder)
            .map_err(|e| No::Other(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
        let value = json!({"name": r.name, "ref": r.full, "targetCommit": tree.commit});
        if r.full.starts_with("refs/heads/") {
            branches.push(value);
        } else if r.full.starts_with("refs/tags/") {
            tags.push(value);
        } else {
            prs.push(value);
        }
    }
    let mut value = json!({"branches": branches, "converts": [], "tags": tags});
    if include_prs {
        value["pullRequests"] = json!(prs);
    }
    Ok(answer_json(StatusCode::OK, &value))
}

fn xet_token(repo: &Repo, shared: &Shared) -> Result<Response<Body>, No> {
    if !repo.json.xet {
        return Err(No::Other(StatusCode::NOT_FOUND, "not a Xet repository".into()));
    }
    let cas = format!("{}/cas", shared.cdn);
    let value = json!({"casUrl": cas, "exp": 4_000_000_000_u64, "accessToken": xet::TOKEN});
    let mut response = answer_json(StatusCode::OK, &value);
    http::set(&mut response, "x-xet-cas-url", &cas);
    http::set(&mut response, "x-xet-access-token", xet::TOKEN);
    http::set(&mut response, "x-xet-token-expiration", "4000000000");
    Ok(response)
}

fn form_paths(body: &[u8]) -> Vec<String> {
    let pairs = url::form_urlencoded::parse(body);
    pairs.filter(|(k, _)| k == "paths" || k == "paths[]").map(|(_, v)| v.into_owned()).collect()
}

fn json_paths(body: &[u8]) -> Vec<String> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let paths = value["paths"].as_array().cloned().unwrap_or_default();
    paths.iter().filter_map(|p| p.as_str().map(str::to_owned)).collect()
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Self {
        Query(url::form_urlencoded::parse(query.unwrap_or("").as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Python sends `True`.
    fn is(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v.eq_ignore_ascii_case("true") || v == "1")
    }
}
