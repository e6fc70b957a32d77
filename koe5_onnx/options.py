"""The options that open an artifact: one object for Python, command line, server, bulk jobs and adapters.

All of them take every field of `EngineOptions` under its name. To add an option, add a field here, the same
name to `EngineFields`, and use it in the engine: the command line takes its flag and its help from here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypedDict, get_args

from koe5_onnx.errors import InputError

Overflow = Literal["truncate", "error"]
GraphChoice = Literal["auto", "packed", "padded"]


class EngineFields(TypedDict, total=False):
    """The fields of `EngineOptions` as keyword arguments, for type checkers; a test compares the two."""

    revision: str | None
    device: str
    threads: int | None
    parallel_batches: int | None
    max_batch_tokens: int | None
    overflow: Overflow
    graph: GraphChoice
    gpu_mem_limit: int | None
    share_weights: bool
    cuda_graphs: bool


@dataclass(frozen=True)
class EngineOptions:
    """How an artifact is opened.

    Raises:
        InputError: A field is out of range, or two contradict each other.
    """

    revision: str | None = None
    """Branch, tag or commit of an artifact on the Hub; None is main."""
    device: str = "cpu"
    """cpu, cuda or cuda:N; never falls back to another device."""
    threads: int | None = None
    """CPU threads per batch; None divides the usable cores (CPU affinity, cgroup quota) by the parallel
    batches."""
    parallel_batches: int | None = 1
    """Batches that run at the same time over one copy of the weights. 1 has the lowest latency, as many as
    cores the highest throughput on many cores; None takes what koe5-onnx tune found, else 1."""
    max_batch_tokens: int | None = None
    """Tokens per batch, padding included; None takes what koe5-onnx tune found, else 512 (CUDA: 32,768)."""
    overflow: Overflow = "truncate"
    """Texts above the token limit are truncated, or are an error."""
    graph: GraphChoice = "auto"
    """The packed graph, which needs no padding, requires fused kernels on a CPU and an fp16 artifact on CUDA.
    auto takes it if it can run here, packed takes it or fails, padded never takes it."""
    gpu_mem_limit: int | None = None
    """Bytes that ONNX Runtime may allocate on a GPU for weights and batches; None is no limit. Batches that
    do not fit run in halves, with a warning."""
    share_weights: bool = False
    """Map the fused kernels' packed weights (KoE5: 302 MB) from files in the user's cache, so that all
    processes with the same artifact share them. No effect on a graph without fused kernels."""
    cuda_graphs: bool = False
    """On CUDA, capture the packed graph for some small shapes, so that a query starts all kernels at once.
    Requires memory for a second copy of the weights, within a gpu_mem_limit of its own. Nothing else in the
    process may use the GPU while the artifact opens."""

    def __post_init__(self) -> None:
        if re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is None:
            raise InputError(f"device is {self.device!r}: expected 'cpu', 'cuda' or 'cuda:N'")
        for name in ("threads", "parallel_batches", "max_batch_tokens", "gpu_mem_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}: expected 1 or more, or None")
        for name, choices in (("overflow", get_args(Overflow)), ("graph", get_args(GraphChoice))):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} is {value!r}: expected one of {', '.join(map(repr, choices))}")
        if self.cuda_graphs and (self.gpu is None or self.graph == "padded"):
            raise InputError(
                f"cuda_graphs is for the packed graph on CUDA, not for device={self.device!r} with "
                f"graph={self.graph!r}: pass device='cuda' and graph='packed'"
            )

    @property
    def gpu(self) -> int | None:
        """Number of the GPU; None for the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2] or 0)

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as keyword arguments."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in values if value != field.default}


@cache
def field_docs() -> dict[str, str]:
    """Return the documentation of each field of `EngineOptions`; empty if its source is not installed."""
    with suppress(OSError):
        (tree,) = ast.parse(inspect.getsource(EngineOptions)).body
        return {
            field.target.id: inspect.cleandoc(str(doc.value.value)).replace("\n", " ")
            for field, doc in itertools.pairwise(getattr(tree, "body", []))
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
        }
    return {}
