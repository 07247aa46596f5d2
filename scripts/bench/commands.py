"""Redis commands per operation, as the server sees them: loopback hides chatter that a network would show."""

import collections
import os
import re
import socket
import threading
import time

N = 200


class Monitor:
    """A connection on which the server repeats every command that it carries out, and whether a client sent it or a script."""

    LINE = re.compile(rb'^\+[\d.]+ \[\d+ (\S+)\] "([^"]*)"')

    def __init__(self, port):
        self.sent, self.scripted = collections.Counter(), collections.Counter()
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.sendall(b"MONITOR\r\n")
        self.lines = self.connection.makefile("rb")
        self.lines.readline()  # +OK
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.lines:
            found = self.LINE.match(line)
            if found:
                source, command = found[1], found[2].decode().lower()
                (self.scripted if source == b"lua" else self.sent)[command] += 1

    def during(self, action):
        """What was sent and what scripts did while `action` ran, and how long that was."""
        self.sent.clear()
        self.scripted.clear()
        began = time.monotonic()
        action()
        took = time.monotonic() - began
        time.sleep(0.3)  # the last lines arrive
        return collections.Counter(self.sent), collections.Counter(self.scripted), took


def per_operation(volume, repo, commit):
    """Yields (operation, {command: sent per operation}, {command: run by scripts per operation}).

    What the mount sends while nothing happens is counted first and taken off.
    """
    work = os.path.join(volume.mountpoint, "work")
    os.mkdir(work)
    snapshot = os.path.dirname(volume.path(repo, commit, "x"))
    names = sorted(os.listdir(snapshot))[:N]
    monitor = Monitor(volume.redis.port)

    quiet = 5
    *idle, took = monitor.during(lambda: time.sleep(quiet))
    idle = [{command: count / took for command, count in counts.items()} for counts in idle]
    yield "idle mount, a second", *idle

    def path(number, kind="file"):
        return os.path.join(work, f"{kind}-{number}")

    def write(number, mode="wb"):
        with open(path(number), mode) as file:
            file.write(b"x" * 1000)

    def read(place):
        with open(place, "rb") as file:
            file.read()

    operations = [
        ("mkdir", lambda n: os.mkdir(path(n, "dir"))),
        ("create + write 1 KB + close", write),
        ("open + append 1 KB + close", lambda n: write(n, "ab")),
        ("open + read + close, written file", lambda n: read(path(n))),
        ("stat, name in the kernel", lambda n: os.stat(path(n))),
        ("stat, name not there", lambda n: os.path.exists(path(n, "absent"))),
        ("rename", lambda n: os.rename(path(n), path(n, "renamed"))),
        ("symlink", lambda n: os.symlink("target", path(n, "link"))),
        ("chmod", lambda n: os.chmod(path(n, "renamed"), 0o600)),
        ("unlink", lambda n: os.unlink(path(n, "renamed"))),
        ("rmdir", lambda n: os.rmdir(path(n, "dir"))),
        ("open + read + close, Hub file, first", lambda n: read(os.path.join(snapshot, names[n]))),
        ("open + read + close, Hub file, again", lambda n: read(os.path.join(snapshot, names[n]))),
        ("readdir of 1,000 entries", lambda n: os.listdir(snapshot)),
    ]
    for name, operation in operations:

        def all_of_them(operation=operation):
            for number in range(len(names)):
                operation(number)

        *counts, took = monitor.during(all_of_them)
        each = [
            {
                command: count / len(names) - rest.get(command, 0) * (took + 0.3) / len(names)
                for command, count in kind.items()
            }
            for kind, rest in zip(counts, idle)
        ]
        yield name, *({command: count for command, count in kind.items() if count >= 0.01} for kind in each)
