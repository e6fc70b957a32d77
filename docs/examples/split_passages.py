"""Split long passages into parts below the token limit, counted by the tokenizer of the artifact.

pip install '.[cpu]' pyarrow

python docs/examples/split_passages.py corpus.parquet parts.parquet --artifact koe5-int8 --max-tokens 128
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from koe5_onnx import Embedder, InputError

PARTS = pa.schema([("doc_id", pa.string()), ("page_id", pa.string()), ("contents", pa.string())])
"""doc_id is unique per part; page_id is the doc_id of the passage that the part comes from."""
_SENTENCE_END = re.compile(r"(?<=[.!?。…])\s+|\n+")
BATCH_ROWS = 1024


def split(embedder: Embedder, text: str, max_tokens: int) -> list[str]:
    """Return consecutive parts of `text` of at most `max_tokens` tokens each, prompt included.

    Parts end at sentences. A sentence that is too long by itself is split at spaces, and a word that is too
    long is left whole. A text that fits is returned unchanged, even if it is empty.
    """
    if embedder.count_tokens([text], "passage")[0] <= max_tokens:
        return [text]
    max_tokens -= int(embedder.count_tokens([""], "passage")[0])
    sentences = [one for one in _SENTENCE_END.split(text) if one.strip()]
    pieces: list[str] = []
    for sentence, tokens in zip(sentences, count(embedder, sentences), strict=True):
        pieces += [sentence] if tokens <= max_tokens else join(embedder, sentence.split(), max_tokens)
    return join(embedder, pieces, max_tokens)


def count(embedder: Embedder, pieces: list[str]) -> npt.NDArray[np.int32]:
    """Count tokens without the prompt and the special tokens, which are added once per part: int32[n]."""
    return embedder.count_tokens(pieces, prompt="") - embedder.count_tokens([""], prompt="")


def join(embedder: Embedder, pieces: list[str], max_tokens: int) -> list[str]:
    """Join adjacent pieces with spaces for as long as a part has at most `max_tokens` tokens."""
    parts: list[list[str]] = []
    free = 0
    for piece, tokens in zip(pieces, count(embedder, pieces).tolist(), strict=True):
        if not parts or tokens > free:
            parts.append([])
            free = max_tokens
        parts[-1].append(piece)
        free -= tokens
    return [" ".join(part) for part in parts]


def main() -> None:
    """Read passages batch by batch and write their parts."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("corpus", type=Path, help="a parquet file with the columns doc_id and contents")
    parser.add_argument("parts", type=Path, help="the parquet file to write")
    parser.add_argument("--artifact", required=True, help="folder or Hub id of an exported artifact")
    parser.add_argument(
        "--max-tokens", type=int, default=128, help="tokens per part, prompt included (default: %(default)s)"
    )
    args = parser.parse_args()
    if not args.corpus.is_file():
        raise InputError(f"{args.corpus} is not a file. Pass a parquet file.")
    with Embedder.open(args.artifact) as embedder, pyarrow.parquet.ParquetWriter(args.parts, PARTS) as file:
        for batch in pyarrow.parquet.ParquetFile(args.corpus).iter_batches(BATCH_ROWS):
            rows = [
                (f"{page}#{number}", page, part)
                for page, text in zip(batch["doc_id"].to_pylist(), batch["contents"].to_pylist(), strict=True)
                for number, part in enumerate(split(embedder, text, args.max_tokens))
            ]
            columns = zip(*rows, strict=True)
            file.write_batch(pa.record_batch([pa.array(one) for one in columns], schema=PARTS))


if __name__ == "__main__":
    main()
