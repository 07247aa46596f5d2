"""No stall spreads: with the Hub hanging, everything that does not need it goes on at once."""

import os
import time
import unittest

from case import MIB, Case, noise, only, sha256
from world import wait_until, within

FILES = {"config.json": b"{}\n", "model.safetensors": noise(6 * MIB, "stall")}


@only("embedded", "cluster")
class Stall(Case):
    def setUp(self):
        super().setUp()
        self.addCleanup(self.hub.thaw)

    def snapshot(self, repo, name):
        return os.path.join(self.world.repo_dir(repo), "snapshots", repo.commit, name)

    def freeze_with_waiters(self, number):
        """The Hub hangs while programs wait: for an unknown repository, and for bytes of a known one."""
        data = noise(len(FILES["model.safetensors"]), f"cold{number}")
        cold = self.hub.add(f"acme/cold-{number}", FILES | {"model.safetensors": data})
        self.assertTrue(os.path.exists(self.snapshot(cold, "config.json")))
        self.hub.freeze()
        unknown = os.path.join(self.world.cache(), f"models--acme--unknown-{number}", "refs", "main")
        waiting = [
            self.world.start("timed_read", path=unknown),
            self.world.start("timed_read", path=self.snapshot(cold, "model.safetensors")),
        ]
        time.sleep(1.5)
        return waiting

    def test_the_rest_goes_on(self):
        warm = self.hub.add("acme/warm", FILES)
        self.world.act("snapshot", repo_id=warm.id)
        waiting = self.freeze_with_waiters("rest")
        root = self.world.cache()
        for round in range(3):
            within(1, "ls of the root", lambda: os.listdir(root))
            within(
                1,
                "ls -l of the root",
                lambda: [entry.stat() for entry in os.scandir(root) if "unknown" not in entry.name],
            )
            within(1, "mkdir in the root", lambda: os.mkdir(os.path.join(root, f"made-{round}")))
            within(1, "a name that is not there", lambda: os.path.exists(os.path.join(root, f"nothing-{round}")))
            for name, data in FILES.items():
                read = within(
                    1, f"a warm read of {name}", lambda path=self.snapshot(warm, name): open(path, "rb").read()
                )
                self.assertEqual(sha256(read), sha256(data))
        within(3, "a warm load by a client", lambda: self.world.act("snapshot", repo_id=warm.id, offline=True))
        for client in waiting:
            self.assertIsNone(client.child.poll(), "a stall must wait, not fail")

    def test_the_waiting_can_be_killed(self):
        for client in self.freeze_with_waiters("killed"):
            self.assertIsNone(client.child.poll())
            within(2, "kill -9 of a waiting program", client.kill)
            self.assertIsNotNone(client.child.returncode)

    def test_the_waiting_can_be_interrupted(self):
        for client in self.freeze_with_waiters("interrupted"):
            client.child.terminate()
            wait_until(lambda c=client: c.child.poll() is not None, 3, "SIGTERM ends a waiting program")

    def test_when_the_hub_is_back_they_get_their_bytes(self):
        waiting = self.freeze_with_waiters("back")
        self.hub.thaw()
        self.assertEqual(waiting[1].answer()["bytes"], len(FILES["model.safetensors"]))
        waiting[0].finish()

    def test_unmount_while_somebody_waits(self):
        waiting = self.freeze_with_waiters("unmounted")
        within(20, "unmounting", self.world.mounts[0].stop)
        for client in waiting:
            client.finish(20)
        self.hub.thaw()
        self.world.mount(number=0)

    def test_offline_mount_never_calls_out(self):
        repo = self.hub.add("acme/before-offline", FILES)
        self.world.act("snapshot", repo_id=repo.id)
        self.world.remount(0, "--offline")
        self.addCleanup(self.world.remount, 0)
        before = self.hub.seen()
        answer = self.world.act("snapshot", repo_id=repo.id, offline=True)
        for name, data in FILES.items():
            self.assert_same(answer["files"][name], data, name)
        self.assertFalse(os.path.exists(os.path.join(self.world.cache(), "models--acme--never-seen")))
        self.assert_silence(self.hub.seen() - before)


if __name__ == "__main__":
    unittest.main()
