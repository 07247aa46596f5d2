"""Unmodified clients find in the mount what nobody downloaded."""

import json
import os
import unittest

from case import MIB, Case, noise
from world import wait_until

FILES = {
    "config.json": b'{"model_type": "none"}\n',
    "README.md": b"# A model\n" * 100,
    "model.safetensors": noise(9 * MIB + 4321, "model"),
    "nested/deep/weights.bin": noise(5 * MIB, "nested"),
    "empty.txt": b"",
}
BOTH_USES = ("cache", "home")
BOTH_STACKS = ("new", "old")


class Lazy(Case):
    def repo(self, name, files=None, **how):
        return self.hub.add(f"acme/{name}", files or FILES, **how)

    def test_every_file_reads_as_the_hub_has_it(self):
        """New and old libraries, the mount as HF_HUB_CACHE and as HF_HOME: the same files, and only the mount fetched."""
        for use in BOTH_USES:
            for stack in BOTH_STACKS:
                with self.subTest(use=use, stack=stack):
                    # Contents of its own: what another repository has as well would not be fetched again.
                    own = f"{use} {stack}".encode()
                    files = {name: data + own if data else data for name, data in FILES.items()}
                    repo = self.repo(f"each-{use}-{stack}", files)
                    before = self.hub.seen()
                    answers = self.world.act(
                        "download_all", repo_id=repo.id, filenames=sorted(FILES), use=use, stack=stack
                    )
                    for name, data in files.items():
                        self.assert_same(answers[name], data, name)
                        self.assertIn(f"/snapshots/{repo.commit}/{name}", answers[name]["path"])
                    seen = self.hub.seen() - before
                    self.assert_no_content_for_clients(seen)
                    for name, data in files.items():
                        self.assert_each_byte_once(seen, repo, name, len(data))

    def test_second_load_asks_for_no_content(self):
        repo = self.repo("second")
        self.world.act("snapshot", repo_id=repo.id)
        before = self.hub.seen()
        answer = self.world.act("snapshot", repo_id=repo.id)
        self.assertEqual(sorted(answer["files"]), sorted(FILES))
        seen = self.hub.seen() - before
        self.assert_no_content(seen)
        if self.world.lazy:
            self.assertEqual(seen.by_mounts(), {}, "the mount asked again for what it knows")

    def test_offline_second_load_makes_no_request_at_all(self):
        repo = self.repo("offline")
        self.world.act("snapshot", repo_id=repo.id)
        for use in BOTH_USES if self.world.lazy else ("cache",):
            for stack in BOTH_STACKS:
                with self.subTest(use=use, stack=stack):
                    before = self.hub.seen()
                    answer = self.world.act("snapshot", repo_id=repo.id, offline=True, use=use, stack=stack)
                    self.assertEqual(sorted(answer["files"]), sorted(FILES))
                    for name, data in FILES.items():
                        self.assert_same(answer["files"][name], data, name)
                    self.assert_silence(self.hub.seen() - before)

    def test_offline_client_on_an_untouched_repo(self):
        """HF_HUB_OFFLINE=1 speaks to the client alone: the mount still brings what nobody asked for before."""
        if not self.world.lazy:
            self.skipTest("a plain folder has only what was downloaded")
        repo = self.repo("cold-offline")
        before = self.hub.seen()
        answer = self.world.act("snapshot", repo_id=repo.id, offline=True)
        for name, data in FILES.items():
            self.assert_same(answer["files"][name], data, name)
        self.assertEqual((self.hub.seen() - before).by_clients(), {})

    def test_by_commit_and_by_branch_are_one(self):
        repo = self.repo("commit")
        by_commit = self.world.act("download", repo_id=repo.id, filename="config.json", revision=repo.commit)
        by_branch = self.world.act("download", repo_id=repo.id, filename="config.json")
        self.assertEqual(by_commit, by_branch)

    def test_try_to_load_from_cache(self):
        repo = self.repo("try")
        self.world.act("download", repo_id=repo.id, filename="config.json", read=False)
        before = self.hub.seen()
        for stack in BOTH_STACKS:
            found = self.world.act("try_to_load", repo_id=repo.id, filename="config.json", stack=stack)
            self.assertTrue(found.endswith(f"/snapshots/{repo.commit}/config.json"), found)
            found = self.world.act(
                "try_to_load", repo_id=repo.id, filename="config.json", revision=repo.commit, stack=stack
            )
            if self.world.lazy or found is not None:
                self.assertTrue(found.endswith(f"/snapshots/{repo.commit}/config.json"), found)
            if self.world.lazy:
                gone = self.world.act("try_to_load", repo_id=repo.id, filename="no/such/file.bin", stack=stack)
                self.assertEqual(gone, "no such file")
        self.assert_no_content(self.hub.seen() - before)

    def test_a_file_that_is_not_there(self):
        repo = self.repo("missing")
        for stack in BOTH_STACKS:
            raised = self.world.refused("download", repo_id=repo.id, filename="missing.json", stack=stack)
            self.assertEqual(raised, "EntryNotFoundError" if stack == "old" else "RemoteEntryNotFoundError")
        raised = self.world.refused("download", repo_id="acme/no-such-repo", filename="config.json")
        self.assertEqual(raised, "RepositoryNotFoundError")

    def test_scan_cache_dir(self):
        """scan_cache_dir warns of nothing, and reports every repository with its files and sizes."""
        repo = self.repo("scan")
        self.world.act("snapshot", repo_id=repo.id, read=False)
        for stack in BOTH_STACKS:
            report = self.world.act("scan", stack=stack)
            self.assert_no_warnings(report, repo)
            found = report["repos"][f"model/{repo.id}"]
            self.assertEqual(found["revisions"], {repo.commit: sorted(FILES)})
            self.assertEqual(found["refs"], ["main"])
            self.assertEqual(found["size"], sum(map(len, FILES.values())))

    def test_trees_file_is_what_the_library_would_have_written(self):
        repo = self.repo("trees")
        self.world.act("snapshot", repo_id=repo.id, read=False)
        with open(os.path.join(self.world.repo_dir(repo), "trees", f"{repo.commit}.json"), encoding="utf-8") as file:
            tree = json.load(file)
        self.assertEqual(tree["format_version"], 1)
        self.assertEqual(sorted(tree["files"]), sorted(FILES))
        for name, data in FILES.items():
            self.assertEqual(tree["files"][name]["size"], len(data), name)
            self.assertEqual(tree["files"][name]["blob_id"], repo.git_oid(name), name)
            self.assertEqual(tree["files"][name].get("lfs_sha256"), repo.lfs_sha256(name), name)

    def test_refs_hold_the_bare_commit(self):
        repo = self.repo("bare-commit")
        self.world.act("download", repo_id=repo.id, filename="config.json", read=False)
        refs = os.path.join(self.world.repo_dir(repo), "refs")
        with open(os.path.join(refs, "main"), "rb") as file:
            self.assertEqual(file.read(), repo.commit.encode())
        self.assertFalse(os.path.exists(os.path.join(refs, repo.commit)))
        self.assertEqual(os.listdir(os.path.join(self.world.repo_dir(repo), "snapshots")), [repo.commit])


class Deleting(Case):
    def test_a_deleted_repository_stays_deleted(self):
        repo = self.hub.add("acme/deleted", FILES)
        self.world.act("snapshot", repo_id=repo.id, read=False)
        status, output = self.world.hf("cache", "rm", f"model/{repo.id}", "--yes")
        self.assertEqual(status, 0, output)
        self.assertFalse(os.path.exists(self.world.repo_dir(repo)))
        self.assertNotIn(repo.folder, os.listdir(self.world.cache()))
        answer = self.world.act("download", repo_id=repo.id, filename="config.json")
        self.assert_same(answer, FILES["config.json"], "a download brings it back")


class Moving(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if cls.world.lazy:
            cls.world.remount(0, "--ref-ttl", "2s")

    def test_a_branch_that_moves(self):
        """An online client gets the new commit at once; the mount's own answer follows within --ref-ttl (2 s here)."""
        repo = self.hub.add("acme/moves", FILES)
        self.world.act("download", repo_id=repo.id, filename="config.json")
        moved = self.hub.add("acme/moves", FILES | {"config.json": b'{"moved": true}\n'})
        self.assertNotEqual(moved.commit, repo.commit)
        answer = self.world.act("download", repo_id=repo.id, filename="config.json")
        self.assert_same(answer, b'{"moved": true}\n')
        if self.world.lazy:
            again = self.hub.add("acme/moves", FILES | {"config.json": b'{"moved": "again"}\n'})
            path = os.path.join(self.world.repo_dir(repo), "refs", "main")

            def followed():
                with open(path, encoding="ascii") as file:
                    return file.read() == again.commit

            wait_until(followed, 10, "refs/main follows the Hub")
            answer = self.world.act("download", repo_id=repo.id, filename="config.json", offline=True)
            self.assert_same(answer, b'{"moved": "again"}\n')
        old = self.world.act("download", repo_id=repo.id, filename="config.json", revision=repo.commit)
        self.assert_same(old, FILES["config.json"], "an old commit stays what it was")


class Looking(Case):
    """What programs that only look around cost."""

    def setUp(self):
        super().setUp()
        if not self.world.lazy:
            self.skipTest("only a mount fills itself")

    def test_listing_the_root_never_calls_the_hub(self):
        repo = self.hub.add("acme/listed", FILES)
        before = self.hub.seen()
        root = self.world.cache()
        self.assertNotIn(repo.folder, os.listdir(root))
        for name in (".Trash", "models", "models--", "lost+found", "version.txt", "models--a--b--c--..", "x--y"):
            self.assertFalse(os.path.exists(os.path.join(root, name)), name)
        self.assert_silence(self.hub.seen() - before)

    def test_listed_after_the_first_lookup(self):
        repo = self.hub.add("acme/looked-up", FILES)
        self.assertTrue(os.path.isdir(self.world.repo_dir(repo)))
        names = wait_until(
            lambda: repo.folder in os.listdir(self.world.cache()), 5, "the repository is listed after its first lookup"
        )
        self.assertTrue(names)
        self.assertIn("snapshots", os.listdir(self.world.repo_dir(repo)))

    def test_stat_and_walk_fetch_no_content(self):
        repo = self.hub.add("acme/walked", FILES)
        before = self.hub.seen()
        snapshot = os.path.join(self.world.repo_dir(repo), "snapshots", repo.commit)
        sizes = {}
        for parent, _, names in os.walk(snapshot):
            for name in names:
                path = os.path.join(parent, name)
                sizes[os.path.relpath(path, snapshot)] = os.stat(path).st_size
        self.assertEqual(sizes, {name: len(data) for name, data in FILES.items()})
        self.assert_no_content(self.hub.seen() - before)

    def test_only_what_is_read_is_fetched(self):
        """The header of a large file costs a few chunks, not the file; st_blocks tells what lies here."""
        size = 96 * MIB
        repo = self.hub.add("acme/large", {"large.bin": noise(size, "large")})
        path = os.path.join(self.world.repo_dir(repo), "snapshots", repo.commit, "large.bin")
        before = self.hub.seen()
        with open(path, "rb", buffering=0) as file:
            self.assertEqual(file.read(8), repo.read("large.bin", 0, 8))
            file.seek(50 * MIB + 7)
            self.assertEqual(file.read(8), repo.read("large.bin", 50 * MIB + 7, 8))
        fetched = (self.hub.seen() - before).bytes
        self.assertLess(fetched, size // 2, "two small reads pulled the file")
        self.assertLess(os.stat(path).st_blocks * 512, size)
        self.assertEqual(os.stat(path).st_size, size)

    def test_a_name_that_the_hub_does_not_have_can_be_made(self):
        path = os.path.join(self.world.cache(), "models--acme--made-here")
        self.assertFalse(os.path.exists(path))
        os.mkdir(path)
        os.makedirs(os.path.join(path, "snapshots", "main"))
        self.assertEqual(os.listdir(path), ["snapshots"])

    def test_many_readers_of_one_cold_file(self):
        data = noise(24 * MIB, "crowd")
        repo = self.hub.add("acme/crowd", {"model.safetensors": data})
        before = self.hub.seen()
        crowd = [
            self.world.start("download", repo_id=repo.id, filename="model.safetensors", offline=number % 2 == 1)
            for number in range(6)
        ]
        for client in crowd:
            self.assert_same(client.answer(), data)
        seen = self.hub.seen() - before
        self.assert_no_content_for_clients(seen)
        self.assert_each_byte_once(seen, repo, "model.safetensors", len(data))


if __name__ == "__main__":
    unittest.main()
