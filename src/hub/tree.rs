//! `trees/<commit>.json`, byte for byte as huggingface_hub (from 1.22 on) writes it: with it a snapshot is loaded
//! without a call for the list of files.

use std::fmt::Write;

use super::api::TreeFile;

/// The content of `trees/<commit>.json`: what Python's `json.dump(…, indent=1)` makes, files in the order of their
/// names. Needs memory in proportion to the number of files, about 200 bytes each.
#[must_use]
pub fn tree_json<'a>(files: impl IntoIterator<Item = &'a TreeFile>) -> String {
    let mut files: Vec<&TreeFile> = files.into_iter().collect();
    // Python sorts by code points, which is the order of UTF-8 bytes.
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut out = String::from("{\n \"format_version\": 1,\n \"files\": {");
    for (i, file) in files.iter().enumerate() {
        out.push_str(if i == 0 { "\n  " } else { ",\n  " });
        push_string(&mut out, &file.path);
        let _ = write!(
            out,
            ": {{\n   \"size\": {},\n   \"blob_id\": \"{}\"",
            file.size,
            hex::encode(file.git_oid)
        );
        if let Some(lfs) = &file.lfs {
            let sha256 = hex::encode(lfs.sha256);
            let _ = write!(out, ",\n   \"lfs_sha256\": \"{sha256}\",\n   \"lfs_size\": {}", lfs.size);
        }
        if let Some(hash) = &file.xet_hash {
            let _ = write!(out, ",\n   \"xet_hash\": \"{hash}\"");
        }
        out.push_str("\n  }");
    }
    out.push_str(if files.is_empty() { "}\n}" } else { "\n }\n}" });
    out
}

/// A JSON string of ASCII only, as Python escapes it.
fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Lfs;
    use crate::types::BlobId;

    fn plain(path: &str, size: u64) -> TreeFile {
        let git_oid = [0x1a; 20];
        TreeFile {
            path: path.to_owned(),
            size,
            blob: BlobId::Git(git_oid),
            git_oid,
            lfs: None,
            xet_hash: None,
        }
    }

    #[test]
    fn as_the_library_writes_it() {
        let sha256 = [0xc3; 32];
        let lfs = TreeFile {
            blob: BlobId::Sha256(sha256),
            lfs: Some(Lfs { sha256, size: 1_234 }),
            xet_hash: Some("e5".repeat(32)),
            ..plain("model.safetensors", 1_234)
        };
        // Written by huggingface_hub 2.4.0's own write_tree_cache.
        let expected = include_str!("tree_sample.json");
        assert_eq!(tree_json(&[lfs, plain("sub/gr\u{fc}\u{df}e \u{1f917}\t\"\\\u{7f}", 519)]), expected);
        assert_eq!(tree_json(&[]), "{\n \"format_version\": 1,\n \"files\": {}\n}");
    }
}
