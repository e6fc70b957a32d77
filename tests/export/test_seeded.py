"""Invalid requests for seeded checkpoints are rejected and leave no files."""

from __future__ import annotations

from pathlib import Path

import pytest
from koe5_export.seeded import write_seeded_checkpoint

from koe5_onnx import InputError

TINY_TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "tiny-int8" / "tokenizer.json"


def test_existing_folders_are_not_touched(tmp_path):
    with pytest.raises(InputError, match=r"exists\. Pass a new folder"):
        write_seeded_checkpoint(tmp_path, "tiny")


def test_an_unknown_size_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="size is 'huge'; expected one of tiny"):
        write_seeded_checkpoint(tmp_path / "out", "huge")


@pytest.mark.parametrize("source", [TINY_TOKENIZER.parent, TINY_TOKENIZER.with_name("none.json")])
def test_a_missing_tokenizer_file_is_rejected_and_leaves_nothing(tmp_path, source):
    with pytest.raises(InputError, match=r"is not a file\. Pass a tokenizer\.json"):
        write_seeded_checkpoint(tmp_path / "out", "tiny", tokenizer=source)
    assert not list(tmp_path.iterdir())
