"""How long a user waits for a model that is here: safetensors' load_file, and from_pretrained on metadata near and far."""

import collections
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

from client import VENVS
from commands import Monitor
from process import Failed
from volume import Volume
from world import weights

LOADED, MODEL = "bench/loaded", "bench/minilm"
# Milliseconds that each round trip to a distant Redis takes longer.
LATE_MS = 1
# Programs whose median is one sample.
PROGRAMS = 3
# What the kernel may keep only for a second is asked for again after this, seconds.
FORGOTTEN = 2


def can_load():
    try:
        import safetensors.numpy  # noqa: F401
    except ImportError:
        return False
    return True


def loads(bench, volume):
    """Rows of load_file of a large file. The one to compare with is the stand-in Hub's own, in a plain folder of the same disk."""
    name = "model.safetensors"
    path = volume.path(LOADED, bench.commits[LOADED], name)
    files = (path, os.path.join(bench.repository(LOADED), name))
    with bench.mapped_since_before_it_is_filled(volume, path):
        bench.against_local(files, "loaded", "safetensors load_file, old mapping", parts=2)
    bench.against_local(files, "loaded", "safetensors load_file", parts=2)


class Program:
    """What stands for a user's program: transformers if its venv is there, else the libraries beneath it."""

    def __init__(self):
        stacks = (("transformers", "transformers"), ("new", "libraries"))
        there = [(venv, kind) for venv, kind in stacks if os.path.exists(os.path.join(VENVS, venv, ".made-from"))]
        if not there:
            raise Failed(f"no client libraries in {VENVS}: scripts/setup.sh python")
        self.venv, self.kind = there[0]

    def run(self, cache):
        """Seconds that it takes to load the model out of a cache."""
        home = os.path.join(os.path.dirname(cache), "no-home")
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        env |= {"HF_HOME": home, "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pretrained.py")
        command = [os.path.join(VENVS, self.venv, "bin", "python"), script, self.kind, MODEL]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise Failed(f"{command}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])["seconds"]


def pretrained(bench, hub_url):
    """Rows of from_pretrained: against a plain folder, the same on a distant Redis, and what the second one asks for."""
    redis = not bench.options.skip_redis
    try:
        program = Program()
        weights()
    except Failed as missing:
        print(f"  from_pretrained is left out: {missing}", file=sys.stderr)
        return
    with contextlib.ExitStack() as open_volumes:
        near = open_volumes.enter_context(contextlib.closing(Volume(bench.dir, hub_url, redis=redis)))
        volumes = [near]
        if redis:
            volumes.append(open_volumes.enter_context(contextlib.closing(Volume(bench.dir, hub_url, redis=True, late_ms=LATE_MS))))
        for volume in volumes:
            # It comes from the Hub, and is checked as a whole.
            program.run(volume.mountpoint)
            volume.until_checked(volume.path(MODEL, bench.commits[MODEL], "model.safetensors"))
        plain = os.path.join(bench.local, "plain-cache")
        repo = f"models--{MODEL.replace('/', '--')}"
        shutil.rmtree(plain, ignore_errors=True)
        shutil.copytree(os.path.join(near.mountpoint, repo), os.path.join(plain, repo), symlinks=True)

        def middle(cache):
            taken = []
            for _ in range(PROGRAMS):
                time.sleep(FORGOTTEN)
                taken.append(program.run(cache))
            return statistics.median(taken)

        caches = [near.mountpoint, plain, *(volume.mountpoint for volume in volumes[1:])]
        for cache in caches:
            program.run(cache)
        samples = bench.rounds([lambda cache=cache: middle(cache) for cache in caches])
        what = "AutoTokenizer and AutoModel" if program.kind == "transformers" else "snapshot, config, tokenizer, weights; no torch"
        note = f"all-MiniLM-L6-v2, {what}; offline, {FORGOTTEN} s after the last; against the same cache in a plain folder"
        bench.compared("from_pretrained", samples[:2], "s", note)
        if redis:
            note = f"each round trip to it takes {LATE_MS} ms longer; against the mount whose Redis is near"
            bench.compared(f"from_pretrained, Redis {LATE_MS} ms away", [samples[2], samples[0]], "s", note)
        second(bench, program, near)


def second(bench, program, volume):
    """What another process that loads the model asks the daemon, and the daemon the metadata, after a pause. Of some the one with
    the least: what others do on this machine, and what keeps a session alive, comes on top by chance."""
    during = Monitor(volume.redis.port).during if volume.redis else unwatched
    asked, sent = [], []
    for _ in range(PROGRAMS):
        idle, _, quiet = during(lambda: time.sleep(FORGOTTEN))
        before = volume.requests()
        commands, _, took = during(lambda: program.run(volume.mountpoint))
        # What is sent while nothing happens is not for it.
        commands = {name: round(count - idle[name] / quiet * (took + 0.3), 1) for name, count in commands.items()}
        sent.append({name: count for name, count in commands.items() if count >= 0.5})
        asked.append(collections.Counter(volume.requests()) - collections.Counter(before))
    note = "of the kernel to the daemon, by another process: "
    fewest(bench, "from_pretrained again: requests", asked, "requests", note)
    if volume.redis:
        fewest(bench, "from_pretrained again: Redis", sent, "commands", "less what is sent while nothing happens: ")


def fewest(bench, name, counts, unit, note):
    least = min(counts, key=lambda by_name: sum(by_name.values()))
    note += ", ".join(f"{name} {count}" for name, count in sorted(least.items()))
    bench.row(name, sum(least.values()), None, unit, note=note)


def unwatched(action):
    action()
    return {}, {}, 1.0
