"""What hfmount costs against the local disk and against a plain download: see scripts/bench.sh --help.

Every figure is the median of interleaved rounds, and what counts is the ratio of two things measured in the same round:
absolute numbers of a shared machine say little. The local side is prepared as well as it can be: caches dropped, then
read once in order, because a file whose pages came in at random reads several times slower afterwards.
"""

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "clients"))

import link  # noqa: E402
import loading  # noqa: E402
import rates  # noqa: E402
import rclone  # noqa: E402
from hub import Hub  # noqa: E402
from machine import machine  # noqa: E402
from process import Failed, built  # noqa: E402
from report import DROPPED, WARM, table  # noqa: E402
from steps import drop_caches, drop_caches_if_root, measure, rate, size, warm_source  # noqa: E402
from volume import Volume  # noqa: E402

LARGE, SMALL = "bench/large", "bench/small"
SECTIONS = ("fill", "link", "warm", "load", "pretrained", "small", "commands", "names", "write")
GROUPS = {"metadata": ("commands", "names")}
GROUPS["data"] = tuple(section for section in SECTIONS if section not in GROUPS["metadata"])
# Parts that a mount of rclone is measured beside.
BESIDE = {"fill", "warm", "small"}
# Minutes that --quick takes at most, a little over for what one round takes.
QUICK = 10


class Bench:
    def __init__(self, options):
        self.options, self.rows = options, []
        self.dir = os.path.join(options.dir, "hfmount-bench")
        self.hub_dir = os.path.join(self.dir, "hub")
        self.local = os.path.join(self.dir, "local")
        os.makedirs(self.local, exist_ok=True)
        self.beside_rclone = rclone.installed() and bool(BESIDE & set(options.sections))

    def run(self):
        if not rclone.installed() and BESIDE & set(self.options.sections):
            print("  rclone is not installed: nothing is measured beside it (scripts/setup.sh rclone)", file=sys.stderr)
        if "load" in self.options.sections and not loading.can_load():
            print("  no safetensors for this Python: load is left out (scripts/setup.sh python)", file=sys.stderr)
            self.options.sections.remove("load")
        self.make_repositories()
        hub = Hub(self.hub_dir, "--rate", self.options.rate)
        wanted = self.options.sections
        try:
            # The first answer hashes the files; that is the Hub's time, not ours.
            self.commits = {repo: hub.commit(repo) for repo in self.repositories}
            if "fill" in wanted or "warm" in wanted:
                self.cold_fill(hub)
            if "link" in wanted:
                with contextlib.closing(link.Link(self.hub_dir, self.dir, self.options.size, drop_caches_if_root, measure)) as slow:
                    for row in slow.rows(self.turns()):
                        self.row(*row)
            if "warm" in wanted or "small" in wanted:
                with contextlib.closing(Volume(self.dir, hub.url)) as volume:
                    if "warm" in wanted:
                        self.warm(volume)
                    if "small" in wanted:
                        self.small_files(volume)
            if "load" in wanted:
                with contextlib.closing(Volume(self.dir, hub.url)) as volume:
                    loading.loads(self, volume)
            if "pretrained" in wanted:
                loading.pretrained(self, hub.url)
            if "commands" in wanted:
                self.redis_commands(hub)
            if "names" in wanted:
                self.names(hub)
            if "write" in wanted:
                with contextlib.closing(Volume(self.dir, hub.url, s3=True)) as volume:
                    for row in rates.writing(volume, self.options.size, self.turns(), measure):
                        self.row(*row)
        finally:
            hub.stop()
            if not self.options.keep:
                shutil.rmtree(self.dir, ignore_errors=True)

    def make_repositories(self):
        wanted, size = set(self.options.sections), self.options.size
        self.repositories = [SMALL]
        self.make_small()
        if {"fill", "warm"} & wanted:
            self.make_model(LARGE, size)
        if "load" in wanted:
            self.make_model(loading.LOADED, 2 * size)
        if "pretrained" in wanted:
            with contextlib.suppress(Failed):
                folder = loading.weights()
                shutil.copytree(folder, self.repository(loading.MODEL), dirs_exist_ok=True)
                self.repositories.append(loading.MODEL)

    def repository(self, repo):
        """What the Hub has of it, a plain folder."""
        return os.path.join(self.hub_dir, "models", repo, "main")

    def make_model(self, repo, size):
        self.repositories.append(repo)
        folder = self.repository(repo)
        path = os.path.join(folder, "model.safetensors")
        if not os.path.exists(path) or os.path.getsize(path) < size:
            print(f"making a safetensors file of {size >> 20} MiB", file=sys.stderr)
            subprocess.run([built("examples", "standin"), "make-model", folder, "--size", str(size)], check=True)

    def make_small(self):
        """Small files at the Hub, and on the local disk in a tree as the mount's: links that lead to blobs."""
        folder, cache = self.repository(SMALL), os.path.join(self.local, f"models--{SMALL.replace('/', '--')}")
        self.local_small = os.path.join(cache, "snapshots", "0" * 40)
        for place in (folder, os.path.join(cache, "blobs"), self.local_small):
            os.makedirs(place, exist_ok=True)
        for number in range(1000):
            name, content = f"file-{number:04}.json", random.Random(number).randbytes(2000)
            blob = hashlib.sha1(content).hexdigest()
            for path in (os.path.join(folder, name), os.path.join(cache, "blobs", blob)):
                with open(path, "wb") as file:
                    file.write(content)
            link = os.path.join(self.local_small, name)
            if not os.path.islink(link):
                os.symlink(f"../../blobs/{blob}", link)

    def row(self, name, ours, theirs, unit, ratio=None, note="", beside=None):
        """One line of the table; `ratio` is given when it is the median of ratios rather than the ratio of medians; `beside`:
        rclone's figure."""
        ratio = ratio if ratio is not None else (ours / theirs if theirs else None)
        figures = {"hfmount": ours, "native": theirs, "rclone": beside}
        self.rows.append({"name": name, **figures, "unit": unit, "ratio": ratio, "note": note})
        print(f"  {name}: {ours:.4g} {unit}" + (f", ratio {ratio:.3f}" if ratio is not None else ""), file=sys.stderr)

    def compared(self, name, samples, unit, note):
        """A line of what was measured in the same rounds: ours, theirs, and rclone's if there is a third."""
        ours, theirs, *third = samples
        ratio = statistics.median(one / other for one, other in zip(ours, theirs))
        medians = [statistics.median(side) for side in (ours, theirs, *third)]
        self.row(name, *medians[:2], unit, ratio, note, *medians[2:])

    def turns(self, parts=1):
        """Counts the rounds of one of `parts` parts of a section: --rounds, or as many as its share of --minutes allows, and
        one at least."""
        limit = None
        if self.options.minutes:
            limit = self.options.minutes * 60 / len(self.options.sections) / parts
        began = time.monotonic()
        for number in range(self.options.rounds):
            taken = time.monotonic() - began
            if number > 0 and limit is not None and taken + taken / number > limit:
                print(f"  {number} rounds instead of {self.options.rounds}: no time for more", file=sys.stderr)
                return
            yield number

    def rounds(self, sides, prepare=None, parts=1):
        """Measures things turn by turn, the order changing; answers the samples of each."""
        samples = [[] for _ in sides]
        for number in self.turns(parts):
            order = list(zip(samples, sides))
            for taken, action in order if number % 2 == 0 else reversed(order):
                if prepare:
                    prepare()
                taken.append(action())
        return samples

    # --- bytes

    def cold_fill(self, hub):
        """A whole file that lies only at the Hub: read through a new mount of a new volume, against curl to the same disk."""
        target = os.path.join(self.local, "by-curl.safetensors")
        url = f"{hub.url}/{LARGE}/resolve/{self.commits[LARGE]}/model.safetensors"
        peaks, written = [], os.path.join(self.repository(LARGE), "model.safetensors")

        def by_curl():
            if os.path.exists(target):
                os.unlink(target)
            self.begin_cold(written)
            began = time.perf_counter()
            subprocess.run(
                ["curl", "--silent", "--fail", "--location", "--output", target, url], check=True, timeout=900
            )
            return time.perf_counter() - began

        def by_mount():
            with contextlib.closing(Volume(self.dir, hub.url)) as volume:
                self.begin_cold(written)
                taken = measure("pread", volume.path(LARGE, self.commits[LARGE], "model.safetensors"))
                assert taken["bytes"] == os.path.getsize(written), taken
                peaks.append(volume.peak_memory())
                return taken["seconds"]

        def by_rclone():
            limit = rate(self.options.rate)
            with contextlib.closing(rclone.Rclone(self.dir, self.repository(LARGE), limit)) as mount:
                self.begin_cold(written)
                return measure("pread", mount.path("model.safetensors"))["seconds"]

        sides = [by_mount, by_curl, *([by_rclone] if self.beside_rclone else [])]
        note = f"curl -o from the same Hub, capped at {self.options.rate} bytes/s"
        self.compared("cold fill", self.rounds(sides), "s", note)
        self.row(
            "daemon peak RSS", max(peaks) / (1 << 20), None, "MiB", note=f"while filling {self.options.size >> 20} MiB"
        )

    def begin_cold(self, source):
        drop_caches_if_root()
        warm_source(source)

    @contextlib.contextmanager
    def mapped_since_before_it_is_filled(self, volume, path):
        """Who maps it while it is filled keeps what he has; the others are served as if he were not there."""
        with open(path, "rb") as early, mmap.mmap(early.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            mapping[0]
            measure("pread", path)
            volume.until_checked(path)
            yield

    def warm(self, volume):
        """The filled file against its copy on the local disk: hot, and with the page cache dropped."""
        path = volume.path(LARGE, self.commits[LARGE], "model.safetensors")
        files = (path, os.path.join(self.local, "by-curl.safetensors"))
        with self.mapped_since_before_it_is_filled(volume, path):
            self.against_local(files, "pread", "warm pread, old mapping", parts=self.warm_parts())
        with self.filled_by_rclone(LARGE, "model.safetensors") as beside:
            files += beside
            for kind, title in WARM.items():
                self.against_local(files, kind, f"warm {title}", parts=self.warm_parts())
            note = "after all warm reads; it answers opens, and the kernel reads by itself"
            self.row("daemon RSS, warm reads", volume.memory() / (1 << 20), None, "MiB", note=note)
            if os.geteuid() != 0:
                print("  not root: reads with the page cache dropped are left out", file=sys.stderr)
                return
            for kind, title in DROPPED.items():
                self.against_local(files, kind, f"dropped {title}", dropped=True, parts=self.warm_parts())

    def warm_parts(self):
        return len(WARM) + len(DROPPED) + 1

    @contextlib.contextmanager
    def filled_by_rclone(self, repo, *names):
        """The paths of files in a mount of rclone, all of them in its cache; none if it is not there."""
        if not self.beside_rclone:
            yield ()
            return
        with contextlib.closing(rclone.Rclone(self.dir, self.repository(repo))) as mount:
            paths = tuple(mount.path(name) for name in names)
            for path in paths:
                if os.path.isfile(path):
                    measure("pread", path)
            yield paths

    def against_local(self, files, kind, title, dropped=False, parts=1):
        """A way of reading a file of the mount against the same on the local disk, and through rclone."""
        if not dropped:
            drop_caches_if_root()
            # Pages that came in at random are slower ever after.
            for file in reversed(files):
                measure("pread", file)

        def speed(file):
            taken = measure(kind, file)
            return taken["bytes"] / taken["seconds"] / 1e9

        sides = [lambda file=file: speed(file) for file in files]
        samples = self.rounds(sides, prepare=drop_caches if dropped else None, parts=parts)
        note = "page cache dropped, read from the disk cache" if dropped else "in the kernel's page cache"
        self.compared(title, samples, "GB/s", note)

    # --- names

    def small_files(self, volume):
        folder = os.path.dirname(volume.path(SMALL, self.commits[SMALL], "x"))
        with self.filled_by_rclone(SMALL, "") as beside:
            folders = (folder, self.local_small, *beside)
            for kind in ("stat", "open_read"):
                for place in folders:
                    measure(kind, place)
            for kind, title in (("stat", "stat"), ("open_read", "open+read+close 2 KB")):
                for lap, note in (("first", "nothing in the kernel"), ("again", "all in the kernel")):

                    def one(path, kind=kind, lap=lap):
                        if lap == "first":
                            drop_caches_if_root()
                        return measure(kind, path)[lap]["median"] * 1e6

                    samples = self.rounds([lambda path=path: one(path) for path in folders], parts=4)
                    self.compared(f"{title}, {lap}", samples, "µs", f"each of 1,000 files by links; {note}")

    def redis_commands(self, hub):
        """Commands sent to the metadata engine for each operation: a count, the same on every machine."""
        from commands import per_operation

        volume = Volume(self.dir, hub.url, redis=True)
        try:
            for name, sent, scripted in per_operation(volume, SMALL, self.commits[SMALL]):
                which = ", ".join(f"{command} {count:.2f}" for command, count in sorted(sent.items()))
                inside = sum(scripted.values())
                note = which + (f"; {inside:.2f} inside scripts" if inside else "")
                self.row(f"Redis: {name}", sum(sent.values()), None, "commands", note=note)
        finally:
            volume.close()

    def names(self, hub):
        """Names made, looked at and removed by many tasks, on several mounts, and by nodes in one process."""
        local = os.path.join(self.local, "names")
        os.makedirs(local, exist_ok=True)
        with contextlib.closing(Volume(self.dir, hub.url, redis=True, mounts=rates.MOUNTS)) as volume:
            # Two thirds of the time for the first.
            for row in rates.measure(volume, local, self.turns(1.5), self.options.share):
                self.row(*row)
            for row in rates.in_process(volume, self.turns(3), self.options.share):
                self.row(*row)

    # --- the answer

    def machine(self):
        about = machine(self.dir, built("", "hfmount"))
        return about | {"rounds": self.options.rounds, "size": self.options.size}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default="/var/tmp", help="a folder on a real disk; the mounts and files lie below it")
    parser.add_argument(
        "sections", nargs="*", metavar="PART",
        help=f"some of {', '.join(SECTIONS)} (warm brings fill with it), or metadata (commands, names), or data (the rest); "
        "without any: all",
    )  # fmt: skip
    parser.add_argument("--size", type=size, help="of the files that are read and written (1G; --quick: 256M)")
    parser.add_argument("--rounds", type=int, help="of each measurement (5; --quick: 3)")
    parser.add_argument(
        "--minutes", type=float, help=f"shared out between the parts: no round begins that would take longer ({QUICK} with --quick)"
    )
    parser.add_argument("--quick", action="store_true", help=f"smaller files, fewer names and rounds: {QUICK} minutes")
    parser.add_argument("--rate", default="400MB", help="bytes per second that the stand-in Hub sends (400MB)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--skip-redis", action="store_true", help="without what needs Redis: commands, names")
    parser.add_argument("--keep", action="store_true", help="keep the files for the next run")
    options = parser.parse_args()
    wanted = set()
    for part in options.sections or SECTIONS:
        if part not in GROUPS and part not in SECTIONS:
            parser.error(f"no such part: {part} ({', '.join((*SECTIONS, *GROUPS))})")
        wanted.update(GROUPS.get(part, [part]))
    if options.skip_redis:
        wanted -= set(GROUPS["metadata"])
    options.sections = [part for part in SECTIONS if part in wanted]
    options.size = options.size or size("256M" if options.quick else "1G")
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.minutes = options.minutes or (QUICK if options.quick else None)
    # Of the operations that a full run counts.
    options.share = 0.5 if options.quick else 1.0
    bench = Bench(options)
    about = bench.machine()
    bench.run()
    print(table(about, bench.rows))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": about, "figures": bench.rows}, file, indent=1)


if __name__ == "__main__":
    main()
