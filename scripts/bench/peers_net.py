"""A small network on one machine: a namespace with a bridge for the servers, one namespace with a capped link for each node.

All names begin with `hfp-<pid>-`, so that two runs do not meet; nothing of the machine's own network is touched, and nothing
leaves it: no namespace has a route to anywhere else.
"""

import contextlib
import ctypes
import os
import subprocess

from process import Failed

CLONE_NEWNET = 0x40000000
PREFIX = "10.77.0"
# What a link keeps for a moment: large enough for the largest packet that the kernel hands over at once.
BURST = "256kb"
# What waits before a link at most: 50 ms of it, but some twenty such packets, or flows that share a slow link starve.
QUEUE_SECONDS, QUEUE_BYTES = 0.05, 1_250_000


def run(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def mbit(rate):
    """Bytes per second as tc writes it."""
    return f"{max(1, rate * 8 // 1000)}kbit"


def queue(rate):
    """How long what waits before a link of so many bytes per second may take, as tc writes it."""
    return f"{max(QUEUE_SECONDS, QUEUE_BYTES / rate) * 1000:.0f}ms"


class Net:
    """`nodes` namespaces around one for the servers, whose address is `host`."""

    host = f"{PREFIX}.1"

    def __init__(self, nodes):
        self.name = f"hfp-{os.getpid()}"
        self.spaces = []
        self._shape = {}
        with open("/proc/thread-self/ns/net", "rb") as mine:
            self._home = os.dup(mine.fileno())
        try:
            self._build(nodes)
        except BaseException:
            self.close()
            raise

    def _build(self, nodes):
        self.centre = self._space("net")
        run("ip", "-n", self.centre, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.centre, "addr", "add", f"{self.host}/24", "dev", "br0")
        run("ip", "-n", self.centre, "link", "set", "br0", "up")
        self.nodes = [self._node(number) for number in range(nodes)]

    def _space(self, suffix):
        space = f"{self.name}-{suffix}"
        run("ip", "netns", "add", space)
        self.spaces.append(space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        return space

    def _node(self, number):
        space = self._space(str(number))
        there = f"v{number}"
        ends = ("name", there, "netns", self.centre), ("name", "eth0", "netns", space)
        run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        run("ip", "-n", self.centre, "link", "set", there, "master", "br0", "up")
        run("ip", "-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        return space

    def address(self, number):
        return f"{PREFIX}.{number + 11}"

    def inside(self, number):
        """The words before a command that is to run on a node: another network, the same mounts."""
        return ["nsenter", f"--net=/run/netns/{self.nodes[number]}"]

    def enter(self):
        """From now on this process, and what it starts, lives where the servers are."""
        with open(f"/run/netns/{self.centre}", "rb") as space:
            self._setns(space.fileno())

    def _setns(self, descriptor):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    def shape(self, number, link, hub=None, ports=()):
        """Caps a node's link both ways, bytes per second; `hub`: less than that for what comes from these ports."""
        wanted = (link, hub, tuple(ports))
        if self._shape.get(number) == wanted:
            return
        down, up = ("-n", self.centre), ("-n", self.nodes[number])
        for where, device in ((down, f"v{number}"), (up, "eth0")):
            with contextlib.suppress(Failed):
                run("tc", *where, "qdisc", "del", "dev", device, "root")
        tbf = ("tbf", "rate", mbit(link), "burst", BURST, "latency", queue(link))
        run("tc", *up, "qdisc", "add", "dev", "eth0", "root", *tbf)
        if hub is None:
            run("tc", *down, "qdisc", "add", "dev", f"v{number}", "root", *tbf)
        else:
            self._two_classes(down, f"v{number}", link, hub, ports)
        self._shape[number] = wanted

    def _two_classes(self, where, device, link, hub, ports):
        """One cap on all, and below it a lower one on what comes from the Hub."""
        run("tc", *where, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "10")

        def add(parent, name, rate, most):
            run(
                "tc", *where, "class", "add", "dev", device, "parent", parent, "classid", name, "htb", "rate", mbit(rate),
                "ceil", mbit(most), "burst", BURST, "cburst", BURST, "quantum", "60000",
            )  # fmt: skip

        add("1:", "1:1", link, link)
        add("1:1", "1:10", max(link - hub, link // 10), link)
        add("1:1", "1:20", hub, hub)
        for port in ports:
            run(
                "tc", *where, "filter", "add", "dev", device, "parent", "1:", "protocol", "ip", "prio", "1", "u32",
                "match", "ip", "sport", str(port), "0xffff", "flowid", "1:20",
            )  # fmt: skip

    def close(self):
        """Back home, and every namespace that was made here is gone, with the links in it."""
        if self._home is not None:
            self._setns(self._home)
            os.close(self._home)
            self._home = None
        while self.spaces:
            subprocess.run(["ip", "netns", "del", self.spaces.pop()], check=False, timeout=30)
