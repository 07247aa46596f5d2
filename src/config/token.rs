//! The Hub token that the daemon uses: found where huggingface_hub would find it, read before anything is mounted over the
//! place, and kept in memory only.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::secrets::{Secret, from_file};

/// Where a token may be, in the order of preference.
#[derive(Clone, Debug, Default)]
pub struct TokenPlaces {
    /// `--token-file`: must exist.
    pub file: Option<PathBuf>,
    /// `HF_TOKEN`, or its old name `HUGGING_FACE_HUB_TOKEN`.
    pub value: Option<Secret>,
    /// `HF_TOKEN_PATH`, else `$HF_HOME/token`, else `~/.cache/huggingface/token`: may be absent.
    pub usual: Option<PathBuf>,
}

impl TokenPlaces {
    /// As the environment says.
    #[must_use]
    pub fn from_env(file: Option<PathBuf>) -> Self {
        Self::find(file, |name| std::env::var(name).ok().filter(|v| !v.trim().is_empty()))
    }

    fn find(file: Option<PathBuf>, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| lookup(name).map(PathBuf::from);
        let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        let home = path("HF_HOME").or_else(|| cache.map(|cache| cache.join("huggingface")));
        let value = lookup("HF_TOKEN").or_else(|| lookup("HUGGING_FACE_HUB_TOKEN"));
        TokenPlaces {
            file,
            value: value.map(|v| Secret::from(v.trim().to_owned())),
            usual: path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token"))),
        }
    }
}

/// The token, if there is one. [`Kind::Config`](crate::error::Kind::Config) if the file that was asked for cannot be read.
pub fn read_token(places: &TokenPlaces) -> Result<Option<Secret>> {
    if let Some(file) = &places.file {
        return Ok(token(&from_file(file)?));
    }
    if let Some(value) = &places.value {
        return Ok(Some(value.clone()));
    }
    Ok(places.usual.as_deref().and_then(read_usual))
}

/// A file that is not there, or not this user's to read, is no token: public repositories need none.
fn read_usual(path: &Path) -> Option<Secret> {
    match from_file(path) {
        Ok(text) => token(&text),
        Err(e) => {
            tracing::debug!("no token: {e}");
            None
        }
    }
}

fn token(text: &str) -> Option<Secret> {
    let text = text.trim();
    (!text.is_empty()).then(|| Secret::from(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(env: &[(&str, &str)]) -> TokenPlaces {
        TokenPlaces::find(None, |n| env.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_places_are_those_of_the_library() {
        let usual = |env: &[(&str, &str)]| places(env).usual;
        assert_eq!(usual(&[("HOME", "/h")]), Some("/h/.cache/huggingface/token".into()));
        assert_eq!(usual(&[("HOME", "/h"), ("HF_HOME", "/hf")]), Some("/hf/token".into()));
        assert_eq!(usual(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Some("/c/huggingface/token".into()));
        assert_eq!(usual(&[("HF_HOME", "/hf"), ("HF_TOKEN_PATH", "/t")]), Some("/t".into()));
        assert_eq!(usual(&[]), None);
    }

    #[test]
    fn the_first_place_that_has_one_counts() {
        let tmp = tempfile::tempdir().expect("dir");
        let file = tmp.path().join("token");
        std::fs::write(&file, " hf_file\n").expect("write");
        let expose = |p: &TokenPlaces| read_token(p).map(|t| t.map(|t| t.expose().to_owned()));
        let mut all = places(&[("HF_TOKEN", "hf_env ")]);
        all.usual = Some(file.clone());
        assert_eq!(expose(&all).expect("env").as_deref(), Some("hf_env"));
        all.value = None;
        assert_eq!(expose(&all).expect("usual").as_deref(), Some("hf_file"));
        all.usual = Some(tmp.path().join("none"));
        assert_eq!(expose(&all).expect("absent"), None);
        all.file = Some(tmp.path().join("none"));
        assert!(expose(&all).is_err(), "a file that was asked for must be there");
    }
}
