"""One volume, two mounts: Redis between them, S3 below them."""

import os
import time
import unittest

from case import MIB, Case, noise, only, sha256
from world import USERS, wait_until

FILES = {
    "config.json": b'{"model_type": "none"}\n',
    "model.safetensors": noise(13 * MIB + 17, "two"),
}


def contents(path):
    with open(path, "rb") as file:
        return file.read()


@only("cluster")
class TwoMounts(Case):
    def here(self, *names):
        return os.path.join(self.world.cache(0), *names)

    def there(self, *names):
        return os.path.join(self.world.cache(1), *names)

    def test_written_here_is_read_there(self):
        """Close-to-open: after close() here, an open() there sees it, be it small, large, appended or truncated."""
        for size in (0, 100, 5000, 4 * MIB, 9 * MIB + 1):
            name = f"file-{size}"
            data = noise(size, name)
            with open(self.here(name), "wb") as file:
                file.write(data)
            self.assertEqual(sha256(contents(self.there(name))), sha256(data), name)
            with open(self.there(name), "ab") as file:
                file.write(b"more")
            self.assertEqual(sha256(contents(self.here(name))), sha256(data + b"more"), name)
            os.truncate(self.here(name), 3)
            self.assertEqual(contents(self.there(name)), (data + b"more")[:3], name)
            with open(self.there(name), "wb") as file:
                file.write(b"anew")
            self.assertEqual(contents(self.here(name)), b"anew", name)

    def test_writers_of_one_file_keep_each_others_bytes(self):
        """Without a lock, open on both at once: what both wrote is theirs whose close came last, all else is kept."""
        for size in (100, 9 * MIB):
            name, middle = f"written-by-both-{size}", size // 2
            with open(self.here(name), "wb") as file:
                file.write(bytes(size))
            one, two = os.open(self.here(name), os.O_RDWR), os.open(self.there(name), os.O_RDWR)
            os.pwrite(two, b"two" * 5, middle + 10)
            os.pwrite(one, b"one" * 5, middle)
            os.close(one)
            os.close(two)
            expected = bytearray(size)
            expected[middle : middle + 15] = b"one" * 5
            expected[middle + 10 : middle + 25] = b"two" * 5
            for path in (self.here(name), self.there(name)):
                self.assertEqual(sha256(contents(path)), sha256(bytes(expected)), path)

    def test_names_follow(self):
        os.makedirs(self.here("dir", "below"))
        self.assertEqual(os.listdir(self.there("dir")), ["below"])
        os.rename(self.here("dir"), self.here("renamed"))
        wait_until(lambda: os.path.isdir(self.there("renamed", "below")), 2, "a rename shows there")
        wait_until(lambda: not os.path.exists(self.there("dir")), 2, "the old name goes there")
        os.symlink("renamed/below", self.here("link"))
        wait_until(lambda: os.path.islink(self.there("link")), 2, "a symlink shows there")
        self.assertEqual(os.readlink(self.there("link")), "renamed/below")
        os.chmod(self.there("renamed"), 0o750)
        wait_until(lambda: os.stat(self.here("renamed")).st_mode & 0o777 == 0o750, 2, "a mode shows here")
        os.unlink(self.there("link"))
        os.rmdir(self.there("renamed", "below"))
        os.rmdir(self.there("renamed"))
        wait_until(lambda: not os.path.lexists(self.here("link")), 2, "unlink shows here")
        wait_until(lambda: not os.path.exists(self.here("renamed")), 2, "rmdir shows here")

    def test_one_repository_on_both(self):
        """Each daemon asks the Hub for each chunk at most once; the tree is asked for once in the cluster."""
        repo = self.hub.add("acme/shared", FILES)
        before = self.hub.seen()
        for mount in (0, 1):
            answer = self.world.act("snapshot", repo_id=repo.id, mount=mount, offline=True)
            for name, data in FILES.items():
                self.assert_same(answer["files"][name], data, name)
        seen = self.hub.seen() - before
        self.assertEqual(seen.by_mounts().get("tree", 0), 1, "the tree of a commit is fetched once a cluster")
        asked = sum(end - start for start, end in seen.ranges_of(repo, "model.safetensors"))
        self.assertLessEqual(asked, 2 * len(FILES["model.safetensors"]))

    def test_filled_data_is_served_without_the_hub(self):
        """Read once on one mount, it is in the bucket: both mounts, their disk caches lost, serve it with the Hub gone."""
        repo = self.hub.add("acme/durable", FILES)
        self.world.act("snapshot", repo_id=repo.id, mount=0)
        self.wait_stored(repo)
        self.hub.stop()
        self.addCleanup(self.hub.start)
        for mount in (0, 1):
            self.world.remount(mount, fresh_cache=True)
            for stack in ("new", "old"):
                answer = self.world.act("snapshot", repo_id=repo.id, mount=mount, offline=True, stack=stack)
                for name, data in FILES.items():
                    self.assert_same(answer["files"][name], data, name)

    def wait_stored(self, repo):
        """Uploads of what was filled go on behind the readers: waits for the bucket to hold as much as was read."""
        wanted = sum(len(data) for data in FILES.values())

        def stored():
            total = 0
            for parent, _, names in os.walk(self.world.storage):
                total += sum(os.path.getsize(os.path.join(parent, name)) for name in names)
            return total >= wanted

        wait_until(stored, 30, f"the chunks of {repo.id} reach the bucket")

    def test_locks_hold_across_mounts(self):
        """filelock on both mounts at once: no increment is lost, and a held lock is seen as held."""
        os.makedirs(self.here(".locks", "count"))
        lock, counter = ".locks/count/c.lock", "counter"
        running = [
            self.world.start(
                "count_under_lock", lock=os.path.join(self.world.cache(mount), lock),
                counter=os.path.join(self.world.cache(mount), counter), times=25, stack=stack,
            )
            for mount in (0, 1)
            for stack in ("new", "old")
        ]  # fmt: skip
        for client in running:
            self.assertEqual(client.answer()["kind"], "UnixFileLock")
        self.assertEqual(contents(self.here(counter)), b"100")
        self.assertEqual(contents(self.there(counter)), b"100")

        held = self.world.start("hold_lock", lock=self.here(lock), seconds=3, marker=self.here("held"))
        wait_until(lambda: os.path.exists(self.there("held")), 20, "the holder says so")
        self.assertFalse(self.world.act("try_lock", lock=self.there(lock)))
        held.finish()
        self.assertTrue(self.world.act("try_lock", lock=self.there(lock)))

    def test_a_lock_of_a_killed_program_is_free(self):
        os.makedirs(self.here(".locks", "killed"))
        lock = ".locks/killed/k.lock"
        held = self.world.start("hold_lock", lock=self.here(lock), seconds=300, marker=self.here("held-by-killed"))
        wait_until(lambda: os.path.exists(self.there("held-by-killed")), 20, "the holder says so")
        self.assertFalse(self.world.act("try_lock", lock=self.there(lock)))
        held.kill()
        wait_until(lambda: self.world.act("try_lock", lock=self.there(lock)), 10, "the lock is free")

    def test_users_of_two_mounts_download_at_once(self):
        if os.geteuid() != 0:
            self.fail("acting as other users needs root")
        repo = self.hub.add("acme/everybody", FILES)
        running = [
            self.world.start("download", repo_id=repo.id, filename="model.safetensors", force_download=force,
                             user=user, mount=mount, stack=stack)
            for user, mount in zip(USERS, (0, 1))
            for stack in ("new", "old")
            for force in (True, False)
        ]  # fmt: skip
        for client in running:
            self.assert_same(client.answer(), FILES["model.safetensors"])

    def test_status_names_both_sessions(self):
        import json

        status = json.loads(self.world.hfmount("status", "--json").stdout)
        sessions = [session for session in status["sessions"] if session["alive"]]
        self.assertEqual(
            sorted(session["mountpoint"] for session in sessions), sorted(m.dir for m in self.world.mounts)
        )
        self.assertNotIn("standin-secret", json.dumps(status))


@only("cluster")
class Crash(Case):
    def test_killed_daemon_leaves_what_was_closed(self):
        """kill -9: what close() acknowledged is on the other mount and after a new mount over the dead one."""
        data = noise(5 * MIB, "crash")
        path = os.path.join(self.world.cache(0), "closed")
        with open(path, "wb") as file:
            file.write(data)
        repo = self.hub.add("acme/crash", FILES)
        self.world.act("snapshot", repo_id=repo.id, mount=0, offline=True)
        self.world.mounts[0].crash()
        self.assertEqual(sha256(contents(os.path.join(self.world.cache(1), "closed"))), sha256(data))
        started = time.monotonic()
        self.world.mount(number=0)
        self.assertLess(time.monotonic() - started, 20)
        self.assertEqual(sha256(contents(path)), sha256(data))
        answer = self.world.act("snapshot", repo_id=repo.id, mount=0, offline=True)
        for name, expected in FILES.items():
            self.assert_same(answer["files"][name], expected, name)


if __name__ == "__main__":
    unittest.main()
