"""What is to be reached, and the table that says whether it was."""

import re

import rates

# Ways of reading a file that is filled: what measure.py calls them, and the table.
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
    "daemon RSS, warm reads": (128.0, "at most"),
    "daemon peak RSS, writing": (200.0, "at most"),
    "safetensors load_file": (0.95, "at least"),
    "safetensors load_file, old mapping": (0.90, "at least"),
    "from_pretrained": (1.05, "at most"),
    "from_pretrained, Redis 1 ms away": (1.05, "at most"),
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
# Times of one call, microseconds, whatever the native one takes.
P50_MAX = {"open+read+close 2 KB, again": 12.0}
# No row's slowest hundredth may take longer, microseconds: as many waiters as tasks, each for a few round trips.
P99_MAX = 50_000


def table(about, rows):
    """Markdown. A column for rclone only where it was measured."""
    beside = any(row["rclone"] is not None for row in rows)
    lines = [f"{about['version']} on {about['cpu']}, {about['memory']}, Linux {about['kernel']}, {about['disk']}, "
             f"{about['date']}; medians of {about['rounds']} interleaved rounds", ""]  # fmt: skip
    heads = ["what", "hfmount", "native", "ratio", *(["rclone"] if beside else []), ""]
    lines += [line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["name"], figure(row, "hfmount"), figure(row, "native")]
        cells.append("" if row["ratio"] is None else f"**{row['ratio']:.3f}**")
        cells += [figure(row, "rclone")] if beside else []
        lines.append(line([*cells, "; ".join(filter(None, [row["note"], *verdicts(row)]))]))
    return "\n".join(lines)


def line(cells):
    return "| " + " | ".join(cells) + " |"


def figure(row, whose):
    return "" if row[whose] is None else f"{row[whose]:.4g} {row['unit']}"


def verdicts(row):
    """What was to be reached, and whether it was."""
    if row["name"] in TARGETS:
        bound, how = TARGETS[row["name"]]
        value = row["ratio"] if row["ratio"] is not None else row["hfmount"]
        met = value <= bound if how == "at most" else value >= bound
        yield f"to reach: {how} {bound:g}, {'reached' if met else 'MISSED'}"
    if row["name"] in P50_MAX:
        bound = P50_MAX[row["name"]]
        yield f"to reach: at most {bound:g} µs, {'reached' if row['hfmount'] <= bound else 'MISSED'}"
    tail = re.search(r"p99 (\d+) µs", row["note"])
    if row["ratio"] is not None and tail and int(tail[1]) > P99_MAX:
        yield f"p99 to reach: at most {P99_MAX} µs, MISSED"
