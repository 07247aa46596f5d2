"""What every suite here starts from: one world for a class, and what is asserted of it again and again."""

import hashlib
import os
import random
import unittest

from world import World

KIND = os.environ.get("HFMOUNT_TEST_WORLD", "embedded")

MIB = 1 << 20


def noise(size, seed):
    """`size` bytes that compress badly and are the same on every run."""
    return random.Random(seed).randbytes(size)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def only(*kinds):
    """For suites that say something of these worlds alone."""
    return unittest.skipUnless(KIND in kinds, f"says something of {' and '.join(kinds)} only")


class Case(unittest.TestCase):
    longMessage = True
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        cls.world = World(KIND)
        cls.addClassCleanup(cls.world.close)
        cls.hub = cls.world.hub

    def setUp(self):
        self.hub.heal()

    def assert_same(self, answer, data, what=None):
        """The file that an action describes has exactly these bytes."""
        self.assertEqual((answer["size"], answer["sha256"]), (len(data), sha256(data)), what)

    def assert_no_content_for_clients(self, seen):
        """Of what the Hub counted: not one byte of a file went to a program rather than to a mount."""
        if self.world.lazy:
            self.assertEqual(seen.content_for_clients(), [], "a client downloaded by itself")

    def assert_each_byte_once(self, seen, repo, name, size):
        """Of what the Hub counted: the daemons asked for every byte of the file once, and never twice."""
        if not self.world.lazy:
            return
        reached = 0
        for start, end in sorted(seen.ranges_of(repo, name)):
            self.assertEqual(
                start, reached, f"{name}: asked for twice, or left out; ranges {seen.ranges_of(repo, name)}"
            )
            reached = end
        self.assertEqual(reached, size, name)

    def assert_no_warnings(self, report, repo):
        """scan_cache_dir finds nothing to complain of; in a plain folder, where half repositories are usual, of this one."""
        # Old libraries do not know what new ones put into the root.
        newer = ("/CACHEDIR.TAG", "/blobs")
        warnings = [warning for warning in report["warnings"] if self.world.lazy or repo.folder in warning]
        warnings = [warning for warning in warnings if not warning.endswith(newer)]
        self.assertEqual(warnings, [])

    def assert_no_content(self, seen, who="the Hub handed out bytes of files"):
        self.assertEqual(seen.bytes, 0, who)

    def assert_silence(self, seen):
        self.assertEqual(seen.requests, {}, "the Hub was asked")
