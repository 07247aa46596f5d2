"""The cluster that scripts/bench-peers.sh measures: a Hub, a Redis, a store, and daemons on nodes of their own.

The servers stay from run to run. A run has a volume of its own, daemons with empty caches, and counters that begin at zero.
"""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import urllib.request

from hub import Hub, s3_command
from process import Failed, Process, built, free_port, hfmount, mounted, wait_until
from volume import cpu_seconds

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = "bench/model"
FOLDER = f"models--{REPO.replace('/', '--')}"


class Cluster:
    """Servers in the middle of `net`; `model`: the files of the repository, by name, in the order of reading."""

    def __init__(self, directory, net, options):
        self.dir, self.net, self.options = directory, net, options
        self.runs = 0
        self.servers = []
        self.hub = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        options, host = self.options, self.net.host
        root = os.path.join(self.dir, "hub")
        folder = os.path.join(root, "models", REPO, "main")
        make = ["make-model", folder, "--size", str(options.size), "--shards", str(options.shards)]
        subprocess.run([built("examples", "standin"), *make], check=True, timeout=600)
        rates = ["--rate", str(options.hub_rate), "--conn-rate", str(options.connection_rate)]
        self.hub = Hub(root, *rates, host=host)
        # The first answer hashes the files; that is the Hub's time, not ours.
        self.commit = self.hub.commit(REPO)
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
        self.model = {name: os.path.join(folder, name) for name in names}
        for source in self.model.values():
            warm(source)

        for name in ("redis", "store/volumes", "home"):
            os.makedirs(os.path.join(self.dir, name))
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", host, "--protected-mode", "no", "--save", ""]
        self.redis = self._server("redis", [*command, "--appendonly", "no", "--dir", os.path.join(self.dir, "redis")])
        self.redis.port = port
        self.redis.until(lambda: self.redis_cli("ping") == "PONG", 10, "answers")
        port = free_port()
        self.s3 = self._server("s3", s3_command(os.path.join(self.dir, "store"), port, host))
        self.s3.url = f"http://{host}:{port}"
        self.s3.until(lambda: self._answers(f"{self.s3.url}/_standin/counters"), 10, "answers")

        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "HF_", "HFMOUNT_"))}
        self.env = kept | {
            "HFMOUNT_HOME": os.path.join(self.dir, "home"),
            "HFMOUNT_META": f"redis://{host}:{self.redis.port}/0",
            "HFMOUNT_LOG": os.environ.get("HFMOUNT_LOG", "info"),
            "AWS_ACCESS_KEY_ID": "standin",
            "AWS_SECRET_ACCESS_KEY": "standin-secret",
            "RUST_BACKTRACE": "1",
        }
        options = self.hfmount("mount", "--help").stdout
        self.has_peers = "--no-peers" in options

    def _server(self, name, command):
        server = Process(name, command, os.path.join(self.dir, f"{name}.log"))
        self.servers.append(server)
        return server

    def _answers(self, url):
        try:
            return call(url) is not None
        except OSError:
            return False

    def redis_cli(self, *words):
        command = ["redis-cli", "-h", self.net.host, "-p", str(self.redis.port), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()

    def hfmount(self, *words, check=True, timeout=60):
        return hfmount(words, self.env, check, timeout)

    @contextlib.contextmanager
    def run(self, nodes, peers, hub_link=None):
        """A new volume mounted on as many nodes; `hub_link`: what of their links the Hub gets, bytes per second."""
        run = Run(self, nodes, peers, hub_link)
        try:
            run.start()
            yield run
        finally:
            run.close()

    def close(self):
        for server in reversed(self.servers):
            server.stop(10)
        if self.hub:
            self.hub.stop()


class Run:
    def __init__(self, cluster, nodes, peers, hub_link):
        self.cluster, self.peers, self.hub_link = cluster, peers, hub_link
        cluster.runs += 1
        self.dir = os.path.join(cluster.dir, f"run-{cluster.runs}")
        self.nodes = [Node(self, number) for number in range(nodes)]
        self.readers = []

    def start(self):
        cluster, name = self.cluster, f"bench-{self.cluster.runs}"
        for node in self.nodes:
            ports = (cluster.hub.port, cluster.hub.cdn_port)
            cluster.net.shape(node.number, cluster.options.link, self.hub_link, ports)
        cluster.redis_cli("flushall")
        storage = ["--storage", f"s3://volumes/{name}", "--endpoint", cluster.s3.url, "--region", "us-east-1"]
        cluster.hfmount("format", *storage, "--hub-endpoint", cluster.hub.url, name)
        for node in self.nodes:
            node.mount()
        for node in self.nodes:
            node.wait()
        if self.peers and len(self.nodes) > 1:
            with contextlib.suppress(Failed):
                wait_until(lambda: self.active() >= len(self.nodes), 15, "all nodes know each other")
        cluster.hub.control("reset", {})
        call(f"{cluster.s3.url}/_standin/reset", b"")

    def active(self):
        """How many live nodes the tracker knows."""
        done = self.cluster.hfmount("peer", "ls", "--json", check=False)
        with contextlib.suppress(ValueError):
            listed = json.loads(done.stdout)
            listed = listed if isinstance(listed, list) else listed.get("peers", listed.get("nodes", []))
            return sum(peer.get("state") == "active" for peer in listed)
        return 0

    def read(self, kind, nodes=None, names=None, stagger=0.0):
        """Readers on these nodes, each ready and told when to begin; answers them."""
        nodes = self.nodes if nodes is None else nodes
        pairs = [(name, source) for name, source in self.cluster.model.items() if names is None or name in names]
        readers = [Reader(node, kind, pairs) for node in nodes]
        self.readers += readers
        for reader in readers:
            reader.until_ready()
        start = time.monotonic() + 0.1
        for number, reader in enumerate(readers):
            reader.go(start + number * stagger)
        return readers

    def counters(self):
        return self.cluster.hub.control("counters"), call(f"{self.cluster.s3.url}/_standin/counters")

    def settle(self, seconds):
        """Waits until nothing more is put into the bucket: uploads go on behind the readers. Answers the counters."""
        deadline, last, since = time.monotonic() + seconds, None, 0.0
        while True:
            hub, bucket = self.counters()
            now = time.monotonic()
            if (hub["bytes"], bucket["bytes_in"]) != last:
                last, since = (hub["bytes"], bucket["bytes_in"]), now
            if now - since > 2.5 or now > deadline:
                return hub, bucket
            time.sleep(0.2)

    def drop_caches(self):
        """What was read out of the kernel, on the mounts and below the daemons: the next read asks the daemons and the disk."""
        for node in self.nodes:
            for name in self.cluster.model:
                forget(node.path(name))
            for parent, _, files in os.walk(node.cache):
                for name in files:
                    forget(os.path.join(parent, name))

    def close(self):
        troubles = []
        for reader in self.readers:
            reader.kill()
        for node in self.nodes:
            try:
                node.stop()
            except Exception as trouble:
                troubles.append(trouble)
        if self.cluster.options.keep:
            logs = os.path.join(self.cluster.dir, "logs", os.path.basename(self.dir))
            os.makedirs(logs, exist_ok=True)
            for node in self.nodes:
                with contextlib.suppress(OSError):
                    shutil.copy(node.log, logs)
            with contextlib.suppress(OSError), open(os.path.join(logs, "counters.json"), "w", encoding="utf-8") as file:
                json.dump(self.counters(), file)
        shutil.rmtree(self.dir, ignore_errors=True)
        store = os.path.join(self.cluster.dir, "store", "volumes")
        for name in os.listdir(store):
            shutil.rmtree(os.path.join(store, name), ignore_errors=True)
        if troubles:
            raise troubles[0]


class Node:
    """One daemon in a network namespace of its own, with a cache of its own."""

    def __init__(self, run, number):
        self.run, self.number = run, number
        self.dir = os.path.join(run.dir, f"node-{number}")
        self.mountpoint, self.cache = os.path.join(self.dir, "mnt"), os.path.join(self.dir, "cache")
        self.log = os.path.join(run.dir, f"node-{number}.log")
        self.process, self.last = None, (0.0, 0)

    def mount(self):
        cluster = self.run.cluster
        os.makedirs(self.mountpoint)
        options = ["--cache-dir", self.cache, *cluster.options.mount]
        if cluster.has_peers and not self.run.peers:
            options.append("--no-peers")
        command = [*cluster.net.inside(self.number), built("", "hfmount"), "mount", *options, self.mountpoint]
        self.process = Process(f"node {self.number}", command, self.log, cluster.env | {"HFMOUNT_HOME": self.dir})

    def wait(self):
        self.process.until(lambda: mounted(self.mountpoint), 30, "mounts")

    def path(self, name):
        return os.path.join(self.mountpoint, FOLDER, "snapshots", self.run.cluster.commit, name)

    def measure(self):
        """Processor time and the most memory so far; of one that was killed, what they were before that."""
        if self.process.alive():
            self.last = (cpu_seconds(self.process.pid), self.process.peak_memory())
        return self.last

    def kill(self):
        """kill -9, and its dead mount is taken off, so that who reads from it is told."""
        self.measure()
        self.process.kill()
        subprocess.run(["umount", "-l", self.mountpoint], check=False)

    def stop(self):
        if self.process is None:
            return
        self.process.stop(20)
        if mounted(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], check=False)


class Reader:
    def __init__(self, node, kind, pairs):
        self.node, self.names = node, [name for name, _ in pairs]
        self.total = sum(os.path.getsize(source) for _, source in pairs)
        self.progress = os.path.join(node.dir, "progress")
        with open(self.progress, "wb") as file:
            file.write(bytes(8))
        files = [f"{node.path(name)}={source}" for name, source in pairs]
        command = [sys.executable, os.path.join(HERE, "peers_read.py"), kind, self.progress, *files]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def until_ready(self):
        if self.child.stdout.readline() != "ready\n":
            raise Failed(f"a reader did not start: {self.child.communicate(timeout=10)[1]}")

    def go(self, moment):
        self.child.stdin.write(f"{moment}\n")
        self.child.stdin.flush()

    def share(self):
        """How much of what it is to read it has read, 0 to 1."""
        with open(self.progress, "rb") as file:
            return struct.unpack("<Q", file.read(8))[0] / self.total

    def done(self):
        return self.child.poll() is not None

    def result(self, deadline):
        """What it measured; a reader that does not end in time, or not well, says so in `error`."""
        try:
            out, err = self.child.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return {"error": f"still reading at {self.share():.0%} when time was up", "first": [], "wrong": []}
        with contextlib.suppress(ValueError):
            return json.loads(out)
        return {"error": f"ended with {self.child.returncode}: {err.strip()[-300:]}", "first": [], "wrong": []}

    def kill(self):
        if not self.done():
            self.child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(10)
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


def forget(path):
    """Takes a file's pages out of the page cache; what is not written yet is written first."""
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def warm(path):
    """The source in the page cache: its disk is not what is measured."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def call(url, body=None):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data=body), timeout=10) as answer:
        return json.load(answer)
