"""A user's program that loads a model by its name: python pretrained.py transformers|libraries NAME, seconds as JSON.
HF_HUB_CACHE says where the model lies; nobody is asked for it.

Only the loading is timed: the libraries are imported before.
"""

import json
import os
import sys
import time


def transformers():
    from transformers import AutoModel, AutoTokenizer

    def load(name):
        return AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)

    return load


def libraries():
    """What from_pretrained does, where torch is not there: the snapshot, the configuration, the tokenizer, the weights."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    def load(name):
        folder = snapshot_download(name, local_files_only=True)
        with open(hf_hub_download(name, "config.json", local_files_only=True), encoding="utf-8") as file:
            config = json.load(file)
        tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        return config, tokenizer, load_file(hf_hub_download(name, "model.safetensors", local_files_only=True))

    return load


def main():
    kind, name = sys.argv[1:]
    load = {"transformers": transformers, "libraries": libraries}[kind]()
    began = time.perf_counter()
    load(name)
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
