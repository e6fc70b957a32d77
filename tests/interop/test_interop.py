"""Other runtimes open the artifact, and compute the embeddings of its self-test.

The Python and JavaScript code is that of docs/other-runtimes.md and of the model card. Plain ONNX Runtime is
tested where these run: in tests/docs and tests/export/test_publish.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doc_blocks import ROOT, blocks_in, blocks_of
from golden_embeddings import TINY, require_agreement, require_golden, texts_of
from hub_server import REPOSITORY, serving

from koe5_onnx import Artifact, Embedder
from koe5_onnx.identify import identify

pytestmark = pytest.mark.filterwarnings("ignore:.*were truncated")
PAGE = ROOT / "docs/other-runtimes.md"
TEXTS = ["대한민국의 수도는 어디인가요?", unicodedata.normalize("NFD", "서울 한강"), "길이 제한 " * 600]


def block_with(imported: str, language: str = "python") -> str:
    """Return the code of the page that imports a library."""
    found = [one.text for one in blocks_of(PAGE) if one.language == language]
    (block,) = (text for text in found if f"from {imported} import" in text or f'from "{imported}"' in text)
    return block


@pytest.fixture(scope="module")
def embedder():
    with Embedder.open(TINY) as embedder:
        yield embedder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to a folder that contains the artifact under the page's name."""
    shutil.copytree(TINY, tmp_path / "koe5-int8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_block(library: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(block_with(library), names)
    return names


def test_sentence_transformers(here, embedder):
    pytest.importorskip("optimum.onnxruntime")
    names = run_block("sentence_transformers")
    require_golden(names["model"].encode(texts_of(TINY)), TINY)
    require_agreement(names["queries"], embedder.encode_queries(TEXTS[:1]))
    require_agreement(names["passages"], embedder.encode_passages(["서울은 대한민국의 수도이다."]))
    require_agreement(names["model"].encode_query(TEXTS[2:]), embedder.encode_queries(TEXTS[2:]))


def test_optimum(here, embedder):
    pytest.importorskip("optimum.onnxruntime")
    names = run_block("optimum.onnxruntime")
    require_golden(names["embed"](texts_of(TINY)).numpy(), TINY)
    require_agreement(names["queries"].numpy(), embedder.encode_queries(TEXTS[:1]))


def test_fastembed(here, embedder):
    pytest.importorskip("fastembed")
    names = run_block("fastembed")
    require_golden(list(names["model"].embed(texts_of(TINY))), TINY)
    require_agreement(names["queries"], embedder.encode_queries(TEXTS[:1]))
    texts = [f"{number}번째 도시의 인구는 얼마인가요?" for number in range(8)]
    vectors = np.array(list(names["model"].embed([f"query: {text}" for text in texts])))
    found = identify(vectors, texts, embedder)
    assert (found.maker.prompt_name, found.maker.pooling) == ("query", "mean")
    assert found.precision == "same as this artifact (int8)"


@pytest.mark.parametrize(
    ("name", "prompt", "pooling"),
    [("none", "", "mean"), ("passage", "passage: ", "mean"), ("none", "", "cls")],
)
@pytest.mark.filterwarnings("ignore")  # warnings of transformers
def test_infinity(tmp_path, monkeypatch, embedder, name, prompt, pooling):
    pytest.importorskip("infinity_emb")
    from data.make_tiny import SIZE
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs
    from koe5_export.seeded import write_seeded_checkpoint

    monkeypatch.chdir(tmp_path)  # infinity creates a cache folder
    write_seeded_checkpoint(tmp_path / "checkpoint", replace(SIZE, pooling=pooling))
    arguments = EngineArgs(
        model_name_or_path=str(tmp_path / "checkpoint"),
        engine="torch",
        device="cpu",
        model_warmup=False,
        compile=False,
        bettertransformer=False,
    )
    texts = [f"{number}번째 도시의 인구는 얼마인가요?" for number in range(8)]

    async def embed():
        engine = AsyncEmbeddingEngine.from_args(arguments)
        async with engine:
            return (await engine.embed(sentences=[prompt + text for text in texts]))[0]

    found = identify(np.array(asyncio.run(embed())), texts, embedder)
    assert (found.maker.prompt_name, found.maker.pooling) == (name, pooling)
    assert found.precision == "another precision of the same checkpoint"


@pytest.fixture
def node(here):
    """Return a function that runs JavaScript with the arguments, and returns the JSON that it prints."""
    if (packages := os.environ.get("KOE5_NODE_RUNTIMES")) is None:
        pytest.skip("the packages of npm are not installed. Run nox -s integrations")

    def run(code: str, *arguments: str) -> object:
        (here / "node_modules").symlink_to(Path(packages, "node_modules"))
        (here / "embed.mjs").write_text(code, encoding="utf-8")
        command = ["node", "embed.mjs", json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


ARGUMENTS = "const texts = JSON.parse(process.argv[2]);\n"


def test_onnxruntime_for_node(node, embedder):
    found = node(
        block_with("onnxruntime-node", "js")
        + ARGUMENTS
        + "const embedded = await Promise.all(texts.map((text) => embed(text, contract.prompts.query)));\n"
        + "console.log(JSON.stringify([query, ...embedded].map((one) => Array.from(one))));",
        *TEXTS,
    )
    require_agreement(found, embedder.encode_queries([TEXTS[0], *TEXTS]))


def test_transformers_js(node, embedder):
    found = node(
        block_with("@huggingface/transformers", "js")
        + ARGUMENTS
        + 'const golden = await embed(texts, { pooling: "mean", normalize: true });\n'
        + "console.log(JSON.stringify([embeddings.tolist(), golden.tolist()]));",
        *texts_of(TINY),
        f"query: {TEXTS[2]}",
    )
    (query,), (*golden, long) = found
    require_golden(golden, TINY)
    require_agreement([query, long], embedder.encode_queries([TEXTS[0], TEXTS[2]]))


def test_transformers_js_from_the_hub(node, here, embedder):
    """Transformers.js reads from config.json which graph and weights it downloads."""
    from koe5_export.hub_card import model_card

    card = here / "README.md"
    card.write_text(model_card(Artifact.open(TINY).manifest, REPOSITORY), encoding="utf-8")
    (block,) = (one.text for one in blocks_in(card, card.name) if one.language == "js")
    files = {
        file.relative_to(TINY).as_posix(): file.read_bytes() for file in TINY.rglob("*") if file.is_file()
    }
    with serving(files) as hub:
        found = node(
            'import { env } from "@huggingface/transformers";\n'
            f'env.remoteHost = "{hub.endpoint}/";\nenv.cacheDir = "cache";\n'
            f"{block}console.log(JSON.stringify(embeddings.tolist()));"
        )
    assert {"onnx/model_quantized.onnx", "onnx/model_quantized.onnx_data"} <= set(hub.fetched)
    passages = embedder.encode_passages(["서울은 대한민국의 수도이다."])
    require_agreement(found, [*embedder.encode_queries(TEXTS[:1]), *passages])
