"""Running the programs of the suites, and finding them."""

import os
import shutil
import subprocess
import sys

from process import ROOT, Failed

TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
# Compiled once, kept beside what else is built.
TOOLS = os.environ.get("HFMOUNT_SUITES_TOOLS", os.path.join(TARGET, "suites"))
# A suite that does not end by then has failed.
PATIENCE = 3600


class Result:
    """What a suite came to in one place: counts, and what was wrong, one line each."""

    def __init__(self, passed=0, failed=0, skipped=0, troubles=(), note=""):
        self.passed, self.failed, self.skipped = passed, failed, skipped
        self.troubles, self.note = list(troubles), note

    def add(self, good, trouble):
        """Counts one more; `trouble` says what failed."""
        if good:
            self.passed += 1
        else:
            self.failed += 1
            self.troubles.append(trouble)


def cargo_tool(name, version, *flags):
    """A program of the crate registry, compiled into TOOLS unless it is there."""
    path = os.path.join(TOOLS, "bin", name)
    root = ["--root", TOOLS, "--target-dir", os.path.join(TOOLS, "build"), *flags]
    if not os.path.exists(path):
        print(f"==> cargo install {name} {version} (once)", file=sys.stderr)
        subprocess.run(["cargo", "install", name, "--version", version, "--locked", "--quiet", *root], check=True)
        shutil.rmtree(os.path.join(TOOLS, "build"), ignore_errors=True)
    return path


def find(name):
    path = shutil.which(name)
    if path is None:
        raise Failed(f"no {name} here: scripts/setup.sh suites installs it")
    return path


def run(command, log=None, timeout=PATIENCE, **options):
    """Runs a program to its end: (exit status, output); the output is kept in `log`. A program that hangs is killed."""
    options.setdefault("stdin", subprocess.DEVNULL)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **options
    )
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        try:
            output, _ = child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            output = "(it does not even die)"
        output += f"\nkilled after {timeout} s\n"
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(map(str, command))}\n{output}\n[exit {child.returncode}]\n")
    return child.returncode, output


def last_lines(output, number=3):
    return " | ".join(line.strip() for line in output.strip().splitlines()[-number:])[:400]
