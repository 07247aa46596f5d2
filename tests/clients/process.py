"""Child processes of the tests: started with a log each, watched while they come up, stopped by their own pid."""

import ctypes
import os
import signal
import socket
import subprocess
import time

_libc = ctypes.CDLL(None)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Failed(Exception):
    """A server or a mount did not do as it was told; the text ends with the last lines of its log."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def built(kind, name):
    """A binary of this project: HFMOUNT_BIN, HFMOUNT_STANDIN or HFMOUNT_RATES names it, else the newest that cargo built
    is taken."""
    variable = {"hfmount": "HFMOUNT_BIN", "standin": "HFMOUNT_STANDIN", "rates": "HFMOUNT_RATES"}[name]
    if variable in os.environ:
        return os.path.abspath(os.environ[variable])
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    places = [os.path.join(target, profile, kind, name) for profile in ("release", "debug")]
    places = [place for place in places if os.path.exists(place)]
    if not places:
        raise Failed(f"{name} is not built: cargo build --release --all-targets, or set {variable}")
    return max(places, key=os.path.getmtime)


def hfmount(arguments, env, check=True, timeout=60):
    """Runs one verb to its end and answers what became of it; one that fails is an error unless `check` says otherwise."""
    command = [built("", "hfmount"), *arguments]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise Failed(f"hfmount {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def mounted(path):
    """Whether a mount lies on `path`, asked of the kernel's table: a hung mount cannot hold this up."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split()[4] == path for line in table)


def wait_until(condition, seconds, what, alive=None):
    """Polls `condition` until it answers something true, and answers that."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if alive is not None and not alive():
            raise Failed(f"{what}: the process ended")
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def end_with_parent():
    """In a child before it starts: SIGTERM (a mount unmounts then) when the tests die, even of kill -9."""
    _libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Process:
    """One child with its output in a log file."""

    def __init__(self, name, arguments, log, env=None, cwd=None):
        self.name, self.log = name, log
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=cwd,
                start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip

    @property
    def pid(self):
        return self.child.pid

    def alive(self):
        return self.child.poll() is None

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def until(self, condition, seconds, what):
        try:
            return wait_until(condition, seconds, f"{self.name}: {what}", self.alive)
        except Failed as failed:
            tail = "\n".join(self.output().splitlines()[-30:])
            raise Failed(f"{failed}\n--- {self.log}\n{tail}") from None

    def signal(self, number):
        if self.alive():
            self.child.send_signal(number)

    def freeze(self):
        """Connections are accepted by the kernel, nothing is answered: a server that hangs."""
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def stop(self, seconds=20):
        """SIGTERM, then SIGKILL. Answers the exit status of a process that ended in time, else None."""
        self.thaw()
        self.signal(signal.SIGTERM)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self):
        self.signal(signal.SIGKILL)
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired as stuck:
            raise Failed(f"{self.name} (pid {self.pid}) does not even die of SIGKILL") from stuck

    def peak_memory(self):
        """The most bytes that this process ever held in memory."""
        return self._status("VmHWM")

    def memory(self):
        """Bytes that it holds in memory now."""
        return self._status("VmRSS")

    def _status(self, figure):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(f"{figure}:"):
                    return int(line.split()[1]) * 1024
        raise Failed(f"{self.name} is gone")
