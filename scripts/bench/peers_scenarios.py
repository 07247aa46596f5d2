"""What is done with the nodes of a run, and what is counted of it: one dictionary of figures for each."""

import math
import os
import time

CHUNK = 4 << 20
# A dead node's transfers from the Hub that others have to begin anew: one segment of the largest size.
SEGMENT = 16 * CHUNK
# After this long a frozen daemon goes on.
FROZEN = 30.0
FAULT_AT = 0.4


def at_once(run, kind="sequential", **how):
    """All nodes read all files."""
    return collect(run, run.read(kind, **how))


def mapped(run):
    return at_once(run, "mapped")


def staggered(run):
    """One node after the other begins, half a second apart."""
    return at_once(run, stagger=0.5)


def again(run):
    """All nodes read all files a second time, with what the kernel holds of them dropped."""
    first = collect(run, run.read("sequential"))
    if first["errors"]:
        return first
    before = processor(run)
    run.drop_caches()
    figures = collect(run, run.read("sequential"), spent=before)
    return figures


def beside(run):
    """One node has read the first file; then all others read it."""
    names = list(run.cluster.model)[:1]
    filled = collect(run, run.read("sequential", run.nodes[:1], names))
    if filled["errors"] or len(run.nodes) == 1:
        return filled
    figures = collect(run, run.read("sequential", run.nodes[1:], names), spent=processor(run))
    return figures | {"fill": filled["seconds"]}


def slow_hub(run):
    """All nodes read the first file."""
    return at_once(run, names=list(run.cluster.model)[:1])


def killed(run):
    """The first node's daemon is killed (-9) when its reader has 40 %."""
    readers = run.read("sequential")
    at_share(readers[0])
    run.nodes[0].kill()
    return collect(run, readers, without=readers[:1])


def frozen(run):
    """The first node's daemon is stopped when its reader has 40 %, and goes on after 30 s, or when the others are done."""
    readers = run.read("sequential")
    at_share(readers[0])
    run.nodes[0].process.freeze()
    until, limit = time.monotonic() + FROZEN, deadline(run)
    while time.monotonic() < until and not all(reader.done() for reader in readers[1:]):
        time.sleep(0.05)
    run.nodes[0].process.thaw()
    late = readers[0].result(limit)
    figures = collect(run, readers, without=readers[:1])
    figures["errors"] += [f"the frozen node's reader: {late['error']}"] if late["error"] else []
    figures["wrong"] += late["wrong"]
    return figures | {"late": late.get("seconds")}


def at_share(reader):
    while not reader.done() and reader.share() < FAULT_AT:
        time.sleep(0.02)


def deadline(run):
    """When readers are given up: long after the slowest link could have brought everything once for each node."""
    options = run.cluster.options
    rate = min(options.hub_rate, run.hub_link or options.link, options.connection_rate)
    return time.monotonic() + 60 + 4 * options.size * len(run.nodes) / rate


def processor(run):
    return sum(node.measure()[0] for node in run.nodes)


def collect(run, readers, without=(), spent=0.0):
    """Waits for the readers; `without`: those of whom nothing is expected; `spent`: processor time that was before."""
    limit = deadline(run)
    counted = [reader for reader in readers if reader not in without]
    results = [reader.result(limit) for reader in counted]
    # What the daemons do when nobody reads any more is theirs too: uploads.
    hub, bucket = run.settle(60)
    label = "models/bench/model/"
    size = readers[0].total
    paths = {name: hub["paths"].get(label + name, {}) for name in readers[0].names}
    seconds = [result["seconds"] for result in results if "seconds" in result]
    first = sorted(value for result in results for value in result["first"])
    delivered = sum(result.get("bytes", 0) for result in results)
    resolves = [path["resolves"] for path in paths.values() if "resolves" in path]
    if not resolves:
        asked = hub["requests"].get("resolve_head", 0) + hub["requests"].get("resolve_get", 0)
        resolves = [asked / len(paths)]
    return {
        "nodes": len(run.nodes),
        "peers": run.peers,
        "bytes": size,
        "origin": sum(path.get("bytes", 0) for path in paths.values()) / size,
        "resolves": max(resolves),
        "seconds": max(seconds, default=None),
        "fastest": min(seconds, default=None),
        "first_p50": rank(first, 0.5),
        "first_p99": rank(first, 0.99),
        "processor": (processor(run) - spent) / (delivered / 1e9) if delivered else None,
        "memory": max(node.measure()[1] for node in run.nodes),
        "put": bucket["bytes_in"] / max(size, brought(run, hub, label)),
        "got": bucket["bytes"] / size,
        "statuses": {key: count for key, count in hub["statuses"].items() if not key.startswith(("2", "3"))},
        "twice": twice(hub["ranges"], label),
        "errors": [f"node {reader.node.number}: {result['error']}"
                   for reader, result in zip(counted, results) if result["error"]],
        "wrong": [place for result in results for place in result["wrong"]],
    }  # fmt: skip


def brought(run, hub, label):
    """Bytes of the model that left the Hub, each once: the files that follow those that are read come too."""
    sent = {name: hub["paths"].get(label + name, {}).get("bytes", 0) for name in run.cluster.model}
    return sum(min(sent[name], os.path.getsize(source)) for name, source in run.cluster.model.items())


def rank(values, share):
    """The smallest value that at least this share of all does not exceed."""
    return values[max(0, math.ceil(len(values) * share) - 1)] if values else None


def twice(ranges, label):
    """Bytes of the model that the Hub sent more than once, by file: where to look when the origin ratio is above one."""
    found = {}
    for name in {transfer["path"] for transfer in ranges if transfer["path"].startswith(label)}:
        reached = extra = 0
        for start, end in sorted(
            (transfer["start"], transfer["start"] + transfer["sent"]) for transfer in ranges if transfer["path"] == name
        ):
            extra += max(0, min(end, reached) - start)
            reached = max(reached, end)
        if extra:
            found[name.removeprefix(label)] = extra
    return found
