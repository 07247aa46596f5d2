//! Writes a small but real model: a config, a tokenizer and safetensors of seeded random numbers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

/// What to write.
#[derive(Clone, Debug)]
pub struct Model {
    /// Bytes of all tensors together; rounded up to whole rows.
    pub size: u64,
    /// Number of safetensors files; 1 has no index.
    pub shards: u64,
    pub seed: u64,
}

/// Numbers of a row (f16: 2 bytes each).
const COLUMNS: u64 = 1_024;
/// Rows of the largest tensor: 32 MiB.
const ROWS: u64 = 16 << 10;

/// Writes the model into `dir`, which is made if need be.
pub fn write(dir: &Path, model: &Model) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let shards = model.shards.max(1);
    let rows = model.size.div_ceil(COLUMNS * 2).max(shards);
    let mut tensors: Vec<(String, u64)> = Vec::new();
    let mut random = Random(model.seed | 1);
    let mut weights: BTreeMap<String, String> = BTreeMap::new();
    for shard in 0..shards {
        let share = rows / shards + u64::from(shard < rows % shards);
        let mut left = share;
        tensors.clear();
        while left > 0 {
            let rows = left.min(ROWS);
            tensors
                .push((format!("model.layers.{}.mlp.up_proj.weight", weights.len() + tensors.len()), rows));
            left -= rows;
        }
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        };
        weights.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
        write_safetensors(&dir.join(&name), &tensors, &mut random)?;
    }
    if shards > 1 {
        let index = json!({"metadata": {"total_size": rows * COLUMNS * 2}, "weight_map": weights});
        write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    write_json(&dir.join("config.json"), &config(weights.len()))?;
    write_json(&dir.join("generation_config.json"), &json!({"bos_token_id": 1, "eos_token_id": 2}))?;
    write_json(&dir.join("tokenizer_config.json"), &tokenizer_config())?;
    write_json(&dir.join("tokenizer.json"), &tokenizer())?;
    fs::write(dir.join("README.md"), "---\nlicense: apache-2.0\n---\n# Random numbers\n")
}

/// Writes one file of a repository (`models/org/name/main/config.json`) or its `repo.json`, making the folders.
pub fn put(root: &Path, path: &str, bytes: impl AsRef<[u8]>) {
    let file = root.join(path);
    fs::create_dir_all(file.parent().expect("inside of the root")).expect("folders");
    fs::write(&file, bytes).expect("a writable root");
}

/// `len` seeded random bytes.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn write_safetensors(path: &Path, tensors: &[(String, u64)], random: &mut Random) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, rows) in tensors {
        let end = offset + rows * COLUMNS * 2;
        header.insert(
            name.clone(),
            json!({"dtype": "F16", "shape": [rows, COLUMNS], "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut row = vec![0; 64 << 10];
    let mut left = offset;
    while left > 0 {
        let n = left.min(row.len() as u64) as usize;
        for eight in row[..n].chunks_exact_mut(8) {
            // Without the top bit of the exponents there is no infinity and no NaN.
            eight.copy_from_slice(&(random.next() & 0xbfff_bfff_bfff_bfff).to_le_bytes());
        }
        out.write_all(&row[..n])?;
        left -= n as u64;
    }
    out.flush()
}

fn config(layers: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16",
        "hidden_size": COLUMNS, "intermediate_size": ROWS, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 8,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    })
}

fn tokenizer_config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "model_max_length": 2048})
}

fn tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3, "world": 4, "shared": 5, "cache": 6, "!": 7}},
    })
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    fs::write(path, format!("{value:#}\n"))
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
