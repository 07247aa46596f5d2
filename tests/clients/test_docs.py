"""docs/semantics.md names a test for each promise: every one of them is there."""

import importlib
import os
import re
import unittest

from case import only
from process import ROOT


@only("embedded", "plain")
class Semantics(unittest.TestCase):
    def test_every_named_test_exists(self):
        with open(os.path.join(ROOT, "docs", "semantics.md"), encoding="utf-8") as file:
            rows = [line.split("|")[2] for line in file if line.startswith("| ") and "test_" in line]
        self.assertGreater(len(rows), 20)
        for row in rows:
            named = re.findall(r"`(test_[A-Za-z0-9_.]+)`", row)
            self.assertTrue(named, row)
            place = []
            for name in named:
                # A bare method belongs to the class that was named before it.
                parts = (
                    name.split(".")
                    if os.path.exists(os.path.join(os.path.dirname(__file__), name.split(".")[0] + ".py"))
                    else [*place, name]
                )
                found = importlib.import_module(parts[0])
                for part in parts[1:]:
                    self.assertTrue(hasattr(found, part), name)
                    found = getattr(found, part)
                place = parts[:2]


if __name__ == "__main__":
    unittest.main()
