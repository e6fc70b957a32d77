"""The reference does not depend on batches, and computes in fp32 if weights are stored in 16 bits."""

from dataclasses import replace

import numpy as np
import pytest
from edited_json import edited
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.reference import embed_reference
from koe5_export.seeded import Size, write_seeded_checkpoint
from tolerances import FP32_MAX_ABS_DIFF

SIZE = Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=1200)
TEXTS = ["서울은 수도이다.", "a " * 700, "", "<pad> typed", "네", "A line of some length, in English."]


@pytest.fixture
def contract(seeded):
    return read_contract(Checkpoint.open(seeded))


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("mean", False)])
def test_batches_do_not_change_embeddings_or_their_order(tmp_path, pooling, normalize):
    folder = tmp_path / "checkpoint"
    write_seeded_checkpoint(folder, replace(SIZE, pooling=pooling))
    if not normalize:
        with edited(folder / "modules.json") as modules:
            del modules[2:]
    contract = read_contract(Checkpoint.open(folder))
    together = embed_reference(folder, contract, TEXTS)
    alone = np.concatenate([embed_reference(folder, contract, [text]) for text in TEXTS])
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=10 * FP32_MAX_ABS_DIFF, rtol=0)
    lengths = np.linalg.norm(together, axis=1)
    assert np.allclose(lengths, 1) is normalize


def test_no_texts_give_no_rows(seeded, contract):
    assert embed_reference(seeded, contract, []).shape == (0, contract.dim)


def test_weights_stored_in_16_bits_are_computed_in_32(folder, contract):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(halves, file)
    found = embed_reference(folder, contract, TEXTS)
    file.unlink()
    save_file({name: tensor.float() for name, tensor in halves.items()}, file)
    np.testing.assert_array_equal(found, embed_reference(folder, contract, TEXTS))
