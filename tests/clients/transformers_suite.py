"""transformers with torch: AutoTokenizer and AutoModel from a repository that nobody downloaded.

Run by scripts/test-transformers.sh; not found by the runner on its own because its venv takes gigabytes.
"""

import unittest

import bert
from case import Case
from world import weights

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SENTENCES = ["This is an example sentence", "Each sentence is converted"]


class Transformers(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = weights()
        cls.repo = cls.hub.add_folder(MODEL, cls.folder)
        cls.plain = cls.world.act(
            "auto_encode", name=cls.folder, sentences=SENTENCES, stack="transformers", timeout=300
        )

    def test_a_plain_folder_agrees_with_the_numpy_encoder(self):
        for ours, theirs in zip(bert.encode(self.folder, SENTENCES).tolist(), self.plain):
            for one, other in zip(ours, theirs):
                self.assertAlmostEqual(one, other, places=5)

    def test_auto_model_from_a_lazy_repository(self):
        for offline in (False, True):
            for use in ("cache", "home"):
                with self.subTest(offline=offline, use=use):
                    before = self.hub.seen()
                    got = self.world.act(
                        "auto_encode",
                        name=MODEL,
                        sentences=SENTENCES,
                        stack="transformers",
                        use=use,
                        offline=offline,
                        timeout=300,
                    )
                    self.assertEqual(got, self.plain)
                    seen = self.hub.seen() - before
                    self.assert_no_content_for_clients(seen)
                    if offline:
                        self.assertEqual(seen.by_clients(), {})


if __name__ == "__main__":
    unittest.main()
