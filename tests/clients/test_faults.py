"""What a bad day at the Hub looks like to a program: slower, never wrong, and never "no such file"."""

import errno
import os
import unittest

from case import MIB, Case, noise, only

FILES = {"config.json": b'{"model_type": "none"}\n', "model.safetensors": noise(13 * MIB + 1, "faults")}
FOREVER = 2**32 - 1


@only("embedded", "cluster")
class Faults(Case):
    def read_all(self, repo):
        return self.world.act("snapshot", repo_id=repo.id, offline=True, timeout=180)["files"]

    def assert_reads(self, name, **faults):
        """A cold repository reads right although these faults lie in its way, and they did."""
        repo = self.hub.add(f"acme/{name}", FILES)
        self.hub.spoil(**faults)
        files = self.read_all(repo)
        for file, data in FILES.items():
            self.assert_same(files[file], data, file)
        self.hub.heal()
        return repo

    def test_too_many_requests(self):
        for only_for in ("api", "resolve", "cdn"):
            with self.subTest(only_for):
                self.assert_reads(f"too-many-{only_for}", only=only_for, too_many=2, retry_after=1)
        self.assert_reads("rate-limit", only="api", too_many=2, ratelimit_t=1)

    def test_unavailable(self):
        for only_for in ("api", "resolve", "cdn"):
            with self.subTest(only_for):
                self.assert_reads(f"unavailable-{only_for}", only=only_for, unavailable=2)

    def test_cut_bodies(self):
        self.assert_reads("cut", only="cdn", cut=2, cut_after=100_000)
        self.assert_reads("cut-at-once", only="cdn", cut=2, cut_after=0)

    def test_wrong_bytes_are_caught(self):
        """Bytes that are not the blob's are fetched again, not handed out; in a later mount neither."""
        repo = self.assert_reads("wrong", only="cdn", wrong=1)
        self.world.remount()
        files = self.read_all(repo)
        for file, data in FILES.items():
            self.assert_same(files[file], data, file)

    def test_expired_signatures(self):
        self.assert_reads("expired", expired=2)

    def test_a_server_that_ignores_range(self):
        self.assert_reads("no-range", no_range=True)

    def test_a_slow_server(self):
        self.assert_reads("slow", delay_ms=300)

    def test_an_outage_is_never_no_such_file(self):
        """While the Hub only answers 503, a lookup may wait or fail, but what comes back is not ENOENT."""
        repo = self.hub.add("acme/outage", FILES)
        self.world.remount(0, "--io-timeout", "3s")
        self.addCleanup(self.world.remount, 0)
        self.hub.spoil(unavailable=FOREVER)
        path = os.path.join(self.world.repo_dir(repo), "snapshots", repo.commit, "config.json")
        answer = self.world.act("errno_of", path=path, timeout=60)
        self.assertNotIn(answer, (0, errno.ENOENT), os.strerror(answer))
        self.hub.heal()
        self.assertEqual(self.world.act("errno_of", path=path, timeout=60), 0, "the outage is over")

    def test_no_token_reaches_the_cdn(self):
        token = self.hub.user("daemon")
        repo = self.hub.add("acme/with-token", FILES, private=True, readers=[token])
        self.world.remount(0, env={"HF_TOKEN": token})
        self.addCleanup(self.world.remount, 0)
        before = self.hub.seen()
        files = self.read_all(repo)
        for file, data in FILES.items():
            self.assert_same(files[file], data, file)
        self.assertEqual((self.hub.seen() - before).leaked_tokens, 0)


if __name__ == "__main__":
    unittest.main()
