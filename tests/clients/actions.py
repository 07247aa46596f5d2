"""What a user's program does with the Hub libraries, one function each; run as a process of its own.

    python actions.py NAME '{"argument": ...}'

prints the answer as JSON on the last line of its output; a library's exception is {"raised": its type, "says": its text}.
World.act() starts it: with the libraries of today or the old ones, as any user, with that user's environment.
"""

import hashlib
import json
import mmap
import os
import sys
import time
import warnings


def sha256(path):
    """Through ordinary reads of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_mapped(path):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return hashlib.sha256(mapped).hexdigest()


def described(path):
    return {
        "path": path,
        "sha256": sha256(path),
        "size": os.stat(path).st_size,
        "link": os.readlink(path) if os.path.islink(path) else None,
    }


def version():
    import huggingface_hub

    return huggingface_hub.__version__


def download(read=True, **arguments):
    """hf_hub_download, then the file as it reads."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(**arguments)
    return described(path) if read else {"path": path}


def download_all(repo_id, filenames, **arguments):
    """Several files by one process, one after the other."""
    return {name: download(repo_id=repo_id, filename=name, **arguments) for name in filenames}


def snapshot(read=True, **arguments):
    """snapshot_download, then every file below as it reads."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(**arguments)
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            files[os.path.relpath(path, folder)] = described(path) if read else None
    return {"folder": folder, "files": files}


def try_to_load(**arguments):
    """The path, None for "not known", or "no such file" for what is known not to be there."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    found = try_to_load_from_cache(**arguments)
    return "no such file" if found is _CACHED_NO_EXIST else found


def scan():
    """scan_cache_dir, and what it warns of."""
    from huggingface_hub import scan_cache_dir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = scan_cache_dir()
    return {
        "warnings": [str(warning) for warning in report.warnings],
        "repos": {
            f"{repo.repo_type}/{repo.repo_id}": {
                "size": repo.size_on_disk,
                "refs": sorted(repo.refs),
                "revisions": {
                    revision.commit_hash: sorted(
                        os.path.relpath(str(file.file_path), str(revision.snapshot_path)) for file in revision.files
                    )
                    for revision in repo.revisions
                },
            }
            for repo in report.repos
        },
    }


def whoami():
    from huggingface_hub import whoami

    return whoami()["name"]


def token():
    from huggingface_hub import get_token

    return get_token()


def refs(repo_id, **arguments):
    from huggingface_hub import HfApi

    found = HfApi().list_repo_refs(repo_id, **arguments)
    return {"branches": [b.name for b in found.branches], "tags": [t.name for t in found.tags]}


def read(path, mapped=False):
    answer = described(path)
    if mapped:
        answer["mapped"] = sha256_mapped(path)
    return answer


def listing(path):
    return sorted(os.listdir(path))


def timed_read(path, offset=0, length=None):
    """How long one read takes, and what it answers."""
    started = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        data = file.read(-1 if length is None else length)
    return {"seconds": time.monotonic() - started, "bytes": len(data)}


def errno_of(path, how="open"):
    """The errno of opening, listing or stat-ing `path`; 0 when that works."""
    try:
        if how == "open":
            with open(path, "rb") as file:
                file.read(1)
        elif how == "list":
            os.listdir(path)
        else:
            os.stat(path)
    except OSError as error:
        return error.errno
    return 0


def tensors(path):
    """Name, shape and sum of every tensor of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {
            name: [list(file.get_tensor(name).shape), float(file.get_tensor(name).astype("float64").sum())]
            for name in file.keys()
        }


def encode(folder, sentences):
    import bert

    return bert.encode(folder, sentences).tolist()


def load_model(repo_id, sentences, **arguments):
    """What a program does: fetch the files by name, then compute with them."""
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        path = hf_hub_download(repo_id, name, **arguments)
    return encode(os.path.dirname(path), sentences)


def auto_encode(name, sentences):
    """The same by transformers and torch; `name` is a repository or a folder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    answer = []
    with torch.inference_mode():
        for sentence in sentences:
            hidden = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
            answer.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist())
    return answer


def count_under_lock(lock, counter, times, hold=0.0):
    """Adds one to the number in `counter`, `times` over, each time under filelock's lock on `lock`."""
    from filelock import FileLock

    for _ in range(times):
        with FileLock(lock, timeout=60):
            try:
                with open(counter, encoding="ascii") as file:
                    value = int(file.read())
            except FileNotFoundError:
                value = 0
            time.sleep(hold)
            with open(counter, "w", encoding="ascii") as file:
                file.write(str(value + 1))
    return {"kind": type(FileLock(lock)).__name__}


def hold_lock(lock, seconds, marker):
    """Takes the lock, makes `marker` to say so, and keeps it."""
    from filelock import FileLock

    with FileLock(lock, timeout=60):
        with open(marker, "w", encoding="ascii"):
            pass
        time.sleep(seconds)


def try_lock(lock):
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def main():
    try:
        answer = globals()[sys.argv[1]](**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
    except Exception as error:  # whatever a library raises is the answer
        answer = {"raised": type(error).__name__, "says": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
