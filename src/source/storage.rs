//! Where a volume's objects lie, as the user says it: the URL and the options that go with it. No I/O here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, Kind, Result};

/// The place of a volume's objects: `s3://bucket/prefix` or `file:///path`. Holds no secret: a URL with a user or a
/// password in it is refused, without being repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StorageUrl {
    S3 {
        bucket: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
    /// A folder of this machine, absolute.
    File { path: PathBuf },
}

impl StorageUrl {
    /// Whether the objects lie in a folder of this machine, where a second copy of a cached blob gains nothing.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, StorageUrl::File { .. })
    }
}

impl FromStr for StorageUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| Error::with_source(Kind::Config, "storage URL", why);
        let url = Url::parse(text)
            .map_err(|e| bad(format!("{e}: it should look like s3://bucket/prefix or file:///path")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad(
                "it holds credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
                    .into(),
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it has a query or a fragment: there is no use for either".into()));
        }
        match url.scheme() {
            "s3" => {
                let bucket = url.host_str().unwrap_or_default().to_owned();
                if url.port().is_some() {
                    return Err(bad(format!(
                        "{text:?} has a port: name the server with --endpoint and the bucket in the URL"
                    )));
                }
                let allowed =
                    |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
                if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(allowed) {
                    return Err(bad(format!("{bucket:?} is no name of a bucket")));
                }
                Ok(StorageUrl::S3 { bucket, prefix: prefix(url.path()).map_err(bad)? })
            }
            "file" => match url.to_file_path() {
                Ok(path) => Ok(StorageUrl::File { path }),
                Err(()) => {
                    Err(bad(format!("{text:?} is no absolute path: it should look like file:///path")))
                }
            },
            other => Err(bad(format!("scheme {other:?}: only s3 and file are known"))),
        }
    }
}

/// A prefix of object names that every S3 server and every signature agrees on.
fn prefix(path: &str) -> Result<String, String> {
    let prefix = path.trim_matches('/');
    let part = |p: &str| {
        !matches!(p, "" | "." | "..")
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=' | b'!'))
    };
    if prefix.is_empty() || (prefix.len() <= 512 && prefix.split('/').all(part)) {
        Ok(prefix.to_owned())
    } else {
        Err(format!("prefix {prefix:?}: only letters, digits and . _ - = ! may be in it, and single slashes"))
    }
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageUrl::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            StorageUrl::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            StorageUrl::File { path } => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
        }
    }
}

impl TryFrom<String> for StorageUrl {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<StorageUrl> for String {
    fn from(url: StorageUrl) -> String {
        url.to_string()
    }
}

/// A string that never shows in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The string itself: for the request that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Secret(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// How to reach an S3 bucket. A folder needs none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageOptions {
    /// `http://` or `https://` URL of a server that is not Amazon's. `None`: Amazon's own, in `region`.
    pub endpoint: Option<String>,
    /// `None`: `us-east-1`, which servers other than Amazon's take as any.
    pub region: Option<String>,
    /// The bucket in the path (`true`) or in the host name (`false`). `None`: in the path if there is an
    /// `endpoint` or the name has a dot.
    pub path_style: Option<bool>,
    pub access_key: Option<String>,
    pub secret_key: Option<Secret>,
    /// Goes with temporary keys.
    pub session_token: Option<Secret>,
    /// Where a machine or pod finds keys of its own when none are given (`AWS_ROLE_ARN`,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_CONTAINER_…`): names as in the environment, and their values.
    pub role: Vec<(String, String)>,
}

/// Names that only make sense together, for machines and pods that have a role instead of keys.
const ROLE_NAMES: [&str; 7] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

impl StorageOptions {
    /// What the usual `AWS_*` names say; `lookup` is the environment. Empty values count as absent.
    #[must_use]
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).filter(|v| !v.is_empty());
        StorageOptions {
            endpoint: get("AWS_ENDPOINT_URL_S3").or_else(|| get("AWS_ENDPOINT_URL")),
            region: get("AWS_REGION").or_else(|| get("AWS_DEFAULT_REGION")),
            path_style: None,
            access_key: get("AWS_ACCESS_KEY_ID"),
            secret_key: get("AWS_SECRET_ACCESS_KEY").map(Secret),
            session_token: get("AWS_SESSION_TOKEN").map(Secret),
            role: ROLE_NAMES.iter().filter_map(|n| Some(((*n).to_owned(), get(n)?))).collect(),
        }
    }

    /// These options, and `other`'s where these say nothing. Keys are taken together or not at all: half of one pair and
    /// half of another never make a pair.
    #[must_use]
    pub fn or(self, other: StorageOptions) -> Self {
        let keyless = self.access_key.is_none() && self.secret_key.is_none();
        let keys = if keyless {
            (other.access_key, other.secret_key, other.session_token)
        } else {
            (self.access_key, self.secret_key, self.session_token)
        };
        StorageOptions {
            endpoint: self.endpoint.or(other.endpoint),
            region: self.region.or(other.region),
            path_style: self.path_style.or(other.path_style),
            access_key: keys.0,
            secret_key: keys.1,
            session_token: keys.2,
            role: if self.role.is_empty() { other.role } else { self.role },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_parse_and_print() {
        for (text, shown) in [
            ("s3://models", "s3://models"),
            ("s3://models/", "s3://models"),
            ("s3://my.bucket-1/a/b_c/", "s3://my.bucket-1/a/b_c"),
            ("file:///srv/hf", "file:///srv/hf"),
            ("file:///srv/with%20space", "file:///srv/with%20space"),
        ] {
            let url: StorageUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse::<StorageUrl>().expect(shown), url);
        }
        let url: StorageUrl = "file:///srv/with%20space".parse().expect("a file URL");
        assert_eq!(url, StorageUrl::File { path: "/srv/with space".into() });
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_repeating_secrets() {
        for text in [
            "",
            "models",
            "http://s3.local/models",
            "s3://ab",
            "s3://Models_1/x",
            "s3://models/a//b",
            "s3://models/a b",
            "s3://models:9000/x",
            "s3://models?region=x",
            "file://host/path",
        ] {
            let e = text.parse::<StorageUrl>().expect_err(text);
            assert_eq!(e.kind(), Kind::Config, "{text}");
        }
        let e = "s3://AKIA:hunter2@models/x".parse::<StorageUrl>().expect_err("credentials");
        assert!(!format!("{e} {e:?}").contains("hunter2"), "{e}");
    }

    #[test]
    fn the_environment_is_read_and_secrets_do_not_show() {
        let env = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://127.0.0.1:9000".to_owned()),
            "AWS_ACCESS_KEY_ID" => Some("key".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("hunter2".to_owned()),
            "AWS_REGION" => Some(String::new()),
            "AWS_ROLE_ARN" => Some("arn:x".to_owned()),
            _ => None,
        };
        let options = StorageOptions::from_env(env);
        assert_eq!(options.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(options.region, None);
        assert_eq!(options.role, [("AWS_ROLE_ARN".to_owned(), "arn:x".to_owned())]);
        assert!(!format!("{options:?}").contains("hunter2"));

        let flags = StorageOptions { access_key: Some("mine".into()), ..StorageOptions::default() };
        let both = flags.or(options);
        assert_eq!(both.access_key.as_deref(), Some("mine"));
        assert_eq!(both.secret_key, None, "never another pair's secret");
        assert!(both.endpoint.is_some());
    }
}
