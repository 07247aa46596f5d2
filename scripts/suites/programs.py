"""Suites that are ordinary programs at work: CPython's own tests, git, cargo, pip."""

import os
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree

from process import ROOT, Failed
from tools import Result, find, last_lines, run

CPYTHON = ["test_os", "test_shutil", "test_tempfile", "test_mmap", "test_io", "test_zipfile", "test_sqlite3"]


def python_with_tests():
    """A Python that has its own test suite."""
    for program in (os.environ.get("PYTHON"), sys.executable, "python3", "/usr/bin/python3"):
        if program and shutil.which(program):
            if subprocess.run([program, "-c", "import test.test_os, test.test_mmap"], capture_output=True).returncode == 0:
                return program
    raise Failed("no Python with its own tests here: scripts/setup.sh suites installs it")


def cpython(directory, options, log):
    """CPython's tests with everything temporary in `directory`. Answers the states by test as well."""
    program, result, states = python_with_tests(), Result(), {}
    for module in CPYTHON:
        place = os.path.join(directory, module)
        report = f"{log}.{module}.xml"
        os.makedirs(place)
        env = os.environ | {"TMPDIR": place, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [program, "-m", "test", "-u", "largefile", "--junit-xml", report, "--tempdir", place, module]
        if os.path.exists(report):
            os.unlink(report)
        _, output = run(command, log, env=env, cwd=place, timeout=1800)
        run(["rm", "-rf", place], log)
        if not os.path.exists(report):
            result.add(False, f"cpython {module}: {last_lines(output)}")
            states[module] = "failed"
            continue
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            name = f"{module}: {case.get('name')}"
            if case.find("failure") is not None or case.find("error") is not None:
                states[name] = "failed"
                result.add(False, f"cpython {name}")
            elif case.get("result") == "skipped" or case.find("skipped") is not None:
                states[name] = "skipped"
                result.skipped += 1
            else:
                states[name] = "ok"
                result.passed += 1
    result.note = program
    return result, states


def steps(log, *commands, **options):
    """Runs commands until one fails: a result with one count for each."""
    result = Result()
    for command in commands:
        status, output = run(command, log, **options)
        result.add(status == 0, f"{' '.join(command)}: exit {status}: {last_lines(output)}")
        if status != 0:
            break
    return result


def git(directory, options, log):
    """This repository cloned, checked, changed, packed and checked again."""
    program, clone = find("git"), os.path.join(directory, "clone")
    if not os.path.exists(os.path.join(ROOT, ".git")):
        return Result(skipped=1, note="this is no git repository")
    user = ["-c", "user.name=suites", "-c", "user.email=suites@localhost", "-c", "gc.auto=0"]
    inside = [program, "-c", f"safe.directory={clone}", *user, "-C", clone]
    result = steps(
        log,
        [program, "clone", "--no-local", "--quiet", ROOT, clone],
        [*inside, "fsck", "--full", "--strict"],
        [*inside, "diff", "--exit-code", "HEAD"],
        [*inside, "checkout", "--quiet", "-b", "work"],
        ["sh", "-c", f"for n in $(seq 50); do echo $n > '{clone}/new-'$n; done; rm -r '{clone}/src'"],
        [*inside, "add", "--all"],
        [*inside, "commit", "--quiet", "--message", "changed"],
        [*inside, "checkout", "--quiet", "HEAD~1"],
        [*inside, "diff", "--exit-code", "HEAD"],
        [*inside, "worktree", "add", "--quiet", os.path.join(directory, "tree"), "work"],
        [*inside, "gc", "--quiet", "--prune=now"],
        [*inside, "fsck", "--full", "--strict"],
    )
    left = subprocess.run([*inside, "status", "--porcelain"], capture_output=True, text=True).stdout
    result.add(left == "", f"git status is not clean: {left[:200]}")
    head = [subprocess.run([program, "-C", at, "rev-parse", "HEAD^{tree}"], capture_output=True, text=True).stdout for at in (ROOT, clone)]
    result.add(head[0] == head[1], "the clone's tree is not the one that was cloned")
    return result


MANIFEST = """\
[package]
name = "small"
version = "0.1.0"
edition = "2021"
[workspace]
"""
BUILD_RS = """\
fn main() {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap()).join("made.rs");
    std::fs::write(out, "pub const MADE: u32 = 42;").unwrap();
}
"""
LIB_RS = """\
include!(concat!(env!("OUT_DIR"), "/made.rs"));
pub mod part;
#[test]
fn made() { assert_eq!(MADE + part::NUMBER, 42 + %d); }
"""


def cargo(directory, options, log):
    """A small crate with a build script: built, tested, changed, built again; its target lies on the mount."""
    program, crate = find("cargo"), os.path.join(directory, "crate")

    def write(name, text):
        os.makedirs(os.path.dirname(os.path.join(crate, name)), exist_ok=True)
        with open(os.path.join(crate, name), "w", encoding="ascii") as file:
            file.write(text)

    env = {k: v for k, v in os.environ.items() if k != "CARGO_TARGET_DIR"} | {"CARGO_INCREMENTAL": "1"}
    total = Result()
    for number in (1, 2):
        write("Cargo.toml", MANIFEST)
        write("build.rs", BUILD_RS)
        write("src/lib.rs", LIB_RS % number)
        write("src/part.rs", f"pub const NUMBER: u32 = {number};\n")
        write("src/main.rs", 'fn main() { println!("{}", small::MADE + small::part::NUMBER); }\n')
        where = ["--manifest-path", os.path.join(crate, "Cargo.toml"), "--offline", "--quiet"]
        one = steps(log, [program, "build", *where], [program, "test", *where], env=env)
        total.passed, total.failed = total.passed + one.passed, total.failed + one.failed
        total.troubles += one.troubles
        status, output = run([os.path.join(crate, "target/debug/small")], log) if not one.failed else (1, "not built")
        total.add((status, output.strip()) == (0, str(42 + number)), f"the program says {output!r}")
    return total


def pip(directory, options, log):
    """A venv on the mount with numpy in it, used, and its files checked against what pip noted of them."""
    venv = os.path.join(directory, "venv")
    python = os.path.join(venv, "bin", "python")
    system = next((p for p in ("/usr/bin/python3", sys.executable) if has_venv(p)), None)
    if system is None:
        return Result(skipped=1, note="no Python with venv")
    use = textwrap.dedent("""\
        import numpy as np
        a = np.arange(10000.0).reshape(100, 100)
        assert np.allclose(np.linalg.inv(a + np.eye(100)) @ (a + np.eye(100)), np.eye(100), atol=1e-5)
    """)
    check = textwrap.dedent("""\
        import base64, csv, glob, hashlib, os, sysconfig
        site = sysconfig.get_paths()["purelib"]
        wrong = checked = 0
        for record in glob.glob(site + "/*.dist-info/RECORD"):
            for name, digest, size in csv.reader(open(record)):
                if digest.startswith("sha256="):
                    data = open(os.path.join(site, name), "rb").read()
                    found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                    checked += 1
                    wrong += found != digest[7:] or len(data) != int(size)
        print(f"{checked} files checked, {wrong} wrong")
        assert checked > 500 and not wrong
    """)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    return steps(
        log,
        [system, "-m", "venv", venv],
        [python, "-m", "pip", "install", *quiet, "numpy"],
        [python, "-c", use],
        [python, "-c", check],
        [python, "-m", "pip", "uninstall", "--yes", *quiet, "numpy"],
    )


def has_venv(program):
    return subprocess.run([program, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0


