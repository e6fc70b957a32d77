"""The command publish, with huggingface_hub's own client and a simulated Hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from doc_blocks import blocks_in
from golden_embeddings import TINY, require_agreement
from hub_server import REPOSITORY, TOKEN, serving, settings
from huggingface_hub import metadata_load
from koe5_export.hub_card import model_card

from koe5_onnx import Artifact, Embedder

RUN_BLOCKS = """
import sys
from pathlib import Path

import numpy as np

for file in sys.argv[2:]:
    exec(Path(file).read_text(encoding="utf-8"))
# The first block computed `queries` and `passages`, the second one `embeddings` of the same two texts.
np.save(sys.argv[1], [np.concatenate([queries, passages]), embeddings])
"""


@pytest.fixture
def hub():
    with serving({".gitattributes": b""}) as hub:
        yield hub


@pytest.fixture
def python(hub, tmp_path):
    """Return a function that runs Python in a process whose Hub is the simulated one."""

    def run(*arguments, token=TOKEN, **others):
        env = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        env |= {**settings(hub.endpoint, tmp_path / "hf"), "HF_TOKEN": token, **others}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)

    return run


@pytest.fixture
def publish(python):
    return lambda *arguments, **env: python("-m", "koe5_onnx.cli", "publish", *arguments, **env)


def test_what_is_published_can_be_opened(hub, publish, python, tmp_path):
    done = publish(TINY, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"published: {hub.endpoint}/{REPOSITORY}/commit/")
    expected = {file.relative_to(TINY).as_posix() for file in TINY.rglob("*") if file.is_file()}
    (commit,) = hub.commits
    assert set(commit) == expected | {"README.md"}
    assert all(hub.files[name] == (TINY / name).read_bytes() for name in expected)

    # The code of the card downloads the artifact and embeds the same texts.
    card = tmp_path / "README.md"
    card.write_bytes(hub.files["README.md"])
    blocks = [one for one in blocks_in(card, card.name) if one.language == "python"]
    files = []
    for block in (blocks[0], blocks[-1]):
        files.append(tmp_path / f"{block.line}.py")
        files[-1].write_text(block.text, encoding="utf-8")
    done = python("-c", RUN_BLOCKS, tmp_path / "found.npy", *files, token="")
    assert done.returncode == 0, done.stderr
    with Embedder.open(TINY) as embedder:
        texts = (["대한민국의 수도는 어디인가요?"], ["서울은 대한민국의 수도이다."])
        expected = np.concatenate([embedder.encode_queries(texts[0]), embedder.encode_passages(texts[1])])
    for found in np.load(tmp_path / "found.npy"):
        require_agreement(found, expected)


def test_files_of_an_earlier_artifact_are_deleted(hub, publish, tmp_path):
    manifest = json.loads((TINY / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] |= {name: {} for name in ("onnx/model.onnx", "onnx/model.onnx_data")}
    hub.files["manifest.json"] = json.dumps(manifest).encode()
    hub.files |= {"onnx/model.onnx": b"old", "onnx/other.onnx": b"of the user"}
    assert publish(TINY, REPOSITORY).returncode == 0
    assert [name for name in hub.commits[0] if name.startswith("-")] == ["-onnx/model.onnx"]
    assert "onnx/other.onnx" in hub.files


@pytest.mark.parametrize(("options", "visibility"), [((), None), (("--private",), "private")])
def test_the_repository_is_created(hub, publish, options, visibility):
    assert publish(TINY, REPOSITORY, "--revision", "main", *options).returncode == 0
    owner, name = REPOSITORY.split("/")
    assert (hub.created["organization"], hub.created["name"]) == (owner, name)
    assert ("private" in json.dumps(hub.created)) == (visibility == "private")


def test_an_existing_public_repository_is_not_made_private(hub, publish):
    hub.exists = True
    done = publish(TINY, REPOSITORY, "--private")
    assert done.returncode == 1
    assert f"{REPOSITORY} exists and is public, but --private was passed" in done.stderr
    assert hub.commits == []


def test_a_dry_run_uploads_nothing(hub, publish):
    done = publish(TINY, REPOSITORY, "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    manifest = Artifact.open(TINY).manifest
    assert done.stdout.startswith(model_card(manifest, REPOSITORY))
    for name in (*manifest.files, "manifest.json", "README.md"):
        assert f"bytes  {name}\n" in done.stdout
    assert (hub.created, hub.commits) == ({}, [])


@pytest.mark.parametrize(
    ("repository", "env", "expected"),
    [
        ("koe5", {}, "the repository is 'koe5'; expected OWNER/NAME"),
        (REPOSITORY, {"token": ""}, "there is no token for the Hub. Run hf auth login"),
        (REPOSITORY, {"token": "hf_of_nobody"}, "the Hub rejects the token. Run hf auth login"),
        (REPOSITORY, {"token": "hf_of_a_reader"}, "the token has no permission to write to it"),
        (REPOSITORY, {"HF_HUB_OFFLINE": "1"}, "Check the name, the network and HF_HUB_OFFLINE"),
        (REPOSITORY, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Check the name, the network and HF_HUB_OFFLINE"),
    ],
)
def test_errors_say_what_to_do(hub, publish, repository, env, expected):
    done = publish(TINY, repository, **env)
    assert done.returncode == 1
    assert done.stderr.startswith("koe5-onnx: error: ")
    assert expected in done.stderr
    assert hub.commits == []


def test_a_damaged_artifact_is_not_published(hub, publish, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "damaged")
    weights = folder / "onnx/model_quantized.onnx_data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    done = publish(folder, REPOSITORY)
    assert "model_quantized.onnx_data differs from the manifest" in done.stderr
    assert (done.returncode, hub.created) == (1, {})


@pytest.mark.parametrize("prompts", [{"query": "query: ", "passage": "passage: "}, {}])
def test_the_card(prompts, tmp_path):
    manifest = Artifact.open(TINY).manifest
    source = replace(
        manifest.source, repository="nlpai-lab/KoE5", revision="1234", license="mit", languages=("ko", "en")
    )
    contract = replace(manifest.contract, prompts=prompts, pooling="cls")
    card = model_card(replace(manifest, source=source, contract=contract), "owner/koe5-int8")
    file = tmp_path / "README.md"
    file.write_text(card, encoding="utf-8")
    metadata = metadata_load(file)
    assert metadata["base_model"] == "nlpai-lab/KoE5"
    assert (metadata["license"], metadata["language"]) == ("mit", ["ko", "en"])
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("onnx", "sentence-similarity")
    certificate = manifest.certificate
    assert f"| all lengths | 300 | {certificate.overall.cosine_min:.6f} |" in card
    assert f"| nearest neighbors kept | {certificate.retrieval.overlap:.2%} of the 10" in card
    assert sum(line.endswith(f"# {count}") for line in card.splitlines() for count in (158, 142)) == 2
    assert card.count(f"| ONNX Runtime | {certificate.measured_with['onnxruntime']} |") == 2
    assert 'pooling: "cls", normalize: true' in card
    for name, call in (("query", "encode_queries"), ("passage", "encode_passages")):
        assert (f'"{name}: ' in card) == bool(prompts)
        assert (call in card) == bool(prompts)
