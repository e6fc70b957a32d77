"""koe5-onnx doctor: check the installation, the machine, and whether an artifact works on this machine.

The command repairs nothing. Each check is a `Finding`, and the exit code is 1 if any finding has a problem.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx import (
    Artifact,
    Certificate,
    Contract,
    Embedder,
    EngineOptions,
    Koe5Error,
    Manifest,
    ProviderError,
    Target,
    UnsuitedCpuWarning,
    __version__,
)
from koe5_onnx.artifact import PACKED_CPU_GRAPH
from koe5_onnx.cli import manifest_report
from koe5_onnx.cli.certificate_report import agreement_in_words, batch_in_words
from koe5_onnx.cli.engine_arguments import add_engine_arguments, engine_options
from koe5_onnx.cli.report import counted, printable
from koe5_onnx.engine.cuda.provider import attention_kernel, find_driver, preload, why_on_the_cpu
from koe5_onnx.engine.graphs import FUSED_OPERATORS, Graph, installed_kernels, kernels_level
from koe5_onnx.engine.machine import (
    DOT_PRODUCTS,
    THREADS_VARIABLE,
    cpu_features,
    cpu_name,
    usable_cores,
)
from koe5_onnx.engine.providers import import_onnxruntime, unsuited
from koe5_onnx.engine.shared_weights import kept_bytes, weight_folders
from koe5_onnx.engine.tuning import choose_tuned

IDENTITY = base64.b64decode(
    "CAgSADo+ChAKAXgSAXkiCElkZW50aXR5EghpZGVudGl0eVoPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBE="
)
"""A minimal ONNX graph, y = Identity(x), float32[1], opset 17, made with onnx.helper."""

_USED_PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")
_UNNAMED = "this system does not list the CPU's instructions"
_TEXT = "서울은 대한민국의 수도이다."


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    value: str
    problem: str | None = None
    """The problem and what to do about it; None if there is no problem."""


_KERNEL_PROBLEMS = {
    "KOE5_ONNX_KERNELS_LEVEL is '": "correct the variable",
    "koe5-onnx-kernels has ": "the padded graph runs instead of the packed graph",
    "the library ": "reinstall koe5-onnx-kernels",
}
"""Advice by the beginning of the reason why the kernels cannot run. Other reasons are no problems."""
_MANY_CORES = 16
"""Minimum number of cores for which doctor mentions KOE5_ONNX_THREADS."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "doctor",
        help="check the installation, the machine and an artifact",
        description="Check the installation, the machine and (with --artifact) whether an artifact works.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--artifact",
        metavar="DIR",
        help="check the hashes of this artifact, show its certificate and embed one text",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_engine_arguments(parser.add_argument_group("engine, for the artifact"))


def run(args: argparse.Namespace) -> int:
    """Print the findings and return 1 if any has a problem, else 0."""
    findings = examine(args.artifact, engine_options(args))
    print(_as_json(findings) if args.json else _as_table(findings))
    return int(any(finding.problem for finding in findings))


def examine(artifact: str | None, options: EngineOptions) -> list[Finding]:
    """Run all checks of the installation and the machine, and those of `artifact` unless it is None."""
    findings = [*_versions(), *_machine(), _gpus(), *_providers()]
    if artifact is not None:
        findings.extend(_artifact(artifact, options))
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("koe5-onnx", __version__)
    yield Finding("python", platform.python_version())
    for distribution in ("numpy", "tokenizers", "huggingface-hub"):
        yield Finding(distribution, importlib.metadata.version(distribution))
    yield _onnxruntime_wheel()


def _onnxruntime_wheel() -> Finding:
    wheels = sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", ())))
    value = ", ".join(f"{wheel} {importlib.metadata.version(wheel)}" for wheel in wheels) or "none"
    problem = None
    if not wheels:
        problem = "not installed. Run pip install '.[cpu]' or '.[gpu]' (not both) in a clone of koe5-onnx"
    elif len(wheels) > 1:
        problem = (
            f"these packages overwrite each other's files. Run pip uninstall {' '.join(wheels)}, then "
            "install only one of them"
        )
    return Finding("ONNX Runtime", value, problem)


def _machine() -> Iterator[Finding]:
    features = cpu_features()
    cores = usable_cores()
    yield Finding("CPU", cpu_name())
    yield Finding("instructions", " ".join(features) or "unknown")
    yield Finding("int8 here", _int8_here(features))
    kernels = installed_kernels()
    value = kernels if isinstance(kernels, str) else f"ready, on {kernels_level()}"
    advice = [text for start, text in _KERNEL_PROBLEMS.items() if value.startswith(start)]
    yield Finding("fused kernels", value, advice[0] if advice else None)
    yield Finding("shared weights", _shared_weights())
    hint = ""
    if cores.count >= _MANY_CORES and cores.reason.endswith("no cgroup quota"):
        hint = f"; in a container with a CPU request but no limit, set {THREADS_VARIABLE} to the request"
    yield Finding("threads", f"{cores.count} ({cores.reason}){hint}")


def _int8_here(features: Sequence[str]) -> str:
    if not features:
        return f"unknown: {_UNNAMED}"
    if "amx_int8" in features:
        return "fastest: matrix instructions (AMX), exact sums"
    if found := [name for name in DOT_PRODUCTS if name in features]:
        return f"fast: dot product instructions ({found[0]}), exact sums"
    if "avx2" in features:
        return "fast with the fused kernels: AVX2, exact sums"
    return "slow: no dot product instructions and no AVX2. Export with --precision int8-block"


def _shared_weights() -> str:
    try:
        return f"{kept_bytes() / 1e6:,.0f} MB in {weight_folders()}"
    except RuntimeError as error:
        return f"none: {error}"


def _gpus() -> Finding:
    driver = find_driver()
    if isinstance(driver, str):
        return Finding("GPUs", f"none: {driver}")
    shown = "; ".join(
        f"cuda:{number} {gpu.name}, {gpu.memory_bytes / 1e9:.0f} GB, "
        f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        for number, gpu in enumerate(driver.gpus)
    )
    return Finding("GPUs", f"{shown}; the driver runs CUDA up to {driver.cuda}")


def _providers() -> Iterator[Finding]:
    try:
        ort = import_onnxruntime()
    except Koe5Error as error:
        yield Finding("providers", "none", f"{error} (cause: {error.__cause__})")
        return
    telemetry = (
        "off" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "default of the ONNX Runtime build"
    )
    yield Finding("telemetry", telemetry)
    for provider in ort.get_available_providers():
        yield _provider(ort, provider)


def _provider(ort: Any, provider: str) -> Finding:
    """Check that a provider loads, because ONNX Runtime also lists those whose libraries are missing.

    Unused providers are not loaded, because ONNX Runtime would print errors.
    """
    if provider not in _USED_PROVIDERS:
        return Finding(provider, "not used by koe5-onnx")
    try:
        _load(ort, provider)
    except ProviderError as error:
        return Finding(provider, "does not load", f"{error}. See ONNX Runtime's messages on stderr")
    return Finding(provider, "loads")


def _load(ort: Any, provider: str) -> None:
    on_gpu = provider == "CUDAExecutionProvider"
    if on_gpu:
        if isinstance(driver := find_driver(), str):
            raise ProviderError(driver)
        preload(ort)
    try:
        session = ort.InferenceSession(IDENTITY, providers=[provider], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ProviderError(str(error)) from error
    if session.get_providers()[0] != provider:
        why = why_on_the_cpu(ort) if on_gpu else "a library is missing"
        raise ProviderError(f"ONNX Runtime opened {', '.join(session.get_providers())} instead: {why}")


def _artifact(path: str, options: EngineOptions) -> Iterator[Finding]:
    try:
        opened = Artifact.open(path, revision=options.revision, check=False)
        opened.check_files(hashes=True, remember=False)
        manifest = opened.manifest
        if options.gpu is None and "cpu" not in manifest.target.devices:
            options = replace(options, device="cuda")  # the artifact is made for CUDA only
        graph = choose_tuned(opened, options)
        embedding = _embed(path, options)
    except (Koe5Error, OSError) as error:
        yield Finding("artifact", path, str(error))
        return
    yield Finding("artifact", f"{path}: all file hashes match")
    yield Finding("graph", graph.reason)
    yield from _attention(graph, options.gpu or 0)
    without = PACKED_CPU_GRAPH not in manifest.files or manifest.fused_operators != FUSED_OPERATORS
    if manifest.precision == "int8" and without:
        faster = "export the artifact again with the fused kernels installed, which adds a packed graph"
        yield Finding("to speed it up", faster)
    yield from _manifest(manifest)
    yield _one_text(embedding, manifest.contract)


def _attention(graph: Graph, gpu: int) -> Iterator[Finding]:
    driver = find_driver()
    if graph.layout != "packed_cuda" or isinstance(driver, str):
        return
    yield Finding("attention", attention_kernel(driver.gpus[gpu]))


def _embed(path: str, options: EngineOptions) -> npt.NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsuitedCpuWarning)  # reported by `_this_cpu`
        with Embedder.open(path, options=options) as embedder:
            return embedder.encode([_TEXT])


def _manifest(manifest: Manifest) -> Iterator[Finding]:
    yield Finding("source", manifest_report.source(manifest.source))
    yield Finding("precision", manifest.precision)
    yield _this_cpu(manifest.target)
    yield Finding("contract", ", ".join(fact.value for fact in manifest_report.contract(manifest.contract)))
    if manifest.certificate is None:
        yield Finding("certificate", "none", manifest_report.UNVERIFIED)
    else:
        yield from _certificate(manifest.certificate)


def _certificate(certificate: Certificate) -> Iterator[Finding]:
    yield Finding("cosine to PyTorch", agreement_in_words(certificate.overall))
    for bucket, agreement in certificate.by_length.items():
        yield Finding(f"  {bucket} tokens", agreement_in_words(agreement))
    yield Finding("alone or in a batch", batch_in_words(certificate))


def _this_cpu(target: Target) -> Finding:
    name, features = "this CPU", cpu_features()
    if "cpu" not in target.devices:
        return Finding(name, f"not used: made for {' and '.join(target.devices)}")
    if reason := unsuited(target, features):
        return Finding(name, "not suitable", reason)
    if not target.instructions:
        return Finding(name, "suitable: the artifact runs well on any CPU")
    if not features:
        return Finding(name, f"unknown: {_UNNAMED}")
    return Finding(name, f"suitable: has {', '.join(one for one in target.instructions if one in features)}")


def _one_text(embedding: npt.NDArray[np.float32], contract: Contract) -> Finding:
    length = float(np.linalg.norm(embedding))
    right_shape = embedding.shape == (1, contract.dim)
    right_length = abs(length - 1) < 1e-3 if contract.normalize else np.isfinite(length)
    value = f"{embedding.dtype}{list(embedding.shape)} of length {length:.4f}"
    problem = (
        None
        if right_shape and right_length
        else "shape or length does not match the contract. Export the artifact again"
    )
    return Finding("one text", value, problem)


def _as_table(findings: Sequence[Finding]) -> str:
    width = max(len(printable(finding.name)) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{printable(finding.name):{width}}  {printable(finding.value)}")
        if finding.problem:
            lines.append(f"{'':{width}}  PROBLEM: {finding.problem}")
    problems = sum(finding.problem is not None for finding in findings)
    lines.append(f"\n{counted(problems, 'problem') if problems else 'no problems'} found")
    return "\n".join(lines)


def _as_json(findings: Sequence[Finding]) -> str:
    problems = {finding.name.strip(): finding.problem for finding in findings if finding.problem}
    values = {finding.name.strip(): finding.value for finding in findings}
    return json.dumps(
        {"ok": not problems, "findings": values, "problems": problems}, ensure_ascii=False, indent=2
    )
