"""Search passages with FAISS: an index in memory, saved as a file next to the passages in parquet.

pip install '.[cpu]' faiss-cpu pyarrow

python docs/examples/faiss_search.py --artifact koe5-int8 --store pages --corpus corpus.parquet
python docs/examples/faiss_search.py --artifact koe5-int8 --store pages --query "예비인가가 필요한가요?"
"""

from __future__ import annotations

from collections.abc import Iterable

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from passages import Batch, Hit, arguments, filled_folder, new_folder, passages, show

from koe5_onnx import Embedder

TEXTS = pa.schema([("doc_id", pa.string()), ("contents", pa.string())])
NEIGHBORS = 32
"""Links per vector in the approximate index. More links find more of the nearest vectors, but need more
memory."""


def fill(store: str, dim: int, batches: Iterable[Batch], approximate: bool) -> None:
    """Write index and passages. The number of a vector in the index is the row of its passage."""
    if approximate:
        index = faiss.IndexHNSWFlat(dim, NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 100
    else:
        index = faiss.IndexFlatIP(dim)
    with new_folder(store) as folder:
        with pyarrow.parquet.ParquetWriter(folder / "passages.parquet", TEXTS) as texts:
            for batch in batches:
                index.add(batch.embeddings)
                texts.write_batch(pa.record_batch([batch.doc_ids, batch.contents], schema=TEXTS))
        faiss.write_index(index, str(folder / "index.faiss"))


def search(store: str, queries: npt.NDArray[np.float32], top: int) -> list[list[Hit]]:
    """Return the best passages of each query."""
    folder = filled_folder(store)
    index = faiss.read_index(str(folder / "index.faiss"))
    texts = pyarrow.dataset.dataset(folder / "passages.parquet")
    scores, rows = index.search(queries, min(top, index.ntotal))
    return [
        [
            Hit(text["doc_id"], text["contents"], score)
            for text, score in zip(texts.take(row).to_pylist(), row_scores, strict=True)
        ]
        for row, row_scores in zip(rows, scores.tolist(), strict=True)
    ]


def main() -> None:
    """Fill the store if a corpus is given, and answer the queries."""
    parser = arguments(__doc__)
    parser.add_argument("--approximate", action="store_true", help="with --corpus: build an HNSW index")
    args = parser.parse_args()
    with Embedder.open(args.artifact) as embedder:
        if args.corpus:
            fill(args.store, embedder.dim, passages(embedder, args.corpus), args.approximate)
        if args.query:
            show(args.query, search(args.store, embedder.encode_queries(args.query), args.top))


if __name__ == "__main__":
    main()
