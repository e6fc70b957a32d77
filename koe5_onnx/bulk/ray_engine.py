"""The Ray engine: actors of Ray Data, each with one Embedder, embed the shards.

Only shard numbers and receipts pass through Ray. The actors read the input and write the shards themselves,
so input, output and artifact must be on storage that all nodes can access under the same paths. If a node
fails, Ray starts a new actor and reruns the shard.
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
    """Resources that a job uses on a Ray cluster.

    Args:
        actors: Maximum number of actors. The job runs with fewer if the cluster has no resources for all.
        cpus_per_actor: Cores that each actor reserves; also the default of `threads`.
        gpus_per_actor: GPUs that each actor reserves. Above 0 the device must be "cuda".
        address: Address of a running cluster, or "auto". None uses RAY_ADDRESS; if that is not set, it starts
            Ray on this machine. A connection that `ray.init` has already made takes precedence.
    """

    actors: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    address: str | None = None


def run_on_ray(task: Task, shards: Sequence[int], options: RayOptions) -> Iterator[Receipt]:
    """Embed shards on a Ray cluster and yield the receipt of each, in any order.

    Raises:
        MissingDependencyError: Ray is not installed.
        InputError: An option is out of range.
        Koe5Error: An actor raised this error.
        OSError: An actor could not read or write a file.
    """
    ray = _import_ray()
    _check(options, task)
    task = dataclasses.replace(task, engine=_engine_of_actor(task, options))
    with _connected(ray, options):
        yield from _run(ray, task, shards, options)


def _import_ray() -> Any:
    # Importing Ray reads this variable.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "ray", "the Ray engine") from error
    return ray


@contextmanager
def _connected(ray: Any, options: RayOptions) -> Iterator[None]:
    """Connect to a cluster or start Ray on this machine, unless the caller is already connected."""
    if ray.is_initialized():
        yield
        return
    # Ray's default would connect to any cluster that runs on this machine.
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    here = {"include_dashboard": False} if address == "local" else {}
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        if threading.current_thread() is threading.main_thread():
            # Ray replaces the SIGTERM handler by one that exits with the number of the signal.
            signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _check(options: RayOptions, task: Task) -> None:
    if options.actors < 1:
        raise InputError(f"the number of Ray actors is {options.actors}: expected 1 or more")
    if options.cpus_per_actor < 0 or options.gpus_per_actor < 0:
        raise InputError(
            f"a Ray actor has {options.cpus_per_actor:g} CPUs and {options.gpus_per_actor:g} GPUs: "
            "expected 0 or more"
        )
    if (options.gpus_per_actor > 0) != (task.engine.gpu is not None):
        raise InputError(
            f"the device is {task.engine.device!r} and a Ray actor has {options.gpus_per_actor:g} GPUs: "
            "expected 'cuda' with GPUs, or 'cpu' without"
        )


def _engine_of_actor(task: Task, options: RayOptions) -> EngineOptions:
    """Return the engine options of an actor.

    Threads default to the cores that the actor reserves, because it sees all cores of its node. Several
    actors share the packed weights, because some may run on the same machine.
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
        found = pickle.loads(row["result"])  # noqa: S301 - data from our own actor
        if isinstance(found, Exception):
            raise found
        yield found


class _Actor:
    """A worker that Ray calls. It returns expected errors as results instead of failing the actor."""

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
