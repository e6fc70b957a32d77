"""Write the model card (README.md) of an artifact on the Hub: what it is, its certificate, how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from huggingface_hub import ModelCardData

from koe5_onnx import Contract, Manifest, __version__
from koe5_onnx.artifact.hub import is_hub_id
from koe5_onnx.cli.certificate_report import certificate_sections
from koe5_onnx.cli.manifest_report import contract, headline
from koe5_onnx.cli.report import Fact, Histograms, Table, printable

_BAR_WIDTH = 40
"""Characters of the longest bar of the histogram."""
_QUESTION, _PASSAGE = "대한민국의 수도는 어디인가요?", "서울은 대한민국의 수도이다."


def model_card(manifest: Manifest, repository: str) -> str:
    """Return the content of README.md for an artifact that is published as `repository`.

    Raises:
        ArtifactError: A histogram of the certificate has invalid counts.
    """
    parts = (
        f"---\n{_metadata(manifest)}\n---",
        _introduction(manifest, repository),
        *_agreement(manifest),
        _usage(manifest, repository),
        _other_runtimes(manifest),
    )
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: Manifest) -> str:
    source = manifest.source
    data = ModelCardData(
        base_model=source.repository if _is_on_hub(manifest) else None,
        base_model_relation="quantized" if _is_on_hub(manifest) else None,
        language=list(source.languages) or None,
        library_name="onnx",
        license=source.license,
        pipeline_tag="sentence-similarity",
        tags=[
            "koe5-onnx",
            "sentence-transformers",
            "transformers.js",
            "feature-extraction",
            manifest.precision,
        ],
    )
    return str(data.to_yaml())


def _is_on_hub(manifest: Manifest) -> bool:
    return manifest.source.revision is not None and is_hub_id(manifest.source.repository)


def _introduction(manifest: Manifest, repository: str) -> str:
    source = manifest.source
    name = printable(source.repository)
    checkpoint = f"[{name}](https://huggingface.co/{name})" if _is_on_hub(manifest) else name
    commit = f" (commit {printable(source.revision)})" if source.revision else ""
    return (
        f"# {printable(repository.partition('/')[2])}\n\n"
        f"{checkpoint}{commit}, converted to ONNX in {manifest.precision} by koe5-onnx.\n\n"
        f"{_markdown(_facts('property', [*headline(manifest), *contract(manifest.contract)]))}"
    )


def _agreement(manifest: Manifest) -> Iterator[str]:
    certificates = {"padded": manifest.certificate, "packed": manifest.packed_certificate}
    for graph, certificate in certificates.items():
        if certificate is not None:
            agreement, search, _, measured = certificate_sections(certificate, manifest.target)
            yield f"## How close is it to PyTorch? ({graph} graph)"
            yield from map(printable, agreement.notes)
            yield _markdown(*agreement.tables, _facts("figure", search.facts))
            yield _chart(agreement.histograms)
            yield _markdown(_facts("measured with", measured.facts))


def _chart(histograms: Histograms | None) -> str:
    """Return the histogram over all texts as a block of text; empty if there is none."""
    if histograms is None:
        return ""
    bins = histograms.as_table().columns[1:]
    used = [histograms.panels[0].counts[index] for index in histograms.used_bins()]
    lines = [
        f"{name:>{max(map(len, bins))}}  {'#' * round(_BAR_WIDTH * count / max(used))} {count:,}"
        for name, count in zip(bins, used, strict=True)
    ]
    return "\n".join(("Number of texts by 1 - cosine:", "", "```text", *lines, "```"))


def _usage(manifest: Manifest, repository: str) -> str:
    settings, graph = manifest.contract, manifest.graph
    query, passage = _prompted(settings)
    on_gpu = "cpu" not in manifest.target.devices
    device = ', device="cuda"' if on_gpu else ""
    providers = ', providers=["CUDAExecutionProvider"]' if on_gpu else ""
    normalize = str(settings.normalize).lower()
    prompt = ', prompt_name="query"' if "query" in settings.prompts else ""
    queries, passages = (
        f"encode_{many}" if one in settings.prompts else "encode"
        for one, many in (("query", "queries"), ("passage", "passages"))
    )
    return f"""\
## Use it with koe5-onnx

koe5-onnx adds the prompts, truncates texts, checks every file, and runs the packed graph if it can.

```python
from koe5_onnx import Embedder

with Embedder.open("{repository}"{device}) as embedder:
    queries = embedder.{queries}(["{_QUESTION}"])
    passages = embedder.{passages}(["{_PASSAGE}"])
    print(embedder.similarity(queries, passages))
```

## Use it with sentence-transformers

This requires `sentence-transformers[onnx]`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repository}", backend="onnx", model_kwargs={{"file_name": "{graph}"}})
queries = model.encode(["{_QUESTION}"]{prompt})
```

## Use it with Transformers.js

```js
import {{ pipeline }} from "@huggingface/transformers";

const embed = await pipeline("feature-extraction", "{repository}");
const texts = [{query}, {passage}];
const embeddings = await embed(texts, {{ pooling: "{settings.pooling}", normalize: {normalize} }});
```

## Use it with ONNX Runtime

```python
import numpy as np
import onnxruntime
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

folder = snapshot_download("{repository}")
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_truncation({settings.max_tokens})
tokenizer.enable_padding(pad_id={settings.pad_id})
session = onnxruntime.InferenceSession(f"{{folder}}/{graph}"{providers})

encodings = tokenizer.encode_batch([{query}, {passage}])
inputs = {{
    "input_ids": np.array([one.ids for one in encodings], np.int64),
    "attention_mask": np.array([one.attention_mask for one in encodings], np.int64),
}}
(embeddings,) = session.run(["sentence_embedding"], inputs)
```"""


def _prompted(settings: Contract) -> tuple[str, str]:
    """Return a question and a passage with their prompts, as string literals."""
    texts = (
        settings.prompts.get(name, "") + text for name, text in (("query", _QUESTION), ("passage", _PASSAGE))
    )
    query, passage = (json.dumps(text, ensure_ascii=False) for text in texts)
    return query, passage


def _other_runtimes(manifest: Manifest) -> str:
    settings = manifest.contract
    prompts = (
        "; ".join(
            f"{name}: `{json.dumps(text, ensure_ascii=False)}`" for name, text in settings.prompts.items()
        )
        or "none"
    )
    unicode_form = "normalize texts to NFC" if settings.unicode_form else "do not change the Unicode form"
    length = "has unit length" if settings.normalize else "is not normalized"
    return f"""\
## What must other runtimes do?

- **Prompts**: put the prompt in front of each text ({printable(prompts)}).
- **Unicode**: {unicode_form}.
- **Truncation**: pass at most {settings.max_tokens:,} tokens per text, special tokens included.
- **Pooling**: none. The output `sentence_embedding` is pooled ({settings.pooling}) and {length}. Runtimes
  that pool themselves read `last_hidden_state`, and must use {settings.pooling} pooling.

The list `selftest` in `manifest.json` has texts (prompts included), their token ids and their embeddings
(float32, little-endian, in base64). A runtime works correctly if its embeddings have a cosine of at least
0.999 to these. `Embedder.open(..., selftest=True)` of koe5-onnx does this check.

This card was generated by koe5-onnx {__version__}."""


def _facts(name: str, facts: Sequence[Fact]) -> Table:
    return Table("", (name, "value"), [(fact.name, fact.value) for fact in facts])


def _markdown(*tables: Table) -> str:
    return "\n\n".join("\n".join(_rows(table)) for table in tables)


def _rows(table: Table) -> Iterator[str]:
    for row in (table.columns, ["---"] * len(table.columns), *table.rows):
        yield f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in row)} |"
