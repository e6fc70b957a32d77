"""Settings files of a checkpoint: each has the same effect as in sentence-transformers, or is rejected.

The expected embeddings are those of SentenceTransformer(folder).encode.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from edited_json import edited
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.settings import TRANSFORMER_SETTINGS
from tolerances import FP32_MAX_ABS_DIFF

from koe5_onnx import CheckpointError, CheckpointWarning, Embedder, InputError, TruncationWarning
from koe5_onnx.integrations.sentence_transformers import SentenceEncoder

TEXTS = [
    "Seoul is the CAPITAL of Korea",
    "서울은 대한민국의 수도이다.",
    "",
    "  Spaces   AND\ttabs\n",
    "긴 문장 " * 120,
    "<s> typed </s>",
]
LIMIT = {"max_seq_length": 64, "do_lower_case": False}


def update(folder: Path, name: str, **changes):
    with edited(folder / name) as data:
        data |= changes


def remove_settings(folder: Path) -> None:
    """Keep only the files of transformers."""
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    (folder / "1_Pooling/config.json").unlink()


def theirs(folder: Path, *prompts: dict[str, str | None]) -> list[np.ndarray]:
    """Return one set of embeddings by sentence-transformers for each set of keyword arguments of `encode`."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        return [model.encode(TEXTS, show_progress_bar=False, **prompt) for prompt in prompts]


def export(folder: Path, **options) -> Path:
    out = folder.with_name("out")
    return export_checkpoint(Checkpoint.open(folder), out, ExportOptions(force=True, **options)).path


def assert_same(folder: Path, names=(None, "query", "passage"), **options) -> None:
    """Compare Embedder and SentenceEncoder with sentence-transformers for each prompt name."""
    facade = SentenceEncoder(export(folder, **options))
    with facade.embedder as embedder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        for name, expected in zip(
            names, theirs(folder, *({"prompt_name": name} for name in names)), strict=True
        ):
            for found in (embedder.encode(TEXTS, name), facade.encode(TEXTS, prompt_name=name)):
                np.testing.assert_allclose(found, expected, atol=FP32_MAX_ABS_DIFF, rtol=0)


def assert_prompted(out: Path, folder: Path, prompts: dict[str, str]) -> None:
    """Check that each prompt name of the artifact gives the embeddings with that prompt, at unit length."""
    with Embedder.open(out) as embedder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        expectations = theirs(folder, *({"prompt": prompt} for prompt in prompts.values()))
        for name, expected in zip(prompts, expectations, strict=True):
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            found = embedder.encode(TEXTS, **({"prompt_name": name} if name else {"prompt": ""}))
            np.testing.assert_allclose(found, expected, atol=FP32_MAX_ABS_DIFF, rtol=0)


def lower_case(folder):
    update(folder, "sentence_bert_config.json", do_lower_case=True)


def default_prompt(folder):
    update(folder, "config_sentence_transformers.json", default_prompt_name="passage")


def limit_named(name):
    def change(folder):
        (folder / "sentence_bert_config.json").unlink()
        (folder / name).write_text(json.dumps(LIMIT))

    return change


def first_name_wins(folder):
    update(folder, "sentence_bert_config.json", max_seq_length=32)
    (folder / "sentence_xlnet_config.json").write_text(json.dumps(LIMIT))


def an_empty_name_gives_way(folder):
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / "sentence_roberta_config.json").write_text(json.dumps(LIMIT))


def limit_of_the_tokenizer(folder):
    (folder / "sentence_bert_config.json").unlink()
    update(folder, "tokenizer_config.json", model_max_length=48)


def limit_above_the_tokenizers(folder):
    update(folder, "sentence_bert_config.json", max_seq_length=200)
    update(folder, "tokenizer_config.json", model_max_length=48)


def new_spelling(folder):
    kinds = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling")
    kinds += ("base.modules.normalize.Normalize",)
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": turn, "name": str(turn), "path": path, "type": f"sentence_transformers.{kind}"}
        for turn, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    new = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    new["modality_config"] = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(new))
    update(folder, "config_sentence_transformers.json", model_type="SentenceTransformer")


def not_normalized(folder):
    with edited(folder / "modules.json") as modules:
        del modules[2:]
    update(folder, "config_sentence_transformers.json", similarity_fn_name="dot")


def weights_in_bfloat16(folder):
    update(folder, "sentence_bert_config.json", model_args={"torch_dtype": "float32"})


HONORED = [
    lower_case,
    default_prompt,
    *map(limit_named, TRANSFORMER_SETTINGS),
    first_name_wins,
    an_empty_name_gives_way,
    limit_of_the_tokenizer,
    limit_above_the_tokenizers,
    not_normalized,
    weights_in_bfloat16,
]


@pytest.mark.parametrize("change", HONORED)
def test_settings_are_applied_as_by_sentence_transformers(folder, change):
    (before,) = theirs(folder, {})
    change(folder)
    if change is not weights_in_bfloat16 and change is not an_empty_name_gives_way:
        # The changed file changes embeddings.
        assert np.abs(theirs(folder, {})[0] - before).max() > 10 * FP32_MAX_ABS_DIFF
    assert_same(folder)


def test_new_spellings_are_read(folder):
    pytest.importorskip("sentence_transformers", minversion="6.0")
    new_spelling(folder)
    assert_same(folder)


def test_an_encoder_in_a_separate_folder(folder):
    (folder / "0_Transformer").mkdir()
    for file in [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / "0_Transformer" / file.name)
    with edited(folder / "modules.json") as modules:
        modules[0]["path"] = "0_Transformer"
    assert_same(folder)


def test_a_checkpoint_without_settings_files_gets_the_cards_prompts(folder):
    """KoE5's repository has none. sentence-transformers then uses mean pooling and no prompts."""
    remove_settings(folder)
    with pytest.warns(CheckpointWarning, match="does not normalize"):
        out = export(folder, like="nlpai-lab/KoE5")
    assert_prompted(out, folder, {"query": "query: ", "passage": "passage: "})


def test_a_pooling_different_from_sentence_transformers_is_rejected(folder):
    """The card of bge-m3 says CLS, but without its files sentence-transformers uses mean pooling."""
    remove_settings(folder)
    with pytest.raises(CheckpointError, match="pooling is 'mean' instead of 'cls'"):
        export(folder, like="BAAI/bge-m3")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("sentence_bert_config.json", {"query_length": 32}, "query_length is 32"),
        ("sentence_bert_config.json", {"document_length": 32}, "document_length"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "query_expansion"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"max_length": 9}}},
            "processing_kwargs",
        ),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "other/model"}, "tokenizer_name_or_path"),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 9}}, "tokenizer_args"),
        ("sentence_bert_config.json", {"config_kwargs": {"layer_norm_eps": 1.0}}, "config_kwargs"),
        ("sentence_bert_config.json", {"model_args": {"num_hidden_layers": 1}}, "model_args has num_hidden"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type"),
        ("config_sentence_transformers.json", {"truncate_dim": 32}, "truncate_dim is 32"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "similarity_fn_name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "absent"}, "default_prompt_name"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling is mean.max"),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}, "auto_map"),
        ("config.json", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("config.json", {"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map"),
        ("tokenizer_config.json", {"model_input_names": ["input_ids"]}, "model_input_names"),
        ("adapter_config.json", {"peft_type": "LORA"}, "adapter"),
    ],
)
def test_unsupported_settings_are_named(folder, file, changes, message):
    update(folder, file, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        export(folder)
    assert file in str(raised.value)


@pytest.mark.parametrize(
    "type_", ["models.Dense", "custom_st.Transformer", "models.Router", "models.LayerNorm"]
)
def test_unsupported_modules_are_named(folder, type_):
    prefix = "" if type_.startswith("custom") else "sentence_transformers."
    with edited(folder / "modules.json") as modules:
        modules[0 if "Transformer" in type_ else 2]["type"] = prefix + type_
    with pytest.raises(CheckpointError, match=type_.rpartition(".")[2] if prefix else type_):
        export(folder)


def test_modules_in_another_order_are_rejected(folder):
    with edited(folder / "modules.json") as modules:
        modules[:2] = modules[1], modules[0]
    with pytest.raises(CheckpointError, match="Pooling, Transformer, Normalize"):
        export(folder)


@pytest.mark.parametrize("path", ["../outside", "/etc"])
def test_a_module_outside_of_the_checkpoint_is_rejected(folder, path):
    with edited(folder / "modules.json") as modules:
        modules[1]["path"] = path
    with pytest.raises(CheckpointError, match="outside"):
        export(folder)


def test_a_tokenizer_json_that_differs_from_transformers_is_rejected(folder):
    """transformers prefers the special tokens of tokenizer_config.json to those of tokenizer.json."""
    update(
        folder, "tokenizer_config.json", extra_special_tokens=["[NEW]"], additional_special_tokens=["[NEW]"]
    )
    # transformers 4 fails to load the list.
    with pytest.raises(CheckpointError, match=r"differently from tokenizer\.json|cannot be loaded by"):
        export(folder)


def test_left_padding_is_rejected_if_it_shifts_positions(tmp_path):
    folder = tmp_path / "bert"
    write_seeded_checkpoint(folder, Size(1, 64, 2, 128, 1200, model_type="bert", positions=512))
    update(folder, "tokenizer_config.json", padding_side="left")
    with pytest.raises(CheckpointError, match="padding_side is 'left'"):
        export(folder)


def test_left_padding_is_accepted_if_positions_skip_it(folder):
    update(folder, "tokenizer_config.json", padding_side="left")
    assert_same(folder)


def test_settings_files_that_are_ignored_are_named(folder):
    (folder / "modules.json").unlink()
    with pytest.warns(CheckpointWarning) as caught:
        export(folder, like="nlpai-lab/KoE5")
    assert any("ignores config_sentence_transformers.json" in str(warning.message) for warning in caught)


def test_unknown_settings_are_named(folder):
    update(folder, "sentence_bert_config.json", pool_twice=True)
    with pytest.warns(CheckpointWarning, match="does not know: pool_twice"), pytest.raises(CheckpointError):
        export(folder)  # sentence-transformers does not support it either, and fails


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("multilingual-e5-small-law", "", "--prompt query='query: '"),
        ("KoE5", "", "--prompt query='query: '"),
        ("law", "base_model: intfloat/multilingual-e5-base\n", "--prompt query='query: '"),
        ("law", "base_model:\n- intfloat/multilingual-e5-large-instruct\n", "Instruct"),
    ],
)
def test_e5_without_prompts_says_what_to_pass(folder, name, metadata, expected):
    update(folder, "config_sentence_transformers.json", prompts={"query": "", "document": ""})
    folder = folder.rename(folder.with_name(name))
    (folder / "README.md").write_text(f"---\nlicense: mit\n{metadata}tags: [a]\n---\n# Model\n")
    with pytest.warns(CheckpointWarning, match=expected):
        export(folder)


def test_prompts_from_options_are_used(folder):
    update(folder, "config_sentence_transformers.json", prompts={"query": "", "document": ""})
    out = export(folder, prompts={"query": "query: ", "passage": "passage: "})
    assert_prompted(out, folder, {"query": "query: ", "passage": "passage: ", "document": "passage: "})


def test_prompts_that_contradict_the_files_are_rejected(folder):
    with pytest.raises(InputError, match="Omit the option"):
        export(folder, prompts={"query": "Q: "})


def test_lower_casing_of_bert_checkpoints(tmp_path):
    folder = tmp_path / "bert"
    write_seeded_checkpoint(folder, Size(2, 64, 2, 128, 1200, model_type="bert", positions=512))
    update(folder, "sentence_bert_config.json", do_lower_case=True)
    assert_same(folder)
