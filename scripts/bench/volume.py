"""A volume of its own for one measurement: formatted, mounted, and gone without a trace."""

import itertools
import os
import shutil
import subprocess

from process import Failed, Process, built, free_port, mounted

_numbers = itertools.count()


class Volume:
    """SQLite and a folder, or Redis (and still a folder: bytes are not what Redis is measured with)."""

    def __init__(self, parent, hub_url, redis=False):
        self.dir = os.path.join(parent, f"volume-{next(_numbers)}")
        self.mountpoint = os.path.join(self.dir, "mnt")
        for name in ("home", "mnt", "cache", "redis"):
            os.makedirs(os.path.join(self.dir, name))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HFMOUNT_"))}
        self.env = kept | {"HFMOUNT_HOME": os.path.join(self.dir, "home")}
        self.redis = self.daemon = None
        try:
            if redis:
                self._start_redis()
            self._hfmount("format", "--storage", f"file://{self.dir}/store", "--hub-endpoint", hub_url, "bench")
            self._mount()
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

    def _hfmount(self, *arguments):
        done = subprocess.run(
            [built("", "hfmount"), *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise Failed(f"hfmount {arguments}: {done.stdout}{done.stderr}")

    def _mount(self):
        command = [built("", "hfmount"), "mount", "--cache-dir", os.path.join(self.dir, "cache"), self.mountpoint]
        self.daemon = Process("hfmount mount", command, os.path.join(self.dir, "mount.log"), self.env)
        self.daemon.until(lambda: mounted(self.mountpoint), 30, "mounts")

    def redis_cli(self, *arguments):
        command = ["redis-cli", "-p", str(self.redis.port), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()

    def path(self, repo, commit, name):
        return os.path.join(self.mountpoint, f"models--{repo.replace('/', '--')}", "snapshots", commit, name)

    def peak_memory(self):
        return self.daemon.peak_memory()

    def close(self):
        if self.daemon:
            self.daemon.stop(30)
        if mounted(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], check=False)
            raise Failed(f"{self.mountpoint}: still mounted after its daemon ended")
        if self.redis:
            self.redis.stop()
        shutil.rmtree(self.dir, ignore_errors=True)
