"""Search passages in PostgreSQL with the extension pgvector, in an existing database.

pip install '.[cpu]' pgvector 'psycopg[binary]' pyarrow

python docs/examples/pgvector_search.py --artifact koe5-int8 --store postgresql:///db --corpus corpus.parquet
python docs/examples/pgvector_search.py --artifact koe5-int8 --store postgresql:///db --query "인가 요건은?"
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import psycopg
from passages import Batch, Hit, arguments, passages, show
from pgvector import Vector
from pgvector.psycopg import register_vector

from koe5_onnx import Embedder


def fill(store: str, dim: int, batches: Iterable[Batch], approximate: bool) -> None:
    """Create the table `passages` and fill it, in one transaction."""
    with psycopg.connect(store) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        connection.execute(
            f"CREATE TABLE passages (doc_id text PRIMARY KEY, contents text, embedding vector({dim}))"
        )
        into = "COPY passages (doc_id, contents, embedding) FROM STDIN WITH (FORMAT BINARY)"
        with connection.cursor().copy(into) as copy:
            copy.set_types(["text", "text", "vector"])
            for batch in batches:
                for doc_id, contents, embedding in zip(*batch, strict=True):
                    copy.write_row((doc_id, contents, Vector(embedding)))
        if approximate:
            connection.execute("CREATE INDEX ON passages USING hnsw (embedding vector_ip_ops)")


def search(store: str, queries: npt.NDArray[np.float32], top: int) -> list[list[Hit]]:
    """Return the best passages of each query. The operator `<#>` is the negative inner product."""
    with psycopg.connect(store) as connection:
        register_vector(connection)
        # Number of candidates of an approximate search. The default of 40 would limit `top`. Without an
        # index, the setting has no effect.
        connection.execute(f"SET hnsw.ef_search = {min(1000, max(100, top))}")
        nearest = (
            "SELECT doc_id, contents, -(embedding <#> %(query)s) FROM passages "
            "ORDER BY embedding <#> %(query)s LIMIT %(top)s"
        )
        found = [connection.execute(nearest, {"query": Vector(query), "top": top}) for query in queries]
        return [[Hit(*row) for row in rows] for rows in found]


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
