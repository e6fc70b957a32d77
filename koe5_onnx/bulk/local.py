"""The engine that is always there: this process, shard after shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from koe5_onnx.bulk.shards import Receipt
from koe5_onnx.bulk.worker import OnDone, Task, Worker


def run_here(task: Task, shards: Sequence[int], on_done: OnDone) -> Iterator[Receipt]:
    """Make shards in this process; yields each one's receipt when it is finished.

    Args:
        task: What to do.
        shards: Which, in order.
        on_done: Told rows and tokens of the shard in work.
    """
    with closing(Worker(task)) as worker:
        for shard in shards:
            yield worker.run(shard, on_done)
