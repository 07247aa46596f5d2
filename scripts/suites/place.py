"""Where suites run: a volume of its own with its mounts, and an ordinary folder to compare with."""

import os
import shutil
import socket
import subprocess

from process import Failed, Process, built, free_port, hfmount, mounted

WORLDS = ("embedded", "cluster")


class Volume:
    """`embedded`: SQLite and a folder. `cluster`: redis-server and an S3 server, both of this volume alone.

    Whatever was mounted is unmounted by its path, and whatever was started is stopped by its process, in `close`.
    """

    def __init__(self, parent, world, chunk_size="1MiB"):
        self.world = world
        self.dir = os.path.join(parent, world[0])
        os.makedirs(self.dir)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HFMOUNT_", "AWS_", "XDG_"))}
        self.env = kept | {"HFMOUNT_HOME": self._folder("home"), "RUST_BACKTRACE": "1"}
        self.mounts, self.servers = [], []
        try:
            storage = ["--storage", f"file://{self.dir}/store"]
            if world == "cluster":
                self._start_redis()
                storage = self._start_s3()
            self.hfmount("format", *storage, "--chunk-size", chunk_size, "suites")
        except BaseException:
            self.close()
            raise

    def _folder(self, name):
        path = os.path.join(self.dir, name)
        os.makedirs(path, exist_ok=True)
        return path

    def _start(self, name, command):
        server = Process(name, command, os.path.join(self.dir, f"{name}.log"), self.env)
        self.servers.append(server)
        return server

    def _start_redis(self):
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", self._folder("redis")]
        server = self._start("redis", [*command, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"])
        server.until(lambda: answers(port), 10, "answers")
        self.env["HFMOUNT_META"] = f"redis://127.0.0.1:{port}/0"

    def _start_s3(self):
        port, root = free_port(), self._folder("store")
        os.makedirs(os.path.join(root, "suites"), exist_ok=True)
        command = [built("examples", "standin"), "s3", "--root", root, "--bucket", "suites"]
        server = self._start("s3", [*command, "--listen", f"127.0.0.1:{port}"])
        server.until(lambda: answers(port), 10, "answers")
        self.env |= {"AWS_ACCESS_KEY_ID": "standin", "AWS_SECRET_ACCESS_KEY": "standin-secret"}
        endpoint = ["--endpoint", f"http://127.0.0.1:{port}", "--region", "us-east-1"]
        return ["--storage", "s3://suites/volume", *endpoint]

    def hfmount(self, *arguments):
        """Runs one verb to its end."""
        return hfmount(arguments, self.env, timeout=300).stdout

    def mount(self, *options):
        """Mounts the volume once more, with a disk cache of its own; answers the directory."""
        number = len(self.mounts)
        # A short path: sockets cannot be bound to a long one.
        point = f"{self.dir}{number}"
        os.makedirs(point)
        command = [built("", "hfmount"), "mount", "--offline", "--cache-dir", self._folder(f"cache-{number}")]
        daemon = Process(f"mount-{number}", [*command, *options, point], f"{point}.log", self.env)
        self.mounts.append((point, daemon))
        daemon.until(lambda: mounted(point) and serves(point), 60, "mounts and answers")
        # As every FUSE mount it lets no set-uid bit and no device count: the suites ask for both, and root may allow them.
        subprocess.run(["mount", "-o", "remount,bind,suid,dev", point], check=True)
        return point

    def warnings(self):
        """Lines of the daemons' logs that say that something went wrong."""
        lines = []
        for point, _ in self.mounts:
            with open(f"{point}.log", encoding="utf-8", errors="replace") as log:
                lines += [line.rstrip() for line in log if " WARN " in line or " ERROR " in line or "panicked" in line]
        return lines

    def close(self):
        """Ends it all; [`Failed`] if a daemon ended badly or its mount stayed."""
        troubles = []
        for point, daemon in self.mounts:
            status = daemon.stop(60)
            if mounted(point):
                subprocess.run(["umount", "-l", point], check=False)
                troubles.append(f"{point} was still mounted after its daemon ended")
            if status != 0:
                troubles.append(f"the daemon of {point} ended with {status}")
        for server in reversed(self.servers):
            server.stop()
        self.mounts, self.servers = [], []
        if troubles:
            raise Failed("; ".join(troubles))


class Plain:
    """An ordinary folder: what the file system of this machine answers is what a mount has to."""

    world = "plain"

    def __init__(self, parent):
        self.dir = os.path.join(parent, "plain")
        os.makedirs(self.dir)

    def clear(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)


def serves(path):
    try:
        os.statvfs(path)
        return True
    except OSError:
        return False


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False
