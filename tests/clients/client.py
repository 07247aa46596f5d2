"""Programs of users: the Hub libraries in a process, with an environment and, as root, an identity of their own."""

import atexit
import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile

from process import ROOT, Failed

HERE = os.path.dirname(os.path.abspath(__file__))
VENVS = os.environ.get("HFMOUNT_VENVS", os.path.join(ROOT, ".venv"))
STACKS = ("new", "old", "transformers")


class Client:
    """One run of a user's program."""

    def __init__(self, command, env, cwd, identity):
        self.command = command
        self.child = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, umask=0o022, **identity,
        )  # fmt: skip

    def finish(self, timeout=120):
        try:
            output, _ = self.child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done within {timeout} s: {self.command[1:]}") from None
        return self.child.returncode, output

    def answer(self, timeout=120, check=True):
        status, output = self.finish(timeout)
        lines = output.splitlines()
        if status != 0 or not lines:
            raise AssertionError(f"{self.command[1:]}: exit {status}\n{output}")
        answer = json.loads(lines[-1])
        if check and isinstance(answer, dict) and "raised" in answer:
            raise AssertionError(f"{self.command[2:]}: {answer['raised']}: {answer['says']}")
        return answer

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(10)


_copies = None


def readable_by_all():
    """Where the venvs and the actions lie for any user to read: copies under /tmp, if they are in somebody's private home."""
    global _copies
    for stack in ("new", "old"):
        if not os.path.exists(os.path.join(VENVS, stack, ".made-from")):
            raise Failed(f"no {stack} client libraries in {VENVS}: run scripts/setup.sh python")
    if public(VENVS) and public(HERE):
        return VENVS, HERE
    if _copies is None:
        _copies = tempfile.mkdtemp(prefix="hfmount-venvs-")
        os.chmod(_copies, 0o755)
        atexit.register(shutil.rmtree, _copies, ignore_errors=True)
        for stack in STACKS:
            if os.path.isdir(os.path.join(VENVS, stack)):
                shutil.copytree(os.path.join(VENVS, stack), os.path.join(_copies, stack), symlinks=True)
        shutil.copytree(HERE, os.path.join(_copies, "scripts"))
    return _copies, os.path.join(_copies, "scripts")


def public(path):
    """Whether every folder down to `path` may be walked by any user."""
    path = os.path.realpath(path)
    while path != "/":
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
        path = os.path.dirname(path)
    return True
