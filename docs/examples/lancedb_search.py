"""Search passages with LanceDB: a table on disk or in an object store, without a server.

pip install '.[cpu]' lancedb pyarrow

python docs/examples/lancedb_search.py --artifact koe5-int8 --store pages --corpus corpus.parquet
python docs/examples/lancedb_search.py --artifact koe5-int8 --store pages --query "예비인가가 필요한가요?"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from passages import Batch, Hit, arguments, filled_folder, new_folder, passages, show

from koe5_onnx import Embedder

TABLE = "passages"


def fill(store: str, dim: int, batches: Iterable[Batch], approximate: bool) -> None:
    """Write the passages with their vectors. Without an index LanceDB compares every vector."""
    vector = pa.list_(pa.float32(), dim)
    schema = pa.schema([("doc_id", pa.string()), ("contents", pa.string()), ("embedding", vector)])
    with new_folder(store) as folder:
        table = lancedb.connect(folder).create_table(TABLE, _records(batches, schema), schema=schema)
        if approximate:
            table.create_index("dot", vector_column_name="embedding", index_type="IVF_HNSW_SQ")


def _records(batches: Iterable[Batch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        vectors = pa.FixedSizeListArray.from_arrays(
            batch.embeddings.ravel(), type=schema.field("embedding").type
        )
        yield pa.record_batch([batch.doc_ids, batch.contents, vectors], schema=schema)


def search(store: str, queries: npt.NDArray[np.float32], top: int) -> list[list[Hit]]:
    """Return the best passages of each query. LanceDB's distance "dot" is 1 - inner product."""
    table = lancedb.connect(filled_folder(store)).open_table(TABLE)
    found = []
    for query in queries:
        nearest = table.search(query, vector_column_name="embedding").distance_type("dot").limit(top)
        # With an index: 100 candidates, of which 4 x `top` are compared by their full vectors.
        rows = nearest.ef(100).refine_factor(4).select(["doc_id", "contents", "_distance"]).to_list()
        found.append([Hit(row["doc_id"], row["contents"], 1 - row["_distance"]) for row in rows])
    return found


def main() -> None:
    """Fill the store if a corpus is given, and answer the queries."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="with --corpus: build an index, for 100,000 passages or more",
    )
    args = parser.parse_args()
    with Embedder.open(args.artifact) as embedder:
        if args.corpus:
            fill(args.store, embedder.dim, passages(embedder, args.corpus), args.approximate)
        if args.query:
            show(args.query, search(args.store, embedder.encode_queries(args.query), args.top))


if __name__ == "__main__":
    main()
