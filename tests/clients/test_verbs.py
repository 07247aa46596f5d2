"""The command line from outside: format, mount, umount, status, and what they say when something is wrong."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import time
import unittest

from case import Case, noise, only
from process import built, mounted
from world import files_with, wait_until, within

FILES = {"config.json": b"{}\n", "model.bin": noise(100_000, "verbs")}


@only("embedded")
class Verbs(Case):
    """Each test has a volume of its own, all defaults, below an HFMOUNT_HOME of its own."""

    def setUp(self):
        super().setUp()
        self.home = self.world.folder(f"home-{self._testMethodName}", 0o700)
        self.dir = self.world.folder(f"dir-{self._testMethodName}")
        self.addCleanup(self.unmount)

    def unmount(self):
        if mounted(self.dir):
            self.hfmount("umount", self.dir, check=False)
        if mounted(self.dir):
            subprocess.run(["umount", "-l", self.dir], check=False)
            self.fail(f"{self.dir} had to be detached by force")

    def hfmount(self, *arguments, env=None, **how):
        return self.world.hfmount(*arguments, env={"HFMOUNT_HOME": self.home} | (env or {}), **how)

    def format(self, *options):
        return self.hfmount("format", "--hub-endpoint", self.hub.url, *options)

    def assert_refused(self, *arguments, says, env=None):
        done = self.hfmount(*arguments, env=env, check=False)
        self.assertNotEqual(done.returncode, 0, arguments)
        for words in says:
            self.assertIn(words, done.stderr)
        self.assertNotIn("panicked", done.stderr)

    def test_the_whole_way_with_defaults_in_the_background(self):
        """format, mount -d, a client, status, umount: a new user's two commands."""
        repo = self.hub.add("acme/verbs", FILES)
        said = self.format().stdout
        self.assertIn(self.home, said)
        self.assertIn("hfmount mount", said)
        within(10, "mount -d", lambda: self.hfmount("mount", "-d", self.dir))
        self.assertTrue(mounted(self.dir), "mount -d returned before the mount was there")
        answer = self.world.act("snapshot", repo_id=repo.id, env={"HF_HUB_CACHE": self.dir})
        for name, data in FILES.items():
            self.assert_same(answer["files"][name], data)
        status = json.loads(self.hfmount("status", "--json").stdout)
        self.assertEqual([s["mountpoint"] for s in status["sessions"]], [self.dir])
        self.assertIn(self.dir, self.hfmount("status").stdout)
        self.hfmount("umount", self.dir)
        self.assertFalse(mounted(self.dir))
        wait_until(
            lambda: json.loads(self.hfmount("status", "--json").stdout)["sessions"] == [], 10, "the session ends"
        )

    def test_a_second_format_changes_nothing(self):
        self.format("first-name")
        before = json.loads(self.hfmount("status", "--json").stdout)["volume"]
        self.hfmount("format", "--hub-endpoint", "http://127.0.0.1:1")
        self.assertEqual(json.loads(self.hfmount("status", "--json").stdout)["volume"], before)
        self.hfmount("format", "--update", "--hub-endpoint", "http://127.0.0.1:1")
        after = json.loads(self.hfmount("status", "--json").stdout)["volume"]
        self.assertEqual(after, before | {"hub_endpoint": "http://127.0.0.1:1"})

    def test_format_refuses(self):
        for name in ("ab", "-abc", "ABC", "a_b", "x" * 64):
            self.assertNotEqual(self.hfmount("format", "--", name, check=False).returncode, 0, name)
        for chunk in ("3M", "512K", "128M"):
            self.assertNotEqual(self.hfmount("format", "--chunk-size", chunk, check=False).returncode, 0, chunk)
        store = f"file://{self.world.dir}/store-of-another"
        self.hfmount("format", "--storage", store, "one-volume", env={"HFMOUNT_HOME": self.home + "-other"})
        self.assert_refused("format", "--storage", store, "one-volume", says=["another volume"])

    def test_mount_refuses(self):
        self.assert_refused("mount", self.dir, says=["format"])
        self.format()
        self.assert_refused("mount", self.dir + "/missing", says=["missing"])
        self.assert_refused("mount", "--cache-dir", self.dir + "/cache", self.dir, says=["cache"])
        self.hfmount("mount", "-d", self.dir)
        self.assert_refused("mount", "-d", self.dir, says=[self.dir])

    def test_a_folder_in_use_is_mounted_over(self):
        """A non-empty DIR: what it holds is named, hidden while mounted, and there again afterwards."""
        self.format()
        with open(os.path.join(self.dir, "kept.txt"), "w", encoding="ascii") as file:
            file.write("kept")
        done = self.hfmount("mount", "-d", self.dir)
        self.assertIn(self.dir, done.stdout + done.stderr)
        self.assertNotIn("kept.txt", os.listdir(self.dir))
        self.hfmount("umount", self.dir)
        self.assertEqual(os.listdir(self.dir), ["kept.txt"])

    def test_signals_unmount(self):
        for name in ("TERM", "INT"):
            self.format()
            self.hfmount("mount", "-d", self.dir)
            pid = json.loads(self.hfmount("status", "--json").stdout)["sessions"][0]["pid"]
            subprocess.run(["kill", f"-{name}", str(pid)], check=True)
            wait_until(lambda: not mounted(self.dir), 15, f"SIG{name} unmounts")
            wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}/exe"), 15, "the daemon ends")

    def test_a_dead_mount_is_replaced(self):
        self.format()
        self.hfmount("mount", "-d", self.dir)
        pid = json.loads(self.hfmount("status", "--json").stdout)["sessions"][0]["pid"]
        os.kill(pid, 9)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"), 10, "kill -9")
        with self.assertRaises(OSError):
            os.listdir(self.dir)
        self.hfmount("mount", "-d", self.dir)
        self.assertEqual(os.listdir(self.dir), [])
        self.hfmount("umount", self.dir)
        self.assertFalse(mounted(self.dir), "the dead one lies below")

    def test_read_only(self):
        repo = self.hub.add("acme/read-only", FILES)
        self.format()
        self.hfmount("mount", "-d", "--read-only", self.dir)
        with self.assertRaises(OSError):
            os.mkdir(os.path.join(self.dir, "new"))
        answer = self.world.act("snapshot", repo_id=repo.id, offline=True, env={"HF_HUB_CACHE": self.dir})
        for name, data in FILES.items():
            self.assert_same(answer["files"][name], data)

    def test_two_mounts_on_one_machine(self):
        other = self.world.folder("dir-second")
        self.format()
        self.hfmount("mount", "-d", self.dir)
        self.addCleanup(self.hfmount, "umount", other, check=False)
        self.hfmount("mount", "-d", other)
        with open(os.path.join(self.dir, "seen"), "wb") as file:
            file.write(b"by both" * 10_000)
        with open(os.path.join(other, "seen"), "rb") as file:
            self.assertEqual(file.read(), b"by both" * 10_000)

    def test_disk_figures_are_true(self):
        self.format()
        self.hfmount("mount", "-d", self.dir)
        before = os.statvfs(self.dir)
        self.assertGreater(before.f_bavail * before.f_frsize, 1 << 30)
        self.assertEqual(before.f_namemax, 255)
        device = os.stat(self.dir)
        self.assertTrue(stat.S_ISDIR(device.st_mode))
        with open("/proc/mounts", encoding="utf-8") as table:
            line = next(line.split() for line in table if line.split()[1] == self.dir)
        self.assertEqual((line[0], line[2]), ("hfmount", "fuse.hfmount"))

    def test_disk_cache_keeps_to_its_size(self):
        """Four files, a cache for one and a half: old ones go, all are read right, and what went is fetched again."""
        size = 8 << 20
        files = {f"part-{number}.bin": noise(size, f"evicted{number}") for number in range(4)}
        repo = self.hub.add("acme/evicted", files)
        self.format()
        cache = self.world.folder("small-cache", 0o700)
        self.hfmount("mount", "-d", "--cache-dir", cache, "--cache-size", "12M", self.dir)
        for _ in range(2):
            answer = self.world.act("snapshot", repo_id=repo.id, offline=True, env={"HF_HUB_CACHE": self.dir})
            for name, data in files.items():
                self.assert_same(answer["files"][name], data)

        def kept():
            used = sum(
                os.stat(os.path.join(parent, name)).st_blocks * 512
                for parent, _, names in os.walk(cache)
                for name in names
            )
            return used <= 20 << 20

        wait_until(kept, 20, "the disk cache shrinks to about its size")

    def test_help_has_examples(self):
        for verb in ("format", "mount", "umount", "status"):
            said = self.hfmount(verb, "--help").stdout
            self.assertIn("Examples:", said)
        self.assertIn("hfmount", self.hfmount("--version").stdout)


@only("cluster")
class Secrets(Case):
    def test_a_redis_password_shows_nowhere(self):
        """Given in the URL, it is in no command line, no log, no error, no status."""
        password = "S3cr3tOfRedis"
        self.world.redis_cli("config", "set", "requirepass", password)
        self.addCleanup(
            lambda: self.world.redis_cli("-a", password, "--no-auth-warning", "config", "set", "requirepass", "")
        )
        port = self.world.redis.port
        url = f"redis://:{password}@127.0.0.1:{port}/2"
        env = {"HFMOUNT_META": ""}
        said = self.world.hfmount(
            "format", "--meta", url, "--storage", f"file://{self.world.dir}/secret-store", env=env
        )
        self.assertNotIn(password, said.stdout + said.stderr)
        folder = self.world.folder("secret-mount")
        self.world.hfmount("mount", "-d", "--meta", url, folder, env=env)
        try:
            self.assertTrue(mounted(folder))
            time.sleep(0.2)
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as file:
                        self.assertNotIn(password.encode(), file.read(), f"pid {pid}")
                except OSError:
                    continue
            status = self.world.hfmount("status", "--json", "--meta", url, env=env)
            self.assertNotIn(password, status.stdout + status.stderr)
        finally:
            self.world.hfmount("umount", folder, env=env)
        wrong = self.world.hfmount("status", "--meta", url.replace(password, "wr0ngPassw0rd"), check=False, env=env)
        self.assertNotEqual(wrong.returncode, 0)
        self.assertNotIn("wr0ngPassw0rd", wrong.stdout + wrong.stderr)
        self.assertEqual(files_with(os.path.join(self.world.dir, "home", "logs"), password.encode()), [])

    def test_password_from_a_file(self):
        password = "FromAFile77"
        path = os.path.join(self.world.dir, "password-file")
        with open(path, "w", encoding="ascii") as file:
            file.write(password + "\n")
        self.world.redis_cli("config", "set", "requirepass", password)
        self.addCleanup(
            lambda: self.world.redis_cli("-a", password, "--no-auth-warning", "config", "set", "requirepass", "")
        )
        said = self.world.hfmount("status", "--json", env={"HFMOUNT_META_PASSWORD_FILE": path})
        self.assertEqual(json.loads(said.stdout)["volume"]["name"], "cluster")

    def test_sealed_keys(self):
        """With a passphrase at format, a mount needs only the metadata URL and the passphrase; without it, a clear error."""
        keyless = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        meta = {"HFMOUNT_META": f"redis://127.0.0.1:{self.world.redis.port}/3", "HFMOUNT_PASSPHRASE": "open sesame"}
        endpoint = f"http://127.0.0.1:{self.world.s3.port}"
        self.world.hfmount("format", "--storage", "s3://volumes/sealed", "--endpoint", endpoint, "sealed", env=meta)
        found = self.world.redis_cli("-n", "3", "--scan")
        self.assertTrue(found)
        self.world.redis_cli("config", "set", "rdbcompression", "no")
        self.world.redis_cli("save")
        dump = os.path.join(self.world.dir, "redis", "dump.rdb")
        self.assertEqual(files_with(dump, b"standin-secret"), [])
        folder = self.world.folder("sealed-mount")
        refused = self.world.hfmount(
            "mount", "-d", folder, env=meta | keyless | {"HFMOUNT_PASSPHRASE": ""}, check=False
        )
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("HFMOUNT_PASSPHRASE", refused.stderr)
        self.world.hfmount("mount", "-d", folder, env=meta | keyless)
        try:
            with open(os.path.join(folder, "file"), "wb") as file:
                file.write(noise(100_000, "sealed"))
        finally:
            self.world.hfmount("umount", folder, env=meta | keyless)


@only("embedded")
class OrdinaryUser(Case):
    """A user who is not root mounts for himself, through fusermount3."""

    def test_format_mount_read_umount(self):
        if os.geteuid() != 0:
            self.fail("acting as another user needs root")
        if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
            # What a udev rule does on every ordinary machine; put back afterwards.
            before = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
            os.chmod("/dev/fuse", 0o666)
            self.addCleanup(os.chmod, "/dev/fuse", before)
        user = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants an account
        repo = self.hub.add("acme/for-one", FILES)
        home = self.world.folder(f"user-{user}", 0o700)
        os.chown(home, user, user)
        folder = os.path.join(home, "hf")
        # Where the user can run it, wherever this project lies.
        binary = shutil.copy(built("", "hfmount"), os.path.join(self.world.dir, "hfmount"))

        def run(*words):
            return subprocess.run(
                [binary, *words], user=user, group=user, extra_groups=[], cwd=home, timeout=60,
                env={"HOME": home, "PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )  # fmt: skip

        for words in (("format", "--hub-endpoint", self.hub.url), ("mount", "-d", folder)):
            if words[0] == "mount":
                os.mkdir(folder)
                os.chown(folder, user, user)
            done = run(*words)
            self.assertEqual(done.returncode, 0, f"{words}: {done.stdout}{done.stderr}")
        self.addCleanup(lambda: mounted(folder) and subprocess.run(["umount", "-l", folder], check=False))
        answer = self.world.act("snapshot", repo_id=repo.id, user=user, offline=True, env={"HF_HUB_CACHE": folder})
        for name, data in FILES.items():
            self.assert_same(answer["files"][name], data)
        done = run("umount", folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertFalse(mounted(folder))


if __name__ == "__main__":
    unittest.main()
