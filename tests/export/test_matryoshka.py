"""Sources of a checkpoint's Matryoshka dimensions, and their precedence."""

import json
from pathlib import Path

import pytest
from edited_json import edited
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import KNOWN, ContractOptions, read_contract
from koe5_export.matryoshka import matryoshka_dims
from koe5_export.seeded import Size, write_seeded_checkpoint

from koe5_onnx import Artifact, CheckpointError, InputError, cli

ARCTIC = "Snowflake/snowflake-arctic-embed-l-v2.0"
LOSS = {
    "loss": "MultipleNegativesRankingLoss",
    "matryoshka_dims": [64, 32, 16],
    "matryoshka_weights": [1, 1, 1],
    "n_dims_per_step": -1,
}


def put(folder, name, **values):
    with edited(folder / name) as data:
        data |= values


def put_card(folder, *losses):
    """Write a model card with the parameters of each loss, in the format of sentence-transformers."""
    blocks = [
        f"* Loss: MatryoshkaLoss with these parameters:\n  ```json\n{json.dumps(loss, indent=4)}\n  ```\n"
        for loss in losses
    ]
    (folder / "README.md").write_text("# 한국어 모델\n\n" + "\n".join(blocks), encoding="utf-8")


def dims(folder):
    return read_contract(Checkpoint(folder, "someone/model", None)).matryoshka_dims


def test_checkpoints_without_matryoshka_dimensions(folder):
    assert dims(folder) == ()
    (folder / "README.md").write_text('A card that speaks of "matryoshka_dims" and of 256.', encoding="utf-8")
    put(folder, "config.json", matryoshka_dimensions=None, truncate_dim=None, is_matryoshka=True)
    assert dims(folder) == ()


def test_dimensions_from_config_json(folder):
    put(folder, "config.json", matryoshka_dimensions=[16, 32, 64])
    assert dims(folder) == (16, 32)
    put(folder, "config.json", truncate_dim=8)
    assert dims(folder) == (8, 16, 32)


def test_dimensions_from_a_model_card(folder):
    put_card(folder, LOSS)
    assert dims(folder) == (16, 32)
    put_card(folder, LOSS, {**LOSS, "matryoshka_dims": [64, 24]})
    assert dims(folder) == (16, 24, 32)


def test_dimensions_from_files_of_sentence_transformers(folder, tmp_path):
    """sentence-transformers saves the checkpoint, and returns the loss parameters for the card."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import (
        MatryoshkaLoss,
        MultipleNegativesRankingLoss,
    )

    model = library.SentenceTransformer(str(folder), device="cpu")
    model.save(str(tmp_path / "saved"), create_model_card=False)
    assert dims(tmp_path / "saved") == ()
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=[64, 32, 8])
    put_card(tmp_path / "saved", loss.get_config_dict())
    assert dims(tmp_path / "saved") == (8, 32)
    model.truncate_dim = 24
    model.save(str(tmp_path / "shortened"), create_model_card=False)
    with pytest.raises(CheckpointError, match="truncate_dim is 24"):
        dims(tmp_path / "shortened")


@pytest.mark.parametrize("wrong", [[0], [65], [16, "32"], "16", 1.5, [True], {"16": 1}])
def test_invalid_dimensions_in_a_file_are_rejected(folder, wrong):
    put(folder, "config.json", matryoshka_dimensions=wrong)
    with pytest.raises(CheckpointError, match=r"config\.json: matryoshka_dimensions is .*--matryoshka-dims"):
        dims(folder)
    found = read_contract(Checkpoint(folder, "someone/model", None), ContractOptions(matryoshka_dims=[32]))
    assert found.matryoshka_dims == (32,), "the option does not replace them"


def test_options_precede_files_and_files_precede_known_dimensions(folder):
    checkpoint = Checkpoint.open(folder)
    assert matryoshka_dims(checkpoint, known=[48]) == (48,)
    put(folder, "config.json", matryoshka_dimensions=[16])
    assert matryoshka_dims(checkpoint, known=[48]) == (16,)
    assert matryoshka_dims(checkpoint, known=[48], given=[64, 32, 8]) == (8, 32)
    assert matryoshka_dims(checkpoint, known=[48], given=[]) == ()
    for width in (0, 65):
        with pytest.raises(
            InputError, match=f"matryoshka_dims has {width}; expected dimensions from 1 to 64"
        ):
            matryoshka_dims(checkpoint, given=[32, width])


@pytest.mark.filterwarnings("ignore:.*sentence-transformers ignores:koe5_onnx.CheckpointWarning")
def test_koe5_has_none_and_arctic_has_256(tmp_path):
    assert {name for name, known in KNOWN.items() if known.matryoshka_dims} == {ARCTIC}
    folder = tmp_path / "arctic"
    write_seeded_checkpoint(folder, Size(1, 320, 5, 640, 1200, positions=8194, pooling="cls", prompted=False))
    (folder / "modules.json").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    found = read_contract(Checkpoint(folder, ARCTIC, None))
    assert (found.pooling, found.normalize, found.dims) == ("cls", True, (256, 320))
    assert found.prompts == {"query": "query: ", "passage": ""}


@pytest.mark.parametrize(("option", "expected"), [((), [16]), (("--matryoshka-dims", "32,8"), [8, 32])])
def test_the_artifact_contains_the_dimensions(folder, tmp_path, option, expected):
    put(folder, "config.json", matryoshka_dimensions=[16])
    out = tmp_path / "artifact"
    assert cli.main(["export", str(folder), str(out), *option]) == 0
    assert list(Artifact.open(out).manifest.contract.matryoshka_dims) == expected
    assert json.loads((out / "manifest.json").read_text())["contract"]["matryoshka_dims"] == expected


def test_invalid_options_are_rejected(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", str(folder), str(tmp_path / "out"), "--matryoshka-dims", "a"])
    assert "found 'a'; expected integers, for example 256,512" in capsys.readouterr().err
    assert cli.main(["export", str(folder), str(tmp_path / "out"), "--matryoshka-dims", "65"]) == 1
    assert "matryoshka_dims has 65; expected dimensions from 1 to 64" in capsys.readouterr().err
    with pytest.raises(InputError, match="matryoshka_dims has 65"):
        export_checkpoint(Checkpoint.open(folder), tmp_path / "out", ExportOptions(matryoshka_dims=[65]))
    assert not Path(tmp_path / "out").exists()
