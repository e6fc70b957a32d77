"""The engine for clusters: actors of Ray Data, each with one Embedder, take shards until none is left.

Only numbers of shards and receipts go through Ray: actors read the input and write the shards themselves, so
input, output and artifact lie on storage that all nodes see under the same paths. Ray starts an actor again
where a node is lost, and gives its shard to another.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from koe5_onnx import EngineOptions, InputError, Koe5Error, MissingDependencyError
from koe5_onnx.bulk.shards import Receipt
from koe5_onnx.bulk.worker import Task, Worker


@dataclass(frozen=True)
class RayOptions:
    """What a job takes of a cluster.

    Args:
        actors: How many work at the same time; the job goes on with those that the cluster has room for.
        cpus_per_actor: Cores that each reserves, and the threads of its batches.
        gpus_per_actor: GPUs that each reserves; above 0 the device must be "cuda".
        address: Of a running cluster, or "auto"; None takes RAY_ADDRESS, else starts one on this machine. A
            cluster that `ray.init` has connected to is used as it is.
    """

    actors: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    address: str | None = None


def run_on_ray(task: Task, shards: Sequence[int], options: RayOptions) -> Iterator[Receipt]:
    """Make shards on a Ray cluster; yields each one's receipt when it is finished, in any order.

    Raises:
        MissingDependencyError: Ray is not installed.
        InputError: An option is out of range.
        Koe5Error: What a worker raised.
    """
    ray = _import_ray()
    _check(options, task)
    task = dataclasses.replace(task, engine=_engine_of_actor(task, options))
    with _connected(ray, options):
        yield from _run(ray, task, shards, options)


def _import_ray() -> Any:
    # Before the import, which reads it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "ray", "the engine ray") from error
    return ray


@contextmanager
def _connected(ray: Any, options: RayOptions) -> Iterator[None]:
    """Join the cluster that is named, or start one here; leave alone what the caller has connected to."""
    if ray.is_initialized():
        yield
        return
    # Not Ray's own default, which joins whatever cluster it finds running on this machine.
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    here = {"include_dashboard": False} if address == "local" else {}
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        if threading.current_thread() is threading.main_thread():
            # Ray's answer to SIGTERM is an exit with the signal's number.
            signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _check(options: RayOptions, task: Task) -> None:
    if options.actors < 1:
        raise InputError(f"the number of Ray actors is {options.actors}: expected 1 or more")
    if options.cpus_per_actor < 0 or options.gpus_per_actor < 0:
        raise InputError("a Ray actor cannot have fewer than 0 CPUs or GPUs")
    if (options.gpus_per_actor > 0) != (task.engine.gpu is not None):
        raise InputError(
            f"the device is {task.engine.device!r} and a Ray actor has {options.gpus_per_actor:g} GPUs: "
            "expected cuda with GPUs, or cpu without"
        )


def _engine_of_actor(task: Task, options: RayOptions) -> EngineOptions:
    """Threads for what the actor reserves: it sees all cores of its node and shares them with others.

    Several actors share the packed weights as well: some will be on one machine.
    """
    threads = task.engine.threads or max(1, int(options.cpus_per_actor))
    shares = task.engine.share_weights or options.actors > 1
    return dataclasses.replace(task.engine, threads=threads, share_weights=shares)


def _run(ray: Any, task: Task, shards: Sequence[int], options: RayOptions) -> Iterator[Receipt]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    done = dataset.map_batches(
        _Actor,
        fn_constructor_args=(task,),
        batch_size=1,
        num_cpus=options.cpus_per_actor,
        num_gpus=options.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(size=min(options.actors, len(shards))),
    )
    for row in done.iter_rows():
        found = pickle.loads(row["result"])  # noqa: S301 - our own actor made it
        if isinstance(found, Exception):
            raise found
        yield found


class _Actor:
    """A worker that Ray calls; what went wrong on purpose comes back as a result, not as a lost actor."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._attempt(int(shard))) for shard in batch["shard"]]}

    def _attempt(self, shard: int) -> Receipt | Exception:
        try:
            if self._worker is None:
                self._worker = Worker(self._task)
            return self._worker.run(shard)
        except (Koe5Error, OSError) as error:
            return error
