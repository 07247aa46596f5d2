"""The stand-in Hub as the suites see it: repositories put into it, what it was asked, what goes wrong with it."""

import hashlib
import json
import os
import shutil
import urllib.request

from process import Failed, Process, built, free_port

PLURAL = {"model": "models", "dataset": "datasets", "space": "spaces"}
# What moves bytes of files; all other kinds of requests are names and attributes.
CONTENT = ("resolve_get", "resolve_cache", "cdn_get")


class Hub:
    """`standin hub` as a child process, on ports that it keeps over a restart."""

    def __init__(self, root, *options, host="127.0.0.1"):
        self.root, self.options, self.host = root, options, host
        self.port, self.cdn_port = free_port(), free_port()
        self.url = f"http://{host}:{self.port}"
        os.makedirs(root, exist_ok=True)
        self.start()

    def start(self):
        command = [built("examples", "standin"), "hub", "--root", self.root, *self.options]
        command += ["--listen", f"{self.host}:{self.port}", "--cdn-listen", f"{self.host}:{self.cdn_port}"]
        self.process = Process("standin hub", command, self.root + ".log")
        self.process.until(self._answers, 20, "answers")

    def _answers(self):
        try:
            return self.control("counters") is not None
        except OSError:
            return False

    def stop(self):
        self.process.stop(5)

    def freeze(self):
        """From now on connections open and nothing is answered."""
        self.process.freeze()

    def thaw(self):
        self.process.thaw()

    def control(self, name, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_standin/{name}", data=data)
        # Never through a proxy that the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)

    def seen(self):
        """All that was asked so far; subtract an earlier one for what was asked since."""
        return Seen(self.control("counters"))

    def spoil(self, **faults):
        self.control("faults", HEALTHY | faults)

    def heal(self):
        self.control("faults", HEALTHY)

    # --- repositories

    def add(self, repo_id, files, kind="model", branch="main", tag=None, pr=None, **settings):
        """Commits `files` (path -> bytes) as the whole tree of a branch, a tag or a pull request.

        What the branch named before stays there as an old commit. Further settings: `private`, `gated` ("auto"), `xet`,
        `readers` (tokens besides the repository's own).
        """
        return self._commit(repo_id, kind, branch, tag, pr, settings, lambda folder: write_all(folder, files))

    def add_folder(self, repo_id, source, kind="model"):
        """Commits the files of a folder as `main`."""

        def link_all(folder):
            shutil.copytree(source, folder, copy_function=os.symlink)

        return self._commit(repo_id, kind, "main", None, None, {}, link_all)

    def _commit(self, repo_id, kind, branch, tag, pr, settings, fill):
        place = os.path.join(self.root, PLURAL[kind], repo_id)
        os.makedirs(place, exist_ok=True)
        path = os.path.join(place, "repo.json")
        described = {
            "branches": {},
            "tags": {},
            "pr": {},
            "tokens": [f"hf_{hashlib.sha256(repo_id.encode()).hexdigest()[:34]}"],
        }
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                described = json.load(file)
        folder = f"commit-{len(os.listdir(place))}"
        fill(os.path.join(place, folder))
        names, name = ("tags", tag) if tag else ("pr", str(pr)) if pr else ("branches", branch)
        described[names][name] = folder
        described["tokens"] += settings.pop("readers", [])
        described |= settings
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(described, file)
        os.rename(path + ".tmp", path)
        return Repo(
            self, repo_id, kind, os.path.join(place, folder), described, f"refs/pr/{pr}" if pr else tag or branch
        )

    def move(self, old_id, new_id, kind="model"):
        """`old_id` redirects to `new_id` from now on."""
        place = os.path.join(self.root, PLURAL[kind], old_id)
        os.makedirs(place)
        with open(os.path.join(place, "repo.json"), "w", encoding="utf-8") as file:
            json.dump({"movedTo": new_id}, file)

    def commit(self, repo_id, kind="model", revision="main"):
        """The commit that a revision is at, of a repository that lies in the Hub's folder already."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f"{self.url}/api/{PLURAL[kind]}/{repo_id}/revision/{revision}"
        with opener.open(urllib.request.Request(url, headers={"User-Agent": "tests"}), timeout=300) as answer:
            return json.load(answer)["sha"]

    def user(self, name, token=None):
        """A token that exists; whoami answers `name` to it."""
        return token or f"hf_{name}"


class Repo:
    """One commit of a repository in the stand-in Hub."""

    def __init__(self, hub, repo_id, kind, folder, described, revision):
        self.hub, self.id, self.kind, self.revision, self._folder = hub, repo_id, kind, revision, folder
        self.token = described["tokens"][0]
        self.folder = f"{PLURAL[kind]}--{repo_id.replace('/', '--')}"
        self.label = f"{PLURAL[kind]}/{repo_id}"
        quoted = revision.replace("/", "%2F")
        request = urllib.request.Request(
            f"{hub.url}/api/{PLURAL[kind]}/{repo_id}/revision/{quoted}?blobs=true",
            headers={"Authorization": f"Bearer {self.token}", "User-Agent": "tests"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            info = json.load(answer)
        self.commit = info["sha"]
        self._files = {sibling["rfilename"]: sibling for sibling in info["siblings"]}

    def names(self):
        return list(self._files)

    def git_oid(self, name):
        return self._files[name]["blobId"]

    def lfs_sha256(self, name):
        return self._files[name].get("lfs", {}).get("sha256")

    def read(self, name, offset, length):
        with open(os.path.join(self._folder, name), "rb") as file:
            file.seek(offset)
            return file.read(length)


class Seen:
    """What the Hub and its CDN were asked, up to some moment or between two."""

    def __init__(self, counters):
        self.requests = {kind: count for kind, count in counters["requests"].items() if count}
        self.agents = {
            agent: {kind: count for kind, count in kinds.items() if count}
            for agent, kinds in counters["agents"].items()
            if agent != "tests"
        }
        for kind, count in counters["agents"].get("tests", {}).items():
            self.requests[kind] -= count
        self.requests = {kind: count for kind, count in self.requests.items() if count}
        self.bytes, self.leaked_tokens = counters["bytes"], counters["leaked_tokens"]
        self.ranges = counters["ranges"]

    def __sub__(self, earlier):
        since = object.__new__(Seen)
        since.requests = difference(self.requests, earlier.requests)
        since.agents = {agent: difference(kinds, earlier.agents.get(agent, {})) for agent, kinds in self.agents.items()}
        since.bytes = self.bytes - earlier.bytes
        since.leaked_tokens = self.leaked_tokens - earlier.leaked_tokens
        since.ranges = self.ranges[len(earlier.ranges) :]
        return since

    def by_mounts(self):
        """Requests of hfmount daemons, by kind."""
        return self._by(lambda agent: agent == "hfmount")

    def by_clients(self):
        """Requests of everybody else, by kind."""
        return self._by(lambda agent: agent != "hfmount")

    def _by(self, wanted):
        total = {}
        for agent, kinds in self.agents.items():
            for kind, count in kinds.items() if wanted(agent) else ():
                total[kind] = total.get(kind, 0) + count
        return total

    def content_for_clients(self):
        """Transfers of bytes of files to anybody but a mount."""
        return [transfer for transfer in self.ranges if transfer["agent"] != "hfmount"]

    def ranges_of(self, repo, name):
        """(start, end) of every transfer of this file to a mount, in the order of the requests; empty ones left out."""
        return [
            (transfer["start"], transfer["end"])
            for transfer in self.ranges
            if transfer["path"] == f"{repo.label}/{name}"
            and transfer["agent"] == "hfmount"
            and transfer["end"] > transfer["start"]
        ]


HEALTHY = {
    "only": "any", "too_many": 0, "retry_after": None, "ratelimit_t": None, "unavailable": 0, "hang": 0, "delay_ms": 0,
    "cut": 0, "cut_after": 0, "stall": 0, "stall_after": 0, "wrong": 0, "gated": False, "expired": 0, "no_range": False,
    "refuse": False,
}  # fmt: skip


def s3_command(root, port, host="127.0.0.1"):
    """`standin s3`: its one bucket is `volumes`; each object is a file below `root`."""
    return [built("examples", "standin"), "s3", "--root", root, "--bucket", "volumes", "--listen", f"{host}:{port}"]


def difference(now, before):
    changed = {kind: count - before.get(kind, 0) for kind, count in now.items()}
    return {kind: count for kind, count in changed.items() if count}


def write_all(folder, files):
    for name, data in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


__all__ = ["CONTENT", "Failed", "Hub", "Repo", "Seen", "s3_command"]
