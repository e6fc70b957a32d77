"""Engine options shared by the Python API, command line, server, bulk jobs and integrations.

To add an option, add a field to `EngineOptions` and to `EngineFields` and use it in the engine. The command
line creates its flags and help texts from these fields.
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

Overflow = Literal["truncate", "error", "average"]
GraphChoice = Literal["auto", "packed", "padded"]


class EngineFields(TypedDict, total=False):
    """Fields of `EngineOptions` as keyword arguments, for type checkers. A test keeps the two in sync."""

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
    selftest: bool


@dataclass(frozen=True)
class EngineOptions:
    """Options for opening an artifact.

    Raises:
        InputError: A field is out of range, or two fields contradict each other.
    """

    revision: str | None = None
    """Branch, tag or commit of an artifact on the Hub; None selects main."""
    device: str = "cpu"
    """Device: cpu, cuda or cuda:N. There is no fallback to another device."""
    threads: int | None = None
    """CPU threads per batch; None uses the result of koe5-onnx tune. If there is none, the value is the
    number of cores that the CPU affinity and the cgroup quota allow (or KOE5_ONNX_THREADS), divided by the
    number of parallel batches."""
    parallel_batches: int | None = 1
    """Batches that run at the same time with one copy of the weights; None uses the result of koe5-onnx tune,
    or 1 if there is none. 1 has the lowest latency. On machines with many cores, more batches with fewer
    threads each may have a higher throughput."""
    max_batch_tokens: int | None = None
    """Tokens per batch, padding included; None uses the result of koe5-onnx tune. If there is none, the value
    is 65,536 on CUDA, 2,048 with fused kernels on AMX, else 512. If it is None, an AsyncEmbedder and the
    server use at most 32,768 on CUDA and at most 512 on CPUs."""
    overflow: Overflow = "truncate"
    """Handling of texts above the token limit: truncate them, raise an error, or average the embeddings of
    consecutive parts of a text, weighted by the number of tokens. The model was not trained for such
    averages."""
    graph: GraphChoice = "auto"
    """Graph to run: auto selects the packed graph, which needs no padding, if it can run, and otherwise the
    padded graph. If koe5-onnx tune has found that the padded graph is faster here, auto selects the padded
    graph. packed fails if the packed graph cannot run. The packed graph requires an int8 artifact and the
    fused kernels on a CPU, and an fp16 artifact on CUDA."""
    gpu_mem_limit: int | None = None
    """Bytes that ONNX Runtime may allocate on a GPU for weights and batches; None sets no limit. Batches that
    do not fit are split in half, with a warning."""
    share_weights: bool = False
    """Map the weights that the fused kernels have reordered (KoE5: 302 MB) from files in the user's cache, so
    that all processes that open the artifact with this option share one copy. No effect without fused
    kernels."""
    cuda_graphs: bool = False
    """Capture CUDA graphs of the packed graph for small batches, so that all kernels of a query are launched
    at once, which halves its latency on an H100. Requires memory for a second copy of the weights;
    gpu_mem_limit applies to each copy. Nothing else in the process may use the GPU while the artifact is
    being opened."""
    selftest: bool = False
    """Embed the texts of the artifact's self-test after opening it, and raise an error if a cosine to the
    embedding that the export stored is below 0.999."""

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
                f"cuda_graphs requires the packed graph on CUDA, but device is {self.device!r} and graph is "
                f"{self.graph!r}. Pass device='cuda' and graph='packed'"
            )

    @property
    def gpu(self) -> int | None:
        """Index of the GPU; None for the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2] or 0)

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as keyword arguments."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in values if value != field.default}


@cache
def field_docs() -> dict[str, str]:
    """Return the docstrings of the fields of `EngineOptions` by name; empty without the source file."""
    with suppress(OSError):
        (tree,) = ast.parse(inspect.getsource(EngineOptions)).body
        return {
            field.target.id: inspect.cleandoc(str(doc.value.value)).replace("\n", " ")
            for field, doc in itertools.pairwise(getattr(tree, "body", []))
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
        }
    return {}
