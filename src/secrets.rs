//! Secrets: where they are read from, and how they are sealed to lie in the metadata.
//!
//! A secret comes from the environment or from a file that the environment names, never from the command line. Sealed
//! ones are encrypted with AES-256-GCM under a key that Argon2id makes of a passphrase.

use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use argon2::{Algorithm, Argon2, Params};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, ResultExt};
pub use crate::source::storage::Secret;

/// The passphrase that seals and opens: `HFMOUNT_PASSPHRASE`, or the file that `HFMOUNT_PASSPHRASE_FILE` names.
pub const PASSPHRASE: &str = "HFMOUNT_PASSPHRASE";

/// Memory of one key derivation in KiB, and passes over it: some 0.2 s on a small machine.
const MEMORY: u32 = 64 * 1024;
const PASSES: u32 = 3;
/// What is believed of a sealed secret's own parameters: more would be an attack on this machine's memory.
const MAX_MEMORY: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 64;
/// A file that holds a secret is small; anything larger is the wrong file.
const MAX_FILE: u64 = 64 * 1024;

/// Reads the secret `name` from the environment: the variable itself, or the file that `<name>_FILE` names. Line ends at
/// its end do not belong to it; an empty one counts as absent. [`Kind::Config`] if both are set or the file cannot be read.
pub fn from_env(name: &str) -> Result<Option<Secret>> {
    read(name, |n| std::env::var(n).ok())
}

fn read(name: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Secret>> {
    let file_name = format!("{name}_FILE");
    let value = lookup(name).filter(|v| !v.is_empty());
    let file = lookup(&file_name).filter(|v| !v.is_empty());
    let text = match (value, file) {
        (Some(_), Some(_)) => {
            return Err(Error::new(Kind::Config, format!("{name} and {file_name} are both set: keep one")));
        }
        (Some(value), None) => value,
        (None, Some(path)) => from_file(Path::new(&path)).context(|| file_name)?,
        (None, None) => return Ok(None),
    };
    let text = text.trim_end_matches(['\n', '\r']);
    Ok((!text.is_empty()).then(|| Secret::from(text.to_owned())))
}

/// The text of a small file.
pub fn from_file(path: &Path) -> Result<String> {
    let named = || path.display().to_string();
    let bad = |e: std::io::Error| Error::with_source(Kind::Config, named(), e);
    let length = std::fs::metadata(path).map_err(bad)?.len();
    if length > MAX_FILE {
        return Err(Error::with_source(Kind::Config, named(), "too large to be a secret"));
    }
    std::fs::read_to_string(path).map_err(bad)
}

/// Something encrypted, with all that is needed to open it but the passphrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Of this form: 1.
    version: u32,
    kdf: String,
    /// KiB.
    memory: u32,
    passes: u32,
    /// 16 bytes, base64.
    salt: String,
    /// 12 bytes, base64.
    nonce: String,
    /// Ciphertext and tag, base64.
    data: String,
}

/// Seals `plain`. `bound` (say, a volume's identity) is not stored but must be the same at [`open`]: a sealed secret
/// copied into another volume does not open. Takes a noticeable time and 64 MiB: not for the async workers.
pub fn seal(passphrase: &Secret, bound: &str, plain: &[u8]) -> Result<Sealed> {
    seal_with(passphrase, bound, plain, (MEMORY, PASSES))
}

fn seal_with(passphrase: &Secret, bound: &str, plain: &[u8], (memory, passes): (u32, u32)) -> Result<Sealed> {
    let salt: [u8; 16] = rand::random();
    let nonce: [u8; 12] = rand::random();
    let cipher = cipher(passphrase, &salt, (memory, passes))?;
    let data = cipher
        .encrypt(&Nonce::from(nonce), Payload { msg: plain, aad: bound.as_bytes() })
        .map_err(|_| Error::new(Kind::Internal, "sealing a secret"))?;
    Ok(Sealed {
        version: 1,
        kdf: "argon2id".into(),
        memory,
        passes,
        salt: BASE64.encode(salt),
        nonce: BASE64.encode(nonce),
        data: BASE64.encode(data),
    })
}

/// Opens what [`seal`] made. [`Kind::Config`]: the passphrase is wrong, or the secret was changed or belongs elsewhere;
/// these cannot be told apart.
pub fn open(sealed: &Sealed, passphrase: &Secret, bound: &str) -> Result<Vec<u8>> {
    let unknown =
        || Error::new(Kind::Config, "the sealed secret is of a kind that this hfmount does not know");
    if sealed.version != 1 || sealed.kdf != "argon2id" {
        return Err(unknown());
    }
    if sealed.memory > MAX_MEMORY || sealed.passes > MAX_PASSES {
        return Err(unknown());
    }
    let decode =
        |text: &str| BASE64.decode(text).map_err(|e| Error::with_source(Kind::Corrupt, "sealed secret", e));
    let nonce: [u8; 12] = decode(&sealed.nonce)?
        .try_into()
        .map_err(|_| Error::new(Kind::Corrupt, "nonce of a sealed secret"))?;
    let data = decode(&sealed.data)?;
    cipher(passphrase, &decode(&sealed.salt)?, (sealed.memory, sealed.passes))?
        .decrypt(&Nonce::from(nonce), Payload { msg: &data, aad: bound.as_bytes() })
        .map_err(|_| Error::new(Kind::Config, "the passphrase does not open the sealed secret"))
}

fn cipher(passphrase: &Secret, salt: &[u8], (memory, passes): (u32, u32)) -> Result<Aes256Gcm> {
    let failed =
        |e: argon2::Error| Error::with_source(Kind::Corrupt, "key of a sealed secret", e.to_string());
    let params = Params::new(memory, passes, 1, Some(32)).map_err(failed)?;
    let mut key = [0u8; 32];
    Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.expose().as_bytes(), salt, &mut key)
        .map_err(failed)?;
    Ok(Aes256Gcm::new(&key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fast, for tests.
    const COST: (u32, u32) = (64, 1);

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    #[test]
    fn what_is_sealed_opens_with_its_passphrase_only() {
        let sealed = seal_with(&secret("open sesame"), "volume 1", b"s3 key", COST).expect("sealed");
        let text = serde_json::to_string(&sealed).expect("json");
        assert!(!text.contains("s3 key") && !text.contains("sesame"));
        let sealed: Sealed = serde_json::from_str(&text).expect("json");
        assert_eq!(open(&sealed, &secret("open sesame"), "volume 1").expect("opens"), b"s3 key");
        let wrong = open(&sealed, &secret("open barley"), "volume 1").expect_err("wrong passphrase");
        assert_eq!(wrong.kind(), Kind::Config);
        assert!(!format!("{wrong} {wrong:?}").contains("barley"));
        assert!(open(&sealed, &secret("open sesame"), "volume 2").is_err(), "bound to its volume");
    }

    #[test]
    fn the_same_secret_never_seals_alike() {
        let seal = || seal_with(&secret("p"), "v", b"x", COST).expect("sealed");
        let (a, b) = (seal(), seal());
        assert!(a.salt != b.salt && a.nonce != b.nonce && a.data != b.data);
    }

    #[test]
    fn tampering_and_extravagance_are_refused() {
        let sealed = seal_with(&secret("p"), "v", b"x", COST).expect("sealed");
        let changed = Sealed { data: BASE64.encode(b"0123456789abcdefg"), ..sealed.clone() };
        assert!(open(&changed, &secret("p"), "v").is_err());
        for odd in [
            Sealed { version: 2, ..sealed.clone() },
            Sealed { kdf: "plain".into(), ..sealed.clone() },
            Sealed { memory: u32::MAX, ..sealed.clone() },
            Sealed { passes: u32::MAX, ..sealed.clone() },
            Sealed { nonce: "AA==".into(), ..sealed },
        ] {
            assert!(open(&odd, &secret("p"), "v").is_err(), "{odd:?}");
        }
    }

    #[test]
    fn secrets_come_from_the_variable_or_its_file() {
        let tmp = tempfile::tempdir().expect("dir");
        let path = tmp.path().join("secret");
        std::fs::write(&path, "from file\n").expect("write");
        let path = path.to_str().expect("utf-8").to_owned();
        let get = |env: &[(&str, &str)]| {
            let found = read("X", |n| env.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned()));
            found.map(|s| s.map(|s| s.expose().to_owned()))
        };
        assert_eq!(get(&[]).expect("none"), None);
        assert_eq!(get(&[("X", "")]).expect("empty"), None);
        assert_eq!(get(&[("X", "a b")]).expect("value").as_deref(), Some("a b"));
        assert_eq!(get(&[("X_FILE", &path)]).expect("file").as_deref(), Some("from file"));
        assert!(get(&[("X", "a"), ("X_FILE", &path)]).is_err(), "both");
        let missing = get(&[("X_FILE", "/nonexistent/secret")]).expect_err("missing");
        assert!(missing.to_string().contains("X_FILE: /nonexistent/secret"), "{missing}");
    }
}
