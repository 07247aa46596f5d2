"""A sentence encoder in numpy: what all-MiniLM-L6-v2 computes, straight from its files.

Small enough to run where torch is not installed, and it reads as real programs read: the tokenizer whole, the weights
through safetensors' mapping, tensor by tensor.
"""

import json
import math
import os

import numpy as np
from safetensors import safe_open

_erf = np.vectorize(math.erf, otypes=[np.float32])


def encode(folder, sentences):
    """The normalised embedding of each sentence, shape (sentences, hidden size), by the model that lies in `folder`."""
    from tokenizers import Tokenizer

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.enable_truncation(max_length=256)
    tokenizer.no_padding()
    with safe_open(os.path.join(folder, "model.safetensors"), framework="numpy") as weights:
        return np.stack([_embed(weights, config, tokenizer.encode(s).ids) for s in sentences])


def _embed(weights, config, ids):
    def dense(x, name):
        return x @ weights.get_tensor(f"{name}.weight").T + weights.get_tensor(f"{name}.bias")

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return scaled * weights.get_tensor(f"{name}.weight") + weights.get_tensor(f"{name}.bias")

    words = weights.get_slice("embeddings.word_embeddings.weight")
    x = np.concatenate([words[i : i + 1] for i in ids])
    x = x + weights.get_tensor("embeddings.position_embeddings.weight")[: len(ids)]
    x = norm(x + weights.get_tensor("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
    heads = config["num_attention_heads"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"

        def split(name):
            projected = dense(x, f"{layer}.attention.self.{name}")
            return projected.reshape(len(ids), heads, -1).transpose(1, 0, 2)

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(dense(mixed, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        inner = dense(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        x = norm(dense(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)
