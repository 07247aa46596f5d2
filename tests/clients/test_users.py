"""Two unprivileged users, one mount that root made: they load, download, lock and log in side by side."""

import errno
import os
import unittest

import bert
from case import MIB, Case, noise, only
from world import USERS, files_with, weights

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SENTENCES = ["Two users, one cache."]
OWNER, STRANGER = 61003, 61004  # of tokens; no others of this suite, who begin without one


@only("embedded", "cluster")  # in a plain folder the libraries of two users lock each other out by modes
class Users(Case):
    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise AssertionError("acting as other users needs root")
        super().setUpClass()

    def test_both_compute_at_once_from_a_cold_repository(self):
        folder = weights()
        self.hub.add_folder(MODEL, folder)
        expected = bert.encode(folder, SENTENCES).tolist()
        before = self.hub.seen()
        running = [
            self.world.start("load_model", repo_id=MODEL, sentences=SENTENCES, user=user, use=use)
            for user, use in zip(USERS * 2, ("cache", "cache", "home", "home"))
        ]
        for client in running:
            self.assertEqual(client.answer(), expected)
        self.assert_no_content_for_clients(self.hub.seen() - before)

    def test_both_download_at_once(self):
        """Old and new libraries of two users, the same repository, all forced: every one of them ends well."""
        files = {"config.json": b"{}\n", "model.bin": noise(3 * MIB, "both")}
        repo = self.hub.add("acme/both", files)
        running = [
            self.world.start("download", repo_id=repo.id, filename=name, force_download=True, user=user, stack=stack)
            for user in USERS
            for stack in ("new", "old")
            for name in files
        ]
        for number, client in enumerate(running):
            self.assert_same(client.answer(), list(files.values())[number % len(files)])
        for user in USERS:
            answer = self.world.act("snapshot", repo_id=repo.id, user=user, offline=True)
            for name, data in files.items():
                self.assert_same(answer["files"][name], data, name)

    def test_locks_are_shared(self):
        """What one user's library locked, another user's finds locked; nobody is locked out by modes."""
        repo = self.hub.add("acme/locked", {"config.json": b"{}\n"})
        for user in USERS:
            self.world.act("download", repo_id=repo.id, filename="config.json", force_download=True, user=user)
        folder = os.path.join(self.world.cache(), ".locks", repo.folder)
        lock = os.path.join(folder, "shared.lock")
        counter = os.path.join(self.world.folder("counters", 0o777), "shared")
        first = self.world.start("count_under_lock", lock=lock, counter=counter, times=1, user=USERS[0])
        self.assertEqual(first.answer()["kind"], "UnixFileLock")
        os.chmod(counter, 0o666)
        running = [
            self.world.start(
                "count_under_lock", lock=lock, counter=counter, times=20, hold=0.001, user=user, stack=stack
            )
            for user in USERS
            for stack in ("new", "old")
        ]
        for client in running:
            client.answer()
        with open(counter, encoding="ascii") as file:
            self.assertEqual(file.read(), "81")
        self.assertEqual(os.stat(folder).st_mode & 0o777, 0o777)
        self.assertEqual(os.stat(lock).st_mode & 0o777, 0o666)

    def test_users_cannot_spoil_what_is_not_theirs(self):
        repo = self.hub.add("acme/public", {"config.json": b"{}\n"})
        self.world.act("download", repo_id=repo.id, filename="config.json", user=USERS[0])
        mine = os.path.join(self.world.cache(), "mine")
        os.mkdir(mine, 0o700)
        with open(os.path.join(mine, "secret"), "wb") as file:
            file.write(b"secret")
        for user in USERS:
            answer = self.world.act("errno_of", path=os.path.join(mine, "secret"), user=user)
            self.assertEqual(answer, errno.EACCES)


@only("embedded", "cluster")
class Tokens(Case):
    """`token` and its like in the root: each user's own, on this node only."""

    def setUp(self):
        super().setUp()
        if os.geteuid() != 0:
            self.fail("acting as other users needs root")

    def test_login_whoami_logout_of_two_users(self):
        names = {user: f"user{number}" for number, user in enumerate(USERS)}
        tokens = {user: self.hub.user(name) for user, name in names.items()}
        for user in USERS:
            self.assertEqual(self.errno_of_token(user), errno.ENOENT)
        for user in USERS:
            status, output = self.world.hf("auth", "login", "--token", tokens[user], use="home", user=user)
            self.assertEqual(status, 0, output)
        for user in USERS:
            self.assertEqual(self.world.act("whoami", use="home", user=user), names[user])
            self.assertEqual(self.world.act("token", use="home", user=user, stack="old"), tokens[user])
            status, output = self.world.hf("auth", "whoami", use="home", user=user)
            self.assertEqual(status, 0, output)
            self.assertIn(names[user], output)
        status, output = self.world.hf("auth", "logout", use="home", user=USERS[0])
        self.assertEqual(status, 0, output)
        self.assertEqual(self.errno_of_token(USERS[0]), errno.ENOENT)
        self.assertEqual(self.world.act("whoami", use="home", user=USERS[1]), names[USERS[1]])
        self.assertEqual(self.errno_of_token(None), errno.ENOENT)

    def errno_of_token(self, user):
        return self.world.act("errno_of", path=os.path.join(self.world.cache(), "token"), user=user)

    def test_a_users_own_token_opens_what_the_mount_cannot(self):
        data = noise(100_000, "gated")
        repo = self.hub.add("acme/gated-home", {"config.json": data}, private=True)
        status, output = self.world.hf("auth", "login", "--token", repo.token, use="home", user=OWNER)
        self.assertEqual(status, 0, output)
        answer = self.world.act("download", repo_id=repo.id, filename="config.json", use="home", user=OWNER)
        self.assert_same(answer, data)
        raised = self.world.refused(
            "download", repo_id="acme/gated-other", filename="config.json", use="home", user=STRANGER
        )
        self.assertEqual(raised, "RepositoryNotFoundError")

    def test_nobody_closes_the_root_for_others(self):
        before = os.stat(self.world.cache()).st_mode
        self.world.act("errno_of", path=self.world.cache(), how="list", user=USERS[0])
        for mode in (0o700, 0o000):
            try:
                os.chmod(self.world.cache(), mode)
            except OSError as refused:
                self.assertIn(refused.errno, (errno.EPERM, errno.EACCES))
        self.assertEqual(os.stat(self.world.cache()).st_mode, before)
        for user in USERS:
            self.assertEqual(self.world.act("errno_of", path=self.world.cache(), how="list", user=user), 0)

    def test_no_byte_of_a_token_leaves_the_node(self):
        """Searched byte by byte: the metadata (as the engine itself writes it out), the bucket, the disk cache, the logs."""
        token = self.hub.user("secretive", token="hf_" + "Q7zX" * 8)
        status, output = self.world.hf("auth", "login", "--token", token, use="home", user=OWNER)
        self.assertEqual(status, 0, output)
        self.assertEqual(self.world.act("token", use="home", user=OWNER), token)
        with open(os.path.join(self.world.cache(), "control"), "wb") as file:
            file.write(b"a control: this one is to be found")
        places = [self.world.storage, *self.metadata()]
        for needle, wanted in ((b"this one is to be found", True), (token.encode(), False)):
            found = [path for place in places for path in files_with(place, needle)]
            self.assertEqual(bool(found), wanted, f"{needle!r} in {found}")
        logs = [name for name in os.listdir(self.world.dir) if name.endswith(".log") and not name.startswith("hub")]
        for name in logs:
            with open(os.path.join(self.world.dir, name), "rb") as file:
                self.assertNotIn(token.encode(), file.read(), name)
        if len(self.world.mounts) > 1:
            self.assertFalse(os.path.exists(os.path.join(self.world.cache(1), "token")))
            other = self.world.act("errno_of", path=os.path.join(self.world.cache(1), "token"), user=OWNER)
            self.assertIn(other, (0, errno.ENOENT), "on one node both mounts may show it, but never an error")

    def metadata(self):
        """The files with all bytes of the metadata."""
        if self.world.kind == "cluster":
            self.world.redis_cli("config", "set", "rdbcompression", "no")
            self.world.redis_cli("save")
            return [os.path.join(self.world.dir, "redis", "dump.rdb")]
        return [
            os.path.join(parent, name)
            for parent, _, names in os.walk(os.path.join(self.world.dir, "home"))
            for name in names
            if self.is_sqlite(os.path.join(parent, name))
        ]

    @staticmethod
    def is_sqlite(path):
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(15) == b"SQLite format 3" or path.endswith("-wal")


if __name__ == "__main__":
    unittest.main()
