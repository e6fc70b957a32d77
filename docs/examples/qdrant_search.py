"""Search passages with Qdrant's local mode in a folder. The same calls work with the URL of a server.

pip install '.[cpu]' qdrant-client pyarrow

python docs/examples/qdrant_search.py --artifact koe5-int8 --store pages --corpus corpus.parquet
python docs/examples/qdrant_search.py --artifact koe5-int8 --store pages --query "예비인가가 필요한가요?"
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import count

import numpy as np
import numpy.typing as npt
from passages import Batch, Hit, arguments, filled_folder, new_folder, passages, show
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, QueryRequest, VectorParams

from koe5_onnx import Embedder

COLLECTION = "passages"


def fill(store: str, dim: int, batches: Iterable[Batch]) -> None:
    """Write the passages with their vectors. Ids must be numbers or UUIDs, so doc_id is in the payload."""
    numbers = count()
    with new_folder(store) as folder, closing(QdrantClient(path=str(folder))) as client:
        client.create_collection(COLLECTION, VectorParams(size=dim, distance=Distance.DOT))
        for batch in batches:
            texts = zip(batch.doc_ids, batch.contents, strict=True)
            payload = [{"doc_id": doc_id, "contents": contents} for doc_id, contents in texts]
            ids = [next(numbers) for _ in payload]
            client.upload_collection(COLLECTION, batch.embeddings, payload, ids, wait=True)


def search(store: str, queries: npt.NDArray[np.float32], top: int) -> list[list[Hit]]:
    """Return the best passages of each query."""
    requests = [QueryRequest(query=query.tolist(), limit=top, with_payload=True) for query in queries]
    with closing(QdrantClient(path=str(filled_folder(store)))) as client:
        found = client.query_batch_points(COLLECTION, requests)
    return [
        [Hit(point.payload["doc_id"], point.payload["contents"], point.score) for point in one.points]
        for one in found
    ]


def main() -> None:
    """Fill the store if a corpus is given, and answer the queries."""
    args = arguments(__doc__).parse_args()
    with Embedder.open(args.artifact) as embedder:
        if args.corpus:
            fill(args.store, embedder.dim, passages(embedder, args.corpus))
        if args.query:
            show(args.query, search(args.store, embedder.encode_queries(args.query), args.top))


if __name__ == "__main__":
    main()
