"""Names per second: how many files are made, looked at and removed in one directory, by how many tasks, on how many mounts.

What it is compared with is measured in the same rounds: the same on the local disk, and what a script that does nothing
costs on the same Redis.
"""

import json
import os
import re
import shutil
import statistics
import subprocess

from process import built

TASKS = (1, 4, 16)
MOUNTS = 4
NODES = (4, 16)
# Operations of all tasks together.
COUNT = {1: 2000, 4: 4000, 16: 8000}
KINDS = ("create", "stat", "unlink")
MAKES = {"create": "creates", "stat": "stats", "unlink": "unlinks"}


def rates(*arguments):
    """What `rates` (benches/rates) measured."""
    command = [built("examples", "rates"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr}")
    return json.loads(done.stdout)


def apart(redis, tasks, processes, count):
    """As `rates evalsha`, the tasks shared out between processes, as mounts are: what all of them did together."""
    command = [built("examples", "rates"), "evalsha", "--redis", redis]
    command += ["--tasks", str(tasks // processes), "--count", str(count // processes)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    taken = [json.loads(process.communicate(timeout=900)[0]) for process in running]
    worst = {value: max(one[value] for one in taken) for value in ("p50", "p99")}
    return worst | {"rate": sum(one["rate"] for one in taken)}


def forget_names():
    """Names and attributes out of the kernel, so that a stat asks; needs root."""
    if os.geteuid() == 0:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as knob:
            knob.write("2\n")


class Names:
    """All kinds of operations in a directory that several paths lead to."""

    def __init__(self, volume, share):
        self.volume, self.share, self.number = volume, share, 0

    def once(self, roots, tasks, redis=False):
        """kind -> what was measured; on Redis also how often it ran which command, and how long a script took."""
        self.number += 1
        name = f"names-{self.number}"
        os.mkdir(os.path.join(roots[0], name))
        taken = {}
        for kind in KINDS:
            if kind == "stat":
                forget_names()
            if redis:
                self.volume.redis_cli("config", "resetstat")
                before = self.volume.cpu_seconds()
            directories = [os.path.join(root, name) for root in roots]
            count = max(tasks, int(COUNT[tasks] * self.share))
            taken[kind] = rates("names", kind, *directories, "--tasks", tasks, "--count", count)
            if redis:
                taken[kind]["cpu"] = (self.volume.cpu_seconds() - before) / taken[kind]["count"] * 1e6
                taken[kind] |= self.commands(taken[kind]["count"])
        os.rmdir(os.path.join(roots[0], name))
        return taken

    def commands(self, count):
        """By the server's own account, what scripts do inside included; microseconds of the server for each script."""
        stats = self.volume.redis_cli("info", "commandstats")
        each = {}
        calls = {}
        for command, number, usec in re.findall(r"cmdstat_([a-z|]+):calls=(\d+),usec=\d+,usec_per_call=([\d.]+)", stats):
            if not command.startswith(("config", "info", "client")):
                calls[command], each[command] = int(number) / count, float(usec)
        return {"commands": calls, "scripts": calls.get("evalsha", 0.0), "server": each.get("evalsha", 0.0)}


def median(samples, kind, value):
    return statistics.median(sample[kind][value] for sample in samples)


def measure(volume, local, rounds, share):
    """Yields rows: (name, ours, theirs, unit, ratio, note)."""
    names = Names(volume, share)
    url = f"redis://127.0.0.1:{volume.redis.port}/0"
    one, four, disk, bare, split = {}, {}, {}, {}, {}
    for number in rounds:
        for tasks in TASKS:
            steps = [
                lambda t=tasks: disk.setdefault(t, []).append(names.once([local], t)),
                lambda t=tasks: one.setdefault(t, []).append(names.once(volume.mountpoints[:1], t, redis=True)),
                lambda t=tasks: bare.setdefault(t, []).append(
                    {"evalsha": rates("evalsha", "--redis", url, "--tasks", t, "--count", 20_000)}
                ),
            ]
            if tasks >= MOUNTS:
                steps.append(lambda t=tasks: four.setdefault(t, []).append(names.once(volume.mountpoints, t, redis=True)))
                steps.append(
                    lambda t=tasks: split.setdefault(t, []).append({"evalsha": apart(url, t, MOUNTS, 40_000)})
                )
            for step in steps if number % 2 == 0 else reversed(steps):
                step()

    for tasks in TASKS:
        bare_rate, bare_p50 = (median(bare[tasks], "evalsha", value) for value in ("rate", "p50"))
        note = f"one connection; p50 {bare_p50:.0f} µs, p99 {median(bare[tasks], 'evalsha', 'p99'):.0f} µs"
        yield f"bare EVALSHA, {many(tasks, 'task')}", bare_rate, None, "/s", None, note
        for kind in KINDS:
            yield row(kind, tasks, one[tasks], disk[tasks], bare_p50)
    for kind in KINDS:
        calls = one[1][-1][kind]["commands"]
        note = ", ".join(f"{command} {number:.2f}" for command, number in sorted(calls.items()) if number >= 0.005)
        sent = median(one[1], kind, "scripts")
        yield f"Redis: {kind}, one task", sent, None, "scripts", None, f"by INFO commandstats, inside scripts too: {note}"
    for tasks in TASKS:
        if tasks in split:
            both = zip(split[tasks], bare[tasks])
            ratio = statistics.median(s["evalsha"]["rate"] / o["evalsha"]["rate"] for s, o in both)
            note = f"a connection each, against one process with one; {tails(split[tasks], 'evalsha')}"
            name = f"bare EVALSHA, {tasks} tasks in {MOUNTS} processes"
            rates_of = (median(split[tasks], "evalsha", "rate"), median(bare[tasks], "evalsha", "rate"))
            yield name, *rates_of, "/s", ratio, note
        for kind in KINDS if tasks in four else ():
            ratio = statistics.median(f[kind]["rate"] / o[kind]["rate"] for f, o in zip(four[tasks], one[tasks]))
            note = f"against one mount with as many tasks; {tails(four[tasks], kind)}"
            name = f"{MAKES[kind]}, {tasks} tasks on {MOUNTS} mounts"
            rate = median(four[tasks], kind, "rate")
            yield name, rate, median(one[tasks], kind, "rate"), "/s", ratio, note


def row(kind, tasks, ours, theirs, bare):
    ratio = statistics.median(o[kind]["rate"] / t[kind]["rate"] for o, t in zip(ours, theirs))
    note = f"against ext4; {tails(ours, kind)}"
    if tasks == 1:
        note += f"; p50 is {median(ours, kind, 'p50') / bare:.1f} bare EVALSHA"
    return (
        f"{MAKES[kind]}, {many(tasks, 'task')}",
        median(ours, kind, "rate"),
        median(theirs, kind, "rate"),
        "/s",
        ratio,
        note,
    )


def tails(samples, kind):
    p50, p99 = (median(samples, kind, value) for value in ("p50", "p99"))
    text = f"p50 {p50:.0f} µs, p99 {p99:.0f} µs"
    if "scripts" in samples[0][kind]:
        text += f"; {median(samples, kind, 'scripts'):.2f} EVALSHA of {median(samples, kind, 'server'):.1f} µs each"
        text += f"; {median(samples, kind, 'cpu'):.0f} µs of processor in the daemons and Redis"
    elif "cpu" in samples[0][kind]:
        text += f"; {median(samples, kind, 'cpu'):.0f} µs of processor here and in Redis"
    return text


def many(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_process(volume, rounds, share):
    """Yields rows for nodes in one process: 16 against 4, with as many tasks."""
    url = f"redis://127.0.0.1:{volume.redis.port}/1"
    samples = {nodes: [] for nodes in NODES}
    count = int(8000 * share)
    for number in rounds:
        for nodes in NODES if number % 2 == 0 else reversed(NODES):
            samples[nodes].append(rates("nodes", "--redis", url, "--nodes", nodes, "--tasks", 16, "--count", count))
    few, lots = (samples[nodes] for nodes in NODES)
    for kind in KINDS:
        ratio = statistics.median(m[kind]["rate"] / f[kind]["rate"] for m, f in zip(lots, few))
        note = f"against {NODES[0]} nodes with as many tasks, and {median(few, kind, 'cpu'):.0f} µs; {tails(lots, kind)}"
        name = f"{MAKES[kind]}, 16 tasks on {NODES[1]} nodes in one process"
        yield name, median(lots, kind, "rate"), median(few, kind, "rate"), "/s", ratio, note


def writing(volume, size, rounds, measured):
    """Yields rows for a file written in order through the mount until it is stored, against the same bytes put straight into
    the store.

    `measured(kind, path)` runs one measurement of measure.py.
    """
    os.environ["BENCH_SIZE"] = str(size)
    keys = {key: value for key, value in volume.env.items() if key.startswith("AWS_")}
    store = os.path.join(volume.dir, "store", "volumes")
    processor = []

    def by_mount():
        path = os.path.join(volume.mountpoint, "written")
        before = volume.cpu_seconds()
        taken = measured("write", path)
        processor.append(volume.cpu_seconds() - before)
        os.unlink(path)
        clean(os.path.join(store, "bench", "bench", "chunks"))
        return taken["seconds"]

    def by_client():
        command = [built("examples", "rates"), "puts", "--bucket", "volumes", "--endpoint", volume.s3.url]
        command += ["--count", str(max(1, size >> 22))]
        done = subprocess.run(command, env=os.environ | keys, check=True, capture_output=True, text=True, timeout=900)
        clean(os.path.join(store, "puts"))
        return json.loads(done.stdout)["seconds"]

    def clean(folder):
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()

    ours, theirs = [], []
    for number in rounds:
        sides = [(ours, by_mount), (theirs, by_client)]
        for samples, action in sides if number % 2 == 0 else reversed(sides):
            samples.append(size / 1e6 / action())
    ratio = statistics.median(one / other for one, other in zip(ours, theirs))
    note = f"{size >> 20} MiB until fsync and close answered, against object_store puts of 4 MiB, 8 at once; "
    note += f"{statistics.median(processor):.2f} s of processor in the daemon and the server"
    yield "sequential write", statistics.median(ours), statistics.median(theirs), "MB/s", ratio, note
    peak = volume.peak_memory() / (1 << 20)
    yield "daemon peak RSS, writing", peak, None, "MiB", None, f"while writing {size >> 20} MiB, again and again"
