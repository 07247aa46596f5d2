"""What hfmount costs against the local disk and against a plain download: see scripts/bench.sh --help.

Every figure is the median of interleaved rounds, and what counts is the ratio of two things measured in the same round:
absolute numbers of a shared machine say little. The local side is prepared as well as it can be: caches dropped, then
read once in order, because a file whose pages came in at random reads several times slower afterwards.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "clients"))

import link  # noqa: E402
import rates  # noqa: E402
from hub import Hub  # noqa: E402
from machine import machine  # noqa: E402
from process import built  # noqa: E402
from volume import Volume  # noqa: E402

LARGE, SMALL = "bench/large", "bench/small"
# Ways of reading a file that is filled: what `measure` calls them, and the table.
WARM = {
    "pread": "pread",
    "pread_small": "pread 128 KiB",
    "mapped": "mmap copy",
    "touched": "mmap touch",
    "crowded": "pread, 16 threads",
}
DROPPED = {"pread": "pread", "mapped": "mmap copy", "scattered": "random 4 KiB"}
TARGETS = {
    "cold fill": (1.10, "at most"),
    **{f"warm {what}": (0.95, "at least") for what in WARM.values()},
    "warm pread, old mapping": (0.90, "at least"),
    **{f"dropped {what}": (0.90, "at least") for what in DROPPED.values()},
    "daemon peak RSS": (200.0, "at most"),
    "daemon peak RSS, writing": (200.0, "at most"),
    "sequential write": (0.8, "at least"),
    "fill at the link": (0.9, "at least"),
    "fill at the link, processor": (1.5, "at most"),
    "fill at the link, peak RSS": (256.0, "at most"),
    "two shards at the link": (0.9, "at least"),
    "first byte of 10 GiB": (1.3, "at most"),
    **{
        f"{kind}, {where}": (0.8, "at least")
        for kind in rates.MAKES.values()
        for where in ("4 tasks on 4 mounts", "16 tasks on 4 mounts", "16 tasks on 16 nodes in one process")
    },
}
# No row's slowest hundredth may take longer, microseconds: as many waiters as tasks, each for a few round trips.
P99_MAX = 50_000
SECTIONS = ("fill", "link", "warm", "small", "commands", "names", "write")
GROUPS = {"metadata": ("commands", "names"), "data": ("fill", "link", "warm", "small", "write")}
# Minutes that --quick takes at most, a little over for what one round takes.
QUICK = 10


def measure(kind, *paths, between=0):
    command = [sys.executable, os.path.join(HERE, "measure.py"), kind, *paths]
    env = os.environ | {"BENCH_BETWEEN": str(between)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, env=env).stdout)


def drop_caches():
    """Everything clean out of the page cache, and names with it; needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as knob:
        knob.write("3\n")


class Bench:
    def __init__(self, options):
        self.options, self.rows = options, []
        self.dir = os.path.join(options.dir, "hfmount-bench")
        self.hub_dir = os.path.join(self.dir, "hub")
        self.local = os.path.join(self.dir, "local")
        os.makedirs(self.local, exist_ok=True)

    def run(self):
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
        size = self.options.size
        self.repositories = [SMALL]
        self.make_small()
        if not {"fill", "warm"} & set(self.options.sections):
            return
        self.repositories.append(LARGE)
        large = os.path.join(self.hub_dir, "models", LARGE, "main")
        path = os.path.join(large, "model.safetensors")
        if not os.path.exists(path) or os.path.getsize(path) < size:
            print(f"making a safetensors file of {size >> 20} MiB", file=sys.stderr)
            subprocess.run([built("examples", "standin"), "make-model", large, "--size", str(size)], check=True)

    def make_small(self):
        for folder in (os.path.join(self.hub_dir, "models", SMALL, "main"), os.path.join(self.local, "small")):
            os.makedirs(folder, exist_ok=True)
            for number in range(1000):
                with open(os.path.join(folder, f"file-{number:04}.json"), "wb") as file:
                    file.write(random.Random(number).randbytes(2000))

    def row(self, name, ours, theirs, unit, ratio=None, note=""):
        """One line of the table; `ratio` is given when it is the median of ratios rather than the ratio of medians."""
        ratio = ratio if ratio is not None else (ours / theirs if theirs else None)
        self.rows.append({"name": name, "hfmount": ours, "native": theirs, "unit": unit, "ratio": ratio, "note": note})
        print(f"  {name}: {ours:.4g} {unit}" + (f", ratio {ratio:.3f}" if ratio is not None else ""), file=sys.stderr)

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

    def rounds(self, pairs, prepare=None, parts=1):
        """Measures two things turn by turn, the order changing; answers the medians of both and of their ratios."""
        ours, theirs = [], []
        for number in self.turns(parts):
            order = [(0, pairs[0]), (1, pairs[1])]
            for side, action in order if number % 2 == 0 else reversed(order):
                if prepare:
                    prepare()
                (ours, theirs)[side].append(action())
        ratios = [one / other for one, other in zip(ours, theirs)]
        return statistics.median(ours), statistics.median(theirs), statistics.median(ratios)

    # --- bytes

    def cold_fill(self, hub):
        """A whole file that lies only at the Hub: read through a new mount of a new volume, against curl to the same disk."""
        target = os.path.join(self.local, "by-curl.safetensors")
        url = f"{hub.url}/{LARGE}/resolve/{self.commits[LARGE]}/model.safetensors"
        peaks, written = [], os.path.join(self.hub_dir, "models", LARGE, "main", "model.safetensors")

        def by_curl():
            if os.path.exists(target):
                os.unlink(target)
            drop_caches_if_root()
            warm_source(written)
            began = time.perf_counter()
            subprocess.run(
                ["curl", "--silent", "--fail", "--location", "--output", target, url], check=True, timeout=900
            )
            return time.perf_counter() - began

        def by_mount():
            volume = Volume(self.dir, hub.url)
            try:
                drop_caches_if_root()
                warm_source(written)
                taken = measure("pread", volume.path(LARGE, self.commits[LARGE], "model.safetensors"))
                assert taken["bytes"] == os.path.getsize(written), taken
                peaks.append(volume.peak_memory())
                return taken["seconds"]
            finally:
                volume.close()

        ours, theirs, ratio = self.rounds((by_mount, by_curl))
        self.row(
            "cold fill", ours, theirs, "s", ratio, f"curl -o from the same Hub, capped at {self.options.rate} bytes/s"
        )
        self.row(
            "daemon peak RSS", max(peaks) / (1 << 20), None, "MiB", note=f"while filling {self.options.size >> 20} MiB"
        )

    def warm(self, volume):
        """The filled file against its copy on the local disk: hot, and with the page cache dropped."""
        path = volume.path(LARGE, self.commits[LARGE], "model.safetensors")
        local = os.path.join(self.local, "by-curl.safetensors")
        # Who maps it while it is filled keeps what he has; the others are served as if he were not there.
        with open(path, "rb") as early, mmap.mmap(early.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            mapping[0]
            measure("pread", path)
            # Until it is checked as a whole.
            time.sleep(3)
            self.against_local((path, local), "pread", "warm pread, old mapping", False)
        for kind, title in WARM.items():
            self.against_local((path, local), kind, f"warm {title}", False)
        if os.geteuid() != 0:
            print("  not root: reads with the page cache dropped are left out", file=sys.stderr)
            return
        for kind, title in DROPPED.items():
            self.against_local((path, local), kind, f"dropped {title}", True)

    def against_local(self, files, kind, title, dropped):
        """A way of reading a file of the mount against the same on the local disk."""
        if not dropped:
            drop_caches_if_root()
            # Pages that came in at random are slower ever after.
            for file in reversed(files):
                measure("pread", file)

        def speed(file):
            taken = measure(kind, file)
            return taken["bytes"] / taken["seconds"] / 1e9

        turns = [lambda file=file: speed(file) for file in files]
        parts = len(WARM) + len(DROPPED) + 1
        ours, theirs, ratio = self.rounds(turns, prepare=drop_caches if dropped else None, parts=parts)
        note = "page cache dropped, read from the disk cache" if dropped else "in the kernel's page cache"
        self.row(title, ours, theirs, "GB/s", ratio, note)

    # --- names

    def small_files(self, volume):
        folder = os.path.dirname(volume.path(SMALL, self.commits[SMALL], "x"))
        local = os.path.join(self.local, "small")
        for kind in ("stat", "open_read"):
            measure(kind, folder)
        for kind, title in (("stat", "stat"), ("open_read", "open+read+close 2 KB")):
            for lap, note in (("first", "nothing in the kernel"), ("again", "all in the kernel")):

                def one(path, kind=kind, lap=lap):
                    if lap == "first":
                        drop_caches_if_root()
                    return measure(kind, path)[lap]["median"] * 1e6

                ours, theirs, ratio = self.rounds([lambda path=path: one(path) for path in (folder, local)], parts=4)
                self.row(f"{title}, {lap}", ours, theirs, "µs", ratio, f"each of 1,000 files; {note}")

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


def drop_caches_if_root():
    if os.geteuid() == 0:
        drop_caches()
    else:
        os.sync()


def warm_source(path):
    """The Hub's own file in the page cache: its disk is not what is measured."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def table(about, rows):
    lines = [f"{about['version']} on {about['cpu']}, {about['memory']}, Linux {about['kernel']}, {about['disk']}, "
             f"{about['date']}; medians of {about['rounds']} interleaved rounds", ""]  # fmt: skip
    lines += ["| what | hfmount | native | ratio | |", "|---|---|---|---|---|"]
    for row in rows:
        native = "" if row["native"] is None else f"{row['native']:.4g} {row['unit']}"
        ratio = "" if row["ratio"] is None else f"**{row['ratio']:.3f}**"
        note = row["note"]
        if row["name"] in TARGETS:
            bound, how = TARGETS[row["name"]]
            value = row["ratio"] if row["ratio"] is not None else row["hfmount"]
            met = value <= bound if how == "at most" else value >= bound
            note += f"; to reach: {how} {bound:g}, {'reached' if met else 'MISSED'}"
        tail = re.search(r"p99 (\d+) µs", note)
        if row["ratio"] is not None and tail and int(tail[1]) > P99_MAX:
            note += f"; p99 to reach: at most {P99_MAX} µs, MISSED"
        lines.append(f"| {row['name']} | {row['hfmount']:.4g} {row['unit']} | {native} | {ratio} | {note} |")
    return "\n".join(lines)


def size(text):
    units = {"K": 10, "M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1].upper()] if text[-1].upper() in units else int(text)


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
