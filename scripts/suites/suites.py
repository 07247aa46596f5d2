"""Runs file-system suites on mounts of hfmount and on a plain folder of this machine, and compares. See suites.sh."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/clients"))

import fstests  # noqa: E402
import programs  # noqa: E402
from place import WORLDS, Plain, Volume  # noqa: E402
from process import Failed  # noqa: E402
from tools import Result  # noqa: E402

# In this order. Those of COMPARED run on a plain folder first: what fails there too is not the mount's doing.
SUITES = {
    "pjdfstest": fstests.pjdfstest,
    "fsx": fstests.fsx,
    "fsx-two": fstests.fsx_on_two,
    "stress-ng": fstests.stress,
    "fio": fstests.fio,
    "cpython": programs.cpython,
    "git": programs.git,
    "cargo": programs.cargo,
    "pip": programs.pip,
}
COMPARED = {"pjdfstest", "stress-ng", "cpython"}
GOOD = {"ok", 0}
# What passes on a plain folder and not on a mount, and why that stays so.
KNOWN = {
    "pjdfstest link::link_count_max": "the C library knows no LINK_MAX of FUSE and says 127, so it is skipped; "
    "65,536 links are made in tests/meta_semantics",
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    parser.add_argument("--world", choices=[*WORLDS, "both"], default="both")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--fsx-ops", type=int)
    parser.add_argument("--fsx-seeds", type=int)
    parser.add_argument("--fsx-without", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stress-time", type=int)
    parser.add_argument("--fio-size", type=int)
    parser.add_argument("--patterns", nargs="*", default=[])
    parser.add_argument("--mount-options", default="")
    parser.add_argument("--dir", default="/var/tmp")
    parser.add_argument("--logs", default=None)
    parser.add_argument("--json")
    options = parser.parse_intermixed_args()
    # Ended from outside: unmount and stop the servers all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name, short, full in (("fsx_ops", 3000, 100_000), ("fsx_seeds", 2, 5), ("stress_time", 2, 10), ("fio_size", 4, 64)):
        if getattr(options, name) is None:
            setattr(options, name, full if options.full else short)
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))} (there are: {', '.join(SUITES)})")
    sys.exit(Run(options).all())


class Run:
    def __init__(self, options):
        self.options, self.rows = options, []
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="hfm-", dir=options.dir))
        os.chmod(self.dir, 0o755)
        self.logs = os.path.abspath(options.logs) if options.logs else os.path.join(tempfile.gettempdir(), f"hfmount-suites-logs-{os.getpid()}")
        os.makedirs(self.logs, exist_ok=True)
        self.plain = {}

    def all(self):
        names = [name for name in SUITES if not self.options.suites or name in self.options.suites]
        worlds = WORLDS if self.options.world == "both" else [self.options.world]
        try:
            self.compare_with(Plain(self.dir), [name for name in names if name in COMPARED])
            for world in worlds:
                volume = Volume(self.dir, world)
                try:
                    self.on_volume(volume, names)
                finally:
                    self.keep_logs(volume)
                    volume.close()
                shutil.rmtree(volume.dir, ignore_errors=True)
        finally:
            # What could not be unmounted is not to be deleted through.
            with open("/proc/self/mountinfo", encoding="utf-8") as table:
                busy = any(line.split()[4].startswith(self.dir) for line in table)
            if not busy:
                shutil.rmtree(self.dir, ignore_errors=True)
        return self.report()

    def compare_with(self, plain, names):
        for name in names:
            result, states = self.one(name, plain.world, plain.dir)
            self.plain[name] = states
            self.rows.append((name, plain.world, result))
            plain.clear()

    def on_volume(self, volume, names):
        options = self.options.mount_options.split()
        directories = [volume.mount(*options)]
        if "fsx-two" in names:
            directories.append(volume.mount(*options))
        for name in names:
            places = [os.path.join(point, name[:4]) for point in directories]
            os.makedirs(places[0], mode=0o755)
            result, states = self.one(name, volume.world, places if name == "fsx-two" else places[0])
            if name in COMPARED:
                self.forgive(name, result, states)
            self.rows.append((name, volume.world, result))
            # Everything that a suite leaves can be removed: if not, this fails, and it should.
            shutil.rmtree(places[0])

    def one(self, name, world, place):
        """Runs a suite: (result, states by test)."""
        began = time.monotonic()
        log = os.path.join(self.logs, f"{name}-{world}.log")
        print(f"==> {name} on {world}", file=sys.stderr, flush=True)
        try:
            answer = SUITES[name](place, self.options, log)
        except Failed as failed:
            answer = Result(0, 1, 0, [f"{name}: {failed}"])
        result, states = answer if isinstance(answer, tuple) else (answer, {})
        result.seconds = time.monotonic() - began
        print(f"    {result.passed} passed, {result.failed} failed, {result.skipped} skipped", file=sys.stderr)
        for trouble in result.troubles:
            print(f"    - {trouble}", file=sys.stderr, flush=True)
        return result, states

    def forgive(self, name, result, states):
        """What fails on the plain folder as well says nothing of the mount: it is counted as skipped."""
        plain = self.plain[name]
        both = [test for test, state in states.items() if bad(state) and test in plain and bad(plain[test])]
        result.failed -= len(both)
        result.skipped += len(both)
        result.troubles = [t for t in result.troubles if not any(t.split(": exit")[0].endswith(test) for test in both)]
        worse = [test for test, state in plain.items() if state in GOOD and states.get(test) not in GOOD]
        known = [test for test in worse if f"{name} {test}" in KNOWN]
        for test in worse:
            # Its state here is "skipped", and counted so already, or "failed" and among the troubles.
            if test in known and bad(states.get(test)):
                result.failed, result.skipped = result.failed - 1, result.skipped + 1
                result.troubles = [t for t in result.troubles if not t.split(": exit")[0].endswith(test)]
            elif test not in known and not bad(states.get(test)):
                result.skipped -= 1
                result.add(False, f"{name} {test}: passes on the plain folder and is skipped here")
        if not any(state in GOOD for state in plain.values()):
            result.add(False, f"{name}: nothing passes on the plain folder, so nothing is compared")
        notes = [f"{len(worse) - len(known)} that pass on the plain folder do not here", f"{len(both)} fail on both"]
        notes += [f"known: {test} ({KNOWN[f'{name} {test}']})" for test in known]
        result.note = "; ".join(notes)

    def keep_logs(self, volume):
        for point, _ in volume.mounts:
            if os.path.exists(f"{point}.log"):
                shutil.copy(f"{point}.log", os.path.join(self.logs, f"daemon-{volume.world}-{point[-1]}.log"))
        self.rows.append(("daemon logs", volume.world, warnings_of(volume)))

    def report(self):
        print(f"\n{'suite':12} {'where':9} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
        passed = failed = 0
        for name, world, result in self.rows:
            seconds = f"{getattr(result, 'seconds', 0):.0f}"
            line = f"{name:12} {world:9} {result.passed:7} {result.failed:7} {result.skipped:8} {seconds:>8}  {result.note}"
            print(line.rstrip())
            if world != "plain":
                passed, failed = passed + result.passed, failed + result.failed
        troubles = [f"{world}: {t}" for _, world, result in self.rows if world != "plain" for t in result.troubles]
        if troubles:
            print("\nwhat failed:")
            for trouble in troubles:
                print(f"  {trouble}")
        if self.options.json:
            rows = [{"suite": name, "where": world, **vars(result)} for name, world, result in self.rows]
            with open(self.options.json, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)
        print(f"logs: {self.logs}")
        print(f"{passed} passed, {failed} failed")
        return 1 if failed else 0


def bad(state):
    return state in ("failed", "FAILED") or (isinstance(state, int) and state not in (0, 3, 4))


def warnings_of(volume):
    """Warnings tell of trouble, but are no failures by themselves; a panic is."""
    lines = volume.warnings()
    panics = [line for line in lines if "panicked" in line]
    return Result(0, len(panics), 0, panics, f"{len(lines)} warnings" + (f", such as: {lines[0][:150]}" if lines else ""))


if __name__ == "__main__":
    main()
