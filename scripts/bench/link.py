"""Filling at the speed of the link: a Hub that caps each connection and all of them, and answers late."""

import hashlib
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import urllib.parse

from hub import Hub
from process import built
from volume import Volume

# Bytes a second of all connections and of each, and how late an answer begins.
TOTAL, EACH, LATE_MS = 800_000_000, 100_000_000, 20
ONE, SHARDS, SPARSE = "bench/large", "bench/shards", "bench/sparse"
SPARSE_SIZE = 10 << 30
CHUNK = 4 << 20
# Of the bare fetch: connections, and bytes of a request.
CONNECTIONS, RANGE = 16, 16 << 20
# What a loader does between two shards, seconds.
BETWEEN = 0.5


class Link:
    """The files at a Hub of this kind. `drop`: empties the page cache; `measure`: one measurement in its own process."""

    def __init__(self, root, parent, size, drop, measure):
        self.root, self.parent, self.drop, self.measure = root, parent, drop, measure
        self.make(ONE, size, 1)
        self.make(SHARDS, size, 2)
        self.make_sparse()
        options = ("--rate", str(TOTAL), "--conn-rate", str(EACH), "--delay-ms", str(LATE_MS))
        self.hub = Hub(root, *options)
        try:
            self.commits = {repo: self.hub.commit(repo) for repo in (ONE, SHARDS, SPARSE)}
        except BaseException:
            self.close()
            raise

    def close(self):
        self.hub.stop()

    def folder(self, repo):
        return os.path.join(self.root, "models", repo, "main")

    def shards(self, repo):
        return sorted(name for name in os.listdir(self.folder(repo)) if name.endswith(".safetensors"))

    def make(self, repo, size, shards):
        folder = self.folder(repo)
        os.makedirs(folder, exist_ok=True)
        if sum(os.path.getsize(os.path.join(folder, name)) for name in self.shards(repo)) < size:
            print(f"making {shards} safetensors files of {size >> 20} MiB together", file=sys.stderr)
            command = [built("examples", "standin"), "make-model", folder, "--size", str(size), "--shards", str(shards)]
            subprocess.run([*command, "--seed", str(shards)], check=True)

    def make_sparse(self):
        """A file of holes under an invented name: nobody reads so much of it that the name could be checked."""
        folder = self.folder(SPARSE)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "model.safetensors")
        with open(path, "ab") as file:
            file.truncate(SPARSE_SIZE)
        kept = os.path.join(self.root, ".standin-hashes.json")
        hashes = {}
        if os.path.exists(kept):
            with open(kept, encoding="utf-8") as file:
                hashes = json.load(file)
        about = os.stat(path)
        name = hashlib.sha256(b"holes").hexdigest()
        hashes[path] = {"mtime": about.st_mtime_ns, "size": about.st_size, "sha256": True, "hash": name}
        with open(kept, "w", encoding="utf-8") as file:
            json.dump(hashes, file)

    def url(self, repo, name):
        return f"{self.hub.url}/{repo}/resolve/{self.commits[repo]}/{name}"

    def warm(self, repo):
        """The Hub's own files in the page cache: its disk is not what is measured."""
        for name in self.shards(repo):
            with open(os.path.join(self.folder(repo), name), "rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass

    def volume(self):
        return Volume(self.parent, self.hub.url)

    # --- the rows

    def rows(self, turns):
        """Name, ours, native, unit, ratio, note."""
        ones, bare, shards, firsts, chunks = [], [], [], [], []
        for number in turns:
            for turn in random.sample(range(4), 4) if number else range(4):
                match turn:
                    case 0:
                        ones.append(self.fill(ONE))
                    case 1:
                        bare.append(self.ranges(ONE))
                    case 2:
                        shards.append(self.fill(SHARDS))
                    case 3:
                        firsts.append(self.first_byte())
                        chunks.append(self.one_chunk())
        limit = f"{TOTAL // 1_000_000} MB/s in all, {EACH // 1_000_000} a connection, {LATE_MS} ms to an answer"
        ratios = lambda all: [fill["bytes"] / fill["seconds"] / TOTAL for fill in all]  # noqa: E731
        middle = statistics.median
        size, fastest = ones[0]["bytes"], middle(ones[0]["bytes"] / seconds for seconds in bare)
        yield (
            "fill at the link", middle(ratios(ones)) * TOTAL / 1e6, TOTAL / 1e6, "MB/s", middle(ratios(ones)),
            f"{size >> 20} MiB, {limit}; curl by {CONNECTIONS} connections, with nobody who reads, {fastest / 1e6:.0f} MB/s; "
            f"{middle(fill['asked']['connections'] for fill in ones):.0f} connections",
        )  # fmt: skip
        yield (
            "fill at the link, processor", middle(fill["cpu"] for fill in ones), None, "s/GB", None,
            "of the daemon, the check of the whole included",
        )  # fmt: skip
        yield (
            "fill at the link, peak RSS", max(fill["memory"] for fill in ones + shards) / (1 << 20), None, "MiB", None, ""
        )  # fmt: skip
        yield (
            "two shards at the link", middle(ratios(shards)) * TOTAL / 1e6, TOTAL / 1e6, "MB/s", middle(ratios(shards)),
            f"one after the other, {BETWEEN} s between them, which do not count; first byte of the second after "
            f"{middle(fill['first'][1] for fill in shards) * 1e3:.1f} ms; the Hub sent "
            f"{middle(fill['asked']['bytes'] / fill['bytes'] for fill in shards):.2f} times their bytes",
        )  # fmt: skip
        yield (
            "first byte of 10 GiB", middle(firsts) * 1e3, middle(chunks) * 1e3, "ms",
            middle(ours / theirs for ours, theirs in zip(firsts, chunks)),
            f"nothing of it is here; against a bare fetch of one chunk of 4 MiB; {LATE_MS} ms to each of two answers",
        )  # fmt: skip

    # --- what is measured

    def fill(self, repo):
        """All shards of a repository that lie only at the Hub, one after the other through a new mount: seconds, processor
        seconds of the daemon until it has checked them too, its largest memory, and what was asked."""
        volume = self.volume()
        try:
            self.drop()
            self.warm(repo)
            paths = [volume.path(repo, self.commits[repo], name) for name in self.shards(repo)]
            # The names are known: they are another row.
            size = sum(os.stat(path).st_size for path in paths)
            before, asked = volume.cpu_seconds(), self.hub.control("counters")
            taken = self.measure("shards", *paths, between=BETWEEN)
            assert taken["bytes"] == size, taken
            cpu = (settled(volume) - before) / (size / 1e9)
            asked = {name: self.hub.control("counters")[name] - asked[name] for name in ("connections", "bytes")}
            return taken | {"cpu": cpu, "memory": volume.peak_memory(), "asked": asked}
        finally:
            volume.close()

    def ranges(self, repo):
        """Seconds for the bytes of the first shard by as many bare connections as that takes, to files on the same disk."""
        self.drop()
        self.warm(repo)
        name = self.shards(repo)[0]
        size = os.path.getsize(os.path.join(self.folder(repo), name))
        target = os.path.join(self.parent, "by-ranges")
        os.makedirs(target)
        place = get(self.url(repo, name), {"Range": "bytes=0-0"})[1]
        command = ["curl", "--silent", "--fail", "--parallel", "--parallel-immediate", "--parallel-max", str(CONNECTIONS)]
        for start in range(0, size, RANGE):
            part = f"{start}-{min(start + RANGE, size) - 1}"
            command += ["--range", part, "--output", os.path.join(target, part), place, "--next"]
        try:
            began = time.perf_counter()
            subprocess.run(command[:-1], check=True, timeout=900)
            return time.perf_counter() - began
        finally:
            shutil.rmtree(target)

    def first_byte(self):
        """Seconds until a program has the first bytes of a large file of which nothing is here."""
        volume = self.volume()
        try:
            path = volume.path(SPARSE, self.commits[SPARSE], "model.safetensors")
            assert os.stat(path).st_size == SPARSE_SIZE
            return self.measure("first", path)["seconds"]
        finally:
            volume.close()

    def one_chunk(self):
        """Seconds that a bare client needs for one chunk of it: where it lies, and its bytes."""
        began = time.perf_counter()
        with_range = {"Range": f"bytes=0-{CHUNK - 1}"}
        place = get(self.url(SPARSE, "model.safetensors"), with_range)[1]
        assert len(get(place, with_range)[0]) == CHUNK
        return time.perf_counter() - began


def get(url, headers):
    """The body, and where a redirect leads to."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        answer = connection.getresponse()
        return answer.read(), answer.getheader("location")
    finally:
        connection.close()


def settled(volume):
    """Processor seconds of a volume's daemons once they rest."""
    used = volume.cpu_seconds()
    for _ in range(40):
        time.sleep(0.5)
        used, before = volume.cpu_seconds(), used
        if used - before <= 0.02:
            break
    return used
