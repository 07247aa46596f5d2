//! Keeps a password that stands in a metadata URL on the command line out of everybody's sight: the process replaces
//! itself by one that has it in its environment, which only its user can read.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use percent_encoding::percent_decode_str;

use super::META_PASSWORD;

/// Returns if there is nothing to hide, or if it cannot be hidden.
pub(super) fn conceal_password() {
    let mut args = std::env::args_os();
    let Some(program) = args.next() else { return };
    let Some((args, password)) = conceal(args.collect()) else { return };
    let Ok(own) = std::env::current_exe() else { return };
    // The one in the URL counts, as it would have there.
    let failed = Command::new(own)
        .arg0(program)
        .args(args)
        .env(META_PASSWORD, password)
        .env_remove(format!("{META_PASSWORD}_FILE"))
        .exec();
    eprintln!("hfmount: the password on the command line is visible to others: {failed}");
}

/// The arguments without the password of a `--meta` URL, and the password; `None` if there is none.
fn conceal(mut args: Vec<OsString>) -> Option<(Vec<OsString>, String)> {
    let mut after_meta = false;
    for arg in &mut args {
        let text = arg.to_str()?.to_owned();
        let url = if after_meta {
            Some(("", text.as_str()))
        } else {
            text.strip_prefix("--meta=").map(|u| ("--meta=", u))
        };
        if let Some((head, (bare, password))) = url.and_then(|(h, u)| Some((h, split_password(u)?))) {
            *arg = OsString::from(format!("{head}{bare}"));
            return Some((args, password));
        }
        after_meta = arg.as_os_str() == OsStr::new("--meta");
    }
    None
}

/// The URL without its password, and the password.
fn split_password(text: &str) -> Option<(String, String)> {
    let (scheme, rest) = text.split_once("://")?;
    // What comes before the last `@` of the authority, as URL parsers see it.
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let at = authority.rfind('@')?;
    let (user, password) = authority[..at].split_once(':')?;
    if password.is_empty() {
        return None;
    }
    let decoded = percent_decode_str(password).decode_utf8().ok()?.into_owned();
    let login = if user.is_empty() { String::new() } else { format!("{user}@") };
    Some((format!("{scheme}://{login}{}", &rest[at + 1..]), decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concealed(args: &[&str]) -> Option<(Vec<String>, String)> {
        let (args, password) = conceal(args.iter().map(OsString::from).collect())?;
        Some((args.into_iter().map(|a| a.into_string().expect("utf-8")).collect(), password))
    }

    #[test]
    fn passwords_are_taken_out() {
        let (args, password) =
            concealed(&["mount", "--meta", "redis://u:p%40s@db:1/0?prefix=x", "/mnt"]).expect("a password");
        assert_eq!(args, ["mount", "--meta", "redis://u@db:1/0?prefix=x", "/mnt"]);
        assert_eq!(password, "p@s");
        let (args, _) = concealed(&["status", "--meta=rediss://:s@db"]).expect("a password");
        assert_eq!(args, ["status", "--meta=rediss://db"]);
    }

    #[test]
    fn nothing_else_is_touched() {
        for url in ["redis://db", "redis://u@db", "redis://u:@db", "sqlite:///a:b@c", "nonsense"] {
            assert_eq!(concealed(&["mount", "--meta", url]), None, "{url}");
        }
        assert_eq!(concealed(&["mount", "redis://u:p@db"]), None, "not the metadata URL");
        assert_eq!(concealed(&["mount", "--meta"]), None);
    }
}
