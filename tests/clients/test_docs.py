"""The documents say what is so: docs/semantics.md names tests that there are, README.md the options that there are."""

import importlib
import os
import re
import subprocess
import unittest

from case import only
from process import ROOT, built


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


@only("embedded")
class Readme(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            text = file.read()
        section = text.split("## Commands and options")[1].split("\n## ")[0]
        cls.common, *verbs = re.split(r"\n\*\*`hfmount ", section)
        cls.verbs = {re.match(r"[a-z]+( (ls|add|rm)\b)?", verb).group(): verb for verb in verbs}

    def help(self, verb):
        """Of every option of the verb: its whole entry in `--help`, on one line."""
        command = [built("", "hfmount"), *verb.split(), "--help"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\nExamples:")[0]
        entries = re.split(r"\n +(?:-[a-z], |    )(?=--[a-z])", said)[1:]
        return {re.match(r"--[a-z-]+", entry).group(): " ".join(entry.split()) for entry in entries}

    def test_every_option_is_there_and_no_other(self):
        wanted = ["bench", "config", "dump", "format", "fsck", "gc", "info", "load", "mount"]
        wanted += ["peer add", "peer ls", "peer rm", "restore", "stats", "status", "umount"]
        self.assertEqual(sorted(self.verbs), wanted)
        for verb, text in self.verbs.items():
            said = set(self.help(verb)) - {"--help", "--meta"}
            rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
            self.assertEqual(said, set(re.findall(r"--[a-z-]+", " ".join(rows))), verb)

    def test_defaults_and_variables_are_as_in_the_help(self):
        for verb, text in self.verbs.items():
            text += self.common
            for option, entry in self.help(verb).items():
                rows = [line for line in text.splitlines() if f"`{option}" in line]
                for name in re.findall(r"\[env: (\w+)", entry):
                    self.assertTrue(any(name in row for row in rows), f"{verb} {option}: {name}")
                for default in re.findall(r"\[default: ([^\]]+)\]", entry):
                    self.assertTrue(any(f"`{default}`" in row for row in rows), f"{verb} {option}: {default}")


if __name__ == "__main__":
    unittest.main()
