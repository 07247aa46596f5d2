"""A volume of its own for one measurement: formatted, mounted, and gone without a trace."""

import glob
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys

from hub import s3_command
from process import Failed, Process, built, free_port, hfmount, mounted, wait_until

_numbers = itertools.count()
_COUNT = re.compile(r'^hfmount_fuse_request_seconds_count\{op="([^"]+)"\} (\d+)', re.MULTILINE)


class Volume:
    """SQLite and a folder; `redis`: Redis instead of SQLite, `late_ms` milliseconds away; `s3`: a stand-in S3 server instead
    of the folder. Mounted once, or as often as `mounts` says."""

    def __init__(self, parent, hub_url, redis=False, s3=False, mounts=1, late_ms=0):
        self.dir = os.path.join(parent, f"volume-{next(_numbers)}")
        self.mountpoints = [os.path.join(self.dir, f"mnt-{number}") for number in range(mounts)]
        self.mountpoint = self.mountpoints[0]
        for name in ("home", "redis", "store/volumes"):
            os.makedirs(os.path.join(self.dir, name))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "HF_", "HFMOUNT_"))}
        self.env = kept | {"HFMOUNT_HOME": os.path.join(self.dir, "home")}
        self.redis = self.late = self.s3 = None
        self.daemons = []
        try:
            if redis:
                self._start_redis()
            if late_ms:
                self._start_network(late_ms)
            storage = ["--storage", f"file://{self.dir}/store"]
            if s3:
                self._start_s3()
                storage = ["--storage", "s3://volumes/bench", "--endpoint", self.s3.url, "--region", "us-east-1"]
            hfmount(["format", *storage, "--hub-endpoint", hub_url, "bench"], self.env)
            for mountpoint in self.mountpoints:
                self._mount(mountpoint)
        except BaseException:
            self.close()
            raise

    def _start_redis(self):
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.redis = Process(
            "redis", [*command, "--dir", os.path.join(self.dir, "redis")], os.path.join(self.dir, "redis.log")
        )
        self.redis.port = port
        self.redis.until(lambda: self.redis_cli("ping") == "PONG", 10, "answers")
        self.env["HFMOUNT_META"] = f"redis://127.0.0.1:{port}/0"

    def _start_network(self, late_ms):
        port = free_port()
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "late.py")
        command = [sys.executable, script, str(port), str(self.redis.port), str(late_ms)]
        self.late = Process("late", command, os.path.join(self.dir, "late.log"))
        self.late.until(lambda: answers(port), 10, "answers")
        self.env["HFMOUNT_META"] = f"redis://127.0.0.1:{port}/0"

    def _start_s3(self):
        port = free_port()
        self.s3 = Process("s3", s3_command(os.path.join(self.dir, "store"), port), os.path.join(self.dir, "s3.log"))
        self.s3.url = f"http://127.0.0.1:{port}"
        self.s3.until(lambda: answers(port), 10, "answers")
        self.env |= {"AWS_ACCESS_KEY_ID": "standin", "AWS_SECRET_ACCESS_KEY": "standin-secret"}

    def _mount(self, mountpoint):
        name = os.path.basename(mountpoint)
        cache = os.path.join(self.dir, f"cache-{name}")
        os.makedirs(mountpoint)
        command = [built("", "hfmount"), "mount", "--cache-dir", cache, mountpoint]
        daemon = Process("hfmount mount", command, os.path.join(self.dir, f"{name}.log"), self.env)
        self.daemons.append(daemon)
        daemon.until(lambda: mounted(mountpoint), 30, "mounts")

    def redis_cli(self, *arguments):
        command = ["redis-cli", "-p", str(self.redis.port), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()

    def path(self, repo, commit, name):
        return os.path.join(self.mountpoint, f"models--{repo.replace('/', '--')}", "snapshots", commit, name)

    def cpu_seconds(self):
        """Processor time that the daemons and the servers of this volume have used."""
        servers = [server for server in (self.redis, self.s3) if server]
        return sum(cpu_seconds(process.pid) for process in self.daemons + servers)

    def peak_memory(self):
        return max(daemon.peak_memory() for daemon in self.daemons)

    def memory(self):
        return max(daemon.memory() for daemon in self.daemons)

    def requests(self):
        """What the kernel asked the first mount so far, by kind."""
        (place,) = glob.glob(os.path.join(self.dir, "home", "run", "*.sock"))
        with socket.socket(socket.AF_UNIX) as figures:
            figures.connect(place)
            figures.sendall(b"GET /metrics HTTP/1.1\r\nHost: hfmount\r\nConnection: close\r\n\r\n")
            page = b"".join(iter(lambda: figures.recv(1 << 16), b"")).decode()
        return {op: int(count) for op, count in _COUNT.findall(page)}

    def until_checked(self, path):
        """All of a blob is here, and what its name says."""

        def checked():
            return json.loads(os.getxattr(path, "user.hfmount.source"))["verified"]

        wait_until(checked, 120, f"{path} is checked", self.daemons[0].alive)

    def close(self):
        for daemon in self.daemons:
            daemon.stop(30)
        left = [mountpoint for mountpoint in self.mountpoints if mounted(mountpoint)]
        for mountpoint in left:
            subprocess.run(["umount", "-l", mountpoint], check=False)
        for server in (self.late, self.redis, self.s3):
            if server:
                server.stop()
        if left:
            raise Failed(f"{left}: still mounted after their daemons ended")
        shutil.rmtree(self.dir, ignore_errors=True)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
