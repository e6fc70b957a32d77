"""ONNX Runtime's sessions: options, threads, run().

It takes padded or packed arrays and gives embeddings; it knows nothing of texts.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Artifact
from koe5_onnx.engine import shared_weights
from koe5_onnx.engine.batching import Packed, padded_lengths
from koe5_onnx.engine.cuda import provider as cuda
from koe5_onnx.engine.cuda.graph_capture import CapturedGraphs
from koe5_onnx.engine.graphs import Graph, Layout, choose
from koe5_onnx.engine.machine import usable_cores
from koe5_onnx.engine.providers import (
    CPU,
    CUDA,
    import_onnxruntime,
    require_provider,
    warn_if_unsuited,
)
from koe5_onnx.errors import ArtifactError, OutOfMemoryError, ProviderError
from koe5_onnx.options import EngineOptions

INPUTS: Mapping[Layout, Sequence[str]] = {
    "padded": ("input_ids", "attention_mask"),
    "packed": ("input_ids", "places", "offsets"),
    "packed_cuda": Packed._fields,
}
"""Names of a graph's inputs, in the order in which batching.py gives their arrays."""
_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()
"""Those of this process, for `_after_fork`."""


class Session:
    """One graph loaded on one device; safe to run from several threads, and after a fork.

    ONNX Runtime's threads do not survive a fork, so the first run in a child process loads the graph again.
    The child never frees its copy of the parent's graph (see `_leave_to_parent`); the pages are shared.

    Args:
        artifact: The opened artifact.
        options: How to open it. `threads` None takes all usable cores. Fields about batches and texts are not
            used.
        graph: The graph to run; None lets `options` choose.

    Raises:
        ProviderError: The device or the graph cannot be used; never falls back to another device.
        MissingDependencyError: Neither onnxruntime nor onnxruntime-gpu is installed.
    """

    def __init__(self, artifact: Artifact, options: EngineOptions, graph: Graph | None = None) -> None:
        self.threads = options.threads or usable_cores().count
        self._artifact, self._options = artifact, options
        self._provider = CPU if options.gpu is None else CUDA
        self._gpu = options.gpu or 0
        self.halves = False
        """Whether batches run in halves, since one did not fit into the device's memory (pipeline.py)."""
        self.graph = graph or choose(artifact, options)
        self.pad_id = artifact.manifest.contract.pad_id
        self.counts_from_pad = artifact.manifest.architecture.counts_from_pad
        self._lock = threading.Lock()
        self._closed = False
        self._ort: Any = self._open()
        self._captured: CapturedGraphs | None = None
        if options.cuda_graphs:
            self._captured = self._capture()
        _SESSIONS.add(self)

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run, first the one with priority."""
        return list(self._session().get_providers())

    def padded_lengths(self, lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the length at which texts of these lengths run, int32[n]; only equal ones share a batch.

        The packed graph pads nothing, and texts of any lengths share a batch.
        """
        return lengths if self.graph.is_packed else padded_lengths(lengths)

    def run(self, *arrays: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Embed one batch.

        Args:
            arrays: What batching.py gives for `graph.layout`: `pad` input_ids and attention_mask
                int64[n, width], `pack` input_ids and places int64[tokens] and offsets int32[n + 1],
                `pack_for_cuda` the inputs of the packed graph.

        Returns:
            float32[n, dim], pooled and normalized inside the graph.

        Raises:
            OutOfMemoryError: The batch does not fit into the device's memory.
            ProviderError: The graph needs cuDNN, and it is not there.
        """
        try:
            captured = self._captured
            if captured is not None and (bucket := captured.bucket_of(batch := Packed(*arrays))):
                return captured.run(batch, bucket)
            feeds = dict(zip(self._inputs, arrays, strict=True))
            embeddings: npt.NDArray[np.float32] = self._session().run(None, feeds)[0]
            return embeddings
        except Exception as error:  # its errors have no root of their own
            if cuda.is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"a batch of {arrays[0].size:,} tokens does not fit into the memory of {self._provider}: "
                    f"open with a smaller max_batch_tokens. ONNX Runtime says: {error}"
                ) from error
            if cuda.lacks_cudnn(error):
                raise ProviderError(
                    f"{self.graph.file} needs cuDNN: pip install 'onnxruntime-gpu[cudnn]'. The packed graph "
                    f"of an fp16 artifact needs none. ONNX Runtime says: {error}"
                ) from error
            raise

    def close(self) -> None:
        """Free the graph and its memory."""
        with self._lock:
            captured, self._captured = self._captured, None
            self._ort, self._closed = None, True
        if captured is not None:
            captured.close()

    def _capture(self) -> CapturedGraphs:
        return CapturedGraphs(
            import_onnxruntime(),
            lambda: self._open(self._provider_options() | cuda.CAPTURING),
            lambda batch: self.run(*batch),
            self._artifact.manifest,
            ("cuda", self._gpu),
        )

    @property
    def _shares(self) -> bool:
        return self._options.share_weights and self.graph.library is not None

    @property
    def _inputs(self) -> list[str]:
        return list(INPUTS[self.graph.layout])

    def _source(self) -> str | bytes:
        """What is opened: the graph's file."""
        return str(self.graph.file)

    def _session(self) -> Any:
        ort_session = self._ort
        if ort_session is not None:
            return ort_session
        with self._lock:
            if self._closed:
                raise ProviderError("this session is closed: open the artifact again")
            if self._ort is None:
                self._ort = self._open()
            return self._ort

    def _leave_to_parent(self) -> None:
        """Drop the inherited graph in a forked child, without freeing it.

        Freeing would join the parent's threads, which this process does not have: it would wait for ever.
        """
        # Another thread of the parent may have held the lock at the fork.
        self._lock = threading.Lock()
        for inherited in (self._ort, self._captured):
            if inherited is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        self._ort = self._captured = None

    def _open(self, provider_options: Mapping[str, str] | None = None) -> Any:
        ort = import_onnxruntime()
        require_provider(ort, self._artifact, self._provider)
        if self._provider == CUDA:
            cuda.require_gpu(self._gpu)
            cuda.preload(ort)
        elif self.graph.library is None:
            # Fused kernels that run at all are exact, whatever ONNX Runtime's own operators are there.
            warn_if_unsuited(self._artifact)
        try:
            session = ort.InferenceSession(
                self._source(),
                self._session_options(ort),
                providers=[(self._provider, dict(provider_options or self._provider_options()))],
                # Its default goes on with the CPU, when it opens and even in a later run.
                enable_fallback=0,
            )
        except Exception as error:  # its errors have no root of their own
            raise ProviderError(
                f"ONNX Runtime {ort.__version__} cannot load {self.graph.file} on {self._provider}: {error}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise ProviderError(
                f"asked for {self._provider}, ONNX Runtime {ort.__version__} opened "
                f"{', '.join(session.get_providers())}: {cuda.why_on_the_cpu(ort)}"
            )
        self._require_interface(session)
        if self._shares:
            shared_weights.report()
        return session

    def _require_interface(self, session: Any) -> None:
        graph, dim = self.graph.file, self._artifact.manifest.contract.dim
        names = [node.name for node in session.get_inputs()]
        if names != self._inputs:
            raise ArtifactError(f"{graph} takes {names}: expected {self._inputs}; export it again")
        width = session.get_outputs()[0].shape[-1]
        if width != dim:
            raise ArtifactError(
                f"{graph} gives embeddings of {width}, its manifest says {dim}: export it again"
            )

    def _provider_options(self) -> dict[str, str]:
        return {} if self._provider == CPU else cuda.provider_options(self._gpu, self._options.gpu_mem_limit)

    def _session_options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # The exported graph is final: higher levels would fuse fast nodes into slower ones.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Planned memory is kept for every shape seen; shapes vary with each batch.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        if self.graph.library is not None:
            options.add_session_config_entry("koe5.threads", str(self.threads))
            if self._shares and (folder := shared_weights.prepare(self._artifact, self.graph)):
                options.add_session_config_entry("koe5.packed_weights", str(folder))
            options.register_custom_ops_library(str(self.graph.library))
        return options


def _after_fork() -> None:
    for session in _SESSIONS:
        session._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
