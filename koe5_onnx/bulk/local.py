"""The local engine: embed shards in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from koe5_onnx.bulk.shards import Receipt
from koe5_onnx.bulk.worker import OnDone, Task, Worker


def run_here(task: Task, shards: Sequence[int], on_done: OnDone) -> Iterator[Receipt]:
    """Embed shards in this process and yield the receipt of each.

    Args:
        task: The job and its input and output.
        shards: Indices of the shards, in ascending order.
        on_done: Called with the finished rows and tokens of the current shard.
    """
    with closing(Worker(task)) as worker:
        for shard in shards:
            yield worker.run(shard, on_done)
