"""Every kind of repository, revision and file name that the Hub allows."""

import os
import stat
import unittest

from case import MIB, Case, noise
from world import USERS

CONFIG = {"config.json": b'{"model_type": "none"}\n'}
ODD = {
    "with space.txt": b"space",
    "hash#tag.txt": b"hash",
    "question?.txt": b"question",
    "percent%20.txt": b"percent",
    "plus+and&.txt": b"plus",
    "quote'\".txt": b"quote",
    "semi;colon:.txt": b"semi",
    "grüße/über/straße.txt": "grüße".encode(),
    "数据/模型.bin": noise(70_000, "numbers"),
    "emoji-🤗.json": b"{}",
    "a/b/c/d/e/f/g/deep.txt": b"deep",
    "dots/..almost": b"dots",
    ".hidden": b"hidden",
    "empty": b"",
    "dir/empty.bin": b"",
}


class Names(Case):
    def assert_snapshot(self, repo, files, **how):
        answer = self.world.act("snapshot", repo_id=repo.id, repo_type=repo.kind, **how)
        self.assertEqual(sorted(answer["files"]), sorted(files))
        for name, data in files.items():
            self.assert_same(answer["files"][name], data, name)
        return answer

    def test_odd_file_names(self):
        repo = self.hub.add("acme/odd", ODD)
        before = self.hub.seen()
        for stack in ("new", "old"):
            self.assert_snapshot(repo, ODD, stack=stack)
        for name in ODD:
            self.assert_same(self.world.act("download", repo_id=repo.id, filename=name), ODD[name], name)
        self.assert_no_content_for_clients(self.hub.seen() - before)
        self.assert_no_warnings(self.world.act("scan"), repo)

    def test_odd_repository_names(self):
        for repo_id in ("gpt2", "a/b", "Org-With.Dots/name_under-dash.1.0", "acme/" + "n" * 80):
            with self.subTest(repo_id):
                repo = self.hub.add(repo_id, CONFIG)
                before = self.hub.seen()
                self.assert_snapshot(repo, CONFIG)
                self.assert_no_content_for_clients(self.hub.seen() - before)

    def test_datasets_and_spaces(self):
        for kind in ("dataset", "space"):
            files = {"README.md": b"# " + kind.encode(), "data/train.parquet": noise(5 * MIB, kind)}
            repo = self.hub.add(f"acme/a-{kind}", files, kind=kind)
            for stack in ("new", "old"):
                with self.subTest(kind=kind, stack=stack):
                    before = self.hub.seen()
                    self.assert_snapshot(repo, files, stack=stack)
                    self.assert_no_content_for_clients(self.hub.seen() - before)
            self.assertIn(f"{kind}/{repo.id}", self.world.act("scan")["repos"])

    def test_branches_tags_and_pull_requests(self):
        """Each revision by its name and by its commit, online and offline."""
        kinds = {
            "main": {},
            "dev": {"branch": "dev"},
            "feature/x": {"branch": "feature/x"},
            "v1.0": {"tag": "v1.0"},
            "refs/pr/1": {"pr": 1},
        }
        repos = {}
        for revision, how in kinds.items():
            repos[revision] = self.hub.add("acme/revisions", {"which.txt": revision.encode()}, **how)
        self.assertEqual(len({repo.commit for repo in repos.values()}), len(kinds))
        for revision, repo in repos.items():
            for stack in ("new", "old"):
                with self.subTest(revision=revision, stack=stack):
                    for wanted in (revision, repo.commit):
                        answer = self.world.act(
                            "download", repo_id=repo.id, filename="which.txt", revision=wanted, stack=stack
                        )
                        self.assert_same(answer, revision.encode())
                        self.assertIn(f"/snapshots/{repo.commit}/", answer["path"])
                    answer = self.world.act(
                        "download", repo_id=repo.id, filename="which.txt", revision=revision, stack=stack, offline=True
                    )
                    self.assert_same(answer, revision.encode())
        refs = os.path.join(self.world.repo_dir(repos["main"]), "refs")
        with open(os.path.join(refs, "feature", "x"), "rb") as file:
            self.assertEqual(file.read(), repos["feature/x"].commit.encode())
        with open(os.path.join(refs, "refs", "pr", "1"), "rb") as file:
            self.assertEqual(file.read(), repos["refs/pr/1"].commit.encode())
        self.assert_no_warnings(self.world.act("scan"), repos["main"])
        raised = self.world.refused(
            "download", repo_id="acme/revisions", filename="which.txt", revision="no-such-branch"
        )
        self.assertEqual(raised, "RevisionNotFoundError")

    def test_lazily_by_branch_alone(self):
        """A program that only knows the tree of files: refs/<branch>, then snapshots/<commit>, nothing downloaded before."""
        if not self.world.lazy:
            self.skipTest("only a mount fills itself")
        repo = self.hub.add("acme/by-branch", {"which.txt": b"main"})
        dev = self.hub.add("acme/by-branch", {"which.txt": b"dev"}, branch="dev/two")
        for revision, wanted in (("main", repo), ("dev/two", dev)):
            with open(os.path.join(self.world.repo_dir(repo), "refs", revision), encoding="ascii") as file:
                commit = file.read()
            self.assertEqual(commit, wanted.commit)
            with open(os.path.join(self.world.repo_dir(repo), "snapshots", commit, "which.txt"), "rb") as file:
                self.assertEqual(file.read(), revision.split("/")[0].encode())

    def test_thousands_of_files(self):
        """More than the Hub lists on a page; all there, none twice, in one snapshot."""
        files = {f"part-{number % 7}/file-{number:05}.txt": b"%d" % number for number in range(3210)}
        repo = self.hub.add("acme/thousands", files)
        if self.world.lazy:
            snapshot = os.path.join(self.world.repo_dir(repo), "snapshots", repo.commit)
            found = [
                os.path.relpath(os.path.join(parent, name), snapshot)
                for parent, _, names in os.walk(snapshot)
                for name in names
            ]
            self.assertEqual(sorted(found), sorted(files))
            self.assertEqual(len(os.listdir(os.path.join(self.world.repo_dir(repo), "blobs"))), len(files))
            before = self.hub.seen()
            answer = self.world.act("snapshot", repo_id=repo.id, read=False, offline=True)
            self.assertEqual(sorted(answer["files"]), sorted(files))
            self.assert_silence(self.hub.seen() - before)
        some = sorted(files)[-1]
        self.assert_same(self.world.act("download", repo_id=repo.id, filename=some), files[some])

    def test_sharded_model(self):
        """An index and its shards: loaded as programs load them, by patterns."""
        files = {f"model-{n:05}-of-00004.safetensors": noise(3 * MIB + n, f"shard{n}") for n in range(1, 5)}
        files["model.safetensors.index.json"] = b'{"metadata": {}, "weight_map": {}}'
        repo = self.hub.add("acme/sharded", files | CONFIG)
        before = self.hub.seen()
        answer = self.world.act("snapshot", repo_id=repo.id, allow_patterns=["*.safetensors", "*.index.json"])
        for name, data in files.items():
            self.assert_same(answer["files"][name], data, name)
        seen = self.hub.seen() - before
        self.assert_no_content_for_clients(seen)
        for name, data in files.items():
            self.assert_each_byte_once(seen, repo, name, len(data))

    def test_one_content_under_many_names(self):
        """Two files and two repositories with the same bytes: fetched once."""
        data = noise(5 * MIB, "twin")
        first = self.hub.add("acme/twin-one", {"a.bin": data, "b/c.bin": data})
        second = self.hub.add("acme/twin-two", {"other.bin": data})
        before = self.hub.seen()
        self.assert_snapshot(first, {"a.bin": data, "b/c.bin": data})
        self.assert_snapshot(second, {"other.bin": data})
        if self.world.lazy:
            self.assertEqual((self.hub.seen() - before).bytes, len(data))

    def test_repositories_in_xet_storage(self):
        """What the Hub says of Xet changes nothing: the mount has the bytes, the libraries do not reach for theirs."""
        files = CONFIG | {"model.safetensors": noise(6 * MIB, "xet")}
        for stack in ("new", "old"):
            for offline in (False, True) if self.world.lazy else (False,):
                with self.subTest(stack=stack, offline=offline):
                    repo = self.hub.add(f"acme/xet-{stack}-{offline}", files, xet=True)
                    before = self.hub.seen()
                    self.assert_snapshot(repo, files, stack=stack, offline=offline)
                    answer = self.world.act("download", repo_id=repo.id, filename="model.safetensors", stack=stack)
                    self.assert_same(answer, files["model.safetensors"])
                    self.assert_no_content_for_clients(self.hub.seen() - before)

    def test_a_renamed_repository(self):
        self.hub.add("acme/new-name", CONFIG)
        self.hub.move("acme/old-name", "acme/new-name")
        answer = self.world.act("download", repo_id="acme/old-name", filename="config.json")
        self.assert_same(answer, CONFIG["config.json"])


class Private(Case):
    """Repositories that want a token: the daemon's."""

    FILES = CONFIG | {"model.safetensors": noise(2 * MIB, "private")}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.token = cls.hub.user("daemon")
        if cls.world.lazy:
            cls.world.remount(0, "--gid", str(USERS[0]), env={"HF_TOKEN": cls.token})

    def setUp(self):
        super().setUp()
        if not self.world.lazy:
            self.skipTest("says something of a mount's token")

    def test_with_the_mounts_token(self):
        for how in ({"private": True}, {"gated": "auto"}, {"private": True, "gated": "manual"}):
            repo = self.hub.add(f"acme/token-{len(how)}-{list(how)[0]}", self.FILES, readers=[self.token], **how)
            before = self.hub.seen()
            answer = self.world.act("snapshot", repo_id=repo.id, offline=True)
            for name, data in self.FILES.items():
                self.assert_same(answer["files"][name], data, name)
            seen = self.hub.seen() - before
            self.assert_no_content_for_clients(seen)
            self.assertEqual(seen.leaked_tokens, 0)

    def test_modes_keep_others_out(self):
        """Private and gated: 0750, the mount's --uid and --gid. Public: for everybody."""
        if os.geteuid() != 0:
            self.fail("acting as other users needs root")
        for name, how, mode in (
            ("public", {}, 0o755),
            ("private", {"private": True}, 0o750),
            ("gated", {"gated": "auto"}, 0o750),
        ):
            with self.subTest(name):
                repo = self.hub.add(f"acme/modes-{name}", self.FILES, readers=[self.token], **how)
                self.world.act("snapshot", repo_id=repo.id, offline=True)
                found = os.stat(self.world.repo_dir(repo))
                self.assertEqual(stat.S_IMODE(found.st_mode) & 0o755, mode)
                path = os.path.join(self.world.repo_dir(repo), "snapshots", repo.commit, "config.json")
                in_group, outside = (self.world.act("errno_of", path=path, user=user) for user in USERS)
                self.assertEqual(in_group, 0)
                self.assertEqual(outside != 0, mode == 0o750)

    def test_without_access_there_is_no_such_name(self):
        repo = self.hub.add("acme/not-for-us", self.FILES, private=True)
        self.assertFalse(os.path.exists(self.world.repo_dir(repo)))
        # The Hub lists the files of a gated repository to everybody; without its bytes it is no repository here either.
        files = {"config.json": CONFIG["config.json"], "model.bin": noise(100_000, "closed")}
        gated = self.hub.add("acme/closed-gate", files, gated="manual")
        self.assertFalse(os.path.exists(self.world.repo_dir(gated)))
        self.assertNotIn(gated.folder, os.listdir(self.world.cache()))
        self.assertEqual(self.world.refused("download", repo_id=gated.id, filename="model.bin"), "GatedRepoError")
        for stack in ("new", "old"):
            answer = self.world.act(
                "download_all", repo_id=gated.id, filenames=sorted(files), token=gated.token, stack=stack
            )
            for name, data in files.items():
                self.assert_same(answer[name], data, name)


if __name__ == "__main__":
    unittest.main()
