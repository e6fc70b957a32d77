"""Every import of every file against the table below, and what `import koe5_onnx` really loads."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import koe5_onnx

RUNTIME = Path(koe5_onnx.__file__).parent
CHECKOUT = Path(__file__).resolve().parents[2]
PUBLIC = "koe5_onnx"

# Pattern of files to what they may import beside the standard library: at the top, and inside functions only.
# The first pattern that fits counts; a new file needs a line here.
SERVE = {
    "fastapi",
    "fastapi_offline",
    "orjson",
    "prometheus_client",
    "pydantic",
    "starlette",
    "typing_extensions",
    "uvicorn",
}
"""What the extra `serve` brings."""

RUNTIME_TABLE: dict[str, tuple[set[str], set[str]]] = {
    "__init__.py": ({".artifact", ".async_embedder", ".embedder", ".errors", ".tokenizer"}, set()),
    "errors.py": (set(), set()),
    "machine.py": (set(), set()),
    "hub.py": ({".errors"}, {"huggingface_hub"}),
    "fields.py": ({".errors"}, set()),
    "checked.py": (set(), set()),
    "artifact.py": ({".checked", ".errors", ".fields", ".hub"}, set()),
    "dimensions.py": ({".artifact", ".errors", "numpy"}, set()),
    "tokenizer.py": ({".errors", "numpy", "tokenizers"}, set()),
    "batching.py": ({"numpy"}, set()),
    "graphs.py": ({".artifact", ".errors"}, {"koe5_onnx_kernels"}),
    "buckets.py": ({".batching", "numpy"}, set()),
    "cuda.py": ({".errors"}, set()),
    "page_locked.py": ({".cuda", "numpy"}, set()),
    "bound.py": ({".page_locked", "numpy"}, set()),
    "captured.py": (
        {".artifact", ".batching", ".bound", ".buckets", ".errors", ".tokenizer", "numpy"},
        set(),
    ),
    "providers.py": ({".artifact", ".errors", ".machine"}, {"onnxruntime"}),
    "session.py": (
        {
            ".artifact",
            ".batching",
            ".bound",
            ".captured",
            ".cuda",
            ".errors",
            ".graphs",
            ".machine",
            ".page_locked",
            ".providers",
            ".sharing",
            "numpy",
        },
        set(),
    ),
    "sharing.py": ({".artifact", ".checked", ".errors", ".graphs"}, set()),
    "pipeline.py": ({".batching", ".errors", ".session", ".tokenizer", "numpy"}, set()),
    "tuning.py": (
        {
            ".artifact",
            ".checked",
            ".cuda",
            ".errors",
            ".graphs",
            ".machine",
            ".pipeline",
            ".providers",
            ".session",
            ".tokenizer",
            "numpy",
        },
        set(),
    ),
    "cli/tune.py": ({PUBLIC, ".tuning"}, set()),
    "embedder.py": (
        {
            ".artifact",
            ".batching",
            ".dimensions",
            ".errors",
            ".graphs",
            ".pipeline",
            ".session",
            ".tokenizer",
            ".tuning",
            "numpy",
        },
        set(),
    ),
    "cli/doctor.py": (
        {PUBLIC, ".cli", ".cuda", ".graphs", ".machine", ".providers", ".sharing", "numpy"},
        set(),
    ),
    "queue.py": ({"numpy"}, set()),
    "runner.py": ({".embedder", ".errors", ".queue", ".tokenizer", "numpy"}, set()),
    "event_loops.py": (set(), set()),
    "async_embedder.py": (
        {
            ".dimensions",
            ".embedder",
            ".errors",
            ".event_loops",
            ".pipeline",
            ".queue",
            ".runner",
            ".tokenizer",
            "numpy",
        },
        set(),
    ),
    "integrations/__init__.py": (set(), set()),
    "integrations/opening.py": ({PUBLIC}, set()),
    "integrations/tensors.py": ({PUBLIC, "numpy"}, {"torch"}),
    "integrations/langchain.py": ({PUBLIC, ".dimensions", ".integrations", "langchain_core"}, set()),
    "integrations/llama_index.py": ({PUBLIC, ".dimensions", ".integrations", "llama_index"}, set()),
    "integrations/haystack.py": ({PUBLIC, ".dimensions", ".integrations", "haystack"}, set()),
    "integrations/chroma.py": ({PUBLIC, ".integrations", "numpy", "chromadb"}, set()),
    "integrations/mteb.py": ({PUBLIC, ".dimensions", ".integrations", "numpy", "mteb"}, set()),
    "integrations/sentence_transformers.py": (
        {PUBLIC, ".dimensions", ".integrations", "numpy"},
        {"huggingface_hub"},
    ),
    "cli/certificate_facts.py": ({PUBLIC, ".artifact", ".cli"}, set()),
    "cli/sections.py": ({".artifact"}, set()),
    "cli/histogram_svg.py": ({".artifact", ".cli"}, set()),
    "cli/export.py": ({PUBLIC, ".artifact", ".cli", ".machine"}, {"koe5_export"}),
    "cli/import_folder.py": ({PUBLIC, ".cli"}, {"koe5_export"}),
    "cli/verify.py": ({PUBLIC, ".cli", "numpy"}, {"koe5_export"}),
    "cli/demo.py": ({PUBLIC, ".cli", "numpy"}, {"koe5_export"}),
    "cli/serve.py": ({PUBLIC, ".machine"}, {".serve"}),
    "serve/__init__.py": ({".errors", ".serve", *SERVE}, set()),
    "serve/engine.py": ({PUBLIC, ".event_loops", ".queue", ".runner", ".serve", "numpy"}, set()),
    "serve/inputs.py": ({PUBLIC, ".dimensions", ".serve", "numpy"}, set()),
    "serve/metrics.py": ({PUBLIC, ".queue", ".serve", "prometheus_client"}, set()),
    "serve/tracing.py": ({PUBLIC, ".queue", ".serve"}, {"opentelemetry"}),
    "serve/*.py": ({PUBLIC, ".serve", "numpy", *SERVE}, set()),
    "cli/bulk.py": ({PUBLIC, ".bulk", ".cli"}, {"huggingface_hub"}),  # at the top its types only
    "bulk/__init__.py": ({".bulk", ".errors", "filelock", "pyarrow"}, set()),
    "bulk/ray_engine.py": ({PUBLIC, ".bulk"}, {"ray"}),
    "bulk/embed.py": ({PUBLIC, ".bulk", ".dimensions", ".graphs"}, set()),
    "bulk/worker.py": ({PUBLIC, ".bulk", ".graphs", "numpy", "pyarrow"}, set()),
    "bulk/*.py": ({PUBLIC, ".bulk", "filelock", "numpy", "pyarrow"}, set()),
    "cli/*.py": ({PUBLIC, ".cli", "numpy"}, {"huggingface_hub"}),
}
_EXPORT = {PUBLIC, ".artifact", ".hub", "koe5_export", "numpy"}
EXPORT_TABLE: dict[str, tuple[set[str], set[str]]] = {
    "reference.py": (_EXPORT, {"sentence_transformers", "torch", "transformers"}),
    "tensors.py": (_EXPORT | {"ml_dtypes", "safetensors"}, {"torch"}),
    "optimum.py": (_EXPORT, {"optimum"}),
    "verify.py": (_EXPORT | {"tokenizers", ".cuda", ".graphs", ".machine", ".providers", ".session"}, set()),
    "packed.py": (_EXPORT | {".session", "onnx"}, set()),
    "simulated.py": (_EXPORT | {".graphs", ".session", "onnx"}, set()),
    "export.py": (_EXPORT | {".graphs"}, set()),
    "graph.py": (_EXPORT | {".batching", "onnx"}, set()),
    "precision/*.py": (_EXPORT | {".machine", "onnx"}, set()),
    "trained.py": (_EXPORT | {"safetensors"}, set()),
    "xlmr_tokenizer.py": (_EXPORT | {"tokenizers"}, {"sentencepiece"}),
    "*.py": (_EXPORT | {"onnx", "tokenizers"}, set()),
}
BENCHMARKS_TABLE: dict[str, tuple[set[str], set[str]]] = {
    # Each contender imports its own library inside its own function, so anything may stand there.
    "quality_plot.py": ({PUBLIC, "benchmarks", "matplotlib", "numpy"}, {"*"}),  # its types only
    "quality_run.py": (
        {PUBLIC, ".artifact", ".machine", ".providers", "benchmarks", "koe5_export", "numpy", "tokenizers"},
        {"*"},
    ),
    "quality_pareto.py": ({"benchmarks", "matplotlib"}, {"matplotlib"}),  # at the top its types only
    "quality.py": ({PUBLIC, ".machine", "benchmarks", "koe5_export"}, set()),
    "sharing.py": ({PUBLIC, ".checked", ".graphs", ".machine", "benchmarks"}, set()),
    "export.py": ({PUBLIC, ".machine", "benchmarks", "koe5_export"}, set()),
    "output_dtypes.py": ({PUBLIC, ".bulk", "benchmarks", "numpy"}, set()),
    "corpora.py": ({PUBLIC, ".hub", "benchmarks"}, set()),
    "speed/gpu.py": (
        {PUBLIC, ".cuda", ".graphs", ".providers", ".tuning", "benchmarks", "koe5_export"},
        set(),
    ),
    "speed/gpu_ceiling.py": ({"benchmarks"}, {"torch"}),
    "speed/gemm.py": ({".graphs", ".providers", "numpy"}, {"onnx"}),
    "speed/smoke.py": ({PUBLIC, ".artifact", ".machine", "benchmarks", "koe5_export"}, {"onnx"}),
    "speed/texts.py": ({PUBLIC, "benchmarks", "koe5_export"}, set()),
    "speed/clients.py": ({"benchmarks", "httptools", "numpy", "orjson", "uvloop"}, set()),
    "speed/serve.py": ({PUBLIC, ".machine", "benchmarks", "numpy"}, set()),
    "speed/servers.py": ({".machine", "benchmarks", "numpy"}, set()),
    "speed/*.py": ({PUBLIC, ".machine", "benchmarks", "koe5_export"}, set()),
    "contenders/agreement.py": ({"benchmarks", "koe5_export", "numpy"}, set()),
    "contenders/prepared.py": ({PUBLIC, "benchmarks", "koe5_export"}, set()),
    "contenders/process.py": ({PUBLIC, "benchmarks", "numpy"}, set()),
    # Loaded in the environment of a contender's library, where koe5_export's imports are missing.
    "contenders/*.py": ({PUBLIC, "benchmarks", "numpy"}, {"*"}),
    "*.py": ({PUBLIC, "benchmarks", "koe5_export", "numpy"}, {"*"}),
}


@dataclass(frozen=True)
class Import:
    """One name that a file imports."""

    name: str
    """Top-level package; of koe5_onnx its module, as ".session"."""
    line: int
    in_function: bool


def imports_of(file: Path) -> list[Import]:
    return list(_walk(ast.parse(file.read_text(encoding="utf-8")), in_function=False))


def _walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(_short(alias.name, None), child.lineno, in_function)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            for alias in child.names:
                yield Import(_short(child.module or "", alias.name), child.lineno, in_function)
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, inside)


def _short(module: str, name: str | None) -> str:
    """`from koe5_onnx import Embedder` is PUBLIC; `from koe5_onnx.session import x` is ".session"."""
    top, _, rest = module.partition(".")
    if top != PUBLIC:
        return top
    if not rest and name is not None and (RUNTIME / f"{name}.py").is_file():
        rest = name
    return f".{rest.partition('.')[0]}" if rest else PUBLIC


def files_of(package: str) -> list[tuple[Path, Path]]:
    """(folder, file) of each file; of an installed package where there is no checkout."""
    known = {
        "koe5_onnx": RUNTIME,
        "koe5_export": CHECKOUT / "export/koe5_export",
        "benchmarks": CHECKOUT / "benchmarks",
    }
    folder = known[package]
    if not folder.is_dir() and (spec := importlib.util.find_spec(package)) is not None and spec.origin:
        folder = Path(spec.origin).parent
    return [(folder, file) for file in sorted(folder.rglob("*.py"))]


def cases() -> Iterator[object]:
    tables = {"koe5_onnx": RUNTIME_TABLE, "koe5_export": EXPORT_TABLE, "benchmarks": BENCHMARKS_TABLE}
    for package, table in tables.items():
        for folder, file in files_of(package):
            name = file.relative_to(folder).as_posix()
            yield pytest.param(file, name, table, id=f"{package}/{name}")


@pytest.mark.parametrize(("file", "name", "table"), list(cases()))
def test_imports_are_those_of_the_table(file, name, table):
    allowed = next((row for pattern, row in table.items() if fnmatch(name, pattern)), None)
    assert allowed is not None, f"{name} is new: give it a line in the table of this test"
    top, functions = allowed
    for found in imports_of(file):
        inside = found.in_function and (found.name in functions or "*" in functions)
        fits = found.name in sys.stdlib_module_names or found.name in top or inside
        assert fits, f"{file}:{found.line} imports {found.name}: the table does not allow it there"


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("onnxruntime", {"providers.py"}),
        ("tokenizers", {"tokenizer.py"}),
        (
            "huggingface_hub",
            {
                "hub.py",
                "cli/bulk.py",
                "cli/embed.py",
                "cli/stages.py",
                "integrations/sentence_transformers.py",
            },
        ),
        ("koe5_export", {"cli/demo.py", "cli/export.py", "cli/import_folder.py", "cli/verify.py"}),
    ],
)
def test_who_imports_it(package, places):
    found = {
        file.relative_to(folder).as_posix()
        for folder, file in files_of("koe5_onnx")
        if any(entry.name == package for entry in imports_of(file))
    }
    assert found == places


def test_the_walk_sees_what_it_should(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import torch.nn\nfrom koe5_onnx import Embedder, session\n"
        "class A:\n    from koe5_onnx.hub import fetch\n    def f(self):\n        import onnx, json\n"
        "if True:\n    from transformers import AutoModel\n"
    )
    assert [(found.name, found.line, found.in_function) for found in imports_of(file)] == [
        ("torch", 1, False),
        ("koe5_onnx", 2, False),
        (".session", 2, False),
        (".hub", 4, False),
        ("onnx", 6, True),
        ("json", 6, True),
        ("transformers", 8, False),
    ]


HEAVY = (
    "asyncio",
    "fastapi",
    "huggingface_hub",
    "koe5_export",
    "ml_dtypes",
    "onnx",
    "onnxruntime",
    "optimum",
    "pyarrow",
    "ray",
    "safetensors",
    "torch",
    "tqdm",
    "transformers",
)


@pytest.mark.parametrize(
    "code", ["import koe5_onnx", "import koe5_onnx.cli; koe5_onnx.cli.parse(['doctor'])"]
)
def test_importing_is_light(run_python, code):
    done = run_python(f"{code}\nimport sys\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))")
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_encoding_loads_the_runtime_only(run_python, artifact_path):
    code = f"""
import sys
from koe5_onnx import Embedder
Embedder.open(sys.argv[1], threads=1).encode(["가"])
print(*sorted(set(sys.modules) & set({HEAVY!r})))
"""
    assert run_python(code, artifact_path).stdout == "onnxruntime\n"
