import dataclasses
import json

import pytest
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import ContractOptions, read_contract
from koe5_export.seeded import SIZES, encoder_config

from koe5_onnx import CheckpointError, InputError

TYPE = "sentence_transformers.models."


def contract(folder, like=None):
    return read_contract(Checkpoint(folder, "someone/model", None), ContractOptions(like=like))


def write(folder, name, data):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(data))


def modules(folder, *kinds):
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    write(
        folder,
        "modules.json",
        [{"type": TYPE + kind, "path": paths.get(kind, "2_" + kind)} for kind in kinds],
    )


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls", "embedding_dimension": 64}, "cls"),
        ({"pooling_mode": ["mean"], "embedding_dimension": 64}, "mean"),
        ({"pooling_mode_mean_tokens": False, "word_embedding_dimension": 64}, "mean"),
    ],
)
def test_reads_pooling_in_both_forms(folder, pooling, expected):
    write(folder, "1_Pooling/config.json", pooling)
    assert contract(folder).pooling == expected


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "max"},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "mean", "include_prompt": False},
        {"pooling_mode": ["mean", "cls"]},
    ],
)
def test_rejects_other_pooling(folder, pooling):
    write(folder, "1_Pooling/config.json", pooling)
    with pytest.raises(CheckpointError, match="1_Pooling"):
        contract(folder)


def test_normalization_is_read_from_the_modules(folder):
    assert contract(folder).normalize
    modules(folder, "Transformer", "Pooling")
    assert not contract(folder).normalize


def test_rejects_unknown_modules(folder):
    modules(folder, "Transformer", "Pooling", "Dense")
    with pytest.raises(CheckpointError, match="Dense"):
        contract(folder)


@pytest.mark.parametrize("content", [[], {}, [3], ["Transformer", "Pooling"], [{"path": ""}] * 2, None])
def test_rejects_invalid_modules(folder, content):
    write(folder, "modules.json", content)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        contract(folder)


def test_the_pooling_module_must_have_its_configuration(folder):
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"1_Pooling.*missing"):
        contract(folder)


def test_files_take_precedence_over_known_contracts(folder):
    write(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    assert contract(folder, like="nlpai-lab/KoE5").pooling == "cls"


@pytest.mark.filterwarnings("ignore:.*sentence-transformers ignores:koe5_onnx.CheckpointWarning")
def test_the_contract_of_koe5_is_known_by_its_id(folder):
    (folder / "modules.json").unlink()
    assert read_contract(Checkpoint(folder, "nlpai-lab/KoE5", None)).pooling == "mean"


@pytest.mark.filterwarnings("ignore:.*sentence-transformers ignores:koe5_onnx.CheckpointWarning")
def test_a_copy_of_koe5_requires_the_option_like(folder):
    (folder / "modules.json").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(CheckpointError, match="--like"):
        contract(folder)
    found = contract(folder, like="nlpai-lab/KoE5")
    assert (found.pooling, found.normalize) == ("mean", True)
    assert found.prompts == {"query": "query: ", "passage": "passage: "}
    with pytest.raises(CheckpointError, match="no contract is known"):
        contract(folder, like="someone/else")


@pytest.mark.parametrize(
    ("sentence_bert", "tokenizer", "expected"),
    [
        (256, 512, 256),
        (256, 128, 256),
        (None, 128, 128),
        (None, 10**30, 512),
        (8192, None, 512),
        (None, None, 512),
    ],
)
def test_the_token_limit_is_at_most_the_number_of_positions(folder, sentence_bert, tokenizer, expected):
    write(folder, "sentence_bert_config.json", {"max_seq_length": sentence_bert} if sentence_bert else {})
    write(folder, "tokenizer_config.json", {"model_max_length": tokenizer} if tokenizer else {})
    assert contract(folder).max_tokens == expected


@pytest.mark.parametrize(
    ("model_type", "positions", "expected"),
    [("xlm-roberta", 8194, 8192), ("xlm-roberta", 514, 512), ("roberta", 514, 512), ("bert", 512, 512)],
)
def test_roberta_has_two_positions_less(model_type, positions, expected):
    config = dataclasses.replace(encoder_config(SIZES["tiny"]), model_type=model_type, positions=positions)
    assert config.max_tokens == expected


@pytest.mark.parametrize("limit", ["many", 0, -1, 2, [512]])
def test_an_invalid_token_limit_is_rejected(folder, limit):
    write(folder, "sentence_bert_config.json", {"max_seq_length": limit})
    with pytest.raises(CheckpointError, match="max_seq_length"):
        contract(folder)


@pytest.mark.parametrize("stored", [["query: "], {"query": 3}, "query: "])
def test_invalid_prompts_are_rejected(folder, stored):
    write(folder, "config_sentence_transformers.json", {"prompts": stored})
    with pytest.raises(CheckpointError, match="prompts"):
        contract(folder)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"query": "q ", "document": "d "}, {"query": "q ", "passage": "d ", "document": "d "}),
        ({"query": "q ", "passage": "p "}, {"query": "q ", "passage": "p "}),
        (None, {"query": "", "passage": ""}),
    ],
)
def test_prompts_get_the_names_query_and_passage(folder, stored, expected):
    write(folder, "config_sentence_transformers.json", {"prompts": stored})
    assert contract(folder).prompts == expected


def test_an_unsupported_unicode_form_is_an_error_of_the_caller(folder):
    with pytest.raises(InputError, match="unicode_form is 'NFD'; expected 'NFC' or None"):
        read_contract(Checkpoint(folder, "someone/model", None), ContractOptions(unicode_form="NFD"))
