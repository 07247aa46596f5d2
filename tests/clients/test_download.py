"""Clients that write: downloads through the mount, by new and old libraries, and what becomes of them."""

import errno
import json
import os
import shutil
import time
import unittest

from case import MIB, Case, noise, sha256
from world import USERS

FILES = {
    "config.json": b'{"model_type": "none"}\n',
    "model.safetensors": noise(6 * MIB + 99, "download"),
    "sub/tokenizer.json": noise(40_000, "tokenizer"),
}


class Download(Case):
    def forced(self, repo, name, **how):
        before = self.hub.seen()
        answer = self.world.act("download", repo_id=repo.id, filename=name, force_download=True, **how)
        self.assert_same(answer, FILES[name], name)
        fetched = [request for request in (self.hub.seen() - before).content_for_clients()]
        self.assertTrue(fetched, f"force_download of {name} downloaded nothing")
        return answer

    def test_force_download_over_a_lazy_file(self):
        """The library fetches by itself, writes beside the lazy blob and renames over it."""
        for stack in ("new", "old"):
            repo = self.hub.add(f"acme/forced-{stack}", FILES)
            with self.subTest(stack=stack):
                self.world.act("download", repo_id=repo.id, filename="config.json", stack=stack)
                for name in FILES:
                    self.forced(repo, name, stack=stack)
                    again = self.world.act("download", repo_id=repo.id, filename=name, offline=True, stack=stack)
                    self.assert_same(again, FILES[name])
                blobs = os.listdir(os.path.join(self.world.repo_dir(repo), "blobs"))
                self.assertEqual([name for name in blobs if "incomplete" in name or "tmp" in name], [], "left behind")
                self.assert_no_warnings(self.world.act("scan", stack=stack), repo)

    def test_force_download_from_xet_storage(self):
        """hf_xet opens the temporary file a second time and writes there; the blob then moves to the shared store."""
        repo = self.hub.add("acme/forced-xet", FILES, xet=True)
        self.world.act("download", repo_id=repo.id, filename="model.safetensors", read=False)
        before = self.hub.seen()
        answer = self.world.act("download", repo_id=repo.id, filename="model.safetensors", force_download=True)
        self.assert_same(answer, FILES["model.safetensors"])
        self.assertGreater((self.hub.seen() - before).requests.get("xet_reconstruction", 0), 0, "not by Xet")
        for stack in ("new", "old"):
            again = self.world.act(
                "snapshot", repo_id=repo.id, offline=True, stack=stack, allow_patterns=["*.safetensors"]
            )
            self.assert_same(again["files"]["model.safetensors"], FILES["model.safetensors"])
        self.assert_no_warnings(self.world.act("scan"), repo)

    def test_force_download_by_two_users(self):
        if not self.world.lazy:
            self.skipTest("in a plain folder the libraries of two users lock each other out by modes")
        if os.geteuid() != 0:
            self.fail("acting as other users needs root")
        repo = self.hub.add("acme/forced-users", FILES)
        for user in USERS:
            self.forced(repo, "config.json", user=user)
            self.forced(repo, "model.safetensors", user=user)
        for user in USERS:
            answer = self.world.act(
                "snapshot", repo_id=repo.id, user=user, offline=True, allow_patterns=["*.json", "*.safetensors"]
            )
            for name, described in answer["files"].items():
                self.assert_same(described, FILES[name])

    def test_downloads_of_a_repository_the_daemon_cannot_see(self):
        """A private repo: the mount has no token and finds nothing, the client has one and downloads for itself."""
        repo = self.hub.add("acme/hidden", FILES, private=True)
        for stack in ("new", "old"):
            answer = self.world.act(
                "download_all", repo_id=repo.id, filenames=sorted(FILES), token=repo.token, stack=stack
            )
            for name, data in FILES.items():
                self.assert_same(answer[name], data, name)
        answer = self.world.act("download", repo_id=repo.id, filename="model.safetensors", offline=True)
        self.assert_same(answer, FILES["model.safetensors"])
        self.assert_no_warnings(self.world.act("scan"), repo)

    def test_what_was_downloaded_is_read_as_a_blob(self):
        """What the library downloaded by itself is held to its name, and then complete and verified like a file of the Hub."""
        if not self.world.lazy:
            self.skipTest("a plain folder is not mounted")
        for stack in ("new", "old"):
            files = {name: noise(len(data), f"{stack} {name}") for name, data in FILES.items()}
            repo = self.hub.add(f"acme/adopted-{stack}", files, private=True)
            for name in ("model.safetensors", "sub/tokenizer.json"):
                self.world.act("download", repo_id=repo.id, filename=name, token=repo.token, stack=stack)
            blobs = os.path.join(self.world.repo_dir(repo), "blobs")
            names = [name for name in os.listdir(blobs) if len(name) in (40, 64)]
            self.assertEqual(len(names), 2, names)
            for name in names:
                self.assertEqual(self.source(os.path.join(blobs, name))["verified"], True, name)
            for name in ("model.safetensors", "sub/tokenizer.json"):
                again = self.world.act("download", repo_id=repo.id, filename=name, offline=True, stack=stack)
                self.assert_same(again, files[name])

    def source(self, path):
        """Where its bytes came from, once that is said of it."""
        end = time.monotonic() + 60
        while True:
            try:
                return json.loads(os.getxattr(path, "user.hfmount.source"))
            except OSError as error:
                if error.errno != errno.ENODATA or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def test_download_to_a_local_folder_on_the_mount(self):
        repo = self.hub.add("acme/local", FILES)
        target = os.path.join(self.world.cache(), "my-copy")
        for name, data in FILES.items():
            self.assert_same(self.world.act("download", repo_id=repo.id, filename=name, local_dir=target), data)
        shutil.rmtree(target)
        self.assertFalse(os.path.exists(target))

    def test_verify_and_prune(self):
        repo = self.hub.add("acme/verified", FILES)
        self.world.act("snapshot", repo_id=repo.id, read=False)
        status, output = self.world.hf("cache", "verify", repo.id)
        self.assertEqual(status, 0, output)
        status, output = self.world.hf("cache", "ls")
        self.assertEqual(status, 0, output)
        self.assertIn(repo.id, output)
        status, output = self.world.hf("cache", "prune", "--yes")
        self.assertEqual(status, 0, output)
        self.assert_same(self.world.act("download", repo_id=repo.id, filename="config.json"), FILES["config.json"])

    def test_written_files_outlive_a_remount(self):
        """Whatever a client wrote is there again, the disk cache lost meanwhile."""
        if not self.world.lazy:
            self.skipTest("a plain folder is not mounted")
        repo = self.hub.add("acme/kept", FILES, private=True)
        self.world.act("snapshot", repo_id=repo.id, token=repo.token)
        note = os.path.join(self.world.cache(), "notes", "note.bin")
        os.makedirs(os.path.dirname(note))
        data = noise(11 * MIB + 5, "note")
        with open(note, "wb") as file:
            file.write(data)
        with open(note, "ab") as file:
            file.write(b"appended")
        self.world.remount(fresh_cache=True)
        with open(note, "rb") as file:
            self.assertEqual(sha256(file.read()), sha256(data + b"appended"))
        answer = self.world.act("snapshot", repo_id=repo.id, offline=True)
        for name, data in FILES.items():
            self.assert_same(answer["files"][name], data, name)


if __name__ == "__main__":
    unittest.main()
