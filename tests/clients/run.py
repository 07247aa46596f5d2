"""Runs the suites on the worlds, and ends with one line: `clients: N passed, N failed`.

    python run.py [--world embedded] [--world cluster] [SUITE or SUITE.Class or SUITE.Class.test ...]

A test that says nothing of a world is not run there and not counted. `--world plain` runs the suites on an ordinary
folder in the mount's place: what they expect of the libraries is checked without hfmount.
"""

import argparse
import glob
import os
import signal
import subprocess
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True


class Result(unittest.TextTestResult):
    """Says how long each test took, and counts by outcome."""

    passed = 0

    def startTest(self, test):
        self._began = time.monotonic()
        super().startTest(test)

    def addSuccess(self, test):
        self.passed += 1
        super().addSuccess(test)

    def stopTest(self, test):
        took = time.monotonic() - self._began
        if took > 5:
            self.stream.writeln(f"    {took:.1f} s")
        super().stopTest(test)


def run_here(names):
    """All suites on the world that HFMOUNT_TEST_WORLD names; answers (passed, failed)."""
    sys.path.insert(0, HERE)
    loader = unittest.TestLoader()
    suite = loader.loadTestsFromNames(names)
    if loader.errors:
        print("\n".join(loader.errors))
        return 0, len(loader.errors)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result).run(suite)
    return result.passed, len({str(test) for test, _ in result.failures + result.errors})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", action="append", choices=("embedded", "cluster", "plain"))
    parser.add_argument("suites", nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = options.suites or sorted(os.path.basename(path)[:-3] for path in glob.glob(os.path.join(HERE, "test_*.py")))
    if "HFMOUNT_TEST_WORLD" in os.environ and not options.world:
        passed, failed = run_here(names)
        print(f"{os.environ['HFMOUNT_TEST_WORLD']}: {passed} passed, {failed} failed", flush=True)
        return failed != 0

    passed = failed = 0
    for world in options.world or ("embedded", "cluster"):
        print(f"==> clients on {world}", flush=True)
        # A process of its own for each world: what the suites load and leave behind ends with it.
        child = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *names],
            env=os.environ | {"HFMOUNT_TEST_WORLD": world}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        last = []
        try:
            for line in child.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                last = line.split() if line.strip() else last
            status = child.wait()
        finally:
            child.terminate()
            child.wait()
        if last[:1] == [f"{world}:"] and last[2::2] == ["passed,", "failed"]:
            passed, failed = passed + int(last[1]), failed + int(last[3])
        else:
            print(f"{world}: the suites ended with {status} before their end")
            failed += 1
    print(f"clients: {passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
