"""One measurement in a process of its own: python measure.py KIND PATH..., seconds and counts as JSON.

Only what is measured is timed: the interpreter is up, and buffers are touched before.
"""

import json
import mmap
import os
import random
import sys
import threading
import time

MIB = 1 << 20


def pread(path, piece=MIB):
    """The whole file in order, `piece` bytes at a time into one buffer."""
    buffer = bytearray(piece)
    started = time.perf_counter()
    file = os.open(path, os.O_RDONLY)
    offset = os.preadv(file, [buffer], 0)
    first = time.perf_counter() - started
    while got := os.preadv(file, [buffer], offset):
        offset += got
    os.close(file)
    return {"seconds": time.perf_counter() - started, "bytes": offset, "first": first}


def shards(*paths):
    """Files read whole, one after the other, with a pause between that does not count."""
    pause, seconds, size, first = float(os.environ["BENCH_BETWEEN"]), 0.0, 0, []
    for number, path in enumerate(paths):
        if number > 0:
            time.sleep(pause)
        taken = pread(path)
        seconds, size = seconds + taken["seconds"], size + taken["bytes"]
        first.append(taken["first"])
    return {"seconds": seconds, "bytes": size, "first": first}


def first(path):
    """Until the first bytes of a file are there."""
    started = time.perf_counter()
    file = os.open(path, os.O_RDONLY)
    got = len(os.pread(file, 4096, 0))
    ended = time.perf_counter()
    os.close(file)
    return {"seconds": ended - started, "bytes": got}


def mapped(path):
    """The whole file copied out of a private mapping, 1 MiB at a time into one buffer."""
    buffer = bytearray(MIB)
    started = time.perf_counter()
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
        os.close(file)
        for start in range(0, size, MIB):
            part = view[start : start + MIB]
            buffer[: len(part)] = part
            part.release()
    return {"seconds": time.perf_counter() - started, "bytes": size}


def pread_small(path):
    return pread(path, 128 << 10)


def touched(path):
    """One byte of each page of a private mapping, in order."""
    started = time.perf_counter()
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
        os.close(file)
        assert len(mapping[::4096]) == -(-size // 4096)
    return {"seconds": time.perf_counter() - started, "bytes": size}


def scattered(path, reads=20_000):
    """4 KiB at a time from places all over the file, the same in each run."""
    buffer, places = bytearray(4096), random.Random(7)
    file = os.open(path, os.O_RDONLY)
    pages = os.fstat(file).st_size // 4096
    offsets = [places.randrange(pages) * 4096 for _ in range(reads)]
    started = time.perf_counter()
    for offset in offsets:
        os.preadv(file, [buffer], offset)
    taken = time.perf_counter() - started
    os.close(file)
    return {"seconds": taken, "bytes": reads * 4096}


def crowded(path, threads=16, reads=32):
    """Threads that read 1 MiB at a time from places all over the file."""
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size

    def one(number):
        buffer, places = bytearray(MIB), random.Random(number)
        for _ in range(reads):
            os.preadv(file, [buffer], places.randrange(size - MIB))

    crowd = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    taken = time.perf_counter() - started
    os.close(file)
    return {"seconds": taken, "bytes": threads * reads * MIB}


def loaded(path):
    """All tensors of a safetensors file, as a loader has them. A second time: the memory for them is there then."""
    from safetensors.numpy import load_file

    size = os.stat(path).st_size
    tensors = load_file(path)
    del tensors
    started = time.perf_counter()
    tensors = load_file(path)
    taken = time.perf_counter() - started
    assert sum(tensor.nbytes for tensor in tensors.values()) <= size
    return {"seconds": taken, "bytes": size}


def write(path):
    """A file of as many bytes as BENCH_SIZE says, 1 MiB at a time, then fsync and close: all of it is stored."""
    size, written = int(os.environ["BENCH_SIZE"]), 0
    buffer = os.urandom(MIB)
    started = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    while written < size:
        written += os.write(file, buffer[: size - written])
    before_sync = time.perf_counter()
    os.fsync(file)
    os.close(file)
    ended = time.perf_counter()
    return {"seconds": ended - started, "sync": ended - before_sync, "bytes": written}


def names_of(folder):
    """Known beforehand: listing the folder would bring names and attributes into the kernel."""
    return [os.path.join(folder, f"file-{number:04}.json") for number in range(1000)]


def each(paths, action):
    """Seconds of the action on every path, the median apart."""
    laps = []
    started = time.perf_counter()
    for path in paths:
        before = time.perf_counter()
        action(path)
        laps.append(time.perf_counter() - before)
    return {"seconds": time.perf_counter() - started, "median": sorted(laps)[len(laps) // 2], "count": len(laps)}


def stat(folder):
    """stat of every file, names known, in two passes: the second finds them in the kernel."""
    paths = names_of(folder)
    first = each(paths, os.stat)
    return {"first": first, "again": each(paths, os.stat)}


def read_once(path):
    file = os.open(path, os.O_RDONLY)
    os.read(file, 65536)
    os.close(file)


def open_read(folder):
    """open, read and close of every file, in two passes."""
    paths = names_of(folder)
    first = each(paths, read_once)
    return {"first": first, "again": each(paths, read_once)}


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    kinds = {
        "pread": pread,
        "pread_small": pread_small,
        "shards": shards,
        "first": first,
        "mapped": mapped,
        "touched": touched,
        "scattered": scattered,
        "crowded": crowded,
        "loaded": loaded,
        "write": write,
        "stat": stat,
        "open_read": open_read,
    }
    print(json.dumps(kinds[kind](*paths)))
