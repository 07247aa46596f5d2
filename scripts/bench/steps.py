"""The steps of a measurement: one in a process of its own, and what it begins with."""

import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def measure(kind, *paths, between=0):
    command = [sys.executable, os.path.join(HERE, "measure.py"), kind, *paths]
    env = os.environ | {"BENCH_BETWEEN": str(between)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, env=env).stdout)


def drop_caches():
    """Everything clean out of the page cache, and names with it; needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as knob:
        knob.write("3\n")


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


def size(text):
    units = {"K": 10, "M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1].upper()] if text[-1].upper() in units else int(text)


def rate(text):
    """Bytes a second, as the stand-in Hub reads them: 400MB, 64MiB."""
    number, unit, binary = re.fullmatch(r"(\d+)\s*([kmg]?)(i?)b?", text.lower()).groups()
    return int(number) * (1024 if binary else 1000) ** ["", "k", "m", "g"].index(unit)
