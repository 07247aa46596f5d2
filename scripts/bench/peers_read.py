"""One reader of a model in a process of its own: python peers_read.py KIND PROGRESS [MOUNTED=SOURCE ...]

Says `ready`, waits for the moment (CLOCK_MONOTONIC) that a line of its input names, reads every file and compares every byte
with the source's, and answers with one line of JSON. PROGRESS is a file of eight bytes, where it keeps how much it has read.

    sequential   every file in order, 1 MiB at a time
    mapped       as safetensors does it: the header, then out of a mapping the tensors in the header's order, each page touched,
                 128 KiB before the next
"""

import json
import mmap
import os
import struct
import sys
import time

MIB, BLOCK, PAGE = 1 << 20, 128 << 10, 4096


class Reader:
    def __init__(self, progress):
        self.bytes, self.first, self.wrong = 0, [], []
        with open(progress, "r+b") as file:
            self.progress = mmap.mmap(file.fileno(), 8)

    def add(self, got):
        self.bytes += got
        self.progress[:8] = struct.pack("<Q", self.bytes)

    def check(self, path, offset, ours, theirs):
        if ours != theirs and len(self.wrong) < 10:
            self.wrong.append([path, offset])

    def sequential(self, path, source):
        began = time.monotonic()
        buffer, offset = bytearray(MIB), 0
        file = os.open(path, os.O_RDONLY)
        with open(source, "rb", buffering=0) as right:
            # The first page by itself: a program waits for it before it knows what comes next.
            offset = os.preadv(file, [memoryview(buffer)[:PAGE]], 0)
            self.first.append(time.monotonic() - began)
            self.check(path, 0, buffer[:offset], right.read(offset))
            self.add(offset)
            while got := os.preadv(file, [buffer], offset):
                right.seek(offset)
                self.check(path, offset, buffer if got == MIB else buffer[:got], right.read(got))
                offset += got
                self.add(got)
        os.close(file)
        if offset != os.path.getsize(source):
            self.wrong.append([path, offset])

    def mapped(self, path, source):
        began = time.monotonic()
        file = os.open(path, os.O_RDONLY)
        with (
            mmap.mmap(file, os.fstat(file).st_size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as ours,
            open(source, "rb") as right,
            mmap.mmap(right.fileno(), 0, prot=mmap.PROT_READ) as theirs,
        ):
            os.close(file)
            (length,) = struct.unpack("<Q", ours[:8])
            self.first.append(time.monotonic() - began)
            if length != struct.unpack("<Q", theirs[:8])[0] or len(ours) != len(theirs):
                self.wrong.append([path, 0])
                return
            start = 8 + length
            header = json.loads(ours[8:start])
            self.check(path, 8, ours[:start], theirs[:start])
            self.add(start)
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = (start + offset for offset in tensor["data_offsets"])
                    self.tensor(path, ours, theirs, begin, end)

    def tensor(self, path, ours, theirs, begin, end):
        for block in range(begin, end, BLOCK):
            stop = min(block + BLOCK, end)
            for page in range(block, stop, PAGE):
                ours[page]
            self.check(path, block, ours[block:stop], theirs[block:stop])
            self.add(stop - block)


def main():
    kind, progress, *pairs = sys.argv[1:]
    reader, error = Reader(progress), None
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    time.sleep(max(0.0, start - time.monotonic()))
    try:
        for pair in pairs:
            path, source = pair.split("=", 1)
            getattr(reader, kind)(path, source)
    except OSError as failed:
        error = str(failed)
    ended = time.monotonic()
    answer = {"seconds": ended - start, "ended": ended, "bytes": reader.bytes, "first": reader.first}
    print(json.dumps(answer | {"wrong": reader.wrong, "error": error}), flush=True)


if __name__ == "__main__":
    main()
