"""What a cluster costs the Hub, and how long its nodes wait: see scripts/bench-peers.sh --help."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "clients"))

import peers_scenarios as scenarios  # noqa: E402
from machine import machine  # noqa: E402
from peers_cluster import Cluster  # noqa: E402
from peers_net import Net  # noqa: E402
from peers_report import cells, table, targets  # noqa: E402
from process import Failed, built  # noqa: E402

# Name: what is done, whether the nodes' links to the Hub are the slow ones, and what one node alone does for comparison.
SCENARIOS = {
    "at once": (scenarios.at_once, False, "sequential"),
    "at once, mapped": (scenarios.mapped, False, "mapped"),
    "staggered": (scenarios.staggered, False, "sequential"),
    "second read": (scenarios.again, False, None),
    "killed": (scenarios.killed, False, "sequential"),
    "frozen": (scenarios.frozen, False, "sequential"),
    "slow Hub link": (scenarios.slow_hub, True, "slow"),
    "beside a warm one": (scenarios.beside, True, None),
}
ALONE = {"sequential": "at once", "mapped": "at once, mapped", "slow": "slow Hub link"}
SHORT = {"at-once": "at once", "mapped": "at once, mapped", "staggered": "staggered", "again": "second read",
         "killed": "killed", "frozen": "frozen", "slow-hub": "slow Hub link", "beside": "beside a warm one"}  # fmt: skip
# The targets of --check: the same on every machine, however busy.
COUNTED = ("origin", "resolve", "put")
QUICK = ("at-once", "mapped", "again", "beside")


class Bench:
    def __init__(self, options):
        self.options, self.rows, self.alone = options, [], {}
        self.passed = self.failed = 0

    def run(self, cluster):
        names = [SHORT[name] for name in self.options.scenarios]
        for kind in dict.fromkeys(SCENARIOS[name][2] for name in names):
            if kind:
                self.row(cluster, ALONE[kind], 1, True)
        for nodes in self.options.nodes:
            for name in names:
                both = (
                    cluster.has_peers
                    and not self.options.no_baseline
                    and (self.options.baseline_all or name == names[0])
                )
                if both or not cluster.has_peers:
                    self.row(cluster, name, nodes, False)
                if cluster.has_peers:
                    self.row(cluster, name, nodes, True)

    def row(self, cluster, name, nodes, peers):
        action, slow, kind = SCENARIOS[name]
        options = self.options
        with cluster.run(nodes, peers, options.hub_link if slow else None) as run:
            figures = action(run)
        if nodes == 1:
            self.alone[kind] = figures["seconds"]
            peers = figures["peers"] = cluster.has_peers
        link = min(options.link, options.connection_rate, options.hub_link if slow else options.link)
        figures |= {
            "scenario": name,
            "alone": self.alone.get(kind),
            "first_bound": 3 * scenarios.CHUNK / link,
        }
        self.rows.append(figures)
        good = not figures["errors"] and not figures["wrong"]
        if options.check and peers and nodes > 1:
            counted = (met for what, *_, met in targets(figures, scenarios.SEGMENT) if what in COUNTED)
            good &= all(counted)
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        print("  " + " | ".join(cells(figures, scenarios.SEGMENT)), file=sys.stderr, flush=True)
        if figures["twice"] and peers:
            print(f"    sent by the Hub more than once, bytes: {figures['twice']}", file=sys.stderr, flush=True)

    def head(self, about):
        options = self.options

        def mbit(rate):
            return f"{rate * 8 / 1e6:.0f} Mbit/s"

        return (
            f"{about['version']} on {about['cpu']}, {about['memory']}, Linux {about['kernel']}, {about['disk']}, {about['date']}; "
            f"{options.size >> 20} MiB in {options.shards} files. Each node's link: {mbit(options.link)} up and down; "
            f"the Hub: {mbit(options.hub_rate)} in all, {mbit(options.connection_rate)} a connection; "
            f"“slow Hub link” and “beside a warm one”: the first file, and {mbit(options.hub_link)} of each node's link for the Hub."
        )


def rate(text):
    """Mbit/s, as bytes a second."""
    return int(float(text) * 1e6 / 8)


def size(text):
    units = {"K": 10, "M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1].upper()] if text[-1].upper() in units else int(text)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="*", type=int, metavar="N", help="how many nodes; default: 2 4 8")
    parser.add_argument("--scenarios", help=f"some of {','.join(SHORT)}; default: all")
    parser.add_argument("--size", type=size, help="of the model (1G; --quick: 64M)")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--link", type=rate, help="of each node, up and down, Mbit/s (200; --quick: 400)")
    parser.add_argument("--hub-rate", type=rate, default=rate("400"), help="of the Hub in all, Mbit/s (400)")
    parser.add_argument(
        "--connection-rate", type=rate, default=rate("100"), help="of one connection to it, Mbit/s (100)"
    )
    parser.add_argument("--hub-link", type=rate, default=rate("40"), help="of each node to a slow Hub, Mbit/s (40)")
    parser.add_argument(
        "--baseline-all", action="store_true", help="without peers too in every scenario, not only in the first"
    )
    parser.add_argument("--no-baseline", action="store_true", help="only with peers")
    parser.add_argument(
        "--mount", action="append", default=[], metavar="OPTION", help="one more option for every mount"
    )
    parser.add_argument("--check", action="store_true", help="fail unless each byte left the Hub once and was put once")
    parser.add_argument(
        "--quick", action="store_true", help="64 MiB, two nodes, some scenarios, and --check: under a minute"
    )
    parser.add_argument("--dir", default="/var/tmp", help="a folder on a real disk with room for N + 2 times --size")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    parser.add_argument("--keep", action="store_true", help="keep the daemons' logs")
    options = parser.parse_args()
    options.nodes = options.nodes or ([2] if options.quick else [2, 4, 8])
    options.size = options.size or (64 << 20 if options.quick else 1 << 30)
    options.link = options.link or rate("400" if options.quick else "200")
    options.scenarios = options.scenarios.split(",") if options.scenarios else QUICK if options.quick else list(SHORT)
    options.check |= options.quick
    options.no_baseline |= options.quick
    for name in options.scenarios:
        if name not in SHORT:
            parser.error(f"no such scenario: {name}")
    if not all(2 <= nodes <= 64 for nodes in options.nodes):
        parser.error("N: 2 to 64")
    return options


def interrupted(number, _frame):
    # Once: what cleans up is not to be interrupted itself.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main():
    options = parse()
    if os.geteuid() != 0:
        sys.exit("error: network namespaces and their links need root")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    directory = tempfile.mkdtemp(prefix="hfmount-bench-peers-", dir=options.dir)
    bench, began, ended = Bench(options), time.monotonic(), 0
    about = machine(directory, built("", "hfmount"))
    try:
        with contextlib.closing(Net(max(options.nodes))) as net:
            net.enter()
            with contextlib.closing(Cluster(directory, net, options)) as cluster:
                if not cluster.has_peers:
                    print("  this hfmount knows nothing of peers: only the figures without", file=sys.stderr)
                bench.run(cluster)
    except (Failed, subprocess.SubprocessError, OSError) as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        bench.failed += 1
    except SystemExit as signalled:
        # What was measured until then is shown all the same.
        ended = signalled.code
    finally:
        if options.keep:
            print(f"kept: {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(table(bench.head(about), bench.rows, scenarios.SEGMENT))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            settings = {key: value for key, value in vars(options).items() if key != "json"}
            json.dump({"machine": about, "settings": settings, "rows": bench.rows}, file, indent=1)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.check:
        print(f"peers: {bench.passed} passed, {bench.failed} failed")
    return ended or bench.failed > 0


if __name__ == "__main__":
    sys.exit(main())
