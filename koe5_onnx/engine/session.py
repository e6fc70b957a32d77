"""ONNX Runtime sessions: options, threads and execution. Input arrays come from batching.py."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Artifact
from koe5_onnx.engine import shared_weights
from koe5_onnx.engine.batching import PackedCudaInputs, padded_lengths
from koe5_onnx.engine.cuda import provider as cuda
from koe5_onnx.engine.cuda.graph_capture import CapturedGraphs
from koe5_onnx.engine.graphs import HIDDEN, INPUTS, OUTPUT, Graph, choose
from koe5_onnx.engine.machine import cpu_features, is_x86_without_dot_products, usable_cores
from koe5_onnx.engine.providers import (
    CPU,
    CUDA,
    import_onnxruntime,
    require_provider,
    warn_if_unsuited,
)
from koe5_onnx.errors import ArtifactError, OutOfMemoryError, ProviderError
from koe5_onnx.options import EngineOptions

_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A graph loaded on one device. Thread-safe, and on the CPU usable after a fork.

    ONNX Runtime's threads do not survive a fork, so the first run in a child process reloads the graph. The
    child never frees the graph that it inherited, because this would block (see `_leave_to_parent`). The
    memory pages of that graph are shared with the parent.

    Args:
        artifact: Opened artifact.
        options: Engine options. `revision`, `parallel_batches`, `max_batch_tokens`, `overflow` and
            `selftest` are ignored. If `threads` is None, all usable cores are used.
        graph: Graph to run; None selects it according to `options`.

    Raises:
        ProviderError: The device or the graph cannot be used. There is no fallback to another device.
        ArtifactError: The graph does not have the expected inputs and output.
        MissingDependencyError: Neither onnxruntime nor onnxruntime-gpu is installed.
    """

    def __init__(self, artifact: Artifact, options: EngineOptions, graph: Graph | None = None) -> None:
        self.threads = options.threads or usable_cores().count
        self._artifact, self._options = artifact, options
        self._provider = CPU if options.gpu is None else CUDA
        self._gpu = options.gpu or 0
        self.halves = False
        """True after a batch did not fit into device memory. Batches are then split in half (pipeline.py)."""
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
        """Active execution providers, highest priority first."""
        return list(self._session().get_providers())

    def slots_per_row(self, lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Convert tokens per text, int32[n], to tokens with padding, int32[n].

        With the padded graph, only texts for which the result is equal can share a batch.
        """
        return lengths if self.graph.is_packed else padded_lengths(lengths)

    def run(self, *arrays: npt.NDArray[Any], output: str = OUTPUT) -> npt.NDArray[np.float32]:
        """Embed one batch.

        Args:
            arrays: Inputs of the graph, from the function of batching.py for `graph.layout`: `pad` for
                "padded" (input_ids and attention_mask, int64[n, padded_length]), `pack_cpu` for "packed_cpu"
                (input_ids and position_ids, int64[tokens], and offsets, int32[n + 1]), `pack_cuda` for
                "packed_cuda".
            output: Output of the graph to return.

        Returns:
            float32[n, dim], pooled by the graph, and normalized if the contract normalizes. For another
            output, its shape.

        Raises:
            OutOfMemoryError: The batch does not fit into device memory.
            ProviderError: The session is closed, or the graph requires cuDNN, which is not installed.
        """
        try:
            captured = self._captured
            if captured is not None and (bucket := captured.bucket_of(batch := PackedCudaInputs(*arrays))):
                return captured.run(batch, bucket)
            feeds = dict(zip(self._inputs, arrays, strict=True))
            result: npt.NDArray[np.float32] = self._session().run([output], feeds)[0]
            return result
        except Exception as error:  # ONNX Runtime's errors have no common base class
            if cuda.is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"a batch of {arrays[0].size:,} tokens does not fit into the memory of {self._provider}. "
                    f"Open the artifact with a smaller max_batch_tokens. ONNX Runtime reports: {error}"
                ) from error
            if cuda.lacks_cudnn(error):
                raise ProviderError(
                    f"{self.graph.file} requires cuDNN. Run pip install 'onnxruntime-gpu[cudnn]', or use the "
                    "packed graph of an fp16 artifact, which does not require it. "
                    f"ONNX Runtime reports: {error}"
                ) from error
            raise

    def padded(self) -> Session:
        """Open the padded graph of the same artifact, with the same options."""
        return Session(self._artifact, replace(self._options, graph="padded", cuda_graphs=False))

    def token_embeddings(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Run the padded graph on one batch without pooling: float32[n, padded_length, dim].

        Raises:
            ArtifactError: The graph returns only pooled embeddings, like some imported ones.
            OutOfMemoryError: See `run`.
            ProviderError: See `run`.
        """
        names = [node.name for node in self._session().get_outputs()]
        if HIDDEN not in names:
            raise ArtifactError(
                f"{self.graph.file} has the outputs {names}: expected {HIDDEN}. Export the artifact with "
                "koe5-onnx export"
            )
        return self.run(input_ids, attention_mask, output=HIDDEN)

    def close(self) -> None:
        """Release the graph and its memory."""
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
        """Return the graph for `InferenceSession`: a path here, the bytes of a model in SimulatedSession."""
        return str(self.graph.file)

    def _session(self) -> Any:
        ort_session = self._ort
        if ort_session is not None:
            return ort_session
        with self._lock:
            if self._closed:
                raise ProviderError("this session is closed. Open the artifact again")
            if self._ort is None:
                self._ort = self._open()
            return self._ort

    def _leave_to_parent(self) -> None:
        """Drop the inherited graph in a forked child without freeing it.

        Freeing it would join threads that exist only in the parent and block forever.
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
            # Only the padded graph needs a check: the fused kernels are fast and exact on each supported CPU.
            warn_if_unsuited(self._artifact)
        try:
            session = ort.InferenceSession(
                self._source(),
                self._session_options(ort),
                providers=[(self._provider, dict(provider_options or self._provider_options()))],
                # By default, ONNX Runtime falls back to the CPU after an error, even in a later run.
                enable_fallback=0,
            )
        except Exception as error:  # ONNX Runtime's errors have no common base class
            self._require_one_folder(error)
            raise ProviderError(
                f"ONNX Runtime {ort.__version__} cannot load {self.graph.file} on {self._provider}: {error}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise ProviderError(
                f"{self._provider} was requested, but ONNX Runtime {ort.__version__} opened "
                f"{', '.join(session.get_providers())}: {cuda.why_on_the_cpu(ort)}"
            )
        self._require_interface(session)
        if self._shares:
            shared_weights.report()
        return session

    def _require_one_folder(self, error: Exception) -> None:
        """Explain the error if the graph and its weights are links to files in different folders."""
        graph, weights = self.graph.file, self._artifact.path / self._artifact.manifest.weights
        folders = graph.resolve().parent, weights.resolve().parent
        if folders[0] != folders[1]:
            raise ProviderError(
                f"{graph.name} is in {folders[0]}, but {weights.name} is in {folders[1]}. ONNX Runtime "
                "requires both in one folder. Replace links by files, for example with "
                f"cp --recursive --dereference {self._artifact.path} COPY"
            ) from error

    def _require_interface(self, session: Any) -> None:
        graph, dim = self.graph.file, self._artifact.manifest.contract.dim
        names = [node.name for node in session.get_inputs()]
        if names != self._inputs:
            raise ArtifactError(f"{graph} has the inputs {names}: expected {self._inputs}. Export it again")
        dims = {output.name: output.shape[-1] for output in session.get_outputs()}
        if dims.get(OUTPUT) != dim:
            raise ArtifactError(
                f"{graph} has outputs of dimensions {dims}: expected {OUTPUT} with {dim}. Export it again"
            )

    def _provider_options(self) -> dict[str, str]:
        return {} if self._provider == CPU else cuda.provider_options(self._gpu, self._options.gpu_mem_limit)

    def _session_options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Graphs built by koe5_export are already optimized. Higher levels fuse fast nodes into slower ones.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        int8 = self._artifact.manifest.precision == "int8" and not self.graph.is_packed
        if int8 and is_x86_without_dot_products(cpu_features()):
            # By default, ONNX Runtime then adds two products in 16 bits on x86, and the sum may saturate.
            # It ignores the entry at lower optimization levels.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.x64quantprecision", "1")
        # ONNX Runtime would keep a memory pattern for every input shape, and shapes vary between batches.
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
